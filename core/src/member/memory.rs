//! What a member remembers of the others, so that an older copy of a data directory is told from the directory.
//!
//! Each start of a node writes a counter and a fresh random number into its directory, durably, before it talks. Of
//! every member the others remember its newest start, where its logs ended at that start, and how far it has
//! acknowledged since. A directory that knows less than they remember is an older copy: its counter is behind, it has
//! another number at the same count, or its log ends below what it had acknowledged.
//!
//! Members tell each other what they remember, and each keeps it with its next log batch. So what is on disk may be
//! behind by a batch, which is enough: what a member acknowledged in the meantime is in the log of the one that
//! remembers, too, and that one votes by its log. Remembering is for the case in which it was away.
//!
//! Two members that were both away cannot know better than the copy. They go on with it, and that shows later: the
//! one that returns remembers a start, or an end, that contradicts theirs. See [`Memory::learn`].

use std::collections::BTreeMap;

use prost::Message as _;
use trefoil_proto::internal::v1 as proto;

use crate::replica::Boot;
use crate::{NodeId, ShardId};

/// Numbers of starts that are kept: so far back two copies of a directory are told apart.
pub const STARTS_KEPT: usize = 16;

/// A place in a log that orders logs as elections do: term, then index.
pub type TermIndex = (u64, u64);

/// The starts of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Starts {
    /// How many there were.
    pub count: u64,
    /// Random numbers of the last ones, the newest last.
    pub numbers: Vec<u64>,
}

/// How one account of a node's starts stands to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    Same,
    Newer,
    Older,
    /// They have different numbers at the same count.
    Forked(u64),
}

impl Starts {
    /// Another start, with a fresh random number.
    #[must_use]
    pub fn next(&self, number: u64) -> Self {
        let mut numbers = self.numbers.clone();
        numbers.push(number);
        let from = numbers.len().saturating_sub(STARTS_KEPT);
        Self { count: self.count + 1, numbers: numbers.split_off(from) }
    }

    fn number(&self, count: u64) -> Option<u64> {
        let back = usize::try_from(self.count.checked_sub(count)?).ok()?;
        self.numbers.iter().rev().nth(back).copied()
    }

    /// How `said` stands to this account.
    fn relation(&self, said: &Self) -> Relation {
        let common = (1..=self.count.min(said.count)).rev().take(STARTS_KEPT);
        let differs = |count: &u64| {
            let both = self.number(*count).zip(said.number(*count));
            both.is_some_and(|(own, theirs)| own != theirs)
        };
        // The first difference is where they parted.
        if let Some(at) = common.filter(differs).last() {
            return Relation::Forked(at);
        }
        match said.count.cmp(&self.count) {
            std::cmp::Ordering::Equal => Relation::Same,
            std::cmp::Ordering::Greater => Relation::Newer,
            std::cmp::Ordering::Less => Relation::Older,
        }
    }
}

/// What is known of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Its starts, up to the newest.
    pub starts: Starts,
    /// Where the log of each shard ended at the newest start; none for a shard whose log lost its end.
    pub ends: BTreeMap<ShardId, TermIndex>,
    /// What it has acknowledged of each shard: committed, and on its disk.
    pub acknowledged: BTreeMap<ShardId, TermIndex>,
    /// Two copies of its directory have taken part: neither is trusted until the next start of this node.
    pub forked: bool,
}

impl Standing {
    /// What a node says of itself at a start: its starts, and where its logs end.
    #[must_use]
    pub fn at_start<'a>(starts: Starts, boots: impl Iterator<Item = (ShardId, &'a Boot)>) -> Self {
        let end = |(shard, boot): (ShardId, &Boot)| {
            let term = boot.terms.last().map_or(boot.truncated.1, |(_, term)| *term);
            (!boot.uncertain).then_some((shard, (term, boot.last_index)))
        };
        Self { starts, ends: boots.filter_map(end).collect(), ..Self::default() }
    }

    fn acknowledge(&mut self, other: &BTreeMap<ShardId, TermIndex>) -> bool {
        let mut is_more = false;
        for (shard, end) in other {
            let known = self.acknowledged.entry(*shard).or_default();
            is_more |= *end > *known;
            *known = (*known).max(*end);
        }
        is_more
    }

    /// A shard whose log, at the newest start, ended below what had been acknowledged before it.
    fn lost(
        ends: &BTreeMap<ShardId, TermIndex>,
        acknowledged: &BTreeMap<ShardId, TermIndex>,
    ) -> Option<Stale> {
        ends.iter().find_map(|(shard, end)| {
            let known = acknowledged.get(shard).filter(|known| *known > end)?;
            Some(Stale::Lost { shard: *shard, known: *known, end: *end })
        })
    }
}

/// How a directory shows that it is an older copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stale {
    /// It was started more often than it knows.
    Older {
        /// Starts that are known.
        known: u64,
        /// Starts that it says.
        said: u64,
    },
    /// Another copy of it was started, too.
    Forked {
        /// The first start at which they differ; 0 when that was told by others.
        at: u64,
    },
    /// Its log ends below what it acknowledged.
    Lost {
        /// The shard.
        shard: ShardId,
        /// Term and index that it acknowledged.
        known: TermIndex,
        /// Term and index at which its log ends.
        end: TermIndex,
    },
}

impl std::fmt::Display for Stale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Older { known, said } => {
                write!(f, "it was started {known} times, and this directory says {said}")
            }
            Self::Forked { at: 0 } => f.write_str("another copy of this directory has taken part"),
            Self::Forked { at } => {
                write!(f, "another copy of this directory was started, too, from start {at} on")
            }
            Self::Lost { shard, known, end } => write!(
                f,
                "it acknowledged shard {shard} up to index {} of term {}, and the log of this directory ends at \
                 index {} of term {}",
                known.1, known.0, end.1, end.0
            ),
        }
    }
}

/// What a member remembers of the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// By node.
    pub peers: BTreeMap<NodeId, Standing>,
}

impl Memory {
    /// A peer introduces itself, with its own standing.
    ///
    /// # Errors
    /// How it shows that it is an older copy; nothing of it is remembered then.
    pub fn meet(&mut self, peer: NodeId, said: &Standing) -> Result<(), Stale> {
        let known = self.peers.entry(peer).or_default();
        let relation = known.starts.relation(&said.starts);
        let stale = match relation {
            _ if known.forked => Some(Stale::Forked { at: 0 }),
            Relation::Forked(at) => Some(Stale::Forked { at }),
            Relation::Older => {
                Some(Stale::Older { known: known.starts.count, said: said.starts.count })
            }
            // One process does not lose what it has; what it acknowledged since may be known here from others.
            Relation::Same => None,
            Relation::Newer => Standing::lost(&said.ends, &known.acknowledged),
        };
        if let Some(stale) = stale.filter(|_| !crate::mutant!(OlderCopyAccepted)) {
            return Err(stale);
        }
        if relation != Relation::Same {
            known.starts = said.starts.clone();
            known.ends = said.ends.clone();
        }
        known.acknowledge(&said.acknowledged);
        Ok(())
    }

    /// A peer that was met tells of itself again, and what it remembers of others. Returns those of whom the two
    /// memories contradict each other: an older copy of their directory has taken part on one side, so that the
    /// shards of the two may have gone on from different histories. They are not trusted any more.
    pub fn learn(&mut self, node: NodeId, from: NodeId, told: &Self) -> Vec<(NodeId, Stale)> {
        let mut contradictions = Vec::new();
        for (peer, said) in told.peers.iter().filter(|(peer, _)| **peer != node) {
            let known = self.peers.entry(*peer).or_default();
            if *peer == from {
                known.acknowledge(&said.acknowledged);
                continue;
            }
            let found = match known.starts.relation(&said.starts) {
                Relation::Forked(at) => Some(Stale::Forked { at }),
                Relation::Same => None,
                Relation::Newer => Standing::lost(&said.ends, &known.acknowledged),
                Relation::Older => Standing::lost(&known.ends, &said.acknowledged),
            };
            let was_forked = known.forked;
            known.forked |= said.forked || found.is_some();
            if let Some(stale) = found
                && !was_forked
            {
                contradictions.push((*peer, stale));
            }
            if !known.forked && known.starts.relation(&said.starts) == Relation::Newer {
                known.starts = said.starts.clone();
                known.ends = said.ends.clone();
            }
            if !known.forked {
                known.acknowledge(&said.acknowledged);
            }
        }
        contradictions
    }

    /// What there is to tell, as bytes and for the wire.
    #[must_use]
    pub fn to_proto(&self) -> proto::Memory {
        let place = |(shard, (term, index)): (&ShardId, &TermIndex)| proto::LogEnd {
            shard: *shard,
            term: *term,
            index: *index,
        };
        let standings = self.peers.iter().map(|(node, standing)| proto::Standing {
            node: *node,
            starts: standing.starts.count,
            numbers: standing.starts.numbers.clone(),
            ends: standing.ends.iter().map(place).collect(),
            acknowledged: standing.acknowledged.iter().map(place).collect(),
            forked: standing.forked,
        });
        proto::Memory { standings: standings.collect() }
    }

    /// What a peer tells, or the disk holds.
    #[must_use]
    pub fn of_proto(memory: &proto::Memory) -> Self {
        let places = |places: &[proto::LogEnd]| {
            places.iter().map(|place| (place.shard, (place.term, place.index))).collect()
        };
        let standing = |standing: &proto::Standing| Standing {
            starts: Starts { count: standing.starts, numbers: standing.numbers.clone() },
            ends: places(&standing.ends),
            acknowledged: places(&standing.acknowledged),
            forked: standing.forked,
        };
        Self { peers: memory.standings.iter().map(|said| (said.node, standing(said))).collect() }
    }

    /// For the disk. Which directories are not trusted is not kept: whoever knows of it says so again, and a person
    /// may start the nodes of one history alone.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut memory = self.to_proto();
        memory.standings.iter_mut().for_each(|standing| standing.forked = false);
        memory.encode_to_vec()
    }

    /// From the disk; none when it is not what [`Self::encode`] wrote.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        proto::Memory::decode(bytes).ok().map(|memory| Self::of_proto(&memory))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts(numbers: &[u64]) -> Starts {
        numbers.iter().fold(Starts::default(), |starts, number| starts.next(*number))
    }

    fn standing(numbers: &[u64], end: TermIndex, acknowledged: TermIndex) -> Standing {
        Standing {
            starts: starts(numbers),
            ends: [(1, end)].into(),
            acknowledged: [(1, acknowledged)].into(),
            forked: false,
        }
    }

    fn memory(peers: &[(NodeId, Standing)]) -> Memory {
        Memory { peers: peers.iter().cloned().collect() }
    }

    #[test]
    fn a_directory_that_knows_less_is_refused() {
        let mut memory = Memory::default();
        assert_eq!(memory.meet(2, &standing(&[1], (1, 10), (1, 10))), Ok(()));
        assert_eq!(memory.meet(2, &standing(&[1, 2], (2, 50), (2, 50))), Ok(()));
        assert_eq!(memory.meet(2, &standing(&[1, 2], (2, 50), (2, 80))), Ok(()), "another stream");
        let before = memory.clone();
        let stale = [
            (standing(&[1], (1, 10), (1, 10)), Stale::Older { known: 2, said: 1 }),
            (standing(&[1, 9], (1, 10), (1, 10)), Stale::Forked { at: 2 }),
            (standing(&[1, 9, 8, 7], (2, 99), (2, 99)), Stale::Forked { at: 2 }),
            (
                standing(&[1, 2, 3], (2, 79), (2, 79)),
                Stale::Lost { shard: 1, known: (2, 80), end: (2, 79) },
            ),
            (
                standing(&[1, 2, 3], (1, 99), (1, 99)),
                Stale::Lost { shard: 1, known: (2, 80), end: (1, 99) },
            ),
        ];
        for (said, why) in stale {
            assert_eq!(memory.meet(2, &said), Err(why));
            assert_eq!(memory, before, "nothing of it is remembered");
        }
        assert_eq!(memory.meet(2, &standing(&[1, 2, 3], (3, 20), (3, 20))), Ok(()), "a later term");
        let mut uncertain = standing(&[1, 2, 3, 4], (0, 0), (3, 20));
        uncertain.ends.clear();
        assert_eq!(memory.meet(2, &uncertain), Ok(()), "it says itself that its end is lost");
    }

    #[test]
    fn starts_are_told_apart_as_far_back_as_they_are_kept() {
        let long = (1..=40).collect::<Vec<_>>();
        let mut memory = Memory::default();
        assert_eq!(memory.meet(2, &standing(&long, (1, 10), (1, 10))), Ok(()));
        let mut copy = long[..30].to_vec();
        copy.extend(100..115);
        let fork = Stale::Forked { at: 31 };
        assert_eq!(memory.meet(2, &standing(&copy, (9, 99), (9, 99))), Err(fork));
        let mut next = long.clone();
        next.extend(41..=70);
        assert_eq!(memory.meet(2, &standing(&next, (1, 10), (1, 10))), Ok(()), "all missed");
    }

    #[test]
    fn what_two_remember_of_a_third_may_contradict_itself() {
        // Node 1 saw what node 2 acknowledged; node 3 was away, and went on with an older copy of node 2.
        let cases = [
            (standing(&[1, 2], (1, 10), (1, 90)), standing(&[1, 5], (1, 40), (2, 70)), "a fork"),
            (standing(&[1], (1, 10), (1, 90)), standing(&[1, 5], (1, 40), (2, 70)), "lost ends"),
        ];
        for (of_one, of_three, what) in cases {
            for (mine, theirs, me, from) in [(&of_one, &of_three, 1, 3), (&of_three, &of_one, 3, 1)]
            {
                let mut own = memory(&[(2, mine.clone())]);
                let told = memory(&[(2, theirs.clone())]);
                assert_eq!(own.learn(me, from, &told).len(), 1, "{what}, heard by {me}");
                assert!(own.peers[&2].forked);
                assert_eq!(
                    own.meet(2, &standing(&[1, 2, 3], (9, 99), (9, 99))),
                    Err(Stale::Forked { at: 0 })
                );
                assert_eq!(own.learn(me, from, &told), [], "it is said once");
            }
        }
    }

    #[test]
    fn what_others_remember_is_learned() {
        let mut own = memory(&[(2, standing(&[1], (1, 10), (1, 20)))]);
        let told = memory(&[
            (1, standing(&[7], (1, 10), (1, 10))),
            (2, standing(&[1, 2], (1, 30), (2, 50))),
            (3, standing(&[3], (1, 10), (2, 60))),
        ]);
        assert_eq!(own.meet(3, &told.peers[&3]), Ok(()));
        assert_eq!(own.learn(1, 3, &told), []);
        assert!(!own.peers.contains_key(&1), "nobody tells this node of itself");
        assert_eq!(own.peers[&2], told.peers[&2]);
        assert!(own.meet(2, &standing(&[1], (1, 10), (1, 20))).is_err(), "the one before");
        assert_eq!(Memory::decode(&own.encode()), Some(own.clone()));
        // Older news takes nothing away, and what it acknowledged counts.
        let old = memory(&[(2, standing(&[1], (1, 10), (1, 30)))]);
        assert_eq!(own.learn(1, 3, &old), []);
        assert_eq!(own.peers[&2], told.peers[&2]);
    }
}
