//! A QUIC client, and a server, that say whatever a test wants, with a node's certificate or without one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tianqi_agent::enroll::Identity;
use tianqi_common::clock::UnixMillis;
use tianqi_common::id::BootId;
use tianqi_common::wire::frame::{self, Limit};
use tianqi_common::wire::hello::{Hello, HelloReply, decode_with_version, with_version};
use tianqi_common::wire::{ALPN, CloseCode, SERVER_NAME, VERSION, Version};
use tianqi_controller::core::ca::Ca;

use crate::deadline::Deadline;

/// A controller that says whatever a test wants, at the address and with the authority of a real one.
#[derive(Debug)]
pub struct RawServer {
    endpoint: Endpoint,
}

impl RawServer {
    /// Listens at `address`, once it is free, with a certificate of `ca`.
    pub async fn start(address: SocketAddr, ca: &Ca, now: UnixMillis) -> Self {
        let made = ca.server_certificate(now).expect("certificate");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("tls 1.3")
            .with_no_client_auth()
            .with_single_cert(made.chain, made.key)
            .expect("certificate");
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let tls = QuicServerConfig::try_from(tls).expect("quic");
        let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
        let deadline = Deadline::after(Duration::from_secs(30));
        loop {
            match Endpoint::server(config.clone(), address) {
                Ok(endpoint) => return Self { endpoint },
                Err(error) => deadline.pause_async(&error.to_string()).await,
            }
        }
    }

    /// Waits for the next agent, reads its hello, and welcomes it when `greets`.
    pub async fn accept(&self, greets: bool) -> (Connection, SendStream, RecvStream) {
        let quic = self.endpoint.accept().await.expect("endpoint").await.expect("handshake");
        let (mut send, mut recv) = quic.accept_bi().await.expect("control stream");
        frame::read_payload(&mut recv, Limit::HELLO).await.expect("hello").expect("hello");
        if greets {
            let welcome = HelloReply::Welcome { version: VERSION, now: UnixMillis(0) };
            let payload = with_version(VERSION, &welcome).expect("reply");
            frame::write_payload(&mut send, &payload, Limit::HELLO).await.expect("reply");
        }
        (quic, send, recv)
    }
}

/// Waits until the peer closes `quic` and returns its code.
///
/// # Panics
///
/// When it stays open for half a minute, or ends in another way.
pub async fn close_code(quic: &Connection) -> Option<CloseCode> {
    let closed = tokio::time::timeout(Duration::from_secs(30), quic.closed()).await;
    let closed = closed.expect("the connection was not closed");
    let ConnectionError::ApplicationClosed(closed) = closed else { panic!("closed by {closed}") };
    CloseCode::from_number(closed.error_code.into_inner())
}

/// A connection and the socket it stands on.
#[derive(Debug)]
pub struct Raw {
    /// The connection.
    pub quic: Connection,
    _endpoint: Endpoint,
}

impl Raw {
    /// Connects to `address`, trusting `ca_pem`, showing the certificate of `identity` if any.
    pub async fn connect(
        address: SocketAddr,
        ca_pem: &str,
        identity: Option<&Identity>,
        alpn: &[u8],
    ) -> Result<Self, ConnectionError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
            roots.add(certificate.expect("pem")).expect("root");
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("tls 1.3")
            .with_root_certificates(roots);
        let mut tls = match identity {
            Some(identity) => {
                let certificate =
                    CertificateDer::from_pem_slice(identity.certificate_pem.as_bytes());
                let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes());
                builder
                    .with_client_auth_cert(vec![certificate.expect("pem")], key.expect("key"))
                    .expect("certificate")
            }
            None => builder.with_no_client_auth(),
        };
        tls.alpn_protocols = vec![alpn.to_vec()];
        let tls = QuicClientConfig::try_from(tls).expect("quic");
        let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).expect("socket");
        let config = quinn::ClientConfig::new(Arc::new(tls));
        let quic = endpoint.connect_with(config, address, SERVER_NAME).expect("dial").await?;
        Ok(Self { quic, _endpoint: endpoint })
    }

    /// Says hello as a start of the agent that began at `started_at`.
    pub async fn hello(
        &self,
        identity: &Identity,
        started_at: UnixMillis,
        version: Version,
    ) -> (HelloReply, SendStream, RecvStream) {
        let hello = Hello {
            node: identity.node,
            boot: BootId::new(),
            started_at,
            now: started_at,
            program: "raw".to_owned(),
        };
        let (mut send, mut recv) = self.quic.open_bi().await.expect("control stream");
        let payload = with_version(version, &hello).expect("hello");
        frame::write_payload(&mut send, &payload, Limit::HELLO).await.expect("hello");
        let answer = frame::read_payload(&mut recv, Limit::HELLO).await.expect("answer");
        let (_, reply) = decode_with_version(&answer.expect("answer")).expect("reply");
        (reply, send, recv)
    }

    /// Says hello and expects to be served.
    pub async fn served(
        &self,
        identity: &Identity,
        started_at: UnixMillis,
    ) -> (SendStream, RecvStream) {
        let (reply, send, recv) = self.hello(identity, started_at, VERSION).await;
        assert!(matches!(reply, HelloReply::Welcome { .. }), "{reply:?}");
        (send, recv)
    }

    /// Waits until the controller closes the connection and returns its code.
    pub async fn close_code(&self) -> Option<CloseCode> {
        close_code(&self.quic).await
    }
}
