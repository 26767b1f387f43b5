//! What can go wrong with a Docker engine.

use std::time::Duration;

/// Why a call to the Docker engine failed. Messages carry Docker's own words.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DockerError {
    /// The engine has no such container, image, volume or exec.
    #[error("{message}")]
    NotFound {
        /// Docker's own words.
        message: String,
    },
    /// The name is taken or the thing is in use.
    #[error("{message}")]
    Conflict {
        /// Docker's own words.
        message: String,
    },
    /// The engine understood and refused.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Docker's own words.
        message: String,
    },
    /// The engine does not answer.
    #[error("docker engine at {endpoint} does not answer: {message}")]
    Unreachable {
        /// Where it was looked for.
        endpoint: String,
        /// What the system said.
        message: String,
    },
    /// The engine did not answer in time.
    #[error("docker engine did not answer {what} within {} s", after.as_secs())]
    TimedOut {
        /// What was asked.
        what: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The endpoint or its certificates cannot be used.
    #[error("{0}")]
    Endpoint(String),
    /// The engine said something that is not its API, or ended in the middle.
    #[error("docker engine answered unexpectedly to {what}: {message}")]
    Protocol {
        /// What was asked.
        what: &'static str,
        /// What was wrong.
        message: String,
    },
    /// This engine cannot do that.
    #[error("{0}")]
    Unsupported(String),
}

impl DockerError {
    /// Returns whether the engine said that the thing is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Returns whether the engine itself is in trouble, so that nothing is known about the thing
    /// that was asked for.
    #[must_use]
    pub fn is_engine_down(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::TimedOut { .. }
                | Self::Endpoint(_)
                | Self::Protocol { .. }
        )
    }
}
