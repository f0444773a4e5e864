//! The client goes to the leaders by itself: no node of a fresh cluster has to hand its calls on.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use trefoil_client::{Client, Delivery, Error, Message};

use crate::support::{Cluster, eventually};

const QUEUE: &str = "routed";
const CALLS: usize = 20;

#[tokio::test]
async fn no_call_of_the_client_is_sent_on() {
    let cluster = Cluster::start().await;
    let some = cluster.client().await;
    some.cache().put("key-0", "v").await.unwrap();
    for endpoint in cluster.endpoints() {
        // A node asks the meta shard once about a queue.
        let queue = Client::connect([endpoint]).await.unwrap().queue(QUEUE);
        queue.enqueue((0..8).map(|n| Message::new("v").key(n.to_string()))).await.unwrap();
        drop(queue.dequeue().max(100).await.unwrap());
    }
    let mut counts = Vec::new();
    // A leader may move once more after the start.
    eventually("no call is sent on", async || {
        let client = cluster.client().await;
        let deliveries = prepare(&client).await.unwrap();
        let before = forwarded(&cluster).await;
        ask(&client, &deliveries).await.unwrap();
        counts.push(forwarded(&cluster).await - before);
        counts.last() == Some(&0)
    })
    .await;
    assert!(forwarded(&cluster).await > 0, "what came to one node alone was counted");
}

/// Stores messages, from which the client learns of the queue, and leases some.
async fn prepare(client: &Client) -> Result<Vec<Delivery>, Error> {
    let queue = client.queue(QUEUE);
    queue.enqueue((0..CALLS).map(|n| Message::new("v").key(n.to_string()))).await?;
    let mut deliveries = Vec::new();
    while deliveries.len() < CALLS {
        deliveries.extend(queue.dequeue().max(100).wait(Duration::from_secs(5)).await?);
    }
    Ok(deliveries)
}

async fn ask(client: &Client, deliveries: &[Delivery]) -> Result<(), Error> {
    let (cache, queue) = (client.cache(), client.queue(QUEUE));
    for (n, delivery) in deliveries.iter().enumerate() {
        let key = format!("key-{n}");
        cache.put(&key, "v").await?;
        cache.get(&key).await?;
        queue.enqueue([Message::new("keyless")]).await?;
        queue.enqueue([Message::new("keyed").key(key)]).await?;
        delivery.ack().await?;
    }
    queue.create(8).await?;
    let session = client.session(Duration::from_secs(10)).await?;
    if let Some(guard) = session.lock("printer").wait(Duration::from_secs(1)).acquire().await? {
        guard.release().await?;
    }
    session.close().await
}

/// Calls that the nodes have sent on to leaders.
async fn forwarded(cluster: &Cluster) -> u64 {
    let mut sum = 0;
    for endpoint in cluster.endpoints() {
        let address = endpoint.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request =
            format!("GET /metrics HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).await.unwrap();
        let counts = page.lines().filter(|line| line.starts_with("trefoil_calls_forwarded_total{"));
        sum += counts
            .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap())
            .sum::<u64>();
    }
    sum
}
