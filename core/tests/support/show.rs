//! How messages and writes read in a trace.

use std::fmt::Write as _;

use raft_proto::eraftpb::{Entry, HardState, Message, MessageType};
use trefoil_core::replica::{Effect, PersistBatch, Reply};
use trefoil_core::{CallId, NodeId};

use super::cluster::Cluster;

pub(crate) fn show_hard_state(batch: &PersistBatch) -> String {
    batch.hard_state.as_ref().map_or_else(String::new, |hard_state| {
        format!(" term {} vote {} commit {}", hard_state.term, hard_state.vote, hard_state.commit)
    })
}

pub(crate) fn show_entries(entries: &[Entry]) -> String {
    match entries {
        [] => String::new(),
        [one] => format!(" {}@{}", one.index, one.term),
        [first, .., last] => {
            format!(" {}@{}..{}@{}", first.index, first.term, last.index, last.term)
        }
    }
}

pub(crate) fn show_message(message: &Message) -> String {
    let Message { to, term, index, log_term, commit, reject, .. } = message;
    let refused = if *reject { " refused" } else { "" };
    let name = format!("{:?}", message.get_msg_type());
    let name = name.trim_start_matches("Msg");
    let detail = match message.get_msg_type() {
        MessageType::MsgAppend => {
            format!(" after {index}@{log_term}{} commit {commit}", show_entries(&message.entries))
        }
        MessageType::MsgAppendResponse => format!(" to {index}{refused}"),
        MessageType::MsgHeartbeat => format!(" commit {commit}"),
        MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => {
            format!(" last {index}@{log_term}")
        }
        _ => refused.to_owned(),
    };
    format!("n{to} {name} t{term}{detail}")
}

impl Cluster {
    pub(crate) fn note(&mut self, node: NodeId, what: std::fmt::Arguments<'_>) {
        writeln!(self.trace, "n{node} {what}").expect("text grows");
    }

    #[allow(clippy::too_many_lines, reason = "one table")]
    pub(crate) fn show(&mut self, node: NodeId, effect: &Effect) {
        match effect {
            Effect::Send(peer) => {
                self.note(node, format_args!("→ {}", show_message(&peer.message)))
            }
            Effect::SendSnapshot(peer) => {
                let at = peer.message.get_snapshot().get_metadata();
                let (to, index, term) = (peer.message.to, at.index, at.term);
                self.note(node, format_args!("→ n{to} snapshot {index}@{term}"));
            }
            Effect::Persist(batch) => {
                let line = format!("{}{}", show_entries(&batch.entries), show_hard_state(batch));
                self.note(node, format_args!("writes{line}"));
            }
            Effect::Apply(range) if range.first == range.last => {
                self.note(node, format_args!("applies {}", range.first));
            }
            Effect::Apply(range) => {
                self.note(node, format_args!("applies {}..{}", range.first, range.last))
            }
            Effect::Query { reads, .. } => {
                self.note(node, format_args!("asks {} reads", reads.len()))
            }
            Effect::CancelQuery(call) => self.note(node, format_args!("cancels call {call}")),
            Effect::StepDown { .. } => self.note(node, format_args!("forgets what a leader keeps")),
            Effect::Reply(call, reply) => self.show_reply(node, *call, reply),
            Effect::Offer(call) => self.note(node, format_args!("offers call {call} a grant")),
            Effect::TakeBack(_) => self.note(node, format_args!("takes a grant back")),
            Effect::Fetch { first, last, .. } => {
                self.note(node, format_args!("reads {first}..{} of its log", last - 1));
            }
            Effect::Checkpoint => self.note(node, format_args!("takes a checkpoint")),
            Effect::Compact { to, .. } => self.note(node, format_args!("cuts its log to {to}")),
            Effect::OpenSnapshot(to) => self.note(node, format_args!("opens a snapshot for n{to}")),
            Effect::CloseSnapshot(to) => {
                self.note(node, format_args!("closes the snapshot for n{to}"))
            }
            Effect::InstallSnapshot { index, term, hard_state, .. } => {
                let HardState { term: own, vote, commit, .. } = hard_state;
                self.note(
                    node,
                    format_args!(
                        "installs {index}@{term} with term {own} vote {vote} commit {commit}"
                    ),
                );
            }
            Effect::Restore { index, term, .. } => {
                self.note(node, format_args!("puts the state {index}@{term} in place of its own"));
            }
            Effect::Outvoted { index } => {
                self.note(node, format_args!("has another state at {index} than a majority"));
            }
            Effect::Disputed(true) => {
                self.note(node, format_args!("knows no majority that agrees"))
            }
            Effect::Disputed(false) => {
                self.note(node, format_args!("knows a majority that agrees"))
            }
            Effect::DiscardSnapshot { .. } => self.note(node, format_args!("discards a snapshot")),
            Effect::Role(role) => {
                let leader =
                    role.leader.map_or_else(|| "nobody".to_owned(), |leader| format!("n{leader}"));
                self.note(
                    node,
                    format_args!("is {:?} of term {}, led by {leader}", role.role, role.term),
                );
            }
            Effect::TwoHistories { peer, index } => {
                self.note(
                    node,
                    format_args!("stops: n{peer} has another history than its own up to {index}"),
                );
            }
            Effect::Diverged { peer, index } => {
                self.note(node, format_args!("has another state than n{peer} at {index}"));
            }
        }
    }

    pub(crate) fn show_reply(&mut self, node: NodeId, call: CallId, reply: &Reply) {
        match reply {
            Reply::Answered(at, answer) => {
                let answer = super::support::show_answer(answer);
                let place = if at.ordinal == u32::MAX {
                    at.index.to_string()
                } else {
                    format!("{}.{}", at.index, at.ordinal)
                };
                self.note(node, format_args!("answers call {call} at {place}: {answer}"));
            }
            Reply::Refused(refusal) => {
                let facts = refusal.metadata.iter().map(|(key, value)| format!(" {key}={value}"));
                let (name, facts) = (refusal.reason().name(), facts.collect::<String>());
                self.note(node, format_args!("refuses call {call}: {name}{facts}"));
            }
        }
    }
}
