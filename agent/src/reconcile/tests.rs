use futures_util::future::BoxFuture;
use std::sync::Mutex;
use tianqi_common::clock::Clock;
use tianqi_common::unit::{CorePercent, DiskGib, GpuMemoryMib, MemoryMib, Millicores};
use tianqi_common::wire::desired::{
    GpuSlice, GpuUuid, InstanceDesired, InstanceSpec, RestartPolicy, Revision, Run,
};
use tianqi_common::wire::observed::{ContainerState, LimitKind, LimitState};

use super::*;
use crate::docker::fake::FakeDocker;
use crate::docker::{DockerError, NetworkFacts};
use crate::gpu::inject::{InjectError, Injection};

/// Follows tokio's paused time, so that pauses of minutes pass at once.
struct TokioClock(tokio::time::Instant);

impl Clock for TokioClock {
    fn now(&self) -> UnixMillis {
        UnixMillis(1_700_000_000_000).plus(self.0.elapsed())
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Writes down what it is asked.
#[derive(Default)]
struct Slices(Mutex<Vec<&'static str>>);

impl SliceInjector for Slices {
    fn prepare(&self, _: InstanceId, _: GpuSlice, _: &[GpuUuid]) -> Result<Injection, InjectError> {
        self.0.lock().unwrap().push("prepare");
        let limit = LimitState { kind: LimitKind::Slice, enforced: true, reason: String::new() };
        Ok(Injection { limits: vec![limit], ..Injection::default() })
    }

    fn reseed(&self, _: InstanceId, _: GpuSlice, _: &[GpuUuid]) -> Result<(), InjectError> {
        self.0.lock().unwrap().push("reseed");
        Ok(())
    }

    fn cleanup(&self, _: InstanceId) -> Result<(), InjectError> {
        self.0.lock().unwrap().push("cleanup");
        Ok(())
    }
}

struct NoIptables;

impl NetworkGuard for NoIptables {
    fn enforce<'a>(&'a self, _: &'a NetworkFacts) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(std::future::ready(Err("no iptables here".to_owned())))
    }
}

struct World {
    docker: FakeDocker,
    slices: Arc<Slices>,
    clock: SharedClock,
    folder: tempfile::TempDir,
    desired: watch::Sender<Option<NodeDesired>>,
    observed: watch::Receiver<NodeObserved>,
    wake: Arc<Notify>,
    cancel: CancellationToken,
}

impl World {
    fn start() -> Self {
        let clock: SharedClock = Arc::new(TokioClock(tokio::time::Instant::now()));
        let docker = FakeDocker::new(clock.clone());
        docker.add_image("busybox");
        let mut world = Self {
            docker,
            slices: Arc::default(),
            clock,
            folder: tempfile::tempdir().unwrap(),
            desired: watch::Sender::new(None),
            observed: watch::channel(NodeObserved::default()).1,
            wake: Arc::default(),
            cancel: CancellationToken::new(),
        };
        world.boot();
        world
    }

    fn boot(&mut self) {
        self.cancel.cancel();
        self.cancel = CancellationToken::new();
        let handle = DockerHandle::new(Arc::new(self.docker.clone()));
        let ledger = Ledger::open(self.folder.path(), self.clock.now()).unwrap();
        let (slices, clock) = (self.slices.clone(), self.clock.clone());
        let guard = Arc::new(NoIptables);
        let loop_ = Reconciler::new(handle, ledger, slices, guard, clock, Settings::default());
        let (sender, receiver) = watch::channel(NodeObserved::default());
        self.observed = receiver;
        let desired = self.desired.subscribe();
        tokio::spawn(loop_.run(desired, self.wake.clone(), sender, self.cancel.clone()));
    }

    fn want(&self, generation: u64, instances: &[&InstanceDesired], tombstones: &[InstanceId]) {
        self.desired.send_replace(Some(NodeDesired {
            revision: Revision { epoch: 0, generation },
            instances: instances.iter().map(|instance| (*instance).clone()).collect(),
            tombstones: tombstones.to_vec(),
        }));
    }

    async fn until(&mut self, what: &str, is_so: impl Fn(&NodeObserved) -> bool) -> NodeObserved {
        let waiting = async { self.observed.wait_for(|seen| is_so(seen)).await.unwrap().clone() };
        let seen = tokio::time::timeout(Duration::from_secs(3_600), waiting).await;
        seen.unwrap_or_else(|_| panic!("never {what}: {:#?}", self.observed.borrow().clone()))
    }

    async fn until_state(&mut self, state: &ContainerState) -> NodeObserved {
        self.until(&format!("{state:?}"), |seen| seen.instances.iter().any(|i| i.state == *state))
            .await
    }
}

fn instance() -> InstanceDesired {
    let id = InstanceId::new();
    InstanceDesired {
        id,
        generation: 1,
        run: Run::Running,
        spec: InstanceSpec {
            container_name: format!("a-{id}"),
            image: "busybox".to_owned(),
            cpu: Millicores(1_000),
            memory: MemoryMib(64),
            system_disk: DiskGib(0),
            data_disk: DiskGib(1),
            shm: MemoryMib(0),
            pids_limit: 1,
            gpus: vec![],
            slice: None,
            env: vec![],
            restart: RestartPolicy::Never,
        },
    }
}

fn refused(message: &str) -> DockerError {
    DockerError::Refused { status: 500, message: message.to_owned() }
}

#[tokio::test(start_paused = true)]
async fn refusal_is_told_in_dockers_words_and_tried_again() {
    let mut world = World::start();
    let wanted = instance();
    for _ in 0..3 {
        world.docker.fail_next("start", refused("no space left on device"));
    }
    world.want(1, &[&wanted], &[]);

    let message = "no space left on device".to_owned();
    world.until_state(&ContainerState::Failed { message, retrying: true }).await;
    let seen = world.until_state(&ContainerState::Running).await;

    assert_eq!(seen.instances[0].generation, 1);
    assert_eq!(world.docker.all().len(), 1);
    let network = &seen.instances[0].limits.iter().find(|l| l.kind == LimitKind::Network);
    assert_eq!(network.unwrap().reason, "no iptables here");
}

#[tokio::test(start_paused = true)]
async fn older_desired_state_is_ignored() {
    let mut world = World::start();
    let (first, second) = (instance(), instance());
    world.want(5, &[&first], &[]);
    world.until_state(&ContainerState::Running).await;

    world.want(4, &[&second], &[first.id]);
    world.wake.notify_one();
    tokio::time::sleep(Duration::from_secs(60)).await;

    assert_eq!(world.observed.borrow().revision.generation, 5);
    assert_eq!(world.docker.all()[0].instance, first.id);
}

#[tokio::test(start_paused = true)]
async fn engine_that_goes_makes_everything_unknown_and_nothing_twice() {
    let mut world = World::start();
    let wanted = instance();
    world.want(1, &[&wanted], &[]);
    world.until_state(&ContainerState::Running).await;

    world.docker.set_down(true);
    let seen = world.until_state(&ContainerState::Unknown).await;
    assert!(seen.docker.reason.contains("connection refused"), "{:?}", seen.docker);
    world.docker.set_down(false);
    world.until_state(&ContainerState::Running).await;

    assert_eq!(world.docker.all().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_made_while_the_ledger_cannot_be_written() {
    let mut world = World::start();
    let wanted = instance();
    let in_the_way = world.folder.path().join("ledger.new");
    std::fs::create_dir(&in_the_way).unwrap();
    world.want(1, &[&wanted], &[]);

    let is_told = |seen: &NodeObserved| {
        seen.instances.iter().any(|i| {
            matches!(&i.state, ContainerState::Failed { message, .. } if message.contains("ledger"))
        })
    };
    world.until("told that the ledger cannot be written", is_told).await;
    assert!(world.docker.all().is_empty());
    std::fs::remove_dir(&in_the_way).unwrap();

    world.until_state(&ContainerState::Running).await;
}

#[tokio::test(start_paused = true)]
async fn what_the_ledger_on_disk_contradicts_is_done_but_not_told() {
    let mut world = World::start();
    let (mut stopped, deleted) = (instance(), instance());
    world.want(1, &[&stopped, &deleted], &[]);
    let run = |seen: &NodeObserved| {
        seen.instances.iter().filter(|i| i.state == ContainerState::Running).count() == 2
    };
    world.until("both run", run).await;
    let in_the_way = world.folder.path().join("ledger.new");
    std::fs::create_dir(&in_the_way).unwrap();
    (stopped.run, stopped.generation) = (Run::Stopped, 2);

    world.want(2, &[&stopped], &[deleted.id]);

    let is_done = |seen: &NodeObserved| {
        matches!(seen.instances[0].state, ContainerState::Exited { .. })
            && seen.revision.generation == 2
    };
    world.until("stopped", is_done).await;
    while world.docker.all().len() > 1 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    let seen = world.observed.borrow().clone();
    assert_eq!((seen.instances[0].generation, seen.removed.len()), (1, 0), "{seen:#?}");
    std::fs::remove_dir(&in_the_way).unwrap();

    let is_told = |seen: &NodeObserved| {
        seen.instances[0].generation == 2 && seen.removed.iter().any(|r| r.leftovers.is_empty())
    };
    world.until("told", is_told).await;
}

#[tokio::test(start_paused = true)]
async fn tombstone_tries_volumes_when_the_container_stays_and_tells_what_is_left() {
    let mut world = World::start();
    let wanted = instance();
    world.want(1, &[&wanted], &[]);
    world.until_state(&ContainerState::Running).await;
    world.docker.fail_next("remove", refused("device or resource busy"));

    world.want(2, &[], &[wanted.id]);

    let left = |seen: &NodeObserved| seen.removed.iter().any(|r| r.leftovers.len() == 2);
    let seen = world.until("leftovers", left).await;
    assert!(seen.removed[0].leftovers[0].contains("device or resource busy"));
    assert!(seen.removed[0].leftovers[1].contains("in use"), "{:?}", seen.removed);
    world.until("clean", |seen| seen.removed.iter().any(|r| r.leftovers.is_empty())).await;
    assert!(world.docker.all().is_empty() && world.docker.volume_names().is_empty());
    assert_eq!(*world.slices.0.lock().unwrap(), ["cleanup"]);
}

#[tokio::test(start_paused = true)]
async fn slow_stop_holds_nobody_else_up() {
    let mut world = World::start();
    let (mut slow, other) = (instance(), instance());
    world.want(1, &[&slow], &[]);
    world.until_state(&ContainerState::Running).await;
    world.docker.set_stop_time(Duration::from_secs(300));
    (slow.run, slow.generation) = (Run::Stopped, 2);

    world.want(2, &[&slow, &other], &[]);

    let is_up = |seen: &NodeObserved| {
        seen.instances.get(1).is_some_and(|other| other.state == ContainerState::Running)
    };
    let seen = world.until("the other runs", is_up).await;
    assert_eq!(seen.instances[0].state, ContainerState::Stopping);
    let is_stopped =
        |seen: &NodeObserved| matches!(seen.instances[0].state, ContainerState::Exited { .. });
    world.until("stopped", is_stopped).await;
}

#[tokio::test(start_paused = true)]
async fn slice_is_prepared_before_the_container_and_seeded_before_every_start() {
    let mut world = World::start();
    let mut wanted = instance();
    wanted.spec.gpus = vec![GpuUuid("GPU-1".to_owned())];
    wanted.spec.slice = Some(GpuSlice { memory: GpuMemoryMib(10), cores: CorePercent(10) });
    wanted.spec.restart = RestartPolicy::Always;
    world.want(1, &[&wanted], &[]);
    let seen = world.until_state(&ContainerState::Running).await;
    assert!(seen.instances[0].limits.iter().any(|l| l.kind == LimitKind::Slice && l.enforced));

    world.docker.end(&world.docker.all()[0].id, 1);
    let again = |seen: &NodeObserved| {
        seen.instances[0].restarts == 1 && seen.instances[0].state == ContainerState::Running
    };
    world.until("restarted", again).await;

    assert_eq!(*world.slices.0.lock().unwrap(), ["prepare", "reseed", "reseed"]);
}

#[tokio::test(start_paused = true)]
async fn agent_that_starts_without_a_controller_goes_on_from_its_ledger() {
    let mut world = World::start();
    let mut wanted = instance();
    wanted.spec.restart = RestartPolicy::OnFailure;
    world.want(1, &[&wanted], &[]);
    world.until_state(&ContainerState::Running).await;
    world.cancel.cancel();
    world.docker.end(&world.docker.all()[0].id, 1);
    world.desired = watch::Sender::new(None);

    world.boot();

    let seen = world.until_state(&ContainerState::Running).await;
    assert_eq!((seen.revision.generation, seen.instances[0].restarts), (1, 1));
}
