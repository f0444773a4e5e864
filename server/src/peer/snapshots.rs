//! Snapshots on their way out: few at a time, at a bounded rate, and the replica always hears how each ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prost::Message as _;
use protobuf::Message as _;
use slog::{info, warn};
use tokio::runtime::Handle as Runtime;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use trefoil_core::limits::{SNAPSHOT_BYTES_PER_SECOND, SNAPSHOT_STREAMS_MAX};
use trefoil_core::replica::{Input, Peer};
use trefoil_core::{NodeId, ShardId};
use trefoil_proto::internal::v1::snapshot_request::Part;
use trefoil_proto::internal::v1::{SnapshotChunk, SnapshotHead, SnapshotRequest};

use super::dial::{self, Ended};
use super::introductions::Introductions;
use crate::shared::Shared;
use crate::shared::clock::Stopwatch;
use crate::shared::observer::PeerOperation;
use crate::storage::evidence;
use crate::storage::snapshot::SnapshotReader;

/// Chunks read ahead.
const CHUNKS: usize = 2;
/// A receiver that takes nothing for so long has failed.
const STALL: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Snapshots {
    shared: Arc<Shared>,
    introductions: Arc<Introductions>,
    /// Open, and not sent yet.
    open: Mutex<BTreeMap<(ShardId, NodeId), SnapshotReader>>,
    places: Semaphore,
    throttle: Throttle,
}

/// Bytes per second of all streams together.
#[derive(Debug)]
struct Throttle(tokio::sync::Mutex<Option<Instant>>);

impl Throttle {
    /// Waits until these bytes may be sent.
    async fn take(&self, bytes: usize) {
        let cost = Duration::from_micros(bytes as u64 * 1_000_000 / SNAPSHOT_BYTES_PER_SECOND);
        let mut next = self.0.lock().await;
        let now = Instant::now();
        let at = next.map_or(now, |next| next.max(now));
        *next = Some(at + cost);
        drop(next);
        tokio::time::sleep_until(at).await;
    }
}

impl Snapshots {
    pub(super) fn new(shared: Arc<Shared>, introductions: Arc<Introductions>) -> Self {
        let (places, throttle) =
            (Semaphore::new(SNAPSHOT_STREAMS_MAX), Throttle(tokio::sync::Mutex::default()));
        Self { shared, introductions, open: Mutex::default(), places, throttle }
    }

    pub(super) fn put(&self, shard: ShardId, to: NodeId, reader: SnapshotReader) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert((shard, to), reader);
    }

    pub(super) fn close(&self, shard: ShardId, to: NodeId) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&(shard, to));
    }

    pub(super) fn close_all(&self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Streams the open snapshot in the background.
    pub(super) fn send(
        self: &Arc<Self>,
        runtime: &Runtime,
        shard: ShardId,
        peer: Box<Peer>,
        address: String,
    ) {
        let to = peer.message.to;
        let reader = self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&(shard, to));
        let Some(reader) = reader else {
            return self.shared.tell(shard, Input::SnapshotSent { to, ok: false });
        };
        let this = Arc::clone(self);
        runtime.spawn(async move {
            let index = reader.index();
            let sent = this.stream(shard, &peer, reader, &address).await;
            match &sent {
                Ok(bytes) => {
                    info!(this.shared.logger, "sent a snapshot"; "shard" => shard, "peer" => to, "index" => index, "bytes" => bytes);
                }
                Err(ended) => {
                    warn!(this.shared.logger, "a snapshot did not arrive"; "shard" => shard, "peer" => to, "index" => index,
                        "reason" => reason(ended));
                }
            }
            this.shared.tell(shard, Input::SnapshotSent { to, ok: sent.is_ok() });
        });
    }

    async fn stream(
        &self,
        shard: ShardId,
        peer: &Peer,
        reader: SnapshotReader,
        address: &str,
    ) -> Result<usize, Ended> {
        let _place = self.places.acquire().await.map_err(|_| away("the node is stopping"))?;
        let stopwatch = Stopwatch::start();
        let mut client = dial::connect(address).await?;
        let (parts, receiver) = mpsc::channel(CHUNKS);
        let message = peer.message.write_to_bytes().expect("a message of raft can be encoded");
        let greeting = Some(self.introductions.greeting(peer.message.to));
        let head = SnapshotHead { greeting, shard, message: message.into() };
        parts.send(request(Part::Head(head))).await.map_err(|_| away("the peer hung up"))?;
        let mut answer = std::pin::pin!(client.snapshot(ReceiverStream::new(receiver)));
        let sent = tokio::select! {
            // An answer before the end is a refusal.
            early = &mut answer => {
                early?;
                return Err(away("the peer answered before the end"));
            }
            sent = self.feed(shard, reader, parts) => sent?,
        };
        timeout(STALL, answer).await??;
        self.shared.observer.rpc(PeerOperation::Snapshot, stopwatch.seconds());
        Ok(sent)
    }

    async fn feed(
        &self,
        shard: ShardId,
        reader: SnapshotReader,
        parts: mpsc::Sender<SnapshotRequest>,
    ) -> Result<usize, Ended> {
        let (sender, mut chunks) = mpsc::channel::<SnapshotChunk>(CHUNKS);
        let read = tokio::task::spawn_blocking(move || {
            evidence::catch(reader.path(), || {
                for chunk in reader.chunks() {
                    if sender.blocking_send(chunk).is_err() {
                        return;
                    }
                }
            })
        });
        let mut sent = 0;
        while let Some(chunk) = chunks.recv().await {
            let bytes = chunk.encoded_len();
            self.throttle.take(bytes).await;
            let part = parts.send(request(Part::Chunk(chunk)));
            timeout(STALL, part).await?.map_err(|_| away("the peer hung up"))?;
            sent += bytes;
        }
        let read = read.await.map_err(|_| away("the node is stopping"))?;
        read.map_err(|damaged| {
            let reason = away("the state is damaged");
            self.shared.found_damaged(shard, damaged);
            reason
        })?;
        Ok(sent)
    }
}

fn request(part: Part) -> SnapshotRequest {
    SnapshotRequest { part: Some(part) }
}

fn away(reason: &str) -> Ended {
    Ended::Away(reason.to_owned())
}

fn reason(ended: &Ended) -> &str {
    match ended {
        Ended::Away(reason) => reason,
        Ended::Refused(refused) => refused.fault.sentence(),
        Ended::Stranger => "the peer is refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn streams_share_one_rate() {
        let throttle = Throttle(tokio::sync::Mutex::default());
        let began = Instant::now();
        let tenth = usize::try_from(SNAPSHOT_BYTES_PER_SECOND / 10).unwrap();
        throttle.take(tenth).await;
        assert!(began.elapsed() < Duration::from_millis(90), "the first bytes leave at once");
        throttle.take(tenth).await;
        throttle.take(1).await;
        assert!(began.elapsed() >= Duration::from_millis(199), "the next ones keep to the rate");
    }
}
