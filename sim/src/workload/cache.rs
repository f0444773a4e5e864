//! What any client may do with the cache.

use super::planned::{PlannedCall, plain_at_times, step};
use crate::check::history::Action;
use crate::client_context::ClientContext;

pub(super) fn cacher(unique: String, shared: &mut ClientContext) -> PlannedCall {
    let key = format!("key-{}", shared.rng.between(1, shared.config.keys));
    let action = match shared.rng.between(0, 9) {
        0..=3 => Action::Put { key, value: unique, ttl_ms: 0 },
        4 => Action::Put { key, value: unique, ttl_ms: shared.rng.between_doublings(1, 4_096) },
        5 => Action::Delete { key },
        _ => Action::Get { key },
    };
    let request = shared.router.request(&action);
    plain_at_times(step(action, request), shared)
}
