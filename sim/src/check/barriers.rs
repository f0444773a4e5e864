//! Barriers, by the log: a round begins when as many as it needs are in it, all of them alive and still waiting; nobody
//! joins it then, and it is over when all have left.

use std::collections::{BTreeMap, BTreeSet};

use trefoil_core::machine::Outcome;
use trefoil_proto::internal::v1::answer::Answer as A;
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{BarrierSeen, Command, WithdrawBarrier};
use trefoil_proto::lock::v1::EnterBarrierRequest;

use super::Violation;
use super::grants::GrantChecker;
use super::keys::{CallKey, id_of};
use super::requests::is_forgotten;

const PARTIES: &str = "sessions enter a barrier together, as many as it needs, all of them waiting";
const CLOSED: &str = "nobody joins a round of a barrier that has begun";
const LEFT: &str = "a round of a barrier is over when all have left";
const ROUNDS: &str = "rounds of barriers rise";

#[derive(Clone, Debug)]
struct BarrierMember {
    deadline_ms: u64,
    call: Option<CallKey>,
}

#[derive(Clone, Debug, Default)]
struct BarrierRound {
    number: u64,
    parties: u32,
    has_begun: bool,
    members: BTreeMap<u64, BarrierMember>,
}

/// The present round of each barrier.
#[derive(Clone, Debug, Default)]
pub struct BarrierChecker {
    rounds: BTreeMap<(String, String), BarrierRound>,
    last_rounds: BTreeMap<String, u64>,
    done: BTreeSet<(String, u64)>,
    /// Rounds that began.
    pub begun: u64,
}

impl BarrierChecker {
    /// An entry was applied, at this log time; `grants` know of it already.
    pub fn applied(
        &mut self,
        commands: &[Command],
        outcomes: &[Outcome],
        now_ms: u64,
        grants: &GrantChecker,
    ) -> Vec<Violation> {
        let mut found = Vec::new();
        for (command, outcome) in commands.iter().zip(outcomes) {
            let Outcome::Answered(answer) = outcome else { continue };
            if let Some(id) = id_of(command.request_id.as_ref())
                && (is_forgotten(answer) || !self.done.insert(id))
            {
                continue;
            }
            if let (Some(Operation::CloseSession(close)), Some(A::CloseSession(_))) =
                (&command.operation, &answer.answer)
            {
                self.closed(&close.namespace, close.session_id);
            }
            let Some(A::BarrierSeen(seen)) = &answer.answer else { continue };
            let broken = match &command.operation {
                Some(Operation::EnterBarrier(enter)) => self.entered(enter, seen, now_ms, grants),
                Some(Operation::LeaveBarrier(leave)) => {
                    let name = (leave.namespace.clone(), leave.name.clone());
                    self.out(name, leave.session_id, seen, grants)
                }
                Some(Operation::WithdrawBarrier(withdraw)) => {
                    self.withdrawn(withdraw, seen, grants)
                }
                _ => None,
            };
            let what = || format!("{:?}: {seen:?} with {:?}", command.operation, self.rounds);
            found.extend(broken.map(|promise| Violation::new(promise, what())));
        }
        found
    }

    fn entered(
        &mut self,
        enter: &EnterBarrierRequest,
        seen: &BarrierSeen,
        now_ms: u64,
        grants: &GrantChecker,
    ) -> Option<&'static str> {
        if !seen.inside {
            return None;
        }
        let is_over = |session: &u64| grants.over_since(&enter.namespace, *session).is_some();
        let (session, parties) = (enter.session_id, enter.parties);
        let round = self.rounds.entry((enter.namespace.clone(), enter.name.clone())).or_default();
        if seen.round != round.number {
            let last = self.last_rounds.entry(enter.namespace.clone()).or_default();
            let is_new = seen.round > *last;
            let before = std::mem::take(round);
            *last = seen.round.max(*last);
            (round.number, round.parties) = (seen.round, parties);
            if !is_new {
                return Some(ROUNDS);
            }
            if before.has_begun && before.members.keys().any(|member| !is_over(member)) {
                return Some(LEFT);
            }
        }
        if round.has_begun {
            return (!round.members.contains_key(&session)).then_some(CLOSED);
        }
        let deadline_ms = now_ms.saturating_add(enter.wait_ms);
        let call = id_of(enter.request_id.as_ref());
        round.members.insert(session, BarrierMember { deadline_ms, call });
        if !seen.tripped {
            return None;
        }
        round.has_begun = true;
        self.begun += 1;
        round
            .members
            .retain(|of, member| *of == session || !is_over(of) && member.deadline_ms > now_ms);
        let count = u32::try_from(round.members.len()).unwrap_or(u32::MAX);
        (count != parties || seen.present != parties || round.parties != parties).then_some(PARTIES)
    }

    /// A session that is closed leaves, at that place of the log.
    fn closed(&mut self, namespace: &str, session: u64) {
        for (_, round) in self.rounds.iter_mut().filter(|((of, _), _)| of == namespace) {
            round.members.remove(&session);
        }
    }

    /// A session is no longer in a barrier.
    fn out(
        &mut self,
        name: (String, String),
        session: u64,
        seen: &BarrierSeen,
        grants: &GrantChecker,
    ) -> Option<&'static str> {
        let namespace = name.0.clone();
        let round = self.rounds.get_mut(&name).filter(|round| round.number == seen.round)?;
        round.members.remove(&session);
        let is_inside = |member: &u64| grants.over_since(&namespace, *member).is_none();
        let is_wrong = seen.over && round.has_begun && round.members.keys().any(is_inside);
        is_wrong.then_some(LEFT)
    }

    fn withdrawn(
        &mut self,
        withdraw: &WithdrawBarrier,
        seen: &BarrierSeen,
        grants: &GrantChecker,
    ) -> Option<&'static str> {
        let name = (withdraw.namespace.clone(), withdraw.name.clone());
        let member = self.rounds.get(&name)?.members.get(&withdraw.session_id)?;
        if seen.inside
            || member.call
                != id_of(withdraw.call.as_ref().and_then(|call| call.request_id.as_ref()))
        {
            return None;
        }
        self.out(name, withdraw.session_id, seen, grants)
    }
}

#[cfg(test)]
mod tests {
    use trefoil_proto::lock::v1::{CloseSessionRequest, CloseSessionResponse};
    use trefoil_proto::lock::v1::{LeaveBarrierRequest, OpenSessionRequest, OpenSessionResponse};

    use super::super::lives::EntryTimes;
    use super::*;

    /// Barriers, and three sessions.
    fn three() -> (BarrierChecker, GrantChecker) {
        let mut grants = GrantChecker::default();
        for session_id in 1..=3 {
            let open = OpenSessionRequest { ttl_ms: 1_000, ..Default::default() };
            let operation = Some(Operation::OpenSession(open));
            let opened = OpenSessionResponse { session_id, ..Default::default() };
            let outcome = Outcome::Answered(A::OpenSession(opened).into());
            let command = Command { operation, ..Command::default() };
            let times = EntryTimes { now_ms: 0, grace_until_ms: 0 };
            assert_eq!(grants.applied(&[command], &[outcome], &[], times, |_| true), []);
        }
        (BarrierChecker::default(), grants)
    }

    fn seen(round: u64, tripped: bool, present: u32) -> BarrierSeen {
        BarrierSeen { round, tripped, inside: true, present, over: false }
    }

    fn apply(
        barriers: &mut BarrierChecker,
        grants: &GrantChecker,
        operation: Operation,
        seen: BarrierSeen,
        now_ms: u64,
    ) -> Option<&'static str> {
        let command = Command { operation: Some(operation), ..Command::default() };
        let outcome = Outcome::Answered(A::BarrierSeen(seen).into());
        let found = barriers.applied(&[command], &[outcome], now_ms, grants);
        found.first().map(|violation| violation.invariant)
    }

    fn enter(session_id: u64) -> Operation {
        let (parties, wait_ms) = (2, 100);
        Operation::EnterBarrier(EnterBarrierRequest {
            session_id,
            parties,
            wait_ms,
            ..EnterBarrierRequest::default()
        })
    }

    fn leave(session_id: u64) -> Operation {
        Operation::LeaveBarrier(LeaveBarrierRequest { session_id, ..Default::default() })
    }

    #[test]
    fn two_enter_and_leave() {
        let (mut barriers, grants) = three();
        let b = &mut barriers;
        assert_eq!(apply(b, &grants, enter(1), seen(5, false, 1), 10), None);
        assert_eq!(apply(b, &grants, enter(2), seen(5, true, 2), 20), None);
        assert_eq!(apply(&mut b.clone(), &grants, enter(3), seen(5, true, 3), 30), Some(CLOSED));
        let out = |over| BarrierSeen { inside: false, over, ..seen(5, true, 1) };
        assert_eq!(apply(&mut b.clone(), &grants, leave(1), out(true), 30), Some(LEFT));
        assert_eq!(apply(b, &grants, leave(1), out(false), 30), None);
        assert_eq!(apply(&mut b.clone(), &grants, enter(3), seen(6, false, 1), 30), Some(LEFT));
        assert_eq!(apply(b, &grants, leave(2), out(true), 30), None);
        assert_eq!(apply(&mut b.clone(), &grants, enter(3), seen(4, false, 1), 30), Some(ROUNDS));
        assert_eq!(apply(b, &grants, enter(3), seen(6, false, 1), 30), None);
        assert_eq!(b.begun, 1);
    }

    #[test]
    fn who_is_closed_leaves_where_the_log_says_so() {
        let (mut barriers, grants) = three();
        assert_eq!(apply(&mut barriers, &grants, enter(1), seen(5, false, 1), 10), None);
        let close = CloseSessionRequest { session_id: 1, ..CloseSessionRequest::default() };
        let close =
            Command { operation: Some(Operation::CloseSession(close)), ..Command::default() };
        let closed = Outcome::Answered(A::CloseSession(CloseSessionResponse::default()).into());
        let last = Command { operation: Some(enter(2)), ..Command::default() };
        let told = Outcome::Answered(A::BarrierSeen(seen(5, true, 2)).into());
        let (late, early) = ([last.clone(), close.clone()], [close, last]);
        let found = barriers.clone().applied(&late, &[told.clone(), closed.clone()], 20, &grants);
        assert_eq!(found, []);
        let found = barriers.applied(&early, &[closed, told], 20, &grants);
        assert_eq!(found[0].invariant, PARTIES);
    }

    #[test]
    fn who_does_not_wait_any_more_does_not_count() {
        let (mut barriers, grants) = three();
        assert_eq!(apply(&mut barriers, &grants, enter(1), seen(5, false, 1), 10), None);
        assert_eq!(apply(&mut barriers, &grants, enter(2), seen(5, true, 2), 110), Some(PARTIES));
    }
}
