//! How we know: whole clusters from one seed, and the checkers of their histories.
//!
//! [`check`] depends on nothing else here: tests with real processes use it too. The rest is a world in one thread
//! and virtual time: [`run::run`] runs a seed. In reading order: [`dice`], [`knobs`], [`network`], [`disk`],
//! [`node`], [`calls`], [`roles`], [`lockers`], [`takers`], [`client`], [`event`], [`world`], `carry`, `storage`, `member`,
//! `faults` and `copies`, [`run`].

pub mod batch;
pub mod calls;
mod carry;
pub mod check;
pub mod client;
mod copies;
pub mod dice;
pub mod disk;
mod emptied;
pub mod event;
mod faults;
mod gatherer;
mod keepers;
pub mod knobs;
mod lives;
pub mod lockers;
pub mod member;
pub mod network;
pub mod node;
pub mod roles;
pub mod rot;
pub mod run;
pub mod service;
pub mod stats;
mod storage;
pub mod takers;
pub mod trace;
pub mod world;
