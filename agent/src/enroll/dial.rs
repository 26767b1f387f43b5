//! Dialling the controller, and saying in words why it did not work.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, EndpointConfig, IdleTimeout,
    TransportConfig, VarInt,
};
use socket2::{Domain, Protocol, Socket, Type};
use tianqi_common::clock::SharedClock;
use tianqi_common::wire::{
    ALPN, ALPN_JOIN, CloseCode, IDLE_TIMEOUT_S, KEEP_ALIVE_S, MAX_WORK_STREAMS, SERVER_NAME,
};

use super::{Identity, tls};

/// How long one address may take to answer.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;
/// Socket buffers; with the kernel's default, bulk transfers lose packets on loopback already.
const SOCKET_BUFFER: usize = 8 << 20;
/// TLS alerts (RFC 8446) as QUIC carries them.
const ALERTS: u64 = 0x100;
const CERTIFICATE_EXPIRED: u64 = ALERTS + 45;
const UNKNOWN_CA: u64 = ALERTS + 48;
const NO_APPLICATION_PROTOCOL: u64 = ALERTS + 120;

/// Why the controller was not reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The address does not resolve.
    #[error("{address} is not an address: write HOST:PORT, such as controller.example.org:8891")]
    Address {
        /// What was given.
        address: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No socket could be opened.
    #[error("no UDP socket could be opened")]
    Socket(#[source] io::Error),
    /// Nobody answers.
    #[error("{0} does not answer; is the controller running and UDP to that port open?")]
    Silent(String),
    /// The controller has another authority.
    #[error(
        "{0} is not the controller that the fingerprint names; copy a new token from the right one"
    )]
    Fingerprint(String),
    /// By this machine's clock the controller's certificate is not valid.
    #[error(
        "by this machine's clock the certificate of {0} is not valid; set the clock (timedatectl set-ntp true)"
    )]
    Clock(String),
    /// No protocol in common.
    #[error("{0} speaks another version of the protocol; install the agent that came with it")]
    Version(String),
    /// The controller closed the connection and said why.
    #[error("the controller refused: {reason}")]
    Closed {
        /// The controller's code, when this version knows it.
        code: Option<CloseCode>,
        /// The controller's words.
        reason: String,
    },
    /// The identity cannot be used for TLS.
    #[error("this node's identity cannot be used")]
    Identity(#[source] rustls::Error),
    /// Anything else.
    #[error("the connection to {address} failed")]
    Failed {
        /// The controller.
        address: String,
        /// What QUIC said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl DialError {
    /// Puts into words why a connection ended.
    pub(crate) fn from_end(address: &str, error: ConnectionError) -> Self {
        let alert = match &error {
            ConnectionError::TransportError(error) => u64::from(error.code),
            ConnectionError::ConnectionClosed(closed) => u64::from(closed.error_code),
            ConnectionError::ApplicationClosed(closed) => {
                let code = CloseCode::from_number(closed.error_code.into_inner());
                let reason = String::from_utf8_lossy(&closed.reason).chars().take(300).collect();
                return Self::Closed { code, reason };
            }
            ConnectionError::TimedOut => return Self::Silent(address.to_owned()),
            ConnectionError::VersionMismatch => return Self::Version(address.to_owned()),
            ConnectionError::Reset
            | ConnectionError::LocallyClosed
            | ConnectionError::CidsExhausted => 0,
        };
        let address = address.to_owned();
        match alert {
            UNKNOWN_CA => Self::Fingerprint(address),
            CERTIFICATE_EXPIRED => Self::Clock(address),
            NO_APPLICATION_PROTOCOL => Self::Version(address),
            _ => Self::Failed { address, source: Box::new(error) },
        }
    }
}

/// A connection together with the socket it stands on.
#[derive(Debug)]
pub(crate) struct Dialled {
    pub(crate) quic: Connection,
    endpoint: Endpoint,
}

impl Dialled {
    /// Closes the connection and waits until the controller was told.
    pub(crate) async fn close(self, code: CloseCode, reason: &str) {
        self.quic.close(VarInt::from_u32(code as u32), reason.as_bytes());
        // Waits for acknowledgement; a controller that is gone gives none.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }
}

/// Dials as a node that has joined.
pub(crate) async fn as_node(identity: &Identity, clock: SharedClock) -> Result<Dialled, DialError> {
    let tls = tls::by_identity(identity, ALPN, clock).map_err(DialError::Identity)?;
    dial(&identity.controller, tls).await
}

/// Dials to renew an expired certificate, showing it.
pub(super) async fn to_renew(
    identity: &Identity,
    clock: SharedClock,
) -> Result<Dialled, DialError> {
    let tls = tls::by_identity(identity, ALPN_JOIN, clock).map_err(DialError::Identity)?;
    dial(&identity.controller, tls).await
}

/// Dials as a machine that has only a token.
pub(super) async fn to_join(
    controller: &str,
    fingerprint: [u8; 32],
    clock: SharedClock,
) -> Result<Dialled, DialError> {
    let tls = tls::by_fingerprint(fingerprint, ALPN_JOIN, clock).map_err(DialError::Identity)?;
    dial(controller, tls).await
}

async fn dial(controller: &str, tls: QuicClientConfig) -> Result<Dialled, DialError> {
    let unresolved = |source| DialError::Address { address: controller.to_owned(), source };
    let addresses = tokio::net::lookup_host(controller).await.map_err(unresolved)?;
    let mut config = ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport()));
    let mut failed = unresolved(io::Error::other("the name has no address"));
    for address in addresses.take(MAX_ADDRESSES) {
        match dial_one(controller, address, config.clone()).await {
            Ok(dialled) => return Ok(dialled),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

async fn dial_one(
    controller: &str,
    address: SocketAddr,
    config: ClientConfig,
) -> Result<Dialled, DialError> {
    let socket = socket_for(address).map_err(DialError::Socket)?;
    let runtime = Arc::new(quinn::TokioRuntime);
    let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, runtime)
        .map_err(DialError::Socket)?;
    let connecting = endpoint.connect_with(config, address, SERVER_NAME).map_err(|error| {
        DialError::Failed { address: controller.to_owned(), source: Box::new(error) }
    })?;
    match tokio::time::timeout(DIAL_TIMEOUT, connecting).await {
        Ok(Ok(quic)) => Ok(Dialled { quic, endpoint }),
        Ok(Err(error)) => {
            // The controller learns of the refusal before the socket goes.
            let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
            Err(DialError::from_end(controller, error))
        }
        Err(_) => Err(DialError::Silent(controller.to_owned())),
    }
}

fn socket_for(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    // The kernel grants what its own limit allows; less only costs speed.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
    };
    socket.bind(&any.into())?;
    Ok(socket.into())
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .keep_alive_interval(Some(Duration::from_secs(KEEP_ALIVE_S)))
        .max_idle_timeout(IdleTimeout::try_from(Duration::from_secs(IDLE_TIMEOUT_S)).ok())
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_WORK_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None);
    transport
}
