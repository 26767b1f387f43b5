//! The engine in use, which can be exchanged while everything runs.

use std::sync::Arc;

use tokio::sync::watch;

use super::Docker;

/// The Docker engine in use. Clones share it; an exchange reaches all of them at their next call.
#[derive(Clone)]
pub struct DockerHandle {
    current: Arc<watch::Sender<Arc<dyn Docker>>>,
}

impl DockerHandle {
    /// Starts with `docker`.
    #[must_use]
    pub fn new(docker: Arc<dyn Docker>) -> Self {
        Self { current: Arc::new(watch::Sender::new(docker)) }
    }

    /// Returns the engine in use. Take it for one piece of work, not for good.
    #[must_use]
    pub fn current(&self) -> Arc<dyn Docker> {
        self.current.borrow().clone()
    }

    /// Uses `docker` from here on. Calls on the way end with the old engine.
    pub fn swap(&self, docker: Arc<dyn Docker>) {
        self.current.send_replace(docker);
    }

    /// Returns a receiver that changes at every exchange.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<dyn Docker>> {
        self.current.subscribe()
    }
}

impl std::fmt::Debug for DockerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DockerHandle").finish_non_exhaustive()
    }
}
