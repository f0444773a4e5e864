//! A histogram of times that the state machines measured: they come by buckets, many at once.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::Opts;
use prometheus::core::{Collector, Desc, Describer as _};
use prometheus::proto::{Bucket, Histogram, Metric, MetricFamily, MetricType};
use trefoil_core::machine::{DURATION_BOUNDS_MS, Durations};

/// A histogram of log time. Clones are the same one.
#[derive(Clone, Debug)]
pub(super) struct LogDurations {
    desc: Desc,
    all: Arc<Mutex<Durations>>,
}

impl LogDurations {
    pub(super) fn new(opts: &Opts) -> Result<Self, prometheus::Error> {
        Ok(Self { desc: opts.describe()?, all: Arc::default() })
    }

    pub(super) fn add(&self, durations: &Durations) {
        if durations.count() > 0 {
            self.all.lock().unwrap_or_else(PoisonError::into_inner).add(durations);
        }
    }
}

impl Collector for LogDurations {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let all = *self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let mut below = 0;
        let buckets = DURATION_BOUNDS_MS.iter().zip(all.buckets).map(|(bound_ms, count)| {
            below += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(seconds(*bound_ms));
            bucket.set_cumulative_count(below);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(all.count());
        histogram.set_sample_sum(seconds(all.sum_ms));
        let mut metric = Metric::default();
        metric.set_histogram(histogram);
        let mut family = MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(vec![metric]);
        vec![family]
    }
}

fn seconds(ms: u64) -> f64 {
    Duration::from_millis(ms).as_secs_f64()
}
