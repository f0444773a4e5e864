//! The files of a data directory at every crash and with every bit turned over.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod directory;
mod log;
mod rot;
mod state;
mod support;
