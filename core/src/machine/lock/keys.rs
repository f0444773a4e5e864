//! The keys of a namespace's records.

use crate::key::{Key, Kind};

/// Bytes of a key before what the service adds: slot and kind.
const KEY_HEAD: usize = 2 + 1;

/// Stands in the place of a wait that acquires, so that those who convert come first.
const ACQUIRES: u64 = 1 << 63;

/// Where the records of a namespace are.
#[derive(Clone, Copy)]
pub(in super::super) struct LockKeys<'s> {
    pub(super) slot: u16,
    pub(super) namespace: &'s str,
}

impl LockKeys<'_> {
    fn key(self, kind: Kind) -> Key {
        Key::new(self.slot, kind)
    }

    pub(super) fn namespace(self) -> Key {
        self.key(Kind::LockNamespace).tail(self.namespace.as_bytes())
    }

    pub(super) fn sessions(self) -> Key {
        self.key(Kind::Session).text(self.namespace)
    }

    pub(super) fn session(self, id: u64) -> Key {
        self.sessions().u64(id)
    }

    pub(super) fn all_metadata(self) -> Key {
        self.key(Kind::SessionMetadata).text(self.namespace)
    }

    pub(super) fn metadata(self, session_id: u64) -> Key {
        self.all_metadata().u64(session_id)
    }

    pub(super) fn locks(self) -> Key {
        self.key(Kind::Lock).text(self.namespace)
    }

    pub(super) fn lock(self, name: &str) -> Key {
        self.locks().tail(name.as_bytes())
    }

    pub(super) fn holders(self, name: &str) -> Key {
        self.key(Kind::Holder).text(self.namespace).text(name)
    }

    pub(super) fn holder(self, name: &str, token: u64) -> Key {
        self.holders(name).u64(token)
    }

    pub(super) fn waiters(self, name: &str) -> Key {
        self.key(Kind::Waiter).text(self.namespace).text(name)
    }

    pub(super) fn waiter(self, name: &str, ordinal: u64, converts: bool) -> Key {
        self.waiters(name).u64(if converts { ordinal } else { ordinal | ACQUIRES })
    }

    pub(super) fn waits(self, session_id: u64) -> Key {
        self.key(Kind::Wait).text(self.namespace).u64(session_id)
    }

    pub(super) fn wait(self, session_id: u64, ordinal: u64) -> Key {
        self.waits(session_id).u64(ordinal)
    }

    /// The value of a campaign.
    pub(super) fn candidate(self, session_id: u64, ordinal: u64) -> Key {
        self.key(Kind::Proclaimed).text(self.namespace).u64(session_id).u64(ordinal)
    }

    /// The value of a leader. No call waits under ordinal 0.
    pub(super) fn leader(self, session_id: u64, name: &str) -> Key {
        self.candidate(session_id, 0).tail(name.as_bytes())
    }

    /// That a name is that of a semaphore.
    pub(super) fn semaphore(self, name: &str) -> Key {
        self.key(Kind::Semaphore).text(self.namespace).tail(name.as_bytes())
    }

    pub(super) fn latches(self) -> Key {
        self.key(Kind::Latch).text(self.namespace)
    }

    pub(super) fn latch(self, name: &str) -> Key {
        self.latches().tail(name.as_bytes())
    }

    pub(super) fn barriers(self) -> Key {
        self.key(Kind::Barrier).text(self.namespace)
    }

    pub(super) fn barrier(self, name: &str) -> Key {
        self.barriers().tail(name.as_bytes())
    }

    pub(super) fn entries(self, session_id: u64) -> Key {
        self.key(Kind::Entered).text(self.namespace).u64(session_id)
    }

    pub(super) fn entered(self, session_id: u64, name: &str) -> Key {
        self.entries(session_id).tail(name.as_bytes())
    }

    pub(super) fn deadlocks(self) -> Key {
        self.key(Kind::Deadlock).text(self.namespace)
    }

    pub(super) fn deadlock(self, number: u64) -> Key {
        self.deadlocks().u64(number)
    }

    pub(super) fn claims(self, session_id: u64) -> Key {
        self.key(Kind::Claim).text(self.namespace).u64(session_id)
    }

    pub(super) fn claim(self, session_id: u64, name: &str) -> Key {
        self.claims(session_id).tail(name.as_bytes())
    }
}

/// The ordinal of a wait, from the end of its waiter's key.
pub(super) fn ordinal_of(waiter: &[u8]) -> u64 {
    number_of(waiter) & !ACQUIRES
}

/// Whether the key is that of a waiter who converts.
pub(super) fn converts(waiter: &[u8]) -> bool {
    number_of(waiter) < ACQUIRES
}

/// The number at the end of a key.
pub(super) fn number_of(key: &[u8]) -> u64 {
    let (_, number) = key.split_last_chunk::<8>().expect("the key ends with a number");
    u64::from_be_bytes(*number)
}

/// What a timer needs to find its record: the record's key after slot and kind.
pub(super) fn timer_rest(key: &Key) -> &[u8] {
    &key.bytes()[KEY_HEAD..]
}
