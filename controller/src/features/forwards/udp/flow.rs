//! A flow's way back, from the target to its client.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::socket::Socket;
use super::{PAUSE, Pulse, inside};
use crate::features::forwards::live::Way;
use crate::features::forwards::model::Target;
use crate::features::forwards::port::{Port, Settings};

/// Datagrams of one client that wait for the stream into the instance; when full, what comes is dropped,
/// as UDP may.
const QUEUE: usize = 64;

/// Where a client's datagrams go.
#[derive(Debug)]
pub(super) enum Upstream {
    /// A socket towards the target.
    Host(Arc<Socket>),
    /// The queue of a stream into the instance.
    Inside(mpsc::Sender<Bytes>),
}

/// Where replies go.
#[derive(Clone, Debug)]
pub(super) struct Back {
    /// The forward.
    pub port: Arc<Port>,
    /// The socket that listens.
    pub socket: Arc<Socket>,
    /// The client.
    pub client: SocketAddr,
    /// The address that the client sends to; replies come from it.
    pub local: Option<IpAddr>,
}

impl Back {
    /// Opens the way to the target, and begins to carry replies until `stop`.
    pub(super) fn open(
        self,
        settings: &Settings,
        pulse: Pulse,
        stop: CancellationToken,
    ) -> Option<Upstream> {
        let tasks = self.port.tasks.clone();
        match (self.port.rule.target, settings.grant.clone()) {
            (Target::Host(target), _) => {
                let upstream = match Socket::towards(target) {
                    Ok(upstream) => Arc::new(upstream),
                    Err(error) => {
                        self.port.failed(format!("{target} cannot be reached: {error}"));
                        return None;
                    }
                };
                let from = upstream.clone();
                tasks.spawn(
                    async move { stop.run_until_cancelled(self.replies(&from, &pulse)).await },
                );
                Some(Upstream::Host(upstream))
            }
            (Target::Instance(..), Some(grant)) => {
                let (queue, queued) = mpsc::channel(QUEUE);
                tasks.spawn(inside::run(self, grant, queued, pulse, stop));
                Some(Upstream::Inside(queue))
            }
            (Target::Instance(..), None) => None,
        }
    }

    async fn replies(self, upstream: &Socket, pulse: &Pulse) {
        loop {
            let readable = upstream.readable().await;
            let mut batch = self.port.shared.batches.take().await;
            match readable.and_then(|()| upstream.receive(&mut batch)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => {
                    drop(batch);
                    self.port.failed(format!("the target cannot be reached: {error}"));
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            }
            pulse.beat(self.port.ctx.clock.monotonic());
            for group in batch.groups() {
                let Some(run) = batch.run(group) else { continue };
                match self.socket.send(&run, self.client, self.local).await {
                    Ok(()) => self.carried(Way::Out, run.bytes.len()),
                    Err(error) => self.port.failed(format!("a reply was not passed on: {error}")),
                }
            }
        }
    }

    /// Counts bytes.
    pub(super) fn carried(&self, way: Way, bytes: usize) {
        self.port.meter.count(way, u64::try_from(bytes).unwrap_or(u64::MAX));
    }
}
