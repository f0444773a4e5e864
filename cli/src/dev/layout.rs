//! Where the three nodes live: directories and ports, the same again when the directory is the same.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::port;
use crate::exit::CommandFailure;

const NODES: usize = 3;
/// Client ports that are tried first, so that other commands find the cluster without --endpoints.
const PORTS: [u16; NODES] = [7001, 7002, 7003];
/// Remembers the ports within the directory.
const FILE: &str = "dev.json";

/// Directories and ports of three nodes.
#[derive(Debug)]
pub(super) struct Layout {
    dir: PathBuf,
    nodes: Vec<DevNode>,
    /// Removed with all that is in it when this is dropped.
    _temporary: Option<TempDir>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct DevNode {
    pub(super) name: String,
    pub(super) listen: SocketAddr,
    pub(super) peer_listen: SocketAddr,
}

impl Layout {
    /// Makes the directory and picks ports, or finds those of the last time.
    pub(super) fn prepare(
        data_dir: Option<PathBuf>,
        listen: &[SocketAddr],
    ) -> Result<Self, CommandFailure> {
        if !listen.is_empty() && listen.len() != NODES {
            return Err(CommandFailure::usage(format!(
                "--listen: needs {NODES} addresses, not {}",
                listen.len()
            )));
        }
        let (dir, temporary) = match data_dir {
            Some(dir) => (dir, None),
            None => {
                let temporary = tempfile::Builder::new().prefix("trefoil-dev-").tempdir();
                let temporary = temporary.map_err(|error| {
                    failed("make a directory in", &std::env::temp_dir(), &error)
                })?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        fs::create_dir_all(&dir).map_err(|error| failed("make", &dir, &error))?;
        let mut nodes = match recall(&dir)? {
            Some(nodes) => nodes,
            None => fresh()?,
        };
        let mut held = Vec::new();
        for (node, listen) in nodes.iter_mut().zip(listen) {
            node.listen = *listen;
            if listen.port() == 0 {
                let listener = free(listen.ip())?;
                node.listen = listener.local_addr().map_err(|error| no_port(&error))?;
                held.push(listener);
            }
        }
        remember(&dir, &nodes)?;
        Ok(Self { dir, nodes, _temporary: temporary })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn nodes(&self) -> &[DevNode] {
        &self.nodes
    }

    /// The value of --initial-cluster.
    pub(super) fn initial_cluster(&self) -> String {
        let members = self.nodes.iter().map(|node| format!("{}={}", node.name, node.peer_listen));
        members.collect::<Vec<_>>().join(",")
    }
}

fn fresh() -> Result<Vec<DevNode>, CommandFailure> {
    let preferred = PORTS.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    // All are held until the last is picked, so that no port is given out twice.
    let held = preferred.iter().map(TcpListener::bind).collect::<Result<Vec<_>, _>>();
    let some =
        || (0..NODES).map(|_| free(Ipv4Addr::LOCALHOST.into())).collect::<Result<Vec<_>, _>>();
    let clients = held.or_else(|_| some())?;
    let peers = some()?;
    let node = |(n, (client, peer)): (usize, (&TcpListener, &TcpListener))| {
        let name = format!("n{}", n + 1);
        Ok(DevNode { name, listen: client.local_addr()?, peer_listen: peer.local_addr()? })
    };
    let nodes =
        clients.iter().zip(&peers).enumerate().map(node).collect::<Result<_, std::io::Error>>();
    nodes.map_err(|error| no_port(&error))
}

fn free(address: IpAddr) -> Result<TcpListener, CommandFailure> {
    port::free(address).map_err(|error| no_port(&error))
}

fn no_port(error: &std::io::Error) -> CommandFailure {
    CommandFailure::new(format!("cannot find a free port: {error}"))
}

fn recall(dir: &Path) -> Result<Option<Vec<DevNode>>, CommandFailure> {
    let path = dir.join(FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", &path, &error)),
    };
    let nodes =
        serde_json::from_slice::<Vec<DevNode>>(&bytes).ok().filter(|nodes| nodes.len() == NODES);
    nodes.map(Some).ok_or_else(|| {
        CommandFailure::new(format!("{} is not what this command wrote", path.display()))
            .next("Repair it, or give another --data-dir.")
    })
}

fn remember(dir: &Path, nodes: &[DevNode]) -> Result<(), CommandFailure> {
    let path = dir.join(FILE);
    let json =
        serde_json::to_vec_pretty(nodes).map_err(|error| CommandFailure::new(error.to_string()))?;
    fs::write(&path, json).map_err(|error| failed("write", &path, &error))
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> CommandFailure {
    CommandFailure::new(format!("cannot {what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_directory_gives_the_same_ports() {
        let dir = TempDir::new().unwrap();
        let first = Layout::prepare(Some(dir.path().to_owned()), &[]).unwrap();
        let again = Layout::prepare(Some(dir.path().to_owned()), &[]).unwrap();
        assert_eq!(first.nodes, again.nodes);
        let mut ports =
            first.nodes.iter().flat_map(|node| [node.listen, node.peer_listen]).collect::<Vec<_>>();
        ports.sort();
        ports.dedup();
        assert_eq!(ports.len(), 2 * NODES);

        let listen = [1, 2, 3].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let moved = Layout::prepare(Some(dir.path().to_owned()), &listen).unwrap();
        assert_eq!(moved.nodes[2].listen, listen[2]);
        assert_eq!(moved.nodes[2].peer_listen, first.nodes[2].peer_listen);
        assert!(Layout::prepare(Some(dir.path().to_owned()), &listen[..2]).is_err());

        let any = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); NODES];
        let picked = Layout::prepare(Some(dir.path().to_owned()), &any).unwrap();
        let mut ports = picked.nodes.iter().map(|node| node.listen.port()).collect::<Vec<_>>();
        ports.sort_unstable();
        ports.dedup();
        assert!(ports.len() == NODES && ports[0] > 0, "port 0 means a free one: {ports:?}");
    }

    #[test]
    fn a_temporary_directory_goes_away() {
        let layout = Layout::prepare(None, &[]).unwrap();
        let dir = layout.dir().to_owned();
        assert!(dir.exists());
        drop(layout);
        assert!(!dir.exists());
    }
}
