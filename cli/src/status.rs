//! `trefoil status`: every node and every shard, as the nodes themselves see them.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use serde::Serialize;
use trefoil_client::NodeStatus;
use trefoil_client::proto::cluster::v1::{Obstacle, StatusResponse};

use crate::args::ClientArgs;
use crate::client::connect;
use crate::exit::CommandFailure;
use crate::output::{self, CommandOutput, Format};

/// The role of a leader in ShardStatus.
const LEADER: u32 = 2;

/// The cluster as its nodes see it.
#[derive(Debug, Serialize)]
pub(crate) struct StatusOutput {
    pub(crate) cluster_id: String,
    pub(crate) nodes: Vec<NodeRow>,
    pub(crate) shards: Vec<ShardStatusRow>,
}

/// One node.
#[derive(Debug, Serialize)]
pub(crate) struct NodeRow {
    /// 0 when it did not answer.
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) endpoint: String,
    pub(crate) version: String,
    pub(crate) uptime_ms: u64,
    /// Shards that it leads.
    pub(crate) leads: Vec<u32>,
    /// Why it did not answer.
    pub(crate) error: Option<String>,
}

/// One shard.
#[derive(Debug, Serialize)]
pub(crate) struct ShardStatusRow {
    /// 0 is the meta shard.
    pub(crate) shard: u32,
    pub(crate) term: u64,
    /// Id of the leader in that term; 0 when nobody knows one.
    pub(crate) leader_id: u64,
    pub(crate) commit_index: u64,
    pub(crate) replicas: Vec<ReplicaRow>,
}

/// One shard on one node.
#[derive(Debug, Serialize)]
pub(crate) struct ReplicaRow {
    pub(crate) node_id: u64,
    pub(crate) role: &'static str,
    pub(crate) term: u64,
    pub(crate) applied_index: u64,
    /// Committed entries that it has not applied, against the highest commit index that any node told.
    pub(crate) lag: u64,
    pub(crate) log_bytes: u64,
    pub(crate) state_bytes: u64,
    /// It lost the end of its log and has not caught up since.
    pub(crate) uncertain: bool,
    /// What keeps it from leading.
    pub(crate) obstacles: Vec<String>,
}

pub(crate) async fn run(args: &ClientArgs, format: Format) -> Result<ExitCode, CommandFailure> {
    let answers = connect(args).await?.cluster().status().await;
    let status = StatusOutput::new(answers);
    output::print(format, &status)?;
    Ok(if status.is_whole() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl StatusOutput {
    /// Puts together what the nodes said.
    pub(crate) fn new(answers: Vec<NodeStatus>) -> Self {
        let names = answers
            .iter()
            .filter_map(|answer| answer.status.as_ref().ok())
            .flat_map(|status| &status.members);
        let names = names.map(|member| (member.endpoint.clone(), (member.id, member.name.clone())));
        let names = names.collect::<BTreeMap<_, _>>();
        let heard =
            answers.iter().filter_map(|answer| answer.status.as_ref().ok()).collect::<Vec<_>>();
        let shards = heard.iter().flat_map(|status| status.shards.iter().map(|shard| shard.shard));
        let shards = shards
            .collect::<BTreeSet<_>>()
            .into_iter()
            .map(|shard| ShardStatusRow::new(shard, &heard))
            .collect();
        let cluster_id = heard
            .iter()
            .find_map(|status| status.header.as_ref())
            .map(|header| header.cluster_id.clone());
        Self {
            cluster_id: cluster_id.unwrap_or_default(),
            shards,
            nodes: answers.into_iter().map(|answer| NodeRow::new(answer, &names)).collect(),
        }
    }

    /// Whether every node answered and every shard has a leader.
    pub(crate) fn is_whole(&self) -> bool {
        self.nodes.iter().all(|node| node.error.is_none())
            && !self.shards.is_empty()
            && self.shards.iter().all(|shard| shard.leader_id != 0)
    }
}

impl NodeRow {
    fn new(answer: NodeStatus, names: &BTreeMap<String, (u64, String)>) -> Self {
        match answer.status {
            Ok(status) => Self {
                id: node_id(&status),
                leads: status
                    .shards
                    .iter()
                    .filter(|shard| shard.role == LEADER)
                    .map(|shard| shard.shard)
                    .collect(),
                name: status.node_name,
                endpoint: answer.endpoint,
                version: status.version,
                uptime_ms: status.uptime_ms,
                error: None,
            },
            Err(error) => {
                let (id, name) = names.get(&answer.endpoint).cloned().unwrap_or_default();
                let (version, leads) = (String::new(), Vec::new());
                Self {
                    id,
                    name,
                    endpoint: answer.endpoint,
                    version,
                    uptime_ms: 0,
                    leads,
                    error: Some(error.to_string()),
                }
            }
        }
    }
}

impl ShardStatusRow {
    fn new(shard: u32, heard: &[&StatusResponse]) -> Self {
        let seen = heard.iter().flat_map(|status| {
            let of_shard = status.shards.iter().filter(move |seen| seen.shard == shard);
            of_shard.map(|seen| (node_id(status), seen))
        });
        let seen = seen.collect::<Vec<_>>();
        let term = seen.iter().map(|(_, seen)| seen.term).max().unwrap_or(0);
        let leader =
            seen.iter().filter(|(_, seen)| seen.term == term).map(|(_, seen)| seen.leader_id).max();
        let commit_index = seen.iter().map(|(_, seen)| seen.commit_index).max().unwrap_or(0);
        let replica = |(node_id, seen): &(u64, &_)| ReplicaRow::new(*node_id, seen, commit_index);
        let replicas = seen.iter().map(replica).collect();
        Self { shard, term, leader_id: leader.unwrap_or(0), commit_index, replicas }
    }
}

impl ReplicaRow {
    fn new(
        node_id: u64,
        seen: &trefoil_client::proto::cluster::v1::ShardStatus,
        commit_index: u64,
    ) -> Self {
        let role = match seen.role {
            0 => "follower",
            1 => "candidate",
            LEADER => "leader",
            _ => "unknown",
        };
        Self {
            node_id,
            role,
            term: seen.term,
            applied_index: seen.applied_index,
            lag: commit_index.saturating_sub(seen.applied_index),
            log_bytes: seen.log_bytes,
            state_bytes: seen.state_bytes,
            uncertain: seen.uncertain,
            obstacles: seen.obstacles().map(obstacle).collect(),
        }
    }
}

/// "no room" of OBSTACLE_NO_ROOM.
fn obstacle(obstacle: Obstacle) -> String {
    let name = obstacle.as_str_name().trim_start_matches("OBSTACLE_");
    name.to_ascii_lowercase().replace('_', " ")
}

fn node_id(status: &StatusResponse) -> u64 {
    status.header.as_ref().map_or(0, |header| header.node_id)
}

impl CommandOutput for StatusOutput {
    fn text(&self) -> String {
        let node = |node: &NodeRow| {
            let state =
                node.error.clone().unwrap_or_else(|| format!("up {} s", node.uptime_ms / 1_000));
            let leads = node.leads.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
            vec![
                node.id.to_string(),
                node.name.clone(),
                node.endpoint.clone(),
                node.version.clone(),
                leads,
                state,
            ]
        };
        let nodes = output::table(
            &["NODE", "NAME", "ENDPOINT", "VERSION", "LEADS SHARDS", "STATE"],
            &[0],
            self.nodes.iter().map(node),
        );
        let mut header = vec![
            "SHARD".to_owned(),
            "TERM".to_owned(),
            "LEADER".to_owned(),
            "COMMITTED".to_owned(),
        ];
        header.extend(self.nodes.iter().map(|node| {
            if node.name.is_empty() { &node.endpoint } else { &node.name }.to_uppercase()
        }));
        let shard = |shard: &ShardStatusRow| {
            let name = if shard.shard == 0 { "meta".to_owned() } else { shard.shard.to_string() };
            let leader =
                if shard.leader_id == 0 { "none".to_owned() } else { shard.leader_id.to_string() };
            let mut row =
                vec![name, shard.term.to_string(), leader, shard.commit_index.to_string()];
            row.extend(self.nodes.iter().map(|node| {
                let replica = shard
                    .replicas
                    .iter()
                    .find(|replica| replica.node_id == node.id && node.error.is_none());
                replica.map_or_else(
                    || "-".to_owned(),
                    |replica| {
                        let doubt = replica.uncertain.then_some("uncertain");
                        let kept = replica.obstacles.iter().map(String::as_str);
                        let notes = doubt.into_iter().chain(kept).map(|note| format!(", {note}"));
                        let notes = notes.collect::<String>();
                        format!("{} (lag {}{notes})", replica.role, replica.lag)
                    },
                )
            }));
            row
        };
        let header = header.iter().map(String::as_str).collect::<Vec<_>>();
        let shards = output::table(&header, &[0, 1, 2, 3], self.shards.iter().map(shard));
        format!("{nodes}\n\n{shards}")
    }
}
