//! Three workers that begin together and finish together, and one who waits until all have reported.
//!
//! Run `trefoil dev` in another terminal, then start this.

use std::time::Duration;

use trefoil_client::{Client, Error};

const WORKERS: u32 = 3;
const WAIT: Duration = Duration::from_secs(30);

#[tokio::main]
#[allow(clippy::print_stdout, reason = "an example speaks to a person")]
async fn main() -> Result<(), Error> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:7001".to_owned());
    let client = Client::connect([endpoint]).await?;
    let reported = client.locks().latch("reported");
    println!("round {} of the latch", reported.set(WORKERS.into()).await?);

    let workers = (0..WORKERS).map(|number| tokio::spawn(work(client.clone(), number)));
    let workers = workers.collect::<Vec<_>>();
    if reported.wait(WAIT).await? {
        println!("all have reported");
    }
    for worker in workers {
        if let Ok(end) = worker.await {
            end?;
        }
    }
    reported.delete().await
}

#[allow(clippy::print_stdout, reason = "an example speaks to a person")]
async fn work(client: Client, number: u32) -> Result<(), Error> {
    let owner = format!("worker {number}");
    let session = client.session(Duration::from_secs(5)).owner(owner).await?;
    let barrier = session.barrier("import", WORKERS);
    let Some(entrance) = barrier.enter(WAIT).await? else { return session.close().await };
    println!("worker {number} begins, in round {}", entrance.round());
    client.locks().latch("reported").count_down(1).await?;
    if entrance.leave(WAIT).await? {
        println!("worker {number} knows that all have finished");
    }
    session.close().await
}
