//! A history: what clients called, when, and how each call ended.

use trefoil_core::{Position, ShardId};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::lock::v1::LockMode;

/// Time of a call that has not ended.
pub const OPEN: u64 = u64::MAX;

/// What a client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the requests")]
pub enum Action {
    /// Stores a value that no other call stores. A TTL of 0 keeps it.
    Put { key: String, value: String, ttl_ms: u64 },
    /// Reads a value.
    Get { key: String },
    /// Removes a value.
    Delete { key: String },
    /// Opens a session.
    OpenSession { namespace: String, ttl_ms: u64, delay_ms: u64 },
    /// Renews a session.
    KeepAlive { namespace: String, session: u64 },
    /// Closes a session.
    CloseSession { namespace: String, session: u64 },
    /// Acquires a lock; without a lock delay that of the session counts.
    Acquire {
        namespace: String,
        session: u64,
        lock: String,
        mode: LockMode,
        wait_ms: u64,
        delay_ms: Option<u64>,
    },
    /// Acquires several locks, all or none.
    AcquireAll {
        namespace: String,
        session: u64,
        locks: Vec<(String, LockMode)>,
        wait_ms: u64,
        delay_ms: Option<u64>,
    },
    /// Renews a session whose id it guessed.
    GuessSession { namespace: String, session: u64 },
    /// Changes the mode in which a session holds a lock.
    Convert {
        namespace: String,
        session: u64,
        lock: String,
        token: u64,
        mode: LockMode,
        wait_ms: u64,
    },
    /// Releases a lock.
    Release { namespace: String, session: u64, lock: String, token: u64 },
    /// Releases all that a session holds.
    ReleaseAll { namespace: String, session: u64 },
    /// Takes a lock from whoever holds it, or from the holder with this token.
    ForceRelease { namespace: String, lock: String, token: u64 },
    /// Asks whether somebody holds a lock with this token.
    ValidateToken { namespace: String, lock: String, token: u64 },
    /// Asks who holds a lock and who waits for it.
    DescribeLock { namespace: String, lock: String },
    /// Says how many permits a semaphore has.
    SetPermits { namespace: String, semaphore: String, permits: u64 },
    /// Takes permits of a semaphore.
    TakePermits { namespace: String, session: u64, semaphore: String, permits: u64, wait_ms: u64 },
    /// Gives permits back.
    GivePermits { namespace: String, session: u64, semaphore: String, token: u64 },
    /// Stores a message whose value no other call stores.
    Enqueue { queue: String, key: String, value: String },
    /// Leases messages.
    Dequeue { queue: String, lease_ms: u64 },
    /// Settles a delivery.
    Ack { queue: String, message_id: String, lease_id: String },
}

impl Action {
    /// Whether it changes nothing, so that its position is an index at which the state was read.
    #[must_use]
    pub fn is_read(&self) -> bool {
        matches!(self, Self::Get { .. } | Self::ValidateToken { .. } | Self::DescribeLock { .. })
    }

    /// Whether a later command may answer it, at that command's position.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.wait_ms() > 0
    }

    /// Whether it takes a lock or permits, or waits for that.
    #[must_use]
    pub fn acquires(&self) -> bool {
        matches!(
            self,
            Self::Acquire { .. }
                | Self::AcquireAll { .. }
                | Self::Convert { .. }
                | Self::TakePermits { .. }
        )
    }

    /// How long it waits at most; 0 for what does not.
    #[must_use]
    pub fn wait_ms(&self) -> u64 {
        match self {
            Self::Acquire { wait_ms, .. }
            | Self::AcquireAll { wait_ms, .. }
            | Self::Convert { wait_ms, .. }
            | Self::TakePermits { wait_ms, .. } => *wait_ms,
            _ => 0,
        }
    }

    /// The locks, and the modes, in which a session is to hold them from then on.
    #[must_use]
    pub fn wanted(&self) -> Vec<(&str, LockMode)> {
        match self {
            Self::Acquire { lock, mode, .. } | Self::Convert { lock, mode, .. } => {
                vec![(lock, *mode)]
            }
            Self::AcquireAll { locks, .. } => {
                locks.iter().map(|(lock, mode)| (lock.as_str(), *mode)).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// A leased message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedDelivery {
    /// "queue-partition-sequence".
    pub message_id: String,
    /// The value that was enqueued.
    pub value: String,
    /// Names the lease.
    pub lease_id: String,
    /// 1 on the first delivery.
    pub count: u32,
}

/// What a client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the responses")]
pub enum RecordedOutcome {
    Put {
        version: u64,
    },
    /// None is a miss.
    Got {
        value: Option<(String, u64)>,
    },
    /// No version: there was nothing to delete.
    Deleted {
        version: Option<u64>,
    },
    SessionOpened {
        session: u64,
    },
    Renewed {
        remaining_ms: u64,
    },
    SessionClosed,
    /// The mode is the one asked for, or a stronger one that the session had.
    Acquired {
        token: u64,
        mode: LockMode,
    },
    /// Each lock with its token and mode.
    AcquiredAll {
        grants: Vec<(String, u64, LockMode)>,
    },
    /// Another session held the lock, or one of several, until the wait ended.
    NotAcquired,
    Converted {
        token: u64,
        mode: LockMode,
    },
    /// Other holders were in the way until the wait ended: it holds the lock as before.
    NotConverted,
    Released,
    ReleasedAll {
        released: u32,
    },
    /// With a token that nobody has.
    Forced {
        released: u32,
        token: u64,
    },
    /// The session that holds the lock with the token.
    Validated {
        holder: Option<u64>,
    },
    /// Tokens of the holders.
    Described {
        holders: Vec<u64>,
    },
    PermitsSet,
    PermitsTaken {
        token: u64,
    },
    /// Others held too many until the wait ended.
    NoPermits,
    PermitsGiven,
    Enqueued {
        message_id: String,
    },
    Delivered(Vec<RecordedDelivery>),
    Acked,
    /// The state machine refused, which changes nothing.
    Refused(Reason),
}

/// Where an answer was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerPosition {
    /// The shard.
    pub shard: ShardId,
    /// The position that the reply told.
    pub position: Position,
    /// Whether the call was sent once only. The answer of a retry may be a remembered one: then the position is
    /// that of the retry, and the effect stands at or before it.
    pub exact: bool,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Its end was not seen: it may take effect at any time after the call, or never.
    Open,
    /// Refused before the state machine decided: it did not and will not take effect.
    NotDone(Reason),
    /// Answered by the state machine.
    Answered(AnswerPosition, RecordedOutcome),
}

/// One call of one client, with all its retries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedCall {
    /// Who called.
    pub client: u64,
    /// When it was first sent, by a clock that all clients share; in microseconds.
    pub called_at: u64,
    /// When its end was seen; [`OPEN`] when it was not.
    pub ended_at: u64,
    /// What was asked for.
    pub action: Action,
    /// How it ended.
    pub end: End,
}

impl RecordedCall {
    /// Position and outcome of an answered call.
    #[must_use]
    pub fn answered(&self) -> Option<(&AnswerPosition, &RecordedOutcome)> {
        match &self.end {
            End::Answered(place, outcome) => Some((place, outcome)),
            End::Open | End::NotDone(_) => None,
        }
    }

    /// Whether it may have taken effect although nobody was told.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.end == End::Open
    }
}

/// What all clients did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// The calls in the order in which they were begun.
    pub calls: Vec<RecordedCall>,
}

impl History {
    /// Begins a call; the number ends it.
    pub fn begin(&mut self, client: u64, now: u64, action: Action) -> usize {
        self.calls.push(RecordedCall {
            client,
            called_at: now,
            ended_at: OPEN,
            action,
            end: End::Open,
        });
        self.calls.len() - 1
    }

    /// Ends a call.
    ///
    /// # Panics
    /// When it has ended before, or was never begun.
    pub fn end(&mut self, call: usize, now: u64, end: End) {
        let call = &mut self.calls[call];
        assert!(call.is_open() && call.ended_at == OPEN, "a call ends once");
        if end != End::Open {
            call.ended_at = now;
        }
        call.end = end;
    }

    /// All answered calls.
    pub fn answered(
        &self,
    ) -> impl Iterator<Item = (&RecordedCall, &AnswerPosition, &RecordedOutcome)> {
        self.calls
            .iter()
            .filter_map(|call| call.answered().map(|(place, outcome)| (call, place, outcome)))
    }
}

/// Builds small histories for the tests of the checkers.
#[cfg(test)]
pub(crate) mod build {
    use super::*;

    /// An answered call of shard 1 at an index, sent once, from `called_at` to `ended_at`.
    pub(crate) fn answered(
        called_at: u64,
        ended_at: u64,
        index: u64,
        action: Action,
        outcome: RecordedOutcome,
    ) -> RecordedCall {
        let position = Position { term: 2, index, ordinal: 0, log_time_ms: index };
        let place = AnswerPosition { shard: 1, position, exact: true };
        RecordedCall { client: 1, called_at, ended_at, action, end: End::Answered(place, outcome) }
    }

    /// A call whose end was not seen.
    pub(crate) fn open(called_at: u64, action: Action) -> RecordedCall {
        RecordedCall { client: 2, called_at, ended_at: OPEN, action, end: End::Open }
    }

    pub(crate) fn put(key: &str, value: &str) -> Action {
        Action::Put { key: key.to_owned(), value: value.to_owned(), ttl_ms: 0 }
    }

    pub(crate) fn get(key: &str) -> Action {
        Action::Get { key: key.to_owned() }
    }

    pub(crate) fn delete(key: &str) -> Action {
        Action::Delete { key: key.to_owned() }
    }

    pub(crate) fn got(value: &str, version: u64) -> RecordedOutcome {
        RecordedOutcome::Got { value: Some((value.to_owned(), version)) }
    }

    pub(crate) fn missed() -> RecordedOutcome {
        RecordedOutcome::Got { value: None }
    }

    pub(crate) fn history(calls: impl IntoIterator<Item = RecordedCall>) -> History {
        History { calls: calls.into_iter().collect() }
    }
}
