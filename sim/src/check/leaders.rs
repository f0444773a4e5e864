//! Elections, by the log: who leads is who holds the lock by a campaign, and proclaims what was said last.

use std::collections::{BTreeMap, BTreeSet};

use trefoil_core::machine::{Outcome, Settled, WaiterId};
use trefoil_proto::common::v1::Value;
use trefoil_proto::internal::v1::answer::Answer as A;
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{Answer, Command};
use trefoil_proto::lock::v1::{LeaderRequest, Leadership};

use super::Violation;
use super::grants::GrantChecker;
use super::keys::LockKey;
use super::requests::is_forgotten;

const LEADER: &str = "the leader is who holds the lock, with what it proclaimed last";

/// What each leadership proclaims, by its token.
#[derive(Clone, Debug, Default)]
pub struct LeaderChecker {
    /// More than one value where calls of one session were granted together.
    values: BTreeMap<(LockKey, u64), Vec<Option<Value>>>,
    candidates: BTreeMap<WaiterId, (LockKey, Option<Value>)>,
    done: BTreeSet<(String, u64)>,
    /// Questions that were answered with a leader.
    pub told: u64,
}

impl LeaderChecker {
    /// An entry was applied; `settled` are the waits that it ended.
    pub fn applied(&mut self, commands: &[Command], outcomes: &[Outcome], settled: &[Settled]) {
        for (command, outcome) in commands.iter().zip(outcomes) {
            if let (Some(Operation::Campaign(campaign)), Outcome::Waiting(waiter)) =
                (&command.operation, outcome)
            {
                let name = (campaign.namespace.clone(), campaign.name.clone());
                self.candidates.insert(waiter.clone(), (name, campaign.value.clone()));
            }
        }
        for settled in settled {
            if let Some(id) = &settled.request_id {
                self.done.insert((id.client.clone(), id.sequence));
            }
            let candidate = self.candidates.remove(&settled.waiter);
            if let (Some((name, value)), Some(token)) = (candidate, granted(&settled.answer)) {
                self.values.entry((name, token)).or_default().push(value);
            }
        }
        for (command, outcome) in commands.iter().zip(outcomes) {
            let (Some(operation), Outcome::Answered(answer)) = (&command.operation, outcome) else {
                continue;
            };
            if let Some(id) = &command.request_id
                && (is_forgotten(answer) || !self.done.insert((id.client.clone(), id.sequence)))
            {
                continue;
            }
            let (name, token, value) = match (operation, &answer.answer) {
                (Operation::Campaign(campaign), _) => {
                    let Some(token) = granted(answer) else { continue };
                    ((&campaign.namespace, &campaign.name), token, &campaign.value)
                }
                (Operation::Proclaim(proclaim), Some(A::Proclaim(_))) => {
                    let name = (&proclaim.namespace, &proclaim.name);
                    (name, proclaim.fencing_token, &proclaim.value)
                }
                _ => continue,
            };
            let key = ((name.0.clone(), name.1.clone()), token);
            self.values.insert(key, vec![value.clone()]);
        }
    }

    /// Somebody was told who leads, at the newest index.
    pub fn read(
        &mut self,
        asked: &LeaderRequest,
        told: Option<&Leadership>,
        grants: &GrantChecker,
    ) -> Option<Violation> {
        let LeaderRequest { namespace, name } = asked;
        let proclaimed = |token| self.values.get(&((namespace.clone(), name.clone()), token));
        let Some(leader) = told else {
            let (session, token) = grants.alone(namespace, name)?;
            let values = proclaimed(token)?;
            let what = format!("{asked:?}: nobody, but {session} holds {token} with {values:?}");
            return Some(Violation::new(LEADER, what));
        };
        self.told += 1;
        let (token, holder) = (leader.fencing_token, Some(leader.session_id));
        let found = self.values.get(&((namespace.clone(), name.clone()), token));
        if found.is_some_and(|values| values.contains(&leader.value)) {
            return grants.validated(namespace, name, token, holder);
        }
        Some(Violation::new(LEADER, format!("{asked:?}: {leader:?}, proclaimed {found:?}")))
    }
}

/// The token of what an answer grants.
fn granted(answer: &Answer) -> Option<u64> {
    match &answer.answer {
        Some(A::Acquire(got)) if got.acquired => Some(got.fencing_token),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use trefoil_proto::common::v1::value::Kind;
    use trefoil_proto::lock::v1::{AcquireResponse, CampaignRequest, LockMode, ProclaimRequest};
    use trefoil_proto::lock::v1::{OpenSessionRequest, OpenSessionResponse, ProclaimResponse};

    use super::super::lives::EntryTimes;
    use super::*;

    fn text(text: &str) -> Option<Value> {
        Some(Value { kind: Some(Kind::Text(text.to_owned())) })
    }

    fn apply(
        grants: &mut GrantChecker,
        leaders: &mut LeaderChecker,
        operation: Operation,
        answer: A,
    ) {
        let commands = [Command { operation: Some(operation), ..Command::default() }];
        let outcomes = [Outcome::Answered(answer.into())];
        let times = EntryTimes { now_ms: 10, grace_until_ms: 0 };
        assert_eq!(grants.applied(&commands, &outcomes, &[], times, |_| true), []);
        leaders.applied(&commands, &outcomes, &[]);
    }

    fn led() -> (GrantChecker, LeaderChecker) {
        let (mut grants, mut leaders) = (GrantChecker::default(), LeaderChecker::default());
        let open = OpenSessionRequest { ttl_ms: 1_000, ..Default::default() };
        let opened = OpenSessionResponse { session_id: 1, ..Default::default() };
        let (open, opened) = (Operation::OpenSession(open), A::OpenSession(opened));
        apply(&mut grants, &mut leaders, open, opened);
        let campaign = CampaignRequest { session_id: 1, value: text("a"), ..Default::default() };
        let mode = LockMode::Exclusive.into();
        let got = AcquireResponse { acquired: true, fencing_token: 7, mode, ..Default::default() };
        apply(&mut grants, &mut leaders, Operation::Campaign(campaign), A::Acquire(got));
        (grants, leaders)
    }

    fn told(token: u64, value: &str) -> Leadership {
        let (session_id, value, fencing_token) = (1, text(value), token);
        Leadership { session_id, value, fencing_token, ..Leadership::default() }
    }

    #[test]
    fn a_leader_is_told_with_its_last_word() {
        let (mut grants, mut leaders) = led();
        let asked = LeaderRequest::default();
        assert_eq!(leaders.read(&asked, Some(&told(7, "a")), &grants), None);
        let proclaim = ProclaimRequest {
            session_id: 1,
            fencing_token: 7,
            value: text("b"),
            ..ProclaimRequest::default()
        };
        let done = A::Proclaim(ProclaimResponse::default());
        apply(&mut grants, &mut leaders, Operation::Proclaim(proclaim), done);
        assert_eq!(leaders.read(&asked, Some(&told(7, "b")), &grants), None);
        assert!(leaders.read(&asked, Some(&told(7, "a")), &grants).is_some(), "an old word");
    }

    #[test]
    fn nobody_else_is_told_and_no_leader_is_kept_secret() {
        let (grants, mut leaders) = led();
        let asked = LeaderRequest::default();
        assert!(leaders.read(&asked, Some(&told(6, "a")), &grants).is_some());
        assert!(leaders.read(&asked, None, &grants).is_some());
        let elsewhere = LeaderRequest { name: "other".to_owned(), ..asked };
        assert_eq!(leaders.read(&elsewhere, None, &grants), None);
    }
}
