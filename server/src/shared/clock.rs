//! The clocks of a node: the only place that reads CLOCK_BOOTTIME and the wall clock.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, Timespec, clock_gettime};
use trefoil_core::Now;

/// Both clocks, as a step of the core wants them.
#[must_use]
pub(crate) fn now() -> Now {
    Now { boot_ms: boot_ms(), wall_ms: milliseconds(clock_gettime(ClockId::Realtime)) }
}

/// Milliseconds of a clock that never jumps and goes on while the machine sleeps.
#[must_use]
pub(crate) fn boot_ms() -> u64 {
    milliseconds(clock_gettime(ClockId::Boottime))
}

/// Microseconds since 1970; only for numbers that shall rise over restarts.
#[must_use]
pub(crate) fn wall_us() -> u64 {
    let time = clock_gettime(ClockId::Realtime);
    milliseconds(Timespec { tv_sec: time.tv_sec, tv_nsec: 0 }) * 1_000 + nanoseconds(&time) / 1_000
}

/// The time of [`boot_ms`] at which a deadline of the runtime's clock is reached.
#[must_use]
pub(crate) fn boot_deadline(deadline: tokio::time::Instant) -> u64 {
    let left = deadline.saturating_duration_since(tokio::time::Instant::now());
    boot_ms().saturating_add(u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
}

/// Sleeps until a time of [`boot_ms`].
pub(crate) async fn sleep_until(at_ms: u64) {
    tokio::time::sleep(Duration::from_millis(at_ms.saturating_sub(boot_ms()))).await;
}

fn milliseconds(time: Timespec) -> u64 {
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000 + nanoseconds(&time) / 1_000_000
}

fn nanoseconds(time: &Timespec) -> u64 {
    u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Measures how long something takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts now.
    #[must_use]
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    #[must_use]
    pub(crate) fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    /// Seconds since the start.
    #[must_use]
    pub(crate) fn seconds(&self) -> f64 {
        self.elapsed().as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_go_forward_and_agree_on_their_units() {
        let (boot, wall) = (boot_ms(), wall_us());
        assert!(boot > 0);
        assert!(boot_ms() >= boot);
        assert!(now().wall_ms.abs_diff(wall / 1_000) < 60_000, "the same clock in two units");
    }

    #[test]
    fn a_deadline_is_as_far_away_on_both_clocks() {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        let left = boot_deadline(deadline) - boot_ms();
        assert!((4_900..=5_000).contains(&left), "{left} ms are left of 5,000");
        let passed = tokio::time::Instant::now();
        assert!(boot_deadline(passed) <= boot_ms());
    }
}
