//! Which node to ask. Any node answers any call, so all of this only saves a hop.
//!
//! Leaders come from ClusterService.Status; the shard of a key comes from the header of an earlier answer.
//! A node that cannot be dialled is left alone for a while, and whoever can be reached forwards.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use trefoil_proto::cluster::v1::StatusResponse;
use trefoil_proto::common::v1::ResponseHeader;

use crate::error::Error;
use crate::node::{RemoteNode, Transport, endpoint_url};
use crate::routing_key::RoutingKey;

/// Nodes that a client knows at most: the members of a cluster and the endpoints that it was given.
const NODES_MAX: usize = 32;
/// Keys whose shard is remembered; a later one takes the place of an earlier one.
const LEARNED_MAX: usize = 16_384;

/// What the client knows of the cluster.
#[derive(Debug)]
pub(crate) struct Routes {
    transport: Transport,
    table: RwLock<RouteTable>,
    /// The node that is asked when nothing better is known.
    home: AtomicUsize,
    /// Direct-mapped by the hash of a routing key: its upper 48 bits, then the shard.
    learned: Box<[AtomicU64]>,
}

#[derive(Debug, Default)]
struct RouteTable {
    /// The given endpoints first, then advertised ones.
    nodes: Vec<Arc<RemoteNode>>,
    /// Where each member is reached.
    members: BTreeMap<u64, Arc<RemoteNode>>,
    /// Leader and term of each shard.
    leaders: BTreeMap<u32, ShardLeader>,
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
        let learned = (0..LEARNED_MAX).map(|_| AtomicU64::new(0)).collect();
        Ok(Self {
            transport,
            table: RwLock::new(RouteTable { nodes, ..RouteTable::default() }),
            home,
            learned,
        })
    }

    /// The best node for a key that is not among those to avoid; all may be avoided, never none returned.
    pub(crate) fn pick(&self, key: RoutingKey, avoid: &[Arc<RemoteNode>]) -> Arc<RemoteNode> {
        let table = self.read();
        let usable = |node: &Arc<RemoteNode>| node.may_be_asked() && !is_in(avoid, node);
        if let Some(leader) =
            self.shard(key).and_then(|shard| table.leader(shard)).filter(|node| usable(node))
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

    /// Remembers the shard of a key. True when the answer shows that the leaders have changed.
    pub(crate) fn learn(&self, key: RoutingKey, header: &ResponseHeader) -> bool {
        if let RoutingKey::Hash(hash) = key
            && let Ok(shard) = u16::try_from(header.shard)
        {
            self.slot(hash).store((hash & !0xffff) | u64::from(shard), Ordering::Relaxed);
        }
        self.read().leaders.get(&header.shard).is_none_or(|leader| leader.term < header.term)
    }

    /// Takes in what a node says of the cluster.
    pub(crate) fn absorb(&self, asked: &Arc<RemoteNode>, status: &StatusResponse) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
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

    fn shard(&self, key: RoutingKey) -> Option<u32> {
        match key {
            RoutingKey::Any => None,
            RoutingKey::Shard(shard) => Some(shard),
            RoutingKey::Hash(hash) => {
                let entry = self.slot(hash).load(Ordering::Relaxed);
                (entry != 0 && entry & !0xffff == hash & !0xffff)
                    .then(|| u32::try_from(entry & 0xffff).expect("16 bits fit 32"))
            }
        }
    }

    fn slot(&self, hash: u64) -> &AtomicU64 {
        let index = usize::try_from(hash % self.learned.len() as u64).expect("below the length");
        &self.learned[index]
    }

    fn read(&self) -> RwLockReadGuard<'_, RouteTable> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_in(nodes: &[Arc<RemoteNode>], node: &Arc<RemoteNode>) -> bool {
    nodes.iter().any(|other| Arc::ptr_eq(other, node))
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
    use trefoil_proto::cluster::v1::{Member, ShardStatus};

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

    #[test]
    fn a_scope_goes_to_the_leader_of_the_shard_that_answered_for_it() {
        let routes = Routes::new(&["http://localhost:1".to_owned()], Transport::default()).unwrap();
        let given = routes.pick(RoutingKey::Any, &[]);
        routes.absorb(&given, &status(1, 2, 5));
        let key = RoutingKey::locks("");
        assert_eq!(routes.pick(key, &[]).endpoint(), "http://localhost:1");
        let header = ResponseHeader { shard: 3, term: 5, ..ResponseHeader::default() };
        assert!(!routes.learn(key, &header));
        let leader = routes.pick(RoutingKey::locks("default"), &[]);
        assert_eq!(leader.endpoint(), "http://10.0.0.2:7001");
        assert_eq!(routes.pick(key, &[leader]).endpoint(), "http://localhost:1");
        assert_eq!(routes.pick(RoutingKey::locks("other"), &[]).endpoint(), "http://localhost:1");
    }

    #[test]
    fn a_newer_term_asks_for_a_refresh_and_an_older_view_changes_nothing() {
        let routes = Routes::new(&["http://localhost:1".to_owned()], Transport::default()).unwrap();
        let given = routes.pick(RoutingKey::Any, &[]);
        routes.absorb(&given, &status(1, 2, 5));
        assert!(routes.learn(
            RoutingKey::Any,
            &ResponseHeader { shard: 3, term: 6, ..ResponseHeader::default() }
        ));
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
