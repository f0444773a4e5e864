//! A keeper: reads and writes the cache under a lock, fenced by its token, and often goes on when it has lost that.

use trefoil_core::Position;
use trefoil_proto::common::v1::{Fence, Reason};
use trefoil_proto::internal::v1::{Answer, CheckedFence, TokenStanding, answer};
use trefoil_proto::lock::v1::LockMode;

use crate::check::history::{Action, RecordedOutcome};
use crate::client_context::ClientContext;
use crate::config::SECOND;
use crate::workload::cache::cacher;
use crate::workload::lock::NAMESPACES;
use crate::workload::planned::{PlannedCall, Wish, step};

const NAMESPACE: &str = NAMESPACES[0];
/// The lock of all keepers.
const LOCK: &str = "vault";
/// The keys that they guard with it.
pub(crate) const KEYS: [&str; 2] = ["vault-1", "vault-2"];
/// Longest wait for the lock, in ms.
const WAIT_MS_MAX: u64 = 3_000;

/// What a keeper knows of its token, as a node that serves it would.
#[derive(Clone, Debug)]
enum TokenKnowledge {
    Unknown,
    /// The mark of the key's shard is lower: asked at this index.
    AsOf(u64),
    Said(CheckedFence),
    /// The key's shard was used under it.
    Reached(CheckedFence),
}

#[derive(Clone, Debug)]
struct FencedHold {
    token: u64,
    mode: LockMode,
    /// For each key.
    words: [TokenKnowledge; KEYS.len()],
}

/// What a keeper has.
#[derive(Debug, Default)]
pub struct FenceClient {
    session: Option<u64>,
    held: Option<FencedHold>,
    /// The key that it works with.
    key: usize,
}

impl FenceClient {
    /// What it wants next.
    pub fn next(&mut self, unique: String, shared: &mut ClientContext) -> Wish {
        // It is a user of the cache as others are, too.
        if shared.rng.chance(400) {
            return Wish::Do(cacher(unique, shared));
        }
        let namespace = NAMESPACE.to_owned();
        let Some(held) = self.held.clone() else { return self.acquire(shared) };
        let action = match (self.session, shared.rng.between(0, 19)) {
            (Some(_), 0 | 1) => return Wish::Rest(shared.rng.between(1, 6) * SECOND),
            (Some(session), 2) => {
                let (lock, token) = (LOCK.to_owned(), held.token);
                Action::Release { namespace, session, lock, token }
            }
            (Some(session), 3..=5) => Action::KeepAlive { namespace, session },
            // It has noticed at last that its session is over.
            (None, 0..=2) => return self.acquire(shared),
            _ => return Wish::Do(self.work(&held, unique, shared)),
        };
        let request = shared.router.request(&action);
        Wish::Do(step(action, request))
    }

    fn acquire(&mut self, shared: &mut ClientContext) -> Wish {
        self.held = None;
        let (namespace, rng) = (NAMESPACE.to_owned(), &mut shared.rng);
        let action = match self.session {
            None => {
                let ttl_ms = rng.between(500, 5_000);
                Action::OpenSession { namespace, ttl_ms, delay_ms: 0 }
            }
            Some(session) => {
                let mode = match rng.between(0, 9) {
                    0 | 1 => LockMode::Shared,
                    2 | 3 => LockMode::Update,
                    _ => LockMode::Exclusive,
                };
                let (lock, wait_ms) = (LOCK.to_owned(), rng.between(0, WAIT_MS_MAX));
                Action::Acquire { namespace, session, lock, mode, wait_ms, delay_ms: None }
            }
        };
        let request = shared.router.request(&action);
        Wish::Do(step(action, request))
    }

    /// Finds out what its token is worth where the key lives, and reads or writes under it.
    fn work(
        &mut self,
        held: &FencedHold,
        unique: String,
        shared: &mut ClientContext,
    ) -> PlannedCall {
        let (router, rng) = (shared.router, &mut shared.rng);
        if matches!(held.words[self.key], TokenKnowledge::Said(_) | TokenKnowledge::Reached(_))
            && rng.chance(300)
        {
            self.key = (self.key + 1) % KEYS.len();
        }
        let key = KEYS[self.key].to_owned();
        let lock = LOCK.to_owned();
        let (checked, reached) = match &held.words[self.key] {
            TokenKnowledge::Unknown => {
                return PlannedCall::unjudged(router.find_mark(&key, NAMESPACE, LOCK), false);
            }
            TokenKnowledge::AsOf(_) => {
                let namespace = NAMESPACE.to_owned();
                let action = Action::ValidateToken { namespace, lock, token: held.token };
                let request = router.request(&action);
                return step(action, request);
            }
            TokenKnowledge::Said(checked) => (checked.clone(), false),
            TokenKnowledge::Reached(checked) => (checked.clone(), true),
        };
        if rng.chance(500) {
            let action = Action::Put { key, value: unique, ttl_ms: 0 };
            let request = router.request(&action).fenced(checked);
            return step(action, request);
        }
        if checked.standing() == TokenStanding::Writer && !reached {
            return PlannedCall::unjudged(router.touch_fence(&key).fenced(checked), true);
        }
        let action = Action::Get { key };
        let request = router.request(&action).fenced(checked);
        step(action, request)
    }

    /// A call that is not recorded was answered: what it asked about its token.
    pub fn told(&mut self, answer: &Answer, position: Position) {
        let Some(held) = &mut self.held else { return };
        let word = &mut held.words[self.key];
        match answer.answer.as_ref() {
            Some(answer::Answer::FoundMark(mark)) if mark.token < held.token => {
                *word = TokenKnowledge::AsOf(position.index);
            }
            Some(answer::Answer::FoundMark(_)) => {
                let (token, as_of) = (held.token, position.index);
                *word = TokenKnowledge::Reached(checked(token, as_of, TokenStanding::Unspecified));
            }
            Some(answer::Answer::Done(_)) => Self::reach(word),
            Some(answer::Answer::Refusal(refusal)) => self.refused(refusal.reason()),
            _ => {}
        }
    }

    /// A recorded call was answered.
    pub fn learned(&mut self, action: &Action, outcome: &RecordedOutcome) {
        match (action, outcome) {
            (_, RecordedOutcome::SessionOpened { session }) => self.session = Some(*session),
            (_, RecordedOutcome::Refused(Reason::SessionExpired)) => self.session = None,
            (_, RecordedOutcome::Acquired { token, mode }) => {
                let words = [TokenKnowledge::Unknown, TokenKnowledge::Unknown];
                self.held = Some(FencedHold { token: *token, mode: *mode, words });
            }
            (_, RecordedOutcome::Validated { holder }) => {
                let Some(held) = &mut self.held else { return };
                let TokenKnowledge::AsOf(as_of) = held.words[self.key] else { return };
                let standing = match (holder, held.mode) {
                    (None, _) => TokenStanding::NotHeld,
                    (Some(_), LockMode::Shared) => TokenStanding::Reader,
                    (Some(_), _) => TokenStanding::Writer,
                };
                held.words[self.key] = TokenKnowledge::Said(checked(held.token, as_of, standing));
            }
            (Action::Put { key, .. }, RecordedOutcome::Put { .. }) => {
                let held = self.held.as_mut().filter(|_| KEYS.contains(&key.as_str()));
                if let Some(held) = held {
                    Self::reach(&mut held.words[self.key]);
                }
            }
            (Action::Release { .. }, RecordedOutcome::Released) => self.held = None,
            (_, RecordedOutcome::Refused(reason)) => self.refused(*reason),
            _ => {}
        }
    }

    fn reach(word: &mut TokenKnowledge) {
        if let TokenKnowledge::Said(checked) = word {
            *word = TokenKnowledge::Reached(checked.clone());
        }
    }

    fn refused(&mut self, reason: Reason) {
        match (reason, &mut self.held) {
            (Reason::Fenced, held) => *held = None,
            (Reason::FenceNotValidated, Some(held)) => {
                held.words[self.key] = TokenKnowledge::Unknown
            }
            _ => {}
        }
    }
}

fn checked(token: u64, as_of: u64, standing: TokenStanding) -> CheckedFence {
    let fence = Fence { namespace: NAMESPACE.to_owned(), lock: LOCK.to_owned(), token };
    let (standing, holder_token) = (standing.into(), 0);
    CheckedFence { fence: Some(fence), standing, as_of, holder_token }
}
