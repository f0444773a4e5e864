//! `trefoil queue`: create, enqueue, dequeue, ack.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;
use trefoil_client::{Delivery, Message, Queue};

use crate::args::{ClientArgs, FenceArgs, duration};
use crate::cache::{given, shown};
use crate::client::connect;
use crate::exit::{Failure, NOTHING};
use crate::output::{self, Format, Report};

/// What to do with a queue.
#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// Create a queue; creating it again with as many partitions changes nothing.
    Create {
        /// The queue.
        queue: String,
        /// Partitions, 1 to 1,024; 1 gives a total order. 0 takes the cluster's default.
        #[arg(long, env = "TREFOIL_QUEUE_PARTITIONS", value_name = "NUMBER", default_value_t = 0)]
        partitions: u32,
    },
    /// Store messages.
    Enqueue(EnqueueArgs),
    /// Take messages under a lease; exits with 2 when nothing came.
    Dequeue(DequeueArgs),
    /// Settle deliveries: their messages are gone.
    Ack {
        /// The queue.
        queue: String,
        /// Ids of leases, as dequeue wrote them.
        #[arg(required = true)]
        lease_ids: Vec<String>,
        #[command(flatten)]
        fence: FenceArgs,
    },
}

/// What to store.
#[derive(Debug, Args)]
pub(crate) struct EnqueueArgs {
    /// The queue; it is made with the first message where the cluster allows that.
    queue: String,
    /// Values as text, one message each; - reads one value from standard input.
    #[arg(required = true)]
    values: Vec<String>,
    /// Key of the messages: messages of one key stay in order.
    #[arg(long, env = "TREFOIL_QUEUE_KEY", value_name = "KEY", default_value = "")]
    key: String,
    /// name=value to go along; may be repeated.
    #[arg(long, env = "TREFOIL_QUEUE_HEADERS", value_name = "NAME=VALUE", value_delimiter = ',', value_parser = header)]
    header: Vec<(String, String)>,
    #[command(flatten)]
    fence: FenceArgs,
}

/// What to take.
#[derive(Debug, Args)]
pub(crate) struct DequeueArgs {
    /// The queue.
    queue: String,
    /// Messages at most, 1 to 1,000.
    #[arg(long, env = "TREFOIL_QUEUE_MAX", value_name = "NUMBER", default_value_t = 1)]
    max: u32,
    /// How long to wait for a first message.
    #[arg(long, env = "TREFOIL_QUEUE_WAIT", value_name = "TIME", default_value = "0s", value_parser = duration)]
    wait: Duration,
    /// How long the messages are held: acknowledge them within it.
    #[arg(long, env = "TREFOIL_QUEUE_LEASE", value_name = "TIME", default_value = "30s", value_parser = duration)]
    lease: Duration,
    /// Acknowledge the messages at once.
    #[arg(long, env = "TREFOIL_QUEUE_ACK")]
    ack: bool,
    #[command(flatten)]
    fence: FenceArgs,
}

#[derive(Serialize)]
struct Created {
    queue: String,
    created: bool,
}

#[derive(Serialize)]
struct Enqueued {
    message_ids: Vec<String>,
}

#[derive(Serialize)]
struct Dequeued {
    deliveries: Vec<Delivered>,
}

#[derive(Serialize)]
struct Delivered {
    message_id: String,
    lease_id: String,
    key: String,
    value: String,
    headers: BTreeMap<String, String>,
    delivery_count: u32,
    enqueued_at_ms: u64,
    acknowledged: bool,
}

#[derive(Serialize)]
struct Acknowledged {
    acknowledged: usize,
}

pub(crate) async fn run(
    command: QueueCommand,
    args: &ClientArgs,
    format: Format,
) -> Result<ExitCode, Failure> {
    let client = connect(args).await?;
    match command {
        QueueCommand::Create { queue, partitions } => {
            let created = client.queue(queue.as_str()).create(partitions).await?;
            output::print(format, &Created { queue, created })?;
        }
        QueueCommand::Enqueue(enqueue) => {
            let messages = enqueue.messages()?;
            let message_ids =
                enqueue.fence.queue(client.queue(enqueue.queue)).enqueue(messages).await?;
            output::print(format, &Enqueued { message_ids })?;
        }
        QueueCommand::Dequeue(dequeue) => {
            let queue = dequeue.fence.queue(client.queue(dequeue.queue.as_str()));
            return take(&queue, &dequeue, format).await;
        }
        QueueCommand::Ack { queue, lease_ids, fence } => {
            let queue = fence.queue(client.queue(queue));
            for lease_id in &lease_ids {
                queue.ack(lease_id).await?;
            }
            output::print(format, &Acknowledged { acknowledged: lease_ids.len() })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn take(queue: &Queue, args: &DequeueArgs, format: Format) -> Result<ExitCode, Failure> {
    let deliveries = queue.dequeue().max(args.max).wait(args.wait).lease(args.lease).await?;
    let mut report = Dequeued { deliveries: Vec::new() };
    for delivery in &deliveries {
        if args.ack {
            delivery.ack().await?;
        }
        report.deliveries.push(Delivered::new(delivery, args.ack));
    }
    output::print(format, &report)?;
    Ok(if deliveries.is_empty() { ExitCode::from(NOTHING) } else { ExitCode::SUCCESS })
}

impl EnqueueArgs {
    fn messages(&self) -> Result<Vec<Message>, Failure> {
        let message = |value: &String| {
            let message = Message::new(given(value.clone())?).key(self.key.as_str());
            let headers = self.header.iter();
            Ok(headers.fold(message, |message, (name, value)| {
                message.header(name.as_str(), value.as_str())
            }))
        };
        self.values.iter().map(message).collect()
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, value) = pair.ok_or_else(|| format!("{text:?} must be name=value"))?;
    Ok((name.to_owned(), value.to_owned()))
}

impl Delivered {
    fn new(delivery: &Delivery, acknowledged: bool) -> Self {
        Self {
            message_id: delivery.message_id().to_owned(),
            lease_id: delivery.lease_id().to_owned(),
            key: delivery.key().to_owned(),
            value: shown(delivery.value()),
            headers: delivery.headers().clone(),
            delivery_count: delivery.delivery_count(),
            enqueued_at_ms: delivery.enqueued_at_ms(),
            acknowledged,
        }
    }
}

impl Report for Created {
    fn text(&self) -> String {
        let what = if self.created { "created" } else { "was there" };
        format!("{} {what}", self.queue)
    }
}

impl Report for Enqueued {
    fn text(&self) -> String {
        self.message_ids.join("\n")
    }
}

impl Report for Dequeued {
    fn text(&self) -> String {
        if self.deliveries.is_empty() {
            return "nothing came".to_owned();
        }
        let row = |delivery: &Delivered| {
            vec![
                delivery.message_id.clone(),
                delivery.lease_id.clone(),
                delivery.delivery_count.to_string(),
                delivery.key.clone(),
                delivery.value.clone(),
            ]
        };
        output::table(
            &["MESSAGE", "LEASE", "DELIVERY", "KEY", "VALUE"],
            &[2],
            self.deliveries.iter().map(row),
        )
    }
}

impl Report for Acknowledged {
    fn text(&self) -> String {
        format!("{} acknowledged", self.acknowledged)
    }
}
