//! Who is a member: nodes greet each other when a stream between two processes begins, tell what changes, and end when
//! a peer knows that their directory is not the one that it was. The core decides (`trefoil_core::member`).

use std::collections::BTreeMap;

use trefoil_core::member::{Formation, Introduction, News, Refused, Stage, Standing};
use trefoil_core::replica::Input;
use trefoil_core::{NodeId, ShardId};

use crate::check::Violation;
use crate::config::{MILLISECOND, SECOND};
use crate::event::{ProcessEvent, SimEvent};
use crate::network::LinkStream;
use crate::node::membership::{Letter, LinkState, MemberLink, Membership, Said};
use crate::node::process::{Process, ReplicaNotice};
use crate::world::{World, trace};

/// Hash of the flags.
const SETUP: [u8; 16] = [7; 16];
/// How long a formed node waits at its start until each peer was dialled once.
const HOLD_US: u64 = SECOND;
/// Pause between two looks at what is to be told of members.
const TELL_US: u64 = 200 * MILLISECOND;
/// Pauses between attempts to reach a peer.
const PAUSE_US: (u64, u64) = (50 * MILLISECOND, SECOND);
/// How long a greeting is waited for.
const GREETING_US: u64 = 3 * SECOND;

impl World {
    /// A process begins, and knows what its directory holds.
    pub(crate) fn introduce(&mut self, node: NodeId, own: Standing) {
        let (now, members) = (self.now, (1..=self.setup.nodes).collect());
        let at = self.node(node);
        let word = at.disk.identity().word.clone();
        let formation = Formation::new(node, members, SETUP, word);
        let memory = at.disk.remembered();
        let peers = (1..=self.setup.nodes).filter(|peer| *peer != node);
        let links = peers.map(|peer| (peer, MemberLink::default())).collect::<BTreeMap<_, _>>();
        let peers = links.keys().copied().collect::<Vec<_>>();
        self.node(node).member = Some(Membership {
            introduction: Introduction::new(node, formation, own, memory),
            takes_part: false,
            held: Vec::new(),
            links,
            hold_until: now + HOLD_US,
            tell_at: now,
        });
        self.advance(node);
        for peer in peers {
            self.soon(PAUSE_US.0, SimEvent::In(self.process(node), ProcessEvent::Dial(peer)));
        }
    }

    fn member(&mut self, node: NodeId) -> Option<&mut Membership> {
        self.node(node).member.as_mut()
    }

    /// The start of a peer that a node trusts now; 0 where none is.
    pub(crate) fn trusted(&self, node: NodeId, peer: NodeId) -> u64 {
        self.nodes[&node].member.as_ref().map_or(0, |member| member.introduction.trusted(peer))
    }

    /// The process of a peer to which a node has a stream.
    pub(crate) fn reached(&self, node: NodeId, peer: NodeId) -> Option<Process> {
        match self.nodes[&node].member.as_ref()?.links.get(&peer)?.state {
            LinkState::Open { life, .. } => Some(Process { node: peer, life }),
            LinkState::Closed | LinkState::Dialling => None,
        }
    }

    /// The start of a node's running process; 0 while there is none.
    pub(crate) fn start_of(&self, node: NodeId) -> u64 {
        let numbers = &self.nodes[&node].disk.identity().starts.numbers;
        numbers.last().copied().unwrap_or_default()
    }

    /// Whether a node takes what a start of a peer says of shards.
    pub(crate) fn takes(&self, node: NodeId, (peer, start): (NodeId, u64)) -> bool {
        let member = self.nodes[&node].member.as_ref();
        member.is_some_and(|member| {
            member.introduction.is_formed() && member.introduction.trusted(peer) == start
        })
    }

    /// Notes when a peer said something of a replica; false where something that it said later is known.
    pub(crate) fn is_news(
        &mut self,
        node: NodeId,
        shard: ShardId,
        peer: NodeId,
        said_at: u64,
    ) -> bool {
        let host = self.node(node).hosts.get_mut(&shard);
        let Some(host) = host else { return false };
        let last = host.heard.entry(peer).or_default();
        let is_news = said_at >= *last;
        *last = said_at.max(*last);
        is_news
    }

    /// Goes on to form the cluster as far as what was heard allows.
    fn advance(&mut self, node: NodeId) {
        let mut changed = false;
        while let Some(stage) =
            self.nodes[&node].member.as_ref().and_then(|m| m.introduction.next())
        {
            trace!(self, "n{node} reaches {stage:?}");
            self.node(node).disk.reach(&stage);
            if let Stage::Formed { cluster, members } = &stage {
                let disks = self.nodes.values().flat_map(|at| {
                    let shelf = at.shelf.as_deref();
                    [Some(&at.disk), shelf].into_iter().flatten().map(|disk| (at.id, disk))
                });
                let incarnation = |(id, disk): (NodeId, &crate::disk::SimDisk)| {
                    (id, disk.identity().word.incarnation)
                };
                let there = disks.map(incarnation).collect();
                let formed = &mut self.agreements.formed;
                let found = formed.saw((node, *cluster), members, self.setup.nodes, &there);
                self.violations.extend(found.err());
                self.stats.formed += 1;
            }
            if let Some(member) = self.member(node) {
                member.introduction.reached(stage);
            }
            changed = true;
        }
        if changed {
            self.tell(node);
        }
    }

    /// Replicas begin once their node is formed and every peer had the chance to say what it knows of this directory.
    pub(crate) fn begin_to_take_part(&mut self, node: NodeId) -> bool {
        let now = self.now;
        let Some(member) = self.member(node) else { return false };
        if member.takes_part {
            return true;
        }
        let heard = member.links.values().all(|link| link.dialled) || now >= member.hold_until;
        if !member.introduction.is_formed() || !heard {
            return false;
        }
        member.takes_part = true;
        let held = std::mem::take(&mut member.held);
        trace!(self, "n{node} takes part");
        let life = self.nodes[&node].life;
        for (shard, input) in held {
            if self.nodes[&node].up && self.nodes[&node].life == life {
                self.step(node, shard, input);
            }
        }
        self.nodes[&node].up && self.nodes[&node].life == life
    }

    /// Keeps what happens to a replica that does not take part yet; returns what is for one that does.
    pub(crate) fn admit(&mut self, node: NodeId, shard: ShardId, input: Input) -> Option<Input> {
        let member = self.member(node)?;
        if member.takes_part {
            return Some(input);
        }
        let drops = match input {
            Input::Tick => true,
            Input::Peer(_) | Input::Unreachable(_) => !member.introduction.is_formed(),
            _ => false,
        };
        if !drops {
            member.held.push((shard, input));
        }
        None
    }

    /// A node says nothing of shards before its cluster is formed.
    pub(crate) fn speaks(&mut self, node: NodeId, shard: ShardId) {
        if !self.nodes[&node].disk.identity().is_formed() {
            let what = format!("n{node}/s{shard}");
            let promise = "a node takes part in no shard before its cluster is formed";
            self.violations.push(Violation::new(promise, what));
        }
    }

    // === Streams ===

    fn said(&self, node: NodeId) -> Option<Said> {
        let at = &self.nodes[&node];
        let member = at.member.as_ref()?;
        let ends = at.hosts.iter().filter_map(|(shard, host)| {
            let status = host.replica.status(at.clocks(self.now));
            let end = (status.applied_term, status.applied_index);
            (status.applied_index > 0).then_some((*shard, end))
        });
        let word = member.introduction.formation().word().clone();
        Some(Said { word, memory: member.introduction.told(ends.collect()) })
    }

    /// A node begins a stream to a peer.
    pub(crate) fn dial(&mut self, node: NodeId, peer: NodeId) {
        let said = self.said(node);
        let Some(link) = self.member(node).and_then(|member| member.links.get_mut(&peer)) else {
            return;
        };
        let Some(said) = said.filter(|_| link.state == LinkState::Closed) else { return };
        link.state = LinkState::Dialling;
        link.attempt += 1;
        link.told = Some(said.clone());
        let attempt = link.attempt;
        let sent = self.nodes[&peer].up && !self.network.is_cut((peer, node));
        let letter = Letter::Greeting(attempt, said);
        if !sent || !self.post(node, self.process(peer), letter) {
            self.link_fails(self.process(node), (peer, attempt), PAUSE_US.0);
        }
    }

    /// Sends something on a stream; false when it is lost.
    fn post(&mut self, from: NodeId, to: Process, letter: Letter) -> bool {
        let (rng, config) = (&mut self.shared.rng, &self.shared.config);
        let at = self.network.stream(rng, config, self.now, (from, to.node), LinkStream::Members);
        let Some(at) = at else { return false };
        let from = self.process(from);
        self.at(at, SimEvent::Letter { from, to, letter: Box::new(letter) });
        true
    }

    /// A process will see that an attempt of it, or a stream, has come to an end.
    fn link_fails(&mut self, process: Process, (peer, attempt): (NodeId, u64), within_us: u64) {
        self.soon(within_us, SimEvent::In(process, ProcessEvent::LinkEnds(peer, attempt)));
    }

    pub(crate) fn link_ends(&mut self, node: NodeId, peer: NodeId, attempt: u64) {
        let pause = self.shared.rng.between(PAUSE_US.0, PAUSE_US.1);
        let Some(link) = self.member(node).and_then(|member| member.links.get_mut(&peer)) else {
            return;
        };
        if link.attempt != attempt || link.state == LinkState::Closed {
            return;
        }
        link.dialled = true;
        let was_open = std::mem::take(&mut link.state) != LinkState::Dialling;
        self.at(self.now + pause, SimEvent::In(self.process(node), ProcessEvent::Dial(peer)));
        for shard in (0..=self.setup.shards).filter(|_| was_open) {
            self.step(node, shard, Input::Unreachable(peer));
        }
    }

    /// The process of a node has died: those with a stream to it will see that.
    pub(crate) fn end_links(&mut self, node: NodeId, power: bool) {
        let within_us = if power { GREETING_US } else { 100 * MILLISECOND };
        for peer in (1..=self.setup.nodes).filter(|peer| *peer != node) {
            let link = self.nodes[&peer].member.as_ref().and_then(|member| member.links.get(&node));
            let Some(link) = link.filter(|link| link.state != LinkState::Closed) else { continue };
            let attempt = link.attempt;
            self.link_fails(self.process(peer), (node, attempt), within_us);
        }
    }

    /// Tells peers what has changed; what is lost ends the stream.
    fn tell(&mut self, node: NodeId) {
        let Some(said) = self.said(node) else { return };
        let process = self.process(node);
        let open = |(peer, link): (&NodeId, &MemberLink)| match link.state {
            LinkState::Open { life, start } => {
                let to = Process { node: *peer, life };
                Some((to, start, link.attempt, link.told.as_ref() != Some(&said)))
            }
            LinkState::Closed | LinkState::Dialling => None,
        };
        let member = self.nodes[&node].member.as_ref();
        let open = member.map(|member| member.links.iter().filter_map(open).collect::<Vec<_>>());
        for (to, start, attempt, news) in open.unwrap_or_default() {
            if self.trusted(node, to.node) != start {
                self.link_ends(node, to.node, attempt);
            } else if news && !self.post(node, to, Letter::News(said.clone())) {
                self.link_fails(process, (to.node, attempt), GREETING_US);
            } else if let Some(member) = self.member(node)
                && let Some(link) = member.links.get_mut(&to.node)
            {
                link.told = Some(said.clone());
            }
        }
    }

    /// [`Self::tell`] from time to time.
    pub(crate) fn tell_members(&mut self, node: NodeId) {
        let now = self.now;
        if self.member(node).is_some_and(|member| member.tell_at <= now) {
            self.member(node).into_iter().for_each(|member| member.tell_at = now + TELL_US);
            self.tell(node);
        }
    }

    /// Something arrives on a stream.
    pub(crate) fn letter(&mut self, from: Process, to: Process, letter: Letter) {
        if !self.is_running(to) {
            if let Letter::Greeting(attempt, _) = letter {
                self.link_fails(from, (to.node, attempt), 100 * MILLISECOND);
            }
            return;
        }
        let (node, peer) = (to.node, from.node);
        match letter {
            Letter::Greeting(attempt, said) => {
                let answer = self.greets(node, peer, &said);
                if !self.is_running(to) {
                    return self.link_fails(from, (node, attempt), 100 * MILLISECOND);
                }
                let answer = answer.and_then(|()| self.said(node).ok_or(false));
                let is_welcome = answer.is_ok();
                if !self.post(node, from, Letter::Welcome(attempt, answer)) {
                    self.link_fails(from, (node, attempt), GREETING_US);
                }
                if is_welcome {
                    self.dial(node, peer);
                }
            }
            Letter::Welcome(attempt, answer) => self.welcomed(to, from, attempt, answer),
            Letter::News(said) => {
                let Some(member) = self.member(node) else { return };
                let start = said.memory.peers[&peer].starts.numbers.last().copied();
                if Some(member.introduction.trusted(peer)) == start {
                    let heard =
                        member.introduction.hear(peer, Some(&said.word), Some(&said.memory));
                    // Who is refused now is told so when it dials again.
                    self.heard(node, peer, heard).ok();
                }
            }
        }
    }

    /// A peer introduces itself. An error says whether it must end.
    fn greets(&mut self, node: NodeId, peer: NodeId, said: &Said) -> Result<(), bool> {
        let Some(member) = self.member(node) else { return Err(false) };
        let heard = member.introduction.greet(peer, &said.word, &said.memory);
        self.heard(node, peer, heard)
    }

    fn heard(
        &mut self,
        node: NodeId,
        peer: NodeId,
        heard: Result<News, Refused>,
    ) -> Result<(), bool> {
        let formed = self.nodes[&node].disk.identity().is_formed();
        self.advance(node);
        match heard {
            Ok(news) => {
                if let Some(memory) = news.remember {
                    self.nodes[&node].disk.remember(memory);
                }
                for (of, stale) in news.contradictions {
                    trace!(self, "n{node} hears of n{peer} that n{of} is not one: {stale}");
                    for shard in 0..=self.setup.shards {
                        self.step(node, shard, Input::Suspect(peer));
                    }
                }
                Ok(())
            }
            Err(refused) => {
                trace!(self, "n{node} refuses n{peer}: {refused:?}");
                if refused.is_about_this_node() {
                    self.is_refused(node, peer);
                }
                Err(refused.is_verdict(formed))
            }
        }
    }

    /// A peer has answered a greeting.
    fn welcomed(&mut self, to: Process, from: Process, attempt: u64, answer: Result<Said, bool>) {
        let (node, peer) = (to.node, from.node);
        let is_awaited =
            |link: &MemberLink| link.attempt == attempt && link.state == LinkState::Dialling;
        let link = self.nodes[&node].member.as_ref().and_then(|member| member.links.get(&peer));
        if !link.is_some_and(is_awaited) {
            return;
        }
        let taken = match answer {
            Ok(said) => self.greets(node, peer, &said).is_ok(),
            Err(true) => return self.is_refused(node, peer),
            Err(false) => false,
        };
        if !self.is_running(to) {
            return;
        }
        if !taken {
            return self.link_ends(node, peer, attempt);
        }
        let start = self.trusted(node, peer);
        if let Some(host) = self.member(node)
            && let Some(link) = host.links.get_mut(&peer)
        {
            (link.state, link.dialled) = (LinkState::Open { life: from.life, start }, true);
        }
        for host in self.node(node).hosts.values_mut() {
            // A new stream begins with all that there is to tell.
            host.told.insert(peer, (u32::MAX, ReplicaNotice::default()));
        }
        self.begin_to_take_part(node);
    }
}
