//! Puts a value with a life of a minute, reads it back and removes it.
//!
//! Run `trefoil dev` in another terminal, then `cargo run -p trefoil-client --example cache -- http://127.0.0.1:7001`.

use std::time::Duration;

use trefoil_client::{Client, Error};

#[tokio::main]
#[allow(clippy::print_stdout, reason = "an example speaks to a person")]
async fn main() -> Result<(), Error> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:7001".to_owned());
    let cache = Client::connect([endpoint]).await?.cache();

    let stored = cache.put("greeting", "hello").ttl(Duration::from_secs(60)).await?;
    println!("stored version {} ({})", stored.version, stored.state.as_str_name());

    if let Some(entry) = cache.get("greeting").await? {
        println!("read {:?}, {:?} left", entry.value.as_text(), entry.ttl);
    }

    println!("deleted: {}", cache.delete("greeting").await?);
    Ok(())
}
