//! No session ends within the grace of a term: its renewals may have had no leader.

use std::collections::BTreeMap;

use trefoil_core::ShardId;
use trefoil_core::limits::TERM_GRACE_MS;

use super::Violation;

const INVARIANT: &str = "no session ends within the grace of a term";

/// Log time after the start of a term in which an end counts as one across a change of leader.
const SOON_MS: u64 = 2 * TERM_GRACE_MS;

/// When the term of each shard began, in log time.
#[derive(Clone, Debug, Default)]
pub struct Expiry {
    /// (term, log time of its first stamped entry).
    terms: BTreeMap<ShardId, (u64, u64)>,
}

impl Expiry {
    /// No session ends before this log time in an entry of a term that is stamped with `log_time_ms`.
    #[must_use]
    pub fn grace_until_ms(&self, shard: ShardId, term: u64, log_time_ms: u64) -> u64 {
        let known = self.terms.get(&shard).filter(|known| known.0 == term);
        known.map_or(log_time_ms, |known| known.1) + TERM_GRACE_MS
    }

    /// A stamped entry was applied, told in the order of the log; `ended` says whether a session expired in it. True
    /// when that was soon after a change of leader.
    ///
    /// # Errors
    /// When it was too soon.
    pub fn stamped(
        &mut self,
        shard: ShardId,
        term: u64,
        log_time_ms: u64,
        ended: bool,
    ) -> Result<bool, Violation> {
        let known = self.terms.entry(shard).or_insert((term, log_time_ms));
        if known.0 != term {
            *known = (term, log_time_ms);
        }
        let since_ms = log_time_ms.saturating_sub(known.1);
        if ended && since_ms < TERM_GRACE_MS {
            let what = format!("shard {shard}, term {term}: {since_ms} ms after its start");
            return Err(Violation::new(INVARIANT, what));
        }
        Ok(ended && since_ms < SOON_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_within_the_grace_is_found() {
        let mut expiry = Expiry::default();
        assert_eq!(expiry.stamped(1, 2, 10_000, false), Ok(false));
        assert_eq!(expiry.stamped(1, 2, 12_000, true), Ok(true));
        assert_eq!(expiry.stamped(1, 2, 20_000, true), Ok(false));
        assert_eq!(expiry.stamped(1, 3, 20_500, false), Ok(false));
        assert_eq!(expiry.stamped(1, 3, 22_499, true).unwrap_err().invariant, INVARIANT);
    }
}
