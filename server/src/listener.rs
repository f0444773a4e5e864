//! The accept loop: caps on connections, every limit of HTTP/1.1 and HTTP/2 said aloud, and a way to end in peace.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use slog::{Logger, debug, warn};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tower::ServiceExt as _;
use trefoil_core::limits as l;

use crate::layer::PeerAddress;
use crate::layer::admission::Connection;
use crate::metrics::Metrics;

/// Pauses after a failed accept: files are short, and only time helps.
const ACCEPT_PAUSE_MIN: Duration = Duration::from_millis(50);
const ACCEPT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// How long a connection without a request is heard once the node stops.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The bytes with which HTTP/2 begins.
const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How many connections there may be, and how slow.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// All together.
    pub connections: u64,
    /// From one address.
    pub per_address: u64,
    /// Time in which a connection must say which protocol it speaks, and HTTP/1.1 must send a request's headers.
    pub header_timeout: Duration,
}

impl Caps {
    /// As many connections as these, with the usual patience.
    #[must_use]
    pub fn new(connections: u64, per_address: u64) -> Self {
        Self {
            connections,
            per_address,
            header_timeout: Duration::from_millis(l::HEADER_TIMEOUT_MS),
        }
    }
}

/// An address that is served.
#[derive(Debug)]
pub struct Listener {
    /// The bound socket.
    pub socket: TcpListener,
    /// How many connections there may be.
    pub caps: Caps,
    /// Where connections are counted.
    pub metrics: Arc<Metrics>,
    /// Where faults are told.
    pub logger: Logger,
}

impl Listener {
    /// Serves until `stopping` turns true, then lets open requests end, but not for longer than `drain`.
    pub async fn serve(self, router: Router, mut stopping: watch::Receiver<bool>, drain: Duration) {
        let Self { socket, caps, metrics, logger } = self;
        let doors = Arc::new(Doors::new(caps));
        let (patience, connections) = (caps.header_timeout, JoinSet::new());
        let (close, closing) = watch::channel(false);
        let mut guests = Guests { doors, router, closing, patience, metrics, logger, connections };
        let mut pause = ACCEPT_PAUSE_MIN;
        loop {
            let accepted = tokio::select! {
                accepted = socket.accept() => accepted,
                Some(_) = guests.connections.join_next() => continue,
                // A sender that is gone stops, too.
                _ = stopping.wait_for(|stopping| *stopping) => break,
            };
            match accepted {
                Ok((stream, address)) => {
                    pause = ACCEPT_PAUSE_MIN;
                    guests.take(stream, address);
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    warn!(guests.logger, "cannot accept connections"; "error" => %error);
                    timeout(pause, stopping.wait_for(|stopping| *stopping)).await.ok();
                    pause = (pause * 2).min(ACCEPT_PAUSE_MAX);
                }
            }
        }
        // Whoever came in time gets an answer: what waits to be accepted is reset when its socket is closed. The system
        // is asked, since tokio may not know yet of those who have just come.
        if let Ok(socket) = socket.into_std() {
            while let Ok((stream, address)) = socket.accept() {
                if let Ok(stream) =
                    stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream))
                {
                    guests.take(stream, address);
                }
            }
        }
        // Not before: who is sent away comes back by a new connection at once, which must be refused and not reset.
        close.send_replace(true);
        let deadline = Instant::now() + drain;
        while let Ok(Some(_)) = timeout_at(deadline, guests.connections.join_next()).await {}
    }
}

/// The connections of a listener, and what they are served with.
struct Guests {
    doors: Arc<Doors>,
    router: Router,
    /// Turns true when nobody is accepted any more.
    closing: watch::Receiver<bool>,
    patience: Duration,
    metrics: Arc<Metrics>,
    logger: Logger,
    connections: JoinSet<()>,
}

impl Guests {
    /// Serves a connection, where there is room for it.
    fn take(&mut self, stream: TcpStream, address: SocketAddr) {
        let Some(door) = self.doors.enter(address.ip()) else {
            self.metrics.own.connections_refused.inc();
            return;
        };
        let open = OpenConnection::new(door, &self.metrics);
        let (router, logger) = (self.router.clone(), self.logger.clone());
        let (patience, closing) = (self.patience, self.closing.clone());
        self.connections.spawn(async move {
            if let Err(error) = connection(stream, address, router, patience, closing).await {
                debug!(logger, "connection ended with an error"; "error" => %error);
            }
            drop(open);
        });
    }
}

/// Errors of accept that say something of one connection and nothing of the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    router: Router,
    patience: Duration,
    mut closing: watch::Receiver<bool>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let said = tokio::select! {
        biased;
        said = timeout(patience, says_its_protocol(&stream)) => Some(said),
        _ = closing.wait_for(|closing| *closing) => None,
    };
    match said {
        Some(said) => said??,
        // What is on its way already is heard.
        None => timeout(LAST_WORDS, says_its_protocol(&stream)).await??,
    }
    let places = Connection::default();
    let service = router.map_request(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(PeerAddress(address));
        request.extensions_mut().insert(places.clone());
        request
    });
    let builder = builder(patience);
    let connection =
        builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(connection);
    tokio::select! {
        // First: the protocol is known then, and what was asked is under way.
        biased;
        ended = connection.as_mut() => return ended,
        _ = closing.wait_for(|closing| *closing) => {}
    }
    // GOAWAY, or the end of keep-alive: requests that are under way end first.
    connection.as_mut().graceful_shutdown();
    Pin::new(&mut connection).await
}

/// Every limit, also where the default would do: a default may change under us.
///
/// Resets are bounded for CVE-2023-44487 and CVE-2025-8671, by as many as a client may have streams: whoever cancels
/// all of them at once goes on. What those attacks are after is work that goes on after the reset; here it ends with
/// its stream, and calls in flight are bounded by themselves.
fn builder(patience: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_buf_size(l::HTTP1_BUFFER_BYTES)
        .keep_alive(true)
        .half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(l::CONNECTION_STREAMS_MAX)
        .max_header_list_size(l::CONNECTION_HEADER_BYTES_MAX)
        .max_pending_accept_reset_streams(l::HTTP2_PENDING_RESETS_MAX)
        .max_local_error_reset_streams(l::HTTP2_LOCAL_RESETS_MAX)
        .initial_stream_window_size(l::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(l::CONNECTION_WINDOW_BYTES)
        .adaptive_window(false)
        .max_frame_size(l::HTTP2_FRAME_BYTES)
        .max_send_buf_size(l::STREAM_SEND_BUFFER_BYTES)
        .keep_alive_interval(Duration::from_millis(l::PING_INTERVAL_MS))
        .keep_alive_timeout(Duration::from_millis(l::PING_TIMEOUT_MS));
    builder
}

/// Waits until the client has sent HTTP/2's preface, or anything that is none: the builder that tells them apart
/// would wait for ever.
async fn says_its_protocol(stream: &TcpStream) -> io::Result<()> {
    const PAUSE: Duration = Duration::from_millis(10);
    let mut head = [0; HTTP2_PREFACE.len()];
    loop {
        let bytes = stream.peek(&mut head).await?;
        if bytes == 0 || bytes == head.len() || head[..bytes] != HTTP2_PREFACE[..bytes] {
            return Ok(());
        }
        // What was peeked stays readable, so there is nothing to wait for but time.
        sleep(PAUSE).await;
    }
}

/// Who is in.
#[derive(Debug)]
struct Doors {
    caps: Caps,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    all: u64,
    by_address: BTreeMap<IpAddr, u64>,
}

/// A place inside, given back when it is dropped.
#[derive(Debug)]
struct Door {
    doors: Arc<Doors>,
    address: IpAddr,
}

impl Doors {
    fn new(caps: Caps) -> Self {
        Self { caps, inside: Mutex::default() }
    }

    fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Door> {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let of_address = inside.by_address.get(&address).copied().unwrap_or(0);
        if inside.all >= self.caps.connections || of_address >= self.caps.per_address {
            return None;
        }
        inside.all += 1;
        inside.by_address.insert(address, of_address + 1);
        Some(Door { doors: Arc::clone(self), address })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let mut inside = self.doors.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.all -= 1;
        match inside.by_address.get(&self.address).copied() {
            Some(count) if count > 1 => inside.by_address.insert(self.address, count - 1),
            _ => inside.by_address.remove(&self.address),
        };
    }
}

/// An open connection, for its place and for the metric.
struct OpenConnection {
    _door: Door,
    metrics: Arc<Metrics>,
}

impl OpenConnection {
    fn new(door: Door, metrics: &Arc<Metrics>) -> Self {
        metrics.own.connections.inc();
        Self { _door: door, metrics: Arc::clone(metrics) }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.metrics.own.connections.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_caps_hold_and_places_come_back() {
        let doors = Arc::new(Doors::new(Caps::new(3, 2)));
        let (one, two) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let first = doors.enter(one).unwrap();
        let _second = doors.enter(one).unwrap();
        assert!(doors.enter(one).is_none(), "the cap of an address");
        let _third = doors.enter(two).unwrap();
        assert!(doors.enter(two).is_none(), "the cap of all");
        drop(first);
        assert!(doors.enter(one).is_some());
        assert_eq!(doors.inside.lock().unwrap().by_address.len(), 2);
    }
}
