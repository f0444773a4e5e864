//! Who a member is: how a cluster is formed once ([`formation`]), how an older copy of a directory is told from the
//! directory that went on ([`memory`]), and both for one member that hears its peers ([`introduction`]).

pub mod formation;
pub mod introduction;
pub mod memory;

pub use self::formation::{Formation, Incarnations, Objection, Stage, Word};
pub use self::introduction::{Introduction, News, Refused};
pub use self::memory::{Memory, Stale, Standing, Starts};
