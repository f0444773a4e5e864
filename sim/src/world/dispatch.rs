//! What each event sets off.

use trefoil_core::NodeId;
use trefoil_core::limits::TICK_MS;
use trefoil_core::replica::Input;

use crate::client::{Client, PATIENCE_US, Todo};
use crate::client_context::ClientContext;
use crate::config::MILLISECOND;
use crate::event::{Brief, Event, Local};
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
            self.at(at, Event::Wake(client, 0));
        }
        let first = self.shared.rng.between(0, self.shared.config.calm_us);
        self.at(first, Event::NextFault);
        self.at(0, Event::Watch);
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
    fn standing_still(&self, event: &Event) -> Option<u64> {
        let (node, deaf_us) = match event {
            Event::In(Process { node, .. }, _) => (node, 0),
            Event::Peer(Process { node, .. }, ..)
            | Event::Letter { to: Process { node, .. }, .. }
            | Event::Stream { to: node, .. }
            | Event::Announced { to: node, .. } => (node, self.nodes[node].deaf_us.0),
            Event::Forwarded { to: Process { node, .. }, .. }
            | Event::StreamBroke { end: Process { node, .. }, .. } => (node, 0),
            Event::Request { to: node, .. } | Event::HangUp { to: node, .. } => {
                (node, self.nodes[node].deaf_us.1)
            }
            Event::Hear(..)
            | Event::Wake(..)
            | Event::NextFault
            | Event::Mend(_)
            | Event::Watch => return None,
        };
        let node = &self.nodes[node];
        let until = node.paused_until + deaf_us;
        (node.up && until > self.now).then_some(until)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::In(process, local) => {
                if self.is_running(process) {
                    self.local(process.node, local);
                }
            }
            Event::Peer(process @ Process { node: to, .. }, shard, start, peer) => {
                if !self.is_running(process) || !self.takes(to, (peer.message.from, start)) {
                    return;
                }
                let followed = if peer.time.continuous { "" } else { "?" };
                let time = peer.time.log_time_ms;
                trace!(self, "s{shard} {} at log time {time}{followed}", Brief(&peer.message));
                self.step(to, shard, Input::Peer(peer));
            }
            Event::Stream { from, to, shard, peer, image } => {
                self.stream_ends(from, to, shard, peer, image)
            }
            Event::Letter { from, to, letter } => self.letter(from, to, *letter),
            Event::Announced { to, shard, from, announced: (uncertain, obstacles), said_at } => {
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
            Event::Forwarded { from, to, epoch, message } => {
                if self.is_running(to) {
                    self.forwarded(from, to.node, epoch, message);
                }
            }
            Event::StreamBroke { end, other, epoch } => {
                if self.is_running(end) {
                    self.stream_broke(end.node, other, epoch);
                }
            }
            Event::Request { to, from, patience_us, request } => {
                self.request(to, from, patience_us, request)
            }
            Event::HangUp { to, from } => self.hang_up(to, from),
            Event::Hear(client, token, heard) => {
                self.client(client, |client, now, shared| client.hear(now, token, heard, shared))
            }
            Event::Wake(client, timer) => {
                self.client(client, |client, now, shared| client.wake(now, timer, shared));
            }
            Event::NextFault => self.next_fault(),
            Event::Mend(mend) => self.mend(mend),
            Event::Watch => self.watch(),
        }
    }

    fn local(&mut self, node: NodeId, local: Local) {
        match local {
            Local::Tick => self.tick(node),
            Local::Dial(peer) => self.dial(node, peer),
            Local::LinkEnds(peer, attempt) => self.link_ends(node, peer, attempt),
            Local::Synced => self.synced(node),
            Local::RetryWrite => self.retry_write(node),
            Local::Applier(shard) => self.applier_done(node, shard),
            Local::Checkpoint(shard, generation) => self.checkpointed(node, shard, generation),
            Local::Fetched { shard, ticket, first, last, max_bytes } => {
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
            Local::Digested(shard, digest) => self.step(node, shard, Input::Digested(digest)),
            Local::Opened(shard, to) => self.snapshot_opened(node, shard, to),
            Local::Sent(shard, to, ok) => {
                trace!(self, "n{node}/s{shard} snapshot to n{to} sent ok={ok}");
                self.step(node, shard, Input::SnapshotSent { to, ok });
            }
            Local::Unreachable(shard, to) => self.step(node, shard, Input::Unreachable(to)),
            Local::Ended { call, asker, reply } => self.ended(node, call, asker, reply),
            Local::Moved(shard) => self.look(node, Some(shard)),
        }
    }

    fn tick(&mut self, node: NodeId) {
        let event = Event::In(self.process(node), Local::Tick);
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
        act: impl FnOnce(&mut Client, u64, &mut ClientContext) -> Vec<Todo>,
    ) {
        let Some(actor) = self.clients.get_mut(&client) else { return };
        let todos = act(actor, self.now, &mut self.shared);
        for todo in todos {
            match todo {
                Todo::Send { node, token, patience_us, request } => {
                    if !self.shared.rng.chance(self.shared.config.loss) {
                        let delay = self.shared.config.delay_us;
                        let from = (client, token);
                        self.soon(delay, Event::Request { to: node, from, patience_us, request });
                    }
                }
                // Nobody hears the answer.
                Todo::CleanUp { at, node, request } => {
                    let patience_us = *PATIENCE_US.end();
                    let from = (client, 0);
                    self.at(at, Event::Request { to: node, from, patience_us, request });
                }
                Todo::Cancel { node, token } => {
                    let delay = self.shared.config.delay_us;
                    self.soon(delay, Event::HangUp { to: node, from: (client, token) });
                }
                Todo::Wake { at, timer } => self.at(at, Event::Wake(client, timer)),
            }
        }
        self.violations.append(&mut self.shared.violations);
    }
}
