//! A new certificate at 2/3 of the life of the old, on the running connection.

use std::time::Duration;

use rcgen::KeyPair;
use tianqi_common::clock::{SharedClock, UnixMillis};
use tianqi_common::wire::control::ToController;
use tokio::sync::mpsc;

use super::control::Renewed;
use crate::enroll::identity::{Identity, IdentityStore, request};

/// The wall clock may be set at any time, so it is looked at again after this long at most.
const LOOK_AGAIN: Duration = Duration::from_secs(3_600);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Renews whenever it is due; returns only when the connection ends.
pub(super) async fn keep_valid(
    store: &IdentityStore,
    clock: &SharedClock,
    requests: mpsc::Sender<ToController>,
    mut answers: mpsc::Receiver<Renewed>,
) {
    let mut not_before = UnixMillis(i64::MIN);
    loop {
        let Some(validity) = store.current().validity() else {
            // The store holds only what was checked; without a certificate there is no connection.
            return std::future::pending().await;
        };
        let now = clock.now();
        let due = validity.renew_at().max(not_before);
        if now < due {
            tokio::time::sleep(due.since(now).min(LOOK_AGAIN)).await;
            continue;
        }
        // Whatever comes of it, and however wrong the clock is, the next attempt waits a tenth of a
        // certificate's life.
        not_before = UnixMillis(now.0.saturating_add((validity.life_ms() / 10).max(100)));
        match renew(store, &requests, &mut answers).await {
            Ok(()) => tracing::info!("the node's certificate was renewed"),
            Err(problem) => tracing::warn!("the node's certificate was not renewed: {problem}"),
        }
    }
}

async fn renew(
    store: &IdentityStore,
    requests: &mpsc::Sender<ToController>,
    answers: &mut mpsc::Receiver<Renewed>,
) -> Result<(), String> {
    let key = KeyPair::generate().map_err(|error| error.to_string())?;
    let csr_pem = request(&key).map_err(|error| error.to_string())?;
    // An answer to a request that was given up would name another key.
    while answers.try_recv().is_ok() {}
    let asked = requests.send(ToController::Renew { csr_pem }).await;
    asked.map_err(|_| "the connection ended".to_owned())?;
    match tokio::time::timeout(PATIENCE, answers.recv()).await {
        Ok(Some(Renewed::Granted { certificate_pem, ca_pem })) => {
            let old = store.current();
            let renewed = Identity {
                controller: old.controller.clone(),
                node: old.node,
                key_pem: key.serialize_pem(),
                certificate_pem,
                ca_pem,
            };
            if renewed.validity().is_none() {
                return Err("the controller's certificate cannot be read".to_owned());
            }
            store.replace(renewed).map_err(|error| error.to_string())
        }
        Ok(Some(Renewed::Refused { message })) => Err(message),
        Ok(None) => Err("the connection ended".to_owned()),
        Err(_) => Err(format!("the controller did not answer within {} s", PATIENCE.as_secs())),
    }
}
