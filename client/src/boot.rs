//! The clock by which this program counts what it was promised: it goes on while the machine sleeps, so that who was suspended
//! is not told too much.

use std::ops::Add;
use std::time::Duration;

/// A moment of that clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BootInstant(Duration);

impl BootInstant {
    pub(crate) fn now() -> Self {
        Self(since_boot())
    }

    /// How long it is from now until then; zero when it is over.
    pub(crate) fn left(self) -> Duration {
        self.0.saturating_sub(since_boot())
    }
}

impl Add<Duration> for BootInstant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

/// `CLOCK_BOOTTIME`; Apple's monotonic clock counts sleep as well.
#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn since_boot() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    #[cfg(target_vendor = "apple")]
    let clock = ClockId::Monotonic;
    #[cfg(not(target_vendor = "apple"))]
    let clock = ClockId::Boottime;
    let now = clock_gettime(clock);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Whether it counts sleep is up to the system.
#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn since_boot() -> Duration {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    START.get_or_init(std::time::Instant::now).elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_never_more_than_was_promised() {
        let promised = Duration::from_millis(20);
        let (began, until) = (std::time::Instant::now(), BootInstant::now() + promised);
        assert!(until.left() <= promised);
        while !until.left().is_zero() {
            std::hint::spin_loop();
        }
        assert!(began.elapsed() >= promised, "nor less, while the machine is awake");
    }
}
