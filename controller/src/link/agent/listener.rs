//! The UDP port: accepts, limits, and hands each connection to what its ALPN says.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{ConnectionError, Endpoint, EndpointConfig, Incoming, TransportConfig, VarInt};
use socket2::{Domain, Protocol, Socket, Type};
use tianqi_common::clock::{SharedClock, UnixMillis};
use tianqi_common::wire::{
    ALPN, ALPN_JOIN, CloseCode, IDLE_TIMEOUT_S, KEEP_ALIVE_S, VERSION, Version,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::limit::PerAddress;
use super::registry::Registry;
use super::tls::{self, CurrentCertificate};
use super::{connection, enroll};
use crate::core::ca::{Ca, CaError};
use crate::link::directory::{NodeDirectory, Refusal};
use crate::link::samples::SampleSender;
use crate::link::{AgentEvent, Link};

/// How long a TLS handshake, a hello or a join may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Socket buffers; with the kernel's default, bulk transfers lose packets on loopback already.
const SOCKET_BUFFER: usize = 8 << 20;
/// TLS alerts (RFC 8446) as QUIC carries them.
const ALERTS: u64 = 0x100;
const CERTIFICATE_EXPIRED: u64 = ALERTS + 45;
const UNKNOWN_CA: u64 = ALERTS + 48;
const NO_APPLICATION_PROTOCOL: u64 = ALERTS + 120;

/// Where the listener stands and what it allows.
#[derive(Clone, Copy, Debug)]
pub struct LinkConfig {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Connections at once; more are refused.
    pub max_connections: usize,
    /// Handshakes at once; above half of it, addresses must prove themselves first.
    pub max_handshakes: usize,
    /// Joins of one address per minute; more are refused.
    pub joins_per_minute: u32,
}

impl LinkConfig {
    /// Listens at `listen` with the usual limits.
    #[must_use]
    pub fn at(listen: SocketAddr) -> Self {
        Self { listen, max_connections: 20_000, max_handshakes: 1_024, joins_per_minute: 60 }
    }
}

/// What the link needs of the process.
pub struct LinkParts<D> {
    /// Where it listens.
    pub config: LinkConfig,
    /// Who signs.
    pub ca: Arc<Ca>,
    /// Who knows the nodes.
    pub directory: Arc<D>,
    /// What the time is.
    pub clock: SharedClock,
    /// Where events go. When it is full, the connection that has one waits.
    pub events: mpsc::Sender<AgentEvent>,
    /// Where samples go. When it is full, the oldest is dropped.
    pub samples: SampleSender,
}

impl<D> std::fmt::Debug for LinkParts<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkParts").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Why the listener could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be bound.
    #[error(
        "cannot listen for agents at udp {address}; is it taken, or not an address of this machine?"
    )]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The authority failed.
    #[error("the certificate authority cannot make the server's certificate")]
    Ca(#[source] CaError),
    /// TLS refused the configuration.
    #[error("tls refused the configuration")]
    Tls(#[source] rustls::Error),
    /// The crypto provider lacks a suite that QUIC needs.
    #[error("the crypto provider lacks TLS_AES_128_GCM_SHA256, which quic needs")]
    Suite,
}

/// The running listener. Stop it with [`LinkServer::stop`].
#[derive(Debug)]
pub struct LinkServer {
    endpoint: Endpoint,
    address: SocketAddr,
    registry: Arc<Registry>,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

/// What every connection's tasks share.
pub(super) struct Shared<D> {
    pub(super) ca: Arc<Ca>,
    pub(super) directory: Arc<D>,
    pub(super) clock: SharedClock,
    pub(super) events: mpsc::Sender<AgentEvent>,
    pub(super) samples: SampleSender,
    pub(super) registry: Arc<Registry>,
    pub(super) joins: PerAddress,
    pub(super) version: Version,
    max_handshakes: usize,
    handshakes: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl Link {
    /// Listens for agents.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub fn start<D: NodeDirectory>(&self, parts: LinkParts<D>) -> Result<LinkServer, StartError> {
        let LinkParts { config, ca, directory, clock, events, samples } = parts;
        let (current, renew_at) = CurrentCertificate::make(&ca, clock.now())?;
        let current = Arc::new(current);
        let crypto = tls::server(&ca, current.clone(), clock.clone())?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        server.transport_config(Arc::new(transport()));
        let failed = |source| StartError::Bind { address: config.listen, source };
        let socket = bind(config.listen).map_err(failed)?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = Endpoint::new(EndpointConfig::default(), Some(server), socket, runtime)
            .map_err(failed)?;
        let address = endpoint.local_addr().map_err(failed)?;
        let shared = Arc::new(Shared {
            ca,
            directory,
            clock,
            events,
            samples,
            registry: self.registry.clone(),
            joins: PerAddress::new(config.joins_per_minute),
            version: VERSION,
            max_handshakes: config.max_handshakes,
            handshakes: Arc::new(Semaphore::new(config.max_handshakes)),
            connections: Arc::new(Semaphore::new(config.max_connections)),
        });
        let stopping = CancellationToken::new();
        let tasks = TaskTracker::new();
        let renewal = renew_server_certificate(shared.clone(), current, renew_at);
        tasks.spawn(stopping.clone().run_until_cancelled_owned(renewal));
        tasks.spawn(accept(endpoint.clone(), shared, stopping.clone(), tasks.clone()));
        let registry = self.registry.clone();
        tracing::info!("listening for agents at udp {address}");
        Ok(LinkServer { endpoint, address, registry, stopping, tasks })
    }
}

impl LinkServer {
    /// Returns where it listens, with the port that the system chose.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Says goodbye to every agent, closes the connections and frees the port.
    pub async fn stop(self) {
        self.stopping.cancel();
        for connection in self.registry.all() {
            connection.say_goodbye(CloseCode::Shutdown, "the controller is going away");
        }
        self.tasks.close();
        // Each connection leaves by itself within a second; a peer that does not listen is cut off.
        let _ = tokio::time::timeout(Duration::from_secs(3), self.tasks.wait()).await;
        self.endpoint.close(close_code(CloseCode::Shutdown), b"the controller is going away");
        self.endpoint.wait_idle().await;
    }
}

pub(super) fn close_code(code: CloseCode) -> VarInt {
    VarInt::from_u32(code as u32)
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .keep_alive_interval(Some(Duration::from_secs(KEEP_ALIVE_S)))
        .max_idle_timeout(quinn::IdleTimeout::try_from(Duration::from_secs(IDLE_TIMEOUT_S)).ok())
        // The agent opens the control stream and one stream of samples, nothing else.
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(1))
        .datagram_receive_buffer_size(None);
    transport
}

fn bind(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    // The kernel grants what its own limit allows; less only costs speed.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Makes a new server certificate at 2/3 of the life of the last.
async fn renew_server_certificate<D: NodeDirectory>(
    shared: Arc<Shared<D>>,
    current: Arc<CurrentCertificate>,
    mut renew_at: UnixMillis,
) {
    /// The wall clock may be set at any time, so it is looked at again after this long at most.
    const LOOK_AGAIN: Duration = Duration::from_secs(3_600);
    loop {
        let wait = renew_at.since(shared.clock.now()).clamp(Duration::from_millis(100), LOOK_AGAIN);
        tokio::time::sleep(wait).await;
        let now = shared.clock.now();
        if now < renew_at {
            continue;
        }
        match current.renew(&shared.ca, now) {
            Ok(next) => {
                renew_at = next;
                tracing::info!("the server certificate for agents was renewed");
            }
            Err(error) => {
                tracing::error!(error = %error, "the server certificate for agents was not renewed");
                renew_at = now.plus(LOOK_AGAIN);
            }
        }
    }
}

async fn accept<D: NodeDirectory>(
    endpoint: Endpoint,
    shared: Arc<Shared<D>>,
    stopping: CancellationToken,
    tasks: TaskTracker,
) {
    while let Some(Some(incoming)) = stopping.run_until_cancelled(endpoint.accept()).await {
        let Ok(connection) = shared.connections.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let Ok(handshake) = shared.handshakes.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let is_busy = shared.handshakes.available_permits() < shared.max_handshakes / 2;
        if is_busy && incoming.may_retry() {
            // Only fails when the address is proven already.
            let _ = incoming.retry();
            continue;
        }
        tasks.spawn(serve(shared.clone(), incoming, handshake, connection));
    }
}

async fn serve<D: NodeDirectory>(
    shared: Arc<Shared<D>>,
    incoming: Incoming,
    handshake: OwnedSemaphorePermit,
    _connection: OwnedSemaphorePermit,
) {
    let address = incoming.remote_address();
    let Ok(mut connecting) = incoming.accept() else { return };
    let established = tokio::time::timeout(PATIENCE, async {
        let alpn = connecting.handshake_data().await.ok().and_then(alpn);
        (alpn, connecting.await)
    });
    let (alpn, established) = match established.await {
        Ok(established) => established,
        Err(_) => return tracing::debug!("a handshake from {address} was not finished in time"),
    };
    drop(handshake);
    match (alpn.as_deref(), established) {
        (Some(ALPN), Ok(quic)) => connection::serve(shared, quic).await,
        (Some(ALPN_JOIN), Ok(quic)) => enroll::serve(&shared, quic).await,
        (_, Ok(quic)) => quic.close(close_code(CloseCode::Protocol), b"unknown protocol"),
        (alpn, Err(error)) => refused_handshake(&shared, address, alpn, &error).await,
    }
}

fn alpn(data: Box<dyn std::any::Any>) -> Option<Vec<u8>> {
    data.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?.protocol
}

/// Writes down why a handshake failed, as far as it can be told from here. Machines that joined
/// already try again and again, so those are logged only.
async fn refused_handshake<D: NodeDirectory>(
    shared: &Shared<D>,
    address: SocketAddr,
    alpn: Option<&[u8]>,
    error: &ConnectionError,
) {
    let (code, message) = match error {
        ConnectionError::ConnectionClosed(closed) => match u64::from(closed.error_code) {
            UNKNOWN_CA => (
                "fingerprint",
                "the machine's token or identity names another controller's fingerprint",
            ),
            CERTIFICATE_EXPIRED => {
                ("clock_skew", "by the machine's clock this controller's certificate is not valid")
            }
            _ => ("handshake", "the machine ended the handshake"),
        },
        ConnectionError::TransportError(error) => match u64::from(error.code) {
            NO_APPLICATION_PROTOCOL => (
                "version",
                "the machine speaks no version of the protocol that this controller knows",
            ),
            _ => ("handshake", "the machine's handshake was refused"),
        },
        ConnectionError::VersionMismatch
        | ConnectionError::ApplicationClosed(_)
        | ConnectionError::Reset
        | ConnectionError::TimedOut
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => ("handshake", "the handshake was not finished"),
    };
    tracing::info!(error = %error, "a handshake from {address} failed: {message}");
    let is_join = alpn == Some(ALPN_JOIN) || code == "version";
    if is_join && code != "handshake" && shared.joins.allow(address.ip(), shared.clock.monotonic())
    {
        let message = message.to_owned();
        shared.directory.record_refusal(Refusal { address, code, message, node: None }).await;
    }
}
