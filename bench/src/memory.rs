//! What three real nodes keep in memory: idle, and with few and with many keys.

use std::time::Instant;

use bytes::Bytes;
use trefoil_client::Client;

use crate::cluster::BenchNodes;
use crate::progress::each;
use crate::{BenchError, BenchOutput};

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct MemoryBench {
    #[command(flatten)]
    nodes: BenchNodes,
    /// Different keys put before each look at memory, all in all.
    #[arg(long, value_delimiter = ',', default_value = "10000,1000000")]
    keys: Vec<usize>,
    /// Bytes of a value.
    #[arg(long, default_value_t = 256)]
    value: usize,
}

/// Runs everything and prints the figures.
///
/// # Errors
/// When the nodes do not start, or a put fails.
pub(crate) async fn run(options: MemoryBench, out: &mut BenchOutput) -> Result<(), BenchError> {
    let cluster = options.nodes.start()?;
    let client = Client::connect(cluster.endpoints.clone()).await?;
    out.line(&format!("resident MiB of idle nodes: {}", cluster.resident()));
    let mut there = 0;
    for keys in options.keys {
        let begun = Instant::now();
        write(&client, there..keys, options.value).await?;
        there = keys;
        out.line(&format!(
            "resident MiB with {there} keys, the last after {:.0} s: {}",
            begun.elapsed().as_secs_f64(),
            cluster.resident()
        ));
    }
    Ok(())
}

/// Puts each key of a range once.
///
/// # Errors
/// When a put fails.
pub(crate) async fn write(
    client: &Client,
    keys: std::ops::Range<usize>,
    bytes: usize,
) -> Result<(), BenchError> {
    let value = Bytes::from(vec![b'x'; bytes]);
    let put = |n| {
        let (cache, value) = (client.cache(), value.clone());
        async move { cache.put(key(n), value).await.map(drop) }
    };
    each(keys, "written", put).await.map(drop)
}

/// The key of a number.
pub(crate) fn key(n: usize) -> String {
    format!("key-{n}")
}
