//! What a shard replicates: sessions, locks, queues and cache lines in one ordered store.
//!
//! [`Machine::apply`] is total and deterministic: a bad command is an answer, not an error, and the only time it
//! knows is the log time of entries. [`Machine::query`] reads the same state at the point where it is called.

mod cache;
mod catalogue;
mod command;
mod context;
mod counts;
mod digest;
mod directory;
mod dispatch;
mod event;
mod fence;
pub mod invariants;
mod lock;
mod measure;
mod namespace;
mod namespace_copy;
mod parked;
mod polls;
mod progress;
mod queue;
mod requests;
mod timers;
mod windows;

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::{Answer, Command, Entry, Progress, Query, query};

use crate::key::{Key, Kind};
use crate::store::{Store, Txn};
use crate::{BIRTH_INDEX, BIRTH_TERM, CallId, Position, ShardId, limits, slot};

pub use self::catalogue::QUEUE_CREATION;
use self::context::{CommandContext, Output, QueryContext, answered, refuse};
pub use self::context::{Outcome, QueryOutcome, Settled, WaiterId};
pub use self::counts::Counts;
pub use self::digest::Digest;
pub use self::directory::Directory;
pub use self::event::{Body, Event};
pub use self::fence::fenced;
pub use self::lock::{caller_lost, is_grant, take_back};
pub use self::measure::{DURATION_BOUNDS_MS, Durations, Gauges};
use self::windows::Windows;

/// What one entry did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied {
    /// Index of the entry.
    pub index: u64,
    /// Its Raft term.
    pub term: u64,
    /// Log time in ms after it.
    pub log_time_ms: u64,
    /// Wall clock stamped on the last entry that had one, in ms.
    pub wall_ms: u64,
    /// One outcome for each command, in order.
    pub outcomes: Vec<Outcome>,
    /// Outcomes that are answers of earlier tries: which, and where they were decided.
    pub recalled: Vec<(u32, Position)>,
    /// Waiting commands that ended.
    pub settled: Vec<Settled>,
    /// Long polls that ended.
    pub polls: Vec<(CallId, Answer)>,
    /// What it did, for those who watch.
    pub events: Vec<Event>,
    /// When the next timer is due, in log time; timers that are due already fire with the next entry.
    pub next_due_ms: Option<u64>,
    /// What happened, for metrics.
    pub counts: Counts,
    /// Hash of all writes since birth.
    pub chain: u64,
    /// Messages neither acknowledged, dead nor expired.
    pub queue_backlog: u64,
    /// The entry named its index: the state that it left is compared with that of the other replicas.
    pub digest_point: bool,
    /// Bytes of changed state in memory; filled in by whoever owns the store.
    pub overlay_bytes: u64,
}

/// The replicated state of one shard, beside its store.
#[derive(Debug)]
pub struct Machine {
    shard: ShardId,
    /// Number of data shards, fixed at bootstrap.
    shards: u32,
    progress: Progress,
    /// What the timers in the store say.
    next_due: timers::NextDue,
    /// Part of the state, and ahead of the store until it is frozen.
    windows: Windows,
    /// Memory for them in bytes.
    windows_bytes_max: usize,
    /// This node leads the shard, as far as the applier was told.
    leads: bool,
    /// What only a leader needs: who holds which cache line. Not replicated, not part of the digest.
    directory: Directory,
    /// Long polls at this leader. Not replicated.
    polls: polls::Polls,
    /// Calls that wait at this leader for latches and barriers. Not replicated.
    parked: parked::ParkedCalls,
}

impl Machine {
    /// Writes the state that every shard is born with, the same on all nodes.
    pub fn bootstrap(store: &mut impl Store) {
        Self::bootstrap_forgetful(store, 0);
    }

    /// The same, where request clients are forgotten after another time than [`limits::REQUEST_CLIENT_IDLE_MS`], in ms
    /// of log time. All nodes must be born with the same.
    pub fn bootstrap_forgetful(store: &mut impl Store, request_client_idle_ms: u64) {
        let progress = Progress {
            index: BIRTH_INDEX,
            term: BIRTH_TERM,
            request_client_idle_ms,
            ..Progress::default()
        };
        store.put(Key::system(Kind::Progress).into(), progress.encode_to_vec().into());
    }

    /// Opens the state of a shard.
    ///
    /// # Panics
    /// When the store was not bootstrapped.
    #[must_use]
    pub fn open(store: &impl Store, shard: ShardId, shards: u32) -> Self {
        let progress =
            store.get(Key::system(Kind::Progress).bytes()).expect("the state says how far it is");
        let progress = crate::store::decode(&progress);
        Self {
            shard,
            shards,
            progress,
            next_due: timers::NextDue::default(),
            windows: Windows::default(),
            windows_bytes_max: limits::REQUEST_WINDOWS_BYTES_MAX,
            leads: false,
            directory: Directory::default(),
            polls: polls::Polls::default(),
            parked: parked::ParkedCalls::default(),
        }
    }

    /// Lets what is remembered of requests take so many bytes of memory. Only how fast it is found depends on it.
    pub fn limit_windows(&mut self, bytes: usize) {
        self.windows_bytes_max = bytes;
    }

    /// Writes what the machine keeps in memory to the store, which then holds the whole state as it stands.
    pub fn freeze(&mut self, store: &mut impl Store) {
        if crate::mutant!(WindowNotFrozen) {
            return;
        }
        if crate::mutant!(WindowFrozenEarly) {
            return;
        }
        self.windows.freeze(store);
    }

    /// All records of the state, as they are once it is frozen.
    #[must_use]
    pub fn records(&self, store: &impl Store) -> Vec<(Bytes, Bytes)> {
        let stored = store.scan(&[], &[u8::MAX; 4], usize::MAX);
        let mut pending = self.windows.pending().collect::<BTreeMap<_, _>>();
        if pending.is_empty() {
            return stored;
        }
        let mut records = stored.into_iter().collect::<BTreeMap<_, _>>();
        records.append(&mut pending);
        records.into_iter().collect()
    }

    /// How far the state is.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// When the next timer is due, in log time.
    #[must_use]
    pub fn next_due_ms(store: &impl Store) -> Option<u64> {
        timers::next_due_ms(store)
    }

    /// Says whether this node leads: what only a leader needs is kept from then on, or no longer.
    pub fn lead(&mut self, leads: bool) {
        if !leads {
            self.directory.clear();
        }
        self.leads = leads;
    }

    /// Applies one committed entry. `data` is empty for the entry with which a leader begins its term.
    ///
    /// # Panics
    /// When the entry is not the next one, or was made by a newer version than this.
    pub fn apply(&mut self, store: &mut impl Store, index: u64, term: u64, data: &[u8]) -> Applied {
        assert_eq!(index, self.progress.index + 1, "entries are applied in order");
        if term != self.progress.term {
            // The directory and the polls belong to one leader's term.
            self.directory.clear();
        }
        if crate::mutant!(WindowFrozenEarly) {
            self.windows.freeze(store);
        }
        let mut applied = Applied { index, term, ..Applied::default() };
        self.progress.index = index;
        let new_term = term != self.progress.term;
        self.progress.term = term;
        if !data.is_empty() {
            let entry = Entry::decode(data).expect("a committed entry is what a leader encoded");
            assert!(
                entry.machine_version <= crate::MACHINE_VERSION,
                "entry {index} needs machine version {}: upgrade this node",
                entry.machine_version
            );
            self.begin_entry(&entry, new_term);
            applied.digest_point = entry.digest_point;
            let mut windows = std::mem::take(&mut self.windows);
            if entry.term == term && self.next_due.may_be_due(self.progress.log_time_ms) {
                self.fire_timers(store, &mut windows, &mut applied);
            }
            for command in &entry.commands {
                let outcome = self.command(store, &mut windows, command, &mut applied);
                applied.outcomes.push(outcome);
            }
            windows.trim(store, self.windows_bytes_max);
            self.windows = windows;
        } else if new_term {
            // The grace of this term starts with its first stamped entry.
            self.progress.term_started_at_ms = u64::MAX;
        }
        store.put(Key::system(Kind::Progress).into(), self.progress.encode_to_vec().into());
        applied.log_time_ms = self.progress.log_time_ms;
        applied.wall_ms = self.progress.wall_ms;
        applied.chain = self.progress.chain;
        applied.queue_backlog = self.progress.queue_backlog;
        applied.next_due_ms = self.next_due.look(store);
        applied
    }

    fn begin_entry(&mut self, entry: &Entry, new_term: bool) {
        self.progress.log_time_ms = self.progress.log_time_ms.max(entry.log_time_ms);
        self.progress.wall_ms = entry.wall_ms;
        if new_term || self.progress.term_started_at_ms == u64::MAX {
            self.progress.term_started_at_ms = self.progress.log_time_ms;
        }
    }

    fn context<'a>(
        &self,
        store: &'a mut dyn Store,
        windows: &'a mut Windows,
        slot: u16,
        command: Option<&'a Command>,
    ) -> CommandContext<'a> {
        CommandContext {
            txn: Txn::new(store),
            windows,
            now_ms: self.progress.log_time_ms,
            wall_ms: self.progress.wall_ms,
            index: self.progress.index,
            term: self.progress.term,
            term_started_ms: self.progress.term_started_at_ms,
            slot,
            command,
            shards: self.shards,
            namespaces: (&self.progress).into(),
            requests: (&self.progress).into(),
            output: Output::default(),
        }
    }

    fn fire_timers(
        &mut self,
        store: &mut impl Store,
        windows: &mut Windows,
        applied: &mut Applied,
    ) {
        let mut keys = 0;
        for timer in timers::due(store, self.progress.log_time_ms, limits::TIMERS_PER_ENTRY_MAX) {
            if keys > limits::TIMER_KEYS_PER_ENTRY_MAX {
                break;
            }
            let mut context = self.context(store, windows, timer.slot, None);
            timers::fired(&mut context, &timer);
            match timer.kind {
                Kind::Session => lock::session_due(&mut context, &timer.rest),
                Kind::Wait => lock::wait_due(&mut context, &timer.rest),
                Kind::Lock => lock::lock_due(&mut context, &timer.rest),
                Kind::Lease => queue::lease_due(&mut context, &timer.rest),
                Kind::CacheItem => cache::item_due(&mut context, &timer.rest),
                Kind::RequestClient => requests::client_due(&mut context, &timer.rest),
                _ => unreachable!("no service sets a timer of kind {:?}", timer.kind),
            }
            keys += context.txn.keys_written();
            self.finish(context, applied);
        }
    }

    /// Makes the writes of a context, and what it says, permanent.
    fn finish(&mut self, mut context: CommandContext<'_>, applied: &mut Applied) {
        requests::settle(&mut context);
        let CommandContext { txn, output, .. } = context;
        if crate::mutant!(LocalState)
            && let Some((key, _)) = output.lines.first()
            && self.directory.read(key, 0) == trefoil_proto::cache::v1::LineState::Exclusive
        {
            self.progress.chain += 1;
        }
        debug_assert!(txn.keys_written() <= limits::KEYS_PER_COMMAND_MAX, "a command is bounded");
        txn.commit(&mut self.progress.chain);
        self.progress.queue_backlog =
            self.progress.queue_backlog.saturating_add_signed(output.backlog);
        output.locks.apply(&mut self.progress);
        self.next_due.change(output.timers);
        output.namespaces.apply(&mut self.progress);
        if let Some(seen_at_ms) = output.forgotten_seen_at_ms {
            let known_from_ms = &mut self.progress.requests_known_from_ms;
            *known_from_ms = (*known_from_ms).max(seen_at_ms.saturating_add(1));
        }
        applied.counts.add(&output.counts);
        applied.settled.extend(output.settled);
        applied.events.extend(output.events);
        if self.leads {
            for (key, writer) in output.lines {
                self.directory.wrote(&key, writer);
            }
        }
        for (key, answer) in output.parked {
            applied.polls.extend(self.parked.open(&key, &answer));
        }
        for (queue_id, partition) in output.ready {
            applied.polls.extend(self.polls.ready(queue_id, partition));
        }
    }

    /// Reads at the applied index. `now_ms` is the leader's estimate of log time: a value whose time is up by it
    /// is not shown, and not said to be gone either, before log time has moved there.
    pub fn query(
        &mut self,
        store: &impl Store,
        call: CallId,
        query: &Query,
        now_ms: u64,
    ) -> QueryOutcome {
        let Ok(slot) = u16::try_from(query.slot) else {
            return answered(refuse(Reason::StaleMap, "the slot is beyond the map"));
        };
        if query.map_epoch != slot::MAP_EPOCH || self.shard != slot::shard(slot, self.shards) {
            return answered(refuse(Reason::StaleMap, "the query was routed by another slot map"));
        }
        if let Some(checked) = &query.fence {
            let reads_value = matches!(query.query, Some(query::Query::Get(_)));
            if let Err(refusal) = fence::admit_query(store, checked, reads_value) {
                return answered(refusal);
            }
        }
        let Some(asked) = &query.query else {
            return answered(refuse(Reason::InvalidField, "the query names nothing"));
        };
        let Self { shards, progress, directory, polls, parked, .. } = self;
        let agent = query.agent;
        let context = &mut QueryContext {
            store,
            slot,
            agent,
            now_ms,
            call,
            shards: *shards,
            progress,
            directory,
            polls,
            parked,
        };
        dispatch::answer(context, asked)
    }

    /// Ends a long poll whose caller went away.
    pub fn cancel(&mut self, call: CallId) {
        self.polls.cancel(call);
        self.parked.cancel(call);
    }

    /// Forgets what only a leader keeps; the polls that end with it are returned.
    pub fn step_down(&mut self) -> Vec<CallId> {
        self.directory.clear();
        let mut calls = self.polls.clear();
        calls.extend(self.parked.clear());
        calls
    }
}
