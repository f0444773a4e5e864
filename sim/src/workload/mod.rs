//! What clients are for: the operator sets up queues, the others use the services, the auditor reads the final state.

mod cache;
mod coordination;
pub(crate) mod fence;
pub(crate) mod lock;
pub mod planned;
mod semaphore;

use std::collections::VecDeque;

use trefoil_core::Position;
use trefoil_core::lease::LeaseId;
use trefoil_proto::common::v1::{Reason, RequestId};
use trefoil_proto::internal::v1::{Answer, answer};

use self::fence::FenceClient;
use self::lock::{LockClient, NAMESPACES};
use self::planned::{PlannedCall, Wish, plain_at_times, step, unrecorded};
use self::semaphore::SemaphoreClient;
use crate::calls::SimQueue;
use crate::check::history::{Action, RecordedDelivery, RecordedOutcome};
use crate::client_context::ClientContext;
use crate::config::{MILLISECOND, SECOND};

/// Longest queue lease of a client, in ms.
pub const LEASE_MS_MAX: u64 = 5_000;
/// Clients of semaphores: beside the others, so many in each run.
pub const TAKERS: std::ops::RangeInclusive<u64> = 12..=14;
/// Queues of a run.
const QUEUES: [&str; 2] = ["jobs", "mail"];

/// What a client is for.
#[derive(Debug)]
pub enum Workload {
    /// Creates the queues and opens their partitions.
    Operator(Operator),
    /// Writes and reads cache keys, some of them under a lock.
    FenceClient(FenceClient),
    /// Enqueues.
    Producer,
    /// Dequeues and acknowledges: deliveries that it holds, with their queue.
    Consumer(Vec<(String, RecordedDelivery)>),
    /// Holds locks.
    LockClient(LockClient),
    /// Holds permits.
    SemaphoreClient(SemaphoreClient),
    /// Reads every key and drains every queue.
    Auditor(Auditor),
}

/// What the operator still has to do.
#[derive(Debug, Default)]
pub struct Operator {
    created: usize,
    found: Option<SimQueue>,
    opened: u32,
}

/// What the auditor still has to do.
#[derive(Debug)]
pub struct Auditor {
    keys: usize,
    /// Queues and the place in them that is drained next.
    places: VecDeque<(usize, usize)>,
    /// How often every place was found empty, a lease apart.
    rounds: u32,
    acks: Vec<(String, RecordedDelivery)>,
}

/// Rounds of the auditor over all queues: leases that were granted unseen run out between two of them.
const AUDIT_ROUNDS: u32 = 3;

impl Workload {
    /// The role of a client by its number.
    #[must_use]
    pub fn of(client: u64) -> Self {
        let locks = |namespace: &str| Self::LockClient(LockClient::new(namespace));
        match client {
            2 | 4 | 8 => locks(NAMESPACES[0]),
            10 | 11 => locks(NAMESPACES[1]),
            1 | 7 => Self::Consumer(Vec::new()),
            6 => Self::Producer,
            _ if TAKERS.contains(&client) => {
                Self::SemaphoreClient(SemaphoreClient::new(NAMESPACES[0]))
            }
            _ => Self::FenceClient(FenceClient::default()),
        }
    }

    /// Reads the final state.
    #[must_use]
    pub fn auditor() -> Self {
        Self::Auditor(Auditor { keys: 0, places: VecDeque::new(), rounds: 0, acks: Vec::new() })
    }

    /// Whether it goes on when the others stop.
    #[must_use]
    pub fn goes_on(&self) -> bool {
        matches!(self, Self::Auditor(_) | Self::Operator(_))
    }

    /// Whether nothing is left to do.
    #[must_use]
    pub fn is_done(&self) -> bool {
        match self {
            Self::Operator(operator) => {
                operator.created == QUEUES.len() && operator.found.is_none()
            }
            Self::Auditor(auditor) => {
                auditor.rounds >= AUDIT_ROUNDS
                    && auditor.places.is_empty()
                    && auditor.acks.is_empty()
            }
            _ => false,
        }
    }

    /// What it wants next.
    pub fn next(&mut self, client: u64, sequence: u64, shared: &mut ClientContext) -> Wish {
        let unique = format!("{client}.{sequence}");
        match self {
            Self::Operator(operator) => operator.next(shared),
            Self::FenceClient(client) => client.next(unique, shared),
            Self::Producer => producer(unique, shared),
            Self::Consumer(held) => consumer(held, shared),
            Self::LockClient(lock_client) => {
                let client = format!("client-{client}");
                // The last attempt that there can be.
                let (first_unacknowledged, attempt) = (sequence, u32::MAX);
                let me = RequestId { client, sequence, first_unacknowledged, attempt };
                lock_client.next(&unique, me, shared)
            }
            Self::SemaphoreClient(client) => client.next(shared),
            Self::Auditor(auditor) => auditor.next(shared),
        }
    }

    /// A recorded call was answered.
    pub fn learned(&mut self, action: &Action, outcome: &RecordedOutcome) {
        match self {
            Self::Consumer(held) => {
                if let (Action::Dequeue { queue, .. }, RecordedOutcome::Delivered(deliveries)) =
                    (action, outcome)
                {
                    held.extend(
                        deliveries.iter().map(|delivery| (queue.clone(), delivery.clone())),
                    );
                }
            }
            Self::LockClient(client) => client.learned(action, outcome),
            Self::FenceClient(client) => client.learned(action, outcome),
            Self::SemaphoreClient(client) => client.learned(action, outcome),
            Self::Auditor(auditor) => auditor.learned(action, outcome),
            Self::Operator(_) | Self::Producer => {}
        }
    }

    /// A call that is not recorded was answered.
    pub fn told(&mut self, answer: &Answer, position: Position, shared: &mut ClientContext) {
        let operator = match self {
            Self::Operator(operator) => operator,
            Self::FenceClient(client) => return client.told(answer, position),
            Self::LockClient(client) => return client.told(answer),
            _ => return,
        };
        match &answer.answer {
            Some(answer::Answer::Catalogue(catalogue)) => {
                let name = QUEUES[operator.created].to_owned();
                operator.found = Some(SimQueue { name, catalogue: *catalogue });
                operator.opened = 0;
            }
            Some(answer::Answer::Done(_)) => {
                operator.opened += 1;
                if operator.opened == shared.config.partitions {
                    shared.queues.extend(operator.found.take());
                    operator.created += 1;
                }
            }
            // It was not created after all.
            Some(answer::Answer::Refusal(refusal)) if refusal.reason() == Reason::UnknownQueue => {
                operator.opened = 0
            }
            _ => {}
        }
    }
}

impl Operator {
    fn next(&mut self, shared: &mut ClientContext) -> Wish {
        let Some(name) = QUEUES.get(self.created) else { return Wish::Rest(3_600 * SECOND) };
        match &self.found {
            Some(queue) => unrecorded(shared.router.open_partition(queue, self.opened), true),
            None if self.opened == u32::MAX => unrecorded(shared.router.find_queue(name), false),
            None => {
                self.opened = u32::MAX;
                unrecorded(shared.router.create_queue(name, shared.config.partitions), true)
            }
        }
    }
}

fn producer(unique: String, shared: &mut ClientContext) -> Wish {
    let Some(queue) = pick_queue(shared) else { return Wish::Rest(SECOND / 4) };
    let key = format!("key-{}", shared.rng.between(1, 4));
    let request = shared.router.enqueue(&queue, &key, &unique);
    let step = step(Action::Enqueue { queue: queue.name, key, value: unique }, request);
    Wish::Do(plain_at_times(step, shared))
}

fn consumer(held: &mut Vec<(String, RecordedDelivery)>, shared: &mut ClientContext) -> Wish {
    if !held.is_empty() && shared.rng.chance(700) {
        let (name, delivery) = held.remove(0);
        // A consumer that forgets: the lease runs out.
        if shared.rng.chance(850)
            && let Some(queue) = shared.queues.iter().find(|queue| queue.name == name)
        {
            return Wish::Do(ack(queue, delivery, shared));
        }
    }
    let Some(queue) = pick_queue(shared) else { return Wish::Rest(SECOND / 4) };
    if let Some((_, delivery)) = held.first().filter(|_| shared.rng.chance(100)) {
        return Wish::Do(ack(&queue, foreign(delivery, shared), shared));
    }
    let places = shared.router.places(&queue);
    let (_, partitions) = shared.rng.pick(&places);
    if shared.rng.chance(200) {
        let request = shared.router.await_ready(&queue, partitions);
        return Wish::Do(PlannedCall {
            wait_us: SECOND,
            once: true,
            ..PlannedCall::unjudged(request, false)
        });
    }
    let most = u32::try_from(shared.rng.between(1, 5)).expect("a small number");
    let lease_ms = shared.rng.between(LEASE_MS_MAX / 10, LEASE_MS_MAX);
    let request = shared.router.dequeue(&queue, partitions, most, lease_ms);
    Wish::Do(step(Action::Dequeue { queue: queue.name, lease_ms }, request))
}

/// A delivery of whichever queue, perhaps with a lease that is a guess: that of another message, or with another secret.
fn foreign(delivery: &RecordedDelivery, shared: &mut ClientContext) -> RecordedDelivery {
    let mut lease = delivery.lease_id.parse::<LeaseId>().expect("a lease id of the state machine");
    match shared.rng.between(0, 2) {
        0 => lease.sequence += 1,
        1 => lease.secret ^= 1 << shared.rng.between(0, 63),
        _ => {}
    }
    RecordedDelivery { lease_id: lease.to_string(), ..delivery.clone() }
}

fn ack(queue: &SimQueue, delivery: RecordedDelivery, shared: &ClientContext) -> PlannedCall {
    let RecordedDelivery { message_id, lease_id, .. } = delivery;
    let request = shared.router.ack(queue, &lease_id);
    step(Action::Ack { queue: queue.name.clone(), message_id, lease_id }, request)
}

fn pick_queue(shared: &mut ClientContext) -> Option<SimQueue> {
    if shared.queues.is_empty() { None } else { Some(shared.rng.pick(&shared.queues).clone()) }
}

impl Auditor {
    fn next(&mut self, shared: &mut ClientContext) -> Wish {
        let keys = (1..=shared.config.keys).map(|n| format!("key-{n}"));
        if let Some(key) = keys.chain(fence::KEYS.map(str::to_owned)).nth(self.keys) {
            self.keys += 1;
            let action = Action::Get { key };
            let request = shared.router.request(&action);
            return Wish::Do(step(action, request));
        }
        if let Some((name, delivery)) = self.acks.pop()
            && let Some(queue) = shared.queues.iter().find(|queue| queue.name == name)
        {
            return Wish::Do(ack(queue, delivery, shared));
        }
        let places = |queue: &SimQueue| shared.router.places(queue);
        let Some((queue, place)) = self.places.front().copied() else {
            if self.rounds >= AUDIT_ROUNDS {
                return Wish::Rest(3_600 * SECOND);
            }
            self.rounds += 1;
            let queues = shared.queues.iter().enumerate();
            self.places = queues
                .flat_map(|(n, queue)| (0..places(queue).len()).map(move |place| (n, place)))
                .collect();
            return Wish::Rest((LEASE_MS_MAX + 100) * MILLISECOND);
        };
        let queue = &shared.queues[queue];
        let request = shared.router.dequeue(queue, &places(queue)[place].1, 100, LEASE_MS_MAX);
        Wish::Do(step(
            Action::Dequeue { queue: queue.name.clone(), lease_ms: LEASE_MS_MAX },
            request,
        ))
    }

    fn learned(&mut self, action: &Action, outcome: &RecordedOutcome) {
        let (Action::Dequeue { queue, .. }, RecordedOutcome::Delivered(deliveries)) =
            (action, outcome)
        else {
            return;
        };
        if deliveries.is_empty() {
            self.places.pop_front();
        }
        self.acks.extend(deliveries.iter().map(|delivery| (queue.clone(), delivery.clone())));
    }
}
