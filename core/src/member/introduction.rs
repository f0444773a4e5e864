//! One member among its peers: it hears greetings, and says who is taken for the member that it says it is.
//!
//! A greeting is heard in one order everywhere: the way into the cluster ([`Formation`]), the directory's own account
//! of itself ([`Memory::meet`]), then what it remembers of others ([`Memory::learn`]). Whoever carries this out writes
//! what [`Introduction::next`] says durably before anything is said that rests on it.

use std::collections::BTreeMap;

use super::formation::{Formation, Objection, Stage, Word};
use super::memory::{Memory, Stale, Standing, TermIndex};
use crate::{NodeId, ShardId};

/// Why a peer is not taken for the member that it says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The two cannot be of one cluster.
    Objection(Objection),
    /// Its directory is an older copy.
    Stale(Stale),
}

impl From<Objection> for Refused {
    fn from(objection: Objection) -> Self {
        Self::Objection(objection)
    }
}

impl From<Stale> for Refused {
    fn from(stale: Stale) -> Self {
        Self::Stale(stale)
    }
}

impl Refused {
    /// Whether the peer must end when it hears this; `formed` says whether who refuses it belongs to a cluster.
    #[must_use]
    pub fn is_verdict(self, formed: bool) -> bool {
        match self {
            Self::Objection(objection) => formed && objection == Objection::OtherIncarnation,
            Self::Stale(_) => true,
        }
    }

    /// Whether it is this node that must end.
    #[must_use]
    pub fn is_about_this_node(self) -> bool {
        matches!(self, Self::Objection(objection) if objection.is_about_this_node())
    }
}

/// What came of what a peer said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Members of whom the two memories contradict each other: the peer's shards may have another history.
    pub contradictions: Vec<(NodeId, Stale)>,
    /// What is to be kept with the next log batch, where that has changed.
    pub remember: Option<Vec<u8>>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Introduction {
    node: NodeId,
    own: Standing,
    formation: Formation,
    memory: Memory,
}

impl Introduction {
    /// Goes on from what the directory holds; `own` is what it says of this start.
    #[must_use]
    pub fn new(node: NodeId, formation: Formation, own: Standing, memory: Memory) -> Self {
        Self { node, own, formation, memory }
    }

    /// How far this member is on its way into its cluster.
    #[must_use]
    pub fn formation(&self) -> &Formation {
        &self.formation
    }

    /// Whether it belongs to a cluster, and so takes part in shards.
    #[must_use]
    pub fn is_formed(&self) -> bool {
        self.formation.cluster().is_some()
    }

    /// From now on a majority may form the cluster.
    pub fn force(&mut self) {
        self.formation.force();
    }

    /// What to write durably next, and then to tell to [`Self::reached`].
    #[must_use]
    pub fn next(&self) -> Option<Stage> {
        self.formation.next()
    }

    /// What [`Self::next`] said is on disk.
    pub fn reached(&mut self, stage: Stage) {
        self.formation.reached(stage);
    }

    /// What to tell peers of the members, this one included, which has acknowledged so much.
    #[must_use]
    pub fn told(&self, acknowledged: BTreeMap<ShardId, TermIndex>) -> Memory {
        let mut memory = self.memory.clone();
        memory.peers.insert(self.node, Standing { acknowledged, ..self.own.clone() });
        memory
    }

    /// A peer begins a stream.
    ///
    /// # Errors
    /// Why it is refused; what it tells of others is not remembered then.
    pub fn greet(&mut self, from: NodeId, word: &Word, told: &Memory) -> Result<News, Refused> {
        self.formation.hear(from, word)?;
        let before = self.memory.encode();
        self.memory.meet(from, &told.peers.get(&from).cloned().unwrap_or_default())?;
        Ok(self.learn(from, told, &before))
    }

    /// A peer that was greeted says what has changed.
    ///
    /// # Errors
    /// Why it is refused from now on.
    pub fn hear(
        &mut self,
        from: NodeId,
        word: Option<&Word>,
        told: Option<&Memory>,
    ) -> Result<News, Refused> {
        if let Some(word) = word {
            self.formation.hear(from, word)?;
        }
        let before = self.memory.encode();
        Ok(told.map(|told| self.learn(from, told, &before)).unwrap_or_default())
    }

    fn learn(&mut self, from: NodeId, told: &Memory, before: &[u8]) -> News {
        let contradictions = self.memory.learn(self.node, from, told);
        let after = self.memory.encode();
        News { contradictions, remember: (after != before).then_some(after) }
    }

    /// The start of a peer that is trusted now, by its random number; 0 where none is. What another start says is not
    /// taken.
    #[must_use]
    pub fn trusted(&self, peer: NodeId) -> u64 {
        let standing = self.memory.peers.get(&peer).filter(|standing| !standing.forked);
        standing.and_then(|standing| standing.starts.numbers.last().copied()).unwrap_or_default()
    }
}
