//! `trefoil-sim`: runs seeds on all processors, tells its progress on standard error, and stops at the first broken
//! promise with the command that reproduces it.

use std::cell::Cell;
use std::io::Write as _;
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use trefoil_sim::batch::{Limits, SeedBatch};
use trefoil_sim::run::{SeedReport, run_keeping};

/// Seconds between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(5);

/// Runs whole clusters in virtual time, each in one thread and decided by its seed.
#[derive(Parser)]
#[command(name = "trefoil-sim", version)]
struct SimArguments {
    /// Run one seed.
    #[arg(long, conflicts_with_all = ["seeds", "minutes"])]
    seed: Option<u64>,
    /// Run these seeds, both ends included.
    #[arg(long, value_name = "A..B", value_parser = parse_range)]
    seeds: Option<RangeInclusive<u64>>,
    /// Stop after so many minutes; without --seeds the first seed is the present time.
    #[arg(long)]
    minutes: Option<u64>,
    /// Seeds that run at a time; without it as many as there are processors.
    #[arg(long)]
    threads: Option<usize>,
    /// Lines of the trace to show when a promise is broken.
    #[arg(long, default_value_t = 80)]
    lines: usize,
    /// Put a known bug back.
    #[cfg(feature = "mutants")]
    #[arg(long, conflicts_with = "mutants")]
    mutant: Option<String>,
    /// Put each known bug back and print, as Markdown, the first seed that finds it; fails when none does.
    #[cfg(feature = "mutants")]
    #[arg(long)]
    mutants: bool,
    /// With --mutants, try first the seeds of a table that it printed.
    #[cfg(feature = "mutants")]
    #[arg(long, value_name = "FILE", requires = "mutants")]
    known: Option<std::path::PathBuf>,
    /// Seeds that a mutant may survive at most.
    #[cfg(feature = "mutants")]
    #[arg(long, default_value_t = 1_000)]
    most: u64,
}

thread_local! {
    /// The seed that runs, for the message of a build that cannot catch a panic.
    static SEED: Cell<u64> = const { Cell::new(0) };
}

fn main() -> ExitCode {
    let arguments = SimArguments::parse();
    std::panic::set_hook(Box::new(|panic| {
        say(&format!("{panic}; reproduce: {}", command(SEED.get())));
    }));
    #[cfg(feature = "mutants")]
    if arguments.mutants {
        return mutants(&arguments);
    }
    match arguments.seed {
        Some(seed) => one(seed, &arguments),
        None => many(&arguments),
    }
}

/// Runs one seed with what was asked for.
fn run_seed(
    seed: u64,
    #[allow(unused_variables, reason = "mutants are a feature")] arguments: &SimArguments,
) -> SeedReport {
    SEED.set(seed);
    #[cfg(feature = "mutants")]
    if let Some(name) = &arguments.mutant {
        let mutant = trefoil_core::mutants::named(name);
        trefoil_core::mutants::put(Some(mutant.expect("the name of a mutant")));
    }
    run_keeping(seed, arguments.lines)
}

fn one(seed: u64, arguments: &SimArguments) -> ExitCode {
    let report = run_seed(seed, arguments);
    if !report.violations.is_empty() {
        return tell(&report, arguments.lines);
    }
    let seconds = report.virtual_us / 1_000_000;
    say(&format!(
        "seed {seed}: hash {:016x}, {seconds} virtual seconds: {}",
        report.hash, report.stats
    ));
    ExitCode::SUCCESS
}

fn many(arguments: &SimArguments) -> ExitCode {
    let until = arguments.minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes));
    let seeds = arguments.seeds.clone().unwrap_or_else(|| from_now(until.is_none()));
    say(&format!("the first seed is {}", seeds.start()));
    let threads = arguments.threads.unwrap_or_else(processors);
    let limits = Limits { seeds, until, threads };
    let batch = SeedBatch::run(&limits, PROGRESS, say, |seed| run_seed(seed, arguments));
    say(&batch.to_string());
    if let Some(report) = batch.failed() {
        return tell(report, arguments.lines);
    }
    let missing = batch.missing();
    if missing.is_empty() {
        return ExitCode::SUCCESS;
    }
    say(&format!("so many seeds should have met more: {}", missing.join(", ")));
    ExitCode::FAILURE
}

/// Prints the table of known bugs: the first seed that finds each, and the promise that it breaks there.
#[cfg(feature = "mutants")]
fn mutants(arguments: &SimArguments) -> ExitCode {
    let known = match arguments.known.as_ref().map(std::fs::read_to_string).transpose() {
        Ok(table) => table.unwrap_or_default(),
        Err(error) => {
            say(&format!("the file of --known cannot be read: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let first = arguments.seeds.as_ref().map_or(1, |seeds| *seeds.start());
    let seeds = first..=first + arguments.most - 1;
    std::panic::set_hook(Box::new(|_| {}));
    let found = trefoil_sim::batch::find(
        &seeds,
        |mutant| seed_in(&known, mutant.name()),
        arguments.threads.unwrap_or_else(processors),
        |(mutant, killer)| say(&format!("{}: {killer:?}", mutant.name())),
    );
    drop(std::io::stdout().write_all(table(&found).as_bytes()));
    let survivors = found.iter().filter(|(_, killer)| killer.is_none()).count();
    say(&format!("{} mutants, {survivors} not found by seeds {seeds:?}", found.len()));
    if survivors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(feature = "mutants")]
fn table(found: &[trefoil_sim::batch::FoundMutant]) -> String {
    let head = "# Known bugs, put back\n\n| mutant | what it does wrong | seed | broken promise |\n\
                | --- | --- | --- | --- |\n";
    let rows = found.iter().map(|(mutant, killer)| {
        let (seed, promise) =
            killer.map_or((String::new(), "NONE"), |(seed, promise)| (seed.to_string(), promise));
        let meaning = mutant.meaning().trim_end_matches('.');
        format!("| `{}` | {meaning} | {seed} | {promise} |\n", mutant.name())
    });
    std::iter::once(head.to_owned()).chain(rows).collect()
}

/// The seed that such a table has for a mutant.
#[cfg(feature = "mutants")]
fn seed_in(table: &str, mutant: &str) -> Option<u64> {
    let row = table.lines().find(|line| line.starts_with(&format!("| `{mutant}` |")))?;
    row.split('|').nth(3)?.trim().parse().ok()
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Seeds from the present time on: one, or as many as there is time for.
fn from_now(one: bool) -> RangeInclusive<u64> {
    let since =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let first = u64::try_from(since.as_millis()).unwrap_or_default();
    if one { first..=first } else { first..=u64::MAX }
}

fn tell(report: &SeedReport, lines: usize) -> ExitCode {
    for line in report.trace.iter().skip(report.trace.len().saturating_sub(lines)) {
        say(line);
    }
    for violation in &report.violations {
        say(&format!("BROKEN {violation}"));
    }
    say(&format!("reproduce: {}", command(report.seed)));
    ExitCode::FAILURE
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
