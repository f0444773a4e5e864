//! How we know: whole clusters from one seed, and the checkers of their histories.
//!
//! [`check`] depends on nothing else here: tests with real processes use it too. The rest is a world in one thread
//! and virtual time: [`run::run`] runs a seed. In reading order: [`rng`], [`config`], [`network`], [`disk`],
//! [`node`], [`calls`], [`workload`], [`client`], [`event`], [`world`], `effects`, `storage`, `member`,
//! `faults` and `copies`, [`run`].

pub mod batch;
pub mod calls;
pub mod check;
pub mod client;
pub mod config;
mod copies;
pub mod disk;
mod effects;
mod emptied;
pub mod event;
mod faults;
mod lives;
pub mod member;
pub mod network;
pub mod node;
pub mod rng;
pub mod rot;
pub mod run;
pub mod service;
pub mod stats;
mod storage;
pub mod trace;
pub mod workload;
pub mod world;
