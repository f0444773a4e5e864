//! Leads an election for a while, and tells everybody where its leader is reached.
//!
//! Run `trefoil dev` in another terminal, then start this twice: the second leads when the first has resigned.

use std::time::Duration;

use trefoil_client::{Client, Error};

#[tokio::main]
#[allow(clippy::print_stdout, reason = "an example speaks to a person")]
async fn main() -> Result<(), Error> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:7001".to_owned());
    let client = Client::connect([endpoint]).await?;

    let session = client.session(Duration::from_secs(5)).owner("example").await?;
    let election = session.election("scheduler").value("10.0.0.7:9000");
    let Some(leadership) = election.wait(Duration::from_secs(30)).campaign().await? else {
        let leader = client.locks().leader("scheduler").await?;
        println!("another leads: {leader:?}");
        return Ok(());
    };

    // Pass the token to whatever the leader changes: it refuses a leader that was late.
    println!("leading with token {}", leadership.token());
    leadership.proclaim("10.0.0.7:9001").await?;
    tokio::select! {
        () = work() => leadership.resign().await?,
        () = leadership.lost() => println!("the leadership is lost"),
    }
    session.close().await
}

async fn work() {
    tokio::time::sleep(Duration::from_secs(3)).await;
}
