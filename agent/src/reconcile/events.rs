//! Docker's events, as a nudge to look.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::docker::DockerHandle;

/// Between two attempts to listen.
const PAUSE: Duration = Duration::from_secs(1);

/// Pokes the loop at every event that may change what it would do, and when the stream breaks,
/// until `cancel`.
pub(super) async fn follow(docker: DockerHandle, poke: Arc<Notify>, cancel: CancellationToken) {
    let mut exchanged = docker.watch();
    loop {
        let engine = exchanged.borrow_and_update().clone();
        let listen = async {
            if let Ok(mut events) = engine.events().await {
                while let Some(Ok(event)) = events.next().await {
                    if matters(&event.action) {
                        poke.notify_one();
                    }
                }
            }
            poke.notify_one();
            tokio::time::sleep(PAUSE).await;
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = exchanged.changed() => {
                if changed.is_err() {
                    return;
                }
                poke.notify_one();
            }
            () = listen => {}
        }
    }
}

/// Terminals and health checks make events all the time and change nothing.
fn matters(action: &str) -> bool {
    const IDLE: [&str; 8] =
        ["exec_", "health_status", "attach", "detach", "resize", "top", "archive-path", "kill"];
    !IDLE.iter().any(|idle| action.starts_with(idle))
}
