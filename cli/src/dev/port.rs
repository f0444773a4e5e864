//! Ports for nodes on this machine.

use std::io;
use std::net::{IpAddr, TcpListener};

/// Below those that systems give to connections (from 32,768 on Linux): one of these may be taken by any program's call
/// before its node listens, or while the node is stopped.
const PORTS: std::ops::Range<u16> = 10_000..32_000;
const TRIES: usize = 100;

/// A port that nobody has, held by its listener.
pub(crate) fn free(address: IpAddr) -> io::Result<TcpListener> {
    let tries = (0..TRIES).map(|_| TcpListener::bind((address, rand::random_range(PORTS))));
    tries.flatten().next().map_or_else(|| TcpListener::bind((address, 0)), Ok)
}
