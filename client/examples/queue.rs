//! Enqueues some messages, then takes and acknowledges whatever comes until nothing does.
//!
//! Run `trefoil dev` in another terminal, then `cargo run -p trefoil-client --example queue -- http://127.0.0.1:7001`.

use std::time::Duration;

use trefoil_client::{Client, Error, Message};

#[tokio::main]
#[allow(clippy::print_stdout, reason = "an example speaks to a person")]
async fn main() -> Result<(), Error> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:7001".to_owned());
    let queue = Client::connect([endpoint]).await?.queue("pictures");

    let messages =
        (1..=5).map(|n| Message::new(format!("resize {n}")).key(format!("user-{}", n % 2)));
    println!("stored {:?}", queue.enqueue(messages).await?);

    loop {
        let deliveries = queue
            .dequeue()
            .max(10)
            .wait(Duration::from_secs(2))
            .lease(Duration::from_secs(30))
            .await?;
        if deliveries.is_empty() {
            return Ok(());
        }
        for delivery in deliveries {
            println!("{} {:?}", delivery.message_id(), delivery.value().as_text());
            delivery.ack().await?;
        }
    }
}
