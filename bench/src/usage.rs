//! What a process has used, as the kernel counts it in `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use crate::figures::as_f64;

/// Clock ticks of a second in `/proc`, on every Linux that runs this.
const TICKS: f64 = 100.0;

/// CPU and context switches of a process and of each of its threads since they began.
#[derive(Debug)]
pub(crate) struct UsageSoFar {
    /// CPU seconds of user and system, of threads that ended as well.
    pub(crate) cpu: f64,
    threads: BTreeMap<u32, ThreadUsage>,
}

#[derive(Debug)]
struct ThreadUsage {
    name: String,
    cpu: f64,
    switches: u64,
}

/// What was used between two looks.
#[derive(Debug)]
pub(crate) struct UsedMeanwhile {
    pub(crate) cpu: f64,
    /// CPU seconds by the name of the threads.
    pub(crate) threads: BTreeMap<String, f64>,
    /// Voluntary and involuntary.
    pub(crate) switches: f64,
}

impl UsageSoFar {
    /// So far.
    ///
    /// # Errors
    /// When the process has ended.
    pub(crate) fn of(process: u32) -> io::Result<Self> {
        let mut threads = BTreeMap::new();
        for task in fs::read_dir(format!("/proc/{process}/task"))? {
            let name = task?.file_name();
            let Ok(thread) = name.to_string_lossy().parse() else { continue };
            // One that ended meanwhile has nothing to tell.
            if let Ok(usage) = ThreadUsage::of(process, thread) {
                threads.insert(thread, usage);
            }
        }
        Ok(Self { cpu: cpu_seconds(&format!("/proc/{process}/stat")), threads })
    }

    /// What was used since an earlier look at the same process.
    pub(crate) fn since(&self, earlier: &Self) -> UsedMeanwhile {
        let mut used =
            UsedMeanwhile { cpu: self.cpu - earlier.cpu, threads: BTreeMap::new(), switches: 0.0 };
        for (thread, now) in &self.threads {
            let (cpu, switches) =
                earlier.threads.get(thread).map_or((0.0, 0), |then| (then.cpu, then.switches));
            *used.threads.entry(now.name.clone()).or_default() += now.cpu - cpu;
            used.switches += as_f64(now.switches.saturating_sub(switches));
        }
        used
    }
}

impl ThreadUsage {
    fn of(process: u32, thread: u32) -> io::Result<Self> {
        let folder = format!("/proc/{process}/task/{thread}");
        let status = fs::read_to_string(format!("{folder}/status"))?;
        let switches = status
            .lines()
            .filter_map(|line| line.split_once("ctxt_switches:")?.1.trim().parse::<u64>().ok())
            .sum();
        // The first thread has the name of the binary.
        let name = if thread == process {
            "main".to_owned()
        } else {
            fs::read_to_string(format!("{folder}/comm"))?.trim().to_owned()
        };
        Ok(Self { name, cpu: cpu_seconds(&format!("{folder}/stat")), switches })
    }
}

/// CPU seconds of user and system in a `stat` file; 0 when it is gone.
pub(crate) fn cpu_seconds(stat: &str) -> f64 {
    let stat = fs::read_to_string(stat).unwrap_or_default();
    // What comes before may have spaces: the name.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS
}
