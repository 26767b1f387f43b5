//! Work streams: one file per kind. The link reads the first frame and hands the stream here.
//!
//! A stream answers with one [`StreamReply`] and then carries its kind's own frames. Its two halves
//! are any byte streams, so that everything here is tested without a network.

mod batch;
mod check;
mod exec;
mod logs;
#[cfg(test)]
mod logs_tests;
mod pull;
mod search;
mod slots;
mod tail;

use std::sync::Arc;

use tianqi_common::clock::SharedClock;
use tianqi_common::id::InstanceId;
use tianqi_common::wire::frame::{self, FrameError, Limit};
use tianqi_common::wire::stream::{StreamOpen, StreamRefusal, StreamReply};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, Semaphore};

use crate::docker::{Container, Docker, DockerError, DockerHandle};

pub use check::SettingsCheck;
use slots::Slots;

/// Streams into one instance at once; another is refused.
pub const MAX_PER_INSTANCE: usize = 64;
/// Searches for the last lines at once, each of which keeps some megabytes; another waits.
const TAILS: usize = 8;

/// Why a stream did not open or did not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// Told to the controller.
    #[error("{1}")]
    Refused(StreamRefusal, String),
    /// The connection to the controller failed.
    #[error("the stream to the controller failed")]
    Frame(#[from] FrameError),
}

impl From<DockerError> for StreamError {
    fn from(error: DockerError) -> Self {
        Self::Refused(StreamRefusal::Docker, error.to_string())
    }
}

/// Serves work streams.
#[derive(Clone)]
pub struct Streams {
    docker: DockerHandle,
    pulled: Arc<Notify>,
    check: Arc<dyn SettingsCheck>,
    clock: SharedClock,
    slots: Slots,
    tails: Arc<Semaphore>,
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams").finish_non_exhaustive()
    }
}

impl Streams {
    /// Serves streams on the engine in use; `pulled` is told of every image that arrived.
    pub fn new(
        docker: DockerHandle,
        pulled: Arc<Notify>,
        check: Arc<dyn SettingsCheck>,
        clock: SharedClock,
    ) -> Self {
        let tails = Arc::new(Semaphore::new(TAILS));
        Self { docker, pulled, check, clock, slots: Slots::default(), tails }
    }

    /// Serves one stream to its end. A failure concerns this stream alone and is logged here.
    pub async fn serve<R, W>(&self, open: StreamOpen, mut reader: R, mut writer: W)
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let kind = open.kind();
        let served = match open {
            StreamOpen::Exec(wanted) => exec::serve(self, wanted, reader, &mut writer).await,
            StreamOpen::Logs(wanted) => {
                logs::serve(self, logs::asked(&wanted), &mut reader, &mut writer).await
            }
            StreamOpen::LogQuery(wanted) => {
                logs::serve(self, wanted, &mut reader, &mut writer).await
            }
            StreamOpen::Pull(wanted) => pull::serve(self, wanted, &mut reader, &mut writer).await,
            StreamOpen::Check(settings) => check::serve(&*self.check, settings, &mut writer).await,
            StreamOpen::Terminal(_)
            | StreamOpen::Tcp(_)
            | StreamOpen::Udp(_)
            | StreamOpen::Sftp(_) => {
                let message = format!("this agent has no {kind}");
                Err(StreamError::Refused(StreamRefusal::Unsupported, message))
            }
        };
        match served {
            Ok(()) => {}
            Err(StreamError::Refused(code, message)) => {
                tracing::debug!(stream.kind = kind, error = %message, "stream refused");
                let reply = StreamReply::Refused { code, message };
                if let Err(error) = frame::write(&mut writer, &reply, Limit::OPEN).await {
                    tracing::debug!(stream.kind = kind, %error, "refusal not delivered");
                }
            }
            Err(StreamError::Frame(error)) => {
                tracing::debug!(stream.kind = kind, %error, "stream ended early");
            }
        }
    }

    fn docker(&self) -> Arc<dyn Docker> {
        self.docker.current()
    }
}

/// Tells the controller that the stream is open.
async fn accept<W: AsyncWrite + Unpin>(writer: &mut W) -> Result<(), StreamError> {
    Ok(frame::write(writer, &StreamReply::Open, Limit::OPEN).await?)
}

/// Returns the container of an instance: the one that runs, else the newest.
async fn container_of(docker: &dyn Docker, instance: InstanceId) -> Result<Container, StreamError> {
    let mut found = docker.containers(Some(instance)).await?;
    found.sort_by_key(|container| (container.run.is_running(), container.created_at));
    found.pop().ok_or_else(|| {
        let message = format!("instance {instance} has no container on this node");
        StreamError::Refused(StreamRefusal::NoContainer, message)
    })
}
