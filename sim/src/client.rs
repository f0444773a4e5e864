//! A client: one call at a time, retried under its request id until it ends, and written into the history.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use prost::Message as _;
use trefoil_core::DRAWN_BYTES;
use trefoil_core::limits::WAITER_CLAIM_MS;
use trefoil_core::replica::Reply;
use trefoil_core::{NodeId, Position, ShardId};
use trefoil_proto::common::v1::{Reason, RequestId};
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{Answer, CallName, CheckedFence, Command, Drawn, answer};
use trefoil_proto::reason::{RefusalEffect, Retry};
use xxhash_rust::xxh3::xxh3_64;

use crate::calls::{Body, RoutedRequest, outcome};
use crate::check::Violation;
use crate::check::history::{Action, AnswerPosition, End, RecordedOutcome};
use crate::check::requests::is_forgotten;
use crate::client_context::ClientContext;
use crate::config::{MILLISECOND, SECOND};
use crate::rng::Rng;
use crate::workload::Workload;
use crate::workload::planned::{PlannedCall, Wish};

/// How long a client waits for the answer to one try, at the least and at the most.
pub(crate) const PATIENCE_US: std::ops::RangeInclusive<u64> =
    1_500 * MILLISECOND..=5_000 * MILLISECOND;
/// How long it tries before it gives a call up.
const GIVE_UP_US: u64 = 8 * SECOND;

/// How long the service that a caller hung up on gives it to come back, before it takes back what it asked for.
const COME_BACK_US: u64 = WAITER_CLAIM_MS * MILLISECOND;

/// What a client wants the world to do.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there are a few at a time")]
pub enum Todo {
    /// Send a request to a node.
    Send {
        /// The node.
        node: NodeId,
        /// Names this try.
        token: u64,
        /// How long the client waits.
        patience_us: u64,
        /// What is asked.
        request: RoutedRequest,
    },
    /// A node asks itself, for a client that is gone.
    CleanUp {
        /// When.
        at: u64,
        /// The node.
        node: NodeId,
        /// What is asked.
        request: RoutedRequest,
    },
    /// A try is no longer waited for.
    Cancel {
        /// The node.
        node: NodeId,
        /// The try.
        token: u64,
    },
    /// Wake the client at a time, unless it was told another one since.
    Wake {
        /// The time.
        at: u64,
        /// Names the timer.
        timer: u64,
    },
}

/// What came back for a try.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "most are replies")]
pub enum TryResult {
    /// The node's reply.
    Reply {
        /// What it says.
        reply: Reply,
        /// The node had tried before, and an earlier try may have taken effect.
        again: bool,
    },
    /// The connection broke after the request was sent.
    Broken,
    /// The node could not be reached.
    Unreached,
}

/// A step under way.
#[derive(Debug)]
struct PendingCall {
    step: PlannedCall,
    call: Option<usize>,
    id: Option<RequestId>,
    /// What the node that is asked draws for a call without request id that acquires.
    drawn: Bytes,
    /// What is asked under the id.
    fingerprint: u64,
    /// A try may have taken effect unseen.
    ambiguous: bool,
    give_up_at: u64,
    hang_up_at: Option<u64>,
    /// The try that is waited for.
    sent: Option<(NodeId, u64)>,
}

impl PendingCall {
    /// Its id, unless that stands for another call.
    fn own_id(&self) -> Option<&RequestId> {
        self.id.as_ref().filter(|_| self.step.reuses.is_none())
    }
}

/// One client.
#[derive(Debug)]
pub struct SimClient {
    /// Its number.
    pub id: u64,
    role: Workload,
    sequence: u64,
    tokens: u64,
    timer: u64,
    leaders: BTreeMap<ShardId, NodeId>,
    next: VecDeque<PlannedCall>,
    pending: Option<PendingCall>,
    /// Calls that have ended.
    ended: u64,
}

impl SimClient {
    /// A client that begins when it is first woken with timer 0.
    #[must_use]
    pub fn new(id: u64, role: Workload) -> Self {
        let (leaders, next) = (BTreeMap::new(), VecDeque::new());
        Self { id, role, sequence: 0, tokens: 0, timer: 0, leaders, next, pending: None, ended: 0 }
    }

    /// Whether nothing is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.pending.is_none()
    }

    /// Calls that have ended, and that will have when the one under way does.
    #[must_use]
    pub fn ended(&self) -> (u64, u64) {
        (self.ended, self.ended + u64::from(self.pending.is_some()))
    }

    /// Whether its role is played to the end.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.is_idle() && self.role.is_done()
    }

    /// A timer ran out.
    pub fn wake(&mut self, now: u64, timer: u64, shared: &mut ClientContext) -> Vec<Todo> {
        if timer != self.timer {
            return Vec::new();
        }
        match self.pending.take() {
            None => self.begin(now, shared),
            Some(pending) if pending.hang_up_at.is_some_and(|at| at <= now) => {
                shared.hang_ups += 1;
                let mut todo = Vec::new();
                if let Some((node, token)) = pending.sent {
                    todo.push(Todo::Cancel { node, token });
                    if pending.id.is_none() {
                        todo.extend(Self::clean_up(now, node, &pending, shared));
                    }
                }
                todo.extend(self.end(now, pending, End::Open, shared));
                todo
            }
            Some(mut pending) => match pending.sent.take() {
                None => self.send(now, pending, shared),
                // No answer in time.
                Some((node, token)) => {
                    // Some clients ask the same node again: it may be one that does not know yet who leads.
                    if shared.rng.chance(500) {
                        self.leaders.remove(&pending.step.request.shard);
                    }
                    let mut todo = vec![Todo::Cancel { node, token }];
                    todo.extend(Self::clean_up(now, node, &pending, shared));
                    Self::may_have_happened(&mut pending, shared);
                    todo.extend(self.again(now, pending, Reason::NoQuorum, shared));
                    todo
                }
            },
        }
    }

    /// Something came back for a try.
    pub fn hear(
        &mut self,
        now: u64,
        token: u64,
        heard: TryResult,
        shared: &mut ClientContext,
    ) -> Vec<Todo> {
        let Some(mut pending) =
            self.pending.take_if(|pending| pending.sent.is_some_and(|sent| sent.1 == token))
        else {
            return Vec::new();
        };
        let node = pending.sent.take().map(|(node, _)| node);
        let shard = pending.step.request.shard;
        match heard {
            TryResult::Reply { reply: Reply::Answered(position, answer), again } => {
                pending.ambiguous |= again;
                if let Some(node) = node {
                    self.leaders.insert(shard, node);
                }
                self.answered(now, pending, position, answer, shared)
            }
            TryResult::Reply { reply: Reply::Refused(refusal), .. } => {
                self.leaders.remove(&shard);
                if let Some(leader) =
                    refusal.metadata.get("leader").and_then(|leader| leader.parse().ok())
                {
                    self.leaders.insert(shard, leader);
                }
                let row = refusal.reason().row();
                match row.effect {
                    RefusalEffect::NoTry | RefusalEffect::NotThisTry => shared.definite(&pending),
                    RefusalEffect::Unknown => Self::may_have_happened(&mut pending, shared),
                }
                if row.retry == Retry::Never {
                    let what = format!("{:?} was refused: {refusal:?}", pending.step.request);
                    shared.violations.push(Violation::new("clients send only good requests", what));
                }
                self.again(now, pending, refusal.reason(), shared)
            }
            TryResult::Broken => {
                self.leaders.remove(&shard);
                Self::may_have_happened(&mut pending, shared);
                self.again(now, pending, Reason::MaybeApplied, shared)
            }
            TryResult::Unreached => {
                self.leaders.remove(&shard);
                shared.definite(&pending);
                self.again(now, pending, Reason::NotLeader, shared)
            }
        }
    }

    fn begin(&mut self, now: u64, shared: &mut ClientContext) -> Vec<Todo> {
        let wish = match self.next.pop_front() {
            Some(step) => Wish::Do(step),
            None if shared.stopping && !self.role.goes_on() => Wish::Rest(SECOND),
            None => self.role.next(self.id, self.sequence + 1, shared),
        };
        let step = match wish {
            Wish::Do(step) => step,
            Wish::Rest(rest_us) => return vec![self.set_timer(now + rest_us)],
        };
        self.sequence += u64::from(step.reuses.is_none());
        let id = step.idempotent.then(|| RequestId {
            client: format!("client-{}", self.id),
            sequence: self.sequence,
            first_unacknowledged: self.sequence,
            attempt: 0,
        });
        let id = step.reuses.clone().or(id);
        let fingerprint = fingerprint(&step.request);
        let call = step.action.clone().map(|action| shared.history.begin(self.id, now, action));
        let give_up_at = now + GIVE_UP_US + step.wait_us;
        let hang_up_at = step.hang_up_us.map(|hang_up_us| now + hang_up_us);
        let is_drawn = id.is_none() && step.action.as_ref().is_some_and(Action::acquires);
        let drawn = if is_drawn { draw(&mut shared.rng) } else { Bytes::new() };
        let (ambiguous, sent) = (false, None);
        let pending = PendingCall {
            step,
            call,
            id,
            drawn,
            fingerprint,
            ambiguous,
            give_up_at,
            hang_up_at,
            sent,
        };
        self.send(now, pending, shared)
    }

    fn send(
        &mut self,
        now: u64,
        mut pending: PendingCall,
        shared: &mut ClientContext,
    ) -> Vec<Todo> {
        let shard = pending.step.request.shard;
        let any = shared.rng.between(1, shared.config.nodes);
        let node = *self.leaders.entry(shard).or_insert(any);
        self.tokens += 1;
        pending.sent = Some((node, self.tokens));
        let mut request = pending.step.request.clone();
        match &mut request.body {
            Body::Command(command) => {
                command.agent = node;
                command.request_id.clone_from(&pending.id);
                command.drawn.clone_from(&pending.drawn);
                if command.operation.as_ref().is_some_and(Operation::draws_chance) {
                    let rng = &mut shared.rng;
                    command.chance = Some(Drawn { high: rng.number(), low: rng.number() });
                }
                command.fingerprint = pending.id.as_ref().map_or(0, |_| pending.fingerprint);
            }
            Body::Query(query) => query.agent = node,
        }
        if let Some(id) = pending.own_id() {
            shared.ledger.sent(shard, id);
        }
        let patience = shared.rng.between(*PATIENCE_US.start(), *PATIENCE_US.end());
        let patience_us = patience + pending.step.wait_us;
        let until = pending.hang_up_at.map_or(now + patience_us, |at| at.min(now + patience_us));
        self.pending = Some(pending);
        vec![
            Todo::Send { node, token: self.tokens, patience_us, request },
            self.set_timer(until.max(now)),
        ]
    }

    /// Tries again after a pause, unless it is time to give up.
    fn again(
        &mut self,
        now: u64,
        mut pending: PendingCall,
        reason: Reason,
        shared: &mut ClientContext,
    ) -> Vec<Todo> {
        if pending.step.once || (now >= pending.give_up_at && !shared.patient) {
            let end = if pending.ambiguous { End::Open } else { End::NotDone(reason) };
            return self.end(now, pending, end, shared);
        }
        let mut pause = shared.rng.between(10, 200) * MILLISECOND;
        // Whoever waits for a majority that works is not kept waiting by its own clients.
        let is_late =
            pending.ambiguous && !shared.patient && shared.rng.chance(shared.config.dawdlers);
        if is_late {
            // The shard may have forgotten by then that it was asked before.
            let idle = shared.config.disk.request_client_idle_ms * MILLISECOND;
            pause += idle + shared.rng.between(0, idle);
            pending.give_up_at = pending.give_up_at.max(now + pause + GIVE_UP_US);
            shared.late_retries += 1;
        }
        self.pending = Some(pending);
        vec![self.set_timer(now + pause)]
    }

    fn answered(
        &mut self,
        now: u64,
        mut pending: PendingCall,
        position: Position,
        answer: Answer,
        shared: &mut ClientContext,
    ) -> Vec<Todo> {
        let shard = pending.step.request.shard;
        if let Some(answer::Answer::Refusal(refusal)) = &answer.answer {
            let takes = matches!(pending.step.action, Some(Action::TakePermits { .. }));
            match refusal.reason() {
                // It stands for another call, or did.
                Reason::InvalidField | Reason::RequestForgotten
                    if pending.step.reuses.is_some() =>
                {
                    return self.end(now, pending, End::Open, shared);
                }
                // More than the semaphore has by now.
                Reason::InvalidField if takes => {}
                // Whether an earlier try took effect is unknown.
                Reason::RequestForgotten if pending.ambiguous => {
                    return self.end(now, pending, End::Open, shared);
                }
                Reason::PartitionNotOpen => {
                    return self.again(now, pending, Reason::PartitionNotOpen, shared);
                }
                Reason::RequestForgotten
                | Reason::StaleMap
                | Reason::TooManyOpenRequests
                | Reason::InvalidField => {
                    let what = format!("{:?} was answered {refusal:?}", pending.step.request);
                    shared.violations.push(Violation::new("clients send only good requests", what));
                }
                _ => {}
            }
        }
        if let Some(id) = pending.own_id().filter(|_| !is_forgotten(&answer)) {
            shared.ledger.told(shard, id, Some(position));
        }
        let Some(action) = &pending.step.action else {
            self.role.told(&answer, position, shared);
            pending.ambiguous = false;
            return self.end(now, pending, End::Open, shared);
        };
        let outcome = outcome(answer);
        self.role.learned(action, &outcome);
        // Without an id what is tried again by its node is told where the last try stands.
        let again =
            |command: &Command| command.operation.as_ref().is_some_and(Operation::is_idempotent);
        let is_tried_again = matches!(&pending.step.request.body, Body::Command(c) if again(c));
        let is_over = matches!(action, Action::Convert { .. })
            && matches!(
                outcome,
                RecordedOutcome::Refused(Reason::SessionExpired | Reason::NotHolder)
            );
        let exact = (pending.id.is_some() || !is_tried_again) && !is_over;
        self.end(
            now,
            pending,
            End::Answered(AnswerPosition { shard, position, exact }, outcome),
            shared,
        )
    }

    fn end(
        &mut self,
        now: u64,
        pending: PendingCall,
        end: End,
        shared: &mut ClientContext,
    ) -> Vec<Todo> {
        let (unseen, is_answered) = (end == End::Open, matches!(end, End::Answered(..)));
        self.ended += 1;
        shared.calls_answered += u64::from(is_answered);
        if let Some(call) = pending.call {
            // A read whose end was not seen changed nothing.
            let harmless = unseen && pending.step.action.as_ref().is_some_and(Action::is_read);
            shared.history.end(
                call,
                now,
                if harmless { End::NotDone(Reason::NoQuorum) } else { end },
            );
            shared.calls_open += u64::from(unseen);
        }
        if let (Some(id), Body::Command(_)) = (pending.own_id(), &pending.step.request.body)
            && is_answered
            && shared.rng.chance(30)
        {
            let (key, value) = (format!("reused-{}", self.id), "another".to_owned());
            let request = shared.router.request(&Action::Put { key, value, ttl_ms: 0 });
            let step =
                PlannedCall { reuses: Some(id.clone()), ..PlannedCall::unjudged(request, true) };
            self.next.push_front(step);
            shared.reused_ids += 1;
        }
        if let (true, Some(mut id), Some(action)) = (unseen, pending.id, pending.step.action) {
            if pending.hang_up_at.is_some() {
                // It is told that the client does not want it: no later attempt is to be spared.
                id.attempt = u32::MAX;
            }
            let call = CallName { request_id: Some(id), ..CallName::default() };
            let cancel = shared.router.cancel(&action, call);
            self.next.extend(cancel.map(|request| PlannedCall::unjudged(request, true)));
        }
        // Who reads the final state does not dawdle.
        let most = if self.role.goes_on() { 10 * MILLISECOND } else { shared.config.think_us };
        let think = shared.rng.between(0, most);
        vec![self.set_timer(now + think)]
    }

    /// What the service does about a caller that went away without a word: it takes back what that asked for, unless
    /// it has come back by then.
    fn clean_up(
        now: u64,
        node: NodeId,
        pending: &PendingCall,
        shared: &mut ClientContext,
    ) -> Vec<Todo> {
        let (request_id, drawn) = (pending.id.clone(), pending.drawn.clone());
        let comes_back = request_id.is_some();
        let Some(action) = &pending.step.action else { return Vec::new() };
        if !comes_back && drawn.is_empty() {
            return Vec::new();
        }
        let cancel = shared.router.cancel(action, CallName { request_id, drawn });
        let Some(request) = cancel else { return Vec::new() };
        // Nobody else can ask again for what the node named. Such a cancel may be applied twice.
        let times = if comes_back { 1 } else { shared.rng.between(1, 2) };
        let at = if comes_back { now + COME_BACK_US } else { now };
        (0..times).map(|_| Todo::CleanUp { at, node, request: request.clone() }).collect()
    }

    /// The last try may have taken effect: the next one is another submission.
    fn may_have_happened(pending: &mut PendingCall, shared: &mut ClientContext) {
        pending.ambiguous = true;
        if let Some(id) = &mut pending.id {
            id.attempt += 1;
            shared.retries += 1;
        }
    }

    fn set_timer(&mut self, at: u64) -> Todo {
        self.timer += 1;
        Todo::Wake { at, timer: self.timer }
    }
}

fn draw(rng: &mut Rng) -> Bytes {
    let mut drawn = [0; DRAWN_BYTES];
    drawn[..8].copy_from_slice(&rng.between(0, u64::MAX - 1).to_be_bytes());
    Bytes::copy_from_slice(&drawn)
}

/// What a request asks for, as the service would say it of a client's call.
fn fingerprint(request: &RoutedRequest) -> u64 {
    let Body::Command(Command { operation, fence, .. }) = &request.body else { return 0 };
    let fence = fence.as_ref().and_then(|checked| checked.fence.clone());
    let fence = fence.map(|fence| CheckedFence { fence: Some(fence), ..CheckedFence::default() });
    let asked = Command { operation: operation.clone(), fence, ..Command::default() };
    xxh3_64(&asked.encode_to_vec())
}

impl ClientContext {
    /// The last try did not take effect.
    fn definite(&mut self, pending: &PendingCall) {
        if let Some(id) = pending.own_id() {
            self.ledger.told(pending.step.request.shard, id, None);
        }
    }
}
