//! What a node is told at its start: flags, each also a variable, over a file, over defaults; checked as a whole.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use trefoil_core::limits::{MEMBERS_MAX, NAME_BYTES_MAX, SHARDS_MAX};
use trefoil_core::{NodeId, ShardId};
use xxhash_rust::xxh3::Xxh3;

/// Exit code for a configuration that cannot be used (EX_USAGE of sysexits.h).
pub const EXIT_CONFIG: u8 = 64;

const LISTEN: &str = "127.0.0.1:7001";
const PEER_LISTEN: &str = "127.0.0.1:7101";
const CLUSTER_TOKEN: &str = "trefoil";
const SHARDS: u32 = 6;
const MIN_FREE_BYTES: u64 = 256 << 20;
/// Files that are no connections: log, state files, peers.
const CONNECTIONS_PERCENT: u64 = 80;

/// The flags of `trefoil serve`. The same names are the keys of the configuration file.
#[derive(Clone, Debug, Default, PartialEq, clap::Args, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ServeArgs {
    /// Configuration file (TOML); its keys are the names of these flags without the dashes. Flags and variables win.
    #[arg(long, env = "TREFOIL_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// Name of this node, one of those in --initial-cluster.
    #[arg(long, env = "TREFOIL_NAME", value_name = "NAME")]
    pub name: Option<String>,

    /// All members and their peer addresses: n1=host:port,n2=host:port,... Raft ids are 1 to n in the order of the
    /// sorted names, so that the order of this list does not matter.
    #[arg(long, env = "TREFOIL_INITIAL_CLUSTER", value_name = "LIST", value_delimiter = ',')]
    pub initial_cluster: Option<Vec<String>>,

    /// Tells clusters apart: members that were given another word, or other names, refuse each other. [default: trefoil]
    #[arg(long, env = "TREFOIL_CLUSTER_TOKEN", value_name = "WORD")]
    pub cluster_token: Option<String>,

    /// Form a new cluster with a majority of the members, after 10 s, although others are away. Dangerous: an older
    /// cluster of the same members that those others still know is lost, and they are refused. Only for members whose
    /// data directories are empty; it does nothing once a cluster is formed. [default: false]
    #[arg(long, env = "TREFOIL_FORCE_NEW_CLUSTER", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub force_new_cluster: Option<bool>,

    /// Directory of this node's data; made when it is missing.
    #[arg(long, env = "TREFOIL_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Address for clients: gRPC, metrics and health. [default: 127.0.0.1:7001]
    #[arg(long, env = "TREFOIL_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,

    /// Address for the other members. [default: 127.0.0.1:7101]
    #[arg(long, env = "TREFOIL_PEER_LISTEN", value_name = "ADDRESS")]
    pub peer_listen: Option<SocketAddr>,

    /// host:port at which clients reach this node, told to clients by every member. [default: the address of --listen]
    #[arg(long, env = "TREFOIL_ADVERTISE", value_name = "HOST:PORT")]
    pub advertise: Option<String>,

    /// A further address for /metrics, /livez, /readyz and /health alone. [default: only the address of --listen]
    #[arg(long, env = "TREFOIL_METRICS_LISTEN", value_name = "ADDRESS")]
    pub metrics_listen: Option<SocketAddr>,

    /// Data shards of the cluster, 1 to 64; fixed when the cluster is formed. [default: 6]
    #[arg(long, env = "TREFOIL_SHARDS", value_name = "NUMBER")]
    pub shards: Option<u32>,

    /// Services of the cluster; fixed when it is formed. [default: lock,queue,cache]
    #[arg(long, env = "TREFOIL_SERVICES", value_name = "LIST", value_delimiter = ',')]
    pub services: Option<Vec<Service>>,

    /// Allow addresses that are not loopback although nothing is encrypted and nobody logs in. [default: false]
    #[arg(long, env = "TREFOIL_ALLOW_PLAINTEXT", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub allow_plaintext: Option<bool>,

    /// Form of the log on standard error. [default: terminal]
    #[arg(long, env = "TREFOIL_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,

    /// Least severity that is logged. [default: info]
    #[arg(long, env = "TREFOIL_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<LogLevel>,

    /// Free bytes of the data directory below which writes are refused, except ack, release and delete.
    /// [default: 268435456]
    #[arg(long, env = "TREFOIL_MIN_FREE_BYTES", value_name = "BYTES")]
    pub min_free_bytes: Option<u64>,

    /// Whether the first Enqueue creates its queue. [default: true]
    #[arg(long, env = "TREFOIL_AUTO_CREATE_QUEUES", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub auto_create_queues: Option<bool>,

    /// Client connections at most. [default: 80 % of the limit of open files]
    #[arg(long, env = "TREFOIL_MAX_CONNECTIONS", value_name = "NUMBER")]
    pub max_connections: Option<u64>,

    /// Client connections of one address at most. [default: --max-connections]
    #[arg(long, env = "TREFOIL_MAX_CONNECTIONS_PER_ADDRESS", value_name = "NUMBER")]
    pub max_connections_per_address: Option<u64>,
}

/// One of the services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    /// Locks and sessions.
    Lock,
    /// Queues.
    Queue,
    /// The cache.
    Cache,
}

impl Service {
    /// Every service.
    pub const ALL: [Self; 3] = [Self::Lock, Self::Queue, Self::Cache];

    /// Its name, as in `--services`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Queue => "queue",
            Self::Cache => "cache",
        }
    }
}

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Terminal,
    /// One JSON object per line.
    Json,
}

/// Least severity that is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the usual words")]
pub enum LogLevel {
    Error,
    Warning,
    #[default]
    Info,
    Debug,
    Trace,
}

/// A member of the cluster as the configuration names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfiguredMember {
    /// Raft id: 1 to n in the order of the sorted names.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// host:port at which the other members reach it.
    pub peer_address: String,
}

/// A configuration that was checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this node.
    pub name: String,
    /// Raft id of this node.
    pub node_id: NodeId,
    /// Every member, by id.
    pub members: Vec<ConfiguredMember>,
    /// Hash of the token and the members' names.
    pub setup: [u8; 16],
    /// Whether a majority may form a new cluster.
    pub force_new_cluster: bool,
    /// Directory of the data.
    pub data_dir: PathBuf,
    /// Address for clients.
    pub listen: SocketAddr,
    /// Address for the other members.
    pub peer_listen: SocketAddr,
    /// host:port told to clients; none means the bound address.
    pub advertise: Option<String>,
    /// Further address for the pages.
    pub metrics_listen: Option<SocketAddr>,
    /// Data shards.
    pub shards: ShardId,
    /// Services that are on.
    pub services: BTreeSet<Service>,
    /// Whether addresses beyond loopback were allowed, and are used.
    pub exposed_plaintext: bool,
    /// Form of the log.
    pub log_format: LogFormat,
    /// Least severity that is logged.
    pub log_level: LogLevel,
    /// Free bytes below which writes are refused.
    pub min_free_bytes: u64,
    /// Whether the first Enqueue creates its queue.
    pub auto_create_queues: bool,
    /// Client connections at most.
    pub max_connections: u64,
    /// Client connections of one address at most.
    pub max_connections_per_address: u64,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A field is missing or cannot be what it is.
    #[error("--{field}: {problem}")]
    Field {
        /// The flag without its dashes, which is also the key in the file.
        field: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The configuration file cannot be read.
    #[error("--config: {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The configuration file is not what it should be; the parser names the line and the key.
    #[error("--config: {}: {source}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<toml::de::Error>,
    },
}

fn wrong(field: &'static str, problem: impl Into<String>) -> ConfigError {
    ConfigError::Field { field, problem: problem.into() }
}

impl ServeArgs {
    /// Fills in the configuration file and the defaults, and checks everything.
    ///
    /// # Errors
    /// Names the field that is wrong; the caller exits with [`EXIT_CONFIG`].
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let file = self.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
        self.or(file).check()
    }

    fn or(self, file: Self) -> Self {
        Self {
            config: self.config,
            name: self.name.or(file.name),
            initial_cluster: self.initial_cluster.or(file.initial_cluster),
            cluster_token: self.cluster_token.or(file.cluster_token),
            force_new_cluster: self.force_new_cluster.or(file.force_new_cluster),
            data_dir: self.data_dir.or(file.data_dir),
            listen: self.listen.or(file.listen),
            peer_listen: self.peer_listen.or(file.peer_listen),
            advertise: self.advertise.or(file.advertise),
            metrics_listen: self.metrics_listen.or(file.metrics_listen),
            shards: self.shards.or(file.shards),
            services: self.services.or(file.services),
            allow_plaintext: self.allow_plaintext.or(file.allow_plaintext),
            log_format: self.log_format.or(file.log_format),
            log_level: self.log_level.or(file.log_level),
            min_free_bytes: self.min_free_bytes.or(file.min_free_bytes),
            auto_create_queues: self.auto_create_queues.or(file.auto_create_queues),
            max_connections: self.max_connections.or(file.max_connections),
            max_connections_per_address: self
                .max_connections_per_address
                .or(file.max_connections_per_address),
        }
    }

    fn check(self) -> Result<Config, ConfigError> {
        let name = self
            .name
            .ok_or_else(|| wrong("name", "is missing: one of the names in --initial-cluster"))?;
        let list = self
            .initial_cluster
            .ok_or_else(|| wrong("initial-cluster", "is missing: n1=host:port,..."))?;
        let members = members(&list)?;
        let me = members.iter().find(|member| member.name == name);
        let node_id =
            me.ok_or_else(|| wrong("name", format!("{name} is not in --initial-cluster")))?.id;
        let token = self.cluster_token.unwrap_or_else(|| CLUSTER_TOKEN.to_owned());
        if !(1..=NAME_BYTES_MAX).contains(&token.len()) {
            return Err(wrong("cluster-token", format!("must be 1 to {NAME_BYTES_MAX} bytes")));
        }
        let data_dir = self.data_dir.filter(|dir| !dir.as_os_str().is_empty());
        let shards = self.shards.unwrap_or(SHARDS);
        if !(1..=SHARDS_MAX).contains(&shards) {
            return Err(wrong("shards", format!("must be 1 to {SHARDS_MAX}, not {shards}")));
        }
        let services = self.services.map_or_else(|| Service::ALL.into(), BTreeSet::from_iter);
        if services.is_empty() {
            return Err(wrong("services", "must name at least one of lock, queue, cache"));
        }
        let listen =
            self.listen.unwrap_or_else(|| LISTEN.parse().expect("the default is an address"));
        let peer_listen = self
            .peer_listen
            .unwrap_or_else(|| PEER_LISTEN.parse().expect("the default is an address"));
        let max_connections = self.max_connections.unwrap_or_else(connections_of_the_process);
        let per_address = self.max_connections_per_address.unwrap_or(max_connections);
        for (field, number) in
            [("max-connections", max_connections), ("max-connections-per-address", per_address)]
        {
            if number == 0 {
                return Err(wrong(field, "must be at least 1"));
            }
        }
        let addresses = [
            ("listen", Some(listen)),
            ("peer-listen", Some(peer_listen)),
            ("metrics-listen", self.metrics_listen),
        ];
        apart(&addresses)?;
        Ok(Config {
            setup: setup(&token, &members),
            force_new_cluster: self.force_new_cluster.unwrap_or(false),
            name,
            node_id,
            members,
            data_dir: data_dir
                .ok_or_else(|| wrong("data-dir", "is missing: a directory for this node alone"))?,
            exposed_plaintext: exposed(&addresses, self.allow_plaintext.unwrap_or(false))?,
            advertise: advertise(self.advertise, listen)?,
            listen,
            peer_listen,
            metrics_listen: self.metrics_listen,
            shards,
            services,
            log_format: self.log_format.unwrap_or_default(),
            log_level: self.log_level.unwrap_or_default(),
            min_free_bytes: self.min_free_bytes.unwrap_or(MIN_FREE_BYTES),
            auto_create_queues: self.auto_create_queues.unwrap_or(true),
            max_connections,
            max_connections_per_address: per_address,
        })
    }
}

fn read_file(path: &Path) -> Result<ServeArgs, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    toml::from_str(&text).map_err(|source| ConfigError::Malformed {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

fn members(list: &[String]) -> Result<Vec<ConfiguredMember>, ConfigError> {
    const FIELD: &str = "initial-cluster";
    let mut pairs = Vec::new();
    for item in list {
        let pair = item.trim().split_once('=');
        let (name, address) =
            pair.ok_or_else(|| wrong(FIELD, format!("{item:?} must be name=host:port")))?;
        let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if !plain || !(1..=NAME_BYTES_MAX).contains(&name.len()) {
            return Err(wrong(
                FIELD,
                format!("the name {name:?} must be letters, digits, '-', '_' and '.'"),
            ));
        }
        check_address(FIELD, address)?;
        pairs.push((name.to_owned(), address.to_owned()));
    }
    pairs.sort();
    if !(1..=MEMBERS_MAX).contains(&pairs.len()) {
        return Err(wrong(
            FIELD,
            format!("must have 1 to {MEMBERS_MAX} members, not {}", pairs.len()),
        ));
    }
    if let Some(twice) = pairs.windows(2).find(|two| two[0].0 == two[1].0) {
        return Err(wrong(FIELD, format!("{} is there twice", twice[0].0)));
    }
    let addresses = pairs.iter().map(|(_, address)| address).collect::<BTreeSet<_>>();
    if addresses.len() < pairs.len() {
        return Err(wrong(FIELD, "two members have the same address"));
    }
    let numbered = (1..).zip(pairs);
    Ok(numbered
        .map(|(id, (name, peer_address))| ConfiguredMember { id, name, peer_address })
        .collect())
}

fn check_address(field: &'static str, address: &str) -> Result<(), ConfigError> {
    let parts =
        address.rsplit_once(':').filter(|(host, _)| !host.is_empty() && !host.contains('/'));
    let port = parts.and_then(|(_, port)| port.parse::<u16>().ok());
    if port.is_some_and(|port| port > 0) {
        return Ok(());
    }
    Err(wrong(field, format!("{address:?} must be host:port")))
}

fn advertise(advertise: Option<String>, listen: SocketAddr) -> Result<Option<String>, ConfigError> {
    match advertise {
        Some(address) => check_address("advertise", &address).map(|()| Some(address)),
        None if listen.ip().is_unspecified() => Err(wrong(
            "advertise",
            "is missing: clients cannot dial the unspecified address of --listen",
        )),
        None => Ok(None),
    }
}

/// Whether any address can be reached from other machines; refused unless that was asked for.
/// No two addresses are one.
fn apart(addresses: &[(&'static str, Option<SocketAddr>)]) -> Result<(), ConfigError> {
    for (at, (field, address)) in addresses.iter().enumerate() {
        let Some(address) = address.filter(|address| address.port() > 0) else { continue };
        let is_same = |other: SocketAddr| {
            let everywhere = other.ip().is_unspecified() || address.ip().is_unspecified();
            other.port() == address.port() && (everywhere || other.ip() == address.ip())
        };
        let mut before = addresses[..at].iter();
        if let Some((other, _)) = before.find(|(_, other)| other.is_some_and(is_same)) {
            return Err(wrong(field, format!("is the address of --{other}: give it another port")));
        }
    }
    Ok(())
}

fn exposed(
    addresses: &[(&'static str, Option<SocketAddr>)],
    allowed: bool,
) -> Result<bool, ConfigError> {
    let beyond = addresses
        .iter()
        .find(|(_, address)| address.is_some_and(|address| !address.ip().is_loopback()));
    match beyond {
        Some((field, _)) if !allowed => Err(wrong(
            field,
            "is not loopback: nothing is encrypted and nobody logs in yet. On a private network, add --allow-plaintext",
        )),
        found => Ok(found.is_some()),
    }
}

/// Addresses are left out, so that a member can move to another address.
fn setup(token: &str, members: &[ConfiguredMember]) -> [u8; 16] {
    let mut hash = Xxh3::new();
    for text in std::iter::once(token).chain(members.iter().map(|member| member.name.as_str())) {
        hash.update(&(text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
    }
    hash.digest128().to_be_bytes()
}

fn connections_of_the_process() -> u64 {
    let files =
        rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20);
    (files / 100 * CONNECTIONS_PERCENT).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> ServeArgs {
        ServeArgs {
            name: Some("n2".to_owned()),
            initial_cluster: Some(vec!["n2=h:2".to_owned(), "n1=h:1".to_owned()]),
            data_dir: Some("data".into()),
            ..ServeArgs::default()
        }
    }

    fn refused(args: ServeArgs) -> String {
        args.resolve().expect_err("must be refused").to_string()
    }

    #[test]
    fn the_order_of_the_list_does_not_matter() {
        let one = args().resolve().unwrap();
        let turned = vec!["n1=h:1".to_owned(), "n2=h:2".to_owned()];
        let two = ServeArgs { initial_cluster: Some(turned), ..args() }.resolve().unwrap();
        assert_eq!((one.node_id, one.setup, one.members), (2, two.setup, two.members));
        let other =
            ServeArgs { cluster_token: Some("other".to_owned()), ..args() }.resolve().unwrap();
        assert_ne!(one.setup, other.setup);
    }

    #[test]
    fn every_refusal_names_its_field() {
        let list =
            |items: &[&str]| Some(items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>());
        let everywhere = || Some("0.0.0.0:0".parse().unwrap());
        let at = |port| Some(SocketAddr::from(([127, 0, 0, 1], port)));
        let cases = [
            ("--name", ServeArgs { name: None, ..args() }),
            ("--name", ServeArgs { name: Some("n3".to_owned()), ..args() }),
            ("--initial-cluster", ServeArgs { initial_cluster: None, ..args() }),
            ("--initial-cluster", ServeArgs { initial_cluster: list(&["n1"]), ..args() }),
            ("--initial-cluster", ServeArgs { initial_cluster: list(&["n1=h:0"]), ..args() }),
            ("--initial-cluster", ServeArgs { initial_cluster: list(&["n 1=h:1"]), ..args() }),
            (
                "--initial-cluster",
                ServeArgs { initial_cluster: list(&["n1=h:1", "n1=h:2"]), ..args() },
            ),
            (
                "--initial-cluster",
                ServeArgs { initial_cluster: list(&["n1=h:1", "n2=h:1"]), ..args() },
            ),
            ("--cluster-token", ServeArgs { cluster_token: Some(String::new()), ..args() }),
            ("--data-dir", ServeArgs { data_dir: None, ..args() }),
            ("--shards", ServeArgs { shards: Some(0), ..args() }),
            ("--services", ServeArgs { services: Some(Vec::new()), ..args() }),
            (
                "--listen",
                ServeArgs { listen: everywhere(), advertise: Some("h:1".to_owned()), ..args() },
            ),
            (
                "--advertise",
                ServeArgs { listen: everywhere(), allow_plaintext: Some(true), ..args() },
            ),
            ("--advertise", ServeArgs { advertise: Some("http://h".to_owned()), ..args() }),
            ("--peer-listen", ServeArgs { peer_listen: everywhere(), ..args() }),
            ("--metrics-listen", ServeArgs { metrics_listen: at(7001), ..args() }),
            ("--peer-listen", ServeArgs { listen: at(7101), ..args() }),
            ("--max-connections", ServeArgs { max_connections: Some(0), ..args() }),
            ("--config", ServeArgs { config: Some("/nonexistent/trefoil.toml".into()), ..args() }),
        ];
        for (field, args) in cases {
            let line = refused(args);
            assert!(line.starts_with(&format!("{field}: ")), "{line}");
        }
    }

    #[test]
    fn flags_win_over_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            "shards = 3\nservices = [\"lock\"]\nlisten = \"127.0.0.1:9\"\n",
        )
        .unwrap();
        let args = ServeArgs { config: Some(file.path().to_owned()), shards: Some(4), ..args() };
        let config = args.clone().resolve().unwrap();
        assert_eq!((config.shards, config.listen.port()), (4, 9));
        assert_eq!(config.services, [Service::Lock].into());

        std::fs::write(file.path(), "shard = 3\n").unwrap();
        assert!(refused(args).contains("unknown field `shard`"));
    }
}
