//! Listens for TCP and carries what comes.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use super::live::{Place, Tally};
use super::model::Target;
use super::port::{IntoInstance, Port};
use super::pump;
use super::splice::Carriage;

/// Connections that the kernel keeps until they are taken in; more are refused by it.
const BACKLOG: i32 = 4_096;
/// The first pause after taking in failed, such as for want of descriptors; it doubles up to [`LONGEST`].
const PAUSE: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(1);

/// Begins to listen.
///
/// # Errors
///
/// What the kernel said: the port is taken, the address is not one of this machine, or the port is
/// under 1024 and the process may not.
pub(super) fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM.nonblocking(), None)?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // A port whose last connections are still fading away may be listened on again.
    socket.set_reuse_address(true)?;
    // Connections inherit it: small pieces go on at once.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&at.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Takes connections in until the forward stops.
pub(super) async fn serve(listener: TcpListener, port: Arc<Port>) {
    let stopped = port.stop.cancelled();
    tokio::pin!(stopped);
    let mut pause = PAUSE;
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stopped => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((client, peer)) => {
                pause = PAUSE;
                take_in(&port, client, peer);
            }
            Err(error) if is_of_one(&error) => {}
            Err(error) => {
                port.failed(format!("connections cannot be taken in: {error}"));
                tokio::select! {
                    () = &mut stopped => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(LONGEST);
            }
        }
    }
}

/// Whether an error concerns the one connection that was to be taken in.
fn is_of_one(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

fn take_in(port: &Arc<Port>, client: TcpStream, peer: SocketAddr) {
    let settings = port.settings();
    let place = match port.meter.admit(&port.all, &settings.limits, peer.ip()) {
        Ok(place) => place,
        Err(refusal) => {
            port.failed(refusal.to_string());
            return;
        }
    };
    let (here, grant) = (port.clone(), settings.grant.clone());
    port.tasks.spawn(async move {
        match (here.rule.target, grant) {
            (Target::Host(target), _) => {
                tokio::select! {
                    biased;
                    () = here.stop.cancelled() => {}
                    () = to_host(&here, client, target, &place) => {}
                }
            }
            (Target::Instance(..), Some(grant)) => {
                into_instance(&here, client, peer.ip(), &grant, &place).await;
            }
            // What leads into an instance is started with a grant.
            (Target::Instance(..), None) => {}
        }
    });
}

async fn to_host(port: &Port, client: TcpStream, target: SocketAddr, place: &Place) {
    let patience = port.patience();
    let connected = match tokio::time::timeout(patience, TcpStream::connect(target)).await {
        Ok(connected) => connected,
        Err(_) => Err(io::Error::other(format!("no answer within {patience:?}"))),
    };
    let upstream = match connected {
        Ok(upstream) => upstream,
        Err(error) => return port.failed(format!("{target} cannot be reached: {error}")),
    };
    // An error means that the socket is gone, which the carriage meets too.
    let _ = upstream.set_nodelay(true);
    let tally = Tally::default();
    let carriage = Carriage { pipes: &port.shared.pipes, meter: place.meter(), tally: &tally };
    let carried = carriage.carry(&client, &upstream);
    report(port, within_idle(port, &tally, carried).await);
}

async fn into_instance(
    port: &Port,
    client: TcpStream,
    source: IpAddr,
    grant: &IntoInstance,
    place: &Place,
) {
    let joined = match port.visits.join(&port.ctx, (port.rule.id, grant), source).await {
        Ok(joined) => joined,
        Err(error) => return port.failed(format!("the audit cannot be written: {error}")),
    };
    let tally = Tally::default();
    let carried = async {
        match port.dial(grant).await {
            Ok(work) => {
                let carried = pump::carry(client, work, place.meter(), &tally);
                report(port, within_idle(port, &tally, carried).await);
            }
            Err(why) => port.failed(why),
        }
    };
    // The visit is left also when the forward or the instance stops.
    tokio::select! {
        biased;
        () = port.stop.cancelled() => {}
        () = port.until_instance_stops() => {
            port.failed("the instance does not run; start it first");
        }
        () = carried => {}
    }
    port.visits.leave(&joined, tally.bytes()).await;
}

/// Ends a connection that has carried nothing for as long as the configuration says.
async fn within_idle(
    port: &Port,
    tally: &Tally,
    carried: impl Future<Output = io::Result<()>>,
) -> io::Result<()> {
    let idle = Duration::from_secs(port.ctx.config.forwards.tcp_idle_seconds.into());
    if idle.is_zero() {
        return carried.await;
    }
    let rests = async {
        let mut before = None;
        while before != Some(tally.bytes()) {
            before = Some(tally.bytes());
            tokio::time::sleep(idle).await;
        }
    };
    tokio::select! {
        ended = carried => ended,
        () = rests => Ok(()),
    }
}

/// A client or a target that hangs up is how connections end; anything else is worth a word.
fn report(port: &Port, ended: io::Result<()>) {
    let Err(error) = ended else { return };
    let is_usual = matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected
    );
    if !is_usual {
        port.failed(format!("a connection broke: {error}"));
    }
}
