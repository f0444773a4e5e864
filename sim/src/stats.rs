//! What a run has reached: a batch of seeds that never saw a snapshot has not tested snapshots.

use std::fmt;

macro_rules! stats {
    ($($name:ident: $meaning:literal,)*) => {
        /// Counters of a run, or of many.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats {
            $(#[doc = $meaning] pub $name: u64,)*
        }

        impl Stats {
            /// Adds another run.
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }

            /// Counters that are still zero.
            #[must_use]
            pub fn missing(&self) -> Vec<&'static str> {
                let mut missing = Vec::new();
                $(if self.$name == 0 { missing.push(stringify!($name)); })*
                missing
            }
        }

        impl fmt::Display for Stats {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $(write!(f, "{}={} ", stringify!($name), self.$name)?;)*
                Ok(())
            }
        }
    };
}

stats! {
    events: "Events.",
    leaders: "Terms that had a leader.",
    crashes: "Processes that died.",
    lost_tails: "Crashes that lost what was not synced.",
    uncertain: "Starts of a replica that had lost the end of its log.",
    cuts: "Links that were cut.",
    pauses: "Processes that stood still.",
    transfers: "Leaderships that an operator moved.",
    checkpoints: "Checkpoints that were finished.",
    compactions: "Cuts of a log.",
    fetches: "Reads of old entries.",
    snapshots_broken: "Snapshot streams that broke.",
    snapshots_installed: "Snapshots that were installed.",
    snapshots_discarded: "Snapshots that arrived and were not wanted.",
    calls: "Calls of clients.",
    answered: "Calls that were answered.",
    open: "Calls whose end was not seen.",
    retries: "Retries under a request id.",
    maybe_applied: "Refusals that leave the end open.",
    lost_proposals: "Proposals that another leader's entry replaced.",
    not_leader: "Refusals of a node that does not lead.",
    grants: "Locks granted.",
    sessions_expired: "Sessions that expired.",
    deliveries: "Messages delivered.",
    redeliveries: "Messages delivered again.",
    leases_expired: "Leases that ran out.",
    cache_expired: "Cache values that expired.",
    cache_hits: "Reads of a value.",
}
