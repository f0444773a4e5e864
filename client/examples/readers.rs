//! Readers that share a lock, and one of them who updates what it protects.
//!
//! Run `trefoil dev` in another terminal, then start this.

use std::time::Duration;

use trefoil_client::{Client, Error, LockMode};

#[tokio::main]
#[allow(clippy::print_stdout, reason = "an example speaks to a person")]
async fn main() -> Result<(), Error> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:7001".to_owned());
    let client = Client::connect([endpoint]).await?;
    let wait = Duration::from_secs(5);

    let reader = client.session(Duration::from_secs(5)).owner("reader").await?;
    let updater = client.session(Duration::from_secs(5)).owner("updater").await?;
    let shared = reader.lock("page").shared().wait(wait).acquire().await?;
    let update = updater.lock("page").update().wait(wait).acquire().await?;
    let (Some(shared), Some(mut update)) = (shared, update) else {
        println!("others hold it");
        return Ok(());
    };
    for holder in client.locks().describe("page").await?.holders {
        println!("{} holds it in mode {:?}", holder.owner, holder.mode());
    }

    // Both read. To write, the updater waits for the readers, and no other can come in between.
    shared.release().await?;
    if update.convert(LockMode::Exclusive, wait).await? {
        println!("alone now, with token {}", update.token());
    }
    update.release().await?;
    reader.close().await?;
    updater.close().await
}
