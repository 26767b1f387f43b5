//! Connections made from inside the container, to servers that listen there or that it can reach.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use tianqi_common::wire::frame::{self, FrameError, Limit};
use tianqi_common::wire::stream::{Datagram, Dial, StreamRefusal, StreamReply};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpStream, UdpSocket, UnixStream};

use super::stream::refuse;

/// How long a server may take to answer.
const CONNECT: Duration = Duration::from_secs(8);
/// Bytes carried at once, each way.
const BUFFER: usize = 64 << 10;
/// The largest datagram.
const DATAGRAM: usize = 65_507;

/// Carries bytes between a TCP server and the agent; each half ends by itself.
pub(super) async fn tcp(mut stream: UnixStream, dial: &Dial) -> Result<(), FrameError> {
    let mut server = match connect(&dial.host, dial.port).await {
        Ok(server) => server,
        Err(error) => return fail(&mut stream, dial, &error).await,
    };
    frame::write(&mut stream, &StreamReply::Open, Limit::OPEN).await?;
    let carried = copy_bidirectional_with_sizes(&mut stream, &mut server, BUFFER, BUFFER).await;
    carried.map(|_| ()).map_err(FrameError::Io)
}

/// Connects to a server.
///
/// # Errors
///
/// The name is unknown, or nobody answers in time.
pub(crate) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let connecting = async {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in resolve(host, port).await? {
            match TcpStream::connect(address).await {
                Ok(server) => {
                    server.set_nodelay(true)?;
                    return Ok(server);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    };
    let timed_out = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer within 8 s");
    tokio::time::timeout(CONNECT, connecting).await.map_err(timed_out)?
}

/// Carries one flow of datagrams until the agent ends it.
pub(super) async fn udp(mut stream: UnixStream, dial: &Dial) -> Result<(), FrameError> {
    let socket = match flow(&dial.host, dial.port).await {
        Ok(socket) => socket,
        Err(error) => return fail(&mut stream, dial, &error).await,
    };
    frame::write(&mut stream, &StreamReply::Open, Limit::OPEN).await?;
    let (mut reader, mut writer) = stream.into_split();
    let out = async {
        while let Some(Datagram(bytes)) = frame::read(&mut reader, Limit::STREAM).await? {
            // A server that is not there yet, or no more, loses a datagram as networks do.
            let _ = socket.send(&bytes).await;
        }
        Ok(())
    };
    let back = async {
        let mut buffer = vec![0; DATAGRAM];
        loop {
            // The same is heard here as an error; the flow goes on.
            let Ok(length) = socket.recv(&mut buffer).await else { continue };
            let bytes = Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default());
            frame::write(&mut writer, &Datagram(bytes), Limit::STREAM).await?;
        }
    };
    tokio::select! {
        ended = out => ended,
        ended = back => ended,
    }
}

async fn flow(host: &str, port: u16) -> io::Result<UdpSocket> {
    let unknown = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let server = resolve(host, port).await?.into_iter().next().ok_or_else(unknown)?;
    let own = match server {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(own).await?;
    socket.connect(server).await?;
    Ok(socket)
}

/// An image may lack /etc/hosts; `localhost` is known all the same.
async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if host.eq_ignore_ascii_case("localhost") {
        let (four, six) = (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
        return Ok(vec![(four, port).into(), (six, port).into()]);
    }
    Ok(tokio::net::lookup_host((host, port)).await?.collect())
}

async fn fail(stream: &mut UnixStream, dial: &Dial, error: &io::Error) -> Result<(), FrameError> {
    let message = format!("{}, port {}: {error}", dial.host, dial.port);
    refuse(stream, StreamRefusal::ConnectFailed, message).await
}
