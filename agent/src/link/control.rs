//! The control stream: desired state and settings down, observed state and inventory up.

use std::time::Duration;

use quinn::{RecvStream, SendStream};
use tianqi_common::wire::control::{ToAgent, ToController};
use tianqi_common::wire::desired::{NodeDesired, NodeSettings};
use tianqi_common::wire::frame::{self, FrameError, Limit};
use tianqi_common::wire::inventory::NodeInventory;
use tianqi_common::wire::observed::NodeObserved;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

/// Observed state is repeated this often, so that nothing depends on one message.
const REPEAT: Duration = Duration::from_secs(30);
/// Control goes before keystrokes, keystrokes before everything else.
const PRIORITY: i32 = 20;

/// Wakes the writer when the controller asks for a report.
#[derive(Debug, Default)]
pub(super) struct Reports(Notify);

/// What the controller said before it closed.
#[derive(Debug)]
pub(super) struct Goodbye {
    pub(super) code: String,
    pub(super) message: String,
}

/// What an answer to a renewal is.
#[derive(Debug)]
pub(super) enum Renewed {
    Granted { certificate_pem: String, ca_pem: String },
    Refused { message: String },
}

/// Writes what is new until the stream fails; returns why.
pub(super) async fn write(
    mut send: SendStream,
    mut observed: watch::Receiver<Option<NodeObserved>>,
    mut inventory: watch::Receiver<Option<NodeInventory>>,
    reports: &Reports,
    mut requests: mpsc::Receiver<ToController>,
) -> FrameError {
    let _ = send.set_priority(PRIORITY);
    let mut repeat = tokio::time::interval_at(Instant::now() + REPEAT, REPEAT);
    repeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // A controller knows nothing of an agent that has just connected.
    inventory.mark_changed();
    observed.mark_changed();
    loop {
        let message = tokio::select! {
            biased;
            Some(request) = requests.recv() => Some(request),
            Ok(()) = inventory.changed() => inventory_message(&mut inventory),
            Ok(()) = observed.changed() => observed_message(&mut observed),
            () = reports.0.notified() => {
                inventory.mark_changed();
                observed_message(&mut observed)
            }
            _ = repeat.tick() => observed_message(&mut observed),
        };
        let Some(message) = message else { continue };
        match frame::write(&mut send, &message, Limit::CONTROL).await {
            Ok(()) => {}
            Err(error @ FrameError::TooLong { .. }) => {
                tracing::error!(%error, "a report was not sent");
            }
            Err(error) => return error,
        }
    }
}

fn inventory_message(from: &mut watch::Receiver<Option<NodeInventory>>) -> Option<ToController> {
    from.borrow_and_update().clone().map(Box::new).map(ToController::Inventory)
}

fn observed_message(from: &mut watch::Receiver<Option<NodeObserved>>) -> Option<ToController> {
    from.borrow_and_update().clone().map(ToController::Observed)
}

/// Reads until the controller says goodbye or the stream fails.
pub(super) async fn read(
    mut recv: RecvStream,
    desired: &watch::Sender<Option<NodeDesired>>,
    settings: &watch::Sender<Option<NodeSettings>>,
    reports: &Reports,
    renewed: mpsc::Sender<Renewed>,
) -> Result<Goodbye, FrameError> {
    loop {
        let message = frame::read(&mut recv, Limit::CONTROL).await?.ok_or(FrameError::Truncated)?;
        match message {
            ToAgent::Desired(state) => {
                desired.send_replace(Some(state));
            }
            ToAgent::Settings(new) => {
                settings.send_replace(Some(new));
            }
            ToAgent::Report => reports.0.notify_one(),
            ToAgent::Renewed { certificate_pem, ca_pem } => {
                answer(&renewed, Renewed::Granted { certificate_pem, ca_pem });
            }
            ToAgent::RenewRefused { message } => answer(&renewed, Renewed::Refused { message }),
            ToAgent::Goodbye { code, message } => return Ok(Goodbye { code, message }),
        }
    }
}

/// Hands an answer to whoever asked. One that nobody asked for is dropped when the queue is full.
fn answer(to: &mpsc::Sender<Renewed>, renewed: Renewed) {
    if to.try_send(renewed).is_err() {
        tracing::warn!("the controller answered a renewal that was not asked for");
    }
}
