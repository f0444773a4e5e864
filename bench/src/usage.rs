//! What a process has used, as the kernel counts it in `/proc`.

use std::fs;

/// Clock ticks of a second in `/proc`, on every Linux that runs this.
const TICKS: f64 = 100.0;

/// CPU seconds of user and system in a `stat` file; 0 when it is gone.
pub(crate) fn cpu_seconds(stat: &str) -> f64 {
    let stat = fs::read_to_string(stat).unwrap_or_default();
    // What comes before may have spaces: the name.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS
}
