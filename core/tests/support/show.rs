//! How messages and writes read in a trace.

use raft_proto::eraftpb::{Entry, Message, MessageType};
use trefoil_core::replica::PersistBatch;

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
