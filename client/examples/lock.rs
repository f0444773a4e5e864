//! Holds a lock while some work is done, and stops the work when the lock is lost.
//!
//! Run `trefoil dev` in another terminal, then start this twice: the second waits for the first.

use std::time::Duration;

use trefoil_client::{Client, Error};

#[tokio::main]
#[allow(clippy::print_stdout, reason = "an example speaks to a person")]
async fn main() -> Result<(), Error> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:7001".to_owned());
    let client = Client::connect([endpoint]).await?;

    let lock = client.lock("printer").ttl(Duration::from_secs(5)).owner("example");
    let Some(guard) = lock.wait(Duration::from_secs(30)).acquire().await? else {
        println!("another holds it");
        return Ok(());
    };

    // Pass the token to whatever the lock protects: it refuses a holder that was late.
    println!("held with token {}, for at least {:?}", guard.token(), guard.remaining());
    tokio::select! {
        () = work() => guard.release().await?,
        () = guard.lost() => println!("the lock is lost"),
    }
    Ok(())
}

async fn work() {
    tokio::time::sleep(Duration::from_secs(3)).await;
}
