//! How changes of a log lie in a record.

use protobuf::Message as _;
use raft_proto::eraftpb::{Entry, HardState};
use trefoil_core::replica::PersistBatch;
use trefoil_core::{META_SHARD, ShardId};
use trefoil_server::storage::LogWrite;
use xxhash_rust::xxh3::xxh3_64;

/// One change of one shard's log.
#[derive(Clone, Debug)]
pub enum LogChange {
    /// Entries and hard state.
    Append(ShardId, PersistBatch),
    /// Entries up to an index of this term are dropped.
    Compact(ShardId, u64, u64),
    /// A snapshot takes the place of the log.
    Install {
        /// The shard.
        shard: ShardId,
        /// The new hard state.
        hard_state: HardState,
        /// Index and term of the snapshot.
        truncated: (u64, u64),
        /// The file that holds the state.
        generation: u64,
    },
    /// What was there before this segment, beside entries.
    Base {
        /// The shard.
        shard: ShardId,
        /// The hard state.
        hard_state: HardState,
        /// Index and term before the first entry.
        truncated: (u64, u64),
        /// The file that holds the state.
        generation: u64,
        /// Whether the end of the log is in doubt.
        uncertain: bool,
        /// Whether the state must not be believed.
        damaged: bool,
    },
    /// Whether the end of the log is in doubt.
    Doubt(ShardId, bool),
    /// The state is in the file of another generation.
    Move(ShardId, u64),
    /// The state must not be believed.
    Damage(ShardId),
    /// The state of another generation has taken its place.
    Rebuild(ShardId, u64),
    /// What is remembered of other members, whatever the shard.
    Remember(Vec<u8>),
}

/// Where an entry of a record lies, counted from the begin of the record.
#[derive(Clone, Copy, Debug)]
pub struct PlacedEntry {
    /// The shard.
    pub shard: ShardId,
    /// Its index.
    pub index: u64,
    /// Offset of its bytes.
    pub offset: u64,
    /// Number of its bytes.
    pub len: u32,
    /// XXH3 of its bytes.
    pub checksum: u64,
}

impl LogChange {
    /// What a batch of the shell changes.
    #[must_use]
    pub fn of(write: &LogWrite) -> Self {
        match write {
            LogWrite::Append(shard, batch) => Self::Append(*shard, batch.clone()),
            LogWrite::Install { shard, hard_state, truncated, generation } => Self::Install {
                shard: *shard,
                hard_state: hard_state.clone(),
                truncated: *truncated,
                generation: *generation,
            },
            LogWrite::Move { shard, generation } => Self::Move(*shard, *generation),
            LogWrite::Damage(shard) => Self::Damage(*shard),
            LogWrite::Rebuild { shard, generation } => Self::Rebuild(*shard, *generation),
        }
    }

    /// Whose log it changes.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        match self {
            Self::Append(shard, _)
            | Self::Compact(shard, ..)
            | Self::Install { shard, .. }
            | Self::Base { shard, .. }
            | Self::Doubt(shard, _)
            | Self::Damage(shard)
            | Self::Rebuild(shard, _)
            | Self::Move(shard, _) => *shard,
            Self::Remember(_) => META_SHARD,
        }
    }

    /// Whether it holds a vote.
    #[must_use]
    pub fn votes(&self) -> bool {
        matches!(self, Self::Append(_, PersistBatch { hard_state: Some(state), .. }) if state.vote != 0)
    }

    /// Writes it at the end of a record.
    pub fn encode(&self, record: &mut Vec<u8>, places: &mut Vec<PlacedEntry>) {
        let mut words = |kind: u8, words: &[u64]| {
            record.push(kind);
            record.extend(self.shard().to_le_bytes());
            record.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        };
        match self {
            Self::Append(shard, batch) => {
                let none = HardState::default();
                let state = batch.hard_state.as_ref();
                let (has, state) = (u64::from(state.is_some()), state.unwrap_or(&none));
                let count = batch.entries.len() as u64;
                words(1, &[has, state.term, state.vote, state.commit, batch.number, count]);
                for entry in &batch.entries {
                    let bytes = entry.write_to_bytes().expect("an entry can be encoded");
                    let checksum = xxh3_64(&bytes);
                    let len = u32::try_from(bytes.len()).expect("an entry is small");
                    record.extend(entry.index.to_le_bytes());
                    record.extend(len.to_le_bytes());
                    record.extend(checksum.to_le_bytes());
                    let offset = record.len() as u64;
                    record.extend(bytes);
                    let index = entry.index;
                    places.push(PlacedEntry { shard: *shard, index, offset, len, checksum });
                }
            }
            Self::Compact(_, to, term) => words(2, &[*to, *term]),
            Self::Install { hard_state, truncated, generation, .. } => {
                words(3, &base(hard_state, *truncated, *generation));
            }
            Self::Base { hard_state, truncated, generation, uncertain, damaged, .. } => {
                let mut state = base(hard_state, *truncated, *generation).to_vec();
                state.push(u64::from(*damaged));
                words(if *uncertain { 5 } else { 4 }, &state);
            }
            Self::Doubt(_, uncertain) => words(6, &[u64::from(*uncertain)]),
            Self::Move(_, generation) => words(7, &[*generation]),
            Self::Damage(_) => words(8, &[]),
            Self::Rebuild(_, generation) => words(9, &[*generation]),
            Self::Remember(memory) => {
                words(10, &[memory.len() as u64]);
                record.extend(memory);
            }
        }
    }
}

fn base(state: &HardState, truncated: (u64, u64), generation: u64) -> [u64; 6] {
    [state.term, state.vote, state.commit, truncated.0, truncated.1, generation]
}

/// Reads the changes of a record, whose checksum is right.
#[derive(Debug)]
pub struct ChangeReader<'a> {
    payload: &'a [u8],
    at: usize,
    head: usize,
}

impl<'a> ChangeReader<'a> {
    /// Begins at the payload, which has `head` bytes before it.
    #[must_use]
    pub fn new(payload: &'a [u8], head: usize) -> Self {
        Self { payload, at: 0, head }
    }

    fn bytes(&mut self, len: usize) -> &'a [u8] {
        self.at += len;
        &self.payload[self.at - len..self.at]
    }

    fn number(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes(8).try_into().expect("eight bytes"))
    }

    fn small(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes(4).try_into().expect("four bytes"))
    }

    fn state(&mut self) -> HardState {
        let (term, vote, commit) = (self.number(), self.number(), self.number());
        HardState { term, vote, commit, ..HardState::default() }
    }

    /// The next change; none at the end.
    ///
    /// # Panics
    /// When a record is not what was written although its checksum is right.
    pub fn change(&mut self, places: &mut Vec<PlacedEntry>) -> Option<LogChange> {
        if self.at == self.payload.len() {
            return None;
        }
        let kind = self.bytes(1)[0];
        let shard = self.small();
        Some(match kind {
            1 => {
                let has = self.number() != 0;
                let state = self.state();
                let (number, count) = (self.number(), self.number());
                let entries = (0..count).map(|_| self.entry(shard, places)).collect();
                let hard_state = has.then_some(state);
                LogChange::Append(shard, PersistBatch { number, entries, hard_state })
            }
            2 => LogChange::Compact(shard, self.number(), self.number()),
            3..=5 => {
                let hard_state = self.state();
                let truncated = (self.number(), self.number());
                let (generation, uncertain) = (self.number(), kind == 5);
                if kind == 3 {
                    LogChange::Install { shard, hard_state, truncated, generation }
                } else {
                    let damaged = self.number() != 0;
                    LogChange::Base { shard, hard_state, truncated, generation, uncertain, damaged }
                }
            }
            6 => LogChange::Doubt(shard, self.number() != 0),
            7 => LogChange::Move(shard, self.number()),
            8 => LogChange::Damage(shard),
            9 => LogChange::Rebuild(shard, self.number()),
            10 => {
                let len = usize::try_from(self.number()).expect("small");
                LogChange::Remember(self.bytes(len).to_vec())
            }
            other => panic!("no change has the kind {other}"),
        })
    }

    fn entry(&mut self, shard: ShardId, places: &mut Vec<PlacedEntry>) -> Entry {
        let (index, len, checksum) = (self.number(), self.small(), self.number());
        let offset = (self.head + self.at) as u64;
        places.push(PlacedEntry { shard, index, offset, len, checksum });
        Entry::parse_from_bytes(self.bytes(len as usize)).expect("its record is whole")
    }
}
