//! The guests: Tianqi's own program in each container, which serves streams without Docker.
//!
//! For every instance of the node there is a folder with a socket, bound read-only into its
//! container ([`guest_folder`]). The first stream into an instance starts `tianqi-guest serve` there by
//! one run of the engine's exec; it goes its own way and dials the socket. From then on a stream
//! costs two small messages, and neither a restart of this agent nor one of the engine ends what runs
//! in it.
//!
//! The container's user owns the guest, so what comes from it is a stranger's word with a limit on
//! all of it. It speaks for its own instance alone: the socket is its container's, and the kernel says
//! whose process dialled.

mod door;
mod peer;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tianqi_common::clock::SharedClock;
use tianqi_common::id::InstanceId;
use tianqi_common::wire::frame::{self, Limit};
use tianqi_common::wire::observed::{DockerStatus, NodeObserved};
use tianqi_common::wire::stream::{StreamOpen, StreamRefusal, StreamReply};
use tokio::net::UnixStream;
use tokio::sync::watch;

use crate::docker::spec::{GUEST, guest_folder};
use crate::docker::{self, Docker, DockerHandle, ExecRequest};
use door::Door;

/// The folders' place in the agent's data directory.
pub const FOLDER: &str = "guests";

/// How long a guest may take to answer a stream, and a stream for which it connects to a server.
const REPLY: Duration = Duration::from_secs(3);
const REPLY_DIAL: Duration = Duration::from_secs(9);
/// How long a guest may take to dial, once asked or started.
const DIAL: Duration = Duration::from_secs(3);
/// How long starting one may take.
const START: Duration = Duration::from_secs(5);
/// After a guest did not start, nobody waits for one for so long.
const TROUBLE: Duration = Duration::from_secs(30);
/// Most bytes of what a guest says when it cannot start, and of a refusal's sentence.
const SAID: usize = 300;

/// Why no guest serves; Docker's exec serves instead.
#[derive(Clone, Debug, thiserror::Error)]
#[error("no guest serves in this instance: {0}")]
pub struct NoGuest(String);

/// A guest's answer to a stream.
#[derive(Debug)]
pub enum Answer {
    /// It is open; what follows is the kind's own.
    Open(UnixStream),
    /// It is not.
    Refused(StreamRefusal, String),
}

/// All guests of the node. Cheap to clone.
#[derive(Clone)]
pub struct Guests {
    folders: PathBuf,
    docker: DockerHandle,
    clock: SharedClock,
    doors: Arc<Mutex<HashMap<InstanceId, Arc<Door>>>>,
}

impl std::fmt::Debug for Guests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guests").field("folders", &self.folders).finish_non_exhaustive()
    }
}

impl Guests {
    /// Keeps the sockets in `folders`.
    #[must_use]
    pub fn new(folders: PathBuf, docker: DockerHandle, clock: SharedClock) -> Self {
        Self { folders, docker, clock, doors: Arc::default() }
    }

    /// Opens a stream by the guest that serves in an instance already.
    ///
    /// # Errors
    ///
    /// [`NoGuest`] when none does, or it does not keep to what was agreed.
    pub async fn open(&self, instance: InstanceId, open: &StreamOpen) -> Result<Answer, NoGuest> {
        let door = self.doors().get(&instance).cloned();
        let door =
            door.filter(|door| door.is_served()).ok_or_else(|| trouble("none serves yet"))?;
        ask(&door, open).await
    }

    /// Opens a stream, starting a guest in `container` when none serves.
    ///
    /// # Errors
    ///
    /// [`NoGuest`] when none can be had.
    pub async fn start(
        &self,
        instance: InstanceId,
        container: &str,
        open: &StreamOpen,
    ) -> Result<Answer, NoGuest> {
        let door = self.door(instance)?;
        {
            // Those who come at once wait for the one who starts it.
            let mut last = door.starting.lock().await;
            if !door.is_served() {
                if let Some((at, why)) = &*last
                    && self.clock.monotonic().saturating_sub(*at) < TROUBLE
                {
                    return Err(trouble(why));
                }
                let started = self.start_in(container, &door).await;
                if let Err(NoGuest(why)) = &started {
                    tracing::info!(instance.id = %instance, error = %why,
                        "no guest serves in instance {instance}; the engine's exec does");
                }
                *last = started.as_ref().err().map(|why| (self.clock.monotonic(), why.0.clone()));
                started?;
            }
        }
        ask(&door, open).await
    }

    async fn start_in(&self, container: &str, door: &Door) -> Result<(), NoGuest> {
        let docker = self.docker.current();
        let (code, said) = tokio::time::timeout(START, launch(&*docker, container))
            .await
            .map_err(|_| trouble("starting it took too long"))?
            .map_err(|error| trouble(&error.to_string()))?;
        if code != Some(0) {
            return Err(trouble(&said));
        }
        let served = tokio::time::timeout(DIAL, door.wait_until_served()).await;
        served.map_err(|_| trouble("it was started and did not dial"))
    }

    /// Follows which instances are on the node, until that is no longer told: guests of containers
    /// that outlived this agent find it again, and nothing is kept of an instance that is gone.
    pub async fn follow(self, mut observed: watch::Receiver<NodeObserved>) {
        while observed.changed().await.is_ok() {
            let seen = observed.borrow_and_update().clone();
            if seen.docker.status != DockerStatus::Connected {
                continue;
            }
            let here: HashSet<InstanceId> = seen
                .instances
                .iter()
                .filter(|one| one.container_id.is_some())
                .map(|one| one.id)
                .collect();
            self.doors().retain(|instance, _| here.contains(instance));
            for instance in here {
                let has_folder = guest_folder(&self.folders, instance).is_dir();
                if has_folder && let Err(error) = self.door(instance) {
                    tracing::warn!(instance.id = %instance, %error, "the guest's socket is not there");
                }
            }
        }
    }

    fn door(&self, instance: InstanceId) -> Result<Arc<Door>, NoGuest> {
        let mut doors = self.doors();
        if let Some(door) = doors.get(&instance) {
            return Ok(door.clone());
        }
        let folder = guest_folder(&self.folders, instance);
        let door = Door::open(&folder, instance, self.docker.clone())
            .map_err(|error| trouble(&format!("{}: {error}", folder.display())))?;
        doors.insert(instance, door.clone());
        Ok(door)
    }

    fn doors(&self) -> MutexGuard<'_, HashMap<InstanceId, Arc<Door>>> {
        self.doors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn trouble(why: &str) -> NoGuest {
    NoGuest(why.trim().to_owned())
}

/// Runs `serve` once and returns its exit code and what it said. It leaves a process behind.
async fn launch(
    docker: &dyn Docker,
    container: &str,
) -> Result<(Option<i32>, String), crate::docker::DockerError> {
    let argv = vec![GUEST.to_owned(), "serve".to_owned()];
    let request = ExecRequest { argv, env: Vec::new(), pty: None, user: String::new() };
    let mut session = docker.exec(container, request).await?;
    let mut said = Vec::new();
    while let Some(output) = session.reader.next().await? {
        let room = SAID.saturating_sub(said.len());
        said.extend(output.bytes.iter().take(room));
    }
    let code = docker::exit_code(docker, &session.id).await?;
    Ok((code, String::from_utf8_lossy(&said).into_owned()))
}

/// Asks a guest for a stream and returns its answer.
async fn ask(door: &Door, open: &StreamOpen) -> Result<Answer, NoGuest> {
    let dialled = tokio::time::timeout(DIAL, door.stream()).await;
    let mut stream = dialled.map_err(|_| trouble("it does not dial"))??;
    let reply = async {
        frame::write(&mut stream, open, Limit::OPEN).await?;
        frame::read::<StreamReply, _>(&mut stream, Limit::OPEN).await
    };
    let patience = match open {
        StreamOpen::Tcp(_) | StreamOpen::Udp(_) => REPLY_DIAL,
        StreamOpen::Exec(_)
        | StreamOpen::Terminal(_)
        | StreamOpen::Sftp(_)
        | StreamOpen::Logs(_)
        | StreamOpen::LogQuery(_)
        | StreamOpen::Pull(_)
        | StreamOpen::Check(_) => REPLY,
    };
    match tokio::time::timeout(patience, reply).await {
        Ok(Ok(Some(StreamReply::Open))) => Ok(Answer::Open(stream)),
        Ok(Ok(Some(StreamReply::Refused { code, message }))) => {
            Ok(Answer::Refused(code, message.chars().take(SAID).collect()))
        }
        Ok(Ok(None)) => Err(trouble("it ended the stream")),
        Ok(Err(error)) => Err(trouble(&error.to_string())),
        Err(_) => Err(trouble("it does not answer")),
    }
}
