//! An in-memory Docker for tests, with faults to order.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tianqi_common::clock::{SharedClock, UnixMillis};
use tianqi_common::id::InstanceId;
use tianqi_common::wire::desired::GpuUuid;
use tianqi_common::wire::inventory::DockerEngine;
use tianqi_common::wire::stream::{PtySize, RegistryCredentials};
use tokio::sync::broadcast;

use super::{
    Container, ContainerUsage, CreateContainer, CreateVolume, Docker, DockerError, DockerEvent,
    EngineFacts, ExecRequest, ExecSession, ExecState, ImageFacts, LogRequest, NetworkFacts,
    NetworkSpec, Output, Pieces, PullProgress, Reply, Run, Volume, label,
};

/// Events that a listener may lag behind; older ones are dropped and the stream ends, as a real
/// engine's would.
const EVENTS: usize = 1_024;

/// An engine that exists in memory alone. Clones are the same engine.
#[derive(Clone)]
pub struct FakeDocker {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<DockerEvent>,
    clock: SharedClock,
}

#[derive(Default)]
struct State {
    is_down: bool,
    made: u32,
    images: BTreeMap<String, ImageFacts>,
    containers: BTreeMap<String, Container>,
    bodies: BTreeMap<String, CreateContainer>,
    volumes: BTreeMap<String, BTreeMap<String, String>>,
    faults: Vec<(&'static str, DockerError)>,
    stop_takes: Duration,
    calls: Vec<String>,
    logs: Option<Script>,
}

/// What the next readings of an output are asked for, and what they give.
type Script = Arc<dyn Fn(LogRequest) -> Pieces<Output> + Send + Sync>;

impl FakeDocker {
    /// Returns an engine with nothing in it.
    #[must_use]
    pub fn new(clock: SharedClock) -> Self {
        Self { state: Arc::default(), events: broadcast::channel(EVENTS).0, clock }
    }

    /// Puts an image there.
    pub fn add_image(&self, reference: &str) {
        self.state().images.insert(reference.to_owned(), ImageFacts::default());
    }

    /// Lets the next call of this name fail; orders for one name are served one after another.
    pub fn fail_next(&self, call: &'static str, error: DockerError) {
        self.state().faults.push((call, error));
    }

    /// Lets the engine go or come back.
    pub fn set_down(&self, is_down: bool) {
        self.state().is_down = is_down;
        self.emit("daemon", None, "");
    }

    /// Lets every stop take this long.
    pub fn set_stop_time(&self, time: Duration) {
        self.state().stop_takes = time;
    }

    /// Says what every output gives.
    pub fn set_logs(&self, script: impl Fn(LogRequest) -> Pieces<Output> + Send + Sync + 'static) {
        self.state().logs = Some(Arc::new(script));
    }

    /// Lets a container's first process end.
    pub fn end(&self, container: &str, code: i64) {
        let now = self.clock.now();
        self.change(container, "die", |found| {
            found.run = Run::Exited { code, out_of_memory: false, error: String::new() };
            found.finished_at = Some(now);
        });
    }

    /// Returns every container.
    #[must_use]
    pub fn all(&self) -> Vec<Container> {
        self.state().containers.values().cloned().collect()
    }

    /// Returns the names of every volume.
    #[must_use]
    pub fn volume_names(&self) -> Vec<String> {
        self.state().volumes.keys().cloned().collect()
    }

    /// Returns what changed the engine so far, such as `start c1`.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn emit(&self, action: &str, instance: Option<InstanceId>, container: &str) {
        let (container, action) = (container.to_owned(), action.to_owned());
        // Nobody may be listening.
        let _ = self.events.send(DockerEvent { container, instance, action });
    }

    fn change(&self, container: &str, action: &str, change: impl FnOnce(&mut Container)) {
        let mut state = self.state();
        let Some(found) = state.containers.get_mut(container) else {
            return;
        };
        change(found);
        let instance = found.instance;
        drop(state);
        self.emit(action, Some(instance), container);
    }

    /// Begins a call: fails when the engine is away or a fault was ordered for it.
    fn call(&self, name: &'static str, of: &str) -> Result<(), DockerError> {
        let mut state = self.state();
        if state.is_down {
            return Err(DockerError::Unreachable {
                endpoint: "fake".to_owned(),
                message: "connection refused".to_owned(),
            });
        }
        if matches!(name, "create" | "start" | "stop" | "remove" | "remove_volume") {
            state.calls.push(format!("{name} {of}"));
        }
        match state.faults.iter().position(|(call, _)| *call == name) {
            Some(position) => Err(state.faults.remove(position).1),
            None => Ok(()),
        }
    }

    fn found(&self, container: &str) -> Result<Container, DockerError> {
        let state = self.state();
        let mut all = state.containers.values();
        all.find(|found| found.id == container || found.name == container)
            .cloned()
            .ok_or_else(|| no_such("container", container))
    }

    fn add(&self, body: &CreateContainer) -> Result<String, DockerError> {
        self.call("create", &body.name)?;
        let mut state = self.state();
        if state.containers.values().any(|found| found.name == body.name) {
            let message = format!("the container name {:?} is already in use", body.name);
            return Err(DockerError::Conflict { message });
        }
        state.made += 1;
        let id = format!("c{}", state.made);
        let of = |name: &str| body.labels.get(name).map(String::as_str).unwrap_or_default();
        let instance = of(label::INSTANCE)
            .parse()
            .map_err(|_| DockerError::Unsupported("the label is no instance".to_owned()))?;
        let uuids = of(label::GPUS).split(',').filter(|uuid| !uuid.is_empty());
        let container = Container {
            id: id.clone(),
            name: body.name.clone(),
            instance,
            generation: of(label::GENERATION).parse().unwrap_or_default(),
            gpus: uuids.map(|uuid| GpuUuid(uuid.to_owned())).collect(),
            limits: serde_json::from_str(of(label::LIMITS)).unwrap_or_default(),
            created_at: self.clock.now(),
            started_at: None,
            finished_at: None,
            run: Run::Created,
            volumes: body.volumes.iter().map(|(name, _)| name.clone()).collect(),
            pid: None,
        };
        state.containers.insert(id.clone(), container);
        state.bodies.insert(id.clone(), body.clone());
        drop(state);
        self.emit("create", Some(instance), &id);
        Ok(id)
    }

    async fn halt(&self, container: &str) -> Result<(), DockerError> {
        self.call("stop", container)?;
        let time = self.state().stop_takes;
        tokio::time::sleep(time).await;
        self.found(container)?;
        self.end(container, 143);
        Ok(())
    }
}

fn no_such(what: &str, name: &str) -> DockerError {
    DockerError::NotFound { message: format!("no such {what}: {name}") }
}

fn unsupported<T>() -> Result<T, DockerError> {
    Err(DockerError::Unsupported("the fake engine runs no programs".to_owned()))
}

/// Answers at once.
fn at_once<'a, T: Send + 'a>(answer: Result<T, DockerError>) -> Reply<'a, T> {
    Box::pin(std::future::ready(answer))
}

impl Docker for FakeDocker {
    fn ping(&self) -> Reply<'_, ()> {
        at_once(self.call("ping", ""))
    }

    fn engine(&self) -> Reply<'_, DockerEngine> {
        at_once(self.call("engine", "").map(|()| DockerEngine {
            version: "0.0.0".to_owned(),
            api_version: "1.41".to_owned(),
            local: true,
            ..DockerEngine::default()
        }))
    }

    fn facts(&self) -> Reply<'_, EngineFacts> {
        let facts = EngineFacts { local: true, ..EngineFacts::default() };
        at_once(self.call("facts", "").map(|()| facts))
    }

    fn containers(&self, of: Option<InstanceId>) -> Reply<'_, Vec<Container>> {
        let wanted = |found: &Container| of.is_none_or(|id| found.instance == id);
        at_once(
            self.call("containers", "").map(|()| self.all().into_iter().filter(wanted).collect()),
        )
    }

    fn inspect<'a>(&'a self, container: &'a str) -> Reply<'a, Container> {
        at_once(self.call("inspect", container).and_then(|()| self.found(container)))
    }

    fn create<'a>(&'a self, container: &'a CreateContainer) -> Reply<'a, String> {
        at_once(self.add(container))
    }

    fn start<'a>(&'a self, container: &'a str) -> Reply<'a, ()> {
        let started = self.call("start", container).and_then(|()| self.found(container));
        let now: UnixMillis = self.clock.now();
        at_once(started.map(|_| {
            self.change(container, "start", |found| {
                found.run = Run::Running;
                found.started_at = Some(now);
            });
        }))
    }

    fn stop<'a>(&'a self, container: &'a str, _: Duration) -> Reply<'a, ()> {
        Box::pin(self.halt(container))
    }

    fn remove<'a>(&'a self, container: &'a str) -> Reply<'a, ()> {
        at_once(self.call("remove", container).map(|()| {
            let gone = self.state().containers.remove(container);
            self.emit("destroy", gone.map(|gone| gone.instance), container);
        }))
    }

    fn volumes(&self, instance: InstanceId) -> Reply<'_, Vec<Volume>> {
        let wanted = instance.to_string();
        let is_of =
            |labels: &BTreeMap<String, String>| labels.get(label::INSTANCE) == Some(&wanted);
        at_once(self.call("volumes", "").map(|()| {
            let state = self.state();
            let ours = state.volumes.iter().filter(|(_, labels)| is_of(labels));
            ours.map(|(name, _)| Volume { name: name.clone(), mountpoint: String::new() }).collect()
        }))
    }

    fn create_volume<'a>(&'a self, volume: &'a CreateVolume) -> Reply<'a, ()> {
        at_once(self.call("create_volume", &volume.name).map(|()| {
            self.state().volumes.entry(volume.name.clone()).or_insert(volume.labels.clone());
        }))
    }

    fn remove_volume<'a>(&'a self, name: &'a str) -> Reply<'a, ()> {
        let removed = self.call("remove_volume", name).and_then(|()| {
            let mut state = self.state();
            if state.containers.values().any(|found| found.volumes.iter().any(|v| v == name)) {
                let message = format!("volume {name} is in use");
                return Err(DockerError::Conflict { message });
            }
            state.volumes.remove(name);
            Ok(())
        });
        at_once(removed)
    }

    fn ensure_network<'a>(&'a self, network: &'a NetworkSpec) -> Reply<'a, NetworkFacts> {
        at_once(self.call("ensure_network", &network.name).map(|()| NetworkFacts {
            bridge: network.bridge.clone(),
            isolated: true,
            subnets: vec![],
        }))
    }

    fn image<'a>(&'a self, reference: &'a str) -> Reply<'a, Option<ImageFacts>> {
        let found = self.call("image", reference);
        at_once(found.map(|()| self.state().images.get(reference).cloned()))
    }

    fn pull<'a>(
        &'a self,
        reference: &'a str,
        _: Option<RegistryCredentials>,
    ) -> Reply<'a, Pieces<PullProgress>> {
        at_once(self.call("pull", reference).map(|()| {
            self.add_image(reference);
            let status = "Pull complete".to_owned();
            let progress = PullProgress { done_bytes: 2, total_bytes: 2, status };
            stream::iter([Ok(progress)]).boxed()
        }))
    }

    fn logs<'a>(&'a self, container: &'a str, wanted: LogRequest) -> Reply<'a, Pieces<Output>> {
        let found = self.call("logs", container).and_then(|()| self.found(container));
        let script = self.state().logs.clone();
        at_once(found.map(|_| match script {
            Some(script) => script(wanted),
            None => stream::empty().boxed(),
        }))
    }

    fn usage<'a>(&'a self, container: &'a str) -> Reply<'a, ContainerUsage> {
        let found = self.call("usage", container).and_then(|()| self.found(container));
        at_once(found.map(|_| ContainerUsage::default()))
    }

    fn events(&self) -> Reply<'_, Pieces<DockerEvent>> {
        let listen = self.call("events", "").map(|()| {
            let heard = self.events.subscribe();
            stream::unfold(heard, |mut heard| async {
                let event = heard.recv().await.ok()?;
                (event.action != "daemon").then_some((Ok(event), heard))
            })
            .boxed()
        });
        at_once(listen)
    }

    fn exec<'a>(&'a self, _: &'a str, _: ExecRequest) -> Reply<'a, ExecSession> {
        at_once(unsupported())
    }

    fn resize_exec<'a>(&'a self, _: &'a str, _: PtySize) -> Reply<'a, ()> {
        at_once(unsupported())
    }

    fn exec_state<'a>(&'a self, _: &'a str) -> Reply<'a, ExecState> {
        at_once(unsupported())
    }

    fn signal_exec<'a>(&'a self, _: &'a str, _: &'a str) -> Reply<'a, ()> {
        at_once(unsupported())
    }

    fn path_exists<'a>(&'a self, container: &'a str, _: &'a str) -> Reply<'a, bool> {
        let found = self.call("path_exists", container).and_then(|()| self.found(container));
        at_once(found.map(|_| true))
    }
}
