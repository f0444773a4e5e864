//! Runs seeds: those that once found a fault, and a bounded number of others.

use std::time::Duration;

use trefoil_sim::batch::{Limits, SeedBatch};
use trefoil_sim::run::{SeedReport, run};

fn demand(report: &SeedReport) {
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
    // The last ones have real state files.
    let real = (1..).filter(|seed| has_real_state(*seed)).take(2);
    for seed in [1, 2, 3, 1_000].into_iter().chain(real) {
        let (first, second) = (run(seed), run(seed));
        demand(&first);
        assert_eq!(first.hash, second.hash, "seed {seed} is not deterministic");
        assert_eq!(first.stats, second.stats);
    }
    assert_ne!(run(1).hash, run(2).hash);
}

fn has_real_state(seed: u64) -> bool {
    let mut rng = trefoil_sim::rng::Rng::new(seed);
    trefoil_sim::config::RunConfig::draw(&mut rng).disk.real_state
}

#[test]
fn a_run_is_as_long_as_it_should_be() {
    let report = run(4);
    demand(&report);
    assert!(report.virtual_us >= 60_000_000 && report.stats.answered >= 500, "{}", report.stats);
}

#[test]
fn seeds_keep_every_promise() {
    let limits = Limits { seeds: 10_000..=10_039, until: None, threads: 2 };
    let batch = SeedBatch::run(&limits, Duration::from_secs(60), |line| println!("{line}"), run);
    if let Some(report) = batch.failed() {
        demand(report);
    }
}
