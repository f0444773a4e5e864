//! `trefoil queue`: create, enqueue, dequeue, ack.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use trefoil_client::{Delivery, Message, Queue};

use crate::args::{ClientArgs, FenceArgs, duration};
use crate::client::connect;
use crate::exit::{CommandFailure, NOTHING};
use crate::output::{self, CommandOutput, Format};
use crate::value::{ShownValue, given};

/// Acknowledgements under way at a time: where nobody answers, they wait as long as one.
const ACKS_MAX: usize = 256;

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
    /// Settle deliveries: their messages are gone. Each has a result; exits with 1 when one could not be settled.
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
    /// Acknowledge the messages once they are written; what cannot be written comes back after its lease.
    #[arg(long, env = "TREFOIL_QUEUE_ACK")]
    ack: bool,
    /// Write the bytes of the value of one message alone.
    #[arg(long, env = "TREFOIL_QUEUE_RAW")]
    raw: bool,
    #[command(flatten)]
    fence: FenceArgs,
}

#[derive(Serialize)]
struct QueueCreateOutput {
    queue: String,
    created: bool,
}

#[derive(Serialize)]
struct QueueEnqueueOutput {
    message_ids: Vec<String>,
}

#[derive(Serialize)]
struct QueueDequeueOutput {
    deliveries: Vec<DeliveryRow>,
}

#[derive(Serialize)]
struct DeliveryRow {
    message_id: String,
    lease_id: String,
    key: String,
    value: ShownValue,
    headers: BTreeMap<String, String>,
    delivery_count: u32,
    enqueued_at_ms: u64,
    enqueued_at: String,
}

#[derive(Serialize)]
struct QueueAckOutput {
    results: Vec<SettledLeaseRow>,
}

#[derive(Serialize)]
struct SettledLeaseRow {
    lease_id: String,
    acknowledged: bool,
    /// Why not.
    error: Option<String>,
}

pub(crate) async fn run(
    command: QueueCommand,
    args: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    let client = connect(args).await?;
    match command {
        QueueCommand::Create { queue, partitions } => {
            let created = client.queue(queue.as_str()).create(partitions).await?;
            output::print(format, &QueueCreateOutput { queue, created })?;
        }
        QueueCommand::Enqueue(enqueue) => {
            let messages = enqueue.messages()?;
            let message_ids =
                enqueue.fence.queue(client.queue(enqueue.queue)).enqueue(messages).await?;
            output::print(format, &QueueEnqueueOutput { message_ids })?;
        }
        QueueCommand::Dequeue(dequeue) => {
            let queue = dequeue.fence.queue(client.queue(dequeue.queue.as_str()));
            return take(&queue, &dequeue, format).await;
        }
        QueueCommand::Ack { queue, lease_ids, fence } => {
            let (results, failed) = settle(&fence.queue(client.queue(queue)), &lease_ids).await;
            output::print(format, &QueueAckOutput { results })?;
            return failed.map_or(Ok(ExitCode::SUCCESS), Err);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Settles each lease, whatever becomes of the others; the failure is of the first that was not settled.
async fn settle(
    queue: &Queue,
    lease_ids: &[String],
) -> (Vec<SettledLeaseRow>, Option<CommandFailure>) {
    let ack = |lease_id: String| {
        let queue = queue.clone();
        tokio::spawn(async move { (queue.ack(lease_id.as_str()).await, lease_id) })
    };
    let (mut results, mut failed) = (Vec::new(), None);
    for some in lease_ids.chunks(ACKS_MAX) {
        for ack in some.iter().cloned().map(ack).collect::<Vec<_>>() {
            let (end, lease_id) = ack.await.expect("no call panics");
            let error = end.as_ref().err().map(ToString::to_string);
            results.push(SettledLeaseRow { lease_id, acknowledged: error.is_none(), error });
            failed = failed.or_else(|| end.err().map(CommandFailure::from));
        }
    }
    (results, failed)
}

async fn take(
    queue: &Queue,
    args: &DequeueArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    if args.raw && args.max != 1 {
        return Err(CommandFailure::usage("--raw writes one value: leave --max at 1"));
    }
    let deliveries = queue.dequeue().max(args.max).wait(args.wait).lease(args.lease).await?;
    let is_read = match deliveries.first() {
        Some(delivery) if args.raw => output::raw(delivery.value().as_bytes())?,
        None if args.raw => true,
        _ => output::print(format, &QueueDequeueOutput::from(&deliveries[..]))?,
    };
    if args.ack {
        if !is_read {
            let what = "nobody read the messages, so they were not acknowledged";
            return Err(
                CommandFailure::new(what).next("They come back when their leases are over.")
            );
        }
        let lease_ids = deliveries.iter().map(|delivery| delivery.lease_id().to_owned());
        let (_, failed) = settle(queue, &lease_ids.collect::<Vec<_>>()).await;
        failed.map_or(Ok(()), Err)?;
    }
    Ok(if deliveries.is_empty() { ExitCode::from(NOTHING) } else { ExitCode::SUCCESS })
}

impl EnqueueArgs {
    fn messages(&self) -> Result<Vec<Message>, CommandFailure> {
        if self.values.iter().filter(|value| *value == "-").count() > 1 {
            return Err(CommandFailure::usage("standard input is one value: give - once"));
        }
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

/// A moment as RFC 3339 has it, in UTC.
fn date(moment: SystemTime) -> String {
    let nanos = moment.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let date = i128::try_from(nanos).ok().map(OffsetDateTime::from_unix_timestamp_nanos);
    date.and_then(|date| date.ok()?.format(&Rfc3339).ok()).unwrap_or_default()
}

impl From<&[Delivery]> for QueueDequeueOutput {
    fn from(deliveries: &[Delivery]) -> Self {
        let shown = |delivery: &Delivery| DeliveryRow {
            message_id: delivery.message_id().to_owned(),
            lease_id: delivery.lease_id().to_owned(),
            key: delivery.key().to_owned(),
            value: delivery.value().into(),
            headers: delivery.headers().clone(),
            delivery_count: delivery.delivery_count(),
            enqueued_at_ms: delivery.enqueued_at_ms(),
            enqueued_at: date(delivery.enqueued_at()),
        };
        Self { deliveries: deliveries.iter().map(shown).collect() }
    }
}

impl CommandOutput for QueueCreateOutput {
    fn text(&self) -> String {
        let what = if self.created { "created" } else { "was there" };
        format!("{} {what}", self.queue)
    }
}

impl CommandOutput for QueueEnqueueOutput {
    fn text(&self) -> String {
        self.message_ids.join("\n")
    }
}

impl CommandOutput for QueueDequeueOutput {
    fn text(&self) -> String {
        if self.deliveries.is_empty() {
            return "nothing came".to_owned();
        }
        let row = |delivery: &DeliveryRow| {
            vec![
                delivery.message_id.clone(),
                delivery.lease_id.clone(),
                delivery.delivery_count.to_string(),
                delivery.enqueued_at.clone(),
                delivery.key.clone(),
                delivery.value.to_string(),
            ]
        };
        output::table(
            &["MESSAGE", "LEASE", "DELIVERY", "ENQUEUED AT", "KEY", "VALUE"],
            &[2],
            self.deliveries.iter().map(row),
        )
    }
}

impl CommandOutput for QueueAckOutput {
    fn text(&self) -> String {
        let row = |settled: &SettledLeaseRow| {
            let result = settled.error.clone().unwrap_or_else(|| "acknowledged".to_owned());
            vec![settled.lease_id.clone(), result]
        };
        output::table(&["LEASE", "RESULT"], &[], self.results.iter().map(row))
    }
}
