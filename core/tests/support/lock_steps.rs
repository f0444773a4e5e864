//! What may happen to the lock service in a random test.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::subsequence;
use trefoil_proto::lock::v1::{AcquireRequest, LockMode, LockWish};

pub const LOCKS: [&str; 3] = ["a", "b", "ab"];
pub const CLIENTS: [&str; 2] = ["c", "d"];

/// What happens; numbers pick from what there is at that time.
#[derive(Clone, Debug)]
pub enum Step {
    Open {
        ttl_ms: u64,
        delay_ms: u64,
    },
    KeepAlive {
        session: usize,
    },
    Close {
        session: usize,
    },
    Acquire {
        session: usize,
        lock: usize,
        wait_ms: u64,
        mode: LockMode,
        delay_ms: Option<u64>,
    },
    /// Several locks in one call, by their numbers.
    AcquireAll {
        session: usize,
        locks: Vec<(usize, LockMode)>,
        wait_ms: u64,
        delay_ms: Option<u64>,
    },
    Convert {
        session: usize,
        lock: usize,
        wait_ms: u64,
        mode: LockMode,
        token: Token,
    },
    /// A holder converts what it holds.
    ConvertHeld {
        held: usize,
        wait_ms: u64,
        mode: LockMode,
    },
    ReleaseAll {
        session: usize,
    },
    /// An operator takes a lock away.
    Force {
        lock: usize,
        token: Token,
    },
    Release {
        session: usize,
        lock: usize,
        token: Token,
    },
    /// A holder releases what it holds.
    ReleaseHeld {
        held: usize,
    },
    /// A command is sent again, with its request id where it has one.
    Retry {
        sent: usize,
    },
    /// The caller of an acquire is gone: that of its newest attempt, or of the one before.
    Cancel {
        sent: usize,
        is_late: bool,
    },
    /// Nobody is there any more to take the answer of a wait, as its leader saw it now or so many entries ago.
    Lose {
        seat: usize,
        ago: u64,
    },
    /// A client has seen all its answers but the newest few.
    Acknowledge {
        client: usize,
        kept: u64,
    },
    /// The entry ends, and log time moves.
    Advance {
        ms: u64,
    },
    NewTerm,
    Reopen,
}

#[derive(Clone, Copy, Debug)]
pub enum Token {
    Any,
    Right,
    Wrong,
}

/// A step, the namespace that it is in, and the client whose request id it carries, if any.
pub type Choice = (Step, usize, Option<usize>);

pub fn steps() -> impl Strategy<Value = Vec<Choice>> {
    let session = || 0..6_usize;
    let lock = || 0..LOCKS.len();
    let wait_ms = prop_oneof![1 => Just(0), 4 => 1..4_000_u64];
    let mode = prop_oneof![
        2 => Just(LockMode::Shared),
        1 => Just(LockMode::Update),
        2 => Just(LockMode::Exclusive),
    ];
    let delay_ms = prop_oneof![2 => Just(0), 1 => 1..2_000_u64];
    let own_delay_ms = proptest::option::weighted(0.2, delay_ms.clone());
    let locks = (subsequence(vec![0, 1, 2], 1..=3).prop_shuffle(), vec(mode.clone(), 3))
        .prop_map(|(locks, modes)| locks.into_iter().zip(modes).collect::<Vec<_>>());
    let token = prop_oneof![Just(Token::Any), Just(Token::Right), Just(Token::Wrong)];
    let step = prop_oneof![
        6 => (300..6_000_u64, delay_ms.clone())
            .prop_map(|(ttl_ms, delay_ms)| Step::Open { ttl_ms, delay_ms }),
        4 => session().prop_map(|session| Step::KeepAlive { session }),
        2 => session().prop_map(|session| Step::Close { session }),
        14 => (session(), locks, wait_ms.clone(), own_delay_ms.clone()).prop_map(
            |(session, locks, wait_ms, delay_ms)| Step::AcquireAll { session, locks, wait_ms, delay_ms }
        ),
        20 => (session(), lock(), wait_ms.clone(), mode.clone(), own_delay_ms).prop_map(
            |(session, lock, wait_ms, mode, delay_ms)| {
                Step::Acquire { session, lock, wait_ms, mode, delay_ms }
            }
        ),
        2 => (session(), lock(), wait_ms.clone(), mode.clone(), token.clone())
            .prop_map(|(session, lock, wait_ms, mode, token)| Step::Convert { session, lock, wait_ms, mode, token }),
        8 => (0..4_usize, wait_ms, mode)
            .prop_map(|(held, wait_ms, mode)| Step::ConvertHeld { held, wait_ms, mode }),
        1 => session().prop_map(|session| Step::ReleaseAll { session }),
        1 => (lock(), token.clone()).prop_map(|(lock, token)| Step::Force { lock, token }),
        3 => (session(), lock(), token).prop_map(|(session, lock, token)| Step::Release { session, lock, token }),
        8 => (0..4_usize).prop_map(|held| Step::ReleaseHeld { held }),
        8 => (0..10_usize).prop_map(|sent| Step::Retry { sent }),
        5 => (0..10_usize, any::<bool>()).prop_map(|(sent, is_late)| Step::Cancel { sent, is_late }),
        5 => (0..CLIENTS.len(), 0..4_u64).prop_map(|(client, kept)| Step::Acknowledge { client, kept }),
        14 => (0..900_u64).prop_map(|ms| Step::Advance { ms }),
        5 => (0..6_usize, 0..3_u64).prop_map(|(seat, ago)| Step::Lose { seat, ago }),
        2 => Just(Step::NewTerm),
        1 => Just(Step::Reopen),
    ];
    let namespace = prop_oneof![5 => Just(0_usize), 1 => Just(1)];
    let client = prop_oneof![Just(None), (0..CLIENTS.len()).prop_map(Some)];
    vec((step, namespace, client), 1..160)
}

/// What a step asks for that acquires.
pub fn acquire(step: &Step, namespace: String, session_id: u64) -> AcquireRequest {
    let request = AcquireRequest { namespace, session_id, ..AcquireRequest::default() };
    match step {
        Step::Acquire { lock, wait_ms, mode, delay_ms, .. } => AcquireRequest {
            name: LOCKS[*lock].to_owned(),
            wait_ms: *wait_ms,
            mode: (*mode).into(),
            lock_delay_ms: *delay_ms,
            ..request
        },
        Step::AcquireAll { locks, wait_ms, delay_ms, .. } => {
            let wish = |(lock, mode): &(usize, LockMode)| LockWish {
                name: LOCKS[*lock].to_owned(),
                mode: (*mode).into(),
            };
            let locks = locks.iter().map(wish).collect();
            AcquireRequest { wait_ms: *wait_ms, lock_delay_ms: *delay_ms, locks, ..request }
        }
        other => panic!("{other:?} acquires nothing"),
    }
}
