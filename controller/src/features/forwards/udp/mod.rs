//! Listens for UDP and carries what comes.
//!
//! Each client has a flow of its own: a socket towards the target that hears nobody else, or a stream
//! into the instance. Any number of replies finds its way back, and no two clients can get each other's.
//! A flow ends when nothing has gone either way for as long as its rule says.

pub(crate) mod batch;
mod flow;
mod inside;
pub(crate) mod socket;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::live::{Place, Way};
use super::model::Target;
use super::port::Port;
use batch::{Batch, Run};
use flow::Upstream;
use socket::Socket;

/// How often flows that rest are looked for.
const LOOK: Duration = Duration::from_millis(250);
/// How long a flow that broke is kept before its client gets another: a target that is not there is not
/// asked for every datagram.
const BROKEN_FOR: Duration = Duration::from_secs(1);
/// A pause after reading failed.
const PAUSE: Duration = Duration::from_millis(10);

/// When something last went through a flow, and whether it broke.
#[derive(Clone, Debug, Default)]
pub(super) struct Pulse(Arc<(AtomicU64, AtomicBool)>);

/// One client's way to the target. Dropping it ends it.
#[derive(Debug)]
struct Flow {
    upstream: Upstream,
    pulse: Pulse,
    _stop: DropGuard,
    _place: Place,
}

impl Pulse {
    /// Something went through just now.
    pub(super) fn beat(&self, now: Duration) {
        let millis = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.0.0.store(millis, Ordering::Relaxed);
    }

    /// The flow is of no use any more.
    pub(super) fn breaks(&self) {
        self.0.1.store(true, Ordering::Relaxed);
    }

    fn is_broken(&self) -> bool {
        self.0.1.load(Ordering::Relaxed)
    }

    fn rests(&self, now: Duration) -> Duration {
        now.saturating_sub(Duration::from_millis(self.0.0.load(Ordering::Relaxed)))
    }
}

/// Takes datagrams in until the forward stops.
pub(super) async fn serve(socket: Socket, port: Arc<Port>) {
    let socket = Arc::new(socket);
    let mut flows: HashMap<SocketAddr, Flow> = HashMap::new();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let stopped = port.stop.cancelled();
    tokio::pin!(stopped);
    loop {
        let readable = tokio::select! {
            biased;
            () = &mut stopped => return,
            _ = look.tick() => {
                end_resting(&mut flows, &port);
                continue;
            }
            readable = socket.readable() => readable,
        };
        let mut batch = port.shared.batches.take().await;
        let received = readable.and_then(|()| socket.receive(&mut batch));
        match received {
            Ok(()) => pass_on(&mut flows, &mut batch, &socket, &port).await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                port.failed(format!("datagrams cannot be read: {error}"));
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn end_resting(flows: &mut HashMap<SocketAddr, Flow>, port: &Port) {
    let (now, idle) = (port.ctx.clock.monotonic(), port.settings().udp_idle);
    flows.retain(|_, flow| {
        let longest = if flow.pulse.is_broken() { BROKEN_FOR.min(idle) } else { idle };
        flow.pulse.rests(now) < longest
    });
}

/// Sends a batch of datagrams on, each by its client's flow.
async fn pass_on(
    flows: &mut HashMap<SocketAddr, Flow>,
    batch: &mut Batch,
    socket: &Arc<Socket>,
    port: &Arc<Port>,
) {
    let now = port.ctx.clock.monotonic();
    for group in batch.groups() {
        let Some(run) = batch.run(group) else { continue };
        let flow = match flows.entry(run.from) {
            Entry::Occupied(flow) => flow.into_mut(),
            Entry::Vacant(place) => match open(port, socket, run.from, run.to) {
                Some(flow) => place.insert(flow),
                None => continue,
            },
        };
        if flow.pulse.is_broken() {
            continue;
        }
        flow.pulse.beat(now);
        send_on(flow, &run, port).await;
    }
}

async fn send_on(flow: &Flow, run: &Run<'_>, port: &Port) {
    let sent = match (&flow.upstream, port.rule.target) {
        (Upstream::Host(upstream), Target::Host(target)) => upstream.send(run, target, None).await,
        (Upstream::Inside(queue), _) => {
            inside::offer(queue, run);
            Ok(())
        }
        (Upstream::Host(_), Target::Instance(..)) => Ok(()),
    };
    match sent {
        Ok(()) => port.meter.count(Way::In, u64::try_from(run.bytes.len()).unwrap_or(0)),
        Err(error) => port.failed(format!("a datagram was not passed on: {error}")),
    }
}

/// Opens a flow for a client, unless it is not let in.
fn open(
    port: &Arc<Port>,
    socket: &Arc<Socket>,
    client: SocketAddr,
    local: Option<IpAddr>,
) -> Option<Flow> {
    let settings = port.settings();
    let admitted = port.meter.admit(&port.all, &settings.limits, client.ip());
    let place = match admitted {
        Ok(place) => place,
        Err(refusal) => {
            port.failed(refusal.to_string());
            return None;
        }
    };
    let (pulse, stop) = (Pulse::default(), port.stop.child_token());
    let way = flow::Back { port: port.clone(), socket: socket.clone(), client, local };
    let upstream = way.open(&settings, pulse.clone(), stop.clone())?;
    Some(Flow { upstream, pulse, _stop: CancellationToken::drop_guard(stop), _place: place })
}
