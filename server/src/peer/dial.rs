//! Connections to a peer: every limit set, names looked up anew each time, and a pause that grows.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use slog::{debug, info, warn};
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use trefoil_core::NodeId;
use trefoil_core::limits::{PEER_HEADERS_BYTES_MAX, PEER_MESSAGE_BYTES_MAX};
use trefoil_proto::internal::v1::peer_service_client::PeerServiceClient;

use super::greeting::{GreetingFault, GreetingRefused};
use super::introductions::Introductions;
use crate::shared::Shared;

pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(1);
pub(super) const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes on their way to a receiver before it must have read some.
pub(super) const STREAM_WINDOW: u32 = 4 << 20;
pub(super) const CONNECTION_WINDOW: u32 = 8 << 20;
/// Wait for the first word of the other side.
pub(super) const GREETING_WAIT: Duration = Duration::from_secs(3);

const CONNECT_WAIT: Duration = Duration::from_secs(1);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

pub(super) type PeerClient = PeerServiceClient<Channel>;

/// Dials one peer.
#[derive(Clone, Debug)]
pub(super) struct Dialler {
    pub(super) shared: Arc<Shared>,
    pub(super) introductions: Arc<Introductions>,
    pub(super) peer: NodeId,
    pub(super) address: String,
}

/// Why a stream ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The peer could not be reached, or hung up.
    Away(String),
    /// The peer refused this node.
    Refused(GreetingRefused),
    /// This node refused the peer, and has said so in its log.
    Stranger,
}

impl fmt::Display for Ended {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away(reason) => formatter.write_str(reason),
            Self::Refused(refused) => formatter.write_str(&refused.sentence),
            Self::Stranger => formatter.write_str("it is another node"),
        }
    }
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        match GreetingFault::of(&status) {
            Some(fault) => {
                Self::Refused(GreetingRefused { fault, sentence: status.message().to_owned() })
            }
            None => Self::Away(status.message().to_owned()),
        }
    }
}

impl From<tonic::transport::Error> for Ended {
    fn from(error: tonic::transport::Error) -> Self {
        let mut sentence = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(error) = source {
            sentence = format!("{sentence}: {error}");
            source = error.source();
        }
        Self::Away(sentence)
    }
}

impl From<tokio::time::error::Elapsed> for Ended {
    fn from(_: tokio::time::error::Elapsed) -> Self {
        Self::Away("the peer does not answer".to_owned())
    }
}

/// A client over a connection of its own.
pub(super) async fn connect(address: &str) -> Result<PeerClient, Ended> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT_WAIT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .http2_max_header_list_size(PEER_HEADERS_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    // The name is looked up in here, where the limit of connecting does not reach.
    let channel = timeout(2 * CONNECT_WAIT, endpoint.connect()).await??;
    let client = PeerServiceClient::new(channel);
    Ok(client
        .max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX))
}

impl Dialler {
    /// Looks at how a stream ended: what a person must do is logged once, or ends the node.
    pub(super) fn note(&self, what: &'static str, ended: &Ended, backoff: &Backoff) {
        match ended {
            Ended::Away(reason) if backoff.is_fresh => {
                warn!(self.shared.logger, "lost a peer"; "stream" => what, "peer" => self.peer, "reason" => reason);
            }
            Ended::Away(reason) => {
                debug!(self.shared.logger, "no stream to a peer"; "stream" => what, "peer" => self.peer, "reason" => reason);
            }
            Ended::Refused(refused) => {
                let GreetingRefused { fault, sentence } = refused;
                match self.introductions.verdict(self.peer, *fault, sentence) {
                    Some(error) => self.shared.fail(error),
                    // It has what it did not say here when it is dialled again.
                    None if *fault == GreetingFault::Behind => (),
                    None => {
                        self.introductions.log_once(self.peer, refused, "a peer refuses this node");
                    }
                }
            }
            Ended::Stranger => (),
        }
    }

    /// Pauses before the next attempt; a peer that comes forward is dialled at once.
    pub(super) async fn pause(&self, backoff: &mut Backoff) {
        tokio::select! {
            () = backoff.pause() => (),
            () = self.introductions.met(self.peer) => (),
        }
    }

    pub(super) fn note_open(&self, what: &'static str) {
        info!(self.shared.logger, "reached a peer"; "stream" => what, "peer" => self.peer);
    }
}

/// Pauses between attempts: each twice as long as the one before it, and none like another's.
#[derive(Debug)]
pub(super) struct Backoff {
    pause: Duration,
    /// The peer was reached since the last pause.
    is_fresh: bool,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { pause: PAUSE_MIN, is_fresh: false }
    }

    /// The peer was reached: the next pause is short again.
    pub(super) fn reset(&mut self) {
        *self = Self { pause: PAUSE_MIN, is_fresh: true };
    }

    async fn pause(&mut self) {
        let pause = self.pause.mul_f64(rand::rng().random_range(0.5..=1.0));
        *self = Self { pause: (self.pause * 2).min(PAUSE_MAX), is_fresh: false };
        tokio::time::sleep(pause).await;
    }
}
