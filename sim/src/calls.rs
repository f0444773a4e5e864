//! From what a client wants to what a shard is told, and back.

pub use trefoil_core::call::ShardRequest as Body;
use trefoil_core::check::DEFAULT_NAMESPACE;
use trefoil_core::lease::LeaseId;
use trefoil_core::slot::{self, MAP_EPOCH};
use trefoil_core::{META_SHARD, ShardId};
use trefoil_proto::cache::v1 as cache;
use trefoil_proto::common::v1::{Value, value};
use trefoil_proto::internal::v1::answer::Answer as A;
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::query::Query as Q;
use trefoil_proto::internal::v1::{
    AckLease, Answer, AwaitReady, CallName, CancelAcquire, Catalogue, CheckedFence, Command,
    DequeueFrom, EnqueueTo, FindMark, FindQueue, ForceStep, OpenPartition, Query, ReleaseHeld,
    TouchFence,
};
use trefoil_proto::lock::v1::{self as lock, LockMode};
use trefoil_proto::queue::v1 as queue;

use crate::check::history::{Action, RecordedDelivery, RecordedOutcome};

/// A body and the shard that it is for.
#[derive(Clone, Debug, PartialEq)]
pub struct RoutedRequest {
    /// The shard.
    pub shard: ShardId,
    /// What it is asked.
    pub body: Body,
}

impl RoutedRequest {
    /// The same with another operation, where it is a command.
    #[must_use]
    pub fn map(mut self, to: impl FnOnce(Operation) -> Operation) -> Self {
        if let Body::Command(command) = &mut self.body {
            command.operation = command.operation.take().map(to);
        }
        self
    }

    /// The same under a fence.
    #[must_use]
    pub fn fenced(mut self, checked: CheckedFence) -> Self {
        match &mut self.body {
            Body::Command(command) => command.fence = Some(checked),
            Body::Query(query) => query.fence = Some(checked),
        }
        self
    }
}

/// A queue as clients know it.
#[derive(Clone, Debug, PartialEq)]
pub struct SimQueue {
    /// Its name.
    pub name: String,
    /// What the meta shard said of it.
    pub catalogue: Catalogue,
}

/// Builds requests for a cluster with this number of data shards.
#[derive(Clone, Copy, Debug)]
pub struct Router {
    /// Data shards.
    pub shards: u32,
}

impl Router {
    fn command(self, slot: u16, operation: Operation) -> RoutedRequest {
        let command = Command {
            slot: slot.into(),
            map_epoch: MAP_EPOCH,
            operation: Some(operation),
            ..Command::default()
        };
        RoutedRequest { shard: slot::shard(slot, self.shards), body: Body::Command(command) }
    }

    fn query(self, slot: u16, query: Q) -> RoutedRequest {
        let query = Query {
            slot: slot.into(),
            map_epoch: MAP_EPOCH,
            query: Some(query),
            ..Query::default()
        };
        RoutedRequest { shard: slot::shard(slot, self.shards), body: Body::Query(query) }
    }

    fn partition_slot(self, queue: &SimQueue, partition: u32) -> u16 {
        slot::of_partition(queue.catalogue.queue_id, partition, self.shards)
    }

    /// The partitions of a queue on each shard that has some.
    #[must_use]
    pub fn places(self, queue: &SimQueue) -> Vec<(ShardId, Vec<u32>)> {
        let mut places = std::collections::BTreeMap::<_, Vec<_>>::new();
        for partition in 0..queue.catalogue.partitions {
            let shard = slot::shard(self.partition_slot(queue, partition), self.shards);
            places.entry(shard).or_default().push(partition);
        }
        places.into_iter().collect()
    }

    /// Creates a queue.
    #[must_use]
    pub fn create_queue(self, name: &str, partitions: u32) -> RoutedRequest {
        let (namespace, queue) = (DEFAULT_NAMESPACE.to_owned(), name.to_owned());
        let request = queue::CreateQueueRequest {
            namespace,
            queue,
            partitions,
            request_id: None,
            fence: None,
        };
        let RoutedRequest { body, .. } =
            self.command(slot::SYSTEM_SLOT, Operation::CreateQueue(request));
        RoutedRequest { shard: META_SHARD, body }
    }

    /// Finds a queue.
    #[must_use]
    pub fn find_queue(self, name: &str) -> RoutedRequest {
        let find = FindQueue { namespace: DEFAULT_NAMESPACE.to_owned(), queue: name.to_owned() };
        RoutedRequest { shard: META_SHARD, ..self.query(slot::SYSTEM_SLOT, Q::FindQueue(find)) }
    }

    /// Opens a partition.
    #[must_use]
    pub fn open_partition(self, queue: &SimQueue, partition: u32) -> RoutedRequest {
        let Catalogue { queue_id, version: catalogue_version, .. } = queue.catalogue;
        let open = OpenPartition { queue_id, partition, catalogue_version };
        self.command(self.partition_slot(queue, partition), Operation::OpenPartition(open))
    }

    /// Waits until one of the partitions has something.
    #[must_use]
    pub fn await_ready(self, queue: &SimQueue, partitions: &[u32]) -> RoutedRequest {
        let await_ready = AwaitReady {
            queue_id: queue.catalogue.queue_id,
            partitions: partitions.to_vec(),
            wait: true,
        };
        self.query(self.partition_slot(queue, partitions[0]), Q::AwaitReady(await_ready))
    }

    /// Stores a message.
    #[must_use]
    pub fn enqueue(self, queue: &SimQueue, key: &str, text: &str) -> RoutedRequest {
        let Catalogue { queue_id, partitions, version: catalogue_version, .. } = queue.catalogue;
        let partition = slot::partition(key, partitions);
        let message = queue::Message {
            key: key.to_owned(),
            value: Some(of_text(text)),
            ..queue::Message::default()
        };
        let enqueue = EnqueueTo { queue_id, partition, catalogue_version, messages: vec![message] };
        self.command(self.partition_slot(queue, partition), Operation::EnqueueTo(enqueue))
    }

    /// Leases messages of partitions of one shard.
    #[must_use]
    pub fn dequeue(
        self,
        queue: &SimQueue,
        partitions: &[u32],
        max_messages: u32,
        lease_ms: u64,
    ) -> RoutedRequest {
        let Catalogue { queue_id, version: catalogue_version, .. } = queue.catalogue;
        let partitions = partitions.to_vec();
        let slot = self.partition_slot(queue, partitions[0]);
        let dequeue =
            DequeueFrom { queue_id, partitions, max_messages, lease_ms, catalogue_version };
        self.command(slot, Operation::DequeueFrom(dequeue))
    }

    /// Settles a delivery, by a lease of this queue or of another.
    ///
    /// # Panics
    /// When the lease id is not one that the state machine made.
    #[must_use]
    pub fn ack(self, queue: &SimQueue, lease_id: &str) -> RoutedRequest {
        let lease = lease_id.parse::<LeaseId>().expect("a lease id of the state machine");
        let ack = AckLease { queue_id: queue.catalogue.queue_id, ..lease.ack() };
        self.command(self.partition_slot(queue, lease.partition), Operation::AckLease(ack))
    }

    /// Tells the shard of a namespace's locks something.
    #[must_use]
    pub fn of_locks(self, namespace: &str, operation: Operation) -> RoutedRequest {
        self.command(slot::of_locks(namespace), operation)
    }

    /// Asks the shard of a namespace's locks something.
    #[must_use]
    pub fn ask_locks(self, namespace: &str, query: Q) -> RoutedRequest {
        self.query(slot::of_locks(namespace), query)
    }

    /// Asks the shard of a cache key for the mark of a lock.
    #[must_use]
    pub fn find_mark(self, key: &str, namespace: &str, lock: &str) -> RoutedRequest {
        let find = FindMark { namespace: namespace.to_owned(), lock: lock.to_owned() };
        self.query(slot::of_cache(DEFAULT_NAMESPACE, key), Q::FindMark(find))
    }

    /// Uses the shard of a cache key for nothing but to leave a mark there.
    #[must_use]
    pub fn touch_fence(self, key: &str) -> RoutedRequest {
        self.command(slot::of_cache(DEFAULT_NAMESPACE, key), Operation::TouchFence(TouchFence {}))
    }

    /// Takes back an Acquire or a Convert whose caller is gone; none for other actions.
    #[must_use]
    pub fn cancel(self, action: &Action, call: CallName) -> Option<RoutedRequest> {
        let mut cancel = CancelAcquire { call: Some(call), ..CancelAcquire::default() };
        let (namespace, session) = match action {
            Action::Acquire { namespace, session, lock, .. }
            | Action::Convert { namespace, session, lock, .. } => {
                cancel.name.clone_from(lock);
                (namespace, session)
            }
            Action::TakePermits { namespace, session, semaphore, permits, .. } => {
                cancel.name.clone_from(semaphore);
                cancel.permits = *permits;
                (namespace, session)
            }
            Action::AcquireAll { namespace, session, locks, .. } => {
                cancel.locks = wishes(locks);
                (namespace, session)
            }
            _ => return None,
        };
        (cancel.namespace, cancel.session_id) = (namespace.clone(), *session);
        Some(self.command(slot::of_locks(namespace), Operation::CancelAcquire(cancel)))
    }

    /// The request of an action on the cache or on locks.
    ///
    /// # Panics
    /// When it is an action on a queue.
    #[must_use]
    pub fn request(self, action: &Action) -> RoutedRequest {
        match action.clone() {
            Action::Put { key, value, ttl_ms } => {
                let slot = slot::of_cache(DEFAULT_NAMESPACE, &key);
                let value = Some(of_text(&value));
                let namespace = DEFAULT_NAMESPACE.to_owned();
                let put = cache::PutRequest {
                    namespace,
                    key,
                    value,
                    ttl_ms,
                    request_id: None,
                    fence: None,
                };
                self.command(slot, Operation::Put(put))
            }
            Action::Get { key } => {
                let slot = slot::of_cache(DEFAULT_NAMESPACE, &key);
                self.query(
                    slot,
                    Q::Get(cache::GetRequest {
                        namespace: DEFAULT_NAMESPACE.to_owned(),
                        key,
                        fence: None,
                    }),
                )
            }
            Action::Delete { key } => {
                let slot = slot::of_cache(DEFAULT_NAMESPACE, &key);
                let delete = cache::DeleteRequest {
                    namespace: DEFAULT_NAMESPACE.to_owned(),
                    key,
                    request_id: None,
                    fence: None,
                };
                self.command(slot, Operation::Delete(delete))
            }
            Action::ValidateToken { namespace, lock: name, token: fencing_token } => {
                let slot = slot::of_locks(&namespace);
                let validate = lock::ValidateTokenRequest { namespace, name, fencing_token };
                self.query(slot, Q::ValidateToken(validate))
            }
            Action::DescribeLock { namespace, lock: name } => {
                let slot = slot::of_locks(&namespace);
                self.query(slot, Q::DescribeLock(lock::DescribeLockRequest { namespace, name }))
            }
            action => self.session_request(action),
        }
    }

    fn session_request(self, action: Action) -> RoutedRequest {
        let (namespace, operation) = match action {
            Action::OpenSession { namespace, ttl_ms, delay_ms: lock_delay_ms } => {
                let open = lock::OpenSessionRequest {
                    namespace: namespace.clone(),
                    ttl_ms,
                    lock_delay_ms,
                    ..Default::default()
                };
                (namespace, Operation::OpenSession(open))
            }
            Action::KeepAlive { namespace, session: session_id }
            | Action::GuessSession { namespace, session: session_id } => {
                let keep = lock::KeepAliveRequest { namespace: namespace.clone(), session_id };
                (namespace, Operation::KeepAlive(keep))
            }
            Action::CloseSession { namespace, session: session_id } => {
                let close = lock::CloseSessionRequest {
                    namespace: namespace.clone(),
                    session_id,
                    request_id: None,
                };
                (namespace, Operation::CloseSession(close))
            }
            Action::ReleaseAll { namespace, session: session_id } => {
                let namespace_of = namespace.clone();
                let held = ReleaseHeld { namespace, session_id, ..ReleaseHeld::default() };
                (namespace_of, Operation::ReleaseHeld(held))
            }
            other => return self.lock_request(other),
        };
        self.command(slot::of_locks(&namespace), operation)
    }

    fn lock_request(self, action: Action) -> RoutedRequest {
        let (namespace, operation) = match action {
            Action::Acquire { namespace, session, lock: name, mode, wait_ms, delay_ms } => {
                let acquire = lock::AcquireRequest {
                    namespace: namespace.clone(),
                    session_id: session,
                    name,
                    wait_ms,
                    request_id: None,
                    mode: mode.into(),
                    lock_delay_ms: delay_ms,
                    locks: Vec::new(),
                };
                (namespace, Operation::Acquire(acquire))
            }
            Action::AcquireAll { namespace, session, locks, wait_ms, delay_ms } => {
                let acquire = lock::AcquireRequest {
                    namespace: namespace.clone(),
                    session_id: session,
                    wait_ms,
                    lock_delay_ms: delay_ms,
                    locks: wishes(&locks),
                    ..Default::default()
                };
                (namespace, Operation::Acquire(acquire))
            }
            Action::Convert { namespace, session, lock: name, token, mode, wait_ms } => {
                let convert = lock::ConvertRequest {
                    namespace: namespace.clone(),
                    session_id: session,
                    name,
                    fencing_token: token,
                    mode: mode.into(),
                    wait_ms,
                    request_id: None,
                };
                (namespace, Operation::Convert(convert))
            }
            Action::ForceRelease { namespace, lock: name, token: fencing_token } => {
                let namespace_of = namespace.clone();
                let step = ForceStep { namespace, name, fencing_token, token: 0 };
                (namespace_of, Operation::ForceStep(step))
            }
            Action::Release {
                namespace,
                session: session_id,
                lock: name,
                token: fencing_token,
            } => {
                let request_id = None;
                let release = lock::ReleaseRequest {
                    namespace: namespace.clone(),
                    session_id,
                    name,
                    fencing_token,
                    request_id,
                };
                (namespace, Operation::Release(release))
            }
            other => return self.permits_request(other),
        };
        self.command(slot::of_locks(&namespace), operation)
    }

    fn permits_request(self, action: Action) -> RoutedRequest {
        let request_id = None;
        let (namespace, operation) = match action {
            Action::SetPermits { namespace, semaphore: name, permits } => {
                let of = namespace.clone();
                let set = lock::SetPermitsRequest { namespace, name, permits, request_id };
                (of, Operation::SetPermits(set))
            }
            Action::TakePermits { namespace, session, semaphore: name, permits, wait_ms } => {
                let take = lock::AcquirePermitsRequest {
                    namespace: namespace.clone(),
                    session_id: session,
                    name,
                    permits,
                    wait_ms,
                    request_id,
                };
                (namespace, Operation::AcquirePermits(take))
            }
            Action::GivePermits { namespace, session, semaphore: name, token } => {
                let give = lock::ReleasePermitsRequest {
                    namespace: namespace.clone(),
                    session_id: session,
                    name,
                    fencing_token: token,
                    request_id,
                };
                (namespace, Operation::ReleasePermits(give))
            }
            other => panic!("{other:?} needs a queue"),
        };
        self.command(slot::of_locks(&namespace), operation)
    }
}

fn wishes(locks: &[(String, LockMode)]) -> Vec<lock::LockWish> {
    let wish = |(name, mode): &(String, LockMode)| lock::LockWish {
        name: name.clone(),
        mode: (*mode).into(),
    };
    locks.iter().map(wish).collect()
}

fn of_text(text: &str) -> Value {
    Value { kind: Some(value::Kind::Text(text.to_owned())) }
}

fn text_of(value: Option<Value>) -> String {
    match value.and_then(|value| value.kind) {
        Some(value::Kind::Text(text)) => text,
        other => format!("not a text: {other:?}"),
    }
}

/// What an answer tells a client.
///
/// # Panics
/// When the state machine gives an answer that no client's action has.
#[must_use]
#[allow(clippy::too_many_lines, reason = "one table")]
pub fn outcome(answer: Answer) -> RecordedOutcome {
    match answer.answer.expect("an answer says something") {
        A::Refusal(refusal) => RecordedOutcome::Refused(refusal.reason()),
        A::OpenSession(opened) => RecordedOutcome::SessionOpened { session: opened.session_id },
        A::KeepAlive(kept) => RecordedOutcome::Renewed { remaining_ms: kept.remaining_ms },
        A::CloseSession(_) => RecordedOutcome::SessionClosed,
        A::Acquire(acquired) if !acquired.locks.is_empty() => {
            let grants = acquired.locks.into_iter().map(|grant| {
                let mode = grant.mode();
                (grant.name, grant.fencing_token, mode)
            });
            RecordedOutcome::AcquiredAll { grants: grants.collect() }
        }
        A::Acquire(acquired) if acquired.acquired => {
            RecordedOutcome::Acquired { token: acquired.fencing_token, mode: acquired.mode() }
        }
        A::Acquire(_) => RecordedOutcome::NotAcquired,
        A::Convert(converted) if converted.converted => {
            RecordedOutcome::Converted { token: converted.fencing_token, mode: converted.mode() }
        }
        A::Convert(_) => RecordedOutcome::NotConverted,
        A::ReleasedHeld(done) => {
            assert_eq!(done.after, "", "one step releases the few locks of a client");
            RecordedOutcome::ReleasedAll { released: done.released }
        }
        A::ForcedStep(done) => {
            assert!(!done.more, "one step takes a lock from a few holders");
            RecordedOutcome::Forced { released: done.released, token: done.token }
        }
        A::ValidateToken(told) => {
            RecordedOutcome::Validated { holder: told.holder.map(|holder| holder.session_id) }
        }
        A::DescribeLock(told) => {
            let holders = told.holders.iter().map(|holder| holder.fencing_token);
            RecordedOutcome::Described { holders: holders.collect() }
        }
        A::Release(_) => RecordedOutcome::Released,
        A::SetPermits(_) => RecordedOutcome::PermitsSet,
        A::AcquirePermits(got) if got.acquired => {
            RecordedOutcome::PermitsTaken { token: got.fencing_token }
        }
        A::AcquirePermits(_) => RecordedOutcome::NoPermits,
        A::ReleasePermits(_) => RecordedOutcome::PermitsGiven,
        A::Enqueue(enqueued) => {
            let [message_id] = &enqueued.message_ids[..] else { panic!("one message has one id") };
            RecordedOutcome::Enqueued { message_id: message_id.clone() }
        }
        A::Dequeue(dequeued) => {
            let deliveries = dequeued.deliveries.into_iter().map(|delivery| RecordedDelivery {
                message_id: delivery.message_id,
                value: text_of(delivery.value),
                lease_id: delivery.lease_id,
                count: delivery.delivery_count,
            });
            RecordedOutcome::Delivered(deliveries.collect())
        }
        A::Ack(_) => RecordedOutcome::Acked,
        A::Put(put) => RecordedOutcome::Put { version: put.version },
        A::Get(got) => {
            RecordedOutcome::Got { value: got.hit.then(|| (text_of(got.value), got.version)) }
        }
        A::Delete(deleted) => {
            RecordedOutcome::Deleted { version: deleted.deleted.then_some(deleted.version) }
        }
        other @ (A::Done(_)
        | A::CreateQueue(_)
        | A::Catalogue(_)
        | A::Ready(_)
        | A::ListLocks(_)
        | A::GetSession(_)
        | A::ListSessions(_)
        | A::ListDeadlocks(_)
        | A::Proclaim(_)
        | A::Leader(_)
        | A::DeleteSemaphore(_)
        | A::DescribeSemaphore(_)
        | A::ListSemaphores(_)
        | A::SetLatch(_)
        | A::CountDown(_)
        | A::DeleteLatch(_)
        | A::GetLatch(_)
        | A::ListLatches(_)
        | A::LatchSeen(_)
        | A::BarrierSeen(_)
        | A::GetBarrier(_)
        | A::ListBarriers(_)
        | A::RequestRelease(_)
        | A::ReleaseRequests(_)
        | A::Place(_)
        | A::CreateNamespace(_)
        | A::UpdateNamespace(_)
        | A::SetNamespacePolicy(_)
        | A::NamespaceConfigured(_)
        | A::GetNamespace(_)
        | A::ListNamespaces(_)
        | A::GetNamespacePolicy(_)
        | A::NamespaceHere(_)
        | A::FoundMark(_)) => {
            panic!("no client's action is answered by {other:?}")
        }
    }
}
