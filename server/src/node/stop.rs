//! The running node as its owner holds it: to wait for its failure, and to stop it.

use std::time::Duration;

use slog::{info, warn};
use tokio::time::{Instant, sleep, timeout};
use trefoil_core::limits::{HAND_OVER_MS, STOP_ANSWER_MS};
use trefoil_core::replica::Input;
use trefoil_core::replica::obstacles::Obstacle;

use super::handle::Handle;
use super::threads::{PeerRuntime, Threads};
use crate::shared::failure::FatalError;

/// Longest wait for other nodes to take over what this one leads, all in all.
const HAND_OVER_WAIT: Duration = Duration::from_secs(3);
/// Longest wait for the first word of a new leader.
const NEW_LEADER_WAIT: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(10);

/// A running node. Dropping it without [`Node::stop`] leaves its threads running.
#[derive(Debug)]
pub struct Node {
    handle: Handle,
    threads: Threads,
    runtime: PeerRuntime,
}

impl Node {
    pub(super) fn new(handle: Handle, threads: Threads, runtime: PeerRuntime) -> Self {
        Self { handle, threads, runtime }
    }

    /// Waits until the node cannot go on. Its owner then says why and ends the process.
    pub async fn failed(&self) -> FatalError {
        let mut failure = self.handle.shared.failure();
        loop {
            if let Some(error) = failure.borrow_and_update().clone() {
                return error;
            }
            // The sender lives as long as the handle.
            if failure.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Hands over what this node leads, and meanwhile has calls answered by the new leaders; then answers them with
    /// STOPPING, writes what waits, and ends the threads. Every call has its answer within a second, whatever becomes
    /// of the shards.
    pub async fn stop(self) {
        let Self { handle, threads, runtime } = self;
        let logger = handle.shared.logger.clone();
        for shard in handle.shared.all_shards() {
            // Nobody gives it a shard from now on.
            let stopping = Input::Obstacle { obstacle: Obstacle::Stopping, stands: true };
            handle.shared.tell(shard, stopping);
        }
        let hand_over_until = Instant::now() + HAND_OVER_WAIT;
        let is_done =
            timeout(Duration::from_millis(HAND_OVER_MS), hand_over(&handle)).await.is_ok();
        handle.shared.close();
        let until = Instant::now() + Duration::from_millis(STOP_ANSWER_MS);
        while handle.calls_in_flight() > 0 && Instant::now() < until {
            sleep(LOOK).await;
        }
        handle.shared.calls.forsake();
        while !is_done && leads_any(&handle) {
            if Instant::now() >= hand_over_until {
                warn!(logger, "not every shard was taken over by another node");
                break;
            }
            sleep(LOOK).await;
        }
        let ended = tokio::task::spawn_blocking(move || {
            threads.stop();
            runtime.stop();
            handle.links.release();
        });
        ended.await.expect("a panic of a thread ends the process");
        info!(logger, "the node is stopped");
    }
}

fn leads_any(handle: &Handle) -> bool {
    handle.shared.all_shards().any(|shard| handle.shared.table.leads(shard))
}

/// Every shard is asked for at once; a shard that nobody else can take stays.
async fn hand_over(handle: &Handle) {
    let led = handle.shared.all_shards().filter(|shard| handle.shared.table.leads(*shard));
    let transfers = led.map(|shard| {
        let handle = handle.clone();
        tokio::spawn(async move {
            let done = handle.hand_over(shard, None).await;
            // Whoever asks next is sent to the new leader, once it is known.
            let until = Instant::now() + NEW_LEADER_WAIT;
            while done.is_ok() && handle.leader(shard).is_none() && Instant::now() < until {
                sleep(LOOK).await;
            }
            done
        })
    });
    for transfer in transfers.collect::<Vec<_>>() {
        if let Ok(Err(refusal)) = transfer.await {
            info!(handle.shared.logger, "a shard was not handed over"; "reason" => refusal.message);
        }
    }
}
