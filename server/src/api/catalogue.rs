//! Which queues there are: asked of the meta shard once, then remembered.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use trefoil_core::limits::{CATALOGUES_MAX, PARTITIONS_DEFAULT};
use trefoil_core::machine::QUEUE_CREATION;
use trefoil_core::slot::SYSTEM_SLOT;
use trefoil_core::turns;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::command::Operation as Command;
use trefoil_proto::internal::v1::query::Query;
use trefoil_proto::internal::v1::{Catalogue, FindQueue, Refusal, answer};
use trefoil_proto::queue::v1::{CreateQueueRequest, CreateQueueResponse};
use trefoil_proto::reason::RefusalEffect;

use super::{Api, CallContext, Context, Shards, expect_answer, other_answer, refusal};

/// Pauses between two looks for a queue that is not there: another node may have created it.
const LOOK_MIN: Duration = Duration::from_millis(50);
const LOOK_MAX: Duration = Duration::from_millis(500);

/// What the meta shard said of queues. A queue's id never changes; a shard that knows a newer version says so.
#[derive(Debug, Default)]
pub(super) struct Catalogues {
    known: Mutex<BTreeMap<String, KnownQueue>>,
    /// Wakes those who wait for a queue that is not known yet.
    found: Notify,
}

/// A queue as this node knows it.
#[derive(Clone, Debug)]
pub(super) struct KnownQueue {
    pub(super) catalogue: Catalogue,
    pub(super) turns: Arc<Turns>,
}

/// Whose turn it is among the partitions of one queue at this node: messages without key and consumers count for themselves, so
/// that no mix of calls keeps either from some of the partitions.
#[derive(Debug)]
pub(super) struct Turns {
    seed: u64,
    enqueues: AtomicU64,
    dequeues: AtomicU64,
}

impl Turns {
    fn new() -> Self {
        Self { seed: rand::random(), enqueues: AtomicU64::new(0), dequeues: AtomicU64::new(0) }
    }

    /// The partition of the next messages without key.
    pub(super) fn enqueue(&self, partitions: u32) -> u32 {
        turns::partition(self.seed, self.enqueues.fetch_add(1, Ordering::Relaxed), partitions)
    }

    /// The partition with which the next consumer begins.
    pub(super) fn dequeue(&self, partitions: u32) -> u32 {
        turns::partition(!self.seed, self.dequeues.fetch_add(1, Ordering::Relaxed), partitions)
    }
}

impl Catalogues {
    fn find(&self, name: &str) -> Option<KnownQueue> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Waits until a queue is known here, until then at most.
    async fn appears(&self, name: &str, until: Instant) {
        loop {
            // From before the look, so that nothing is missed between the two.
            let found = self.found.notified();
            if self.find(name).is_some() || timeout_at(until, found).await.is_err() {
                return;
            }
        }
    }

    fn remember(&self, name: String, catalogue: Catalogue) -> KnownQueue {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= CATALOGUES_MAX {
            // Any of them: it is asked for again.
            known.pop_first();
        }
        let queue = known.entry(name).or_insert_with(|| {
            self.found.notify_waiters();
            KnownQueue { catalogue, turns: Arc::new(Turns::new()) }
        });
        queue.catalogue = catalogue;
        queue.clone()
    }

    fn forget(&self, name: &str) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

/// Both names in one: the length keeps them apart.
fn full_name(namespace: &str, queue: &str) -> String {
    format!("{}:{namespace}{queue}", namespace.len())
}

impl<S: Shards> Api<S> {
    pub(super) async fn create_queue(
        &self,
        context: &Context,
        mut request: CreateQueueRequest,
    ) -> Result<CreateQueueResponse, Refusal> {
        let id = request.request_id.take();
        let command = Command::CreateQueue(request);
        expect_answer!(self.fenced(SYSTEM_SLOT, id, command, context).await?, CreateQueue)
    }

    /// What the meta shard knows of a queue.
    pub(super) async fn find_queue(
        &self,
        namespace: &str,
        queue: &str,
        ask: &CallContext,
    ) -> Result<KnownQueue, Refusal> {
        let name = full_name(namespace, queue);
        if let Some(known) = self.catalogues.find(&name) {
            return Ok(known);
        }
        let query = FindQueue { namespace: namespace.to_owned(), queue: queue.to_owned() };
        let decided = self.query(SYSTEM_SLOT, Query::FindQueue(query), ask).await?;
        let answer::Answer::Catalogue(catalogue) = decided.answer else {
            return Err(other_answer());
        };
        Ok(self.catalogues.remember(name, catalogue))
    }

    /// The same; a queue that is not there is waited for until then. None where nobody used it meanwhile, and its first use
    /// creates it.
    pub(super) async fn await_queue(
        &self,
        namespace: &str,
        queue: &str,
        until: Option<Instant>,
        ask: &CallContext,
    ) -> Result<Option<KnownQueue>, Refusal> {
        let (name, mut pause) = (full_name(namespace, queue), LOOK_MIN);
        loop {
            let (unknown, until) = match self.find_queue(namespace, queue, ask).await {
                Err(refusal) if refusal.reason() == Reason::UnknownQueue => {
                    (refusal.clone(), until.ok_or(refusal)?)
                }
                known => return known.map(Some),
            };
            let now = Instant::now();
            if now >= until {
                return if self.may_create(&unknown) { Ok(None) } else { Err(unknown) };
            }
            let look = now + pause.mul_f64(rand::random_range(0.5..1.0));
            self.catalogues.appears(&name, look.min(until)).await;
            pause = (2 * pause).min(LOOK_MAX);
        }
    }

    /// What the meta shard knows of a queue, which is created where that is allowed and it is missing.
    pub(super) async fn find_or_create_queue(
        &self,
        namespace: &str,
        queue: &str,
        context: &Context,
    ) -> Result<KnownQueue, Refusal> {
        match self.find_queue(namespace, queue, &context.ask).await {
            Err(refusal)
                if refusal.reason() == Reason::UnknownQueue && self.may_create(&refusal) => {}
            found => return found,
        }
        let request = CreateQueueRequest {
            namespace: namespace.to_owned(),
            queue: queue.to_owned(),
            partitions: PARTITIONS_DEFAULT,
            request_id: None,
            fence: None,
        };
        match self.fenced(SYSTEM_SLOT, None, Command::CreateQueue(request), context).await {
            // Nothing was stored yet, whether or not there is a queue.
            Err(refusal) if refusal.reason().row().effect == RefusalEffect::Unknown => {
                Err(self::refusal(Reason::NoQuorum, "whether the queue was created was not seen"))
            }
            // Somebody else was faster.
            Err(refusal) if refusal.reason() != Reason::QueueExists => Err(refusal),
            _ => self.find_queue(namespace, queue, &context.ask).await,
        }
    }

    /// Whether the first use of an unknown queue creates it: its namespace decides, or else this node.
    fn may_create(&self, unknown: &Refusal) -> bool {
        match unknown.metadata.get(QUEUE_CREATION).map(String::as_str) {
            Some("allowed") => true,
            Some("refused") => false,
            _ => self.settings.auto_create_queues,
        }
    }

    /// Notes what a refusal says about the catalogue, and hands it on.
    pub(super) fn heed(&self, namespace: &str, queue: &str, refusal: Refusal) -> Refusal {
        if refusal.reason() == Reason::StaleMap {
            self.catalogues.forget(&full_name(namespace, queue));
        }
        refusal
    }
}
