//! Status and leadership, as this node sees them.

use tokio::task::JoinSet;
use trefoil_core::META_SHARD;
use trefoil_core::check::invalid;
use trefoil_core::slot::{MAP_EPOCH, SLOTS};
use trefoil_proto::cluster::v1 as cluster;
use trefoil_proto::common::v1::ResponseHeader;
use trefoil_proto::internal::v1::Refusal;

use super::{Api, Context, ShardState, Shards};

impl<S: Shards> Api<S> {
    pub(crate) fn own_status(&self) -> cluster::StatusResponse {
        let shards = self.shards.status();
        let members = self.shards.members().into_iter().map(|member| cluster::Member {
            id: member.id,
            name: member.name,
            endpoint: member.endpoint.unwrap_or_default(),
        });
        cluster::StatusResponse {
            header: Some(self.header_of(shards.iter().find(|state| state.shard == META_SHARD))),
            node_name: self.settings.node_name.clone(),
            version: crate::VERSION.to_owned(),
            services: self
                .settings
                .services
                .iter()
                .map(|service| service.name().to_owned())
                .collect(),
            members: members.collect(),
            shards: shards.iter().map(shard_status).collect(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            others: Vec::new(),
            slot_map: Some(cluster::SlotMap {
                epoch: MAP_EPOCH,
                slots: SLOTS.into(),
                data_shards: self.shards.shards(),
            }),
        }
    }

    /// What this node says of itself, and where that is asked for what each other member does.
    pub(super) async fn status(
        &self,
        _: &Context,
        request: cluster::StatusRequest,
    ) -> Result<cluster::StatusResponse, Refusal> {
        Ok(if request.all_nodes { self.status_of_all().await } else { self.own_status() })
    }

    async fn status_of_all(&self) -> cluster::StatusResponse {
        let own = self.own_status();
        let id = self.shards.node_id();
        let mut asked = JoinSet::new();
        for member in own.members.iter().filter(|member| member.id != id).cloned() {
            let shards = self.shards.clone();
            asked.spawn(async move {
                let (status, error) = match shards.ask_status(member.id).await {
                    Ok(status) => (Some(status), String::new()),
                    Err(error) => (None, error),
                };
                cluster::MemberStatus { member: Some(member), status, error }
            });
        }
        let mut others = asked.join_all().await;
        others.sort_by_key(|other| other.member.as_ref().map(|member| member.id));
        cluster::StatusResponse { others, ..own }
    }

    pub(super) async fn transfer_leader(
        &self,
        _: &Context,
        request: cluster::TransferLeaderRequest,
    ) -> Result<cluster::TransferLeaderResponse, Refusal> {
        let states = self.shards.status();
        let Some(state) = states.iter().find(|state| state.shard == request.shard) else {
            return Err(invalid("shard", format_args!("0 to {}", self.shards.shards())));
        };
        if !self.shards.members().iter().any(|member| member.id == request.to_node_id) {
            return Err(invalid("to_node_id", "the id of a member"));
        }
        self.shards.transfer_leader(request.shard, request.to_node_id).await?;
        Ok(cluster::TransferLeaderResponse { header: Some(self.header_of(Some(state))) })
    }

    /// What this node itself knows is as of its applied index.
    fn header_of(&self, state: Option<&ShardState>) -> ResponseHeader {
        let state = state.copied().unwrap_or_default();
        ResponseHeader {
            cluster_id: self.cluster_id(),
            node_id: self.shards.node_id(),
            shard: state.shard,
            term: state.status.role.term,
            index: state.status.applied_index,
            log_time_ms: state.status.log_time_ms,
        }
    }
}

fn shard_status(state: &ShardState) -> cluster::ShardStatus {
    let status = &state.status;
    cluster::ShardStatus {
        shard: state.shard,
        role: status.role.role as u32,
        term: status.role.term,
        leader_id: status.role.leader.unwrap_or(0),
        first_index: status.first_index,
        last_index: status.last_index,
        commit_index: status.commit_index,
        applied_index: status.applied_index,
        checkpoint_index: status.checkpoint_index,
        log_bytes: status.log_bytes,
        state_bytes: state.state_bytes,
        overlay_bytes: state.overlay_bytes,
        log_time_ms: status.log_time_ms,
        uncertain: status.uncertain,
        obstacles: status.obstacles.iter().map(i32::from).collect(),
    }
}
