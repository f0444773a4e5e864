//! Runs seeds: those that once found a fault, and a bounded number of others.

use std::ops::Range;

use trefoil_sim::run::{Report, run};
use trefoil_sim::stats::Stats;

/// Seeds of a test run: enough to meet every fault, about 20 s of an unoptimised build.
const SEEDS: Range<u64> = 10_000..10_050;

fn demand(report: &Report) {
    assert!(
        report.violations.is_empty(),
        "seed {}: {}\n{}\nreproduce: cargo run -p trefoil-sim -- --seed {0}",
        report.seed,
        report.violations[0],
        report.trace.join("\n"),
    );
}

#[test]
fn saved_seeds_keep_every_promise() {
    for line in include_str!("../seeds.txt").lines().filter(|line| !line.starts_with('#')) {
        let seed = line.split_whitespace().next().and_then(|word| word.parse().ok());
        demand(&run(seed.expect("a line begins with a seed")));
    }
}

#[test]
fn the_same_seed_gives_the_same_events() {
    for seed in [1, 2, 3, 1_000] {
        let (first, second) = (run(seed), run(seed));
        demand(&first);
        assert_eq!(first.hash, second.hash, "seed {seed} is not deterministic");
        assert_eq!(first.stats, second.stats);
    }
    assert_ne!(run(1).hash, run(2).hash);
}

#[test]
fn seeds_keep_every_promise_and_reach_every_fault() {
    let mut total = Stats::default();
    for seed in SEEDS {
        let report = run(seed);
        demand(&report);
        total.add(&report.stats);
    }
    let missing = total.missing();
    assert!(
        missing.is_empty(),
        "a batch that never meets {missing:?} has not tested them: {total}"
    );
}
