//! Scripts of the replica: what it wants after each input, with every message, write and apply carried out by hand.

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/show.rs"]
mod show;
mod support;

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

use test_each_file::test_each_path;
use trefoil_core::NodeId;
use trefoil_core::check::DEFAULT_NAMESPACE;
use trefoil_core::replica::obstacles::{self, Obstacle, Obstacles};
use trefoil_core::replica::{Input, Pressure, Proposal, Read, Tuning};
use trefoil_core::slot::{self, MAP_EPOCH};
use trefoil_proto::cache::v1::{DeleteRequest, GetRequest, PutRequest};
use trefoil_proto::common::v1::{Value, value};
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{Drawn, Query, query};
use trefoil_proto::lock::v1::{AcquireRequest, OpenSessionRequest, ReleaseRequest};

use self::cluster::Cluster;

test_each_path! { in "./core/tests/scripts/replica" => run }

/// Rounds after which a cluster that does not come to rest is a fault.
const ROUNDS_MAX: usize = 100;

/// How long callers wait, in ms.
const PATIENCE_MS: u64 = 60_000;

fn run(path: &Path) {
    goldenscript::run(&mut Runner { cluster: None, calls: 0, sessions: 0 }, path)
        .expect("the script runs");
}

/// A line of a script.
#[derive(goldenscript::Command)]
enum Line {
    /// Newborn replicas; the first is to lead.
    Cluster {
        nodes: u64,
        /// Bytes of recent entries that are kept in memory.
        #[arg(key)]
        cache: Option<usize>,
        /// Bytes of log that a follower may hold back.
        #[arg(key)]
        log: Option<u64>,
    },
    /// Newborn replicas whose leader is elected and at rest.
    Ready {
        nodes: u64,
        #[arg(key)]
        cache: Option<usize>,
        #[arg(key)]
        log: Option<u64>,
        /// Entries between two comparisons of the states.
        #[arg(key)]
        digest: Option<u64>,
    },
    /// Time passes, by ticks of 50 ms.
    Tick {
        #[arg(optional)]
        count: u64,
        /// Only this node ticks.
        #[arg(key)]
        node: Option<NodeId>,
    },
    /// Time passes for all, and after each tick everything is carried out.
    Pass(u64),
    /// Messages arrive.
    Deliver,
    /// What was written is synced.
    Persist(NodeId),
    /// Appliers do their work.
    Apply(NodeId),
    /// Everything is carried out until nothing is left.
    Settle,
    /// Commands arrive together: values of keys a, b, c, ...
    Put {
        node: NodeId,
        key: String,
        #[arg(key, optional)]
        count: u64,
        /// When the callers give up, in ms from now.
        #[arg(key)]
        within: Option<u64>,
    },
    /// Reads arrive together.
    Get {
        node: NodeId,
        key: String,
        #[arg(key, optional)]
        count: u64,
    },
    /// A session is opened; they are numbered from 1.
    Open(NodeId),
    /// A session wants a lock; another node passed that on.
    Acquire {
        node: NodeId,
        session: u64,
        #[arg(key, optional)]
        wait: u64,
        /// A request id, or what the other node drew, see `call_name`.
        #[arg(key)]
        id: String,
    },
    Release {
        node: NodeId,
        session: u64,
    },
    /// The other node asks for the grant that its call was offered.
    Claim {
        node: NodeId,
        call: u64,
    },
    /// The other node says that a caller is gone, or is gone itself.
    HangUp {
        node: NodeId,
        call: u64,
    },
    /// Grants are taken back that a replica wanted back.
    TakeBack(NodeId),
    /// The messages under way are lost.
    Lose {
        #[arg(key)]
        to: Option<NodeId>,
    },
    /// Entries that a node sends are lost from now on, and nothing else is.
    LoseEntriesOf(NodeId),
    /// Snapshots stay on their way until they may arrive.
    HoldSnapshots,
    LetSnapshotsArrive,
    Isolate(NodeId),
    Mend,
    Crash(NodeId),
    Start(NodeId),
    /// What is on a disk is remembered, and everything after it is lost.
    KeepDisk(NodeId),
    LoseEnd(NodeId),
    /// The node starts and had to cut off a bad end of its log; the others are told.
    StartUncertain(NodeId),
    /// The state of a node is found damaged.
    Damage(NodeId),
    /// A record of a node's state is not what was written, and nobody has noticed.
    LoseWrite(NodeId),
    /// A node learns that a peer has gone on with an older copy of a directory.
    Suspect {
        node: NodeId,
        peer: NodeId,
    },
    Transfer {
        node: NodeId,
        #[arg(key)]
        to: Option<NodeId>,
    },
    /// The disk asks for a checkpoint.
    Checkpoint(NodeId),
    Status,
    /// There is little room on the disk of a node, or enough again, and the others are told.
    Room {
        node: NodeId,
        #[arg(key)]
        low: bool,
    },
    /// Something keeps a node from leading, or no longer does, and the others are told.
    Obstacle {
        node: NodeId,
        what: String,
        #[arg(key)]
        stands: bool,
    },
    /// Deletes arrive together.
    Delete {
        node: NodeId,
        key: String,
    },
    /// Time passes, and the clock of this node stands still meanwhile.
    StandStill {
        node: NodeId,
        #[arg(key)]
        ms: u64,
    },
    /// Log time as each replica reckons it.
    Times,
}

struct Runner {
    cluster: Option<Cluster>,
    calls: u64,
    sessions: u64,
}

impl goldenscript::Runner for Runner {
    type Command = Line;

    #[allow(clippy::too_many_lines, reason = "one table")]
    fn run(&mut self, line: &Line, _: &goldenscript::Context) -> Result<String, Box<dyn Error>> {
        if let Some((nodes, tuning)) = sizes(line) {
            self.cluster = Some(Cluster::new(nodes, tuning));
        }
        let cluster = self.cluster.as_mut().ok_or("a script begins with a cluster")?;
        match line {
            Line::Cluster { .. } => {}
            Line::Ready { .. } => {
                cluster.tick(&cluster.running());
                settle(cluster)?;
                cluster.take_trace();
            }
            Line::Tick { count, node } => {
                for _ in 0..(*count).max(1) {
                    cluster.tick(&node.map_or_else(|| cluster.running(), |node| vec![node]));
                }
            }
            Line::Pass(count) => {
                for _ in 0..*count {
                    cluster.tick(&cluster.running());
                    settle(cluster)?;
                }
            }
            Line::Deliver => drop(cluster.deliver()),
            Line::Persist(node) => drop(cluster.persist(*node)),
            Line::Apply(node) => drop(cluster.apply(*node)),
            Line::Settle => settle(cluster)?,
            Line::Put { node, key, count, within } => {
                let deadline_ms = cluster.now_ms() + within.unwrap_or(PATIENCE_MS);
                let puts = (0..(*count).max(1)).map(|n| put(self.next_call(), key, n, deadline_ms));
                let puts = puts.collect();
                self.step(*node, Input::Propose(puts));
            }
            Line::Get { node, key, count } => {
                let deadline_ms = cluster.now_ms() + PATIENCE_MS;
                let gets = (0..(*count).max(1)).map(|_| get(self.next_call(), key, deadline_ms));
                let gets = gets.collect();
                self.step(*node, Input::Read(gets));
            }
            Line::Open(node) => {
                let namespace = DEFAULT_NAMESPACE.to_owned();
                let open = OpenSessionRequest { namespace, ttl_ms: 600_000, ..Default::default() };
                self.propose(*node, Operation::OpenSession(open), None);
            }
            Line::Acquire { node, session, wait, id } => {
                let acquire = AcquireRequest {
                    namespace: DEFAULT_NAMESPACE.to_owned(),
                    session_id: *session,
                    name: "lock".to_owned(),
                    wait_ms: *wait,
                    ..Default::default()
                };
                self.propose(*node, Operation::Acquire(acquire), Some(id));
            }
            Line::Release { node, session } => {
                let release = ReleaseRequest {
                    namespace: DEFAULT_NAMESPACE.to_owned(),
                    session_id: *session,
                    name: "lock".to_owned(),
                    ..Default::default()
                };
                self.propose(*node, Operation::Release(release), None);
            }
            Line::Claim { node, call } => self.step(*node, Input::Claim(*call)),
            Line::HangUp { node, call } => self.step(*node, Input::Cancel(*call)),
            Line::TakeBack(node) => {
                let deadline_ms = cluster.now_ms() + PATIENCE_MS;
                let owed = std::mem::take(&mut cluster.owed).into_iter();
                let owed = owed.map(|command| {
                    let (call, forwarded) = (self.next_call(), false);
                    Proposal { call, command, deadline_ms, forwarded }
                });
                let owed = owed.collect();
                self.step(*node, Input::Propose(owed));
            }
            Line::Lose { to } => cluster.drop_messages(*to),
            Line::LoseEntriesOf(node) => cluster.loses_entries_of = Some(*node),
            Line::HoldSnapshots => cluster.holds_snapshots = true,
            Line::LetSnapshotsArrive => cluster.holds_snapshots = false,
            Line::Isolate(node) => cluster.isolate(*node),
            Line::Mend => cluster.mend(),
            Line::Crash(node) => cluster.crash(*node),
            Line::Start(node) => cluster.start(*node, false),
            Line::KeepDisk(node) => cluster.keep_disk(*node),
            Line::LoseEnd(node) => cluster.lose_end(*node),
            Line::StartUncertain(node) => {
                cluster.start(*node, true);
                cluster.tell_uncertain();
            }
            Line::Damage(node) => cluster.damage(*node),
            Line::LoseWrite(node) => cluster.lose_write(*node),
            Line::Suspect { node, peer } => self.step(*node, Input::Suspect(*peer)),
            Line::Transfer { node, to } => {
                let call = self.next_call();
                self.step(*node, Input::Transfer { call, to: *to });
            }
            Line::Checkpoint(node) => {
                let pressure = Pressure { wants_checkpoint: true, disk_low: false };
                cluster.step(*node, Input::Pressure(pressure));
            }
            Line::Room { node, low } => {
                let pressure = Pressure { wants_checkpoint: false, disk_low: *low };
                cluster.step(*node, Input::Pressure(pressure));
                cluster.tell_obstacles(*node);
            }
            Line::Obstacle { node, what, stands } => {
                let named = |one: &Obstacle| obstacles::name(*one) == what;
                let obstacle = Obstacles::known().find(named).ok_or("no such obstacle")?;
                cluster.step(*node, Input::Obstacle { obstacle, stands: *stands });
                cluster.tell_obstacles(*node);
            }
            Line::Delete { node, key } => {
                let deadline_ms = cluster.now_ms() + PATIENCE_MS;
                let delete = delete(self.next_call(), key, deadline_ms);
                self.step(*node, Input::Propose(vec![delete]));
            }
            Line::Status => return Ok(status(cluster)),
            Line::StandStill { node, ms } => cluster.stand_still(*node, *ms),
            Line::Times => return Ok(times(cluster)),
        }
        Ok(self.cluster.as_mut().map(Cluster::take_trace).unwrap_or_default())
    }
}

/// The cluster that a line asks for.
fn sizes(line: &Line) -> Option<(u64, Tuning)> {
    let (nodes, cache, log, digest) = match line {
        Line::Cluster { nodes, cache, log } => (nodes, cache, log, None),
        Line::Ready { nodes, cache, log, digest } => (nodes, cache, log, *digest),
        _ => return None,
    };
    let standard = Tuning::default();
    let tuning = Tuning {
        log_cache_bytes: cache.unwrap_or(standard.log_cache_bytes),
        log_bytes_max: log.unwrap_or(standard.log_bytes_max),
        digest_entries: digest.unwrap_or(standard.digest_entries),
        digest_age_ms: if digest.is_some() { 0 } else { standard.digest_age_ms },
        ..standard
    };
    Some((*nodes, tuning))
}

impl Runner {
    fn next_call(&mut self) -> u64 {
        self.calls += 1;
        self.calls
    }

    /// A command of the lock service; one with an id comes by way of another node.
    fn propose(&mut self, node: NodeId, operation: Operation, id: Option<&String>) {
        let call = self.next_call();
        let cluster = self.cluster.as_ref().expect("there is one");
        let deadline_ms = cluster.now_ms() + PATIENCE_MS;
        let (slot, forwarded) = (slot::of_locks(DEFAULT_NAMESPACE), id.is_some());
        let mut command = support::called(slot, id.map(String::as_str), operation);
        if matches!(command.operation, Some(Operation::OpenSession(_))) {
            self.sessions += 1;
            command.chance = Some(Drawn { high: 0, low: self.sessions });
        }
        self.step(node, Input::Propose(vec![Proposal { call, command, deadline_ms, forwarded }]));
    }

    fn step(&mut self, node: NodeId, input: Input) {
        self.cluster.as_mut().expect("there is one").step(node, input);
    }
}

fn settle(cluster: &mut Cluster) -> Result<(), Box<dyn Error>> {
    for _ in 0..ROUNDS_MAX {
        let mut any = cluster.deliver();
        for node in cluster.running() {
            any |= cluster.persist(node);
            any |= cluster.apply(node);
        }
        if !any {
            return Ok(());
        }
    }
    Err("the cluster does not come to rest".into())
}

fn put(call: u64, key: &str, n: u64, deadline_ms: u64) -> Proposal {
    let key = if n == 0 { key.to_owned() } else { format!("{key}{n}") };
    let slot = slot::of_cache(DEFAULT_NAMESPACE, &key);
    let value = Some(Value { kind: Some(value::Kind::Text(format!("value-{call}"))) });
    let namespace = DEFAULT_NAMESPACE.to_owned();
    let request = PutRequest { namespace, key, value, ttl_ms: 0, request_id: None, fence: None };
    let command = support::command(slot, 1, None, Operation::Put(request));
    Proposal { call, command, deadline_ms, forwarded: false }
}

fn delete(call: u64, key: &str, deadline_ms: u64) -> Proposal {
    let (namespace, key) = (DEFAULT_NAMESPACE.to_owned(), key.to_owned());
    let slot = slot::of_cache(&namespace, &key);
    let request = DeleteRequest { namespace, key, ..DeleteRequest::default() };
    let command = support::command(slot, 1, None, Operation::Delete(request));
    Proposal { call, command, deadline_ms, forwarded: false }
}

fn get(call: u64, key: &str, deadline_ms: u64) -> Read {
    let slot = slot::of_cache(DEFAULT_NAMESPACE, key).into();
    let request =
        GetRequest { namespace: DEFAULT_NAMESPACE.to_owned(), key: key.to_owned(), fence: None };
    let query = Query {
        slot,
        map_epoch: MAP_EPOCH,
        agent: 1,
        query: Some(query::Query::Get(request)),
        fence: None,
    };
    Read { call, query, deadline_ms }
}

fn times(cluster: &Cluster) -> String {
    let time = |node: &NodeId| format!("n{node} {} ms\n", cluster.status(*node).log_time_ms);
    cluster.running().iter().map(time).collect()
}

fn status(cluster: &Cluster) -> String {
    let mut text = String::new();
    for node in cluster.running() {
        let status = cluster.status(node);
        let doubt = match status {
            _ if status.two_histories => ", two histories",
            _ if status.damaged => ", damaged",
            _ if cluster.is_uncertain(node) => ", uncertain",
            _ => "",
        };
        writeln!(
            text,
            "n{node} {:?} t{} log {}..{} commit {} applied {} checkpoint {}{doubt}",
            status.role.role,
            status.role.term,
            status.first_index,
            status.last_index,
            status.commit_index,
            status.applied_index,
            status.checkpoint_index,
        )
        .expect("text grows");
    }
    text
}
