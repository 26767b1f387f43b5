//! A real Docker engine, by bollard over our own connections. The only folder that knows bollard.
//!
//! Every request dials anew: an engine that was restarted is noticed at once, TLS material stays
//! in memory, and an exec's raw byte stream comes from the same place as everything else.

mod container;
mod create;
mod dial;
mod exec;
mod image;
mod logs;
mod system;
mod usage;

use std::sync::Arc;
use std::time::Duration;

use bollard::errors::Error;
use futures_util::stream::{Stream, StreamExt};
use hyper::body::{Body, Incoming};
use hyper_util::rt::TokioIo;
use tianqi_common::id::InstanceId;
use tianqi_common::wire::inventory::DockerEngine;
use tianqi_common::wire::stream::{PtySize, RegistryCredentials};

use self::dial::Dialer;
use super::endpoint::Endpoint;
use super::{
    Container, ContainerUsage, CreateContainer, CreateVolume, Docker, DockerError, DockerEvent,
    EngineFacts, ExecRequest, ExecSession, ExecState, ImageFacts, LogRequest, NetworkFacts,
    NetworkSpec, Output, Pieces, PullProgress, Reply, Volume,
};

/// For questions that an engine answers from memory.
const QUICK: Duration = Duration::from_secs(15);
/// For work on disks, cgroups and devices.
const SLOW: Duration = Duration::from_secs(180);
/// What a stop may take beyond the grace it gives the container.
const AFTER_GRACE: Duration = Duration::from_secs(30);
/// Longest silence while an image is fetched; unpacking a large layer says nothing for minutes.
const PULL_SILENCE: Duration = Duration::from_secs(900);

/// A Docker engine at an endpoint. Making one dials nothing, so an engine that is down is no
/// reason not to have it.
pub struct Engine {
    dialer: Arc<Dialer>,
    client: bollard::Docker,
}

impl Engine {
    /// Checks the endpoint and its certificates.
    ///
    /// # Errors
    ///
    /// [`DockerError::Endpoint`] when they cannot be used.
    pub fn new(endpoint: Endpoint) -> Result<Self, DockerError> {
        let dialer = Arc::new(Dialer::new(endpoint)?);
        let shared = dialer.clone();
        // bollard's own timeout would end a long stop; every call here brings its deadline.
        let client = bollard::Docker::connect_with_custom_transport(
            move |request| {
                let dialer = shared.clone();
                async move { send(&dialer, request).await }
            },
            Some("http://docker"),
            SLOW.as_secs() * 10,
            bollard::API_DEFAULT_VERSION,
        )
        .map_err(|error| DockerError::Endpoint(error.to_string()))?;
        if dialer.endpoint().is_in_clear() {
            tracing::warn!(
                "docker engine at {} is spoken to WITHOUT TLS: anybody on the way can read \
                 everything and take over that machine; give the node CA, certificate and key",
                dialer.endpoint()
            );
        }
        Ok(Self { dialer, client })
    }

    /// Runs one call with its deadline and turns bollard's error into ours.
    async fn within<T>(
        &self,
        what: &'static str,
        deadline: Duration,
        call: impl Future<Output = Result<T, Error>> + Send,
    ) -> Result<T, DockerError> {
        match tokio::time::timeout(deadline, call).await {
            Ok(answer) => answer.map_err(|error| self.error(what, deadline, error)),
            Err(_) => Err(DockerError::TimedOut { what, after: deadline }),
        }
    }

    fn error(&self, what: &'static str, after: Duration, error: Error) -> DockerError {
        translate(self.dialer.endpoint(), what, after, error)
    }

    /// Turns a stream of bollard's into ours; it ends after the first error.
    fn pieces<T: Send + 'static>(
        &self,
        what: &'static str,
        stream: impl Stream<Item = Result<T, Error>> + Send + 'static,
    ) -> Pieces<T> {
        let endpoint = self.dialer.endpoint().clone();
        let mut failed = false;
        stream
            .map(move |item| item.map_err(|error| translate(&endpoint, what, SLOW, error)))
            .take_while(move |item| {
                let go_on = !failed;
                failed |= item.is_err();
                std::future::ready(go_on)
            })
            .boxed()
    }
}

/// Sends one request on a connection of its own.
async fn send<B>(
    dialer: &Dialer,
    request: hyper::Request<B>,
) -> Result<hyper::Response<Incoming>, Error>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let io = dialer.dial().await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    // The task ends when the answer was read or dropped.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::trace!(%error, "connection to the docker engine ended");
        }
    });
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = path.parse().map_err(|_| std::io::Error::from(std::io::ErrorKind::InvalidInput))?;
    parts.headers.insert(hyper::header::HOST, hyper::header::HeaderValue::from_static("docker"));
    Ok(sender.send_request(hyper::Request::from_parts(parts, body)).await?)
}

#[allow(clippy::wildcard_enum_match_arm, reason = "bollard's list depends on its features")]
fn translate(
    endpoint: &Endpoint,
    what: &'static str,
    after: Duration,
    error: Error,
) -> DockerError {
    let unreachable =
        |message: String| DockerError::Unreachable { endpoint: endpoint.to_string(), message };
    match error {
        Error::DockerResponseServerError { status_code: 404, message } => {
            DockerError::NotFound { message }
        }
        Error::DockerResponseServerError { status_code: 409, message } => {
            DockerError::Conflict { message }
        }
        Error::DockerResponseServerError { status_code: status, message } => {
            DockerError::Refused { status, message }
        }
        Error::DockerStreamError { error } => DockerError::Refused { status: 500, message: error },
        Error::RequestTimeoutError => DockerError::TimedOut { what, after },
        Error::IOError { err } => unreachable(err.to_string()),
        Error::HyperResponseError { err } => unreachable(chain(&err)),
        other => DockerError::Protocol { what, message: chain(&other) },
    }
}

/// Puts an error and its causes into one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

impl Docker for Engine {
    fn ping(&self) -> Reply<'_, ()> {
        Box::pin(async { self.within("ping", QUICK, self.client.ping()).await.map(drop) })
    }

    fn engine(&self) -> Reply<'_, DockerEngine> {
        Box::pin(self.read_engine())
    }

    fn facts(&self) -> Reply<'_, EngineFacts> {
        Box::pin(self.read_facts())
    }

    fn containers(&self, of: Option<InstanceId>) -> Reply<'_, Vec<Container>> {
        Box::pin(self.list_containers(of))
    }

    fn inspect<'a>(&'a self, container: &'a str) -> Reply<'a, Container> {
        Box::pin(self.inspect_ours(container))
    }

    fn create<'a>(&'a self, container: &'a CreateContainer) -> Reply<'a, String> {
        Box::pin(self.create_container(container))
    }

    fn start<'a>(&'a self, container: &'a str) -> Reply<'a, ()> {
        Box::pin(self.start_container(container))
    }

    fn stop<'a>(&'a self, container: &'a str, grace: Duration) -> Reply<'a, ()> {
        Box::pin(self.stop_container(container, grace))
    }

    fn remove<'a>(&'a self, container: &'a str) -> Reply<'a, ()> {
        Box::pin(self.remove_container(container))
    }

    fn volumes(&self, instance: InstanceId) -> Reply<'_, Vec<Volume>> {
        Box::pin(self.list_volumes(instance))
    }

    fn create_volume<'a>(&'a self, volume: &'a CreateVolume) -> Reply<'a, ()> {
        Box::pin(self.make_volume(volume))
    }

    fn remove_volume<'a>(&'a self, name: &'a str) -> Reply<'a, ()> {
        Box::pin(self.drop_volume(name))
    }

    fn ensure_network<'a>(&'a self, network: &'a NetworkSpec) -> Reply<'a, NetworkFacts> {
        Box::pin(self.make_network(network))
    }

    fn image<'a>(&'a self, reference: &'a str) -> Reply<'a, Option<ImageFacts>> {
        Box::pin(self.read_image(reference))
    }

    fn pull<'a>(
        &'a self,
        reference: &'a str,
        credentials: Option<RegistryCredentials>,
    ) -> Reply<'a, Pieces<PullProgress>> {
        Box::pin(std::future::ready(Ok(self.pull_image(reference, credentials))))
    }

    fn logs<'a>(&'a self, container: &'a str, wanted: LogRequest) -> Reply<'a, Pieces<Output>> {
        Box::pin(self.read_logs(container, wanted))
    }

    fn usage<'a>(&'a self, container: &'a str) -> Reply<'a, ContainerUsage> {
        Box::pin(self.read_usage(container))
    }

    fn events(&self) -> Reply<'_, Pieces<DockerEvent>> {
        Box::pin(std::future::ready(Ok(self.follow_events())))
    }

    fn exec<'a>(&'a self, container: &'a str, request: ExecRequest) -> Reply<'a, ExecSession> {
        Box::pin(self.start_exec(container, request))
    }

    fn resize_exec<'a>(&'a self, exec: &'a str, size: PtySize) -> Reply<'a, ()> {
        Box::pin(self.resize(exec, size))
    }

    fn exec_state<'a>(&'a self, exec: &'a str) -> Reply<'a, ExecState> {
        Box::pin(self.read_exec(exec))
    }

    fn signal_exec<'a>(&'a self, exec: &'a str, signal: &'a str) -> Reply<'a, ()> {
        Box::pin(self.signal(exec, signal))
    }

    fn path_exists<'a>(&'a self, container: &'a str, path: &'a str) -> Reply<'a, bool> {
        Box::pin(self.has_path(container, path))
    }
}
