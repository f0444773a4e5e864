//! Who a member is: how a cluster is formed once ([`formation`]), and how an older copy of a directory is told from
//! the directory that went on ([`memory`]).

pub mod formation;
pub mod memory;

pub use self::formation::{Formation, Incarnations, Objection, Stage, Word};
pub use self::memory::{Memory, Stale, Standing, Starts};
