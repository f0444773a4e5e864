//! Progress on a terminal, and what takes so long that it is shown.

use std::future::Future;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinSet;
use trefoil_client::Error;

use crate::BenchError;

/// Calls under way at a time.
const AT_A_TIME: usize = 256;

/// Does something with each of many, some of them at a time.
pub(crate) async fn each<T, U, F>(
    all: impl IntoIterator<IntoIter: ExactSizeIterator<Item = T>>,
    what: &str,
    make: impl Fn(T) -> F,
) -> Result<Vec<U>, BenchError>
where
    U: Send + 'static,
    F: Future<Output = Result<U, Error>> + Send + 'static,
{
    let all = all.into_iter();
    let bar = bar(all.len() as u64, what)?;
    let mut made = Vec::with_capacity(all.len());
    let mut tasks = JoinSet::new();
    for (n, one) in all.enumerate() {
        if n >= AT_A_TIME {
            made.push(tasks.join_next().await.ok_or("no task is left")???);
            bar.inc(1);
        }
        tasks.spawn(make(one));
    }
    while let Some(one) = tasks.join_next().await {
        made.push(one??);
    }
    bar.finish_and_clear();
    Ok(made)
}

/// Lets seconds pass.
pub(crate) async fn wait(seconds: u64, what: &str) -> Result<(), BenchError> {
    let bar = bar(seconds, what)?;
    for _ in 0..seconds {
        tokio::time::sleep(Duration::from_secs(1)).await;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

fn bar(length: u64, what: &str) -> Result<ProgressBar, BenchError> {
    let bar = ProgressBar::new(length).with_message(what.to_owned());
    bar.set_style(ProgressStyle::with_template("{msg:16} {wide_bar} {pos}/{len}")?);
    Ok(bar)
}
