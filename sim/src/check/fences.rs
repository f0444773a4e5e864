//! Fences, by the log: once a shard was used under a writer's token, no older token of that lock is good for it.

use std::collections::{BTreeMap, BTreeSet};

use trefoil_core::ShardId;
use trefoil_core::machine::Outcome;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::answer::Answer as A;
use trefoil_proto::internal::v1::{Answer, CheckedFence, Command, Query, TokenStanding};

use super::Violation;
use super::requests::is_forgotten;

const OLDER: &str = "an older holder is shut out where a newer one was";
const NO_REASON: &str = "a token is refused where a newer one was, or when nobody holds it";
const UNMARKED: &str = "a fenced read leaves its mark before it reads";

/// The shard and the lock.
type FencedLock = (ShardId, String, String);

/// The highest writer's token under which each shard was used.
#[derive(Clone, Debug, Default)]
pub struct FenceChecker {
    marks: BTreeMap<FencedLock, u64>,
    /// Requests whose answer is remembered: it is given again whatever the mark is.
    done: BTreeSet<(ShardId, String, u64)>,
    /// Uses that were refused because of a newer holder.
    pub refused: u64,
}

impl FenceChecker {
    /// An entry was applied.
    pub fn applied(
        &mut self,
        shard: ShardId,
        commands: &[Command],
        outcomes: &[Outcome],
    ) -> Vec<Violation> {
        let mut found = Vec::new();
        for (command, outcome) in commands.iter().zip(outcomes) {
            let (Some(checked), Outcome::Answered(answer)) = (&command.fence, outcome) else {
                continue;
            };
            if let Some(id) = &command.request_id
                && (is_forgotten(answer)
                    || !self.done.insert((shard, id.client.clone(), id.sequence)))
            {
                continue;
            }
            found.extend(self.used(shard, checked, answer));
        }
        found
    }

    fn used(
        &mut self,
        shard: ShardId,
        checked: &CheckedFence,
        answer: &Answer,
    ) -> Option<Violation> {
        let (place, token) = place(shard, checked)?;
        let mark = self.marks.get(&place).copied().unwrap_or_default();
        let what = || format!("token {token} of {place:?}, mark {mark}: {checked:?}, {answer:?}");
        let (passed, is_fenced) = match &answer.answer {
            Some(A::Refusal(refusal)) => (false, refusal.reason() == Reason::Fenced),
            _ => (true, false),
        };
        if is_fenced {
            self.refused += u64::from(token < mark);
            let is_just = token < mark || checked.standing() == TokenStanding::NotHeld;
            return (!is_just).then(|| Violation::new(NO_REASON, what()));
        }
        if !passed {
            return None;
        }
        let is_known = token == mark
            || matches!(checked.standing(), TokenStanding::Reader | TokenStanding::Writer);
        if token < mark || !is_known {
            return Some(Violation::new(OLDER, what()));
        }
        if checked.standing() == TokenStanding::Writer {
            self.marks.insert(place, token);
        }
        None
    }

    /// A value was read under a fence at the newest index.
    #[must_use]
    pub fn read(&self, shard: ShardId, query: &Query, answer: &Answer) -> Option<Violation> {
        let checked = query.fence.as_ref()?;
        let Some(A::Get(_)) = &answer.answer else { return None };
        let (place, token) = place(shard, checked)?;
        let mark = self.marks.get(&place).copied().unwrap_or_default();
        let fits = match checked.standing() {
            TokenStanding::Reader => token >= mark,
            _ => token == mark,
        };
        let what = || format!("token {token} of {place:?}, mark {mark}: {checked:?}");
        (!fits).then(|| Violation::new(UNMARKED, what()))
    }
}

fn place(shard: ShardId, checked: &CheckedFence) -> Option<(FencedLock, u64)> {
    let fence = checked.fence.as_ref()?;
    Some(((shard, fence.namespace.clone(), fence.lock.clone()), fence.token))
}

#[cfg(test)]
mod tests {
    use trefoil_proto::cache::v1::{GetResponse, PutResponse};
    use trefoil_proto::common::v1::Fence;
    use trefoil_proto::internal::v1::Refusal;

    use super::*;

    fn fence(token: u64, standing: TokenStanding) -> CheckedFence {
        let fence = Fence { namespace: "n".to_owned(), lock: "l".to_owned(), token };
        CheckedFence { fence: Some(fence), standing: standing.into(), ..Default::default() }
    }

    fn put(fences: &mut FenceChecker, token: u64, standing: TokenStanding) -> Vec<Violation> {
        let command = Command { fence: Some(fence(token, standing)), ..Command::default() };
        let answer = A::Put(PutResponse::default()).into();
        fences.applied(1, &[command], &[Outcome::Answered(answer)])
    }

    fn refuse(fences: &mut FenceChecker, token: u64, standing: TokenStanding) -> Vec<Violation> {
        let command = Command { fence: Some(fence(token, standing)), ..Command::default() };
        let refusal = Refusal { reason: Reason::Fenced.into(), ..Refusal::default() };
        fences.applied(1, &[command], &[Outcome::Answered(refusal.into())])
    }

    fn get(fences: &FenceChecker, token: u64, standing: TokenStanding) -> Option<Violation> {
        let query = Query { fence: Some(fence(token, standing)), ..Query::default() };
        fences.read(1, &query, &A::Get(GetResponse::default()).into())
    }

    #[test]
    fn an_older_token_is_no_good_where_a_newer_one_was() {
        let mut fences = FenceChecker::default();
        assert_eq!(put(&mut fences, 5, TokenStanding::Writer), []);
        assert_eq!(put(&mut fences, 5, TokenStanding::Unspecified), []);
        assert_eq!(put(&mut fences, 7, TokenStanding::Reader), []);
        assert_eq!(put(&mut fences, 6, TokenStanding::Writer), [], "a reader leaves no mark");
        assert_eq!(put(&mut fences, 5, TokenStanding::Writer)[0].invariant, OLDER);
        assert_eq!(put(&mut fences, 5, TokenStanding::Reader)[0].invariant, OLDER);
        assert_eq!(put(&mut fences, 7, TokenStanding::Unspecified)[0].invariant, OLDER);
    }

    #[test]
    fn a_good_token_is_not_refused() {
        let mut fences = FenceChecker::default();
        assert_eq!(put(&mut fences, 5, TokenStanding::Writer), []);
        assert_eq!(refuse(&mut fences, 4, TokenStanding::Writer), []);
        assert_eq!(refuse(&mut fences, 6, TokenStanding::NotHeld), []);
        assert_eq!(fences.refused, 1);
        assert_eq!(refuse(&mut fences, 6, TokenStanding::Writer)[0].invariant, NO_REASON);
    }

    #[test]
    fn a_read_is_at_its_mark() {
        let mut fences = FenceChecker::default();
        assert_eq!(put(&mut fences, 5, TokenStanding::Writer), []);
        assert_eq!(get(&fences, 5, TokenStanding::Writer), None);
        assert_eq!(get(&fences, 6, TokenStanding::Reader), None);
        assert!(get(&fences, 6, TokenStanding::Writer).is_some());
        assert!(get(&fences, 4, TokenStanding::Reader).is_some());
    }
}
