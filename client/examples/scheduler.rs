//! A job that runs on one machine at a time: whoever is elected runs it, under a fence, until the leadership is lost.
//!
//! Run `trefoil dev` in another terminal, then start this twice and kill the one that leads: the other goes on where it was.

use std::time::Duration;

use trefoil_client::{Cache, Client, Error, Reason};

/// For how long a leader that is not heard of stays the leader.
const TTL: Duration = Duration::from_secs(3);
const WAIT: Duration = Duration::from_secs(3_600);
const KEY: &str = "scheduler/run";

#[tokio::main]
#[allow(clippy::print_stdout, reason = "an example speaks to a person")]
async fn main() -> Result<(), Error> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:7001".to_owned());
    let client = Client::connect([endpoint]).await?;
    loop {
        let session = client.session(TTL).owner("scheduler").await?;
        let election = session.election("scheduler").value("10.0.0.7:9000").wait(WAIT);
        let Some(leadership) = election.campaign().await? else { continue };
        println!("leading with token {}", leadership.token());

        // Once another leads, what is still under way here is refused.
        let cache = client.cache().with_fence(&leadership);
        let end = tokio::select! {
            end = run(&cache) => end,
            () = leadership.lost() => Ok(()),
            _ = tokio::signal::ctrl_c() => {
                leadership.resign().await?;
                return session.close().await;
            }
        };
        match end {
            Err(error) if error.reason() != Some(Reason::Fenced) => return Err(error),
            _ => println!("the leadership is lost"),
        }
    }
}

#[allow(clippy::print_stdout, reason = "an example speaks to a person")]
async fn run(cache: &Cache) -> Result<(), Error> {
    let last = cache.get(KEY).await?;
    let last = last.and_then(|entry| entry.value.as_text()?.parse::<u64>().ok()).unwrap_or(0);
    for run in last + 1.. {
        cache.put(KEY, run.to_string()).await?;
        println!("run {run}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}
