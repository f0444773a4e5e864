//! The client port itself: pages, health, reflection, caps and timeouts.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use prost_reflect::DescriptorPool;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::{v1, v1alpha};
use trefoil_proto::pipeline::v1::call::Operation;
use trefoil_server::config::Service;
use trefoil_server::listener::Caps;

use crate::support::operations::*;
use crate::support::{Served, Setup, Stream, metric, page, raw, serve, unary, usual};

#[tokio::test]
async fn pages_tell_the_state_of_the_node() {
    let Served { fake, front, address, .. } = usual().await;
    let ok = "HTTP/1.1 200 OK";
    assert_eq!(page(address, "/livez").await, (ok.to_owned(), "ok\n".to_owned()));
    assert_eq!(page(address, "/readyz").await, (ok.to_owned(), "ok\n".to_owned()));
    let health = r#"{"ok":true,"id":1,"role":2,"term":2}"#;
    assert_eq!(page(address, "/health").await, (ok.to_owned(), health.to_owned()));
    let (status, metrics) = page(address, "/metrics").await;
    assert_eq!(status, ok);
    assert!(metrics.contains("# TYPE trefoil_cache_hits_total counter"));

    fake.set_leaderless(true);
    let unavailable = "HTTP/1.1 503 Service Unavailable";
    assert_eq!(page(address, "/readyz").await.0, unavailable);
    let (status, body) = page(address, "/health").await;
    assert_eq!((status.as_str(), body.as_str()), (unavailable, &*health.replace("true", "false")));
    assert_eq!(page(address, "/livez").await.0, ok, "the process itself is alive");
    fake.set_leaderless(false);
    front.announce_end().await;
    assert_eq!(page(address, "/readyz").await.0, unavailable, "it is about to end");
    assert_eq!(page(address, "/nothing").await.0, "HTTP/1.1 404 Not Found");
    let unknown = "POST /trefoil.lock.v1.LockService/Break HTTP/1.1\r\nhost: trefoil\r\ncontent-length: 0\r\n\
                   connection: close\r\ncontent-type: application/grpc\r\n\r\n";
    let answer = raw(address, unknown.as_bytes()).await;
    assert!(answer.starts_with(ok) && answer.contains("grpc-status: 12"), "{answer}");
}

async fn health_of(served: &Served, service: &str) -> Option<ServingStatus> {
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(served.channel.clone()).check(request).await;
    Some(answer.ok()?.into_inner().status())
}

async fn becomes(served: &Served, service: &str, status: ServingStatus) {
    let begin = Instant::now();
    while health_of(served, service).await != Some(status) {
        assert!(begin.elapsed() < Duration::from_secs(5), "{service} does not become {status:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn health_follows_the_shards() {
    let services = [Service::Lock, Service::Cache].into();
    let served = serve(Setup { services, ..Setup::default() }).await;
    let names = [
        "",
        "trefoil.lock.v1.LockService",
        "trefoil.cache.v1.CacheService",
        "trefoil.cluster.v1.ClusterService",
        "trefoil.cluster.v1.NamespaceService",
        "trefoil.pipeline.v1.PipelineService",
    ];
    for name in names {
        becomes(&served, name, ServingStatus::Serving).await;
    }
    assert_eq!(health_of(&served, "trefoil.queue.v1.QueueService").await, None, "it is off");
    served.fake.set_leaderless(true);
    for name in names {
        becomes(&served, name, ServingStatus::NotServing).await;
    }
    let liveness = Some(ServingStatus::Serving);
    assert_eq!(health_of(&served, "liveness").await, liveness, "a restart brings no leader");
    served.fake.set_leaderless(false);
    becomes(&served, "", ServingStatus::Serving).await;
    served.front.announce_end().await;
    assert_eq!(health_of(&served, "").await, Some(ServingStatus::NotServing));
    assert_eq!(health_of(&served, "liveness").await, liveness, "it ends by itself");
}

const LISTED: [&str; 12] = [
    "trefoil.lock.v1.LockService",
    "trefoil.lock.v1.ElectionService",
    "trefoil.lock.v1.BarrierService",
    "trefoil.lock.v1.SemaphoreService",
    "trefoil.queue.v1.QueueService",
    "trefoil.cache.v1.CacheService",
    "trefoil.cluster.v1.ClusterService",
    "trefoil.cluster.v1.NamespaceService",
    "trefoil.pipeline.v1.PipelineService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// Reads the option of an operation from what a client is told.
fn says_what_release_is(files: Vec<Vec<u8>>) {
    let mut pool = DescriptorPool::global();
    for file in files {
        pool.decode_file_descriptor_proto(file.as_slice()).unwrap();
    }
    let lock = pool.get_service_by_name("trefoil.lock.v1.LockService").unwrap();
    let release = lock.methods().find(|method| method.name() == "Release").unwrap();
    let option = pool.get_extension_by_name("trefoil.common.v1.operation").unwrap();
    let said = release.options().get_extension(&option).to_string();
    assert!(said.contains("frees_space:true"), "{said}");
}

/// Asks one version of reflection to list the services and to describe one.
macro_rules! reflect {
    ($version:ident, $channel:expr) => {{
        use $version::server_reflection_request::MessageRequest;
        use $version::server_reflection_response::MessageResponse;
        let ask = async |request: MessageRequest| {
            let mut client =
                $version::server_reflection_client::ServerReflectionClient::new($channel.clone());
            let request = $version::ServerReflectionRequest {
                host: String::new(),
                message_request: Some(request),
            };
            let answers = client.server_reflection_info(tokio_stream::once(request)).await;
            let answer = answers.unwrap().into_inner().message().await.unwrap().unwrap();
            answer.message_response.unwrap()
        };
        let MessageResponse::ListServicesResponse(list) =
            ask(MessageRequest::ListServices(String::new())).await
        else {
            panic!("no list")
        };
        let names = list.service.into_iter().map(|service| service.name);
        assert_eq!(names.collect::<BTreeSet<_>>(), LISTED.map(str::to_owned).into());
        for symbol in LISTED.into_iter().chain(["google.rpc.ErrorInfo"]) {
            let described = ask(MessageRequest::FileContainingSymbol(symbol.to_owned())).await;
            let MessageResponse::FileDescriptorResponse(files) = described else {
                panic!("{symbol} is not described")
            };
            assert!(!files.file_descriptor_proto.is_empty());
        }
        // Of methods, files and extensions alike; and the options of each operation are there to read.
        let release = "trefoil.lock.v1.LockService.Release".to_owned();
        let MessageResponse::FileDescriptorResponse(files) =
            ask(MessageRequest::FileContainingSymbol(release)).await
        else {
            panic!("no method")
        };
        let file = "trefoil/common/v1/operation.proto".to_owned();
        let MessageResponse::FileDescriptorResponse(options) =
            ask(MessageRequest::FileByFilename(file)).await
        else {
            panic!("no file")
        };
        let file = "trefoil/common/v1/common.proto".to_owned();
        let MessageResponse::FileDescriptorResponse(common) =
            ask(MessageRequest::FileByFilename(file)).await
        else {
            panic!("no file")
        };
        says_what_release_is([common, options, files].map(|of| of.file_descriptor_proto).concat());
        let of_methods = "google.protobuf.MethodOptions".to_owned();
        let MessageResponse::AllExtensionNumbersResponse(numbers) =
            ask(MessageRequest::AllExtensionNumbersOfType(of_methods.clone())).await
        else {
            panic!("no numbers")
        };
        assert_eq!(numbers.extension_number, [50100]);
        let extension = $version::ExtensionRequest {
            containing_type: of_methods,
            extension_number: 50100,
        };
        let by_number = ask(MessageRequest::FileContainingExtension(extension)).await;
        assert!(matches!(by_number, MessageResponse::FileDescriptorResponse(_)));
        let nothing = ask(MessageRequest::FileContainingSymbol("trefoil.Nothing".to_owned())).await;
        let MessageResponse::ErrorResponse(nothing) = nothing else { panic!("it is described") };
        assert_eq!(nothing.error_code, i32::from(tonic::Code::NotFound));
    }};
}

#[tokio::test]
async fn both_reflections_list_and_describe_what_is_public() {
    let served = usual().await;
    reflect!(v1, served.channel);
    reflect!(v1alpha, served.channel);
}

/// Time until the other side closes a connection that says this much.
async fn closed_after(served: &Served, said: &[u8]) -> Duration {
    let begin = Instant::now();
    tokio::time::timeout(Duration::from_secs(5), raw(served.address, said))
        .await
        .expect("the connection is closed");
    begin.elapsed()
}

#[tokio::test]
async fn a_connection_that_does_not_come_to_the_point_is_closed() {
    let caps = Caps { header_timeout: Duration::from_millis(300), ..Caps::new(8, 8) };
    let served = serve(Setup { caps, ..Setup::default() }).await;
    for said in ["", "P", "PRI * HTTP/2.0\r\n", "GET /livez HTTP/1.1\r\nhost: "] {
        let took = closed_after(&served, said.as_bytes()).await;
        assert!((250..2_000).contains(&took.as_millis()), "{said:?} was closed after {took:?}");
    }
    // A connection that has spoken lives on.
    unary(&served.channel, Operation::Get(get("k"))).await.unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    unary(&served.channel, Operation::Get(get("k"))).await.unwrap();
}

#[tokio::test]
async fn connections_beyond_the_cap_are_refused() {
    let served = serve(Setup { caps: Caps::new(3, 2), ..Setup::default() }).await;
    let first = TcpStream::connect(served.address).await.unwrap();
    let _second = TcpStream::connect(served.address).await.unwrap();
    let mut third = TcpStream::connect(served.address).await.unwrap();
    let read = tokio::time::timeout(Duration::from_secs(5), third.read(&mut [0])).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "the cap of an address");
    let metrics = served.front.api().metrics();
    assert_eq!(metric(metrics, "trefoil_connections_refused_total"), 1.0);
    assert_eq!(metric(metrics, "trefoil_connections"), 2.0);
    drop(first);
    // Its place is free once the server has seen that.
    let begin = Instant::now();
    while unary(&served.channel, Operation::Get(get("k"))).await.is_err() {
        assert!(begin.elapsed() < Duration::from_secs(5), "no place came free");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn every_call_is_counted_by_its_end() {
    let served = usual().await;
    unary(&served.channel, Operation::Put(put("k", "v"))).await.unwrap();
    unary(&served.channel, Operation::Put(put("", "v"))).await.unwrap_err();
    let metrics = served.front.api().metrics();
    let method =
        r#"grpc_method="Put",grpc_service="trefoil.cache.v1.CacheService",grpc_type="unary""#;
    let handled =
        |code: &str| format!("grpc_server_handled_total{{grpc_code=\"{code}\",{method}}}");
    assert_eq!(metric(metrics, &handled("OK")), 1.0);
    assert_eq!(metric(metrics, &handled("InvalidArgument")), 1.0);
    let started = format!("grpc_server_started_total{{{method}}}");
    assert_eq!(metric(metrics, &started), 2.0);
    assert_eq!(metric(metrics, r#"trefoil_calls_refused_total{reason="INVALID_FIELD"}"#), 1.0);
    let times = |service: &str, waits: bool| {
        let labels = format!("grpc_service=\"trefoil.{service}\",waits=\"{waits}\"");
        metric(metrics, &format!("grpc_server_handling_seconds_count{{{labels}}}"))
    };
    assert_eq!(times("cache.v1.CacheService", false), 2.0);
    // Who asks to wait tells nothing of how fast the node is.
    unary(&served.channel, Operation::Dequeue(dequeue("q", 1, 100))).await.unwrap();
    let mut stream = Stream::open(&served.channel).await;
    stream.call(1, Operation::Dequeue(dequeue("q", 1, 100))).await.unwrap();
    unary(&served.channel, Operation::Dequeue(dequeue("q", 1, 0))).await.unwrap_err();
    let queue = "queue.v1.QueueService";
    assert_eq!((times(queue, true), times(queue, false)), (2.0, 1.0));
}
