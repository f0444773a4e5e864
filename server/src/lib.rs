//! How Trefoil carries it out.

pub mod storage;
