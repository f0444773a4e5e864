//! Clusters of real nodes in one process: loopback sockets, temporary directories, and calls as the server makes them.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use slog::{Discard, Drain as _, Logger, o};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use trefoil_core::replica::Tuning;
use trefoil_core::{NodeId, ShardId, slot};
use trefoil_proto::cache::v1::{GetRequest, PutRequest};
use trefoil_proto::common::v1::{RequestId, Value, value};
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{Command, Drawn, Query, Refusal, answer, query};
use trefoil_server::authorize::{Access, Action, Authorizer, authorize};
use trefoil_server::node::{
    Answered, CallContext, Handle, Member, Node, NodeConfig, Observer, StartError, Unobserved,
    start,
};
use trefoil_server::storage::Identity;

pub(crate) const SHARDS: u32 = 3;
pub(crate) const WAIT: Duration = Duration::from_secs(20);

/// Members with their directories; each may run or not.
pub(crate) struct Cluster {
    pub(crate) root: TempDir,
    pub(crate) setup: [u8; 16],
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) tuning: Tuning,
    pub(crate) authorizer: Authorizer,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) nodes: Vec<Option<(Node, Handle)>>,
    listeners: Vec<Option<TcpListener>>,
}

/// A logger to standard error where `TREFOIL_TEST_LOG` is set.
pub(crate) fn logger() -> Logger {
    if std::env::var_os("TREFOIL_TEST_LOG").is_none() {
        return Logger::root(Discard, o!());
    }
    let decorator = slog_term::PlainSyncDecorator::new(std::io::stderr());
    Logger::root(slog_term::FullFormat::new(decorator).build().fuse(), o!())
}

impl Cluster {
    /// Nobody runs yet, but every address is taken.
    pub(crate) fn new(members: usize) -> Self {
        let listeners =
            (0..members).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect::<Vec<_>>();
        let addresses = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        Self {
            root: TempDir::new().unwrap(),
            setup: *b"a test's cluster",
            addresses,
            tuning: Tuning::default(),
            authorizer: authorize,
            observer: Arc::new(Unobserved),
            nodes: (0..members).map(|_| None).collect(),
            listeners: listeners.into_iter().map(Some).collect(),
        }
    }

    pub(crate) async fn start(members: usize) -> Self {
        let mut cluster = Self::new(members);
        for id in cluster.ids() {
            cluster.run(id).unwrap();
        }
        cluster.wait_for_leaders().await;
        cluster
    }

    pub(crate) fn ids(&self) -> Vec<NodeId> {
        (1..=self.addresses.len() as u64).collect()
    }

    pub(crate) fn directory(&self, id: NodeId) -> PathBuf {
        self.root.path().join(format!("n{id}"))
    }

    /// What the data directory of a stopped node says of itself.
    pub(crate) fn identity(&self, id: NodeId) -> Identity {
        let text = std::fs::read_to_string(self.directory(id).join("identity")).unwrap();
        serde_json::from_str(text.lines().next().unwrap()).unwrap()
    }

    /// The hash of the flags as greetings have it.
    pub(crate) fn setup_on_the_wire(&self) -> Vec<u8> {
        let flags = [&self.setup[..], &SHARDS.to_be_bytes(), b"cache"].concat();
        xxhash_rust::xxh3::xxh3_128(&flags).to_be_bytes().to_vec()
    }

    pub(crate) fn config(&mut self, id: NodeId, data_dir: &Path) -> NodeConfig {
        let member = |(n, address): (usize, &SocketAddr)| Member {
            id: n as u64 + 1,
            name: format!("n{}", n + 1),
            address: address.to_string(),
        };
        let at = id as usize - 1;
        let listener = self.listeners[at]
            .take()
            .unwrap_or_else(|| TcpListener::bind(self.addresses[at]).unwrap());
        NodeConfig {
            data_dir: data_dir.to_owned(),
            node: id,
            name: format!("n{id}"),
            members: self.addresses.iter().enumerate().map(member).collect(),
            setup: self.setup,
            force_new_cluster: false,
            shards: SHARDS,
            services: BTreeSet::from(["cache".to_owned()]),
            listener,
            endpoint: format!("http://node-{id}"),
            min_free_bytes: 0,
            state_cache_bytes: 8 << 20,
            seed: 7,
            authorizer: self.authorizer,
            tuning: self.tuning,
        }
    }

    /// The configuration of a member at an address that nobody else knows.
    pub(crate) fn config_elsewhere(&mut self, id: NodeId, data_dir: &Path) -> NodeConfig {
        self.listeners[id as usize - 1] = Some(TcpListener::bind("127.0.0.1:0").unwrap());
        self.config(id, data_dir)
    }

    pub(crate) fn run(&mut self, id: NodeId) -> Result<(), StartError> {
        let directory = self.directory(id);
        let config = self.config(id, &directory);
        let started = start(config, Arc::clone(&self.observer), logger())?;
        self.nodes[id as usize - 1] = Some(started);
        Ok(())
    }

    pub(crate) fn handle(&self, id: NodeId) -> &Handle {
        &self.nodes[id as usize - 1].as_ref().expect("the node runs").1
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize - 1].as_ref().expect("the node runs").0
    }

    pub(crate) async fn stop(&mut self, id: NodeId) {
        let (node, handle) = self.nodes[id as usize - 1].take().expect("the node runs");
        drop(handle);
        node.stop().await;
    }

    pub(crate) async fn stop_all(mut self) {
        for id in self.ids() {
            if self.nodes[id as usize - 1].is_some() {
                self.stop(id).await;
            }
        }
    }

    fn running(&self) -> impl Iterator<Item = &Handle> {
        self.nodes.iter().flatten().map(|(_, handle)| handle)
    }

    /// Waits until all running nodes agree on a leader of every shard.
    pub(crate) async fn wait_for_leaders(&self) {
        until("every shard has a leader", || {
            (0..=SHARDS).all(|shard| {
                let leaders =
                    self.running().map(|handle| handle.leader(shard)).collect::<BTreeSet<_>>();
                let leads = |handle: &Handle| leaders == BTreeSet::from([Some(handle.node_id())]);
                leaders.len() == 1 && self.running().any(leads)
            })
        })
        .await;
    }
}

/// Waits for something, and fails the test when it does not come.
pub(crate) async fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + WAIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn shard_of(key: &str) -> ShardId {
    slot::shard(slot::of_cache("default", key), SHARDS)
}

/// A key that lives in a shard.
pub(crate) fn key_in(shard: ShardId) -> String {
    (0..).map(|n| format!("key-{n}")).find(|key| shard_of(key) == shard).unwrap()
}

pub(crate) fn put_command(
    handle: &Handle,
    key: &str,
    text: &str,
    request_id: Option<RequestId>,
) -> Command {
    let value = Some(Value { kind: Some(value::Kind::Text(text.to_owned())) });
    let (namespace, key) = ("default".to_owned(), key.to_owned());
    Command {
        request_id: request_id.clone(),
        slot: slot::of_cache("default", &key).into(),
        map_epoch: slot::MAP_EPOCH,
        agent: handle.node_id(),
        operation: Some(Operation::Put(PutRequest {
            namespace,
            key,
            value,
            ttl_ms: 0,
            request_id,
            fence: None,
        })),
        chance: Some(Drawn { high: rand::random(), low: rand::random() }),
        ..Command::default()
    }
}

pub(crate) fn get_query(handle: &Handle, key: &str) -> Query {
    let (namespace, key) = ("default".to_owned(), key.to_owned());
    Query {
        slot: slot::of_cache("default", &key).into(),
        map_epoch: slot::MAP_EPOCH,
        agent: handle.node_id(),
        query: Some(query::Query::Get(GetRequest { namespace, key, fence: None })),
        fence: None,
    }
}

/// Asks as a client that may do this to a key of the cache.
pub(crate) fn ask(action: Action, key: &str, wait: Duration) -> CallContext {
    let access = Access {
        action: action.into(),
        namespace: "default".to_owned(),
        name: key.to_owned(),
        ..Access::default()
    };
    CallContext { access: access.into(), deadline: Instant::now() + wait, fingerprint: 0 }
}

pub(crate) async fn put(handle: &Handle, key: &str, text: &str) -> Result<Answered, Refusal> {
    // Under an id of its own, so that a node may try it again when a leader changes.
    let client = format!("put-{:016x}", rand::random::<u64>());
    let request_id = RequestId { client, sequence: 1, ..RequestId::default() };
    let command = put_command(handle, key, text, Some(request_id));
    handle.command(shard_of(key), command, &ask(Action::WriteValue, key, WAIT)).await
}

/// The text of a key; none where it is missing.
pub(crate) async fn get(handle: &Handle, key: &str) -> Result<Option<String>, Refusal> {
    let answered = handle
        .query(shard_of(key), get_query(handle, key), &ask(Action::ReadValue, key, WAIT))
        .await?;
    let Some(answer::Answer::Get(got)) = answered.answer.answer else {
        panic!("a Get answers a Get")
    };
    assert_eq!(answered.shard, shard_of(key));
    assert!(answered.position.index > 0);
    match got.value.and_then(|value| value.kind) {
        Some(value::Kind::Text(text)) => Ok(Some(text)),
        Some(value::Kind::Data(_)) => panic!("only texts are put"),
        None => Ok(None),
    }
}
