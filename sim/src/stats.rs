//! What a run has reached: a batch of seeds that never saw a snapshot has not tested snapshots.

use std::fmt;

/// What a thousand seeds must have met at least; of everything else once.
const FLOORS: [(&str, u64); 30] = [
    ("forwarded", 50_000),
    ("given_up", 500),
    ("node_retries", 2_000),
    ("plain", 5_000),
    ("leaders", 5_000),
    ("snapshots_installed", 500),
    ("installs_interrupted", 5),
    ("torn_tails", 50),
    ("dedup_hits", 1_000),
    ("expired_after_change", 50),
    ("others_refused", 1_000),
    ("late_retries", 100),
    ("full_disks", 50),
    ("sync_errors", 50),
    ("lost_on_the_way", 20),
    ("older_copies", 100),
    ("copies_restored", 50),
    ("emptied", 20),
    ("shared_grants", 5_000),
    ("together", 2_000),
    ("conversions", 5_000),
    ("deadlocks", 500),
    ("delays", 300),
    ("forced", 1_000),
    ("hang_ups", 1_000),
    ("lock_reads", 5_000),
    ("leaders_told", 100),
    ("latches_opened", 100),
    ("barriers_begun", 500),
    ("fenced", 500),
];

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

            /// Counters that are lower than so many seeds should have made them.
            #[must_use]
            pub fn missing(&self, seeds: u64) -> Vec<String> {
                let mut missing = Vec::new();
                $({
                    let floor: u64 = FLOORS.iter().find(|floor| floor.0 == stringify!($name)).map_or(1, |floor| floor.1 * seeds / 1_000);
                    // Few seeds prove little.
                    if seeds >= 50 && self.$name < floor.max(1) {
                        missing.push(format!("{} of {floor} {}", self.$name, stringify!($name)));
                    }
                })*
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
    cores: "Majorities that worked while faults went on elsewhere.",
    lost_tails: "Losses of power that lost what was not synced.",
    torn_tails: "Starts that cut off a bad tail.",
    uncertain: "Starts of a replica that had lost the end of its log.",
    cuts: "Links that were cut.",
    disk_errors: "Processes that ended because their disk failed.",
    sync_errors: "Syncs that failed.",
    full_disks: "Writes of the log that found no room.",
    full_leaders: "Leaders without room beside a majority that has it.",
    narrow_leaders: "Leaders behind a narrow link beside a majority that works.",
    full_checkpoints: "Checkpoints that found no room.",
    hung_disks: "Disks that synced nothing for a while.",
    bit_flips: "Bits of a log that turned over.",
    rotten_tails: "Ends of a log that were lost although they were synced.",
    states_missing: "State files that were gone at a start.",
    states_unreadable: "State files of which a read failed.",
    writes_lost: "State files that were older in places than what was written.",
    digests: "Digests of states.",
    outvoted: "Replicas whose state was not that of a majority.",
    disputed: "Leaders with whose state no majority agreed.",
    states_restored: "States of peers in the place of damaged ones.",
    lost_on_the_way: "Directories that were emptied before their cluster was formed.",
    formed_anew: "Clusters whose members were all emptied since a promise could not be kept.",
    formed: "Nodes whose cluster was formed.",
    older_copies: "Disks in whose place an older copy was put.",
    copies_refused: "Nodes that ended since a peer knew their directory to be another one.",
    copies_restored: "Disks that were put back in the place of an older copy.",
    emptied: "Majorities that were emptied and formed nothing.",
    refusals: "Nodes that refused to start on a damaged log.",
    pauses: "Processes that stood still.",
    transfers: "Leaderships that an operator moved.",
    checkpoints: "Checkpoints that were finished.",
    compactions: "Cuts of a log.",
    fetches: "Reads of old entries.",
    snapshots_broken: "Snapshot streams that broke.",
    snapshots_installed: "Snapshots that were installed.",
    snapshots_discarded: "Snapshots that arrived and were not wanted.",
    installs_interrupted: "Processes that died while they installed a snapshot.",
    calls: "Calls of clients.",
    answered: "Calls that were answered.",
    open: "Calls whose end was not seen.",
    retries: "Retries under a request id.",
    reused_ids: "Request ids that a client used again for something else.",
    others_refused: "Other operations that were refused under a request id.",
    late_retries: "Retries that a client made when it may have been forgotten.",
    maybe_applied: "Refusals that leave the end open.",
    lost_proposals: "Proposals that another leader's entry replaced.",
    not_leader: "Refusals of a node that does not lead.",
    forwarded: "Tries of calls that were forwarded to the node that leads.",
    cancels_forwarded: "Cancels of forwarded calls.",
    offers: "Grants that were offered to the node that forwarded the call.",
    taken_back: "Grants that nobody claimed.",
    streams_broken: "Streams for forwarded calls that broke.",
    given_up: "Tries whose leader was given up.",
    node_retries: "Further tries of a call that a node made by itself.",
    plain: "Commands without a request id that could not be repeated.",
    grants: "Locks granted.",
    shared_grants: "Locks granted or converted to mode SHARED, as clients were told.",
    together: "Acquires of several locks that got all, as clients were told.",
    permits_taken: "Grants of permits.",
    permits_handed_on: "Grants of permits to who had waited for them.",
    conversions: "Grants whose mode was changed.",
    deadlocks: "Waits that were refused because they would have closed a circle.",
    delays: "Grants that ended with a lock delay.",
    forced: "Grants that an operator took away.",
    hang_ups: "Calls that a client hung up on.",
    lock_reads: "Questions about locks that were answered.",
    leaders_told: "Questions who leads that were answered with a leader.",
    latches_opened: "Latches that were counted down to nothing.",
    barriers_begun: "Rounds of barriers that began.",
    fenced: "Fenced uses that were refused because a newer holder had been there.",
    sessions_expired: "Sessions that expired.",
    expired_after_change: "Sessions that expired soon after a change of leader.",
    wall_clock_decided: "Entries for which wrong wall clocks may have decided.",
    dedup_hits: "Retries that were given a remembered answer.",
    deliveries: "Messages delivered.",
    redeliveries: "Messages delivered again.",
    leases_expired: "Leases that ran out.",
    cache_expired: "Cache values that expired.",
    cache_hits: "Reads of a value.",
}
