//! Calls that are written down as a history, for the checkers that the simulator uses too.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;
use trefoil_client::proto::cache::v1::{DeleteRequest, GetRequest, PutRequest};
use trefoil_client::proto::common::v1::{Reason, ResponseHeader};
use trefoil_client::proto::lock::v1::{AcquireRequest, LockMode, ReleaseRequest};
use trefoil_client::proto::queue::v1::{AckRequest, DequeueRequest, EnqueueRequest, Message};
use trefoil_client::{Client, Error, Request, Value};
use trefoil_core::Position;
use trefoil_sim::check::history::{
    Action, AnswerPosition, End, History, RecordedDelivery, RecordedOutcome,
};
use trefoil_sim::check::{Clocks, Violation, durable, linear, lock, queue, register};

/// Clients that write into one history.
pub(crate) struct Recorder {
    started: Instant,
    history: Mutex<History>,
}

/// One client of a recorder.
#[derive(Clone, Copy)]
pub(crate) struct Recorded<'a> {
    recorder: &'a Recorder,
    client: &'a Client,
    id: u64,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), history: Mutex::default() }
    }

    pub(crate) fn client<'a>(&'a self, id: u64, client: &'a Client) -> Recorded<'a> {
        Recorded { recorder: self, client, id }
    }

    /// Microseconds since the start.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap()
    }

    /// What `look` sees in the history so far.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&History) -> T) -> T {
        look(&self.history.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Every promise that was broken. The order of positions is left out: a reply does not tell the place of its
    /// command within an entry.
    pub(crate) fn violations(&self, audit_from: u64) -> Vec<Violation> {
        self.read(|history| {
            let mut found = lock::check(history);
            found.extend(queue::check(history));
            found.extend(register::check(history));
            found.extend(linear::check(history, linear::STEPS_MAX, Clocks::default()));
            found.extend(durable::check(history, audit_from));
            found
        })
    }
}

impl Recorded<'_> {
    /// Makes a call and writes it down; none when it was not answered.
    async fn call<R: Request>(
        &self,
        action: Action,
        request: R,
        outcome: impl FnOnce(R::Response) -> (Option<ResponseHeader>, RecordedOutcome),
    ) -> Option<RecordedOutcome> {
        let history = || self.recorder.history.lock().unwrap_or_else(PoisonError::into_inner);
        let call = history().begin(self.id, self.recorder.now(), action);
        let answer = self.client.call(request).await.map(outcome);
        let end = match &answer {
            Ok((header, outcome)) => End::Answered(place(header.as_ref()), outcome.clone()),
            Err(error) if error.has_no_side_effects() => End::NotDone(reason(error)),
            Err(_) => End::Open,
        };
        history().end(call, self.recorder.now(), end);
        answer.ok().map(|(_, outcome)| outcome)
    }

    pub(crate) async fn put(&self, key: &str, value: &str) -> bool {
        let action = Action::Put { key: key.to_owned(), value: value.to_owned(), ttl_ms: 0 };
        let request = PutRequest {
            key: key.to_owned(),
            value: Some(Value::from(value).into()),
            ..PutRequest::default()
        };
        let put = self.call(action, request, |put| {
            (put.header, RecordedOutcome::Put { version: put.version })
        });
        put.await.is_some()
    }

    pub(crate) async fn get(&self, key: &str) -> bool {
        let request = GetRequest { key: key.to_owned(), ..GetRequest::default() };
        let got = self.call(Action::Get { key: key.to_owned() }, request, |got| {
            let value = got.hit.then(|| (text(got.value.into()), got.version));
            (got.header, RecordedOutcome::Got { value })
        });
        got.await.is_some()
    }

    pub(crate) async fn delete(&self, key: &str) -> bool {
        let request = DeleteRequest { key: key.to_owned(), ..DeleteRequest::default() };
        let deleted = self.call(Action::Delete { key: key.to_owned() }, request, |deleted| {
            let version = deleted.deleted.then_some(deleted.version);
            (deleted.header, RecordedOutcome::Deleted { version })
        });
        deleted.await.is_some()
    }

    pub(crate) async fn enqueue(&self, queue: &str, value: &str) -> bool {
        let (queue, key) = (queue.to_owned(), String::new());
        let action =
            Action::Enqueue { queue: queue.clone(), key: key.clone(), value: value.to_owned() };
        let message = Message { key, value: Some(Value::from(value).into()), ..Message::default() };
        let request =
            EnqueueRequest { queue, messages: vec![message], ..EnqueueRequest::default() };
        let enqueued = self.call(action, request, |enqueued| {
            let message_id = enqueued.message_ids.first().expect("one message has one id").clone();
            (enqueued.header, RecordedOutcome::Enqueued { message_id })
        });
        enqueued.await.is_some()
    }

    /// The deliveries; none when the call was not answered.
    pub(crate) async fn dequeue(
        &self,
        queue: &str,
        wait_ms: u64,
        lease_ms: u64,
    ) -> Option<Vec<RecordedDelivery>> {
        let action = Action::Dequeue { queue: queue.to_owned(), lease_ms };
        let request = DequeueRequest {
            queue: queue.to_owned(),
            max_messages: 50,
            wait_ms,
            lease_ms,
            ..DequeueRequest::default()
        };
        let outcome = self.call(action, request, |dequeued| {
            let deliveries = dequeued.deliveries.into_iter().map(|delivery| RecordedDelivery {
                message_id: delivery.message_id,
                value: text(delivery.value.into()),
                lease_id: delivery.lease_id,
                count: delivery.delivery_count,
            });
            (dequeued.header, RecordedOutcome::Delivered(deliveries.collect()))
        });
        match outcome.await? {
            RecordedOutcome::Delivered(deliveries) => Some(deliveries),
            other => panic!("not the outcome of a dequeue: {other:?}"),
        }
    }

    pub(crate) async fn ack(&self, queue: &str, delivery: &RecordedDelivery) -> bool {
        let action = Action::Ack {
            queue: queue.to_owned(),
            message_id: delivery.message_id.clone(),
            lease_id: delivery.lease_id.clone(),
        };
        let request = AckRequest {
            queue: queue.to_owned(),
            lease_id: delivery.lease_id.clone(),
            ..AckRequest::default()
        };
        self.call(action, request, |acked| (acked.header, RecordedOutcome::Acked)).await.is_some()
    }

    /// The token; none when the lock was not acquired.
    pub(crate) async fn acquire(&self, session_id: u64, name: &str, wait_ms: u64) -> Option<u64> {
        let action = Action::Acquire {
            namespace: String::new(),
            session: session_id,
            lock: name.to_owned(),
            mode: LockMode::Exclusive,
            wait_ms,
            delay_ms: None,
        };
        let request = AcquireRequest {
            session_id,
            name: name.to_owned(),
            wait_ms,
            ..AcquireRequest::default()
        };
        let outcome = self.call(action, request, |acquired| {
            let (token, mode) = (acquired.fencing_token, acquired.mode());
            let outcome = if acquired.acquired {
                RecordedOutcome::Acquired { token, mode }
            } else {
                RecordedOutcome::NotAcquired
            };
            (acquired.header, outcome)
        });
        match outcome.await? {
            RecordedOutcome::Acquired { token, .. } => Some(token),
            _ => None,
        }
    }

    pub(crate) async fn release(&self, session_id: u64, name: &str, token: u64) -> bool {
        let action = Action::Release {
            namespace: String::new(),
            session: session_id,
            lock: name.to_owned(),
            token,
        };
        let request = ReleaseRequest {
            session_id,
            name: name.to_owned(),
            fencing_token: token,
            ..ReleaseRequest::default()
        };
        self.call(action, request, |released| (released.header, RecordedOutcome::Released))
            .await
            .is_some()
    }
}

/// The client retries by itself, so no answer is known to be that of a first try.
fn place(header: Option<&ResponseHeader>) -> AnswerPosition {
    let header = header.expect("every reply has a header");
    let position = Position {
        term: header.term,
        index: header.index,
        ordinal: 0,
        log_time_ms: header.log_time_ms,
    };
    AnswerPosition { shard: header.shard, position, exact: false }
}

fn reason(error: &Error) -> Reason {
    error.reason().unwrap_or(Reason::Unspecified)
}

fn text(value: Value) -> String {
    value.as_text().expect("only text was stored").to_owned()
}
