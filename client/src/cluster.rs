//! The cluster itself: the status of each node, and leadership.

use tokio::task::JoinSet;
use trefoil_proto::cluster::v1::{StatusRequest, StatusResponse, TransferLeaderRequest};

use crate::{Client, Error};

/// The cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    client: Client,
}

/// What one node says, or why it says nothing.
#[derive(Debug)]
pub struct NodeStatus {
    /// Where it was asked.
    pub endpoint: String,
    /// Its answer.
    pub status: Result<StatusResponse, Error>,
}

impl Client {
    /// The cluster itself.
    #[must_use]
    pub fn cluster(&self) -> Cluster {
        Cluster::new(self.clone())
    }
}

impl Cluster {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Asks every known node, all at once. One that cannot be reached from here is asked by another node; one that does not
    /// answer that either has an error in its place.
    pub async fn status(&self) -> Vec<NodeStatus> {
        let mut answers = self.ask_all().await;
        let reached = answers.iter().find(|answer| answer.status.is_ok());
        let Some(reached) = reached.map(|answer| answer.endpoint.clone()) else { return answers };
        if answers.iter().all(|answer| answer.status.is_ok()) {
            return answers;
        }
        let said = self.ask(&reached, StatusRequest { all_nodes: true }).await;
        for other in said.map(|said| said.others).unwrap_or_default() {
            let endpoint = other.member.map(|member| member.endpoint).unwrap_or_default();
            let found = answers.iter_mut().find(|answer| answer.endpoint == endpoint);
            if let (Some(answer), Some(status)) = (found, other.status)
                && answer.status.is_err()
            {
                answer.status = Ok(status);
            }
        }
        answers
    }

    async fn ask_all(&self) -> Vec<NodeStatus> {
        let mut asked = JoinSet::new();
        for (n, endpoint) in self.endpoints().into_iter().enumerate() {
            let cluster = self.clone();
            asked.spawn(async move {
                (n, NodeStatus { status: cluster.status_of(&endpoint).await, endpoint })
            });
        }
        let mut answers = asked.join_all().await;
        answers.sort_by_key(|(n, _)| *n);
        answers.into_iter().map(|(_, answer)| self.learn(answer)).collect()
    }

    /// Asks one node, once.
    ///
    /// # Errors
    /// When it cannot be reached or does not answer in time.
    pub async fn status_of(&self, endpoint: &str) -> Result<StatusResponse, Error> {
        self.ask(endpoint, StatusRequest::default()).await
    }

    async fn ask(&self, endpoint: &str, request: StatusRequest) -> Result<StatusResponse, Error> {
        let node = self
            .client
            .inner()
            .routes
            .at(endpoint)
            .ok_or_else(|| Error::InvalidEndpoint { endpoint: endpoint.to_owned() })?;
        node.once(request, self.client.timeout()).await
    }

    fn learn(&self, answer: NodeStatus) -> NodeStatus {
        let routes = &self.client.inner().routes;
        if let (Ok(status), Some(node)) = (&answer.status, routes.at(&answer.endpoint)) {
            routes.absorb(&node, status);
        }
        answer
    }

    /// Where the nodes are reached: the members, once they are known, in the order of their ids.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        let nodes = self.client.inner().routes.nodes();
        nodes.iter().map(|node| node.endpoint().to_owned()).collect()
    }

    /// Asks the leader of a shard to hand it to another node.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn transfer_leader(&self, shard: u32, to_node_id: u64) -> Result<(), Error> {
        self.client.call(TransferLeaderRequest { shard, to_node_id }).await.map(drop)
    }
}
