//! A look-up with a cache before its source: the cache is asked first, and told what the source said.
//!
//! Run `trefoil dev` in another terminal, then start this twice within a minute.

use std::time::Duration;

use trefoil_client::{Cache, Client, Error};

/// How old an answer may be.
const TTL: Duration = Duration::from_secs(60);

#[tokio::main]
#[allow(clippy::print_stdout, reason = "an example speaks to a person")]
async fn main() -> Result<(), Error> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:7001".to_owned());
    let cache = Client::connect([endpoint]).await?.cache();
    println!("{}", look_up(&cache, "alice").await);
    Ok(())
}

/// The cache is an aid: without it the source answers.
#[allow(clippy::print_stderr, reason = "an example speaks to a person")]
async fn look_up(cache: &Cache, user: &str) -> String {
    let key = format!("user/{user}");
    match cache.get(&key).await {
        Ok(Some(entry)) => {
            if let Some(text) = entry.value.as_text() {
                return format!("{text} (from the cache)");
            }
        }
        Ok(None) => {}
        Err(error) => eprintln!("without the cache: {error}"),
    }
    let found = load(user).await;
    if let Err(error) = cache.put(&key, &found).ttl(TTL).await {
        eprintln!("not cached: {error}");
    }
    format!("{found} (loaded)")
}

async fn load(user: &str) -> String {
    tokio::time::sleep(Duration::from_millis(100)).await;
    format!("{user}@example.org")
}
