//! A bare tonic server that answers puts at once, unary and framed: what the transport alone costs.

use std::pin::Pin;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};
use trefoil_proto::cache::v1 as api;
use trefoil_proto::cache::v1::cache_service_server::{CacheService, CacheServiceServer};
use trefoil_proto::pipeline::v1::pipeline_service_server::{
    PipelineService, PipelineServiceServer,
};
use trefoil_proto::pipeline::v1::{OpenRequest, OpenResponse, Reply, reply};

/// Answers without doing anything.
#[derive(Debug)]
struct Echo;

/// Serves until the process ends; prints the port on standard output.
///
/// # Errors
/// When the port cannot be bound, or the transport fails.
pub(crate) async fn serve() -> Result<(), Box<dyn std::error::Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    {
        use std::io::Write as _;
        writeln!(std::io::stdout(), "{}", listener.local_addr()?.port())?;
        std::io::stdout().flush()?;
    }
    tonic::transport::Server::builder()
        .add_service(CacheServiceServer::new(Echo))
        .add_service(PipelineServiceServer::new(Echo).max_decoding_message_size(16 << 20))
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
        .await?;
    Ok(())
}

fn answer() -> api::PutResponse {
    api::PutResponse { version: 1, ..api::PutResponse::default() }
}

#[tonic::async_trait]
impl CacheService for Echo {
    async fn put(&self, _: Request<api::PutRequest>) -> Result<Response<api::PutResponse>, Status> {
        Ok(Response::new(answer()))
    }

    async fn get(&self, _: Request<api::GetRequest>) -> Result<Response<api::GetResponse>, Status> {
        Err(Status::unimplemented("only puts are answered"))
    }

    async fn delete(
        &self,
        _: Request<api::DeleteRequest>,
    ) -> Result<Response<api::DeleteResponse>, Status> {
        Err(Status::unimplemented("only puts are answered"))
    }
}

#[tonic::async_trait]
impl PipelineService for Echo {
    type OpenStream = Pin<Box<dyn Stream<Item = Result<OpenResponse, Status>> + Send>>;

    async fn open(
        &self,
        request: Request<Streaming<OpenRequest>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        let mut calls = request.into_inner();
        let (replies, stream) = mpsc::channel(64);
        tokio::spawn(async move {
            while let Some(Ok(frame)) = calls.next().await {
                let outcome = || Some(reply::Outcome::Put(answer()));
                let frame = frame
                    .calls
                    .into_iter()
                    .map(|call| Reply { id: call.id, outcome: outcome() })
                    .collect();
                if replies.send(Ok(OpenResponse { replies: frame })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}
