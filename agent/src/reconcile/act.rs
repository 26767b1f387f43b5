//! Carries one step out. Every step may run twice, and a step that was cut off is taken up again.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tianqi_common::id::InstanceId;
use tianqi_common::wire::desired::InstanceDesired;
use tianqi_common::wire::observed::{LimitKind, LimitState, Removed};

use super::plan::ContainerAction;
use crate::docker::model::STOP_GRACE;
use crate::docker::spec::{self, NodeFacts};
use crate::docker::{Container, CreateContainer, Docker, DockerError, EngineFacts, NetworkSpec};
use crate::gpu::inject::{Injection, SliceInjector};

/// Where the C library that slices need stands in an image, by machine.
const GLIBC: [&str; 3] = [
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/ld-linux-aarch64.so.1",
    "/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
];

/// What carrying a step out gave.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is done.
    Done {
        /// Why the slice cannot act in this image; empty when it can, or when it was not looked at.
        slice_idle: Option<String>,
    },
    /// The image is not on the node.
    ImageMissing,
    /// It could not be done.
    Failed {
        /// Docker's or the system's own words.
        message: String,
        /// Whether the engine itself is in trouble, which is nobody's failure.
        is_engine_down: bool,
    },
    /// The tombstone was carried out, perhaps with leftovers.
    Purged(Removed),
}

/// One step with everything it needs.
pub(super) struct Step {
    pub(super) action: ContainerAction,
    pub(super) desired: Option<InstanceDesired>,
    pub(super) containers: Vec<Container>,
    pub(super) docker: Arc<dyn Docker>,
    pub(super) injector: Arc<dyn SliceInjector>,
    pub(super) network: NetworkSpec,
    pub(super) guest: Option<String>,
    pub(super) guest_folder: PathBuf,
}

impl Step {
    pub(super) async fn perform(self) -> Outcome {
        let done = match (&self.action, &self.desired) {
            (ContainerAction::Purge(id), _) => return Outcome::Purged(self.purge(*id).await),
            (ContainerAction::Create(_), Some(desired)) => return self.create(desired).await,
            (ContainerAction::Start(_, id) | ContainerAction::Restart(_, id), Some(desired)) => {
                return answer(self.start(desired, id).await);
            }
            (ContainerAction::Stop(_, id), _) => {
                self.docker.stop(id, STOP_GRACE).await.or_else(gone)
            }
            (ContainerAction::RemoveDouble(_, id), _) => self.docker.remove(id).await,
            (_, None) => Ok(()),
        };
        answer(done.map(|()| None))
    }

    async fn create(&self, desired: &InstanceDesired) -> Outcome {
        let reference = &desired.spec.image;
        let image = match self.docker.image(reference).await {
            Ok(Some(image)) => image,
            Ok(None) => return Outcome::ImageMissing,
            Err(error) => return failed(&error),
        };
        let created = async {
            let facts = self.docker.facts().await?;
            let injection = self.inject(desired, &facts).await?;
            self.docker.ensure_network(&self.network).await?;
            let node = NodeFacts {
                network: self.network.name.clone(),
                guest: self.guest.clone(),
                guest_folder: self.make_guest_folder()?,
            };
            let blueprint = spec::blueprint(desired, &image, &facts, &injection, &node);
            for volume in &blueprint.volumes {
                self.docker.create_volume(volume).await?;
            }
            let mut id = self.make(desired, &blueprint.container).await?;
            let slice_idle = self.why_slice_is_idle(desired, &id).await?;
            if slice_idle.as_ref().is_some_and(|reason| !reason.is_empty()) {
                // The loader of musl takes LD_PRELOAD as well, and then ends every process with 127,
                // because the library's glibc is missing.
                let bare = Injection { limits: injection.limits, ..Injection::default() };
                let blueprint = spec::blueprint(desired, &image, &facts, &bare, &node);
                self.docker.remove(&id).await?;
                id = self.make(desired, &blueprint.container).await?;
            }
            self.start(desired, &id).await?;
            Ok(slice_idle)
        };
        match created.await {
            Ok(slice_idle) => Outcome::Done { slice_idle },
            Err(error) => failed(&error),
        }
    }

    /// Makes the folder of the guest's socket, which a container binds.
    fn make_guest_folder(&self) -> Result<String, DockerError> {
        let made =
            if self.guest.is_some() { std::fs::create_dir_all(&self.guest_folder) } else { Ok(()) };
        let path = self.guest_folder.display().to_string();
        made.map(|()| path.clone())
            .map_err(|error| DockerError::Unsupported(format!("{path} cannot be made: {error}")))
    }

    /// Makes a container, or finds the one that an attempt which was cut off made already.
    async fn make(
        &self,
        desired: &InstanceDesired,
        wanted: &CreateContainer,
    ) -> Result<String, DockerError> {
        match self.docker.create(wanted).await {
            Err(DockerError::Conflict { message }) => match self.docker.inspect(&wanted.name).await
            {
                Ok(found) if found.instance == desired.id => Ok(found.id),
                _ => Err(DockerError::Conflict { message }),
            },
            other => other,
        }
    }

    async fn start(
        &self,
        desired: &InstanceDesired,
        container: &str,
    ) -> Result<Option<String>, DockerError> {
        let facts = self.docker.facts().await?;
        self.docker.ensure_network(&self.network).await?;
        self.launch(desired, container, &facts).await
    }

    /// Starts a container whose limits are fresh, and answers why its slice cannot act.
    async fn launch(
        &self,
        desired: &InstanceDesired,
        container: &str,
        facts: &EngineFacts,
    ) -> Result<Option<String>, DockerError> {
        if let Some(slice) = desired.spec.slice.filter(|_| facts.local) {
            let (id, gpus) = (desired.id, desired.spec.gpus.clone());
            self.on_blocking_thread(move |injector| injector.reseed(id, slice, &gpus)).await?;
        }
        let slice_idle = self.why_slice_is_idle(desired, container).await?;
        self.docker.start(container).await?;
        Ok(slice_idle)
    }

    async fn inject(
        &self,
        desired: &InstanceDesired,
        facts: &EngineFacts,
    ) -> Result<Injection, DockerError> {
        let Some(slice) = desired.spec.slice else {
            return Ok(Injection::default());
        };
        if !facts.local {
            let limit = LimitState {
                kind: LimitKind::Slice,
                enforced: false,
                reason: "the docker engine is on another host, where no slicing library can be put"
                    .to_owned(),
            };
            return Ok(Injection { limits: vec![limit], ..Injection::default() });
        }
        let (id, gpus) = (desired.id, desired.spec.gpus.clone());
        self.on_blocking_thread(move |injector| injector.prepare(id, slice, &gpus)).await
    }

    async fn why_slice_is_idle(
        &self,
        desired: &InstanceDesired,
        container: &str,
    ) -> Result<Option<String>, DockerError> {
        if desired.spec.slice.is_none() {
            return Ok(None);
        }
        for path in GLIBC {
            if self.docker.path_exists(container, path).await? {
                return Ok(Some(String::new()));
            }
        }
        Ok(Some(format!(
            "image {} has no glibc, which the slicing library needs",
            desired.spec.image
        )))
    }

    async fn on_blocking_thread<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn SliceInjector) -> Result<T, crate::gpu::inject::InjectError>
        + Send
        + 'static,
    ) -> Result<T, DockerError> {
        let injector = self.injector.clone();
        let message = match tokio::task::spawn_blocking(move || call(injector.as_ref())).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => chain(&error),
            Err(error) => error.to_string(),
        };
        Err(DockerError::Unsupported(format!("slice could not be prepared: {message}")))
    }

    /// Removes everything of an instance. Volumes are tried even when a container stays.
    async fn purge(&self, id: InstanceId) -> Removed {
        let mut leftovers = Vec::new();
        let mut volumes = BTreeSet::new();
        for container in &self.containers {
            volumes.extend(container.volumes.iter().cloned());
            if let Err(error) = self.docker.remove(&container.id).await {
                leftovers.push(format!("container {}: {error}", container.name));
            }
        }
        match self.docker.volumes(id).await {
            Ok(labelled) => volumes.extend(labelled.into_iter().map(|volume| volume.name)),
            Err(error) => leftovers.push(format!("volumes: {error}")),
        }
        for volume in volumes {
            if let Err(error) = self.remove_volume(&volume).await {
                leftovers.push(format!("volume {volume}: {error}"));
            }
        }
        // Files of the slice stay while a container may still use them.
        if leftovers.is_empty()
            && let Err(error) = self.on_blocking_thread(move |i| i.cleanup(id)).await
        {
            leftovers.push(error.to_string());
        }
        if leftovers.is_empty()
            && let Err(error) = std::fs::remove_dir_all(&self.guest_folder)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            leftovers.push(format!("{}: {error}", self.guest_folder.display()));
        }
        Removed { id, leftovers }
    }

    /// Docker lets go of a volume a moment after the container that used it is gone.
    async fn remove_volume(&self, volume: &str) -> Result<(), DockerError> {
        match self.docker.remove_volume(volume).await {
            Err(DockerError::Conflict { .. }) => {
                tokio::time::sleep(Duration::from_millis(200)).await;
                self.docker.remove_volume(volume).await
            }
            other => other,
        }
    }
}

/// A container that is gone does not run either; the next look at the node tells.
fn gone(error: DockerError) -> Result<(), DockerError> {
    if error.is_not_found() { Ok(()) } else { Err(error) }
}

fn answer(done: Result<Option<String>, DockerError>) -> Outcome {
    match done {
        Ok(slice_idle) => Outcome::Done { slice_idle },
        Err(error) => failed(&error),
    }
}

fn failed(error: &DockerError) -> Outcome {
    Outcome::Failed { message: error.to_string(), is_engine_down: error.is_engine_down() }
}

/// Puts an error and its causes into one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
