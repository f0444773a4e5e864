//! Real nodes on loopback, in this process, with their data in temporary directories.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test may fail")]

mod cluster;
mod damage;
mod identity;
mod peers;
mod shard_move;
mod support;
mod torn;
mod watch;
