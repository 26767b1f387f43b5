//! The local Docker engine: one trait, the real engine behind it, and an in-memory one for tests.
//!
//! Only `engine/` knows bollard. Every call has a deadline, so that a stuck engine never holds the
//! loop: a stop waits longer than the grace it gives the container, everything else is short.
//! Containers are recognised by the label [`label::INSTANCE`]; nothing without it is ever touched.

pub mod attach;
pub mod endpoint;
pub mod engine;
pub mod error;
pub mod fake;
pub mod handle;
pub mod label;
pub mod model;
pub mod pull;
pub mod spec;
pub mod sweep;
pub mod walls;

use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use tianqi_common::id::InstanceId;
use tianqi_common::shell::SHELLS;
use tianqi_common::wire::inventory::DockerEngine;
use tianqi_common::wire::stream::{PtySize, RegistryCredentials};

pub use attach::{ExecReader, ExecSession, ExecWriter, Output, OutputKind, time_length};
pub use endpoint::Endpoint;
pub use engine::Engine;
pub use error::DockerError;
pub use handle::DockerHandle;
pub use model::{
    Container, ContainerUsage, CreateContainer, CreateVolume, DockerEvent, EngineFacts,
    ExecRequest, ExecState, ImageFacts, LogRequest, NetworkFacts, NetworkSpec, PullProgress, Run,
    Volume,
};

/// What a call answers.
pub type Reply<'a, T> = BoxFuture<'a, Result<T, DockerError>>;
/// Pieces that come one after another; it ends after the first error.
pub type Pieces<T> = BoxStream<'static, Result<T, DockerError>>;

/// Everything the agent asks of a Docker engine.
pub trait Docker: Send + Sync + 'static {
    /// Asks whether the engine answers.
    fn ping(&self) -> Reply<'_, ()>;

    /// Returns what the engine is. Engines older than API 1.41 are refused.
    fn engine(&self) -> Reply<'_, DockerEngine>;

    /// Returns what the engine can do, for deciding how containers are made.
    fn facts(&self) -> Reply<'_, EngineFacts>;

    /// Returns the containers with our label, those of one instance when `of` is given.
    fn containers(&self, of: Option<InstanceId>) -> Reply<'_, Vec<Container>>;

    /// Returns one container with our label, by Docker's id or name.
    fn inspect<'a>(&'a self, container: &'a str) -> Reply<'a, Container>;

    /// Makes a container and returns Docker's id.
    fn create<'a>(&'a self, container: &'a CreateContainer) -> Reply<'a, String>;

    /// Starts a container; one that runs already is fine.
    fn start<'a>(&'a self, container: &'a str) -> Reply<'a, ()>;

    /// Stops a container, with `SIGKILL` after `grace`; one that stands still already is fine.
    fn stop<'a>(&'a self, container: &'a str, grace: Duration) -> Reply<'a, ()>;

    /// Removes a container with its anonymous volumes, ending it first if it runs; one that is
    /// gone already is fine.
    fn remove<'a>(&'a self, container: &'a str) -> Reply<'a, ()>;

    /// Returns the volumes that carry the label of `instance`.
    fn volumes(&self, instance: InstanceId) -> Reply<'_, Vec<Volume>>;

    /// Makes a volume; one with that name is kept as it is.
    fn create_volume<'a>(&'a self, volume: &'a CreateVolume) -> Reply<'a, ()>;

    /// Removes a volume; one that is gone already is fine.
    fn remove_volume<'a>(&'a self, name: &'a str) -> Reply<'a, ()>;

    /// Makes the network of the instances when it is missing and returns how it stands. One that
    /// stands with other options is left and its true state returned.
    fn ensure_network<'a>(&'a self, network: &'a NetworkSpec) -> Reply<'a, NetworkFacts>;

    /// Returns an image of the node; nothing when it is not there.
    fn image<'a>(&'a self, reference: &'a str) -> Reply<'a, Option<ImageFacts>>;

    /// Fetches an image; the stream ends when it is on the node. Dropping the stream gives up.
    fn pull<'a>(
        &'a self,
        reference: &'a str,
        credentials: Option<RegistryCredentials>,
    ) -> Reply<'a, Pieces<PullProgress>>;

    /// Returns a container's output, one message as Docker kept it for each piece: a line with its end,
    /// or 16 KiB of a longer one, after its time if that was asked for.
    fn logs<'a>(&'a self, container: &'a str, wanted: LogRequest) -> Reply<'a, Pieces<Output>>;

    /// Returns what a running container uses.
    fn usage<'a>(&'a self, container: &'a str) -> Reply<'a, ContainerUsage>;

    /// Returns what happens to containers with our label from here on, until the engine goes.
    fn events(&self) -> Reply<'_, Pieces<DockerEvent>>;

    /// Starts a program in a running container, attached to its input and output.
    fn exec<'a>(&'a self, container: &'a str, request: ExecRequest) -> Reply<'a, ExecSession>;

    /// Tells the terminal of a program its new size.
    fn resize_exec<'a>(&'a self, exec: &'a str, size: PtySize) -> Reply<'a, ()>;

    /// Returns how a program stands. Docker may say that it runs for some milliseconds after its
    /// output ended.
    fn exec_state<'a>(&'a self, exec: &'a str) -> Reply<'a, ExecState>;

    /// Sends a signal (a name without `SIG`) to a program. Needs an engine on this machine.
    fn signal_exec<'a>(&'a self, exec: &'a str, signal: &'a str) -> Reply<'a, ()>;

    /// Returns whether `path` exists in the container's filesystem; runs nothing in it.
    fn path_exists<'a>(&'a self, container: &'a str, path: &'a str) -> Reply<'a, bool>;
}

/// Returns the paths of the shells that a container has, `bash` before `sh`. Nothing is run.
///
/// # Errors
///
/// [`DockerError`] when the engine does not answer or the container is gone.
pub async fn shells(
    docker: &dyn Docker,
    container: &str,
) -> Result<Vec<&'static str>, DockerError> {
    let mut found = Vec::new();
    for places in SHELLS {
        for path in places {
            if docker.path_exists(container, path).await? {
                found.push(path);
                break;
            }
        }
    }
    Ok(found)
}

/// Docker may say for some milliseconds that a program runs whose output has ended.
const EXIT_POLL: Duration = Duration::from_millis(10);
const EXIT_POLLS: u32 = 500;

/// Returns how a program whose output has ended did; nothing when it closed it and runs on.
///
/// # Errors
///
/// [`DockerError`] when the engine does not answer or the container is gone.
pub async fn exit_code(docker: &dyn Docker, exec: &str) -> Result<Option<i32>, DockerError> {
    for _ in 0..EXIT_POLLS {
        let state = docker.exec_state(exec).await?;
        if !state.running && state.exit_code.is_some() {
            return Ok(state.exit_code);
        }
        tokio::time::sleep(EXIT_POLL).await;
    }
    Ok(None)
}
