//! What no handler can read: garbage, cut-off and compressed messages, other content and names that are none. Each gets
//! its status with a reason, and none counts as a fault of the server.

use std::future::poll_fn;
use std::pin::Pin;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{Request, Response, StatusCode};
use hyper::body::Body as _;
use prost::Message as _;
use tonic::body::Body;
use tonic::codec::CompressionEncoding;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower::ServiceExt as _;
use trefoil_core::limits as l;
use trefoil_proto::cache::v1::cache_service_client::CacheServiceClient;
use trefoil_proto::common::v1::{Reason, Value, value::Kind};

use crate::support::operations::*;
use crate::support::{Served, refused, usual};

const PUT: &str = "/trefoil.cache.v1.CacheService/Put";
const OPEN: &str = "/trefoil.pipeline.v1.PipelineService/Open";
const KEEP_ALIVE: &str = "/trefoil.lock.v1.LockService/KeepAliveStream";

/// A message as gRPC frames it.
fn framed(flag: u8, bytes: &[u8]) -> Bytes {
    let mut framed = BytesMut::new();
    framed.put_u8(flag);
    framed.put_u32(u32::try_from(bytes.len()).unwrap());
    framed.put_slice(bytes);
    framed.freeze()
}

async fn post(
    channel: &Channel,
    path: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> Response<Body> {
    let content = ("content-type", "application/grpc");
    let mut request = Request::post(format!("http://node{path}"));
    let has_content = headers.iter().any(|(name, _)| *name == content.0);
    for (name, value) in headers.iter().chain((!has_content).then_some(&content)) {
        request = request.header(*name, *value);
    }
    let body = Body::new(axum::body::Body::from(body));
    channel.clone().oneshot(request.body(body).unwrap()).await.unwrap()
}

/// The status among headers or trailers.
async fn status(response: Response<Body>) -> Status {
    assert_eq!(response.status(), StatusCode::OK);
    if let Some(status) = Status::from_header_map(response.headers()) {
        return status;
    }
    let mut body = response.into_body();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        if let Some(trailers) = frame.unwrap().trailers_ref() {
            return Status::from_header_map(trailers).unwrap();
        }
    }
    panic!("the call has no status")
}

async fn refusal(
    served: &Served,
    path: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> (Code, Reason, String) {
    let status = status(post(&served.channel, path, headers, body).await).await;
    let (code, refusal) = refused(Err(status));
    let field = refusal.metadata.get("field").cloned().unwrap_or_default();
    (code, refusal.reason(), field)
}

/// No call ended as if the server were at fault.
fn nothing_is_our_fault(served: &Served) {
    let metrics = served.front.api().metrics().encode().unwrap();
    let faults = metrics.lines().filter(|line| line.contains(r#"code="Internal""#));
    assert_eq!(faults.collect::<Vec<_>>(), [""; 0]);
    assert!(served.fake.log().is_empty());
}

#[tokio::test]
async fn what_is_no_message_is_the_clients_fault() {
    let served = usual().await;
    // Field 2 (key) with bytes that are no text; a tag that is none; less than was promised; nothing.
    let garbage = [
        framed(0, b"\x12\x02\xff\xfe"),
        framed(0, b"\xff\xff\xff\xff\xff\xff"),
        framed(0, b"\x12\x7fk"),
        framed(0, b"\x12\x7f").slice(..6),
        framed(1, b"\x12\x01k"),
        framed(9, b"\x12\x01k"),
        Bytes::new(),
    ];
    for body in garbage {
        let found = refusal(&served, PUT, &[], body.clone()).await;
        assert_eq!(
            found,
            (Code::InvalidArgument, Reason::InvalidField, "request".to_owned()),
            "{body:?}"
        );
    }
    for (path, field) in [(OPEN, "frame"), (KEEP_ALIVE, "request")] {
        let found = refusal(&served, path, &[], framed(0, b"\xff\xff\xff\xff\xff\xff")).await;
        assert_eq!(
            found,
            (Code::InvalidArgument, Reason::InvalidField, field.to_owned()),
            "{path}"
        );
    }
    nothing_is_our_fault(&served);
}

#[tokio::test]
async fn a_method_that_is_none_is_unimplemented_with_a_reason() {
    let served = usual().await;
    for path in ["/trefoil.cache.v1.CacheService/Nope", "/nope.v1.Nope/Nope", "/nope"] {
        let (code, reason, _) = refusal(&served, path, &[], framed(0, b"")).await;
        assert_eq!((code, reason), (Code::Unimplemented, Reason::Unsupported), "{path}");
    }
    nothing_is_our_fault(&served);
}

#[tokio::test]
async fn what_is_not_grpc_gets_the_status_of_http() {
    let served = usual().await;
    for content in ["application/json", "application/grpc-web", "text/plain"] {
        let headers = [("content-type", content)];
        let response = post(&served.channel, PUT, &headers, framed(0, b"")).await;
        assert_eq!(response.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE, "{content}");
    }
    nothing_is_our_fault(&served);
}

#[tokio::test]
async fn gzip_is_read_up_to_the_limit_of_what_it_unfolds_to() {
    let served = usual().await;
    let client = CacheServiceClient::new(served.channel.clone());
    let mut client = client.send_compressed(CompressionEncoding::Gzip);
    let zeros = |bytes: usize| {
        let value = Value { kind: Some(Kind::Data(vec![0; bytes].into())) };
        trefoil_proto::cache::v1::PutRequest { value: Some(value), ..put("k", "") }
    };
    client.put(zeros(l::VALUE_BYTES_MAX)).await.unwrap();
    assert_eq!(served.fake.log().len(), 1);
    let (code, refusal_) = refused(client.put(zeros(64 << 20)).await.map(|_| unreachable!()));
    assert_eq!((code, refusal_.reason()), (Code::InvalidArgument, Reason::InvalidField));
    assert_eq!(refusal_.metadata["limit"], "at most 1572864 bytes");

    // Another compression is named, with the one that is read.
    let request = framed(1, &put("k", "v").encode_to_vec());
    let response = post(&served.channel, PUT, &[("grpc-encoding", "zstd")], request).await;
    assert_eq!(response.headers()["grpc-accept-encoding"], "gzip,identity");
    let status = status(response).await;
    assert!(status.message().contains("zstd"), "{status:?}");
    let (code, refusal_) = refused(Err(status));
    assert_eq!((code, refusal_.reason()), (Code::Unimplemented, Reason::Unsupported));
    assert_eq!(served.fake.log().len(), 1);
}
