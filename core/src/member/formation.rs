//! How a cluster is formed for the first time, so that it is formed once.
//!
//! A member first hears of every other one that it is there, and its incarnation (a random number of its directory).
//! Then it *promises*, durably, to form a cluster of exactly these directories; once it has heard the same promise
//! from all of them it is *formed*, and only then it takes part in any shard.
//!
//! A directory promises once. So two clusters that were formed of the same flags have no directory in common: no
//! quorum of the one can be mistaken for one of the other, and the id of a cluster, a hash of its incarnations, tells
//! them apart. While any member still has the directory with which it was formed, an emptied one finds no cluster that
//! it could form: the promise of that member is missing. A member that dies on the way goes on from what it wrote; it
//! may learn from a formed one that all had promised. One that is emptied between its promise and the end leaves the
//! others with a promise that cannot be kept: they wait, and a person empties them, too (nothing was ever served).

use std::collections::{BTreeMap, BTreeSet};

use trefoil_proto::internal::v1 as proto;
use xxhash_rust::xxh3::Xxh3;

use crate::NodeId;

/// Incarnation of each member.
pub type Incarnations = BTreeMap<NodeId, u64>;

/// How far a directory has come. It never goes back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// It has promised nothing.
    #[default]
    New,
    /// It forms a cluster of these directories, or none.
    Promised(Incarnations),
    /// It belongs to a cluster.
    Formed {
        /// Id of the cluster.
        cluster: [u8; 16],
        /// Its members; after a forced formation, those that were there and those that were met since.
        members: Incarnations,
    },
}

/// What a member says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Word {
    /// Random number of its directory.
    pub incarnation: u64,
    /// How far it is.
    pub stage: Stage,
}

impl Word {
    /// The stage, for the wire.
    #[must_use]
    pub fn to_proto(&self) -> proto::Formation {
        let (members, cluster_id) = match &self.stage {
            Stage::New => return proto::Formation::default(),
            Stage::Promised(members) => (members, Vec::new()),
            Stage::Formed { cluster, members } => (members, cluster.to_vec()),
        };
        let member = |(node, incarnation): (&NodeId, &u64)| proto::Incarnation {
            node: *node,
            incarnation: *incarnation,
        };
        proto::Formation {
            members: members.iter().map(member).collect(),
            cluster_id: cluster_id.into(),
        }
    }

    /// What a member of this incarnation says.
    #[must_use]
    pub fn of_proto(incarnation: u64, said: &proto::Formation) -> Self {
        let members = said.members.iter().map(|member| (member.node, member.incarnation)).collect();
        let stage = match <[u8; 16]>::try_from(&said.cluster_id[..]) {
            Ok(cluster) => Stage::Formed { cluster, members },
            Err(_) if members.is_empty() => Stage::New,
            Err(_) => Stage::Promised(members),
        };
        Self { incarnation, stage }
    }
}

/// Why a member and a peer cannot be of one cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objection {
    /// The peer knows this node by another directory: this node must end.
    Replaced {
        /// Whether the peer belongs to a cluster already; otherwise it has only promised.
        formed: bool,
    },
    /// The peer saw this directory promise, and the directory does not know: it is an older copy, and must end.
    Forgotten,
    /// The peer has another directory than the one it was known by.
    OtherIncarnation,
    /// The peer belongs to another cluster, or has promised to.
    OtherCluster,
    /// The peer says that it has promised nothing, although it had; that may be an old word of it.
    Behind,
}

impl Objection {
    /// Whether it is this node that must not take part.
    #[must_use]
    pub fn is_about_this_node(self) -> bool {
        matches!(self, Self::Replaced { .. } | Self::Forgotten)
    }
}

/// One member on its way into its cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Formation {
    node: NodeId,
    /// All members that the flags name.
    members: BTreeSet<NodeId>,
    /// Hash of the flags.
    setup: [u8; 16],
    own: Word,
    heard: BTreeMap<NodeId, Word>,
    forced: bool,
}

/// Id of the cluster that these directories form.
#[must_use]
pub fn cluster_id(setup: [u8; 16], members: &Incarnations) -> [u8; 16] {
    let mut hash = Xxh3::new();
    hash.update(&setup);
    for (node, incarnation) in members {
        hash.update(&node.to_be_bytes());
        hash.update(&incarnation.to_be_bytes());
    }
    hash.digest128().to_be_bytes()
}

impl Formation {
    /// Goes on from what the directory holds; `setup` is the hash of the flags, equal on all members.
    #[must_use]
    pub fn new(node: NodeId, members: BTreeSet<NodeId>, setup: [u8; 16], own: Word) -> Self {
        Self { node, members, setup, own, heard: BTreeMap::new(), forced: false }
    }

    /// What to tell peers.
    #[must_use]
    pub fn word(&self) -> &Word {
        &self.own
    }

    /// Id of the cluster; none before it is formed.
    #[must_use]
    pub fn cluster(&self) -> Option<[u8; 16]> {
        match &self.own.stage {
            Stage::Formed { cluster, .. } => Some(*cluster),
            Stage::New | Stage::Promised(_) => None,
        }
    }

    /// From now on a majority is enough (`--force-new-cluster`). Members that are away may join later; whoever was a
    /// member of an older cluster of these flags is not known.
    pub fn force(&mut self) {
        self.forced = true;
    }

    /// Members that this one still waits for.
    #[must_use]
    pub fn missing(&self) -> Vec<NodeId> {
        let others = self.members.iter().filter(|member| **member != self.node);
        let awaited = |member: &&NodeId| match (&self.own.stage, self.heard.get(member)) {
            (Stage::Formed { .. }, _) => false,
            (_, None) => true,
            (Stage::New, Some(_)) => false,
            (Stage::Promised(set), Some(word)) => {
                set.contains_key(member) && word.stage == Stage::New
            }
        };
        others.filter(awaited).copied().collect()
    }

    /// A peer says how far it is. What it said before counts no longer.
    ///
    /// # Errors
    /// Why it cannot be of one cluster with this node; the word is not remembered then.
    pub fn hear(&mut self, from: NodeId, word: &Word) -> Result<(), Objection> {
        self.check(from, word)?;
        self.heard.insert(from, word.clone());
        Ok(())
    }

    fn check(&self, from: NodeId, word: &Word) -> Result<(), Objection> {
        let own = self.own.incarnation;
        match (&self.own.stage, &word.stage) {
            (Stage::New, Stage::New) => Ok(()),
            (Stage::New, Stage::Promised(set)) => match set.get(&self.node) {
                Some(known) if *known != own => Err(Objection::Replaced { formed: false }),
                _ => Ok(()),
            },
            (Stage::New, Stage::Formed { members, .. }) => match members.get(&self.node) {
                Some(known) if *known != own => Err(Objection::Replaced { formed: true }),
                Some(_) => Err(Objection::Forgotten),
                None => Ok(()),
            },
            (Stage::Promised(set), theirs) => {
                is_known(set, from, word)?;
                let agrees = match theirs {
                    Stage::New => true,
                    Stage::Promised(other) => other == set,
                    Stage::Formed { cluster, .. } => *cluster == cluster_id(self.setup, set),
                };
                if agrees { Ok(()) } else { Err(Objection::OtherCluster) }
            }
            // Whatever directories it had before: neither cluster may end the members of the other.
            (Stage::Formed { cluster, .. }, Stage::Formed { cluster: other, .. })
                if other != cluster =>
            {
                Err(Objection::OtherCluster)
            }
            (Stage::Formed { cluster, members }, theirs) => {
                is_known(members, from, word)?;
                match theirs {
                    Stage::New if members.contains_key(&from) => Err(Objection::Behind),
                    Stage::New => Ok(()),
                    Stage::Promised(set) if cluster_id(self.setup, set) != *cluster => {
                        Err(Objection::OtherCluster)
                    }
                    Stage::Promised(_) | Stage::Formed { .. } => Ok(()),
                }
            }
        }
    }

    /// What this member may become now: to be written durably, and then told to [`Self::reached`].
    #[must_use]
    pub fn next(&self) -> Option<Stage> {
        match &self.own.stage {
            Stage::New => self.joined().or_else(|| self.promise()),
            Stage::Promised(set) => {
                let formed =
                    Stage::Formed { cluster: cluster_id(self.setup, set), members: set.clone() };
                let mut others = set.keys().filter(|member| **member != self.node);
                let said = |member: &NodeId| self.heard.get(member).map(|word| &word.stage);
                let is_formed = |stage: &Stage| matches!(stage, Stage::Formed { .. });
                let all =
                    others.all(|member| said(member).is_some_and(|stage| *stage != Stage::New));
                // A formed one had heard the promises of all.
                (all || self.heard.values().any(|word| is_formed(&word.stage))).then_some(formed)
            }
            Stage::Formed { cluster, members } => {
                let met = self.heard.iter().filter(|(peer, word)| {
                    !members.contains_key(peer) && matches!(word.stage, Stage::Formed { .. })
                });
                let met = met.map(|(peer, word)| (*peer, word.incarnation)).collect::<Vec<_>>();
                let more =
                    || members.iter().map(|(node, known)| (*node, *known)).chain(met.clone());
                (!met.is_empty())
                    .then(|| Stage::Formed { cluster: *cluster, members: more().collect() })
            }
        }
    }

    /// The promise that this member may give: of all members, or, where somebody has promised already, that one.
    fn promise(&self) -> Option<Stage> {
        let mut all = self.heard.iter().map(|(peer, word)| (*peer, word.incarnation));
        let mut promised = self.heard.values().filter_map(|word| match &word.stage {
            Stage::Promised(set) if set.contains_key(&self.node) => Some(set),
            _ => None,
        });
        let enough = self.heard.len() + 1 == self.members.len()
            || (self.may_be_few() && self.heard.len() + 1 > self.members.len() / 2);
        let set = match promised.next() {
            Some(set) => set.clone(),
            None if enough => {
                let mut set = Incarnations::from([(self.node, self.own.incarnation)]);
                set.extend(&mut all);
                set
            }
            None => return None,
        };
        let fits = |(member, incarnation): (&NodeId, &u64)| {
            *member == self.node
                || self.heard.get(member).is_some_and(|word| {
                    let agrees = match &word.stage {
                        Stage::New => true,
                        Stage::Promised(other) => *other == set,
                        Stage::Formed { .. } => false,
                    };
                    word.incarnation == *incarnation && agrees
                })
        };
        set.iter().all(fits).then(|| Stage::Promised(set.clone()))
    }

    /// Whether a majority may form a cluster.
    fn may_be_few(&self) -> bool {
        self.forced || crate::mutant!(FormedWithoutAll)
    }

    /// A member that was away while others formed their cluster by force becomes one of it.
    fn joined(&self) -> Option<Stage> {
        self.heard.values().find_map(|word| match &word.stage {
            Stage::Formed { cluster, members } if !members.contains_key(&self.node) => {
                let mut members = members.clone();
                members.insert(self.node, self.own.incarnation);
                Some(Stage::Formed { cluster: *cluster, members })
            }
            _ => None,
        })
    }

    /// What [`Self::next`] said is on disk.
    pub fn reached(&mut self, stage: Stage) {
        self.own.stage = stage;
        // What was said before may not agree with it.
        let heard = std::mem::take(&mut self.heard);
        for (peer, word) in heard {
            // A peer that does not agree says so again.
            self.hear(peer, &word).ok();
        }
    }
}

fn is_known(members: &Incarnations, from: NodeId, word: &Word) -> Result<(), Objection> {
    match members.get(&from) {
        Some(known) if *known != word.incarnation => Err(Objection::OtherIncarnation),
        _ => Ok(()),
    }
}
