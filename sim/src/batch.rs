//! Many seeds on some threads, each seed in one of them.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::run::Report;
use crate::stats::Stats;

/// Which seeds, and until when.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The seeds.
    pub seeds: RangeInclusive<u64>,
    /// When no further one is begun.
    pub until: Option<Instant>,
    /// How many at a time.
    pub threads: usize,
}

/// What came of many seeds.
#[derive(Debug)]
pub struct Batch {
    count: u64,
    virtual_us: u64,
    stats: Stats,
    failed: Option<Report>,
    began: Instant,
    told: Instant,
    took: Duration,
}

impl Batch {
    /// Runs seeds until all are done, the time is over, or one has broken a promise.
    pub fn run(
        limits: &Limits,
        progress: Duration,
        say: impl Fn(&str) + Sync,
        run: impl Fn(u64) -> Report + Sync,
    ) -> Self {
        let now = Instant::now();
        let batch = Mutex::new(Self {
            count: 0,
            virtual_us: 0,
            stats: Stats::default(),
            failed: None,
            began: now,
            told: now,
            took: Duration::ZERO,
        });
        let seeds = Mutex::new(limits.seeds.clone());
        let lock = || batch.lock().unwrap_or_else(PoisonError::into_inner);
        let next = || {
            let over = limits.until.is_some_and(|until| Instant::now() >= until);
            if over || lock().failed.is_some() {
                return None;
            }
            seeds.lock().unwrap_or_else(PoisonError::into_inner).next()
        };
        std::thread::scope(|scope| {
            for _ in 0..limits.threads.max(1) {
                scope.spawn(|| {
                    while let Some(seed) = next() {
                        let report = run(seed);
                        lock().take(report, progress, &say);
                    }
                });
            }
        });
        let mut batch = batch.into_inner().unwrap_or_else(PoisonError::into_inner);
        batch.took = batch.began.elapsed();
        batch
    }

    fn take(&mut self, report: Report, progress: Duration, say: impl Fn(&str)) {
        self.count += 1;
        self.virtual_us += report.virtual_us;
        self.stats.add(&report.stats);
        if self.told.elapsed() >= progress {
            self.told = Instant::now();
            say(&format!(
                "{} seeds, {} virtual seconds, {} calls answered, at seed {}",
                self.count,
                self.virtual_us / 1_000_000,
                self.stats.answered,
                report.seed
            ));
        }
        // Of several the smallest: which thread was first is chance.
        let first = self.failed.as_ref().is_none_or(|failed| report.seed < failed.seed);
        if !report.violations.is_empty() && first {
            self.failed = Some(report);
        }
    }

    /// The seed that broke a promise.
    #[must_use]
    pub fn failed(&self) -> Option<&Report> {
        self.failed.as_ref()
    }

    /// Counters of which a batch of this size should have seen more.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        self.stats.missing(self.count)
    }

    /// What all seeds reached.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.took.as_secs_f64();
        let (count, virtual_s) = (self.count, self.virtual_us / 1_000_000);
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let per_minute = 60.0 * count as f64 / seconds.max(0.001);
        write!(
            f,
            "{count} seeds in {seconds:.1} s ({per_minute:.0} a minute), {virtual_s} virtual seconds: {}",
            self.stats
        )
    }
}

/// Puts each mutant back and counts the seeds until it is found, from `first` on and `most` at most.
#[cfg(feature = "mutants")]
pub fn find(
    mutants: &[trefoil_core::mutants::Mutant],
    first: u64,
    most: u64,
    threads: usize,
    say: impl Fn(&str) + Sync,
) -> Vec<Option<u64>> {
    let found = Mutex::new(vec![None; mutants.len()]);
    let next = Mutex::new(0..mutants.len());
    let take = |next: &Mutex<std::ops::Range<usize>>| {
        next.lock().unwrap_or_else(PoisonError::into_inner).next()
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some(n) = take(&next) {
                    let mutant = mutants[n];
                    trefoil_core::mutants::put(Some(mutant));
                    let killer = (first..first + most).find_map(|seed| {
                        let report = crate::run::run(seed);
                        let violation = report.violations.into_iter().next()?;
                        Some((seed, violation.invariant))
                    });
                    let seeds = killer.map(|(seed, _)| seed + 1 - first);
                    let (count, why) = killer.map_or_else(
                        || (format!(">{most}"), "NOT FOUND"),
                        |(seed, why)| ((seed + 1 - first).to_string(), why),
                    );
                    say(&format!(
                        "{:<20} {count:>5}  {why:<60} {}",
                        mutant.name(),
                        mutant.meaning()
                    ));
                    found.lock().unwrap_or_else(PoisonError::into_inner)[n] = seeds;
                }
            });
        }
    });
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}
