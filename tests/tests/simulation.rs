//! Random faults by seed over the whole system, checked against a reference model: nothing is lost,
//! doubled, left behind or overcommitted.
//!
//! `TIANQI_SIMULATION_SEED` and `TIANQI_SIMULATION_STEPS` choose another course; the seed of a run
//! is printed at its beginning. After a failure the logs of both programs are kept in Cargo's
//! temporary folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tianqi_tests::client::{Client, text};
use tianqi_tests::cluster::{Agent, AgentOptions, Cluster};
use tianqi_tests::deadline::Deadline;
use tianqi_tests::disk::SmallDisk;
use tianqi_tests::dockerd::Dockerd;
use tianqi_tests::images;
use tianqi_tests::model::{Broken, Model, Policy, Size, Want};
use tianqi_tests::observation::{Observation, Places, Remain, containers};
use tianqi_tests::relay::Relay;
use tianqi_tests::transition::{Dice, Fault, Transition};

/// Transitions of a run when nobody says how many.
const STEPS: u32 = 40;
/// Longest wait until everything has come to rest after the last fault.
const REST: Duration = Duration::from_secs(150);

/// The whole system; the fields are dropped in this order.
struct World {
    admin: Client,
    disk: SmallDisk,
    agent: Agent,
    cluster: Cluster,
    relay: Relay,
    engine: Dockerd,
    image: String,
    specs: BTreeMap<Size, String>,
    model: Model,
    broken: Broken,
    fault: Option<Fault>,
    created: u32,
    deleted: u32,
    /// Most regions of slices that were mounted at once.
    regions: usize,
}

#[tokio::test(flavor = "multi_thread")]
async fn random_faults_lose_double_leave_and_overcommit_nothing() {
    let seed = number("TIANQI_SIMULATION_SEED").unwrap_or_else(rand::random);
    let steps = number("TIANQI_SIMULATION_STEPS").map_or(STEPS, |it| u32::try_from(it).unwrap());
    println!("simulation: seed {seed} begins");
    let mut world = World::start().await;
    let mut dice = Dice::new(seed);

    for step in 0..steps {
        tokio::time::sleep(dice.pause()).await;
        let transition = dice.draw(&world.model, world.fault);
        println!("{step:4} {transition:?}");
        world.perform(transition).await;
        world.observe().await;
    }
    world.mend();
    let restless = world.end().await;

    println!(
        "simulation: seed {seed} steps {steps} creates {} deletes {} (regions at once: {}) {}",
        world.created,
        world.deleted,
        world.regions,
        world.broken.summary()
    );
    let lines: Vec<String> = world.broken.lines().chain(&restless).cloned().collect();
    if !lines.is_empty() {
        panic!("seed {seed}: {lines:#?}\nlogs: {:?}", world.keep_logs(seed));
    }
}

impl World {
    async fn start() -> Self {
        let engine = Dockerd::start();
        let cluster = Cluster::start_with(&[("TIANQI_LOG__LEVEL", "info,tianqi_controller=debug")]);
        let relay = Relay::start(cluster.agents()).await;
        let admin = cluster.admin().await;
        let mut options = AgentOptions::on(&engine).simulating("2xNVIDIA-L40:46068");
        options
            .settings
            .push(("TIANQI_LOG__LEVEL".to_owned(), "info,tianqi_agent=debug".to_owned()));
        options.settings.push(("TIANQI_HAMI__DIR".to_owned(), library_folder(&engine)));
        let mut agent = cluster.add_agent_through(&relay.address(), &admin, options).await;
        let disk = SmallDisk::under(&mut agent);
        agent.wait_until_ready(&admin).await;
        let image = admin.create_image("busybox", images::busybox(&engine)).await;
        let mut specs = BTreeMap::new();
        for size in Size::ALL {
            let id = admin.create_spec(&format!("{size:?}"), &fields(size)).await;
            specs.insert(size, id);
        }
        let (model, broken) = (Model::default(), Broken::default());
        let (fault, created, deleted, regions) = (None, 0, 0, 0);
        Self {
            admin,
            disk,
            agent,
            cluster,
            relay,
            engine,
            image,
            specs,
            model,
            broken,
            fault,
            created,
            deleted,
            regions,
        }
    }

    async fn perform(&mut self, transition: Transition) {
        match transition {
            Transition::Create(size, policy) => {
                let ask = self.ask_to_create(size, policy);
                let answer = ask.send().await;
                self.take_created(&ask, answer);
            }
            Transition::Start(name) => self.act(&name, "start", Want::Running).await,
            Transition::Stop(name) => self.act(&name, "stop", Want::Stopped).await,
            Transition::Restart(name) => self.act(&name, "restart", Want::Running).await,
            Transition::Delete(name) => {
                let id = self.model.id_of(&name);
                self.admin.delete(&format!("/instances/{id}")).await;
                self.deletes(&id);
            }
            Transition::DeleteMany(names) => {
                let ids: Vec<String> = names.iter().map(|name| self.model.id_of(name)).collect();
                let answer = self.admin.post("/instances/delete", &json!({ "ids": ids })).await;
                for item in answer["items"].as_array().unwrap() {
                    assert_eq!(item["accepted"], true, "{answer}");
                }
                ids.iter().for_each(|id| self.deletes(id));
            }
            Transition::RemoveContainer(name) => self.meddle(&name, &["rm", "--force"]),
            Transition::KillContainer(name) => {
                self.model.killed(&self.model.id_of(&name));
                self.meddle(&name, &["kill"]);
            }
            Transition::KillController { creates, delete, after } => {
                self.kill_controller(&creates, delete, after).await;
            }
            Transition::KillAgent => self.agent.kill_and_restart(),
            Transition::KillEngine => self.begin(Fault::EngineDown),
            Transition::Cut => self.begin(Fault::Cut),
            Transition::CutLong(time) => {
                self.begin(Fault::Cut);
                tokio::time::sleep(time).await;
            }
            Transition::Freeze => self.begin(Fault::Frozen),
            Transition::FillDisk => self.begin(Fault::DiskFull),
            Transition::Mend => self.mend(),
        }
    }

    fn ask_to_create(&mut self, size: Size, policy: Policy) -> Create {
        self.created += 1;
        let name = format!("sim-{:04}", self.created);
        let body = json!({
            "name": name, "image_id": self.image, "spec_id": self.specs[&size],
            "restart_policy": policy.as_str(),
        });
        Create { admin: self.admin.clone(), name, policy, body }
    }

    fn take_created(&mut self, ask: &Create, answer: Option<Value>) {
        let instance = answer.expect("the controller answers");
        self.model.created(text(&instance, "id"), ask.name.clone(), ask.policy);
    }

    async fn act(&mut self, name: &str, verb: &str, want: Want) {
        let id = self.model.id_of(name);
        let path = format!("/instances/{id}/{verb}");
        match self.admin.try_call(Method::POST, &path, Some(&json!({}))).await {
            (status, _) if status.is_success() => self.model.wants(&id, want),
            // It does not apply now, and says so.
            (StatusCode::CONFLICT, problem) => assert_eq!(problem["code"], "not_possible"),
            (status, problem) => panic!("{verb} answered {status}: {problem}"),
        }
    }

    fn deletes(&mut self, id: &str) {
        self.deleted += 1;
        self.model.deletes(id);
    }

    /// Does something to an instance's container without telling the platform.
    fn meddle(&self, name: &str, command: &[&str]) {
        let id = self.model.id_of(name);
        for container in containers(&self.engine).iter().filter(|it| it.instance == id) {
            // It may end or go in the same moment by itself.
            let _ = self.engine.try_docker(&[command, &[&container.id]].concat());
        }
    }

    /// Kills the controller while requests are on the way, and sends those that were not answered
    /// again to the next one.
    async fn kill_controller(
        &mut self,
        creates: &[(Size, Policy)],
        delete: Option<String>,
        after: Duration,
    ) {
        let asks: Vec<Create> =
            creates.iter().map(|(size, policy)| self.ask_to_create(*size, *policy)).collect();
        let sent: Vec<_> = asks.iter().map(|ask| tokio::spawn(ask.clone().send_owned())).collect();
        let path = delete.as_ref().map(|name| format!("/instances/{}", self.model.id_of(name)));
        let deleting = path.map(|path| self.admin.request(Method::DELETE, &path));
        let deleting = deleting.map(|request| tokio::spawn(request.send()));
        tokio::time::sleep(after).await;
        self.cluster.kill_and_restart_controller();
        for (ask, sent) in asks.iter().zip(sent) {
            let mut answer = sent.await.unwrap();
            if answer.is_none() {
                answer = ask.send().await;
            }
            self.take_created(ask, answer);
        }
        if let (Some(name), Some(deleting)) = (delete, deleting) {
            let _ = deleting.await;
            self.delete_again(&name).await;
        }
    }

    /// Deletes what may be deleted already.
    async fn delete_again(&mut self, name: &str) {
        let id = self.model.id_of(name);
        let path = format!("/instances/{id}");
        let (status, answer) = self.admin.try_call(Method::DELETE, &path, None).await;
        let is_done = status.is_success() || status == StatusCode::NOT_FOUND;
        assert!(is_done, "delete answered {status}: {answer}");
        self.deletes(&id);
    }

    fn begin(&mut self, fault: Fault) {
        match fault {
            Fault::EngineDown => self.engine.kill(),
            Fault::Cut => self.relay.cut(),
            Fault::Frozen => self.agent.process().signal("-STOP"),
            Fault::DiskFull => self.disk.fill(),
        }
        self.fault = Some(fault);
    }

    fn mend(&mut self) {
        match self.fault.take() {
            Some(Fault::EngineDown) => self.engine.resume(),
            Some(Fault::Cut) => self.relay.mend(),
            Some(Fault::Frozen) => self.agent.process().signal("-CONT"),
            Some(Fault::DiskFull) => self.disk.free(),
            None => {}
        }
    }

    async fn look(&self) -> Observation {
        let engine = (self.fault != Some(Fault::EngineDown)).then_some(&self.engine);
        let places = Places {
            admin: &self.admin,
            database: &self.cluster.data_dir().join("tianqi.db"),
            engine,
            agent: &self.agent.data_dir(),
        };
        places.look().await
    }

    async fn observe(&mut self) -> Observation {
        let seen = self.look().await;
        let is_region = |it: &&Remain| matches!(it, Remain::Region(_));
        self.regions = self.regions.max(seen.remains.iter().filter(is_region).count());
        let before = self.broken.lines().count();
        self.model.check_always(&seen, &mut self.broken);
        if self.broken.lines().count() > before {
            println!("     broken: {:?}", self.broken);
        }
        self.check_data();
        let ended = self.agent.process().has_ended();
        assert!(!ended, "the agent ended:\n{}", self.agent.log());
        seen
    }

    /// Lays a mark into the data of every instance that has a volume, and looks for earlier marks.
    fn check_data(&mut self) {
        if self.fault == Some(Fault::EngineDown) {
            return;
        }
        for (id, folder) in data_folders(&self.engine) {
            let Some(asked) = self.model.asked.get_mut(&id) else { continue };
            let mark = folder.join("mark");
            if asked.is_marked && folder.exists() && !mark.exists() {
                self.broken.lost.insert(format!("the data of {}", asked.name));
            }
            asked.is_marked |= fs::write(mark, &id).is_ok();
        }
    }

    /// Waits until everything rests, lets everyone in the queue run in turn, deletes everything, and
    /// waits until nothing is left. Returns what did not come to rest.
    async fn end(&mut self) -> Vec<String> {
        loop {
            let (seen, restless) = self.rest().await;
            if !restless.is_empty() {
                return restless;
            }
            if !seen.instances.values().any(|it| it.waits_for_capacity()) {
                break;
            }
            // Who waits has its turn when those that run are through.
            for instance in seen.instances.values().filter(|it| it.phase == "running") {
                self.act(&instance.name, "stop", Want::Stopped).await;
            }
        }
        let left: Vec<String> = self.model.asked.values().map(|it| it.name.clone()).collect();
        for name in left {
            self.perform(Transition::Delete(name)).await;
        }
        self.rest().await.1
    }

    async fn rest(&mut self) -> (Observation, Vec<String>) {
        let (deadline, began) = (Deadline::after(REST), Instant::now());
        loop {
            let seen = self.observe().await;
            let restless = self.model.unrest(&seen);
            if restless.is_empty() || deadline.is_over() {
                println!("     at rest after {:?}", began.elapsed());
                return (seen, restless);
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    fn keep_logs(&mut self, seed: u64) -> Vec<PathBuf> {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let logs = [("controller", self.cluster.controller().log()), ("agent", self.agent.log())];
        let keep = |(program, log)| {
            let path = folder.join(format!("simulation-{seed}-{program}.log"));
            fs::write(&path, log).unwrap();
            path
        };
        logs.into_iter().map(keep).collect()
    }
}

/// A request for an instance, which may be sent again.
#[derive(Clone)]
struct Create {
    admin: Client,
    name: String,
    policy: Policy,
    body: Value,
}

impl Create {
    /// Sends it; nothing when the answer was lost.
    async fn send(&self) -> Option<Value> {
        let request = self.admin.request(Method::POST, "/instances");
        let request = request.header("Idempotency-Key", &self.name).json(&self.body);
        let response = request.send().await.ok()?;
        let status = response.status();
        let answer = response.text().await.ok()?;
        assert!(status.is_success(), "create answered {status}: {answer}");
        Some(serde_json::from_str(&answer).unwrap())
    }

    async fn send_owned(self) -> Option<Value> {
        self.send().await
    }
}

fn fields(size: Size) -> Value {
    let mut fields = json!({ "cpu_cores": 0.1, "memory_mib": 32 });
    match size {
        Size::Cpu => {}
        Size::Slice => {
            fields["gpu_count"] = 1.into();
            fields["slicing"] = true.into();
            fields["gpu_memory_mib"] = 15_000.into();
            fields["gpu_core_percent"] = 30.into();
        }
        Size::Card => fields["gpu_count"] = 1.into(),
    }
    fields
}

/// Lays our stand-in for the slicing library where an operator would, and returns the folder.
fn library_folder(engine: &Dockerd) -> String {
    let program = std::env::current_exe().unwrap();
    let library = program.ancestors().nth(2).unwrap().join("libvgpu.so");
    assert!(library.exists(), "{} is missing: cargo build -p tianqi-stub-vgpu", library.display());
    let folder = engine.root().join("hami");
    fs::create_dir_all(&folder).unwrap();
    fs::copy(library, folder.join("libvgpu.so")).unwrap();
    folder.to_string_lossy().into_owned()
}

/// Returns the folders of the volumes of instances.
fn data_folders(engine: &Dockerd) -> Vec<(String, PathBuf)> {
    let format = "{{.Label \"tianqi.instance\"}} {{.Mountpoint}}";
    let listed = engine.docker(&["volume", "ls", "--format", format]);
    let pairs = listed.lines().filter_map(|line| line.split_once(' '));
    pairs.map(|(id, folder)| (id.to_owned(), folder.into())).collect()
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} is not a number: {value}")))
}
