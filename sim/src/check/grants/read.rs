//! What is read of a lock, against the log.

use trefoil_proto::lock::v1::LockMode;

use super::super::Violation;
use super::{GrantChecker, LockHold};

const READ: &str = "what is read of a lock is its state at that index";

impl GrantChecker {
    /// A token was validated at the newest index: the session that holds the lock with it.
    #[must_use]
    pub fn validated(
        &self,
        namespace: &str,
        lock: &str,
        token: u64,
        told: Option<u64>,
    ) -> Option<Violation> {
        let known = self.locks.get(&(namespace.to_owned(), lock.to_owned()));
        let hold = known.and_then(|lock| lock.holds.iter().find(|hold| hold.token == token));
        let fits = match (told, hold) {
            (Some(session), Some(hold)) => hold.session == session,
            (Some(_), None) => false,
            (None, Some(hold)) => hold.may_be_gone || !self.lives(namespace, hold.session),
            (None, None) => true,
        };
        (!fits).then(|| Violation::new(READ, format!("token {token}: told {told:?}, is {hold:?}")))
    }

    /// The session that is sure to hold a lock in mode EXCLUSIVE, with its token.
    #[must_use]
    pub fn alone(&self, namespace: &str, lock: &str) -> Option<(u64, u64)> {
        let lock = self.locks.get(&(namespace.to_owned(), lock.to_owned()))?;
        let is_sure = |hold: &&LockHold| {
            hold.mode == LockMode::Exclusive
                && !hold.may_be_gone
                && self.lives(namespace, hold.session)
        };
        lock.holds.iter().find(is_sure).map(|hold| (hold.session, hold.token))
    }

    /// Since when the time of a session has been up; none while it is not, and where it was closed.
    #[must_use]
    pub fn over_since(&self, namespace: &str, session: u64) -> Option<u64> {
        self.sessions.get(&(namespace.to_owned(), session))?.over_at_ms
    }

    pub(super) fn lives(&self, namespace: &str, session: u64) -> bool {
        let session = self.sessions.get(&(namespace.to_owned(), session));
        session.is_some_and(|session| session.over_at_ms.is_none() && !session.closed)
    }

    /// A lock was described at the newest index: sessions and tokens of its holders.
    #[must_use]
    pub fn described(&self, namespace: &str, lock: &str, told: &[(u64, u64)]) -> Option<Violation> {
        let lock = self.locks.get(&(namespace.to_owned(), lock.to_owned()));
        let holds = lock.map_or(&[][..], |lock| lock.holds.as_slice());
        let is_told = |hold: &LockHold| told.contains(&(hold.session, hold.token));
        let missing = holds.iter().find(|hold| {
            !hold.may_be_gone && self.lives(namespace, hold.session) && !is_told(hold)
        });
        let known = |(session, token): &(u64, u64)| {
            holds.iter().any(|hold| (hold.session, hold.token) == (*session, *token))
        };
        if missing.is_none() && told.iter().all(known) {
            return None;
        }
        Some(Violation::new(READ, format!("told {told:?}, held {holds:?}")))
    }
}
