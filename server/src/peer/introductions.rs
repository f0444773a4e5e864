//! This node's own introduction, and what it knows of its peers: who is a member, who is not the one that it was.
//!
//! `trefoil_core::member` decides; here its words travel, and what it wants written is written before it is said.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use slog::{error, info, warn};
use tokio::sync::{Notify, watch};
use trefoil_core::NodeId;
use trefoil_core::member::{
    self, Formation, Introduction, Memory, News, Objection, Stage, Standing, Word,
};
use trefoil_core::replica::Input;
use trefoil_proto::internal::v1 as proto;
use trefoil_proto::internal::v1::Greeting;
use xxhash_rust::xxh3::xxh3_128;

use super::greeting::{GreetingFault, GreetingRefused};
use crate::shared::Shared;
use crate::shared::clock;
use crate::shared::failure::FatalError;
use crate::storage::{DataDirectory, EngineLog, die};

/// Version of what members say to each other.
const PROTOCOL: u32 = 2;

/// What changes while members speak to each other.
#[derive(Debug)]
struct IntroductionState {
    introduction: Introduction,
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
    log: Arc<EngineLog>,
    peers: BTreeMap<NodeId, Notify>,
    state: Mutex<IntroductionState>,
    /// The start of each peer that is trusted, by its random number; 0 where none is.
    trusted: BTreeMap<NodeId, AtomicU64>,
    /// What to tell peers of the way into the cluster.
    word: watch::Sender<Word>,
    epoch: AtomicU64,
    /// Each fault of each peer is logged once.
    logged: Mutex<BTreeSet<(NodeId, GreetingFault)>>,
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
            log,
            trusted: peers.iter().map(|peer| (*peer, AtomicU64::new(0))).collect(),
            peers: peers.into_iter().map(|peer| (peer, Notify::new())).collect(),
            word: watch::Sender::new(formation.word().clone()),
            state: Mutex::new(IntroductionState {
                introduction: Introduction::new(shared.node, formation, own, memory),
                directory: Some(directory),
            }),
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

    fn lock(&self) -> MutexGuard<'_, IntroductionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The greeting of a new stream.
    pub(crate) fn greeting(&self, to: NodeId) -> Greeting {
        let formation = self.word.borrow().to_proto();
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
        let acknowledged = acknowledged.collect();
        self.lock().introduction.told(acknowledged).to_proto()
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
        let missing = self.lock().introduction.formation().missing();
        let members = self.shared.members.iter().filter(|member| missing.contains(&member.id));
        members.map(|member| member.name.as_str()).collect::<Vec<_>>().join(",")
    }

    /// From now on a majority may form the cluster.
    pub(crate) fn force(&self) {
        let mut state = self.lock();
        state.introduction.force();
        self.advance(&mut state);
    }

    /// Checks a greeting, and remembers what it says.
    pub(crate) async fn check(
        self: &Arc<Self>,
        greeting: Option<&Greeting>,
    ) -> Result<NodeId, GreetingRefused> {
        let Some(greeting) = greeting else { return Err(GreetingFault::Silent.into()) };
        let from = greeting.from;
        let checked = match self.check_place(greeting) {
            Ok(()) => {
                let (this, greeting) = (Arc::clone(self), greeting.clone());
                let hear = move || this.hear_greeting(&greeting);
                let heard = tokio::task::spawn_blocking(hear).await;
                // The node is stopping.
                heard.unwrap_or_else(|_| Err(GreetingFault::OldStream.into()))
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

    fn check_place(&self, greeting: &Greeting) -> Result<(), GreetingFault> {
        if greeting.protocol != PROTOCOL {
            Err(GreetingFault::OtherProtocol)
        } else if greeting.setup[..] != self.setup {
            Err(GreetingFault::OtherSetup)
        } else if greeting.to != self.shared.node {
            Err(GreetingFault::WrongNode)
        } else if self.peers.contains_key(&greeting.from) {
            Ok(())
        } else {
            Err(GreetingFault::UnknownMember)
        }
    }

    /// What is to be kept is on disk when this returns.
    fn hear_greeting(&self, greeting: &Greeting) -> Result<(), GreetingRefused> {
        let from = greeting.from;
        let formation = greeting.formation.clone().unwrap_or_default();
        let word = Word::of_proto(greeting.incarnation, &formation);
        let told = greeting.memory.as_ref().map(Memory::of_proto).unwrap_or_default();
        let mut state = self.lock();
        if state.directory.is_none() {
            return Err(GreetingFault::OldStream.into());
        }
        let heard = state.introduction.greet(from, &word, &told);
        self.carry_out(&mut state, from, heard)
    }

    /// What a peer says after its greeting. Writes where there is something to keep.
    pub(crate) fn hear(
        &self,
        from: NodeId,
        formation: Option<&proto::Formation>,
        memory: Option<&proto::Memory>,
        incarnation: u64,
    ) -> Result<(), GreetingRefused> {
        let mut state = self.lock();
        if state.directory.is_none() {
            return Err(GreetingFault::OldStream.into());
        }
        let word = formation.map(|formation| Word::of_proto(incarnation, formation));
        let told = memory.map(Memory::of_proto);
        let heard = state.introduction.hear(from, word.as_ref(), told.as_ref());
        self.carry_out(&mut state, from, heard)
    }

    /// Does what comes of what a peer said; what is to be written is, when this returns.
    fn carry_out(
        &self,
        state: &mut IntroductionState,
        from: NodeId,
        heard: Result<News, member::Refused>,
    ) -> Result<(), GreetingRefused> {
        let formed = self.is_formed();
        self.advance(state);
        match heard {
            Ok(news) => {
                self.take(state, from, news);
                Ok(())
            }
            Err(member::Refused::Objection(objection)) => {
                if objection.is_about_this_node() {
                    self.shared.fail(self.replaced(from, objection));
                }
                Err(GreetingRefused::of_objection(objection, formed))
            }
            Err(member::Refused::Stale(stale)) => Err(stale.into()),
        }
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
    pub(crate) fn verdict(
        &self,
        peer: NodeId,
        fault: GreetingFault,
        sentence: &str,
    ) -> Option<FatalError> {
        match fault {
            GreetingFault::OtherIncarnation => {
                Some(self.replaced(peer, Objection::Replaced { formed: true }))
            }
            GreetingFault::OlderCopy => Some(FatalError::OlderCopy {
                peer,
                directory: self.path.clone(),
                why: sentence.to_owned(),
            }),
            _ => None,
        }
    }

    /// Goes on as far as what was heard allows.
    fn advance(&self, state: &mut IntroductionState) {
        while let Some(stage) = state.introduction.next() {
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
            state.introduction.reached(stage);
        }
        let formation = state.introduction.formation();
        if let Some(cluster) = formation.cluster() {
            // Once formed, it stays the same.
            self.shared.cluster_id.set(cluster).ok();
        }
        self.word.send_if_modified(|word| {
            let changed = word != formation.word();
            word.clone_from(formation.word());
            changed
        });
    }

    /// Takes what a peer that is accepted tells.
    fn take(&self, state: &IntroductionState, from: NodeId, news: News) {
        for (peer, stale) in news.contradictions {
            error!(self.shared.logger,
                "an older copy of a data directory has taken part: shards may have two histories";
                "member" => peer, "told_by" => from, "why" => %stale);
            for shard in self.shared.all_shards() {
                self.shared.tell(shard, Input::Suspect(from));
            }
        }
        for (peer, trusted) in &self.trusted {
            trusted.store(state.introduction.trusted(*peer), Ordering::Relaxed);
        }
        if let Some(memory) = news.remember {
            self.log.remember(memory);
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
    pub(crate) fn log_once(&self, peer: NodeId, refused: &GreetingRefused, what: &'static str) {
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
