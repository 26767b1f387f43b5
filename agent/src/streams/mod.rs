//! Work streams: one file per kind. The link reads the first frame and hands the stream here.
//!
//! A stream answers with one [`StreamReply`] and then carries its kind's own frames. Its two halves
//! are any byte streams, so that everything here is tested without a network.

mod batch;
mod check;
mod dial;
mod exec;
mod logs;
#[cfg(test)]
mod logs_tests;
mod pull;
mod relay;
mod search;
mod slots;
mod tail;

use std::sync::Arc;

use tianqi_common::clock::SharedClock;
use tianqi_common::id::InstanceId;
use tianqi_common::wire::frame::{self, FrameError, Limit};
use tianqi_common::wire::stream::{StreamOpen, StreamRefusal, StreamReply};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::{Notify, Semaphore};

use crate::docker::{Container, Docker, DockerError, DockerHandle};
use crate::guest::{Answer, Guests};

pub use check::SettingsCheck;
use slots::{Slot, Slots};

/// Programs and terminals of one instance at once; another is refused.
pub const MAX_PER_INSTANCE: usize = 64;
/// Searches for the last lines at once, each of which keeps some megabytes; another waits.
const TAILS: usize = 8;
/// Connections into one instance at once.
const MAX_DIALS: usize = 1_024;

/// What comes from the controller on one stream.
trait Source: AsyncRead + Send + Unpin + 'static {}
impl<T: AsyncRead + Send + Unpin + 'static> Source for T {}

/// What goes to the controller on one stream.
trait Sink: AsyncWrite + Send + Unpin {}
impl<T: AsyncWrite + Send + Unpin> Sink for T {}

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
    guests: Guests,
    pulled: Arc<Notify>,
    check: Arc<dyn SettingsCheck>,
    clock: SharedClock,
    slots: Slots,
    dials: Slots,
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
        guests: Guests,
        pulled: Arc<Notify>,
        check: Arc<dyn SettingsCheck>,
        clock: SharedClock,
    ) -> Self {
        let (slots, dials) = (Slots::new(MAX_PER_INSTANCE), Slots::new(MAX_DIALS));
        let tails = Arc::new(Semaphore::new(TAILS));
        Self { docker, guests, pulled, check, clock, slots, dials, tails }
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
            StreamOpen::Terminal(wanted) => {
                exec::serve_kept(self, wanted, reader, &mut writer).await
            }
            StreamOpen::Tcp(dial) => dial::tcp(self, dial, reader, &mut writer).await,
            StreamOpen::Udp(dial) => dial::udp(self, dial, reader, &mut writer).await,
            StreamOpen::Sftp(wanted) => dial::sftp(self, wanted, reader, &mut writer).await,
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

    fn slot(&self, instance: InstanceId) -> Result<Slot, StreamError> {
        self.slots.take(instance).ok_or_else(|| {
            let message =
                format!("{MAX_PER_INSTANCE} programs of this instance are open already; close one");
            StreamError::Refused(StreamRefusal::TooMany, message)
        })
    }

    fn dial_slot(&self, instance: InstanceId) -> Result<Slot, StreamError> {
        self.dials.take(instance).ok_or_else(|| {
            let message = format!("{MAX_DIALS} connections into this instance stand already");
            StreamError::Refused(StreamRefusal::TooMany, message)
        })
    }
}

fn refused(code: StreamRefusal, message: &str) -> StreamError {
    StreamError::Refused(code, message.to_owned())
}

/// Who serves a stream.
enum Found {
    /// The guest, which has opened it.
    Guest(UnixStream),
    /// The engine's exec, in this container.
    Container(Container),
}

/// Opens a stream by the guest that serves in the instance, or that can be started there. A guest
/// that serves is not asked of the engine, which may be restarting just now.
async fn by_guest(streams: &Streams, open: &StreamOpen) -> Result<Found, StreamError> {
    let Some(instance) = open.instance() else {
        return Err(refused(StreamRefusal::BadRequest, "the stream names no instance"));
    };
    if let Ok(answer) = streams.guests.open(instance, open).await {
        return opened(answer);
    }
    let docker = streams.docker();
    let container = container_of(&*docker, instance).await?;
    if !container.run.is_running() {
        let message = "the instance does not run; start it first";
        return Err(refused(StreamRefusal::NotRunning, message));
    }
    match streams.guests.start(instance, &container.id, open).await {
        Ok(answer) => opened(answer),
        Err(error) => {
            tracing::debug!(instance.id = %instance, %error, "the engine's exec serves a stream");
            Ok(Found::Container(container))
        }
    }
}

fn opened(answer: Answer) -> Result<Found, StreamError> {
    match answer {
        Answer::Open(guest) => Ok(Found::Guest(guest)),
        Answer::Refused(code, message) => Err(StreamError::Refused(code, message)),
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
