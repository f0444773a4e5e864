//! What a caller asked for under a request id, in 64 bits: a shard that remembers the id for something else refuses it.
//!
//! It covers the kind of the call and all of its fields, filled in where they were left out, but for what a retry
//! changes: the request id itself, and how long the call still waits. What a node adds is no part of it.

use std::cell::RefCell;

use xxhash_rust::xxh3::xxh3_64;

use super::operation::Operation;

/// Bytes that are kept for the next call.
const KEPT_BYTES: usize = 64 << 10;

thread_local! {
    static BYTES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The fingerprint of an operation; 0 where it has no request id.
pub(super) fn of(operation: &mut Operation) -> u64 {
    let Some(id) = operation.request_id_mut().and_then(Option::take) else { return 0 };
    let wait_ms = operation.wait_ms_mut().map(std::mem::take);
    let fingerprint = hash(operation);
    if let (Some(field), Some(wait_ms)) = (operation.wait_ms_mut(), wait_ms) {
        *field = wait_ms;
    }
    if let Some(field) = operation.request_id_mut() {
        *field = Some(id);
    }
    fingerprint
}

/// Maps are ordered and defaults are left out, so that equal operations have equal bytes.
fn hash(operation: &Operation) -> u64 {
    BYTES.with_borrow_mut(|bytes| {
        bytes.clear();
        operation.encode(bytes);
        let hash = xxh3_64(bytes);
        if bytes.capacity() > KEPT_BYTES {
            *bytes = Vec::new();
        }
        hash
    })
}

#[cfg(test)]
mod tests {

    use bytes::Bytes;
    use trefoil_proto::cache::v1::{DeleteRequest, PutRequest};
    use trefoil_proto::common::v1::{Fence, RequestId, Value, value};
    use trefoil_proto::lock::v1::AcquireRequest;

    use super::*;

    fn id(sequence: u64, attempt: u32) -> Option<RequestId> {
        Some(RequestId { client: "c".to_owned(), sequence, first_unacknowledged: 1, attempt })
    }

    fn put(key: &str, bytes: usize) -> PutRequest {
        PutRequest {
            key: key.to_owned(),
            value: Some(Value { kind: Some(value::Kind::Data(Bytes::from(vec![7; bytes]))) }),
            request_id: id(1, 0),
            ..PutRequest::default()
        }
    }

    fn of_put(request: PutRequest) -> u64 {
        let mut operation = Operation::Put(request);
        let fingerprint = of(&mut operation);
        let Operation::Put(after) = operation else { panic!("it is a put") };
        assert!(fingerprint == 0 || after.request_id.is_some(), "the operation is as it was");
        fingerprint
    }

    #[test]
    fn a_retry_is_the_same_and_anything_else_is_not() {
        let first = of_put(put("k", 3));
        assert_ne!(first, 0);
        assert_eq!(of_put(PutRequest { request_id: id(9, 4), ..put("k", 3) }), first);
        assert_ne!(of_put(put("l", 3)), first);
        assert_ne!(of_put(put("k", 4)), first);
        assert_ne!(of_put(PutRequest { ttl_ms: 5, ..put("k", 3) }), first);
        let fence = Some(Fence { lock: "l".to_owned(), token: 2, ..Fence::default() });
        assert_ne!(of_put(PutRequest { fence, ..put("k", 3) }), first);
        assert_eq!(of_put(PutRequest { request_id: None, ..put("k", 3) }), 0);
    }

    #[test]
    fn the_kind_of_a_call_counts_and_its_wait_does_not() {
        let acquire = |wait_ms| {
            let request_id = id(1, 0);
            let mut operation =
                Operation::Acquire(AcquireRequest { wait_ms, request_id, ..Default::default() });
            let fingerprint = of(&mut operation);
            assert!(matches!(operation, Operation::Acquire(it) if it.wait_ms == wait_ms));
            fingerprint
        };
        assert_eq!(acquire(500), acquire(0));
        let key = "k".to_owned();
        let delete = DeleteRequest { key, request_id: id(1, 0), ..Default::default() };
        assert_ne!(of(&mut Operation::Delete(delete)), of_put(put("k", 0)));
    }
}
