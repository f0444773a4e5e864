//! From a data directory to replicas and machines.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use slog::{Logger, o, warn};
use trefoil_core::limits::{MEMBERS_MAX, SHARDS_MAX};
use trefoil_core::machine::Machine;
use trefoil_core::replica::{self, Boot, Replica};
use trefoil_core::{NodeId, ShardId};

use super::applier::Owned;
use super::{Config, StartError, clock};
use crate::storage::log::BIRTH_GENERATION;
use crate::storage::state::remove_other_generations;
use crate::storage::{DataDirectory, EngineLog, Expected, Refusal, StateStore};

/// What the disk held.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) directory: DataDirectory,
    /// The directory was made just now.
    pub(super) new: bool,
    pub(super) log: Arc<EngineLog>,
    /// One for each shard, in order.
    pub(super) boots: Vec<Boot>,
    pub(super) owned: BTreeMap<ShardId, Owned>,
    /// Page cache of each state file.
    pub(super) cache_bytes: usize,
}

impl From<Refusal> for StartError {
    fn from(refusal: Refusal) -> Self {
        Self::Storage(refusal.to_string())
    }
}

/// Sees that the members make a cluster, puts them in order, and returns the peers of this node.
pub(super) fn check_members(config: &mut Config) -> Result<BTreeSet<NodeId>, StartError> {
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
pub(super) fn open(config: &Config) -> Result<Disk, StartError> {
    let root = config.data_dir.as_path();
    let shards = (0..=config.shards).collect::<Vec<ShardId>>();
    let expected = Expected {
        cluster_id: config.cluster_id,
        node_id: config.node,
        node_name: config.name.clone(),
        members: config.members.iter().map(|member| (member.id, member.name.clone())).collect(),
        shards: config.shards,
        services: config.services.clone(),
    };
    let cache_bytes = config.state_cache_bytes / shards.len();
    let (mut directory, _, new) = DataDirectory::open(root, &expected)?;
    if new {
        for shard in &shards {
            give_birth(config, *shard, cache_bytes)?;
        }
        EngineLog::create(root, &shards)?;
        directory.formed()?;
    }
    let (log, recovered) = EngineLog::open(root, &shards)?;
    let mut boots = Vec::new();
    let mut owned = BTreeMap::new();
    for mut shard in recovered {
        let store = StateStore::open_generation(root, shard.shard, shard.generation, cache_bytes)?;
        store.complete(&mut shard.boot)?;
        shard.boot.next_due_ms = Machine::next_due_ms(&store);
        remove_other_generations(root, shard.shard, shard.generation)?;
        let machine = Machine::open(&store, shard.shard, config.shards);
        owned.insert(shard.shard, Owned::new(machine, store, shard.generation));
        boots.push(shard.boot);
    }
    Ok(Disk { directory, new, log: Arc::new(log), boots, owned, cache_bytes })
}

/// Writes the state with which a shard is born, the same on all nodes.
fn give_birth(config: &Config, shard: ShardId, cache_bytes: usize) -> Result<(), StartError> {
    let mut store = StateStore::create(&config.data_dir, shard, BIRTH_GENERATION, cache_bytes)?;
    Machine::bootstrap(&mut store);
    if let Some(checkpoint) = store.freeze() {
        let written = checkpoint.run(None).map_err(|error| StartError::System { what: "with so little disk space", error })?;
        store.finish(&written);
    }
    Ok(())
}

/// The replicas of all shards, in order.
pub(super) fn replicas(config: &Config, boots: &[Boot], logger: &Logger) -> Result<Vec<Replica>, StartError> {
    let voters = config.members.iter().map(|member| member.id).collect::<Vec<_>>();
    let mut replicas = Vec::new();
    for (shard, boot) in (0_u32..).zip(boots) {
        if boot.uncertain {
            warn!(logger, "the end of the log was lost: this node does not vote until it has caught up"; "shard" => shard);
        }
        let preferred = usize::try_from(shard).expect("a shard number fits a usize") % voters.len();
        let replica = replica::Config {
            node: config.node,
            shard,
            voters: voters.clone(),
            preferred_leader: voters[preferred],
            seed: config.seed,
            tuning: config.tuning,
        };
        let replica = Replica::new(replica, boot, clock::now(), &logger.new(o!("shard" => shard)));
        replicas.push(replica.map_err(StartError::Storage)?);
    }
    Ok(replicas)
}
