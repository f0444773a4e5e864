//! From a data directory to replicas and machines.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use slog::{Drain as _, Level, LevelFilter, Logger, error, o, warn};
use trefoil_core::limits::{MEMBERS_MAX, SHARDS_MAX};
use trefoil_core::machine::Machine;
use trefoil_core::member::Standing;
use trefoil_core::replica::{self, Boot, Replica};
use trefoil_core::{NodeId, ShardId};

use super::applier::{OpenState, Owned};
use super::config::{NodeConfig, StartError};
use crate::shared::clock;
use crate::shared::observer::Observer;
use crate::storage::{
    self, DataDirectory, EngineLog, Expected, OpenError, Recovered, StorageError, evidence,
};

/// What the disk held.
#[derive(Debug)]
pub(super) struct BootDisk {
    pub(super) directory: DataDirectory,
    pub(super) log: Arc<EngineLog>,
    /// One for each shard, in order.
    pub(super) boots: Vec<Boot>,
    pub(super) owned: BTreeMap<ShardId, Owned>,
    /// Page cache of each state file.
    pub(super) cache_bytes: usize,
}

impl From<OpenError> for StartError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Misuse(sentence) => Self::Storage(sentence),
            OpenError::Damaged(sentence) => Self::Damaged(sentence),
        }
    }
}

impl From<StorageError> for StartError {
    fn from(refusal: StorageError) -> Self {
        Self::Damaged(refusal.0)
    }
}

/// Sees that the members make a cluster, puts them in order, and returns the peers of this node.
pub(super) fn check_members(config: &mut NodeConfig) -> Result<BTreeSet<NodeId>, StartError> {
    config.members.sort_by_key(|member| member.id);
    let ids = config.members.iter().map(|member| member.id).collect::<BTreeSet<_>>();
    let refuse = |sentence: String| Err(StartError::Members(sentence));
    if ids.len() != config.members.len() || ids.contains(&0) {
        return refuse("every member needs an id of its own, 1 or more".to_owned());
    }
    if ids.len() > MEMBERS_MAX {
        return refuse(format!("a cluster has at most {MEMBERS_MAX} members"));
    }
    if !ids.contains(&config.node) {
        return refuse(format!("node {} is not among the members", config.node));
    }
    if !(1..=SHARDS_MAX).contains(&config.shards) {
        return refuse(format!("a cluster has 1 to {SHARDS_MAX} shards"));
    }
    Ok(ids.into_iter().filter(|id| *id != config.node).collect())
}

/// Opens the data directory, and makes it where it is new.
pub(super) fn open(
    config: &NodeConfig,
    observer: &dyn Observer,
    logger: &Logger,
) -> Result<BootDisk, StartError> {
    let expected = Expected {
        setup: config.setup,
        node_id: config.node,
        node_name: config.name.clone(),
        members: config.members.iter().map(|member| (member.id, member.name.clone())).collect(),
        shards: config.shards,
        services: config.services.clone(),
    };
    let disk = storage::node::open(&config.data_dir, &expected, config.state_cache_bytes)?;
    let cache_bytes = config.state_cache_bytes / disk.shards.len();
    let mut boots = Vec::new();
    let mut owned = BTreeMap::new();
    for (Recovered { shard, boot, generation, damage }, store) in disk.shards {
        if let Some(what) = damage {
            error!(logger, "the state of a shard is damaged: it is to be had from a peer"; "shard" => shard, "reason" => what);
            observer.damage(shard);
        }
        let state = store.map(|store| {
            let path = Arc::clone(store.file().path());
            let machine = || Machine::open(&store, shard, config.shards);
            let machine = evidence::catch(&path, machine).map_err(StorageError::from)?;
            Ok::<_, StorageError>(OpenState { machine, store })
        });
        owned.insert(shard, Owned::new(state.transpose()?, generation));
        boots.push(boot);
    }
    for file in disk.kept {
        warn!(logger, "a damaged state file is kept until somebody removes it"; "file" => %file.display());
    }
    let mut directory = disk.directory;
    if config.force_new_cluster {
        directory.break_promise(rand::random())?;
    }
    // Last: a start that is refused changes nothing.
    directory.start(rand::random())?;
    Ok(BootDisk { directory, log: Arc::new(disk.log), boots, owned, cache_bytes })
}

/// What this node tells of itself: its starts, and where its logs end.
pub(super) fn standing(directory: &DataDirectory, boots: &[Boot]) -> Standing {
    Standing::at_start(directory.identity().starts(), (0..).zip(boots))
}

/// The replicas of all shards, in order.
pub(super) fn replicas(
    config: &NodeConfig,
    boots: &[Boot],
    logger: &Logger,
) -> Result<Vec<Replica>, StartError> {
    let voters = config.members.iter().map(|member| member.id).collect::<Vec<_>>();
    let mut replicas = Vec::new();
    for (shard, boot) in (0_u32..).zip(boots) {
        if boot.uncertain {
            warn!(logger, "the end of the log was lost: this node does not vote until it has caught up"; "shard" => shard);
        }
        let preferred = usize::try_from(shard).expect("a shard number fits a usize") % voters.len();
        let replica = replica::ReplicaConfig {
            node: config.node,
            shard,
            voters: voters.clone(),
            preferred_leader: voters[preferred],
            seed: config.seed,
            tuning: config.tuning,
        };
        // raft tells every step of an election; the replicas' thread tells its outcome.
        let quiet = LevelFilter::new(logger.new(o!("shard" => shard)), Level::Warning);
        let quiet = Logger::root(quiet.fuse(), o!());
        let replica = Replica::new(replica, boot, clock::now(), &quiet);
        replicas.push(replica.map_err(StartError::Damaged)?);
    }
    Ok(replicas)
}
