//! Counts in the cache under a lock: no increment is lost, however late a holder is.
//!
//! Run `trefoil dev` in another terminal, then start this several times at once; stop one of them with Ctrl-Z for more than
//! two seconds and let it go on with `fg`: it is refused, takes the lock again, and the count is right.

use std::time::Duration;

use trefoil_client::{Client, Error, Guard, Reason, Session};

const LOCK: &str = "counter";
const KEY: &str = "counter";
const TTL: Duration = Duration::from_secs(2);

#[tokio::main]
#[allow(clippy::print_stdout, reason = "an example speaks to a person")]
async fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let endpoint = arguments.next().unwrap_or_else(|| "http://127.0.0.1:7001".to_owned());
    let times = arguments.next().and_then(|times| times.parse().ok()).unwrap_or(100_u32);
    let client = Client::connect([endpoint]).await?;
    let mut session = client.session(TTL).await?;
    let (mut done, mut late) = (0, 0);
    while done < times {
        match increment(&client, &session).await {
            Ok(count) => {
                done += 1;
                println!("{count}");
            }
            // The lock is another's by now, and nothing was written.
            Err(Error::Refused { reason: Reason::Fenced, .. }) => late += 1,
            Err(Error::Refused { reason: Reason::SessionExpired, .. }) => {
                late += 1;
                session = client.session(TTL).await?;
            }
            Err(error) => return Err(error),
        }
    }
    println!("{done} increments; {late} times the lock was lost");
    session.close().await
}

/// One more, under a grant of its own.
async fn increment(client: &Client, session: &Session) -> Result<u64, Error> {
    let guard = loop {
        let lock = session.lock(LOCK).wait(Duration::from_secs(60));
        if let Some(guard) = lock.acquire().await? {
            break guard;
        }
    };
    let count = add_one(client, &guard).await?;
    // What was written under the fence stands, also where the lock was lost since.
    guard.release().await?;
    Ok(count)
}

/// Between the read and the write any time may pass. Once a newer holder has read, the write is refused.
async fn add_one(client: &Client, guard: &Guard) -> Result<u64, Error> {
    let cache = client.cache().with_fence(guard);
    let before = cache.get(KEY).await?;
    let count = before.and_then(|entry| entry.value.as_text()?.parse::<u64>().ok()).unwrap_or(0);
    cache.put(KEY, (count + 1).to_string()).await?;
    Ok(count + 1)
}
