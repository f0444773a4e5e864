//! Snapshots on their way in: into a file of their own, and told to the replica only when that is synced.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prost::Message as _;
use raft_proto::eraftpb::MessageType;
use slog::{info, warn};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tonic::{Status, Streaming};
use trefoil_core::limits::SNAPSHOT_STREAMS_MAX;
use trefoil_core::replica::{Input, Peer};
use trefoil_core::{NodeId, ShardId};
use trefoil_proto::internal::v1::snapshot_request::Part;
use trefoil_proto::internal::v1::{Manifest, SnapshotChunk, SnapshotRequest};

use super::message::decode;
use crate::shared::Shared;
use crate::storage::StorageError;
use crate::storage::generations::next_generation;
use crate::storage::snapshot::SnapshotWriter;

/// Chunks that wait to be written.
const CHUNKS: usize = 2;
/// A sender that sends nothing for so long has failed.
const STALL: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Receiver {
    shared: Arc<Shared>,
    root: PathBuf,
    places: Semaphore,
    /// Shards for which a snapshot is on its way: one each.
    busy: Arc<Mutex<BTreeSet<ShardId>>>,
}

/// One shard's place, free again when it is dropped.
struct Busy {
    shard: ShardId,
    busy: Arc<Mutex<BTreeSet<ShardId>>>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.shard);
    }
}

impl Receiver {
    pub(super) fn new(shared: Arc<Shared>, root: PathBuf) -> Self {
        Self { shared, root, places: Semaphore::new(SNAPSHOT_STREAMS_MAX), busy: Arc::default() }
    }

    /// Receives one snapshot. A stream that is cut leaves nothing behind.
    pub(super) async fn receive(
        &self,
        from: NodeId,
        shard: ShardId,
        message: &[u8],
        stream: Streaming<SnapshotRequest>,
    ) -> Result<(), Status> {
        if !self.shared.table.has(shard) {
            return Err(Status::invalid_argument("there is no such shard"));
        }
        let message = decode(message, from, self.shared.node).map_err(Status::invalid_argument)?;
        if message.get_msg_type() != MessageType::MsgSnapshot {
            return Err(Status::invalid_argument(
                "a message of this type does not travel by this stream",
            ));
        }
        let busy = self.occupy(shard)?;
        let Ok(_place) = self.places.try_acquire() else {
            return Err(Status::unavailable(
                "as many snapshots as may be are on their way to this node",
            ));
        };
        let metadata = message.get_snapshot().get_metadata();
        let position = (metadata.index, metadata.term);
        let manifest = Manifest::decode(&message.get_snapshot().data[..])
            .map_err(|_| Status::invalid_argument("the manifest cannot be decoded"))?;

        let (sender, chunks) = mpsc::channel(CHUNKS);
        let root = self.root.clone();
        // The file is made and written, or removed, even when the stream is dropped: the place is held until then.
        let written = tokio::task::spawn_blocking(move || {
            let written = write(&root, shard, position, manifest, chunks);
            (written, busy)
        });
        let fed = feed(stream, sender).await;
        let (written, _busy) =
            written.await.map_err(|_| Status::unavailable("the node is stopping"))?;
        fed?;
        let generation = written.map_err(|refusal| {
            // What the sender is told holds no paths.
            warn!(self.shared.logger, "a snapshot could not be received"; "shard" => shard, "peer" => from, "reason" => %refusal);
            Status::data_loss("the snapshot could not be written")
        })?;
        info!(self.shared.logger, "received a snapshot"; "shard" => shard, "peer" => from, "index" => position.0);
        let peer = Box::new(Peer { message, ..Peer::default() });
        self.shared.tell(shard, Input::SnapshotReceived { peer, generation });
        Ok(())
    }

    fn occupy(&self, shard: ShardId) -> Result<Busy, Status> {
        if self.busy.lock().unwrap_or_else(PoisonError::into_inner).insert(shard) {
            return Ok(Busy { shard, busy: Arc::clone(&self.busy) });
        }
        Err(Status::unavailable("another snapshot of the shard is on its way to this node"))
    }
}

async fn feed(
    mut stream: Streaming<SnapshotRequest>,
    chunks: mpsc::Sender<SnapshotChunk>,
) -> Result<(), Status> {
    let silent = |_| Status::deadline_exceeded("the snapshot stalled");
    while let Some(request) = timeout(STALL, stream.message()).await.map_err(silent)?? {
        let Some(Part::Chunk(chunk)) = request.part else {
            return Err(Status::invalid_argument("chunks follow the head of a snapshot"));
        };
        // A writer that is gone has said why.
        if chunks.send(chunk).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Writes the chunks into the file of a new generation. One that is not whole is removed.
fn write(
    root: &std::path::Path,
    shard: ShardId,
    position: (u64, u64),
    manifest: Manifest,
    mut chunks: mpsc::Receiver<SnapshotChunk>,
) -> Result<u64, StorageError> {
    let generation = next_generation(root, shard)?;
    let mut writer = SnapshotWriter::create(root, shard, generation, position, manifest)?;
    while let Some(chunk) = chunks.blocking_recv() {
        writer.write(&chunk)?;
    }
    writer.finish()?;
    Ok(generation)
}
