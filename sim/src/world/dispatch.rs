//! What each event sets off.

use trefoil_core::NodeId;
use trefoil_core::limits::TICK_MS;
use trefoil_core::replica::Input;

use crate::client::{PATIENCE_US, SimClient, Todo};
use crate::client_context::ClientContext;
use crate::config::MILLISECOND;
use crate::event::{Brief, ProcessEvent, SimEvent};
use crate::node::process::Process;
use crate::workload::TAKERS;
use crate::world::{World, trace};

impl World {
    /// What happens first.
    pub(crate) fn begin(&mut self) {
        if self.shared.config.in_pieces {
            self.begin_in_pieces();
        } else {
            (1..=self.setup.nodes).for_each(|node| self.start(node));
        }
        for client in (0..=self.shared.config.clients).chain(TAKERS) {
            let at = self.shared.rng.between(0, 1_000) * MILLISECOND;
            self.at(at, SimEvent::Wake(client, 0));
        }
        let first = self.shared.rng.between(0, self.shared.config.calm_us);
        self.at(first, SimEvent::NextFault);
        self.at(0, SimEvent::Watch);
    }

    /// Lets the next thing happen; false when nothing will.
    pub(crate) fn next(&mut self) -> bool {
        let Some(((at, _), event)) = self.events.pop_first() else { return false };
        self.now = at;
        self.stats.events += 1;
        if let Some(until) = self.standing_still(&event) {
            self.at(until, event);
        } else {
            self.handle(event);
        }
        true
    }

    /// Until when the node of an event stands still, or does not read the stream that brings it.
    fn standing_still(&self, event: &SimEvent) -> Option<u64> {
        let (node, deaf_us) = match event {
            SimEvent::In(Process { node, .. }, _) => (node, 0),
            SimEvent::Peer(Process { node, .. }, ..)
            | SimEvent::Letter { to: Process { node, .. }, .. }
            | SimEvent::Stream { to: node, .. }
            | SimEvent::Announced { to: node, .. } => (node, self.nodes[node].deaf_us.0),
            SimEvent::Forwarded { to: Process { node, .. }, .. }
            | SimEvent::StreamBroke { end: Process { node, .. }, .. } => (node, 0),
            SimEvent::Request { to: node, .. } | SimEvent::HangUp { to: node, .. } => {
                (node, self.nodes[node].deaf_us.1)
            }
            SimEvent::Hear(..)
            | SimEvent::Wake(..)
            | SimEvent::NextFault
            | SimEvent::Mend(_)
            | SimEvent::Watch => return None,
        };
        let node = &self.nodes[node];
        let until = node.paused_until + deaf_us;
        (node.up && until > self.now).then_some(until)
    }

    fn handle(&mut self, event: SimEvent) {
        match event {
            SimEvent::In(process, local) => {
                if self.is_running(process) {
                    self.local(process.node, local);
                }
            }
            SimEvent::Peer(process @ Process { node: to, .. }, shard, start, peer) => {
                if !self.is_running(process) || !self.takes(to, (peer.message.from, start)) {
                    return;
                }
                let followed = if peer.time.continuous { "" } else { "?" };
                let time = peer.time.log_time_ms;
                trace!(self, "s{shard} {} at log time {time}{followed}", Brief(&peer.message));
                self.step(to, shard, Input::Peer(peer));
            }
            SimEvent::Stream { from, to, shard, peer, image } => {
                self.stream_ends(from, to, shard, peer, image)
            }
            SimEvent::Letter { from, to, letter } => self.letter(from, to, *letter),
            SimEvent::Announced { to, shard, from, announced: (uncertain, obstacles), said_at } => {
                let node = from.0;
                if !self.takes(to, from) || !self.is_news(to, shard, node, said_at) {
                    return;
                }
                trace!(
                    self,
                    "n{to}/s{shard} hears of n{node}: uncertain={uncertain}, obstacles={obstacles:?}"
                );
                self.step(to, shard, Input::Uncertain { node, uncertain });
                self.step(to, shard, Input::PeerObstacles { node, obstacles });
            }
            SimEvent::Forwarded { from, to, epoch, message } => {
                if self.is_running(to) {
                    self.forwarded(from, to.node, epoch, message);
                }
            }
            SimEvent::StreamBroke { end, other, epoch } => {
                if self.is_running(end) {
                    self.stream_broke(end.node, other, epoch);
                }
            }
            SimEvent::Request { to, from, patience_us, request } => {
                self.request(to, from, patience_us, request)
            }
            SimEvent::HangUp { to, from } => self.hang_up(to, from),
            SimEvent::Hear(client, token, heard) => {
                self.client(client, |client, now, shared| client.hear(now, token, heard, shared))
            }
            SimEvent::Wake(client, timer) => {
                self.client(client, |client, now, shared| client.wake(now, timer, shared));
            }
            SimEvent::NextFault => self.next_fault(),
            SimEvent::Mend(mend) => self.mend(mend),
            SimEvent::Watch => self.watch(),
        }
    }

    fn local(&mut self, node: NodeId, local: ProcessEvent) {
        match local {
            ProcessEvent::Tick => self.tick(node),
            ProcessEvent::Dial(peer) => self.dial(node, peer),
            ProcessEvent::LinkEnds(peer, attempt) => self.link_ends(node, peer, attempt),
            ProcessEvent::Synced => self.synced(node),
            ProcessEvent::RetryWrite => self.retry_write(node),
            ProcessEvent::Applier(shard) => self.applier_done(node, shard),
            ProcessEvent::Checkpoint(shard, generation) => {
                self.checkpointed(node, shard, generation)
            }
            ProcessEvent::Fetched { shard, ticket, first, last, max_bytes } => {
                let Some(entries) = self.read_log(node, shard, (first, last), max_bytes) else {
                    return;
                };
                trace!(
                    self,
                    "n{node}/s{shard} fetched {} entries from {first} of ..{last}",
                    entries.len()
                );
                self.stats.fetches += 1;
                self.step(node, shard, Input::Fetched { ticket, entries });
            }
            ProcessEvent::Digested(shard, digest) => {
                self.step(node, shard, Input::Digested(digest))
            }
            ProcessEvent::Opened(shard, to) => self.snapshot_opened(node, shard, to),
            ProcessEvent::Sent(shard, to, ok) => {
                trace!(self, "n{node}/s{shard} snapshot to n{to} sent ok={ok}");
                self.step(node, shard, Input::SnapshotSent { to, ok });
            }
            ProcessEvent::Unreachable(shard, to) => self.step(node, shard, Input::Unreachable(to)),
            ProcessEvent::Ended { call, asker, reply } => self.ended(node, call, asker, reply),
            ProcessEvent::Moved(shard) => self.look(node, Some(shard)),
        }
    }

    fn tick(&mut self, node: NodeId) {
        let event = SimEvent::In(self.process(node), ProcessEvent::Tick);
        self.at(self.now + self.nodes[&node].real_us(TICK_MS * MILLISECOND), event);
        self.care(node);
        self.begin_to_take_part(node);
        self.tell_members(node);
        for shard in 0..=self.setup.shards {
            self.step(node, shard, Input::Tick);
            self.announce(node, shard);
            self.scrub(node, shard);
        }
        self.look(node, None);
        self.tell_alive(node);
    }

    fn client(
        &mut self,
        client: u64,
        act: impl FnOnce(&mut SimClient, u64, &mut ClientContext) -> Vec<Todo>,
    ) {
        let Some(actor) = self.clients.get_mut(&client) else { return };
        let todos = act(actor, self.now, &mut self.shared);
        for todo in todos {
            match todo {
                Todo::Send { node, token, patience_us, request } => {
                    if !self.shared.rng.chance(self.shared.config.loss) {
                        let delay = self.shared.config.delay_us;
                        let from = (client, token);
                        self.soon(
                            delay,
                            SimEvent::Request { to: node, from, patience_us, request },
                        );
                    }
                }
                // Nobody hears the answer.
                Todo::CleanUp { at, node, request } => {
                    let patience_us = *PATIENCE_US.end();
                    let from = (client, 0);
                    self.at(at, SimEvent::Request { to: node, from, patience_us, request });
                }
                Todo::Cancel { node, token } => {
                    let delay = self.shared.config.delay_us;
                    self.soon(delay, SimEvent::HangUp { to: node, from: (client, token) });
                }
                Todo::Wake { at, timer } => self.at(at, SimEvent::Wake(client, timer)),
            }
        }
        self.violations.append(&mut self.shared.violations);
    }
}
