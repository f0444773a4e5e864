//! Linearizable reads by ReadIndex: all that wait share one round of heartbeats.
//!
//! Source: D. Ongaro, Consensus: Bridging Theory and Practice (2014), section 6.4. A round's context is never used
//! again, so that an old heartbeat response cannot confirm a new round.

use std::collections::{BTreeSet, VecDeque};

use trefoil_proto::internal::v1::Refusal;

use super::effect::Effect;
use super::input::Read;
use super::replies::refuse;
use crate::limits::READS_MAX;
use crate::{CallId, Now};

/// Reads of one round.
#[derive(Debug)]
struct ReadRound {
    context: u64,
    reads: Vec<Read>,
    /// When it is given up and begun anew, in boot ms.
    retry_ms: u64,
}

/// All reads of this shard whose callers wait here.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// Wait for the next round.
    queue: Vec<Read>,
    round: Option<ReadRound>,
    /// Confirmed at an index, and waiting for the applies up to it to be handed out.
    confirmed: VecDeque<(u64, Vec<Read>)>,
    /// Wait for log time to reach a value: (due ms, read).
    due: Vec<(u64, Read)>,
    contexts: u64,
    /// Calls whose callers went away; they are sorted out all together, before reads are asked and once a tick.
    cancelled: BTreeSet<CallId>,
}

impl Reads {
    fn len(&self) -> usize {
        self.queue.len()
            + self.round.as_ref().map_or(0, |round| round.reads.len())
            + self.confirmed.iter().map(|(_, reads)| reads.len()).sum::<usize>()
            + self.due.len()
    }

    /// Queues reads for the next round; those beyond the limit are returned.
    pub(super) fn enqueue(&mut self, reads: Vec<Read>) -> Vec<Read> {
        let room = READS_MAX.saturating_sub(self.len());
        let mut reads = reads;
        let rest = reads.split_off(room.min(reads.len()));
        self.queue.extend(reads);
        rest
    }

    /// Whether a read waits for log time to reach the first value.
    pub(super) fn next_due_ms(&self) -> Option<u64> {
        self.due.iter().map(|(due, _)| *due).min()
    }

    pub(super) fn wait_for_time(&mut self, due_ms: u64, read: Read) {
        self.due.push((due_ms, read));
    }

    /// Log time has moved: reads that waited for it go into the next round.
    pub(super) fn time_is(&mut self, log_time_ms: u64) {
        let due = std::mem::take(&mut self.due);
        let (ready, rest) = due.into_iter().partition::<Vec<_>, _>(|(due, _)| *due <= log_time_ms);
        self.due = rest;
        self.queue.extend(ready.into_iter().map(|(_, read)| read));
    }

    /// Begins a round when reads wait and none is under way; returns its context.
    pub(super) fn begin_round(&mut self, now: Now, patience_ms: u64) -> Option<u64> {
        if self.round.as_ref().is_some_and(|round| round.retry_ms <= now.boot_ms)
            && let Some(round) = self.round.take()
        {
            self.queue.extend(round.reads);
        }
        if self.round.is_some() || self.queue.is_empty() {
            return None;
        }
        if !crate::mutant!(ReadContext) {
            self.contexts += 1;
        }
        let reads = std::mem::take(&mut self.queue);
        self.round =
            Some(ReadRound { context: self.contexts, reads, retry_ms: now.boot_ms + patience_ms });
        Some(self.contexts)
    }

    /// A round was confirmed: its reads are linearizable at `index`.
    pub(super) fn confirmed(&mut self, context: u64, index: u64) {
        if let Some(round) = self.round.take_if(|round| round.context == context) {
            self.confirmed.push_back((index, round.reads));
        }
    }

    /// Reads that may be asked now that applies up to `index` were handed out.
    pub(super) fn ready(&mut self, index: u64) -> Vec<Read> {
        if self.confirmed.front().is_some_and(|(at, _)| *at <= index) {
            self.sweep();
        }
        let mut ready = Vec::new();
        while let Some((_, reads)) = self.confirmed.pop_front_if(|(at, _)| *at <= index) {
            ready.extend(reads);
        }
        ready
    }

    /// Every read is refused: this replica does not lead.
    pub(super) fn refuse_all(&mut self, why: &Refusal, effects: &mut Vec<Effect>) {
        let mut reads = std::mem::take(&mut self.queue);
        reads.extend(self.round.take().into_iter().flat_map(|round| round.reads));
        reads.extend(self.confirmed.drain(..).flat_map(|(_, reads)| reads));
        reads.extend(self.due.drain(..).map(|(_, read)| read));
        effects.extend(reads.into_iter().map(|read| refuse(read.call, why.clone())));
    }

    /// Reads whose caller has given up are refused.
    pub(super) fn expire(&mut self, now: Now, why: &Refusal, effects: &mut Vec<Effect>) {
        self.remove(
            |read| read.deadline_ms <= now.boot_ms,
            |read| effects.push(refuse(read.call, why.clone())),
        );
    }

    /// A caller went away.
    pub(super) fn cancel(&mut self, call: CallId) {
        self.cancelled.insert(call);
    }

    /// Forgets the calls whose callers went away.
    pub(super) fn sweep(&mut self) {
        let cancelled = std::mem::take(&mut self.cancelled);
        if !cancelled.is_empty() {
            self.remove(|read| cancelled.contains(&read.call), |_| ());
        }
    }

    fn remove(&mut self, mut unwanted: impl FnMut(&Read) -> bool, mut removed: impl FnMut(&Read)) {
        let mut keep = |read: &Read| {
            let gone = unwanted(read);
            if gone {
                removed(read);
            }
            !gone
        };
        self.queue.retain(&mut keep);
        if let Some(round) = &mut self.round {
            round.reads.retain(&mut keep);
        }
        for (_, reads) in &mut self.confirmed {
            reads.retain(&mut keep);
        }
        self.due.retain(|(_, read)| keep(read));
    }
}
