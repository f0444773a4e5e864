//! Trying again what is harmless to repeat.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use trefoil_proto::internal::v1::Refusal;
use trefoil_proto::reason::Retry;

const PAUSE: Duration = Duration::from_millis(200);

/// Tries until the deadline, while that can help.
pub(crate) async fn repeat<T, F>(
    deadline: Instant,
    mut attempt: impl FnMut() -> F,
) -> Result<T, Refusal>
where
    F: Future<Output = Result<T, Refusal>>,
{
    loop {
        match attempt().await {
            Err(refusal) if may_help(&refusal) && Instant::now() + PAUSE < deadline => {
                sleep(PAUSE).await;
            }
            ended => return ended,
        }
    }
}

/// Whether the same command may fare better a little later.
pub(crate) fn may_help(refusal: &Refusal) -> bool {
    refusal.reason().row().retry != Retry::Never
}
