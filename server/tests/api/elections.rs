//! Elections over real sockets: leaders, values, and callers who go away.

use tonic::Code;
use tonic::transport::Channel;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::command::Operation as Command;
use trefoil_proto::lock::v1 as lock;
use trefoil_proto::pipeline::v1::call::Operation;
use trefoil_proto::pipeline::v1::reply::Outcome;

use crate::support::operations::*;
use crate::support::{Served, refused, unary, usual};

async fn leader(channel: &Channel) -> Option<lock::Leadership> {
    let request = lock::LeaderRequest { name: "e".to_owned(), ..Default::default() };
    match unary(channel, Operation::Leader(request)).await {
        Ok(Outcome::Leader(response)) => response.leader,
        other => panic!("{other:?}"),
    }
}

fn waiting(channel: &Channel, session_id: u64, value: &str) -> tokio::task::JoinHandle<u64> {
    let request = lock::CampaignRequest { value: text(value), ..campaign(session_id, "e", 60_000) };
    let channel = channel.clone();
    tokio::spawn(async move {
        match unary(&channel, Operation::Campaign(request)).await {
            Ok(Outcome::Campaign(got)) if got.elected => got.fencing_token,
            other => panic!("{other:?}"),
        }
    })
}

async fn sessions(channel: &Channel, count: u64) {
    for _ in 0..count {
        unary(channel, Operation::OpenSession(open_session(60_000))).await.unwrap();
    }
}

#[tokio::test]
async fn the_next_leader_leads_with_its_value_and_the_old_token_does_nothing() {
    let Served { channel, front: _front, fake, .. } = usual().await;
    sessions(&channel, 2).await;
    assert_eq!(leader(&channel).await, None);
    let Ok(Outcome::Campaign(first)) =
        unary(&channel, Operation::Campaign(campaign(1, "e", 0))).await
    else {
        panic!()
    };
    assert!(first.elected && first.leader_token == 0);
    let Ok(Outcome::Campaign(second)) =
        unary(&channel, Operation::Campaign(campaign(2, "e", 0))).await
    else {
        panic!()
    };
    let missed = (second.elected, second.fencing_token, second.leader_token);
    assert_eq!(missed, (false, 0, first.fencing_token));

    let next = waiting(&channel, 2, "there");
    fake.logged(|command| matches!(command, Command::Campaign(c) if c.wait_ms > 0)).await;
    let token = first.fencing_token;
    let resign = lock::ResignRequest {
        session_id: 1,
        name: "e".to_owned(),
        fencing_token: token,
        ..Default::default()
    };
    unary(&channel, Operation::Resign(resign)).await.unwrap();
    let token_of_next = next.await.unwrap();
    assert!(token_of_next > token);
    let now = leader(&channel).await.unwrap();
    let shown = (now.session_id, now.fencing_token, now.value);
    assert_eq!(shown, (2, token_of_next, text("there")));

    let proclaim = lock::ProclaimRequest {
        session_id: 1,
        name: "e".to_owned(),
        fencing_token: token,
        value: text("late"),
        ..Default::default()
    };
    let (code, refusal) = refused(unary(&channel, Operation::Proclaim(proclaim)).await);
    assert_eq!((code, refusal.reason()), (Code::FailedPrecondition, Reason::NotHolder));
    assert_eq!(refusal.metadata["holder_token"], token_of_next.to_string());
}

#[tokio::test]
async fn a_campaign_that_is_hung_up_leaves_no_candidate() {
    let Served { channel, front: _front, fake, .. } = usual().await;
    sessions(&channel, 2).await;
    unary(&channel, Operation::Campaign(campaign(1, "e", 0))).await.unwrap();
    let next = waiting(&channel, 2, "there");
    fake.logged(|command| matches!(command, Command::Campaign(c) if c.wait_ms > 0)).await;
    next.abort();
    fake.logged(|command| matches!(command, Command::CancelAcquire(_))).await;
    unary(&channel, Operation::Release(release(1, "e"))).await.unwrap();
    assert_eq!(leader(&channel).await, None, "nobody waits");
}

#[tokio::test]
async fn bad_fields_of_elections_are_named_with_their_limits() {
    let Served { channel, front: _front, .. } = usual().await;
    let large = Some(trefoil_proto::common::v1::Value {
        kind: Some(trefoil_proto::common::v1::value::Kind::Data(vec![0; 65_537].into())),
    });
    let proclaim = lock::ProclaimRequest {
        session_id: 1,
        name: "e".to_owned(),
        fencing_token: 1,
        ..Default::default()
    };
    for (operation, field, limit) in [
        (Operation::Campaign(campaign(0, "e", 0)), "session_id", "set"),
        (Operation::Campaign(campaign(1, "", 0)), "name", "1 to 255 bytes"),
        (
            Operation::Campaign(lock::CampaignRequest {
                value: large.clone(),
                ..campaign(1, "e", 0)
            }),
            "value",
            "at most 65536 bytes",
        ),
        (Operation::Campaign(campaign(1, "e", 86_400_001)), "wait_ms", "0 to 86400000"),
        (
            Operation::Campaign(lock::CampaignRequest {
                lock_delay_ms: Some(60_001),
                ..campaign(1, "e", 0)
            }),
            "lock_delay_ms",
            "0 to 60000",
        ),
        (
            Operation::Proclaim(lock::ProclaimRequest { fencing_token: 0, ..proclaim.clone() }),
            "fencing_token",
            "set",
        ),
        (
            Operation::Proclaim(lock::ProclaimRequest { value: large, ..proclaim }),
            "value",
            "at most 65536 bytes",
        ),
        (Operation::Leader(lock::LeaderRequest::default()), "name", "1 to 255 bytes"),
        (Operation::Resign(lock::ResignRequest::default()), "session_id", "set"),
    ] {
        let (code, refusal) = refused(unary(&channel, operation.clone()).await);
        assert_eq!(code, Code::InvalidArgument, "{operation:?}");
        assert_eq!(refusal.metadata["field"], field, "{operation:?}");
        assert_eq!(refusal.metadata["limit"], limit, "{operation:?}");
    }
}
