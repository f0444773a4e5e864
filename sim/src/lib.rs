//! How we know: whole clusters from one seed, and the checkers of their histories.
//!
//! [`check`] depends on nothing else here: tests with real processes use it too.

pub mod check;
