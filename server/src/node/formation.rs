//! The time before the cluster is formed: the replicas wait, and nothing of them is said to anybody.

use std::time::{Duration, Instant};

use slog::{info, warn};
use trefoil_core::replica::Input;

use crate::peer::Links;
use crate::shared::{ReplicaEvent, Shared};

/// How long all members are waited for where a majority would be enough.
const FORCE_WAIT: Duration = Duration::from_secs(10);
/// How often it is looked at whether the cluster is formed.
const LOOK: Duration = Duration::from_millis(10);
/// The first word of whom is waited for, and the next ones.
const SAY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));

/// Waits until the cluster is formed, and returns what the replicas were told meanwhile: their own threads speak, but
/// no peer of theirs can.
pub(super) fn wait(shared: &Shared, links: &Links, force: bool) -> Vec<ReplicaEvent> {
    let mut held = Vec::new();
    let began = Instant::now();
    let (mut say_at, mut forced) = (began + SAY.0, false);
    while !links.is_formed() {
        let taken = shared.inbox.take(Some(Instant::now() + LOOK));
        held.extend(taken.items.into_iter().filter(|event| match event {
            ReplicaEvent::Peer(_, _, bytes) => {
                shared.received(*bytes);
                false
            }
            ReplicaEvent::Input(_, Input::Unreachable(_)) => false,
            _ => true,
        }));
        if taken.closed {
            return held;
        }
        if force && !forced && began.elapsed() >= FORCE_WAIT {
            warn!(shared.logger, "a majority may form a new cluster, as --force-new-cluster says";
                "missing" => links.missing());
            links.force_new_cluster();
            forced = true;
        }
        if say_at <= Instant::now() {
            say_at = Instant::now() + SAY.1;
            info!(shared.logger, "waits for members, since a cluster is formed with all of them"; "missing" => links.missing());
        }
    }
    held
}
