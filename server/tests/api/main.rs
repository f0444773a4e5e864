//! A node's front over real sockets, called as any gRPC client calls it, on shards in memory.

#![allow(clippy::unwrap_used, reason = "a test ends where something is wrong")]

mod acquire_stream;
mod barriers;
mod calls;
mod connection;
mod elections;
mod fences;
mod front;
mod gone;
mod input;
mod leases;
mod namespaces;
mod node;
mod requests;
mod routing;
mod semaphores;
mod session_stream;
mod support;
mod unreadable;
mod watch;
