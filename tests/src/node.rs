//! An agent's loop on a real engine, in the process of the test.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tianqi_agent::docker::walls::Iptables;
use tianqi_agent::docker::{Docker, DockerHandle, Endpoint, Engine, ExecRequest, NetworkSpec};
use tianqi_agent::gpu::inject::{InjectError, Injection, SliceInjector};
use tianqi_agent::reconcile::ledger::Ledger;
use tianqi_agent::reconcile::{Reconciler, Settings};
use tianqi_common::clock::SystemClock;
use tianqi_common::id::InstanceId;
use tianqi_common::unit::{DiskGib, MemoryMib, Millicores};
use tianqi_common::wire::desired::{
    GpuSlice, GpuUuid, InstanceDesired, InstanceSpec, NodeDesired, RestartPolicy, Run,
};
use tianqi_common::wire::observed::{ContainerState, InstanceObserved, NodeObserved};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::binaries::binary;
use crate::deadline::Deadline;
use crate::dockerd::Dockerd;

/// How long a test waits for something that must happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// For instances that hold no slice.
struct NoSlices;

impl SliceInjector for NoSlices {
    fn prepare(&self, _: InstanceId, _: GpuSlice, _: &[GpuUuid]) -> Result<Injection, InjectError> {
        Ok(Injection::default())
    }

    fn reseed(&self, _: InstanceId, _: GpuSlice, _: &[GpuUuid]) -> Result<(), InjectError> {
        Ok(())
    }

    fn cleanup(&self, _: InstanceId) -> Result<(), InjectError> {
        Ok(())
    }
}

/// Returns the agent's client of an engine.
pub fn engine_of(daemon: &Dockerd) -> Arc<Engine> {
    let endpoint = Endpoint::parse(&daemon.endpoint(), None, None, None).unwrap();
    Arc::new(Engine::new(endpoint).unwrap())
}

/// An agent's loop on an engine.
pub struct Node {
    /// What should be on it.
    pub desired: watch::Sender<Option<NodeDesired>>,
    /// What was last seen on it.
    pub observed: watch::Receiver<NodeObserved>,
    /// Wakes the loop, as a pull does.
    pub wake: Arc<Notify>,
    cancel: CancellationToken,
    task: Option<tokio::task::JoinHandle<()>>,
    folder: tempfile::TempDir,
    /// The bridge of its instances.
    pub bridge: String,
    /// Its engine.
    pub docker: Arc<Engine>,
}

impl Node {
    /// Starts a loop with an empty ledger.
    pub fn start(daemon: &Dockerd) -> Self {
        let bridge = format!("tqw{}", std::process::id() % 100_000);
        let mut node = Self {
            desired: watch::Sender::new(None),
            observed: watch::channel(NodeObserved::default()).1,
            wake: Arc::new(Notify::new()),
            cancel: CancellationToken::new(),
            task: None,
            folder: tempfile::tempdir().unwrap(),
            bridge: format!(
                "{bridge}x{}",
                daemon.endpoint().len() + daemon.pid().unwrap() as usize % 997
            ),
            docker: engine_of(daemon),
        };
        node.boot();
        node
    }

    /// Starts the loop with what its ledger holds.
    pub fn boot(&mut self) {
        let clock = SystemClock::shared();
        let ledger = Ledger::open(self.folder.path(), clock.now()).unwrap();
        let settings = Settings {
            network: NetworkSpec {
                name: "tianqi".to_owned(),
                bridge: self.bridge.clone(),
                subnet: String::new(),
            },
            guest: Some(binary("tianqi-guest").canonicalize().unwrap()),
            guest_folders: self.folder.path().join("guests"),
            ..Settings::default()
        };
        let handle = DockerHandle::new(self.docker.clone());
        let (guard, injector) = (Arc::new(Iptables), Arc::new(NoSlices));
        let reconciler = Reconciler::new(handle, ledger, injector, guard, clock, settings);
        let (sender, receiver) = watch::channel(NodeObserved::default());
        self.observed = receiver;
        self.cancel = CancellationToken::new();
        let run = reconciler.run(
            self.desired.subscribe(),
            self.wake.clone(),
            sender,
            self.cancel.clone(),
        );
        self.task = Some(tokio::spawn(run));
    }

    /// Ends the loop in the middle of whatever it does.
    pub async fn die(&mut self) {
        let task = self.task.take().unwrap();
        task.abort();
        let _ = task.await;
        self.cancel.cancel();
    }

    /// Changes what should be.
    pub fn want(&self, change: impl FnOnce(&mut NodeDesired)) {
        self.desired.send_modify(|desired| {
            let desired = desired.get_or_insert_default();
            desired.revision.generation += 1;
            change(desired);
        });
    }

    /// Adds an instance.
    pub fn want_instance(&self, instance: &InstanceDesired) {
        self.want(|desired| desired.instances.push(instance.clone()));
    }

    /// Asks for an instance to run or to stop.
    pub fn want_run(&self, id: InstanceId, run: Run) {
        self.want(|desired| {
            for instance in desired.instances.iter_mut().filter(|instance| instance.id == id) {
                instance.run = run;
                instance.generation += 1;
            }
        });
    }

    /// Asks for an instance to go.
    pub fn bury(&self, id: InstanceId) {
        self.want(|desired| {
            desired.instances.retain(|instance| instance.id != id);
            desired.tombstones.push(id);
        });
    }

    /// Waits until what is seen is so.
    pub async fn until(
        &mut self,
        what: &str,
        is_so: impl Fn(&NodeObserved) -> bool,
    ) -> NodeObserved {
        let deadline = Deadline::after(PATIENCE);
        loop {
            let seen = self.observed.borrow_and_update().clone();
            if is_so(&seen) {
                return seen;
            }
            deadline.pause_async(&format!("not {what}: {seen:#?}")).await;
        }
    }

    /// Waits until an instance's container is so.
    pub async fn until_state(
        &mut self,
        id: InstanceId,
        what: &str,
        is_so: impl Fn(&ContainerState) -> bool,
    ) -> InstanceObserved {
        let of = |seen: &NodeObserved| seen.instances.iter().find(|i| i.id == id).cloned();
        let seen = self.until(what, |seen| of(seen).is_some_and(|i| is_so(&i.state))).await;
        of(&seen).unwrap()
    }

    /// Waits until an instance runs.
    pub async fn until_running(&mut self, id: InstanceId) -> InstanceObserved {
        self.until_state(id, "running", |state| *state == ContainerState::Running).await
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.cancel.cancel();
        for (command, parent) in [
            ("iptables", "DOCKER-USER"),
            ("iptables", "INPUT"),
            ("ip6tables", "FORWARD"),
            ("ip6tables", "INPUT"),
            ("iptables", "FORWARD"),
            ("ip6tables", "DOCKER-USER"),
        ] {
            for chain in ["IN", "FW"] {
                let chain = format!("TIANQI-{chain}-{}", self.bridge);
                let quiet = |args: &[&str]| drop(Command::new(command).args(args).output());
                quiet(&["-w", "-D", parent, "-i", &self.bridge, "-j", &chain]);
                quiet(&["-w", "-F", &chain]);
                quiet(&["-w", "-X", &chain]);
            }
        }
    }
}

/// Returns an instance that runs `image` on little.
pub fn instance(image: &str) -> InstanceDesired {
    let id = InstanceId::new();
    InstanceDesired {
        id,
        generation: 1,
        run: Run::Running,
        spec: InstanceSpec {
            container_name: format!("train-{id}-1700000000"),
            image: image.to_owned(),
            cpu: Millicores(500),
            memory: MemoryMib(64),
            system_disk: DiskGib(10),
            data_disk: DiskGib(1),
            shm: MemoryMib(32),
            pids_limit: 64,
            gpus: vec![],
            slice: None,
            env: vec![("LANG".to_owned(), "zh_CN.UTF-8".to_owned())],
            restart: RestartPolicy::Never,
        },
    }
}

/// Runs a shell line in a container; returns its output and exit code.
pub async fn run_in(docker: &dyn Docker, container: &str, script: &str) -> (String, Option<i32>) {
    let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
    let request = ExecRequest { argv, ..ExecRequest::default() };
    let mut session = docker.exec(container, request).await.unwrap();
    let mut text = Vec::new();
    while let Some(piece) = session.reader.next().await.unwrap() {
        text.extend_from_slice(&piece.bytes);
    }
    let deadline = Deadline::after(PATIENCE);
    loop {
        let state = docker.exec_state(&session.id).await.unwrap();
        if !state.running {
            return (String::from_utf8_lossy(&text).trim().to_owned(), state.exit_code);
        }
        deadline.pause_async("the program does not end").await;
    }
}
