//! What services see of a command or a query, and how they end it.

use bytes::Bytes;
use trefoil_proto::common::v1::{Reason, RequestId};
use trefoil_proto::internal::v1::{Answer, Command, Done, Drawn, Progress, Refusal, answer};

use super::counts::Counts;
use super::directory::Directory;
use super::event::Event;
use super::progress::{NamespaceChanges, NamespacePolicy, RequestHorizon};
use super::timers::TimerChanges;
use super::windows::{ClientWindow, Windows};
use super::{measure, parked, polls};
use crate::store::Txn;
use crate::{CallId, check};

/// Names a command that waits in the state (a lock waiter), so that whoever asked can be told when it ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WaiterId(pub Bytes);

/// How one command ended, as far as its own entry says.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Answered, or refused by the state: definite either way.
    Answered(Answer),
    /// It waits in the state; a later entry settles it.
    Waiting(WaiterId),
}

/// A command that had been waiting and is answered now.
#[derive(Clone, Debug, PartialEq)]
pub struct Settled {
    /// Which one.
    pub waiter: WaiterId,
    /// Its request id, under which the answer is remembered.
    pub request_id: Option<RequestId>,
    /// The answer.
    pub answer: Answer,
}

/// How a read ended.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "most are answers")]
pub enum QueryOutcome {
    /// Answered at the applied index.
    Answered(Answer),
    /// The value's time is up by the leader's clock, and not yet by the log: move log time to this and ask again.
    Due(u64),
    /// It waits as a long poll; [`Applied::polls`](super::Applied::polls) or [`Machine::cancel`](super::Machine::cancel) ends it.
    Parked,
}

/// What services may touch while they apply one command.
pub(super) struct CommandContext<'a> {
    pub(super) txn: Txn<'a>,
    pub(super) windows: &'a mut Windows,
    /// Log time of the entry in ms.
    pub(super) now_ms: u64,
    /// The leader's wall clock then, in ms: for people alone.
    pub(super) wall_ms: u64,
    /// Index and term of the entry.
    pub(super) index: u64,
    pub(super) term: u64,
    /// Log time of the first stamped entry of the term.
    pub(super) term_started_ms: u64,
    /// Slot of the command; every record that it touches begins with it.
    pub(super) slot: u16,
    /// The command; none where a timer fires.
    pub(super) command: Option<&'a Command>,
    /// Number of data shards.
    pub(super) shards: u32,
    pub(super) namespaces: NamespacePolicy,
    pub(super) requests: RequestHorizon,
    pub(super) output: Output,
}

impl<'a> CommandContext<'a> {
    /// What is remembered of a client's requests.
    pub(super) fn window(&mut self, client: &str) -> ClientWindow<'_, 'a> {
        self.windows.of(client, &mut self.txn)
    }

    /// What was drawn for the command.
    pub(super) fn drawn(&self) -> Result<Drawn, Refusal> {
        let drawn = self.command.and_then(|command| command.chance);
        drawn.ok_or_else(|| check::invalid("chance", "set"))
    }
}

/// What services may read while they answer one query.
pub(super) struct QueryContext<'a, S> {
    pub(super) store: &'a S,
    /// Slot of the query.
    pub(super) slot: u16,
    /// Node that the client spoke to.
    pub(super) agent: u64,
    /// The leader's estimate of log time in ms.
    pub(super) now_ms: u64,
    /// The call that asks.
    pub(super) call: CallId,
    /// Number of data shards.
    pub(super) shards: u32,
    pub(super) progress: &'a Progress,
    pub(super) directory: &'a mut Directory,
    pub(super) polls: &'a mut polls::Polls,
    pub(super) parked: &'a mut parked::ParkedCalls,
}

/// What a command says beside its answer. Dropped with the transaction when the command is refused.
#[derive(Default)]
pub(super) struct Output {
    pub(super) counts: Counts,
    pub(super) settled: Vec<Settled>,
    pub(super) events: Vec<Event>,
    /// Partitions that gained a message to deliver: (queue id, partition).
    pub(super) ready: Vec<(u64, u32)>,
    /// Records that calls wait for, and what those are answered.
    pub(super) parked: Vec<(Bytes, Answer)>,
    /// Change of the number of messages that are neither acknowledged, dead nor expired.
    pub(super) backlog: i64,
    /// Change of what there is of locks.
    pub(super) locks: measure::GaugeChanges,
    pub(super) namespaces: NamespaceChanges,
    pub(super) timers: TimerChanges,
    /// When a request client that is forgotten was last seen, in log time.
    pub(super) forgotten_seen_at_ms: Option<u64>,
    /// Lines that changed: (slot, key of the record, writer, or none when the value is gone).
    pub(super) lines: Vec<(Bytes, Option<u64>)>,
}

/// What a service does with a command: an answer, a place among the waiting, or a refusal that changes nothing.
pub(super) enum CommandOutcome {
    Answer(answer::Answer),
    Wait(WaiterId),
}

pub(super) type CommandResult = Result<CommandOutcome, Refusal>;

/// A refusal with its sentence.
pub(super) fn refuse(reason: Reason, message: impl Into<String>) -> Refusal {
    Refusal { reason: reason.into(), message: message.into(), ..Refusal::default() }
}

/// A refusal that carries facts for programs.
pub(super) fn refuse_with<const N: usize>(
    reason: Reason,
    message: impl Into<String>,
    facts: [(&str, String); N],
) -> Refusal {
    let metadata = facts.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    Refusal { metadata, ..refuse(reason, message) }
}

/// The answer of a command that had nothing more to say.
pub(super) fn done() -> CommandOutcome {
    CommandOutcome::Answer(answer::Answer::Done(Done {}))
}

pub(super) fn refused(refusal: Refusal) -> Outcome {
    Outcome::Answered(refusal.into())
}

pub(super) fn answered(answer: impl Into<Answer>) -> QueryOutcome {
    QueryOutcome::Answered(answer.into())
}
