//! Following the pool's folder while the server runs.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::serve::{Repository, Seen};

/// Follows the pool's folder every `poll` until `stop` is cancelled. Returns at once if `poll` is
/// zero.
pub(super) async fn follow_pool(
    repository: Arc<Repository>,
    poll: Duration,
    stop: CancellationToken,
) {
    if poll.is_zero() {
        return;
    }
    let mut ticks = tokio::time::interval(poll);
    let mut seen = Seen::default();
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let repository = repository.clone();
        let look = move || {
            repository.follow(&mut seen);
            seen
        };
        match tokio::task::spawn_blocking(look).await {
            Ok(after) => seen = after,
            Err(error) => return tracing::error!(%error, "the pool is no longer followed"),
        }
    }
}
