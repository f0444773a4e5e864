//! How we know: whole clusters from one seed, and the checkers of their histories.
//!
//! [`check`] depends on nothing else here: tests with real processes use it too. The rest is a world in one thread
//! and virtual time: [`run::run`] runs a seed. In reading order: [`rng`], [`config`], [`network`], [`disk`],
//! [`node`], [`calls`], [`client_context`], [`workload`], [`client`], [`event`], [`world`] with what happens in it, [`run`].

pub mod batch;
pub mod calls;
pub mod check;
pub mod client;
pub mod client_context;
pub mod config;
pub mod disk;
pub mod event;
mod lives;
pub mod network;
pub mod node;
pub mod phase;
pub mod rng;
pub mod run;
pub mod stats;
pub mod trace;
pub mod workload;
pub mod world;
