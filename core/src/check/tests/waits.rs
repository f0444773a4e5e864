//! The same for elections, latches and barriers.

use super::*;

#[test]
fn elections_name_field_and_limit() {
    let campaign = lock::CampaignRequest {
        namespace: name(),
        session_id: 1,
        name: name(),
        value: data(l::PROCLAIMED_BYTES_MAX),
        wait_ms: l::WAIT_MS_MAX,
        request_id: id(),
        lock_delay_ms: Some(l::LOCK_DELAY_MS_MAX),
    };
    assert_refused(
        &campaign,
        namespace_and_id!(
            (|r| r.session_id = 0, "session_id", "set"),
            (|r| r.name.clear(), "name", NAME),
            (|r| r.name = long_name(), "name", NAME),
            (|r| r.value = data(l::PROCLAIMED_BYTES_MAX + 1), "value", "at most 65536 bytes"),
            (|r| r.wait_ms += 1, "wait_ms", "0 to 86400000"),
            (|r| r.lock_delay_ms = Some(60_001), "lock_delay_ms", "0 to 60000"),
        ),
    );
    let proclaim = lock::ProclaimRequest {
        namespace: name(),
        session_id: 1,
        name: name(),
        fencing_token: 1,
        value: None,
        request_id: id(),
    };
    assert_refused(
        &proclaim,
        namespace_and_id!(
            (|r| r.session_id = 0, "session_id", "set"),
            (|r| r.name.clear(), "name", NAME),
            (|r| r.fencing_token = 0, "fencing_token", "set"),
            (|r| r.value = data(l::PROCLAIMED_BYTES_MAX + 1), "value", "at most 65536 bytes"),
        ),
    );
    let leader = lock::LeaderRequest { namespace: name(), name: name() };
    assert_refused(&leader, namespace!((|r| r.name.clear(), "name", NAME)));
    let resign = lock::ResignRequest {
        namespace: name(),
        session_id: 1,
        name: name(),
        fencing_token: 0,
        request_id: id(),
    };
    assert_refused(
        &resign,
        namespace_and_id!(
            (|r| r.session_id = 0, "session_id", "set"),
            (|r| r.name = long_name(), "name", NAME),
        ),
    );
}

#[test]
fn latches_name_field_and_limit() {
    let set = lock::SetLatchRequest {
        namespace: name(),
        name: name(),
        count: l::LATCH_COUNT_MAX,
        expected: None,
        request_id: id(),
    };
    assert_refused(
        &set,
        namespace_and_id!(
            (|r| r.name.clear(), "name", NAME),
            (|r| r.count = 0, "count", "1 to 4294967295"),
            (|r| r.count += 1, "count", "1 to 4294967295"),
        ),
    );
    let mut count = lock::CountDownRequest {
        namespace: name(),
        name: name(),
        by: 0,
        round: 0,
        request_id: id(),
    };
    assert_refused(&count, namespace_and_id!((|r| r.name.clear(), "name", NAME)));
    assert_eq!((count.check(), count.by), (Ok(()), 1), "0 means 1");
    let wait = lock::AwaitLatchRequest {
        namespace: name(),
        name: name(),
        wait_ms: l::WAIT_MS_MAX,
        round: 0,
    };
    assert_refused(
        &wait,
        namespace!(
            (|r| r.name.clear(), "name", NAME),
            (|r| r.wait_ms += 1, "wait_ms", "0 to 86400000"),
        ),
    );
    let get = lock::GetLatchRequest { namespace: name(), name: name() };
    assert_refused(&get, namespace!((|r| r.name = long_name(), "name", NAME)));
    let delete = lock::DeleteLatchRequest { namespace: name(), name: name(), request_id: id() };
    assert_refused(&delete, namespace_and_id!((|r| r.name.clear(), "name", NAME)));
    let list = lock::ListLatchesRequest {
        namespace: name(),
        prefix: name(),
        page_size: l::PAGE_ITEMS_MAX,
        page_token: format!("{:x}", u64::MAX) + &"n".repeat(l::NAME_BYTES_MAX),
    };
    assert_refused(&list, page!());
}

#[test]
fn barriers_name_field_and_limit() {
    let enter = lock::EnterBarrierRequest {
        namespace: name(),
        session_id: 1,
        name: name(),
        parties: l::BARRIER_PARTIES_MAX,
        wait_ms: l::WAIT_MS_MAX,
        request_id: id(),
    };
    assert_refused(
        &enter,
        namespace_and_id!(
            (|r| r.session_id = 0, "session_id", "set"),
            (|r| r.name.clear(), "name", NAME),
            (|r| r.parties = 0, "parties", "1 to 1000"),
            (|r| r.parties += 1, "parties", "1 to 1000"),
            (|r| r.wait_ms += 1, "wait_ms", "0 to 86400000"),
        ),
    );
    let leave = lock::LeaveBarrierRequest {
        namespace: name(),
        session_id: 1,
        name: name(),
        round: 0,
        wait_ms: l::WAIT_MS_MAX,
        request_id: id(),
    };
    assert_refused(
        &leave,
        namespace_and_id!(
            (|r| r.session_id = 0, "session_id", "set"),
            (|r| r.name = long_name(), "name", NAME),
            (|r| r.wait_ms += 1, "wait_ms", "0 to 86400000"),
        ),
    );
    let get = lock::GetBarrierRequest { namespace: name(), name: name() };
    assert_refused(&get, namespace!((|r| r.name.clear(), "name", NAME)));
    let list = lock::ListBarriersRequest {
        namespace: name(),
        prefix: name(),
        page_size: l::PAGE_ITEMS_MAX,
        page_token: format!("{:x}", u64::MAX) + &"n".repeat(l::NAME_BYTES_MAX),
    };
    assert_refused(&list, page!());
}
