//! A flow into an instance: one stream, datagrams in frames.

use bytes::Bytes;
use tianqi_common::wire::stream::Datagram;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Pulse;
use super::batch::Run;
use super::flow::Back;
use crate::features::forwards::live::{Tally, Way};
use crate::features::forwards::port::IntoInstance;
use crate::link::{WorkReader, WorkStream, WorkWriter};

/// Puts the datagrams of a run into a flow's queue; what finds no room is dropped.
pub(super) fn offer(queue: &mpsc::Sender<Bytes>, run: &Run<'_>) {
    if run.bytes.is_empty() {
        let _ = queue.try_send(Bytes::new());
    }
    for datagram in run.bytes.chunks(run.size.max(1)) {
        if queue.try_send(Bytes::copy_from_slice(datagram)).is_err() {
            return;
        }
    }
}

/// Carries a flow until `stop`, or until the stream ends.
pub(super) async fn run(
    back: Back,
    grant: IntoInstance,
    queued: mpsc::Receiver<Bytes>,
    pulse: Pulse,
    stop: CancellationToken,
) {
    let port = &back.port;
    let who = (port.rule.id, &grant);
    let joined = match port.visits.join(&port.ctx, who, back.client.ip()).await {
        Ok(joined) => joined,
        Err(error) => {
            pulse.breaks();
            return port.failed(format!("the audit cannot be written: {error}"));
        }
    };
    let tally = Tally::default();
    stop.run_until_cancelled(carry(&back, &grant, queued, &pulse, &tally)).await;
    pulse.breaks();
    port.visits.leave(&joined, tally.bytes()).await;
}

async fn carry(
    back: &Back,
    grant: &IntoInstance,
    queued: mpsc::Receiver<Bytes>,
    pulse: &Pulse,
    tally: &Tally,
) {
    let WorkStream { writer, reader } = match back.port.dial(grant).await {
        Ok(work) => work,
        Err(why) => return back.port.failed(why),
    };
    // Either end ends the flow; the client's next datagram opens another.
    tokio::select! {
        () = inwards(queued, writer, tally) => {}
        () = outwards(back, reader, pulse, tally) => {}
    }
}

async fn inwards(mut queued: mpsc::Receiver<Bytes>, mut writer: WorkWriter, tally: &Tally) {
    while let Some(bytes) = queued.recv().await {
        let length = bytes.len();
        if writer.send(&Datagram(bytes)).await.is_err() {
            return;
        }
        tally.note(Way::In, length);
    }
}

async fn outwards(back: &Back, mut reader: WorkReader, pulse: &Pulse, tally: &Tally) {
    loop {
        let bytes = match reader.next::<Datagram>().await {
            Ok(Some(Datagram(bytes))) => bytes,
            Ok(None) => return,
            Err(error) => return back.port.failed(error.to_string()),
        };
        pulse.beat(back.port.ctx.clock.monotonic());
        tally.note(Way::Out, bytes.len());
        let run = Run { from: back.client, to: None, bytes: &bytes, size: bytes.len() };
        match back.socket.send(&run, back.client, back.local).await {
            Ok(()) => back.carried(Way::Out, bytes.len()),
            Err(error) => back.port.failed(format!("a reply was not passed on: {error}")),
        }
    }
}
