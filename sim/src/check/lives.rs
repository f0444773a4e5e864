//! A session that is over gets nothing: it is not renewed, and what waits for it is not granted.

use super::Violation;

const RENEWED: &str = "a session that is over is not renewed";
const GRANTED: &str = "a waiter whose session is over is granted nothing";

/// A session as the state has it before an entry; in log time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLife {
    /// When its time is up.
    pub until_ms: u64,
    /// It was closed, or was seen to have expired.
    pub ended: bool,
}

/// Log time of an entry.
#[derive(Clone, Copy, Debug)]
pub struct EntryTimes {
    /// Its stamp.
    pub now_ms: u64,
    /// No session ends before.
    pub grace_until_ms: u64,
}

impl EntryTimes {
    fn is_over(self, life: Option<SessionLife>) -> bool {
        life.is_none_or(|life| life.ended || self.now_ms >= life.until_ms.max(self.grace_until_ms))
    }
}

/// A KeepAlive was answered with a life that remains.
#[must_use]
pub fn renewed(what: &str, life: Option<SessionLife>, times: EntryTimes) -> Option<Violation> {
    times.is_over(life).then(|| Violation::new(RENEWED, format!("{what}: {life:?} at {times:?}")))
}

/// An Acquire that had waited was granted.
#[must_use]
pub fn granted(what: &str, life: Option<SessionLife>, times: EntryTimes) -> Option<Violation> {
    times.is_over(life).then(|| Violation::new(GRANTED, format!("{what}: {life:?} at {times:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_is_over_gets_nothing() {
        let times = EntryTimes { now_ms: 5_000, grace_until_ms: 4_000 };
        let life = |until_ms| Some(SessionLife { until_ms, ended: false });
        assert_eq!(renewed("", life(5_001), times), None);
        assert!(renewed("", life(5_000), times).is_some());
        assert!(renewed("", None, times).is_some());
        assert!(granted("", Some(SessionLife { until_ms: 9_000, ended: true }), times).is_some());
        let within = EntryTimes { grace_until_ms: 5_001, ..times };
        assert_eq!(granted("", life(1), within), None);
    }
}
