//! Commands on their way: waiting to be proposed, proposed, and waiting in the state.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use prost::Message as _;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{Answer, CancelAcquire, Command, Refusal};

use super::effect::{Effect, Reply};
use super::input::Proposal;
use super::offers::Offers;
use super::replies::{NOBODY, refusal, refuse};
use crate::limits::{ENTRY_BYTES_MAX, ENTRY_COMMANDS_MAX, PROPOSALS_BYTES_MAX, PROPOSALS_MAX};
use crate::machine::{Applied, Outcome, WaiterId, caller_lost, is_grant, take_back};
use crate::slot::MAP_EPOCH;
use crate::{CallId, NodeId, Now, Position};

/// Commands of one entry that was proposed.
#[derive(Debug)]
struct Proposed {
    term: u64,
    askers: Vec<Proposer>,
}

/// Who asked for a command.
#[derive(Clone, Debug)]
struct Proposer {
    call: CallId,
    /// What takes back what it gets, where a forwarder stands between: that may die, or hang.
    take_back: Option<Box<CancelAcquire>>,
}

/// All commands of this shard whose callers wait here.
#[derive(Debug, Default)]
pub(super) struct PendingProposals {
    queue: VecDeque<(Proposal, usize)>,
    queue_bytes: usize,
    /// By log index.
    proposed: BTreeMap<u64, Proposed>,
    /// Callers of commands that wait in the state; one command sent twice has two. The last one stays, as nobody, when it
    /// went away: what the wait is granted before the state knows of that is taken back by it.
    waiting: BTreeMap<WaiterId, Vec<Proposer>>,
    /// Grants that their forwarders have not asked for yet.
    pub(super) offers: Offers,
    /// Commands that wait in the state and whose last caller went away, with what was applied then.
    lost: BTreeMap<WaiterId, u64>,
    /// Calls whose callers went away; they are sorted out all together, once a tick.
    cancelled: BTreeSet<CallId>,
    /// When commands that were proposed before a step-down are given up as ambiguous, in boot ms.
    give_up_ms: Option<u64>,
}

fn maybe_applied(call: CallId) -> Effect {
    refuse(
        call,
        refusal(
            Reason::MaybeApplied,
            "the leader changed before the command was seen to be applied",
        ),
    )
}

/// Whether a command makes room: such commands are taken even when the disk is nearly full.
pub(super) fn frees_space(command: &Command) -> bool {
    command.operation.as_ref().is_some_and(Operation::frees_space)
}

impl PendingProposals {
    /// Queues a command, or says why not.
    pub(super) fn enqueue(&mut self, proposal: Proposal) -> Option<Effect> {
        let bytes = proposal.command.encoded_len();
        if self.queue.len() >= PROPOSALS_MAX || self.queue_bytes + bytes > PROPOSALS_BYTES_MAX {
            return Some(refuse(
                proposal.call,
                refusal(Reason::Overloaded, "too many commands wait for this shard"),
            ));
        }
        self.queue_bytes += bytes;
        self.queue.push_back((proposal, bytes));
        None
    }

    /// Commands for the next entry, in order; those whose deadline has passed are refused.
    pub(super) fn next_batch(
        &mut self,
        now: Now,
        frees_only: bool,
        effects: &mut Vec<Effect>,
    ) -> Vec<Proposal> {
        let mut batch = Vec::new();
        let mut kept = Vec::new();
        let mut total = 0;
        while let Some((_, bytes)) = self.queue.front() {
            if batch.len() >= ENTRY_COMMANDS_MAX
                || (!batch.is_empty() && total + bytes > ENTRY_BYTES_MAX)
            {
                break;
            }
            let Some((proposal, bytes)) = self.queue.pop_front() else { break };
            self.queue_bytes -= bytes;
            if self.cancelled.contains(&proposal.call) {
                continue;
            }
            if proposal.deadline_ms <= now.boot_ms {
                let text = "the deadline passed before the command was proposed";
                effects.push(refuse(proposal.call, refusal(Reason::DeadlinePassed, text)));
                continue;
            }
            if frees_only && !frees_space(&proposal.command) {
                kept.push(proposal);
                continue;
            }
            total += bytes;
            batch.push(proposal);
        }
        self.put_back(kept);
        batch
    }

    /// Refuses what waits to be proposed and takes room.
    pub(super) fn refuse_what_takes_room(&mut self, why: &Refusal, effects: &mut Vec<Effect>) {
        self.queue.retain(|(proposal, bytes)| {
            let stays = frees_space(&proposal.command);
            if !stays {
                self.queue_bytes -= bytes;
                effects.push(refuse(proposal.call, why.clone()));
            }
            stays
        });
    }

    /// Puts back a batch that raft did not take now.
    pub(super) fn put_back(&mut self, batch: Vec<Proposal>) {
        for proposal in batch.into_iter().rev() {
            let bytes = proposal.command.encoded_len();
            self.queue_bytes += bytes;
            self.queue.push_front((proposal, bytes));
        }
    }

    /// A batch was proposed, with these commands.
    pub(super) fn proposed(
        &mut self,
        index: u64,
        term: u64,
        batch: &[Proposal],
        commands: &[Command],
    ) {
        let asker = |(proposal, command): (&Proposal, &Command)| Proposer {
            call: proposal.call,
            take_back: if proposal.forwarded { take_back(command).map(Box::new) } else { None },
        };
        let askers = batch.iter().zip(commands).map(asker).collect();
        if let Some(lost) = self.proposed.insert(index, Proposed { term, askers }) {
            // Only an entry of a deposed leader can have been at this index, and it is gone for good.
            debug_assert!(lost.term < term, "an index is proposed once in a term");
            debug_assert!(lost.askers.is_empty(), "calls of an older term are answered before");
        }
    }

    /// A caller went away.
    pub(super) fn cancel(&mut self, call: CallId) {
        self.cancelled.insert(call);
    }

    /// Forgets the calls whose callers went away; `applied` is the applied index.
    pub(super) fn sweep(&mut self, applied: u64, now: Now) {
        let cancelled = std::mem::take(&mut self.cancelled);
        if cancelled.is_empty() {
            return;
        }
        self.queue.retain(|(proposal, bytes)| {
            let gone = cancelled.contains(&proposal.call);
            if gone {
                self.queue_bytes -= bytes;
            }
            !gone
        });
        for asker in self.proposed.values_mut().flat_map(|proposed| &mut proposed.askers) {
            if cancelled.contains(&asker.call) {
                asker.call = NOBODY;
            }
        }
        for (waiter, askers) in &mut self.waiting {
            let was_awaited = is_awaited(askers);
            for asker in askers.iter_mut().filter(|asker| cancelled.contains(&asker.call)) {
                asker.call = NOBODY;
            }
            if was_awaited && !is_awaited(askers) {
                self.lost.insert(waiter.clone(), applied);
            }
        }
        if crate::mutant!(LostCallerForgotten) {
            self.waiting.retain(|_, askers| is_awaited(askers));
        }
        self.offers.cancel(&cancelled, now);
    }

    /// Queues what tells the state that it waits for nobody; what finds no room is queued later.
    pub(super) fn propose_lost(&mut self, agent: NodeId) {
        while let Some((waiter, index)) = self.lost.pop_first() {
            let (slot, operation) = caller_lost(&waiter, index);
            let command = Command {
                slot: slot.into(),
                map_epoch: MAP_EPOCH,
                agent,
                operation: Some(operation),
                ..Command::default()
            };
            let (call, deadline_ms, forwarded) = (NOBODY, u64::MAX, false);
            if self.enqueue(Proposal { call, command, deadline_ms, forwarded }).is_some() {
                self.lost.insert(waiter, index);
                return;
            }
        }
    }

    /// Commands that wait too long to be proposed are refused.
    pub(super) fn expire(&mut self, now: Now, why: &Refusal, effects: &mut Vec<Effect>) {
        let mut kept = VecDeque::with_capacity(self.queue.len());
        for (proposal, bytes) in self.queue.drain(..) {
            if proposal.deadline_ms > now.boot_ms {
                kept.push_back((proposal, bytes));
            } else {
                self.queue_bytes -= bytes;
                effects.push(refuse(proposal.call, why.clone()));
            }
        }
        self.queue = kept;
        if self.give_up_ms.is_some_and(|at| at <= now.boot_ms) {
            self.forget_proposed(effects);
        }
    }

    /// This replica no longer leads. What is queued was not proposed; what was proposed may still turn up, so it is
    /// given a while before it is called ambiguous.
    pub(super) fn step_down(
        &mut self,
        not_leader: &Refusal,
        give_up_ms: u64,
        effects: &mut Vec<Effect>,
    ) {
        for (proposal, _) in self.queue.drain(..) {
            effects.push(refuse(proposal.call, not_leader.clone()));
        }
        self.queue_bytes = 0;
        for asker in std::mem::take(&mut self.waiting).into_values().flatten() {
            effects.push(maybe_applied(asker.call));
        }
        effects.extend(self.offers.step_down().into_iter().map(maybe_applied));
        if crate::mutant!(LostTooEarly) {
            let lost = refusal(Reason::Lost, "the leader changed");
            for proposed in std::mem::take(&mut self.proposed).into_values() {
                effects.extend(proposed.calls().map(|call| refuse(call, lost.clone())));
            }
        }
        self.lost.clear();
        self.give_up_ms = Some(give_up_ms);
    }

    /// What was proposed is not waited for any more, whether it is seen or not.
    pub(super) fn forget_proposed(&mut self, effects: &mut Vec<Effect>) {
        self.give_up_ms = None;
        for proposed in std::mem::take(&mut self.proposed).into_values() {
            effects.extend(proposed.calls().map(maybe_applied));
        }
    }

    /// An entry was applied: its commands are answered, or were overwritten by another leader's entry.
    pub(super) fn applied(&mut self, applied: &mut Applied, now: Now, effects: &mut Vec<Effect>) {
        let (outcomes, settled) =
            (std::mem::take(&mut applied.outcomes), std::mem::take(&mut applied.settled));
        let Applied { term, index, log_time_ms, .. } = *applied;
        let recalled = std::mem::take(&mut applied.recalled);
        // A retry is told where its first try was decided.
        let position = |ordinal| {
            let of_first = recalled.iter().find(|(place, _)| *place == ordinal);
            of_first.map_or(Position { term, index, ordinal, log_time_ms }, |(_, first)| *first)
        };
        if let Some(proposed) = self.proposed.remove(&applied.index) {
            if proposed.term == applied.term {
                for (ordinal, (asker, outcome)) in
                    (0..).zip(proposed.askers.into_iter().zip(outcomes))
                {
                    match outcome {
                        Outcome::Answered(answer) => {
                            self.answer(asker, position(ordinal), answer, now, effects);
                        }
                        Outcome::Waiting(waiter) => {
                            let askers = self.waiting.entry(waiter.clone()).or_default();
                            askers.push(asker);
                            if is_awaited(askers) {
                                self.lost.remove(&waiter);
                            } else {
                                self.lost.insert(waiter, applied.index);
                            }
                        }
                    }
                }
            } else {
                let lost =
                    refusal(Reason::Lost, "another leader's entry took the place of the command");
                effects.extend(proposed.calls().map(|call| refuse(call, lost.clone())));
            }
        }
        for settled in settled {
            self.lost.remove(&settled.waiter);
            // The newest try is the one that its caller waits for: by it what nobody takes is taken back.
            let mut askers = self.waiting.remove(&settled.waiter).unwrap_or_default();
            let is_there = askers.iter().rposition(|asker| asker.call != NOBODY);
            let newest = is_there.map(|at| askers.remove(at)).or_else(|| askers.pop());
            for Proposer { call, take_back } in askers {
                let is_superseded = take_back.is_some() && is_grant(&settled.answer);
                effects.push(if is_superseded && !crate::mutant!(ForwardedGrantTrusted) {
                    refuse(call, refusal(Reason::MaybeApplied, "the call was sent again meanwhile"))
                } else {
                    Effect::Reply(call, Reply::Answered(position(u32::MAX), settled.answer.clone()))
                });
            }
            if let Some(asker) = newest {
                self.answer(asker, position(u32::MAX), settled.answer, now, effects);
            }
        }
    }

    /// Answers a call; a grant that a forwarder would have to pass on is offered to it first.
    fn answer(
        &mut self,
        asker: Proposer,
        position: Position,
        answer: Answer,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        match asker.take_back {
            Some(take_back) if is_grant(&answer) && !crate::mutant!(ForwardedGrantTrusted) => {
                let effect = self.offers.make(asker.call, position, answer, *take_back, now);
                effects.extend(effect);
            }
            _ => effects.push(Effect::Reply(asker.call, Reply::Answered(position, answer))),
        }
    }
}

fn is_awaited(askers: &[Proposer]) -> bool {
    askers.iter().any(|asker| asker.call != NOBODY)
}

impl Proposed {
    fn calls(self) -> impl Iterator<Item = CallId> {
        self.askers.into_iter().map(|asker| asker.call)
    }
}
