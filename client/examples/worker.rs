//! A queue worker: takes messages under a lease, works on them, and acknowledges what is done.
//!
//! Run `trefoil dev` in another terminal, then start this; `trefoil queue enqueue pictures one two` gives it work. Ctrl-C ends
//! it after the messages that it has.

use std::pin::pin;
use std::time::Duration;

use trefoil_client::{Client, Delivery, Error};

/// Longer than the work takes: a message whose lease runs out is delivered again.
const LEASE: Duration = Duration::from_secs(30);
const WAIT: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_secs(1);

#[tokio::main]
#[allow(clippy::print_stderr, reason = "an example speaks to a person")]
async fn main() -> Result<(), Error> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:7001".to_owned());
    let queue = Client::connect([endpoint]).await?.queue("pictures");
    let mut stop = pin!(tokio::signal::ctrl_c());
    loop {
        // The queue may come later than its worker: the wait is for it, too.
        let taken = tokio::select! {
            taken = queue.dequeue().max(10).wait(WAIT).lease(LEASE) => taken,
            _ = &mut stop => return Ok(()),
        };
        match taken {
            Ok(deliveries) => work_on(deliveries).await,
            // Whatever was leased without being seen comes again when its lease is over.
            Err(error) if error.is_retryable() || !error.has_no_side_effects() => {
                eprintln!("once more in a second: {error}");
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

#[allow(clippy::print_stdout, reason = "an example speaks to a person")]
async fn work_on(deliveries: Vec<Delivery>) {
    for delivery in deliveries {
        let id = delivery.message_id().to_owned();
        resize(delivery.value().as_text().unwrap_or_default()).await;
        match delivery.ack().await {
            Ok(()) => println!("done {id}"),
            // Delivery is at least once: the same work may be done twice.
            Err(error) => println!("{id} may come again: {error}"),
        }
    }
}

async fn resize(_picture: &str) {
    tokio::time::sleep(Duration::from_millis(50)).await;
}
