//! What Trefoil decides: a deterministic core without I/O, clock, randomness, async or threads.
//!
//! Two state machines make a node. A [`replica::Replica`] is one member of one shard's Raft group: inputs go in,
//! effects come out. A [`machine::Machine`] is what the group replicates: committed entries are applied to it in
//! order and answer the commands that they carry. The server carries the effects out on real files, sockets and
//! threads; the simulator does so in virtual time. Both run this code.
//!
//! In reading order: [`limits`], [`slot`] and [`key`] (where state lives), [`store`], [`check`] (what a request may
//! be), [`machine`] with the services, [`replica`], [`call`], [`member`].

#![deny(clippy::float_arithmetic, clippy::iter_over_hash_type)]

/// Whether a known bug is put back here; always false without the feature `mutants`.
#[cfg(feature = "mutants")]
#[macro_export]
macro_rules! mutant {
    ($name:ident) => {
        $crate::mutants::is($crate::mutants::Mutant::$name)
    };
}

/// Whether a known bug is put back here; always false without the feature `mutants`.
#[cfg(not(feature = "mutants"))]
#[macro_export]
macro_rules! mutant {
    ($name:ident) => {
        false
    };
}

pub mod call;
pub mod check;
pub mod key;
pub mod lease;
pub mod limits;
pub mod machine;
pub mod member;
#[cfg(feature = "mutants")]
pub mod mutants;
mod page;
pub mod replica;
pub mod siphash;
pub mod store;
mod table;
pub mod turns;

pub use trefoil_proto::slot::{self, META_SHARD};

/// Raft id of a node: 1 or more, never reused in a cluster.
pub type NodeId = u64;
/// A Raft group of the cluster; 0 is the meta shard.
pub type ShardId = u32;
/// Names one call on this node until it is answered.
pub type CallId = u64;

/// Bytes that a node draws to name a call without request id that waits or acquires.
pub const DRAWN_BYTES: usize = 16;

/// Index and term at which every shard is born, so that whoever joins later begins with a snapshot.
pub const BIRTH_INDEX: u64 = 10;
/// See [`BIRTH_INDEX`].
pub const BIRTH_TERM: u64 = 1;

/// Version of the machine: what entries it can apply.
pub const MACHINE_VERSION: u32 = 3;

/// The clocks of a node at the moment of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds of a clock that never jumps and goes on while the machine sleeps (CLOCK_BOOTTIME).
    pub boot_ms: u64,
    /// Wall clock in milliseconds since 1970; used only when every replica has restarted.
    pub wall_ms: u64,
}

/// The place of one command in a shard's history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Raft term of the entry.
    pub term: u64,
    /// Log index of the entry.
    pub index: u64,
    /// Place of the command within the entry, from 0.
    pub ordinal: u32,
    /// Log time of the entry in ms.
    pub log_time_ms: u64,
}
