//! At most three workers at a time: each takes a permit, works, and gives it back; a heavy one takes two.
//!
//! Run `trefoil dev` in another terminal, then start this.

use std::time::Duration;

use trefoil_client::{Client, Error, Session};

#[tokio::main]
#[allow(clippy::print_stdout, reason = "an example speaks to a person")]
async fn main() -> Result<(), Error> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:7001".to_owned());
    let client = Client::connect([endpoint]).await?;
    client.locks().semaphore("workers").set(3).await?;

    let mut workers = Vec::new();
    for number in 0..6_u64 {
        // A session holds permits of a semaphore once, so each worker has one of its own.
        let session = client.session(Duration::from_secs(5)).owner("example").await?;
        let permits = 1 + number % 2;
        workers.push(tokio::spawn(async move {
            match work(session, permits).await {
                Ok(Some(token)) => println!("worker {number} had {permits}, token {token}"),
                Ok(None) => println!("worker {number} waited in vain"),
                Err(error) => println!("worker {number}: {error}"),
            }
        }));
    }
    for worker in workers {
        drop(worker.await);
    }
    Ok(())
}

async fn work(session: Session, permits: u64) -> Result<Option<u64>, Error> {
    let wait = Duration::from_secs(30);
    let permits = session.semaphore("workers").permits(permits).wait(wait).acquire().await?;
    let Some(permits) = permits else { return Ok(None) };
    let token = permits.token();
    tokio::select! {
        () = tokio::time::sleep(Duration::from_millis(300)) => permits.release().await?,
        // Stop working: others may have the permits.
        () = permits.lost() => {}
    }
    session.close().await?;
    Ok(Some(token))
}
