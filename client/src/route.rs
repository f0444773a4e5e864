//! Which node to ask. Any node answers any call, so all of this only saves a hop.
//!
//! Leaders and the number of data shards come from ClusterService.Status; the shard of a key is computed.
//! A node that cannot be dialled is left alone for a while, and whoever can be reached forwards.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use trefoil_proto::cluster::v1::StatusResponse;
use trefoil_proto::common::v1::ResponseHeader;
use trefoil_proto::slot::{MAP_EPOCH, SHARDS_MAX, SLOTS};

use crate::error::Error;
use crate::node::{RemoteNode, Transport, endpoint_url};
use crate::routing_key::RoutingKey;

/// Nodes that a client knows at most: the members of a cluster and the endpoints that it was given.
const NODES_MAX: usize = 32;

/// What the client knows of the cluster.
#[derive(Debug)]
pub(crate) struct Routes {
    transport: Transport,
    table: RwLock<RouteTable>,
    /// The node that is asked when nothing better is known.
    home: AtomicUsize,
}

#[derive(Debug, Default)]
struct RouteTable {
    /// The given endpoints first, then advertised ones.
    nodes: Vec<Arc<RemoteNode>>,
    /// Where each member is reached.
    members: BTreeMap<u64, Arc<RemoteNode>>,
    /// Leader and term of each shard.
    leaders: BTreeMap<u32, ShardLeader>,
    /// Over which the slots are spread; none where the last status told no map that this client can read.
    data_shards: Option<u32>,
}

#[derive(Clone, Copy, Debug)]
struct ShardLeader {
    node_id: u64,
    term: u64,
}

impl Routes {
    pub(crate) fn new(endpoints: &[String], transport: Transport) -> Result<Self, Error> {
        let mut nodes = Vec::new();
        for endpoint in endpoints.iter().take(NODES_MAX) {
            nodes.push(Arc::new(RemoteNode::given(endpoint, &transport)?));
        }
        if nodes.is_empty() {
            return Err(Error::NoEndpoint);
        }
        // Clients that share a configuration should not all ask its first node.
        let home = AtomicUsize::new(rand::random_range(0..nodes.len()));
        let table = RwLock::new(RouteTable { nodes, ..RouteTable::default() });
        Ok(Self { transport, table, home })
    }

    /// The best node for a key that is not among those to avoid; all may be avoided, never none returned.
    pub(crate) fn pick(&self, key: RoutingKey, avoid: &[Arc<RemoteNode>]) -> Arc<RemoteNode> {
        let table = self.read();
        let usable = |node: &Arc<RemoteNode>| node.may_be_asked() && !is_in(avoid, node);
        let shard = key.shard(table.data_shards);
        if let Some(leader) =
            shard.and_then(|shard| table.leader(shard)).filter(|node| usable(node))
        {
            return Arc::clone(leader);
        }
        let home = self.home.load(Ordering::Relaxed);
        let mut in_turn = (0..table.nodes.len()).map(|n| (home + n) % table.nodes.len());
        if let Some(found) = in_turn.clone().find(|n| usable(&table.nodes[*n])) {
            self.home.store(found, Ordering::Relaxed);
            return Arc::clone(&table.nodes[found]);
        }
        let untried = in_turn.find(|n| !is_in(avoid, &table.nodes[*n]));
        Arc::clone(&table.nodes[untried.unwrap_or((home + avoid.len()) % table.nodes.len())])
    }

    /// Whether an answer shows that a shard has another leader than the one that is known.
    pub(crate) fn is_behind(&self, header: &ResponseHeader) -> bool {
        self.read().leaders.get(&header.shard).is_none_or(|leader| leader.term < header.term)
    }

    /// Takes in what a node says of the cluster.
    pub(crate) fn absorb(&self, asked: &Arc<RemoteNode>, status: &StatusResponse) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.data_shards = data_shards(status);
        let asked_id = status.header.as_ref().map_or(0, |header| header.node_id);
        for member in &status.members {
            if member.id == asked_id {
                table.members.insert(member.id, Arc::clone(asked));
            } else if !table.members.contains_key(&member.id)
                && let Some(node) = table.node(&member.endpoint, &self.transport)
            {
                table.members.insert(member.id, node);
            }
        }
        for shard in &status.shards {
            let known = table.leaders.get(&shard.shard).map_or(0, |leader| leader.term);
            if shard.leader_id != 0 && shard.term >= known {
                table.leaders.insert(
                    shard.shard,
                    ShardLeader { node_id: shard.leader_id, term: shard.term },
                );
            }
        }
    }

    /// The node at an endpoint that a refusal named.
    pub(crate) fn at(&self, endpoint: &str) -> Option<Arc<RemoteNode>> {
        let endpoint = endpoint_url(endpoint).ok()?;
        let known = self.read().find(&endpoint);
        known.or_else(|| {
            let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
            table.node(&endpoint, &self.transport)
        })
    }

    /// Every node, each once: members where they are known, else the given endpoints.
    pub(crate) fn nodes(&self) -> Vec<Arc<RemoteNode>> {
        let table = self.read();
        let mut nodes = Vec::<Arc<RemoteNode>>::new();
        let known = if table.members.is_empty() {
            table.nodes.clone()
        } else {
            table.members.values().cloned().collect()
        };
        for node in known {
            if !is_in(&nodes, &node) {
                nodes.push(node);
            }
        }
        nodes
    }

    fn read(&self) -> RwLockReadGuard<'_, RouteTable> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_in(nodes: &[Arc<RemoteNode>], node: &Arc<RemoteNode>) -> bool {
    nodes.iter().any(|other| Arc::ptr_eq(other, node))
}

/// The number of data shards, where the map is the one that this client computes by.
fn data_shards(status: &StatusResponse) -> Option<u32> {
    let map = status.slot_map.as_ref()?;
    let is_readable = map.epoch == MAP_EPOCH
        && map.slots == u32::from(SLOTS)
        && (1..=SHARDS_MAX).contains(&map.data_shards);
    is_readable.then_some(map.data_shards)
}

impl RouteTable {
    fn leader(&self, shard: u32) -> Option<&Arc<RemoteNode>> {
        self.members.get(&self.leaders.get(&shard)?.node_id)
    }

    fn find(&self, endpoint: &str) -> Option<Arc<RemoteNode>> {
        self.nodes.iter().find(|node| node.endpoint() == endpoint).cloned()
    }

    /// The node at an endpoint, added when there is room.
    fn node(&mut self, endpoint: &str, transport: &Transport) -> Option<Arc<RemoteNode>> {
        if let Some(node) = self.find(endpoint) {
            return Some(node);
        }
        if endpoint.is_empty() || self.nodes.len() >= NODES_MAX {
            return None;
        }
        let node = Arc::new(RemoteNode::advertised(endpoint, transport).ok()?);
        self.nodes.push(Arc::clone(&node));
        Some(node)
    }
}

#[cfg(test)]
mod tests {
    use trefoil_proto::cluster::v1::{Member, ShardStatus, SlotMap};

    use super::*;

    fn status(node_id: u64, leader_id: u64, term: u64) -> StatusResponse {
        let member = |id: u64| Member {
            id,
            name: format!("n{id}"),
            endpoint: format!("http://10.0.0.{id}:7001"),
        };
        StatusResponse {
            header: Some(ResponseHeader { node_id, ..ResponseHeader::default() }),
            members: vec![member(1), member(2)],
            shards: vec![ShardStatus { shard: 3, leader_id, term, ..ShardStatus::default() }],
            ..StatusResponse::default()
        }
    }

    fn routes() -> (Routes, Arc<RemoteNode>) {
        let routes = Routes::new(&["http://localhost:1".to_owned()], Transport::default()).unwrap();
        let given = routes.pick(RoutingKey::Any, &[]);
        (routes, given)
    }

    #[test]
    fn a_key_goes_to_the_leader_of_its_shard_from_the_first_call_on() {
        let (routes, given) = routes();
        let key = RoutingKey::cache("", "greeting");
        let map = SlotMap { epoch: MAP_EPOCH, slots: SLOTS.into(), data_shards: 3 };
        let shard = key.shard(Some(3)).unwrap();
        let leads = StatusResponse { slot_map: Some(map), ..status(1, 2, 5) };
        let mut of_shard = leads.clone();
        of_shard.shards[0].shard = shard;
        routes.absorb(&given, &of_shard);
        let leader = routes.pick(key, &[]);
        assert_eq!(leader.endpoint(), "http://10.0.0.2:7001");
        assert_eq!(routes.pick(key, &[leader]).endpoint(), "http://localhost:1");
        let other = (0..).map(|n| RoutingKey::cache("", &n.to_string()));
        let other = other.into_iter().find(|key| key.shard(Some(3)) != Some(shard)).unwrap();
        assert_eq!(routes.pick(other, &[]).endpoint(), "http://localhost:1");
        assert_eq!(routes.pick(RoutingKey::Any, &[]).endpoint(), "http://localhost:1");
    }

    #[test]
    fn a_map_that_cannot_be_read_is_not_used() {
        let (routes, given) = routes();
        let map = SlotMap { epoch: MAP_EPOCH, slots: SLOTS.into(), data_shards: 1 };
        let mut told = status(1, 2, 5);
        told.shards[0].shard = 1;
        let key = RoutingKey::locks("");
        let goes_to = |slot_map| {
            routes.absorb(&given, &StatusResponse { slot_map, ..told.clone() });
            routes.pick(key, &[]).endpoint().to_owned()
        };
        for unreadable in [
            None,
            Some(SlotMap::default()),
            Some(SlotMap { epoch: MAP_EPOCH + 1, ..map }),
            Some(SlotMap { slots: 1_024, ..map }),
            Some(SlotMap { data_shards: 0, ..map }),
            Some(SlotMap { data_shards: SHARDS_MAX + 1, ..map }),
            Some(SlotMap { data_shards: u32::MAX, ..map }),
        ] {
            assert_eq!(goes_to(Some(map)), "http://10.0.0.2:7001");
            assert_eq!(goes_to(unreadable), "http://localhost:1", "{unreadable:?}");
        }
        told.shards[0].shard = SHARDS_MAX;
        let most = Some(SlotMap { data_shards: SHARDS_MAX, ..map });
        routes.absorb(&given, &StatusResponse { slot_map: most, ..told });
        let last = RoutingKey::Slot(SLOTS - 1);
        assert_eq!(routes.pick(last, &[]).endpoint(), "http://10.0.0.2:7001");
    }

    #[test]
    fn a_newer_term_asks_for_a_refresh_and_an_older_view_changes_nothing() {
        let (routes, given) = routes();
        routes.absorb(&given, &status(1, 2, 5));
        let header = |shard, term| ResponseHeader { shard, term, ..ResponseHeader::default() };
        assert!(!routes.is_behind(&header(3, 5)));
        assert!(routes.is_behind(&header(3, 6)));
        assert!(routes.is_behind(&header(4, 5)), "its leader is not known");
        routes.absorb(&given, &status(1, 1, 4));
        assert_eq!(routes.pick(RoutingKey::Shard(3), &[]).endpoint(), "http://10.0.0.2:7001");
        routes.absorb(&given, &status(1, 1, 6));
        assert_eq!(routes.pick(RoutingKey::Shard(3), &[]).endpoint(), "http://localhost:1");
    }

    #[test]
    fn an_endpoint_is_a_host_with_a_port() {
        assert!(matches!(Routes::new(&[], Transport::default()), Err(Error::NoEndpoint)));
        for (given, url) in [
            ("localhost:7001", "http://localhost:7001"),
            ("http://[::1]:7001/", "http://[::1]:7001"),
            ("http://trefoil", "http://trefoil"),
        ] {
            let routes = Routes::new(&[given.to_owned()], Transport::default()).unwrap();
            assert_eq!(routes.pick(RoutingKey::Any, &[]).endpoint(), url);
            assert_eq!(routes.at(given).unwrap().endpoint(), url);
        }
        for bad in
            ["", "http://", "https://h:1", "h:1/path", "h:99999", "h:0", "h:", "u@h:1", "a b:1"]
        {
            let refused = Routes::new(&[bad.to_owned()], Transport::default());
            assert!(
                matches!(refused, Err(Error::InvalidEndpoint { endpoint }) if endpoint == bad),
                "{bad}"
            );
        }
    }
}
