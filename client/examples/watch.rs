//! A table of who holds which lock: listed once, kept by a watch, and listed again when events were missed.
//!
//! Run `trefoil dev` in another terminal, then start this. It runs until Ctrl-C.

use std::collections::BTreeMap;

use trefoil_client::proto::lock::v1::ListLocksRequest;
use trefoil_client::{Client, Error, LockEventKind, LockMode, Reason, WatchPosition};

/// Lock and session to the mode and token of a grant.
type Holders = BTreeMap<(String, u64), (LockMode, u64)>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:7001".to_owned());
    let client = Client::connect([endpoint]).await?;
    loop {
        match follow(&client).await {
            // What has happened since is no longer there: begin again.
            Err(error) if error.reason() == Some(Reason::PositionCompacted) => {}
            ended => return ended,
        }
    }
}

#[allow(clippy::print_stdout, reason = "an example speaks to a person")]
async fn follow(client: &Client) -> Result<(), Error> {
    let (mut holders, position) = list(client).await?;
    let mut watch = client.locks().watch("").after(position);
    println!("{} locks are held", holders.len());
    loop {
        let event = watch.next().await?;
        let place = (event.name.clone(), event.session_id);
        match event.kind() {
            LockEventKind::Acquired | LockEventKind::Converted => {
                holders.insert(place, (event.mode(), event.fencing_token));
            }
            LockEventKind::Released | LockEventKind::Expired | LockEventKind::Forced => {
                holders.remove(&place);
            }
            _ => continue,
        }
        println!("{:?} {} by session {}", event.kind(), event.name, event.session_id);
        println!("{} locks are held", holders.len());
    }
}

/// The first page of locks, with the position at which it is true.
async fn list(client: &Client) -> Result<(Holders, WatchPosition), Error> {
    let request = ListLocksRequest { page_size: 1_000, ..ListLocksRequest::default() };
    let listed = client.call(request).await?;
    let held = listed.locks.into_iter().filter_map(|lock| {
        let holder = lock.holder?;
        Some(((lock.name, holder.session_id), (holder.mode(), holder.fencing_token)))
    });
    Ok((held.collect(), listed.header.unwrap_or_default().into()))
}
