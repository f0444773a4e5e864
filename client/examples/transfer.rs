//! Two accounts that are changed together, under the locks of both: all of them, or none.
//!
//! Run `trefoil dev` in another terminal, then start this.

use std::time::Duration;

use trefoil_client::{Client, Error, LockMode};

#[tokio::main]
#[allow(clippy::print_stdout, reason = "an example speaks to a person")]
async fn main() -> Result<(), Error> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:7001".to_owned());
    let client = Client::connect([endpoint]).await?;
    let session = client.session(Duration::from_secs(5)).owner("transfer").await?;

    // Whoever names the two in another order does not wait for this one while this one waits for it.
    let locks = session.locks(["account-1", "account-2"]).and("rates", LockMode::Shared);
    let Some(guards) = locks.wait(Duration::from_secs(5)).acquire().await? else {
        println!("others hold one of them");
        return Ok(());
    };
    for guard in guards.iter() {
        println!("{} is held with token {}", guard.name(), guard.token());
    }
    guards.release().await?;
    session.close().await
}
