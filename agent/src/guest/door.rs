//! The socket of one instance: who dialled in, and the streams that were asked for.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::Rng as _;
use tianqi_common::id::InstanceId;
use tianqi_common::wire::frame::{self, Limit};
use tianqi_common::wire::guest::{GUEST_VERSION, GuestHello, SOCKET, StreamToken, ToGuest};
use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::{NoGuest, peer, trouble};
use crate::docker::DockerHandle;

/// Connections of one container whose first frame is awaited; more are closed, a few at a time.
const GREETING: usize = 32;
/// How long the first frame may take.
const HELLO: Duration = Duration::from_secs(5);
/// A container that dials too much, or is not who it says, waits so long for its next turn.
const PENALTY: Duration = Duration::from_millis(250);
/// Streams asked for at once; those who ask wait when it is full.
const ASKED: usize = 64;

/// One instance's socket. Dropping it closes it; streams that stand go on.
pub(super) struct Door {
    /// Held by whoever starts a guest; when the last start failed, and why.
    pub(super) starting: tokio::sync::Mutex<Option<(Duration, String)>>,
    hall: Arc<Hall>,
    listening: JoinHandle<()>,
}

/// What the connections of one instance share.
struct Hall {
    instance: InstanceId,
    docker: DockerHandle,
    /// Where tokens are sent while a guest serves.
    control: watch::Sender<Option<mpsc::Sender<StreamToken>>>,
    waiting: Mutex<HashMap<StreamToken, oneshot::Sender<UnixStream>>>,
    /// One control connection is looked at after the other.
    checking: tokio::sync::Mutex<()>,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Door {
    /// Makes the folder where it is missing and listens there.
    ///
    /// # Errors
    ///
    /// The folder cannot be written.
    pub(super) fn open(
        folder: &Path,
        instance: InstanceId,
        docker: DockerHandle,
    ) -> io::Result<Arc<Self>> {
        let listener = listen(folder)?;
        let hall = Arc::new(Hall {
            instance,
            docker,
            control: watch::channel(None).0,
            waiting: Mutex::default(),
            checking: tokio::sync::Mutex::default(),
        });
        let listening = tokio::spawn(hall.clone().accept(listener));
        Ok(Arc::new(Self { starting: tokio::sync::Mutex::default(), hall, listening }))
    }

    /// Whether a guest serves.
    pub(super) fn is_served(&self) -> bool {
        self.hall.control.borrow().is_some()
    }

    /// Waits until a guest serves.
    pub(super) async fn wait_until_served(&self) {
        // Fails only when the door is gone, and it is borrowed here.
        let _ = self.hall.control.subscribe().wait_for(Option::is_some).await;
    }

    /// Lets the guest dial once more, and returns that connection.
    pub(super) async fn stream(&self) -> Result<UnixStream, NoGuest> {
        let none = || trouble("it went away");
        let control = self.hall.control.borrow().clone().ok_or_else(none)?;
        let (asked, dialled) = oneshot::channel();
        let ticket = Ticket::new(&self.hall, asked);
        control.send(ticket.token).await.map_err(|_| none())?;
        dialled.await.map_err(|_| none())
    }
}

/// A token that is waited for; dropping it forgets it.
struct Ticket<'a> {
    hall: &'a Hall,
    token: StreamToken,
}

impl<'a> Ticket<'a> {
    fn new(hall: &'a Hall, asked: oneshot::Sender<UnixStream>) -> Self {
        let mut token = StreamToken::default();
        rand::rng().fill_bytes(&mut token);
        hall.waiting().insert(token, asked);
        Self { hall, token }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.hall.waiting().remove(&self.token);
    }
}

/// Binds the socket, which any user of the container may dial. The folder is the agent's; a path of
/// any length works, because it is reached through an open descriptor.
fn listen(folder: &Path) -> io::Result<UnixListener> {
    std::fs::create_dir_all(folder)?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?;
    let open = std::fs::File::open(folder)?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", open.as_raw_fd());
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

impl Hall {
    async fn accept(self: Arc<Self>, listener: UnixListener) {
        let greeting = Arc::new(Semaphore::new(GREETING));
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Out of descriptors: some may be free a little later.
                tokio::time::sleep(PENALTY).await;
                continue;
            };
            let Ok(permit) = greeting.clone().try_acquire_owned() else {
                drop(stream);
                tokio::time::sleep(PENALTY).await;
                continue;
            };
            let hall = self.clone();
            tokio::spawn(async move {
                let greeted = tokio::time::timeout(HELLO, hall.greet(stream)).await;
                drop(permit);
                if let Ok(Some(control)) = greeted {
                    hall.serve(control).await;
                }
            });
        }
    }

    /// Hears what a connection is for; returns it when it is a control connection to be served.
    async fn greet(&self, mut stream: UnixStream) -> Option<UnixStream> {
        match frame::read::<GuestHello, _>(&mut stream, Limit::GUEST).await.ok()?? {
            GuestHello::Stream { token } => {
                let asked = self.waiting().remove(&token);
                // Whoever asked may have gone; the stream then ends.
                let _ = asked.map(|asked| asked.send(stream));
                None
            }
            GuestHello::Control { version } if version >= GUEST_VERSION => {
                let _one = self.checking.lock().await;
                let docker = self.docker.current();
                let is_ours = peer::is_of(&stream, &*docker, self.instance).await;
                if !is_ours {
                    tokio::time::sleep(PENALTY).await;
                }
                is_ours.then_some(stream)
            }
            GuestHello::Control { .. } => None,
        }
    }

    /// Sends tokens until the guest goes. The newest control connection counts.
    async fn serve(&self, stream: UnixStream) {
        let (sender, mut tokens) = mpsc::channel(ASKED);
        self.control.send_replace(Some(sender.clone()));
        let (mut reader, mut writer) = stream.into_split();
        let mut nothing = [0; 1];
        loop {
            let token = tokio::select! {
                token = tokens.recv() => token,
                // It says nothing on this connection; a word, or its end, ends it.
                _ = reader.read(&mut nothing) => None,
            };
            let Some(token) = token else { break };
            let asked = ToGuest::Stream { token };
            if frame::write(&mut writer, &asked, Limit::GUEST).await.is_err() {
                break;
            }
        }
        self.control.send_if_modified(|current| {
            let is_this = current.as_ref().is_some_and(|other| other.same_channel(&sender));
            if is_this {
                *current = None;
            }
            is_this
        });
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<StreamToken, oneshot::Sender<UnixStream>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
