//! One open pipelined stream: calls go out in frames, replies come back in any order and are matched by id.
//!
//! Calls that wait are gathered when the connection asks for more, so a busy connection carries large frames
//! and an idle one sends at once. The window bounds what is in flight, in bytes; every small call counts 16 KiB.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::{Semaphore, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};
use trefoil_proto::FRAME_BYTES_MAX;
use trefoil_proto::pipeline::v1::{Call, OpenRequest, OpenResponse, call, reply};

/// Bytes that a call counts for in the window at least.
const CALL_BYTES_MIN: usize = 16 << 10;
/// Bytes in flight on a stream of ordinary calls: 2,048 small ones.
const WINDOW_BYTES: usize = 2_048 * CALL_BYTES_MIN;
/// Calls that wait on a node at the same time.
pub(crate) const WAITS_MAX: usize = 4_096;

/// How a call ended without a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamError {
    /// It was never sent.
    NotSent,
    /// It was sent, and the stream broke: it may take effect.
    Broken,
    /// Its deadline passed before it was sent.
    LateUnsent,
    /// Its deadline passed after it was sent: it may take effect.
    Late,
}

/// An open stream. Dropping it hangs up.
#[derive(Debug)]
pub(crate) struct PipelineStream {
    shared: Arc<SharedStream>,
    window: Semaphore,
    reader: AbortHandle,
}

/// What callers, the frames that go out and the reader share.
#[derive(Debug, Default)]
pub(crate) struct SharedStream {
    state: Mutex<StreamState>,
}

#[derive(Debug, Default)]
struct StreamState {
    closed: bool,
    last_id: u64,
    /// Calls that wait to be sent; bounded by the window.
    queue: VecDeque<Queued>,
    /// Calls without a reply; bounded by the window.
    pending: BTreeMap<u64, UnansweredCall>,
    /// Calls that were sent and given up since the last frame; bounded by the window.
    cancels: Vec<u64>,
    /// Wakes the frames when there is something to send.
    sender: Option<Waker>,
    /// Whether the frames have let other callers run since they were woken.
    gathered: bool,
}

#[derive(Debug)]
struct Queued {
    id: u64,
    deadline: Instant,
    bytes: usize,
    operation: call::Operation,
}

#[derive(Debug)]
struct UnansweredCall {
    sent: bool,
    end: oneshot::Sender<Result<reply::Outcome, StreamError>>,
}

/// The frames that go out.
#[derive(Debug)]
pub(crate) struct OutgoingFrames {
    shared: Arc<SharedStream>,
}

impl PipelineStream {
    /// The two ends of a stream that is about to be opened.
    pub(crate) fn prepare() -> (Arc<SharedStream>, OutgoingFrames) {
        let shared = Arc::new(SharedStream::default());
        (Arc::clone(&shared), OutgoingFrames { shared })
    }

    /// The stream, once the server has answered with its replies.
    /// A stream of waits has room for all waits beside the ordinary window, so that they never fill it.
    pub(crate) fn opened(
        shared: Arc<SharedStream>,
        replies: tonic::Streaming<OpenResponse>,
        waits: usize,
    ) -> Self {
        let reader = tokio::spawn(read(Arc::clone(&shared), replies)).abort_handle();
        let window = Semaphore::new(WINDOW_BYTES + waits * CALL_BYTES_MIN);
        Self { shared, window, reader }
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.shared.lock().closed
    }

    /// Sends one operation and waits for its end. Dropping the future cancels the call on the server too, and so does the
    /// deadline of the last try. An earlier one just ends there, at its own deadline: a cancel would take from the client
    /// what its next try is told.
    pub(crate) async fn call(
        &self,
        operation: call::Operation,
        deadline: Instant,
        is_last: bool,
    ) -> Result<reply::Outcome, StreamError> {
        let bytes = operation.encoded_len();
        let cost = u32::try_from(bytes.clamp(CALL_BYTES_MIN, WINDOW_BYTES))
            .expect("the window fits 32 bits");
        let Ok(permit) = timeout_at(deadline, self.window.acquire_many(cost)).await else {
            return Err(StreamError::LateUnsent);
        };
        let _permit = permit.expect("the window is never closed");

        let (id, end) =
            self.shared.submit(operation, bytes, deadline).ok_or(StreamError::NotSent)?;
        let mut caller = CallInFlight { shared: &self.shared, id, settled: false };
        let ended = timeout_at(deadline, end).await;
        caller.settled = ended.is_ok();
        match ended {
            Ok(Ok(end)) => end,
            Ok(Err(_)) => Err(StreamError::Broken),
            Err(_) => Err(if self.shared.give_up(id, is_last) {
                StreamError::Late
            } else {
                StreamError::LateUnsent
            }),
        }
    }
}

impl Drop for PipelineStream {
    fn drop(&mut self) {
        self.reader.abort();
        self.shared.close();
    }
}

/// Gives the call up when its future is dropped before its end.
struct CallInFlight<'a> {
    shared: &'a SharedStream,
    id: u64,
    settled: bool,
}

impl Drop for CallInFlight<'_> {
    fn drop(&mut self) {
        if !self.settled {
            self.shared.give_up(self.id, true);
        }
    }
}

impl SharedStream {
    fn lock(&self) -> MutexGuard<'_, StreamState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a call; none when the stream is closed.
    fn submit(
        &self,
        operation: call::Operation,
        bytes: usize,
        deadline: Instant,
    ) -> Option<(u64, oneshot::Receiver<Result<reply::Outcome, StreamError>>)> {
        let mut state = self.lock();
        if state.closed {
            return None;
        }
        let (end, receiver) = oneshot::channel();
        state.last_id += 1;
        let id = state.last_id;
        state.pending.insert(id, UnansweredCall { sent: false, end });
        state.queue.push_back(Queued { id, deadline, bytes, operation });
        let sender = state.sender.take();
        drop(state);
        if let Some(sender) = sender {
            sender.wake();
        }
        Some((id, receiver))
    }

    /// Forgets a call; true when it was sent. The server is then told, where nobody wants what the call did.
    fn give_up(&self, id: u64, is_unwanted: bool) -> bool {
        let mut state = self.lock();
        let Some(pending) = state.pending.remove(&id) else { return true };
        if !pending.sent {
            return false;
        }
        if !is_unwanted {
            return true;
        }
        state.cancels.push(id);
        let sender = state.sender.take();
        drop(state);
        if let Some(sender) = sender {
            sender.wake();
        }
        true
    }

    fn complete(&self, frame: OpenResponse) {
        let mut state = self.lock();
        for reply in frame.replies {
            // A reply to a call that was given up has nobody waiting.
            let Some(pending) = state.pending.remove(&reply.id) else { continue };
            let end = reply.outcome.ok_or(StreamError::Broken);
            drop(pending.end.send(end));
        }
    }

    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.queue.clear();
        for pending in std::mem::take(&mut state.pending).into_values() {
            let end = if pending.sent { StreamError::Broken } else { StreamError::NotSent };
            drop(pending.end.send(Err(end)));
        }
        if let Some(sender) = state.sender.take() {
            sender.wake();
        }
    }
}

async fn read(shared: Arc<SharedStream>, mut replies: tonic::Streaming<OpenResponse>) {
    while let Ok(Some(frame)) = replies.message().await {
        shared.complete(frame);
    }
    shared.close();
}

impl tokio_stream::Stream for OutgoingFrames {
    type Item = OpenRequest;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<OpenRequest>> {
        let mut state = self.shared.lock();
        if state.closed {
            return Poll::Ready(None);
        }
        let has_work = !(state.queue.is_empty() && state.cancels.is_empty());
        if has_work && !state.gathered {
            // Goes to the back of the run queue once, so that callers that are ready now share the frame.
            state.gathered = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        state.gathered = false;
        match state.pack(Instant::now()) {
            Some(frame) => Poll::Ready(Some(frame)),
            None => {
                state.sender = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl StreamState {
    /// The next frame: all cancels, and calls up to the limit of a frame.
    fn pack(&mut self, now: Instant) -> Option<OpenRequest> {
        let mut frame =
            OpenRequest { calls: Vec::new(), cancel: std::mem::take(&mut self.cancels) };
        let mut bytes = 0;
        while bytes < FRAME_BYTES_MAX {
            let Some(queued) = self.queue.pop_front() else { break };
            let Some(pending) = self.pending.get_mut(&queued.id) else { continue };
            let left = queued.deadline.saturating_duration_since(now).as_millis();
            if left == 0 {
                continue; // Its caller wakes by the same deadline and finds it unsent.
            }
            pending.sent = true;
            bytes += queued.bytes;
            let timeout_ms = u32::try_from(left).unwrap_or(u32::MAX);
            frame.calls.push(Call { id: queued.id, timeout_ms, operation: Some(queued.operation) });
        }
        (!frame.calls.is_empty() || !frame.cancel.is_empty()).then_some(frame)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prost::Message as _;
    use trefoil_proto::cache::v1::PutRequest;
    use trefoil_proto::common::v1::{Value, value::Kind};

    use super::*;

    fn put(bytes: usize) -> call::Operation {
        let value = Value { kind: Some(Kind::Data(vec![7; bytes].into())) };
        call::Operation::Put(PutRequest {
            key: "k".to_owned(),
            value: Some(value),
            ..PutRequest::default()
        })
    }

    fn submit(shared: &SharedStream, operation: call::Operation, bytes: usize) -> u64 {
        let deadline = Instant::now() + Duration::from_secs(9);
        shared.submit(operation, bytes, deadline).expect("the stream is open").0
    }

    #[tokio::test]
    async fn calls_that_wait_share_a_frame_of_at_most_its_limit_and_one_call() {
        let (shared, _frames) = PipelineStream::prepare();
        for _ in 0..5 {
            submit(&shared, put(400 << 10), 400 << 10);
        }
        let mut state = shared.lock();
        let frame = state.pack(Instant::now()).unwrap();
        assert_eq!(frame.calls.iter().map(|call| call.id).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(frame.encoded_len() <= FRAME_BYTES_MAX + (401 << 10));
        assert_eq!(state.pack(Instant::now()).unwrap().calls.len(), 2);
        assert!(state.pack(Instant::now()).is_none());
    }

    #[tokio::test]
    async fn a_call_that_is_given_up_before_it_was_sent_never_goes_out() {
        let (shared, _frames) = PipelineStream::prepare();
        let (first, second) = (submit(&shared, put(1), 1), submit(&shared, put(1), 1));
        assert!(!shared.give_up(first, true));
        let frame = shared.lock().pack(Instant::now()).unwrap();
        assert_eq!((frame.calls.len(), frame.calls[0].id, frame.cancel.len()), (1, second, 0));
        assert!(shared.give_up(second, true));
        assert_eq!(shared.lock().pack(Instant::now()).unwrap().cancel, [second]);
    }

    #[tokio::test]
    async fn a_broken_stream_tells_sent_from_unsent() {
        let (shared, _frames) = PipelineStream::prepare();
        let deadline = Instant::now() + Duration::from_secs(9);
        let (_, sent) = shared.submit(put(1), 1, deadline).unwrap();
        shared.lock().pack(Instant::now()).unwrap();
        let (_, unsent) = shared.submit(put(1), 1, deadline).unwrap();
        shared.close();
        assert_eq!(sent.await.unwrap(), Err(StreamError::Broken));
        assert_eq!(unsent.await.unwrap(), Err(StreamError::NotSent));
        assert!(shared.submit(put(1), 1, deadline).is_none());
    }
}
