//! This node's own introduction, and what it knows of its peers: who is a member, who is not the one that it was.
//!
//! `trefoil_core::member` decides; here its words travel, and what it wants written is written before it is said.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use slog::{error, info, warn};
use tokio::sync::{Notify, watch};
use trefoil_core::NodeId;
use trefoil_core::member::{Formation, Memory, Objection, Stage, Standing, Word};
use trefoil_core::replica::Input;
use trefoil_proto::internal::v1 as proto;
use trefoil_proto::internal::v1::Greeting;
use xxhash_rust::xxh3::xxh3_128;

use super::greeting::{Fault, Refused};
use crate::node::shared::Shared;
use crate::node::{FatalError, clock};
use crate::storage::{DataDirectory, EngineLog, die};

/// Version of what members say to each other.
const PROTOCOL: u32 = 2;

/// What changes while members speak to each other.
#[derive(Debug)]
struct State {
    formation: Formation,
    memory: Memory,
    /// None once the node is stopped.
    directory: Option<DataDirectory>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Introductions {
    shared: Arc<Shared>,
    /// Hash of the flags that all members share.
    setup: [u8; 16],
    path: String,
    incarnation: u64,
    own: Standing,
    log: Arc<EngineLog>,
    peers: BTreeMap<NodeId, Notify>,
    state: Mutex<State>,
    /// The start of each peer that is trusted, by its random number; 0 where none is.
    trusted: BTreeMap<NodeId, AtomicU64>,
    /// What to tell peers of the way into the cluster.
    word: watch::Sender<Word>,
    epoch: AtomicU64,
    /// Each fault of each peer is logged once.
    logged: Mutex<BTreeSet<(NodeId, Fault)>>,
    /// Peers that were dialled at least once, with whatever result.
    dialled: watch::Sender<BTreeSet<NodeId>>,
}

impl Introductions {
    pub(crate) fn new(
        shared: Arc<Shared>,
        (setup, peers): ([u8; 16], BTreeSet<NodeId>),
        own: Standing,
        directory: DataDirectory,
        log: Arc<EngineLog>,
    ) -> Self {
        let identity = directory.identity();
        let members = shared.members.iter().map(|member| member.id).collect();
        let formation = Formation::new(shared.node, members, setup, identity.word());
        let memory = log.remembered().and_then(|bytes| Memory::decode(&bytes)).unwrap_or_default();
        let services = identity.services.iter().cloned().collect::<Vec<_>>().join(",");
        let flags = [&setup[..], &identity.shards.to_be_bytes(), services.as_bytes()].concat();
        let this = Self {
            setup: xxh3_128(&flags).to_be_bytes(),
            path: directory.path().display().to_string(),
            incarnation: identity.incarnation,
            own,
            log,
            trusted: peers.iter().map(|peer| (*peer, AtomicU64::new(0))).collect(),
            peers: peers.into_iter().map(|peer| (peer, Notify::new())).collect(),
            word: watch::Sender::new(formation.word().clone()),
            state: Mutex::new(State { formation, memory, directory: Some(directory) }),
            // It rises over restarts as long as the wall clock does; a stream that has ended stands in nobody's way.
            epoch: AtomicU64::new(clock::wall_us()),
            logged: Mutex::default(),
            dialled: watch::Sender::default(),
            shared,
        };
        // A cluster of one is formed at once, and one that was formed before is.
        this.advance(&mut this.lock());
        this
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The greeting of a new stream.
    pub(crate) fn greeting(&self, to: NodeId) -> Greeting {
        let formation = formation_of(&self.word.borrow());
        Greeting {
            setup: self.setup.to_vec().into(),
            from: self.shared.node,
            to,
            incarnation: self.incarnation,
            protocol: PROTOCOL,
            epoch: self.epoch.fetch_add(1, Ordering::Relaxed) + 1,
            endpoint: self.shared.endpoint_of(self.shared.node).unwrap_or_default(),
            formation: Some(formation),
            memory: Some(self.told()),
        }
    }

    /// What to tell peers of the members, this one included.
    pub(crate) fn told(&self) -> proto::Memory {
        let acknowledged = self.shared.table.all().into_iter().filter_map(|state| {
            let status = state.status;
            let end = (status.applied_term, status.applied_index);
            (status.applied_index > 0).then_some((state.shard, end))
        });
        let own = Standing { acknowledged: acknowledged.collect(), ..self.own.clone() };
        let mut memory = self.lock().memory.clone();
        memory.peers.insert(self.shared.node, own);
        memory.to_proto()
    }

    /// How far this node is on its way into its cluster, whenever that changes.
    pub(crate) fn word(&self) -> watch::Receiver<Word> {
        self.word.subscribe()
    }

    /// Whether the cluster is formed.
    pub(crate) fn is_formed(&self) -> bool {
        self.shared.cluster_id.get().is_some()
    }

    /// Members without which the cluster cannot be formed, by name.
    pub(crate) fn missing(&self) -> String {
        let missing = self.lock().formation.missing();
        let members = self.shared.members.iter().filter(|member| missing.contains(&member.id));
        members.map(|member| member.name.as_str()).collect::<Vec<_>>().join(",")
    }

    /// From now on a majority may form the cluster.
    pub(crate) fn force(&self) {
        let mut state = self.lock();
        state.formation.force();
        self.advance(&mut state);
    }

    /// Checks a greeting, and remembers what it says.
    pub(crate) async fn check(
        self: &Arc<Self>,
        greeting: Option<&Greeting>,
    ) -> Result<NodeId, Refused> {
        let Some(greeting) = greeting else { return Err(Fault::Silent.into()) };
        let from = greeting.from;
        let checked = match self.check_place(greeting) {
            Ok(()) => {
                let (this, greeting) = (Arc::clone(self), greeting.clone());
                let hear = move || this.hear_greeting(&greeting);
                let heard = tokio::task::spawn_blocking(hear).await;
                // The node is stopping.
                heard.unwrap_or_else(|_| Err(Fault::OldStream.into()))
            }
            Err(fault) => Err(fault.into()),
        };
        match checked {
            Ok(()) => {
                if let Some(met) = self.peers.get(&from) {
                    met.notify_waiters();
                }
                Ok(from)
            }
            Err(refused) => {
                self.log_once(from, &refused, "refused a peer");
                Err(refused)
            }
        }
    }

    fn check_place(&self, greeting: &Greeting) -> Result<(), Fault> {
        if greeting.protocol != PROTOCOL {
            Err(Fault::OtherProtocol)
        } else if greeting.setup[..] != self.setup {
            Err(Fault::OtherSetup)
        } else if greeting.to != self.shared.node {
            Err(Fault::WrongNode)
        } else if self.peers.contains_key(&greeting.from) {
            Ok(())
        } else {
            Err(Fault::UnknownMember)
        }
    }

    /// What is to be kept is on disk when this returns.
    fn hear_greeting(&self, greeting: &Greeting) -> Result<(), Refused> {
        let from = greeting.from;
        let formation = greeting.formation.clone().unwrap_or_default();
        let word = word_of(greeting.incarnation, &formation);
        let told = greeting.memory.as_ref().map(Memory::of_proto).unwrap_or_default();
        let mut state = self.lock();
        if state.directory.is_none() {
            return Err(Fault::OldStream.into());
        }
        self.hear_word(&mut state, from, &word)?;
        let said = told.peers.get(&from).cloned().unwrap_or_default();
        let before = state.memory.encode();
        state.memory.meet(from, &said)?;
        self.learn(&mut state, from, &told, &before);
        Ok(())
    }

    /// What a peer says after its greeting. Writes where there is something to keep.
    pub(crate) fn hear(
        &self,
        from: NodeId,
        formation: Option<&proto::Formation>,
        memory: Option<&proto::Memory>,
        incarnation: u64,
    ) -> Result<(), Refused> {
        let mut state = self.lock();
        if state.directory.is_none() {
            return Err(Fault::OldStream.into());
        }
        if let Some(formation) = formation {
            self.hear_word(&mut state, from, &word_of(incarnation, formation))?;
        }
        if let Some(memory) = memory {
            let before = state.memory.encode();
            self.learn(&mut state, from, &Memory::of_proto(memory), &before);
        }
        Ok(())
    }

    fn hear_word(&self, state: &mut State, from: NodeId, word: &Word) -> Result<(), Refused> {
        let formed = self.is_formed();
        state.formation.hear(from, word).map_err(|objection| {
            if objection.is_about_this_node() {
                self.shared.fail(self.replaced(from, objection));
            }
            Refused::of_objection(objection, formed)
        })?;
        self.advance(state);
        Ok(())
    }

    fn replaced(&self, peer: NodeId, objection: Objection) -> FatalError {
        let directory = self.path.clone();
        match objection {
            Objection::Forgotten => FatalError::OlderCopy {
                peer,
                directory,
                why: "it has taken part in forming the cluster".to_owned(),
            },
            Objection::Replaced { formed: false } => {
                let what = "it had promised to form a cluster with that one";
                FatalError::Replaced { peer, directory, what }
            }
            _ => FatalError::Replaced { peer, directory, what: "it belongs to a formed cluster" },
        }
    }

    /// Why this node must end, when a peer refuses it for good.
    pub(crate) fn verdict(&self, peer: NodeId, fault: Fault, sentence: &str) -> Option<FatalError> {
        match fault {
            Fault::OtherIncarnation => {
                Some(self.replaced(peer, Objection::Replaced { formed: true }))
            }
            Fault::OlderCopy => Some(FatalError::OlderCopy {
                peer,
                directory: self.path.clone(),
                why: sentence.to_owned(),
            }),
            _ => None,
        }
    }

    /// Goes on as far as what was heard allows.
    fn advance(&self, state: &mut State) {
        while let Some(stage) = state.formation.next() {
            let Some(directory) = &mut state.directory else { return };
            if let Err(refusal) = directory.reach(&stage) {
                // It is not known what is written, and nothing of it was said.
                die(refusal);
            }
            if let Stage::Formed { members, .. } = &stage {
                let text =
                    |(node, incarnation): (&NodeId, &u64)| format!("{node}={incarnation:016x}");
                let members = members.iter().map(text).collect::<Vec<_>>().join(",");
                info!(self.shared.logger, "the cluster is formed"; "incarnations" => members);
            }
            state.formation.reached(stage);
        }
        if let Some(cluster) = state.formation.cluster() {
            // Once formed, it stays the same.
            self.shared.cluster_id.set(cluster).ok();
        }
        self.word.send_if_modified(|word| {
            let changed = word != state.formation.word();
            word.clone_from(state.formation.word());
            changed
        });
    }

    /// Takes what a peer that is accepted tells, and keeps the memory where it is not what it was `before`.
    fn learn(&self, state: &mut State, from: NodeId, told: &Memory, before: &[u8]) {
        for (peer, stale) in state.memory.learn(self.shared.node, from, told) {
            error!(self.shared.logger,
                "an older copy of a data directory has taken part: shards may have two histories";
                "member" => peer, "told_by" => from, "why" => %stale);
            for shard in self.shared.all_shards() {
                self.shared.tell(shard, Input::Suspect(from));
            }
        }
        for (peer, trusted) in &self.trusted {
            let standing = state.memory.peers.get(peer).filter(|standing| !standing.forked);
            let number = standing.and_then(|standing| standing.starts.numbers.last().copied());
            trusted.store(number.unwrap_or_default(), Ordering::Relaxed);
        }
        let after = state.memory.encode();
        if after != before {
            self.log.remember(after);
        }
    }

    /// The start of a peer that is trusted now: streams of any other give way.
    pub(crate) fn trusted(&self, peer: NodeId) -> u64 {
        self.trusted.get(&peer).map_or(0, |number| number.load(Ordering::Relaxed))
    }

    /// Lets go of the data directory: another process may have it.
    pub(crate) fn release(&self) {
        drop(self.lock().directory.take());
    }

    /// Logs a fault the first time that it is seen with this peer.
    pub(crate) fn log_once(&self, peer: NodeId, refused: &Refused, what: &'static str) {
        // Ids of strangers are not remembered one by one.
        let known = if self.peers.contains_key(&peer) { peer } else { 0 };
        let fault = refused.fault;
        if self.logged.lock().unwrap_or_else(PoisonError::into_inner).insert((known, fault)) {
            warn!(self.shared.logger, "{what}"; "peer" => peer, "fault" => fault.name(), "reason" => &refused.sentence);
        }
    }

    /// Waits until a peer introduces itself.
    pub(crate) async fn met(&self, peer: NodeId) {
        match self.peers.get(&peer) {
            Some(met) => met.notified().await,
            None => std::future::pending().await,
        }
    }

    /// A peer was dialled, with whatever result.
    pub(crate) fn note_dialled(&self, peer: NodeId) {
        self.dialled.send_if_modified(|dialled| dialled.insert(peer));
    }

    /// Waits until every peer was dialled once.
    pub(crate) async fn all_dialled(&self) {
        let mut dialled = self.dialled.subscribe();
        // The sender lives as long as this.
        drop(
            dialled.wait_for(|dialled| self.peers.keys().all(|peer| dialled.contains(peer))).await,
        );
    }
}

/// For the wire.
pub(super) fn formation_of(word: &Word) -> proto::Formation {
    let (members, cluster_id) = match &word.stage {
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

fn word_of(incarnation: u64, said: &proto::Formation) -> Word {
    let members = said.members.iter().map(|member| (member.node, member.incarnation)).collect();
    let stage = match <[u8; 16]>::try_from(&said.cluster_id[..]) {
        Ok(cluster) => Stage::Formed { cluster, members },
        Err(_) if members.is_empty() => Stage::New,
        Err(_) => Stage::Promised(members),
    };
    Word { incarnation, stage }
}
