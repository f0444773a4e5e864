//! Many seeds on some threads, each seed in one of them.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::run::SeedReport;
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
pub struct SeedBatch {
    count: u64,
    virtual_us: u64,
    stats: Stats,
    failed: Option<SeedReport>,
    began: Instant,
    told: Instant,
    took: Duration,
}

impl SeedBatch {
    /// Runs seeds until all are done, the time is over, or one has broken a promise.
    pub fn run(
        limits: &Limits,
        progress: Duration,
        say: impl Fn(&str) + Sync,
        run: impl Fn(u64) -> SeedReport + Sync,
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

    fn take(&mut self, report: SeedReport, progress: Duration, say: impl Fn(&str)) {
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
    pub fn failed(&self) -> Option<&SeedReport> {
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

impl fmt::Display for SeedBatch {
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

/// A mutant, with the seed that found it and the promise that it broke there.
#[cfg(feature = "mutants")]
pub type FoundMutant = (trefoil_core::mutants::Mutant, Option<(u64, &'static str)>);

/// Puts each mutant back and looks for the first of `seeds` that finds it; the one that `known` has for it goes first,
/// since most changes of the code leave it one that finds the mutant.
#[cfg(feature = "mutants")]
pub fn find(
    seeds: &RangeInclusive<u64>,
    known: impl Fn(trefoil_core::mutants::Mutant) -> Option<u64> + Sync,
    threads: usize,
    say: impl Fn(&FoundMutant) + Sync,
) -> Vec<FoundMutant> {
    use trefoil_core::mutants::{Mutant, put};

    let found = Mutex::new(vec![None; Mutant::ALL.len()]);
    let next = Mutex::new(Mutant::ALL.iter().enumerate());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                let take = || next.lock().unwrap_or_else(PoisonError::into_inner).next();
                while let Some((n, &mutant)) = take() {
                    put(Some(mutant));
                    let first = known(mutant).filter(|seed| seeds.contains(seed));
                    let killer = first.into_iter().chain(seeds.clone()).find_map(|seed| {
                        let report = crate::run::run(seed);
                        Some((seed, report.violations.first()?.invariant))
                    });
                    say(&(mutant, killer));
                    found.lock().unwrap_or_else(PoisonError::into_inner)[n] =
                        Some((mutant, killer));
                }
            });
        }
    });
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.into_iter().flatten().collect()
}
