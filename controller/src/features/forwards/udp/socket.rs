//! A UDP socket whose datagrams come and go in batches.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::sys::socket::{setsockopt, sockopt};
use quinn_udp::{Transmit, UdpSocketState};
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};
use socket2::{Domain, Socket as Raw, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::batch::{Batch, Run};

/// What the kernel is asked to keep of datagrams that wait; it gives as much as its own limit allows.
const KERNEL_BUFFER: usize = 4 << 20;
/// Bytes of one call that sends many; the kernel takes no more than a longest datagram.
const SEND_BYTES: usize = 60_000;

/// A socket.
#[derive(Debug)]
pub(crate) struct Socket {
    io: UdpSocket,
    state: UdpSocketState,
}

impl Socket {
    /// Listens.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub(crate) fn listen(at: SocketAddr) -> io::Result<Self> {
        let socket = Self::open(at)?;
        let raw = socket2::SockRef::from(&socket.io);
        // Smaller buffers lose more under a burst and are no reason not to listen.
        let _ = raw.set_recv_buffer_size(KERNEL_BUFFER);
        let _ = raw.set_send_buffer_size(KERNEL_BUFFER);
        Ok(socket)
    }

    /// Makes a socket of its own towards `to`; it hears nobody else.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub(crate) fn towards(to: SocketAddr) -> io::Result<Self> {
        let any = match to {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let socket = Self::open(SocketAddr::new(any, 0))?;
        socket2::SockRef::from(&socket.io).connect(&to.into())?;
        Ok(socket)
    }

    fn open(at: SocketAddr) -> io::Result<Self> {
        let raw = Raw::new(Domain::for_address(at), Type::DGRAM.nonblocking(), None)?;
        if at.is_ipv6() {
            raw.set_only_v6(true)?;
        }
        raw.bind(&at.into())?;
        let io = UdpSocket::from_std(raw.into())?;
        let state = UdpSocketState::new((&io).into())?;
        // QUIC wants its datagrams whole or not at all; others may be cut up on their way.
        if at.is_ipv4() {
            set_ip_mtu_discover(&io, Ipv4PathMtuDiscovery::WANT)?;
        } else {
            set_ipv6_mtu_discover(&io, Ipv6PathMtuDiscovery::WANT)?;
            setsockopt(&io, sockopt::Ipv6DontFrag, &false)?;
        }
        Ok(Self { io, state })
    }

    /// Waits until something has come: a datagram, or word that one sent before was refused.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.io.ready(Interest::READABLE | Interest::ERROR).await.map(|_| ())
    }

    /// Reads what has come; `WouldBlock` when nothing has.
    ///
    /// # Errors
    ///
    /// What the kernel said, such as that a datagram sent before was refused by the other side.
    pub(crate) fn receive(&self, batch: &mut Batch) -> io::Result<()> {
        let mut read =
            || batch.fill(|slots, metas| self.state.recv((&self.io).into(), slots, metas));
        match self.io.try_io(Interest::READABLE, &mut read) {
            // An error alone makes a socket not readable, and is read in the same way.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.io.try_io(Interest::ERROR, read)
            }
            received => received,
        }
    }

    /// Sends the datagrams of `run` to `to`, from the address `from` of this machine; waits while the
    /// kernel takes no more.
    ///
    /// # Errors
    ///
    /// What the kernel said; what follows in the run is not sent then.
    pub(crate) async fn send(
        &self,
        run: &Run<'_>,
        to: SocketAddr,
        from: Option<IpAddr>,
    ) -> io::Result<()> {
        if run.bytes.is_empty() {
            return self.transmit(run.bytes, None, to, from).await;
        }
        let size = run.size.max(1);
        let most = self.state.max_gso_segments().min(SEND_BYTES / size).max(1);
        for piece in run.bytes.chunks(size.saturating_mul(most)) {
            let is_many = piece.len() > size;
            let sent = self.transmit(piece, is_many.then_some(size), to, from).await;
            if sent.is_ok() {
                continue;
            }
            if !is_many {
                return sent;
            }
            // The kernel or the network card sends no many at once of this size.
            for one in piece.chunks(size) {
                self.transmit(one, None, to, from).await?;
            }
        }
        Ok(())
    }

    async fn transmit(
        &self,
        contents: &[u8],
        segment_size: Option<usize>,
        destination: SocketAddr,
        src_ip: Option<IpAddr>,
    ) -> io::Result<()> {
        let transmit = Transmit { destination, ecn: None, contents, segment_size, src_ip };
        let send = || self.state.try_send((&self.io).into(), &transmit);
        self.io.async_io(Interest::WRITABLE, send).await
    }
}
