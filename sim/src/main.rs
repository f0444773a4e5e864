//! `trefoil-sim`: runs seeds, tells its progress on standard error, and stops at the first broken promise with the
//! command that reproduces it.

use std::cell::Cell;
use std::io::Write as _;
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use trefoil_sim::run::{Report, run};
use trefoil_sim::stats::Stats;

/// Seconds between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(5);

/// Runs whole clusters in one thread and virtual time, each decided by its seed.
#[derive(Parser)]
#[command(name = "trefoil-sim", version)]
struct Arguments {
    /// Run one seed.
    #[arg(long, conflicts_with_all = ["seeds", "minutes"])]
    seed: Option<u64>,
    /// Run these seeds, both ends included.
    #[arg(long, value_name = "A..B", value_parser = parse_range)]
    seeds: Option<RangeInclusive<u64>>,
    /// Stop after so many minutes; without --seeds the first seed is the present time.
    #[arg(long)]
    minutes: Option<u64>,
    /// Lines of the trace to show when a promise is broken.
    #[arg(long, default_value_t = 80)]
    lines: usize,
}

thread_local! {
    /// The seed that runs, for the message of a build that cannot catch a panic.
    static SEED: Cell<u64> = const { Cell::new(0) };
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        say(&format!("a panic; reproduce: {}", command(SEED.get())));
        before(panic);
    }));
    let started = Instant::now();
    let until = arguments.minutes.map(|minutes| started + Duration::from_secs(60 * minutes));
    let seeds = arguments
        .seed
        .map(|seed| seed..=seed)
        .or(arguments.seeds)
        .unwrap_or_else(|| from_now(until.is_none()));
    let (mut total, mut count, mut told) = (Stats::default(), 0_u64, started);
    let mut virtual_us = 0;
    for seed in seeds {
        if until.is_some_and(|until| Instant::now() >= until) {
            break;
        }
        SEED.set(seed);
        let report = run(seed);
        count += 1;
        virtual_us += report.virtual_us;
        total.add(&report.stats);
        if !report.violations.is_empty() {
            tell(&report, arguments.lines);
            return ExitCode::FAILURE;
        }
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            say(&format!(
                "{count} seeds, {} virtual seconds, at seed {seed}",
                virtual_us / 1_000_000
            ));
        }
        if arguments.seed.is_some() {
            say(&format!("seed {seed}: hash {:016x}", report.hash));
        }
    }
    say(&format!(
        "{count} seeds in {} s, {} virtual seconds: {total}",
        started.elapsed().as_secs(),
        virtual_us / 1_000_000
    ));
    ExitCode::SUCCESS
}

/// Seeds from the present time on: one, or as many as there is time for.
fn from_now(one: bool) -> RangeInclusive<u64> {
    let since =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let first = u64::try_from(since.as_millis()).unwrap_or_default();
    if one { first..=first } else { first..=u64::MAX }
}

fn tell(report: &Report, lines: usize) {
    for line in report.trace.iter().skip(report.trace.len().saturating_sub(lines)) {
        say(line);
    }
    for violation in &report.violations {
        say(&format!("BROKEN {violation}"));
    }
    say(&format!("reproduce: {}", command(report.seed)));
}

fn command(seed: u64) -> String {
    format!("cargo run -p trefoil-sim -- --seed {seed}")
}

/// A line on standard error; when that is closed nobody reads it.
fn say(line: &str) {
    drop(writeln!(std::io::stderr(), "{line}"));
}

fn parse_range(text: &str) -> Result<RangeInclusive<u64>, String> {
    let (first, last) =
        text.split_once("..").ok_or("two numbers with .. between them are wanted")?;
    let number =
        |part: &str| part.trim_start_matches('=').parse::<u64>().map_err(|error| error.to_string());
    Ok(number(first)?..=number(last)?)
}
