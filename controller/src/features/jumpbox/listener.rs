//! The port: takes connections in, counts them, and ends them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use russh::Disconnect;
use russh::server::{self, Config, Handle, RunningSession};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::JumpboxError;
use super::connection::{Connection, Door};
use super::flow::Transport;
use super::host_key::HostKey;
use super::server::Client;
use super::settings;
use crate::core::http::proxy::counted_as;
use crate::core::slots::{Slot, Slots};
use crate::features::Ctx;

/// Pause after a connection could not be taken in: without it a full table of files takes a core.
const BACK_OFF: Duration = Duration::from_millis(100);
/// How long a client has to take a goodbye.
const GOODBYE: Duration = Duration::from_secs(1);
/// How long channels may take to write down their ends.
const LAST_ROWS: Duration = Duration::from_secs(5);

/// The SSH port, bound and not yet served.
#[derive(Debug)]
pub struct Jumpbox {
    listener: TcpListener,
    address: SocketAddr,
    port: Port,
}

/// What every connection is taken in by.
#[derive(Clone, Debug)]
struct Port {
    door: Door,
    config: Arc<Config>,
    login_time: Duration,
    all: Slots<()>,
    unknown: Slots<()>,
    unknown_of: Slots<IpAddr>,
    stop: CancellationToken,
}

/// The places of a connection on which nobody has logged in yet.
type Unknown = (Slot<()>, Slot<IpAddr>);

/// Opens the host key and the port; nothing when the configuration turns SSH off.
///
/// # Errors
///
/// [`JumpboxError`].
pub async fn bind(ctx: &Ctx) -> Result<Option<Jumpbox>, JumpboxError> {
    let rules = &ctx.config.jumpbox;
    if !rules.enabled {
        return Ok(None);
    }
    let usual = || ctx.config.data_dir.join("jumpbox_host_key");
    let path = rules.host_key.clone().unwrap_or_else(usual);
    let host_key =
        HostKey::open_or_create(&path).map_err(|source| JumpboxError::HostKey { path, source })?;
    let address = rules.listen;
    let failed = |source| JumpboxError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    ctx.entrance.is_bound(address, host_key.clone());
    let slots = |most: u32| usize::try_from(most).unwrap_or(usize::MAX);
    let port = Port {
        config: Arc::new(settings::config(host_key.key(), rules, false)),
        login_time: Duration::from_secs(rules.login_seconds.into()),
        all: Slots::new(slots(rules.connections)),
        unknown: Slots::new(slots(rules.unauthenticated)),
        unknown_of: Slots::new(slots(rules.unauthenticated_per_address)),
        stop: CancellationToken::new(),
        door: Door {
            ctx: ctx.clone(),
            host_key,
            accounts: Slots::new(slots(rules.sessions_per_account)),
        },
    };
    Ok(Some(Jumpbox { listener, address, port }))
}

impl Jumpbox {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes connections in until `stop`, then ends those that are open.
    pub async fn serve(self, stop: CancellationToken) {
        let port = Port { stop, ..self.port };
        let connections = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = port.stop.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, peer)) => match port.places(peer.ip()) {
                    Some((all, unknown)) => {
                        let port = port.clone();
                        connections.spawn(async move {
                            port.talk(socket, peer, unknown).await;
                            drop(all);
                        });
                    }
                    None => tracing::debug!(%peer, "SSH connection refused: too many are open"),
                },
                Err(error) => {
                    tracing::warn!(%error, "an SSH connection could not be taken in");
                    tokio::time::sleep(BACK_OFF).await;
                }
            }
        }
        drop(self.listener);
        connections.close();
        connections.wait().await;
    }
}

impl Port {
    fn places(&self, peer: IpAddr) -> Option<(Slot<()>, Unknown)> {
        let all = self.all.take(())?;
        Some((all, (self.unknown.take(())?, self.unknown_of.take(counted_as(peer))?)))
    }

    async fn talk(&self, socket: TcpStream, peer: SocketAddr, unknown: Unknown) {
        let mut heard = self.door.ctx.events.listen();
        // Without it a keystroke waits for the answer to the one before.
        let _ = socket.set_nodelay(true);
        let connection = Arc::new(Connection::new(self.door.clone(), peer.ip()));
        let (flow, version) = (connection.flow.clone(), connection.version.clone());
        let transport = Transport::new(socket, flow, version, connection.cut.clone());
        let client = Client::new(connection.clone());
        let greeted = server::run_stream(self.config.clone(), transport, client);
        let session = tokio::select! {
            greeted = tokio::time::timeout(self.login_time, greeted) => greeted,
            () = self.stop.cancelled() => return,
        };
        let Ok(Ok(mut session)) = session else {
            tracing::debug!(%peer, "no SSH was spoken");
            return;
        };
        let handle = session.handle();
        let reason = tokio::select! {
            ended = &mut session => {
                if let Err(error) = ended {
                    tracing::debug!(%peer, %error, "SSH connection ended");
                }
                None
            }
            reason = self.login_is_late(&connection, unknown) => Some(reason),
            reason = connection.over(&mut heard) => Some(reason),
            () = self.stop.cancelled() => Some("the controller is ending".to_owned()),
        };
        if let Some(reason) = reason {
            say_goodbye(&handle, session, reason).await;
        }
        finish(&connection).await;
    }

    /// Returns why when nobody logs in in time; gives the places back when somebody does.
    async fn login_is_late(&self, connection: &Connection, unknown: Unknown) -> String {
        let in_time = tokio::time::timeout(self.login_time, connection.logged_in()).await;
        drop(unknown);
        match in_time {
            Err(_) => "nobody logged in in time".to_owned(),
            Ok(()) => std::future::pending().await,
        }
    }
}

/// Says why and lets the client go; who does not take it is cut off by [`finish`].
async fn say_goodbye(handle: &Handle, session: RunningSession<Client>, reason: String) {
    let said = async {
        let told = handle.disconnect(Disconnect::ByApplication, reason, String::new()).await;
        if told.is_ok() {
            // How it ended plays no part any more.
            let _ = session.await;
        }
    };
    let _ = tokio::time::timeout(GOODBYE, said).await;
}

/// Cuts the connection, and waits until its channels have written down how they ended.
async fn finish(connection: &Connection) {
    connection.cut.cancel();
    connection.tasks.close();
    if tokio::time::timeout(LAST_ROWS, connection.tasks.wait()).await.is_err() {
        tracing::warn!("a channel of an SSH connection did not end in time");
    }
    connection.ended().await;
}
