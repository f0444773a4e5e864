//! Real `trefoil` processes on loopback: started, killed, stopped, restarted, and asked.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test says what is wrong by failing, and measurements are for people"
)]

mod dev;
mod ended;
mod examples;
mod failover;
mod faults;
mod fences;
mod full_disk;
mod gone;
mod line;
mod lock_run;
mod proxy;
mod raw;
mod record;
mod refusals;
mod routing;
mod semaphores;
mod services;
mod stop;
mod support;
mod waits;
mod watch;
mod written;
