//! The client against a server whose answers the test decides.

#![allow(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

mod pipeline;
mod session;
mod support;
