//! Three real etcd members to compare with, and of their API what locks need.
//!
//! Messages are written out by hand: <https://etcd.io/docs/v3.5/dev-guide/api_concurrency_reference_v3/>.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use crate::cluster::{BenchCluster, ServerProcess, await_ready, free_ports};

/// Starts `etcd` three times, with its defaults, and waits until every member is healthy.
///
/// # Errors
/// When the binary cannot be started, or the members are not healthy within 30 s.
pub(crate) fn start(etcd: &Path, parent: &Path) -> io::Result<BenchCluster> {
    let (mut cluster, folder) = BenchCluster::empty(parent, "etcd")?;
    let ports = free_ports(6)?;
    let urls = ports.iter().map(|port| format!("http://127.0.0.1:{port}")).collect::<Vec<_>>();
    let (clients, peers) = urls.split_at(3);
    let all = (0..3).map(|n| format!("e{n}={}", peers[n])).collect::<Vec<_>>().join(",");
    for n in 0..3 {
        let child = Command::new(etcd)
            .args(["--name", &format!("e{n}"), "--initial-cluster", &all])
            .args(["--initial-cluster-state", "new", "--log-level", "error"])
            .args(["--listen-client-urls", &clients[n], "--advertise-client-urls", &clients[n]])
            .args(["--listen-peer-urls", &peers[n], "--initial-advertise-peer-urls", &peers[n]])
            .arg("--data-dir")
            .arg(folder.join(format!("e{n}")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        cluster.nodes.push(ServerProcess::new(child));
    }
    cluster.endpoints = clients.to_vec();
    await_ready(&ports[..3], "/health")?;
    Ok(cluster)
}

#[derive(Clone, PartialEq, prost::Message)]
struct LeaseGrantRequest {
    #[prost(int64, tag = "1")]
    ttl_seconds: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LeaseGrantResponse {
    #[prost(int64, tag = "2")]
    id: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LockRequest {
    #[prost(bytes = "vec", tag = "1")]
    name: Vec<u8>,
    #[prost(int64, tag = "2")]
    lease: i64,
}

/// The key that stands for the grant, in a response to Lock and in a request to Unlock.
#[derive(Clone, PartialEq, prost::Message)]
struct LockResponse {
    #[prost(bytes = "vec", tag = "2")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct UnlockRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct UnlockResponse {}

/// A lease, and the locks that are held under it.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    channel: Channel,
    id: i64,
}

impl Lease {
    /// A lease of so many seconds.
    pub(crate) async fn grant(channel: Channel, ttl_seconds: i64) -> Result<Self, Status> {
        let request = LeaseGrantRequest { ttl_seconds };
        let granted: LeaseGrantResponse =
            call(&channel, "/etcdserverpb.Lease/LeaseGrant", request).await?;
        Ok(Self { channel, id: granted.id })
    }

    /// Waits for a lock; the key that releases it.
    pub(crate) async fn lock(&self, name: &str) -> Result<Vec<u8>, Status> {
        let request = LockRequest { name: name.as_bytes().to_vec(), lease: self.id };
        let locked: LockResponse = call(&self.channel, "/v3lockpb.Lock/Lock", request).await?;
        Ok(locked.key)
    }

    pub(crate) async fn unlock(&self, key: Vec<u8>) -> Result<(), Status> {
        let request = UnlockRequest { key };
        let _: UnlockResponse = call(&self.channel, "/v3lockpb.Lock/Unlock", request).await?;
        Ok(())
    }
}

async fn call<Q, A>(channel: &Channel, path: &'static str, request: Q) -> Result<A, Status>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::from_static(path);
    let codec: ProstCodec<Q, A> = ProstCodec::default();
    Ok(grpc.unary(Request::new(request), path, codec).await?.into_inner())
}
