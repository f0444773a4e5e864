//! What a node does for clients: it carries their calls out as the core decides, here or at the node that leads, over
//! streams that keep their order, lose nothing while they last, and break.

use std::collections::BTreeSet;

use trefoil_core::call::{Act, Call, CallEvent, Failure, ShardRequest, View, failure, unseen};
use trefoil_core::call::{propose_by_ms, unreached};
use trefoil_core::limits::{ANSWER_MARGIN_MS, FORWARD_ALIVE_MS};
use trefoil_core::machine::is_grant;
use trefoil_core::replica::{Input, Proposal, Read, Reply};
use trefoil_core::{CallId, NodeId, ShardId};
use trefoil_proto::internal::v1::{Command, Refusal, answer};

use crate::calls::RoutedRequest;
use crate::check::Violation;
use crate::client::TryResult;
use crate::config::{MILLISECOND, SECOND};
use crate::event::{ProcessEvent, SimEvent};
use crate::network::LinkStream;
use crate::node::forwarding::{Asker, CallOrigin, CallStream, Forwarded, Served, Trying};
use crate::node::process::Process;
use crate::world::{World, trace};

/// How long the ends of a stream take at most to see that it broke.
const BREAK_US: u64 = 3 * SECOND;

/// In the place of a client: the node itself.
const ITSELF: u64 = u64::MAX;
/// How often it tries to take a grant back, and how long each time.
const TAKE_BACK_TRIES: u64 = 50;
const TAKE_BACK_US: u64 = 5 * SECOND;

impl World {
    /// A request of a client arrives.
    pub(crate) fn request(
        &mut self,
        to: NodeId,
        (client, token): (u64, u64),
        patience_us: u64,
        request: RoutedRequest,
    ) {
        if !self.nodes[&to].up {
            trace!(self, "n{to} is down for client {client}");
            return self.soon(MILLISECOND, SimEvent::Hear(client, token, TryResult::Unreached));
        }
        let RoutedRequest { shard, body } = request;
        let answer_by_ms =
            self.nodes[&to].clocks(self.now).boot_ms + patience_us / MILLISECOND - ANSWER_MARGIN_MS;
        let call = Call::new(body, answer_by_ms);
        let (trying, tries, is_gone) = (None, 0, false);
        let id = self.unique();
        trace!(self, "n{to}/s{shard} serves {id} of client {client}: {:?}", call.work());
        let served = Served { client, token, shard, call, answer_by_ms, trying, tries, is_gone };
        self.node(to).served.insert(id, served);
        self.serve(to, id, CallEvent::Look, None);
    }

    /// A client hangs up.
    pub(crate) fn hang_up(&mut self, to: NodeId, from: (u64, u64)) {
        let mut served = self.node(to).served.iter_mut();
        let Some((id, served)) = served.find(|(_, s)| (s.client, s.token) == from) else { return };
        served.is_gone = true;
        let id = *id;
        trace!(self, "n{to} call {id} is hung up");
        self.serve(to, id, CallEvent::Cancel, None);
    }

    /// Looks at all calls of a node, or at those for one shard.
    pub(crate) fn look(&mut self, node: NodeId, shard: Option<ShardId>) {
        let served = self.nodes[&node].served.iter();
        let here = served.filter(|(_, served)| shard.is_none_or(|shard| shard == served.shard));
        for id in here.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.serve(node, id, CallEvent::Look, None);
        }
    }

    /// Does what the core decides about a call; `decided` is the state machine's refusal that it is told of.
    fn serve(&mut self, node: NodeId, id: u64, mut turn: CallEvent, decided: Option<&Reply>) {
        loop {
            let jitter =
                if turn == CallEvent::Look { 0 } else { self.shared.rng.between(0, 1_000) };
            let now = self.nodes[&node].clocks(self.now);
            let at = self.node(node);
            let Some(mut served) = at.served.remove(&id) else { return };
            let Some(host) = at.hosts.get(&served.shard) else { return };
            let streams = &at.streams;
            let view = View {
                node,
                now_ms: now.boot_ms,
                leader: host.role.leader,
                term: host.role.term,
                leaderless_since_ms: host.leaderless_since_ms,
                applied_log_time_ms: host.machine.progress().log_time_ms,
                stopping_since_ms: None,
                heard_ms: &|peer| streams.get(&peer).map_or(0, |stream| stream.heard_ms),
                jitter,
            };
            if matches!(turn, CallEvent::Failed(..)) {
                served.trying = None;
            }
            let gave_up = turn == CallEvent::Look;
            let step = served.call.step(&view, turn);
            if step.cancels {
                self.stats.given_up += u64::from(gave_up);
                self.cancel(node, &mut served);
            }
            match step.act {
                Act::Try(to) => {
                    if served.is_gone {
                        let what = format!("n{node} tries call {id} again at n{to}");
                        self.violations.push(Violation::new(
                            "a node sends no further try of a call that was cancelled",
                            what,
                        ));
                    }
                    if self.try_once(node, to, id, served) {
                        return;
                    }
                    // Nothing has left.
                    turn = CallEvent::Failed(unreached(None), Failure::Definite);
                }
                Act::Wait(_) => {
                    self.node(node).served.insert(id, served);
                    return;
                }
                Act::End(refusal) => {
                    let reply = match decided {
                        Some(reply) if is_refusal(reply, &refusal) => reply.clone(),
                        _ => Reply::Refused(refusal),
                    };
                    return self.answer(node, id, &served, reply);
                }
                Act::Over => return,
            }
        }
    }

    /// Sends a try on its way; false when the peer cannot be reached.
    fn try_once(&mut self, node: NodeId, to: NodeId, id: u64, mut served: Served) -> bool {
        let (shard, work) = (served.shard, served.call.work().clone());
        let now_ms = self.nodes[&node].clocks(self.now).boot_ms;
        let deadline_ms = propose_by_ms(now_ms, served.answer_by_ms);
        self.stats.node_retries += u64::from(served.tries > 0);
        served.tries += 1;
        if to == node {
            let floor = self.floor(shard, &work);
            let caller = CallOrigin { asker: Asker::Served(id), shard, floor };
            let call = self.node(node).call(caller);
            served.trying = Some(Trying::Here(call));
            self.node(node).served.insert(id, served);
            self.submit(node, shard, (call, false), work, deadline_ms);
            return true;
        }
        let Some(epoch) = self.open_stream(node, to) else {
            served.trying = None;
            self.node(node).served.insert(id, served);
            return false;
        };
        let name = self.unique();
        served.trying = Some(Trying::There { epoch, id: name });
        self.node(node).served.insert(id, served);
        self.stats.forwarded += 1;
        trace!(self, "n{node} forwards call {id} as {name} to n{to}");
        let timeout_ms = deadline_ms.saturating_sub(now_ms);
        self.forward(node, to, node, Forwarded::Call { id: name, shard, timeout_ms, work });
        true
    }

    /// Where the answer to a try stands at the earliest: a remembered one where it was decided first, also for a first
    /// try that comes late.
    fn floor(&self, shard: ShardId, work: &ShardRequest) -> u64 {
        let may_be_remembered =
            matches!(work, ShardRequest::Command(Command { request_id: Some(_), .. }));
        if may_be_remembered { 0 } else { self.agreements.applied_index(shard) }
    }

    /// Asks a replica, for another node or not.
    fn submit(
        &mut self,
        node: NodeId,
        shard: ShardId,
        (call, forwarded): (CallId, bool),
        work: ShardRequest,
        deadline_ms: u64,
    ) {
        let input = match work {
            ShardRequest::Command(command) => {
                trace!(self, "n{node}/s{shard} call {call}: {:?}", command.operation);
                Input::Propose(vec![Proposal { call, command, deadline_ms, forwarded }])
            }
            ShardRequest::Query(query) => {
                trace!(self, "n{node}/s{shard} call {call}: {:?}", query.query);
                Input::Read(vec![Read { call, query, deadline_ms }])
            }
        };
        self.step(node, shard, input);
    }

    fn cancel(&mut self, node: NodeId, served: &mut Served) {
        match served.trying {
            Some(Trying::Here(call)) => {
                self.node(node).calls.remove(&call);
                self.step(node, served.shard, Input::Cancel(call));
            }
            Some(Trying::There { epoch, id }) => {
                let mut streams = self.nodes[&node].streams.iter();
                let to = streams.find(|(_, stream)| stream.epoch == epoch).map(|(peer, _)| *peer);
                if let Some(to) = to {
                    self.stats.cancels_forwarded += 1;
                    self.forward(node, to, node, Forwarded::Cancel(id));
                }
            }
            None => {}
        }
    }

    /// A replica has ended a call.
    pub(crate) fn ended(&mut self, node: NodeId, call: CallId, asker: Asker, reply: Reply) {
        match asker {
            Asker::Served(id) => self.try_ended(node, id, Trying::Here(call), reply),
            Asker::Peer { process, epoch, id } => {
                let owner = process.node;
                let was_claimed = self.node(node).claimed.remove(&call);
                let stream = self.nodes[&owner].streams.get(&node);
                if stream.is_some_and(|stream| stream.epoch == epoch) {
                    self.forward(node, owner, owner, Forwarded::Reply(id, reply));
                } else if is_granted(&reply) && !was_claimed {
                    let what = format!("n{node} answers call {call} of n{owner}, which is gone");
                    self.violations
                        .push(Violation::new("a grant goes to a caller who is there", what));
                }
            }
        }
    }

    /// A replica has a grant for a call that another node forwarded, and asks whether its caller is there.
    pub(crate) fn offer(&mut self, node: NodeId, call: CallId) {
        let Some(caller) = self.nodes[&node].calls.get(&call) else { return };
        let Asker::Peer { process, epoch, id } = caller.asker else { return };
        let stream = self.nodes[&process.node].streams.get(&node);
        if stream.is_some_and(|stream| stream.epoch == epoch) {
            self.stats.offers += 1;
            self.forward(node, process.node, process.node, Forwarded::Offer(id));
        }
    }

    /// A node takes a grant back that nobody asked for, and tries that again for a while.
    pub(crate) fn take_back(&mut self, node: NodeId, shard: ShardId, command: Command) {
        self.stats.taken_back += 1;
        trace!(self, "n{node}/s{shard} takes a grant back: {:?}", command.operation);
        let request = RoutedRequest { shard, body: ShardRequest::Command(command) };
        self.request(node, (ITSELF, TAKE_BACK_TRIES), TAKE_BACK_US, request);
    }

    /// A try of a call has ended.
    fn try_ended(&mut self, node: NodeId, id: u64, tried: Trying, reply: Reply) {
        let served = self.nodes[&node].served.get(&id);
        if !served.is_some_and(|served| served.trying == Some(tried)) {
            return;
        }
        match &reply {
            Reply::Answered(_, answer) => match &answer.answer {
                Some(answer::Answer::Refusal(refusal)) => {
                    let turn = CallEvent::Failed(refusal.clone(), Failure::Final);
                    self.serve(node, id, turn, Some(&reply));
                }
                _ => {
                    if let Some(served) = self.node(node).served.remove(&id) {
                        self.answer(node, id, &served, reply);
                    }
                }
            },
            Reply::Refused(refusal) => {
                let turn = CallEvent::Failed(refusal.clone(), failure(refusal.reason()));
                self.serve(node, id, turn, None);
            }
        }
    }

    fn answer(&mut self, node: NodeId, id: u64, served: &Served, reply: Reply) {
        let Served { client, token, shard, .. } = *served;
        if let Reply::Refused(refusal) = &reply {
            trace!(self, "n{node} ends call {id} with {}", refusal.reason().name());
            self.count(refusal);
            if client == ITSELF && token > 0 {
                let request = RoutedRequest { shard, body: served.call.work().clone() };
                let (from, patience_us) = ((client, token - 1), TAKE_BACK_US);
                let event = SimEvent::Request { to: node, from, patience_us, request };
                return self.at(self.now + SECOND / 5, event);
            }
        }
        if !self.shared.rng.chance(self.shared.config.loss) {
            let delay = self.shared.config.delay_us;
            let again = served.call.has_unseen();
            self.soon(delay, SimEvent::Hear(client, token, TryResult::Reply { reply, again }));
        }
    }

    // === Streams for calls ===

    /// The stream for calls to a peer, where one can be had.
    fn open_stream(&mut self, node: NodeId, to: NodeId) -> Option<u64> {
        let fresh = self.unique();
        let is_cut = self.network.is_cut((node, to)) || self.network.is_cut((to, node));
        // It begins with a greeting, too.
        let is_up = self.nodes[&to].up
            && self.takes(to, (node, self.start_of(node)))
            && self.takes(node, (to, self.start_of(to)));
        let (now, now_ms) = (self.now, self.nodes[&node].clocks(self.now).boot_ms);
        let stream = self.node(node).streams.entry(to).or_insert(CallStream {
            epoch: fresh,
            is_broken: false,
            is_fresh: true,
            open_at: now,
            heard_ms: now_ms,
        });
        if stream.open_at > now || (stream.is_fresh && (is_cut || !is_up)) {
            return None;
        }
        stream.is_fresh = false;
        Some(stream.epoch)
    }

    /// Sends something on the stream of `owner`; what is lost breaks it.
    fn forward(&mut self, from: NodeId, to: NodeId, owner: NodeId, message: Forwarded) {
        let peer = if owner == from { to } else { from };
        let Some(stream) = self.nodes[&owner].streams.get(&peer) else { return };
        if stream.is_broken {
            return;
        }
        let epoch = stream.epoch;
        let (rng, config) = (&mut self.shared.rng, &self.shared.config);
        let Some(at) = self.network.stream(rng, config, self.now, (from, to), LinkStream::Calls)
        else {
            return self.break_stream(owner, peer, BREAK_US);
        };
        let (from, to) = (self.process(from), self.process(to));
        self.at(at, SimEvent::Forwarded { from, to, epoch, message });
    }

    /// Nothing more arrives on a stream, and its ends see that within a while.
    pub(crate) fn break_stream(&mut self, owner: NodeId, peer: NodeId, within_us: u64) {
        let Some(stream) = self.node(owner).streams.get_mut(&peer) else { return };
        if std::mem::replace(&mut stream.is_broken, true) {
            return;
        }
        let epoch = stream.epoch;
        self.stats.streams_broken += 1;
        for (end, other) in [(owner, peer), (peer, owner)] {
            let end = self.process(end);
            self.soon(within_us, SimEvent::StreamBroke { end, other, epoch });
        }
    }

    /// An end of a stream sees that it broke.
    pub(crate) fn stream_broke(&mut self, node: NodeId, other: NodeId, epoch: u64) {
        // What the peer asked for is not waited for any more.
        let of_peer =
            |asker: &Asker| matches!(asker, Asker::Peer { epoch: at, .. } if *at == epoch);
        let calls = self.nodes[&node].calls.iter().filter(|(_, caller)| of_peer(&caller.asker));
        for (call, shard) in calls.map(|(call, caller)| (*call, caller.shard)).collect::<Vec<_>>() {
            self.node(node).calls.remove(&call);
            self.step(node, shard, Input::Cancel(call));
        }
        let fresh = self.unique();
        let open_at = self.now + self.shared.rng.between(50, 1_000) * MILLISECOND;
        let at = self.node(node);
        let stream = at.streams.get_mut(&other).filter(|stream| stream.epoch == epoch);
        let Some(stream) = stream else { return };
        (stream.epoch, stream.is_broken, stream.is_fresh) = (fresh, false, true);
        stream.open_at = open_at;
        let on_it = |trying: Option<Trying>| matches!(trying, Some(Trying::There { epoch: at, .. }) if at == epoch);
        let served = at.served.iter().filter(|(_, served)| on_it(served.trying));
        let ends = served.map(|(id, served)| {
            (*id, unseen(matches!(served.call.work(), ShardRequest::Command(_))))
        });
        for (id, (why, failure)) in ends.collect::<Vec<_>>() {
            self.serve(node, id, CallEvent::Failed(why, failure), None);
        }
    }

    /// Something arrives on a stream.
    pub(crate) fn forwarded(
        &mut self,
        from: Process,
        node: NodeId,
        epoch: u64,
        message: Forwarded,
    ) {
        let now_ms = self.nodes[&node].clocks(self.now).boot_ms;
        match message {
            Forwarded::Call { id, shard, timeout_ms, work } => {
                let floor = self.floor(shard, &work);
                let asker = Asker::Peer { process: from, epoch, id };
                let call = self.node(node).call(CallOrigin { asker, shard, floor });
                self.submit(node, shard, (call, true), work, now_ms + timeout_ms);
            }
            Forwarded::Cancel(id) => {
                let asker = Asker::Peer { process: from, epoch, id };
                let mut calls = self.nodes[&node].calls.iter();
                let found = calls.find(|(_, caller)| caller.asker == asker);
                if let Some((call, shard)) = found.map(|(call, caller)| (*call, caller.shard)) {
                    self.node(node).calls.remove(&call);
                    self.step(node, shard, Input::Cancel(call));
                }
            }
            Forwarded::Reply(id, reply) => {
                self.hears(from.node, node, epoch, now_ms);
                let tried = Trying::There { epoch, id };
                let mut served = self.nodes[&node].served.iter();
                let found = served.find(|(_, served)| served.trying == Some(tried));
                if let Some(id) = found.map(|(id, _)| *id) {
                    self.try_ended(node, id, tried, reply);
                }
            }
            Forwarded::Offer(id) => {
                self.hears(from.node, node, epoch, now_ms);
                let tried = Trying::There { epoch, id };
                let mut served = self.nodes[&node].served.values();
                if served.any(|served| served.trying == Some(tried)) {
                    self.forward(node, from.node, node, Forwarded::Claim(id));
                }
            }
            Forwarded::Claim(id) => {
                let asker = Asker::Peer { process: from, epoch, id };
                let mut calls = self.nodes[&node].calls.iter();
                let found = calls.find(|(_, caller)| caller.asker == asker);
                if let Some((call, shard)) = found.map(|(call, caller)| (*call, caller.shard)) {
                    self.node(node).claimed.insert(call);
                    self.step(node, shard, Input::Claim(call));
                }
            }
            Forwarded::Alive => self.hears(from.node, node, epoch, now_ms),
        }
    }

    fn hears(&mut self, from: NodeId, node: NodeId, epoch: u64, now_ms: u64) {
        let stream = self.node(node).streams.get_mut(&from);
        if let Some(stream) = stream.filter(|stream| stream.epoch == epoch) {
            stream.heard_ms = now_ms;
        }
    }

    /// Tells the peers whose calls wait at a node that it is alive.
    pub(crate) fn tell_alive(&mut self, node: NodeId) {
        let now = self.now;
        let at = self.node(node);
        if at.alive_at > now {
            return;
        }
        at.alive_at = now + FORWARD_ALIVE_MS * MILLISECOND;
        let owners = at.calls.values().filter_map(|caller| match caller.asker {
            Asker::Peer { process, epoch, .. } => Some((process.node, epoch)),
            Asker::Served(_) => None,
        });
        for (owner, epoch) in owners.collect::<BTreeSet<_>>() {
            let stream = self.nodes[&owner].streams.get(&node);
            if stream.is_some_and(|stream| stream.epoch == epoch) {
                self.forward(node, owner, owner, Forwarded::Alive);
            }
        }
    }

    /// The process of a node has died: its clients and the other ends of its streams will see that.
    pub(crate) fn forget_calls(&mut self, node: NodeId, power: bool) {
        let within_us = if power { BREAK_US } else { 100 * MILLISECOND };
        let at = self.node(node);
        at.calls.clear();
        at.claimed.clear();
        let (served, streams) = (std::mem::take(&mut at.served), std::mem::take(&mut at.streams));
        for Served { client, token, .. } in served.into_values() {
            let delay = self.shared.config.delay_us;
            self.soon(delay, SimEvent::Hear(client, token, TryResult::Broken));
        }
        for (peer, stream) in streams {
            let end = self.process(peer);
            self.soon(within_us, SimEvent::StreamBroke { end, other: node, epoch: stream.epoch });
        }
        for other in (1..=self.setup.nodes).filter(|other| *other != node) {
            self.break_stream(other, node, within_us);
        }
    }

    /// A number that was never drawn before.
    fn unique(&mut self) -> u64 {
        self.names += 1;
        self.names
    }

    /// What a replica says goes to who asked, once it is done with what it does.
    pub(crate) fn tell_asker(&mut self, node: NodeId, call: CallId, asker: Asker, reply: Reply) {
        let event = SimEvent::In(self.process(node), ProcessEvent::Ended { call, asker, reply });
        self.at(self.now, event);
    }
}

fn is_granted(reply: &Reply) -> bool {
    matches!(reply, Reply::Answered(_, answer) if is_grant(answer))
}

/// Whether a reply is the state machine's own word of this refusal.
fn is_refusal(reply: &Reply, refusal: &Refusal) -> bool {
    let Reply::Answered(_, answer) = reply else { return false };
    matches!(&answer.answer, Some(answer::Answer::Refusal(decided)) if decided == refusal)
}
