//! How Trefoil carries it out.

pub mod config;
pub mod logging;
pub mod node;
mod peer;
pub mod storage;
