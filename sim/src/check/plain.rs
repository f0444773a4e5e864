//! Commands without a request id: nobody could tell a second try of one from the first, so it is applied once at most.

use std::collections::BTreeMap;

use trefoil_core::ShardId;
use trefoil_proto::internal::v1::Command;
use trefoil_proto::internal::v1::command::Operation;

use super::Violation;

const ONCE: &str = "a command without a request id is applied once at most";

/// What was applied without a request id. Every value that a client stores is its only one.
#[derive(Clone, Debug, Default)]
pub struct Plain {
    applied: BTreeMap<(ShardId, Vec<u8>), (u64, u32)>,
}

impl Plain {
    /// A command was applied, seen for the first time on any node. Tells whether it is one of these.
    ///
    /// # Errors
    /// When its value was stored before.
    pub fn applied(
        &mut self,
        shard: ShardId,
        place: (u64, u32),
        command: &Command,
    ) -> Result<bool, Violation> {
        if command.request_id.is_some() {
            return Ok(false);
        }
        let value = match &command.operation {
            Some(Operation::Put(put)) => put.value.as_ref(),
            Some(Operation::EnqueueTo(enqueue)) => {
                enqueue.messages.first().and_then(|message| message.value.as_ref())
            }
            _ => None,
        };
        let Some(value) = value else { return Ok(false) };
        let key = (shard, prost::Message::encode_to_vec(value));
        match self.applied.insert(key, place) {
            None => Ok(true),
            Some(other) => {
                let what = format!("{command:?} at {other:?} and at {place:?} of shard {shard}");
                Err(Violation::new(ONCE, what))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use trefoil_proto::cache::v1::PutRequest;
    use trefoil_proto::common::v1::{RequestId, Value, value};

    use super::*;

    fn put(text: &str, request_id: Option<RequestId>) -> Command {
        let kind = Some(value::Kind::Text(text.to_owned()));
        let put = PutRequest { value: Some(Value { kind }), ..PutRequest::default() };
        Command { request_id, operation: Some(Operation::Put(put)), ..Command::default() }
    }

    #[test]
    fn one_that_stands_twice_is_found_and_one_with_a_request_id_is_not_its_business() {
        let mut plain = Plain::default();
        assert_eq!(plain.applied(1, (11, 0), &put("a", None)), Ok(true));
        assert_eq!(plain.applied(1, (12, 0), &put("b", None)), Ok(true));
        let id = RequestId::default();
        assert_eq!(plain.applied(1, (13, 0), &put("a", Some(id))), Ok(false));
        let found = plain.applied(1, (14, 0), &put("a", None)).unwrap_err();
        assert_eq!(found.invariant, ONCE);
    }
}
