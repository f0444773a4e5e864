//! DURABLE: the keys of the state. The enum below is the whole format; numbers are never reused.
//!
//! A key is `slot (2 bytes, big endian) | kind (1 byte) | rest`; strings inside a key have their length before them
//! (1 or 2 bytes), except a last one, so that locks and cache keys stay in the order of their names.

use crate::slot::SYSTEM_SLOT;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// System slot: how far the shard is. Value: `Progress`.
    Progress = 1,
    /// System slot: when something is due. Rest: due ms (8), slot (2), kind (1), what the service added. Value: empty.
    Timer = 2,
    /// System slot: a client that sends request ids. Rest: client. Value: `RequestClient`.
    RequestClient = 3,
    /// System slot: an answer. Rest: client (length 1), sequence (8). Value: `RequestAnswer`.
    RequestAnswer = 4,
    /// System slot of a data shard: what it knows of a declared namespace. Rest: namespace. Value: `NamespaceCopy`.
    NamespaceCopy = 6,

    /// Counters of a namespace: sessions, tokens. Rest: namespace. Value: `LockNamespace`.
    LockNamespace = 16,
    /// A session. Rest: namespace (length 1), session id (8). Value: `Session`.
    Session = 17,
    /// Facts of a session. Rest: namespace (length 1), session id (8). Value: `SessionMetadata`.
    SessionMetadata = 5,
    /// A lock. Rest: namespace (length 1), name. Value: `Lock`.
    Lock = 18,
    /// A waiter in its order. Rest: namespace (length 1), name (length 1), ordinal (8), with the highest bit set unless it
    /// converts. Value: `Waiter`.
    Waiter = 19,
    /// What a session holds or waits for. Rest: namespace (length 1), session id (8), name. Value: `Claim`.
    Claim = 20,
    /// A session that holds a lock in mode SHARED. Rest: namespace (length 1), name (length 1), token (8). Value: `Holder`.
    Holder = 21,
    /// A call that waits. Rest: namespace (length 1), session id (8), ordinal (8). Value: `Wait`.
    Wait = 22,
    /// A deadlock. Rest: namespace (length 1), number (8). Value: `trefoil.lock.v1.Deadlock`.
    Deadlock = 23,
    /// That a name is that of a semaphore; its lock knows the rest. Rest: namespace (length 1), name. Value: empty.
    Semaphore = 24,
    /// What a session proclaims. Rest: namespace (length 1), session id (8), ordinal of its campaign (8); that of a leader
    /// has ordinal 0, and its lock's name after it. Value: `Proclaimed`.
    Proclaimed = 28,
    /// A latch. Rest: namespace (length 1), name. Value: `Latch`.
    Latch = 29,
    /// A barrier. Rest: namespace (length 1), name. Value: `Barrier`.
    Barrier = 30,
    /// A barrier in which a session may be. Rest: namespace (length 1), session id (8), name. Value: `Entered`.
    Entered = 31,

    /// Meta shard: counters of the catalogue. Value: `CatalogueCounters`.
    CatalogueCounters = 32,
    /// Meta shard: a queue. Rest: namespace (length 1), queue. Value: `Catalogue`.
    Catalogue = 33,
    /// Meta shard: a declared namespace. Rest: namespace. Value: `NamespaceRecord`.
    Namespace = 38,
    /// Meta shard: counters of the declared namespaces. Value: `NamespaceCounters`.
    NamespaceCounters = 39,
    /// A partition. Rest: queue id (8), partition (4). Value: `Partition`.
    Partition = 34,
    /// A message. Rest: queue id (8), partition (4), sequence (8). Value: `StoredMessage`.
    Message = 35,
    /// A message that may be delivered. Rest: queue id (8), partition (4), sequence (8). Value: its last `Lease`,
    /// empty before the first.
    Ready = 36,
    /// A message that is leased. Rest: queue id (8), partition (4), sequence (8). Value: `Lease`.
    Lease = 37,

    /// Version counter of a slot's cache keys. Value: 8 bytes, big endian.
    CacheVersion = 48,
    /// A cached value. Rest: namespace (length 1), key. Value: `CacheItem`.
    CacheItem = 49,

    /// System slot: the fencing mark of a lock. Rest: namespace (length 1), lock. Value: `FenceMark`.
    FenceMark = 50,
    /// System slot: marks in the order in which they were raised last. Rest: number (8). Value: the key of the mark.
    FenceOrder = 51,
    /// System slot: what is counted of the marks. Value: `FenceMarks`.
    FenceMarks = 52,
}

/// Bytes of a key before its rest: slot and kind.
pub const HEAD_BYTES: usize = 2 + 1;

impl Kind {
    /// Records that nobody looks for but by their whole key, so that their order is of no use.
    const ASKED_FOR_WHOLE: [Self; 13] = [
        Self::Progress,
        Self::RequestClient,
        Self::NamespaceCopy,
        Self::LockNamespace,
        Self::CatalogueCounters,
        Self::NamespaceCounters,
        Self::Partition,
        Self::Message,
        Self::Lease,
        Self::CacheVersion,
        Self::CacheItem,
        Self::FenceMark,
        Self::FenceMarks,
    ];

    /// Whether records of a kind, which is given by its number, are only ever asked for by their whole key.
    #[must_use]
    pub fn is_asked_for_whole(number: u8) -> bool {
        Self::ASKED_FOR_WHOLE.iter().any(|kind| *kind as u8 == number)
    }
}

/// The number of a key's kind; none where it is no key of a state.
#[must_use]
pub fn kind(key: &[u8]) -> Option<u8> {
    key.get(HEAD_BYTES - 1).copied()
}

/// Builds one key.
#[derive(Clone, Debug)]
pub struct Key(Vec<u8>);

impl Key {
    /// Begins the key of a record.
    #[must_use]
    pub fn new(slot: u16, kind: Kind) -> Self {
        let mut bytes = Vec::with_capacity(32);
        bytes.extend_from_slice(&slot.to_be_bytes());
        bytes.push(kind as u8);
        Self(bytes)
    }

    /// Begins the key of a record of the shard itself.
    #[must_use]
    pub fn system(kind: Kind) -> Self {
        Self::new(SYSTEM_SLOT, kind)
    }

    /// Adds a string of at most 255 bytes with its length before it.
    ///
    /// # Panics
    /// When it is longer: names are checked before they become commands.
    #[must_use]
    pub fn text(mut self, text: &str) -> Self {
        self.0.push(u8::try_from(text.len()).expect("a name is at most NAME_BYTES_MAX"));
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    /// Adds the last part as it is.
    #[must_use]
    pub fn tail(mut self, tail: &[u8]) -> Self {
        self.0.extend_from_slice(tail);
        self
    }

    /// Adds a 32-bit number.
    #[must_use]
    pub fn u32(self, number: u32) -> Self {
        self.tail(&number.to_be_bytes())
    }

    /// Adds a 64-bit number.
    #[must_use]
    pub fn u64(self, number: u64) -> Self {
        self.tail(&number.to_be_bytes())
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Key> for bytes::Bytes {
    fn from(key: Key) -> Self {
        key.0.into()
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
