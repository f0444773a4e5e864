//! Shards in memory: every command is an entry of its own, applied at once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use prost::Message as _;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};
use trefoil_core::machine::{Applied, Machine, Outcome, QueryOutcome, WaiterId};
use trefoil_core::replica::{Role, RoleChange, Status};
use trefoil_core::store::MemoryStore;
use trefoil_core::{BIRTH_TERM, CallId, MACHINE_VERSION, NodeId, Position, ShardId};
use trefoil_proto::cluster::v1::StatusResponse;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{Answer, Command, Drawn, Entry, Query, Refusal};
use trefoil_server::api::{Answered, CallContext, ClientEndpoint, ShardState, Shards};
use trefoil_server::watch::{Feeds, Tip};

/// Log time at which the shards' first term has outlived its grace.
const BEGIN_MS: u64 = 10_000;
const TERM: u64 = BIRTH_TERM + 1;

/// What decides about a command before it is applied: a refusal, or nothing.
pub(crate) type Fault = Box<dyn Fn(ShardId, &Command) -> Option<Reason> + Send>;

/// All shards of a cluster of one node.
#[derive(Clone)]
pub(crate) struct Fake {
    shards: Arc<Vec<Mutex<Shard>>>,
    started: Instant,
    feeds: Arc<Feeds>,
    log: Arc<Mutex<Vec<Operation>>>,
    fault: Arc<Mutex<Option<Fault>>>,
    leaderless: Arc<AtomicBool>,
    /// Time in ms from a command's entry to its answer.
    delay_ms: Arc<AtomicU64>,
    sessions: Arc<Mutex<BTreeMap<String, u64>>>,
}

struct Shard {
    id: ShardId,
    feeds: Arc<Feeds>,
    machine: Machine,
    store: MemoryStore,
    calls: CallId,
    waiting: BTreeMap<WaiterId, oneshot::Sender<(Position, Answer)>>,
    polls: BTreeMap<CallId, oneshot::Sender<(Position, Answer)>>,
}

/// A poll that is dropped is cancelled.
struct Cancel<'a>(&'a Fake, ShardId, CallId);

impl Drop for Cancel<'_> {
    fn drop(&mut self) {
        let mut shard = self.0.shard(self.1);
        shard.polls.remove(&self.2);
        shard.machine.cancel(self.2);
    }
}

impl Shard {
    fn new(shard: ShardId, shards: u32, feeds: &Arc<Feeds>) -> Self {
        let mut store = MemoryStore::default();
        Machine::bootstrap(&mut store);
        let machine = Machine::open(&store, shard, shards);
        let (waiting, polls) = (BTreeMap::new(), BTreeMap::new());
        let feeds = Arc::clone(feeds);
        let mut shard = Self { id: shard, feeds, machine, store, calls: 0, waiting, polls };
        let index = shard.machine.progress().index + 1;
        shard.machine.lead(true);
        shard.machine.apply(&mut shard.store, index, TERM, &[]);
        shard.feeds.opened(shard.id, Tip { index, term: TERM, log_time_ms: 0 });
        shard.apply(0, Vec::new());
        shard.apply(BEGIN_MS, Vec::new());
        shard
    }

    fn apply(&mut self, log_time_ms: u64, commands: Vec<Command>) -> Applied {
        let entry = Entry {
            log_time_ms,
            wall_ms: 0,
            term: TERM,
            machine_version: MACHINE_VERSION,
            commands,
            digest_point: false,
        };
        let index = self.machine.progress().index + 1;
        let mut applied = self.machine.apply(&mut self.store, index, TERM, &entry.encode_to_vec());
        self.feeds.publish(self.id, std::slice::from_mut(&mut applied));
        let position = position(&applied);
        for settled in &applied.settled {
            if let Some(waiting) = self.waiting.remove(&settled.waiter) {
                waiting.send((position, settled.answer.clone())).ok();
            }
        }
        for (call, answer) in &applied.polls {
            if let Some(poll) = self.polls.remove(call) {
                poll.send((position, answer.clone())).ok();
            }
        }
        applied
    }
}

fn position(applied: &Applied) -> Position {
    let Applied { term, index, log_time_ms, .. } = *applied;
    Position { term, index, ordinal: 0, log_time_ms }
}

fn refusal(reason: Reason) -> Refusal {
    Refusal { reason: reason.into(), message: "by the fake".to_owned(), ..Refusal::default() }
}

impl Fake {
    /// Newborn shards, and a task that lets timers fire.
    pub(crate) fn new(shards: u32) -> Self {
        let feeds = Arc::new(Feeds::new(shards));
        let all = (0..=shards).map(|shard| Mutex::new(Shard::new(shard, shards, &feeds)));
        let fake = Self {
            shards: Arc::new(all.collect()),
            started: Instant::now(),
            feeds,
            log: Arc::default(),
            fault: Arc::default(),
            leaderless: Arc::default(),
            delay_ms: Arc::default(),
            sessions: Arc::default(),
        };
        let ticking = fake.clone();
        tokio::spawn(async move {
            loop {
                sleep(Duration::from_millis(10)).await;
                let now_ms = ticking.now_ms();
                for shard in ticking.shards.iter() {
                    let mut shard = shard.lock().unwrap();
                    if Machine::next_due_ms(&shard.store).is_some_and(|due| due <= now_ms) {
                        shard.apply(now_ms, Vec::new());
                    }
                }
            }
        });
        fake
    }

    fn shard(&self, shard: ShardId) -> MutexGuard<'_, Shard> {
        self.shards[usize::try_from(shard).unwrap()].lock().unwrap()
    }

    fn now_ms(&self) -> u64 {
        BEGIN_MS + u64::try_from(self.started.elapsed().as_millis()).unwrap()
    }

    /// Every command so far, in order.
    pub(crate) fn log(&self) -> Vec<Operation> {
        self.log.lock().unwrap().clone()
    }

    /// Waits until a command that is like this was applied.
    pub(crate) async fn logged(&self, like: impl Fn(&Operation) -> bool) -> Operation {
        for _ in 0..1_000 {
            if let Some(found) = self.log().into_iter().find(|operation| like(operation)) {
                return found;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("no such command within 10 s: {:?}", self.log());
    }

    /// Commands and queries that wait in the state.
    pub(crate) fn waits(&self) -> usize {
        let shards = self.shards.iter().map(|shard| shard.lock().unwrap());
        shards.map(|shard| shard.waiting.len() + shard.polls.len()).sum()
    }

    /// Lets a function refuse commands.
    pub(crate) fn set_fault(
        &self,
        fault: impl Fn(ShardId, &Command) -> Option<Reason> + Send + 'static,
    ) {
        *self.fault.lock().unwrap() = Some(Box::new(fault));
    }

    /// Lets everything pass again.
    pub(crate) fn clear_fault(&self) {
        *self.fault.lock().unwrap() = None;
    }

    /// Whether the shards have no leader.
    pub(crate) fn set_leaderless(&self, leaderless: bool) {
        self.leaderless.store(leaderless, Ordering::Relaxed);
    }

    /// How long the answers of commands take.
    pub(crate) fn set_delay(&self, delay: Duration) {
        self.delay_ms.store(delay.as_millis().try_into().unwrap(), Ordering::Relaxed);
    }

    fn answered(&self, shard: ShardId, end: (Position, Answer)) -> Answered {
        Answered { node: 1, shard, position: end.0, answer: end.1 }
    }
}

impl Shards for Fake {
    fn describe_by(&self, _: impl Fn() -> Option<StatusResponse> + Send + Sync + 'static) {}

    async fn ask_status(&self, node: NodeId) -> Result<StatusResponse, String> {
        Err(format!("node {node} is not there"))
    }

    async fn command(
        &self,
        shard: ShardId,
        mut command: Command,
        ask: &CallContext,
    ) -> Result<Answered, Refusal> {
        let fault = self.fault.lock().unwrap().as_ref().and_then(|fault| fault(shard, &command));
        if let Some(reason) = fault.filter(|reason| *reason != Reason::MaybeApplied) {
            return Err(refusal(reason));
        }
        let operation = command.operation.clone().expect("a command says what to do");
        if let Operation::OpenSession(open) = &operation {
            // Sessions of a namespace count from 1, so that tests can name them.
            let mut sessions = self.sessions.lock().unwrap();
            let newest = sessions.entry(open.namespace.clone()).or_default();
            *newest += 1;
            command.chance = Some(Drawn { high: 0, low: *newest });
        }
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = self.shard(shard);
            self.log.lock().unwrap().push(operation);
            let applied = state.apply(self.now_ms(), vec![command]);
            let recalled = applied.recalled.first().map(|(_, first)| *first);
            match applied.outcomes.into_iter().next().expect("one outcome for one command") {
                Outcome::Answered(answer) => {
                    let position = recalled.unwrap_or_else(|| self.position(&state));
                    sender.send((position, answer)).expect("the receiver is here");
                }
                Outcome::Waiting(waiter) => {
                    state.waiting.insert(waiter, sender);
                }
            }
        }
        if fault.is_some() {
            // Applied, and nobody saw it.
            return Err(refusal(Reason::MaybeApplied));
        }
        sleep(Duration::from_millis(self.delay_ms.load(Ordering::Relaxed))).await;
        match timeout_at(ask.deadline, receiver).await {
            Ok(Ok(end)) => Ok(self.answered(shard, end)),
            Ok(Err(_)) | Err(_) => Err(refusal(Reason::MaybeApplied)),
        }
    }

    async fn query(
        &self,
        shard: ShardId,
        query: Query,
        ask: &CallContext,
    ) -> Result<Answered, Refusal> {
        if self.leaderless.load(Ordering::Relaxed) {
            return Err(refusal(Reason::NoQuorum));
        }
        let (call, receiver) = {
            let mut state = self.shard(shard);
            let state = &mut *state;
            state.calls += 1;
            let call = state.calls;
            let now_ms = self.now_ms();
            let mut outcome = state.machine.query(&state.store, call, &query, now_ms);
            if let QueryOutcome::Due(due_ms) = outcome {
                state.apply(due_ms, Vec::new());
                outcome = state.machine.query(&state.store, call, &query, now_ms);
            }
            match outcome {
                QueryOutcome::Answered(answer) => {
                    let end = (self.position(state), answer);
                    return Ok(self.answered(shard, end));
                }
                QueryOutcome::Due(due_ms) => panic!("still due at {due_ms}"),
                QueryOutcome::Parked => {
                    let (sender, receiver) = oneshot::channel();
                    state.polls.insert(call, sender);
                    (call, receiver)
                }
            }
        };
        let _cancel = Cancel(self, shard, call);
        match timeout_at(ask.deadline, receiver).await {
            Ok(Ok(end)) => Ok(self.answered(shard, end)),
            Ok(Err(_)) | Err(_) => Err(refusal(Reason::DeadlinePassed)),
        }
    }

    async fn transfer_leader(&self, _: ShardId, _: NodeId) -> Result<(), Refusal> {
        Ok(())
    }

    fn status(&self) -> Vec<ShardState> {
        let shards = (0..).zip(self.shards.iter());
        let states = shards.map(|(shard, state)| {
            let state = state.lock().unwrap();
            let role = RoleChange { role: Role::Leader, term: TERM, leader: Some(1) };
            let applied_index = state.machine.progress().index;
            let status = Status { role, applied_index, ..Status::default() };
            ShardState { shard, status, state_bytes: 0, overlay_bytes: 0 }
        });
        states.collect()
    }

    fn leader(&self, _: ShardId) -> Option<NodeId> {
        (!self.leaderless.load(Ordering::Relaxed)).then_some(1)
    }

    fn members(&self) -> Vec<ClientEndpoint> {
        vec![ClientEndpoint {
            id: 1,
            name: "n1".to_owned(),
            endpoint: Some("http://h:1".to_owned()),
        }]
    }

    fn cluster_id(&self) -> Option<[u8; 16]> {
        Some([0xab; 16])
    }

    fn node_id(&self) -> NodeId {
        1
    }

    fn shards(&self) -> u32 {
        u32::try_from(self.shards.len()).unwrap() - 1
    }

    fn feeds(&self) -> &Arc<Feeds> {
        &self.feeds
    }
}

impl Fake {
    fn position(&self, shard: &Shard) -> Position {
        let progress = shard.machine.progress();
        Position {
            term: TERM,
            index: progress.index,
            ordinal: 0,
            log_time_ms: progress.log_time_ms,
        }
    }
}
