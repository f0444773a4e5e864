//! The stream of Raft messages to one peer.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use trefoil_core::ShardId;
use trefoil_core::replica::Input;
use trefoil_core::replica::obstacles::Obstacles;
use trefoil_proto::internal::v1::{self as proto, RaftRequest, ShardObstacles, Uncertain};

use super::Announced;
use super::dial::{self, Backoff, Dialler, Ended, GREETING_WAIT};
use super::queue::SendBuffer;

/// Pause between two looks at what is to be told of members.
const TELL_PAUSE: Duration = Duration::from_millis(200);
/// Frames on their way to the transport. Few, because a heartbeat waits behind them.
const FRAMES: usize = 2;

type Announcements = watch::Receiver<Announced>;

/// Keeps a stream to the peer for ever.
pub(super) async fn keep(dialler: Dialler, queue: Arc<SendBuffer>, mut announced: Announcements) {
    let mut backoff = Backoff::new();
    loop {
        let ended = stream(&dialler, &queue, &mut announced, &mut backoff).await;
        queue.close();
        for shard in dialler.shared.all_shards() {
            dialler.shared.tell(shard, Input::Unreachable(dialler.peer));
        }
        dialler.note("raft", &ended, &backoff);
        dialler.introductions.note_dialled(dialler.peer);
        dialler.pause(&mut backoff).await;
    }
}

async fn stream(
    dialler: &Dialler,
    queue: &SendBuffer,
    announced: &mut Announcements,
    backoff: &mut Backoff,
) -> Ended {
    match talk(dialler, queue, announced, backoff).await {
        Ok(()) => Ended::Away("the peer hung up".to_owned()),
        Err(ended) => ended,
    }
}

async fn talk(
    dialler: &Dialler,
    queue: &SendBuffer,
    announced: &mut Announcements,
    backoff: &mut Backoff,
) -> Result<(), Ended> {
    let mut client = dial::connect(&dialler.address).await?;
    let (frames, receiver) = mpsc::channel(FRAMES);
    let introductions = &dialler.introductions;
    let mut word = introductions.word();
    let greeting = Some(introductions.greeting(dialler.peer));
    let mut told = greeting.as_ref().and_then(|greeting| greeting.memory.clone());
    send(&frames, RaftRequest { greeting, ..RaftRequest::default() }).await?;
    let request = client.raft(ReceiverStream::new(receiver));
    let mut answers = timeout(GREETING_WAIT, request).await??.into_inner();
    let answer = timeout(GREETING_WAIT, answers.message()).await??;
    let theirs = answer.and_then(|answer| answer.greeting);
    match dialler.introductions.check(theirs.as_ref()).await {
        Ok(peer) if peer == dialler.peer => (),
        _ => return Err(Ended::Stranger),
    }
    let start = introductions.trusted(dialler.peer);
    let endpoint = theirs.map(|greeting| greeting.endpoint).unwrap_or_default();
    dialler.shared.set_endpoint(dialler.peer, endpoint);
    dialler.note_open("raft");
    backoff.reset();
    queue.open();
    dialler.introductions.note_dialled(dialler.peer);
    announced.mark_changed();
    word.mark_changed();
    let mut tell = interval(TELL_PAUSE);
    tell.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let request = tokio::select! {
            answer = answers.message() => match answer? {
                // Nothing follows the greeting; what does is of a later version.
                Some(_) => continue,
                None => return Ok(()),
            },
            // The sender lives as long as the node.
            _ = announced.changed() => announcement(&announced.borrow_and_update()),
            _ = word.changed() => {
                let formation = Some(word.borrow_and_update().to_proto());
                RaftRequest { formation, ..RaftRequest::default() }
            }
            _ = tell.tick() => {
                if introductions.trusted(dialler.peer) != start {
                    return Err(Ended::Stranger);
                }
                let memory = Some(introductions.told());
                if memory == told {
                    continue;
                }
                told.clone_from(&memory);
                RaftRequest { memory, ..RaftRequest::default() }
            }
            envelopes = queue.frame() => RaftRequest { envelopes, ..RaftRequest::default() },
        };
        send(&frames, request).await?;
    }
}

fn announcement(announced: &Announced) -> RaftRequest {
    let shards = announced.uncertain.iter().copied().collect();
    let of_shard = |(shard, obstacles): (&ShardId, &Obstacles)| ShardObstacles {
        shard: *shard,
        obstacles: obstacles.iter().map(i32::from).collect(),
    };
    let obstacles = announced.obstacles.iter().map(of_shard).collect();
    RaftRequest {
        uncertain: Some(Uncertain { shards }),
        obstacles: Some(proto::Obstacles { shards: obstacles }),
        ..RaftRequest::default()
    }
}

async fn send(frames: &mpsc::Sender<RaftRequest>, request: RaftRequest) -> Result<(), Ended> {
    frames.send(request).await.map_err(|_| Ended::Away("the peer hung up".to_owned()))
}
