//! What `trefoil dev` shows once all nodes serve.

use serde::Serialize;

use super::child::Child;
use super::layout::Layout;
use crate::output::{self, CommandOutput};
use crate::status::StatusOutput;

/// Three running nodes.
#[derive(Serialize)]
pub(super) struct DevOutput {
    data_dir: String,
    nodes: Vec<DevNodeRow>,
    grpcurl: Vec<GrpcurlRow>,
}

#[derive(Serialize)]
struct DevNodeRow {
    name: String,
    pid: u32,
    endpoint: String,
    /// Of the meta shard.
    role: String,
    leads: Vec<u32>,
    log: String,
}

/// A command to paste.
#[derive(Serialize)]
struct GrpcurlRow {
    service: &'static str,
    command: String,
}

impl DevOutput {
    pub(super) fn new(layout: &Layout, children: &[Child], status: StatusOutput) -> Self {
        let nodes = children.iter().map(|child| DevNodeRow::new(child, &status)).collect();
        let address = |n: usize| layout.nodes()[n % layout.nodes().len()].listen.to_string();
        let line = |n, service, method: &str, json: &str| {
            let command = format!("grpcurl -plaintext -d '{json}' {} {method}", address(n));
            GrpcurlRow { service, command }
        };
        let grpcurl = vec![
            line(
                0,
                "lock",
                "trefoil.lock.v1.LockService/OpenSession",
                r#"{"ttl_ms": 60000, "owner": "me"}"#,
            ),
            line(
                1,
                "queue",
                "trefoil.queue.v1.QueueService/Enqueue",
                r#"{"queue": "jobs", "messages": [{"key": "k", "value": {"text": "hello"}}]}"#,
            ),
            line(
                2,
                "cache",
                "trefoil.cache.v1.CacheService/Put",
                r#"{"key": "greeting", "value": {"text": "hello"}}"#,
            ),
            line(0, "cluster", "trefoil.cluster.v1.ClusterService/Status", "{}"),
        ];
        Self { data_dir: layout.dir().display().to_string(), nodes, grpcurl }
    }

    fn endpoints(&self) -> String {
        self.nodes.iter().map(|node| node.endpoint.as_str()).collect::<Vec<_>>().join(",")
    }
}

impl DevNodeRow {
    fn new(child: &Child, status: &StatusOutput) -> Self {
        let said = status.nodes.iter().find(|node| node.name == child.name());
        let meta = status.shards.iter().find(|shard| shard.shard == 0);
        let replica = meta.zip(said).and_then(|(meta, said)| {
            meta.replicas.iter().find(|replica| replica.node_id == said.id)
        });
        Self {
            name: child.name().to_owned(),
            pid: child.pid(),
            endpoint: child.endpoint(),
            role: replica.map_or("unknown", |replica| replica.role).to_owned(),
            leads: said.map(|said| said.leads.clone()).unwrap_or_default(),
            log: child.log().display().to_string(),
        }
    }
}

impl CommandOutput for DevOutput {
    fn text(&self) -> String {
        let row = |node: &DevNodeRow| {
            let leads = node.leads.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
            vec![
                node.name.clone(),
                node.pid.to_string(),
                node.endpoint.clone(),
                node.role.clone(),
                leads,
            ]
        };
        let header = ["NODE", "PID", "ENDPOINT", "ROLE", "LEADS SHARDS"];
        let nodes = output::table(&header, &[1], self.nodes.iter().map(row));
        let lines =
            self.grpcurl.iter().map(|line| line.command.as_str()).collect::<Vec<_>>().join("\n");
        format!(
            "{nodes}\n\nData and logs: {}\n\nTry, in another terminal:\n{lines}\nexport TREFOIL_ENDPOINTS={}\ntrefoil status\n\nCtrl-C stops all three.",
            self.data_dir,
            self.endpoints(),
        )
    }
}
