//! What the services did, by the log: each entry once, in order, and what is read at its index.

use trefoil_core::ShardId;
use trefoil_core::machine::Applied;
use trefoil_proto::internal::v1::answer::Answer as A;
use trefoil_proto::internal::v1::query::Query as Q;
use trefoil_proto::internal::v1::{Answer, Command, Query};

use super::Violation;
use super::barriers::BarrierChecker;
use super::fences::FenceChecker;
use super::grants::GrantChecker;
use super::latches::LatchChecker;
use super::leaders::LeaderChecker;
use super::leases::LeaseChecker;
use super::lives::EntryTimes;
use super::permits::PermitChecker;

/// What is known of them.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs, reason = "each has its file")]
pub struct Services {
    pub grants: GrantChecker,
    pub leaders: LeaderChecker,
    pub latches: LatchChecker,
    pub barriers: BarrierChecker,
    pub permits: PermitChecker,
    pub fences: FenceChecker,
    pub leases: LeaseChecker,
}

impl Services {
    /// The next entry of a shard was applied; namespaces whose locks live there are here.
    pub fn applied(
        &mut self,
        shard: ShardId,
        commands: &[Command],
        applied: &Applied,
        times: EntryTimes,
        is_here: impl Fn(&str) -> bool,
    ) -> Vec<Violation> {
        let (outcomes, settled) = (&applied.outcomes, &applied.settled);
        self.grants.at(applied.index);
        let mut found = self.grants.applied(commands, outcomes, settled, times, is_here);
        self.leaders.applied(commands, outcomes, settled);
        found.extend(self.latches.applied(commands, outcomes));
        found.extend(self.barriers.applied(commands, outcomes, times.now_ms, &self.grants));
        let over_since = |of: &str, session| self.grants.over_since(of, session);
        found.extend(self.permits.applied(commands, applied, over_since));
        found.extend(self.fences.applied(shard, commands, outcomes));
        found.extend(self.leases.applied(commands, outcomes, times.now_ms));
        found
    }

    /// Something was read at the newest index of a shard.
    pub fn read(&mut self, shard: ShardId, query: &Query, answer: &Answer) -> Option<Violation> {
        match (&query.query, &answer.answer) {
            (Some(Q::DescribeLock(asked)), Some(A::DescribeLock(told))) => {
                let holders = told.holders.iter();
                let holders = holders.map(|holder| (holder.session_id, holder.fencing_token));
                let holders = holders.collect::<Vec<_>>();
                self.grants.described(&asked.namespace, &asked.name, &holders)
            }
            (Some(Q::ValidateToken(asked)), Some(A::ValidateToken(told))) => {
                let holder = told.holder.as_ref().map(|holder| holder.session_id);
                let token = asked.fencing_token;
                self.grants.validated(&asked.namespace, &asked.name, token, holder)
            }
            (Some(Q::Leader(asked)), Some(A::Leader(told))) => {
                self.leaders.read(asked, told.leader.as_ref(), &self.grants)
            }
            (Some(Q::Get(_)), _) => self.fences.read(shard, query, answer),
            _ => self.latches.read(query, answer),
        }
    }
}
