//! The parts of a node, and how they begin and end.

use std::net::SocketAddr;
use std::sync::Arc;

use prometheus::Registry;
use slog::{Logger, error, info, warn};
use thiserror::Error;
use tokio::net::TcpListener;
use trefoil_core::limits::STATE_CACHE_BYTES;
use trefoil_core::replica::Tuning;

use crate::api::{Api, Settings};
use crate::authorize::authorize;
use crate::config::Config;
use crate::front::{Front, Sockets};
use crate::listener::Caps;
use crate::logging;
use crate::metrics::Metrics;
use crate::node::{self, FatalError, Handle, Node, StartError};

/// See [`Exit::code`].
const EXIT_DISK: u8 = 74;

/// Every address of a node, bound.
#[derive(Debug)]
pub struct Listeners {
    clients: TcpListener,
    pages: Option<TcpListener>,
    peers: std::net::TcpListener,
}

/// Why a node has ended: one sentence that says what to do. Its log has it, too.
#[derive(Debug, Error)]
pub enum Exit {
    /// An address cannot be had.
    #[error("--{flag}: cannot listen on {address}: {error}{}", remedy(error))]
    Bind {
        /// The flag that names it.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why not.
        error: std::io::Error,
    },
    /// The node did not start.
    #[error("{0}")]
    Start(#[from] StartError),
    /// The node could not go on.
    #[error("{0}")]
    Failed(FatalError),
    /// What was compiled in does not fit together.
    #[error("cannot serve: {0}")]
    Internal(String),
}

impl Exit {
    /// The exit code of the process: 74 where the disk, or what is on it, cannot be trusted (EX_IOERR of sysexits.h),
    /// 1 for the rest.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Start(StartError::Damaged(_)) | Self::Failed(FatalError::OlderCopy { .. }) => {
                EXIT_DISK
            }
            _ => 1,
        }
    }
}

impl Listeners {
    /// Binds the addresses of a configuration.
    ///
    /// # Errors
    /// Names the flag and the address.
    pub async fn bind(config: &Config) -> Result<Self, Exit> {
        let pages = match config.metrics_listen {
            Some(address) => Some(bind("metrics-listen", address).await?),
            None => None,
        };
        let peers = bind("peer-listen", config.peer_listen).await?;
        let peers = peers.into_std().map_err(|error| Exit::Bind {
            flag: "peer-listen",
            address: config.peer_listen,
            error,
        })?;
        Ok(Self { clients: bind("listen", config.listen).await?, pages, peers })
    }

    /// Where clients reach this node: what the configuration says, or else the bound address.
    fn endpoint(&self, config: &Config) -> String {
        let bound =
            || self.clients.local_addr().map_or(config.listen, |address| address).to_string();
        format!("http://{}", config.advertise.clone().unwrap_or_else(bound))
    }
}

fn remedy(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => ": stop the process that has it, or choose another",
        std::io::ErrorKind::AddrNotAvailable => ": this machine has no such address",
        _ => "",
    }
}

async fn bind(flag: &'static str, address: SocketAddr) -> Result<TcpListener, Exit> {
    TcpListener::bind(address).await.map_err(|error| Exit::Bind { flag, address, error })
}

/// Binds what a configuration names and runs a node with a log and metrics of its own: what `trefoil serve` does.
///
/// # Errors
/// As [`run`], and when an address cannot be had.
pub async fn serve(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), Exit> {
    // Dropped last, so that every line is written.
    let (logger, _guard) = logging::root(config.log_format, config.log_level);
    let _others = logging::adopt(&logger, config.log_level);
    let listeners = Listeners::bind(&config).await?;
    run(config, listeners, Registry::new(), logger, shutdown).await
}

/// Runs a node until `shutdown` completes: then it hands over what it leads, lets what is open end, and writes what
/// waits.
///
/// # Errors
/// Why the node did not start, or could not go on.
pub async fn run(
    config: Config,
    listeners: Listeners,
    registry: Registry,
    logger: Logger,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Exit> {
    if config.exposed_plaintext {
        warn!(
            logger,
            "an address is not loopback, and nothing is encrypted: keep it in a private network"
        );
    }
    let metrics = Metrics::new(registry).map_err(|error| Exit::Internal(error.to_string()))?;
    let caps = Caps::new(config.max_connections, config.max_connections_per_address);
    let settings = Settings {
        node_name: config.name.clone(),
        services: config.services.clone(),
        auto_create_queues: config.auto_create_queues,
    };
    let endpoint = listeners.endpoint(&config);
    let Listeners { clients, pages, peers } = listeners;
    info!(logger, "starting"; "endpoint" => &endpoint, "commit" => crate::COMMIT);
    let (node, handle) = start(config, endpoint, peers, &metrics, &logger).await?;
    let api = Api::new(handle, settings, metrics);
    let front = Front::start(api, Sockets { clients, pages }, caps, logger.clone()).await;
    info!(logger, "serving");
    let failure = tokio::select! {
        () = shutdown => None,
        failure = node.failed() => Some(failure),
    };
    if let Some(failure) = &failure {
        error!(logger, "the node cannot go on"; "cause" => %failure);
    }
    front.announce_end().await;
    node.stop().await;
    front.stop().await;
    failure.map_or(Ok(()), |failure| Err(Exit::Failed(failure)))
}

/// Starts the node itself, which reads its log meanwhile.
async fn start(
    config: Config,
    endpoint: String,
    listener: std::net::TcpListener,
    metrics: &Arc<Metrics>,
    logger: &Logger,
) -> Result<(Node, Handle), Exit> {
    let members = config.members.into_iter().map(|member| node::Member {
        id: member.id,
        name: member.name,
        address: member.peer_address,
    });
    let config = node::NodeConfig {
        data_dir: config.data_dir,
        node: config.node_id,
        name: config.name,
        members: members.collect(),
        setup: config.setup,
        force_new_cluster: config.force_new_cluster,
        shards: config.shards,
        services: config.services.iter().map(|service| service.name().to_owned()).collect(),
        listener,
        endpoint,
        min_free_bytes: config.min_free_bytes,
        state_cache_bytes: STATE_CACHE_BYTES,
        seed: rand::random(),
        authorizer: authorize,
        tuning: Tuning::for_shards(config.shards),
    };
    let (observer, logger) = (Arc::clone(metrics), logger.clone());
    let started = tokio::task::spawn_blocking(move || node::start(config, observer, logger)).await;
    Ok(started.map_err(|error| Exit::Internal(error.to_string()))??)
}
