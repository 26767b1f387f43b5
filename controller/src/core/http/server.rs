//! The port: takes connections in, holds clients to their time, and ends what is open in order.
//!
//! A connection counts against its address and against all until its last byte, also after it became
//! a WebSocket. A client has a limited time for its TLS handshake and for the head of each request; a
//! client that only connects is closed after that. Answers may take as long as they like.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::proxy::{TrustedProxies, counted_as};
use crate::core::slots::{Slot, Slots};
use crate::core::tls::Current;

/// Longest pause for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Pause after the system refused a connection, such as for want of file descriptors.
const BACK_OFF: Duration = Duration::from_millis(100);
/// What a connection holds of a head that is not complete. Heads that fit and are over the limits of
/// `core/http.rs` get a clear answer; one over this gets a bare 431 and is closed.
const HEAD_BUFFER: usize = 64 << 10;
/// The same for HTTP/2, which counts 32 bytes more for each header.
const HEAD_LIST: u32 = 64 << 10;
/// Requests at once on one HTTP/2 connection.
const STREAMS: u32 = 128;
/// How often a silent HTTP/2 client is asked whether it lives, and how long it may take to answer.
const PING: Duration = Duration::from_secs(20);

/// What a client may do to the port.
#[derive(Clone, Debug)]
pub struct PortLimits {
    /// How long the head of a request may take, and how long a connection may stand idle.
    pub head_time: Duration,
    /// Connections in all.
    pub connections: usize,
    /// Connections of one address; trusted proxies, which speak for many, have no such limit.
    pub connections_per_address: usize,
    /// The proxies.
    pub proxies: TrustedProxies,
}

/// Whether the port itself speaks TLS; an extension of every request.
#[derive(Clone, Copy, Debug)]
pub struct OverTls(pub bool);

struct Port {
    router: Router,
    tls: Option<Current>,
    limits: PortLimits,
    all: Slots<()>,
    by_address: Slots<IpAddr>,
    stop: CancellationToken,
}

/// Serves until `stop`, then lets requests end that are under way.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Current>,
    router: Router,
    limits: PortLimits,
    stop: CancellationToken,
) {
    let port = Arc::new(Port {
        router,
        tls,
        all: Slots::new(limits.connections),
        by_address: Slots::new(limits.connections_per_address),
        limits,
        stop,
    });
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = port.stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, peer)) = accepted else {
            tokio::time::sleep(BACK_OFF).await;
            continue;
        };
        match port.place(peer.ip()) {
            Some(place) => {
                connections.spawn(port.clone().talk(Held { stream, _place: place }, peer));
            }
            None => tracing::debug!(%peer, "connection refused: too many are open"),
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// A connection's place among those of its address and among all.
type Place = (Slot<()>, Option<Slot<IpAddr>>);

impl Port {
    fn place(&self, peer: IpAddr) -> Option<Place> {
        let all = self.all.take(())?;
        if self.limits.proxies.trusts(peer) {
            return Some((all, None));
        }
        let own = self.by_address.take(counted_as(peer))?;
        Some((all, Some(own)))
    }

    async fn talk(self: Arc<Self>, stream: Held, peer: SocketAddr) {
        // Keystrokes are small: they must not wait to be sent together.
        let _ = stream.stream.set_nodelay(true);
        let Some(tls) = &self.tls else { return self.converse(stream, peer).await };
        let handshake = TlsAcceptor::from(tls.get()).accept(stream);
        let handshake = tokio::select! {
            () = self.stop.cancelled() => return,
            handshake = tokio::time::timeout(HANDSHAKE, handshake) => handshake,
        };
        match handshake {
            Ok(Ok(stream)) => self.converse(stream, peer).await,
            Ok(Err(error)) => tracing::debug!(%error, %peer, "TLS handshake failed"),
            Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
        }
    }

    async fn converse<S>(&self, stream: S, peer: SocketAddr)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let has_asked = Arc::new(AtomicBool::new(false));
        let (router, over_tls) = (self.router.clone(), OverTls(self.tls.is_some()));
        let asked = has_asked.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            asked.store(true, Ordering::Relaxed);
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(peer));
            request.extensions_mut().insert(over_tls);
            router.clone().oneshot(request)
        });
        let builder = builder(self.limits.head_time);
        let mut connection =
            pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
        let mut patience = pin!(tokio::time::sleep(self.limits.head_time));
        let (mut is_watched, mut is_ending) = (true, false);
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, %peer, "connection ended");
                    }
                    return;
                }
                // The protocols have a timer for every head but for the bytes that tell them apart.
                () = patience.as_mut(), if is_watched => {
                    is_watched = false;
                    if !has_asked.load(Ordering::Relaxed) {
                        return tracing::debug!(%peer, "connection closed: it asked nothing");
                    }
                }
                () = self.stop.cancelled(), if !is_ending => {
                    is_ending = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

fn builder(head_time: Duration) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(head_time)
        .max_buf_size(HEAD_BUFFER)
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEAD_LIST)
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        // WebSockets over HTTP/2 are asked for by CONNECT.
        .enable_connect_protocol();
    builder
}

/// A stream that keeps its place until it is closed, whoever holds it by then.
struct Held {
    stream: TcpStream,
    _place: Place,
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Held {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
