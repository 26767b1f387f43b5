//! Instances, whole path: API, scheduler, wire, agent, a real Docker engine, and back.

use serde_json::{Value, json};
use tianqi_tests::client::Client;
use tianqi_tests::cluster::{Agent, AgentOptions, Cluster};
use tianqi_tests::deadline::Deadline;
use tianqi_tests::dockerd::Dockerd;
use tianqi_tests::images;

/// Everything that a test of instances needs; the fields are dropped in this order.
struct World {
    admin: Client,
    agent: Agent,
    cluster: Cluster,
    engine: Dockerd,
}

impl World {
    async fn start() -> Self {
        let engine = Dockerd::start();
        let cluster = Cluster::start();
        let admin = cluster.admin().await;
        let options = AgentOptions::on(&engine).simulating("2xNVIDIA-L40:46068");
        let agent = cluster.add_agent(&admin, options).await;
        Self { admin, agent, cluster, engine }
    }

    /// Asks for an instance of an image and waits until it runs.
    async fn running(&self, name: &str, address: &str) -> String {
        let id = self.asked(name, address).await;
        self.admin.wait_phase(&id, "running").await;
        id
    }

    async fn asked(&self, name: &str, address: &str) -> String {
        let image = self.admin.create_image(name, address).await;
        let spec = self.admin.create_cpu_spec(name).await;
        self.admin.create_instance(name, &image, &spec).await
    }

    fn containers_of(&self, id: &str) -> Vec<String> {
        self.engine.containers_labelled(&format!("tianqi.instance={id}"))
    }

    async fn wait_until_nothing_is_left(&self) {
        let deadline = Deadline::after(tianqi_tests::client::PATIENCE);
        loop {
            let (containers, volumes) =
                (self.engine.containers_labelled("tianqi.instance"), self.engine.volumes());
            if containers.is_empty() && volumes.is_empty() {
                return;
            }
            deadline.pause_async(&format!("left behind: {containers:?} {volumes:?}")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_lives_and_leaves_nothing_behind() {
    let world = World::start().await;
    let admin = &world.admin;
    let id = world.running("life", images::busybox(&world.engine)).await;
    let first = world.containers_of(&id);
    assert_eq!(first.len(), 1);
    assert_eq!(world.engine.volumes().len(), 1, "the data volume");

    let logs = admin.request(reqwest::Method::GET, &format!("/instances/{id}/logs?tail=10"));
    let logs = logs.send().await.unwrap().text().await.unwrap();
    assert!(logs.contains("ready"), "logs: {logs}");

    admin.act(&id, "stop").await;
    let stopped = admin.wait_phase(&id, "exited").await;
    assert_eq!(stopped["desired"], "stopped", "{stopped}");
    admin.act(&id, "start").await;
    admin.wait_phase(&id, "running").await;
    assert_eq!(world.containers_of(&id), first, "start keeps the container and its disk");

    let started =
        |engine: &Dockerd| engine.docker(&["inspect", "-f", "{{.State.StartedAt}}", &first[0]]);
    let before = started(&world.engine);
    admin.act(&id, "restart").await;
    let deadline = Deadline::after(tianqi_tests::client::PATIENCE);
    while started(&world.engine) == before {
        deadline.pause_async("the container was not restarted").await;
    }
    admin.wait_phase(&id, "running").await;

    admin.delete(&format!("/instances/{id}")).await;
    admin.wait_gone(&id).await;
    world.wait_until_nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_doubled_or_lost_when_either_side_or_docker_is_killed() {
    let mut world = World::start().await;
    let id = world.running("survivor", images::busybox(&world.engine)).await;
    let container = world.containers_of(&id);

    world.agent.kill_and_restart();
    world.agent.wait_until_ready(&world.admin).await;
    world.cluster.kill_and_restart_controller();
    world.admin = world.cluster.admin().await;
    world.agent.wait_until_ready(&world.admin).await;
    world.engine.kill();
    world.engine.resume();
    world.agent.wait_until_ready(&world.admin).await;

    world.admin.wait_phase(&id, "running").await;
    assert_eq!(world.containers_of(&id), container);
    world.admin.delete(&format!("/instances/{id}")).await;
    world.admin.wait_gone(&id).await;
    world.wait_until_nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_and_a_delete_in_the_middle_of_which_the_agent_dies_converge() {
    let mut world = World::start().await;
    let address = images::busybox(&world.engine);
    let image = world.admin.create_image("churn", address).await;
    let spec = world.admin.create_cpu_spec("churn").await;
    let mut ids = Vec::new();

    for round in 0..4 {
        let id = world.admin.create_instance(&format!("churn-{round}"), &image, &spec).await;
        ids.push(id);
        world.agent.kill_and_restart();
    }
    for id in &ids {
        world.admin.wait_phase(id, "running").await;
        assert_eq!(world.containers_of(id).len(), 1, "{id} is doubled or missing");
    }
    for id in &ids {
        world.admin.delete(&format!("/instances/{id}")).await;
        world.agent.kill_and_restart();
    }

    for id in &ids {
        world.admin.wait_gone(id).await;
    }
    world.wait_until_nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_removed_behind_our_back_is_noticed() {
    let world = World::start().await;
    let id = world.running("taken", images::busybox(&world.engine)).await;
    let container = world.containers_of(&id).remove(0);

    world.engine.docker(&["rm", "-f", &container]);

    let deadline = Deadline::after(std::time::Duration::from_secs(5));
    loop {
        let instance = world.admin.instance(&id).await;
        let is_replaced = world.containers_of(&id).iter().any(|other| *other != container);
        if instance["phase"] != "running" || is_replaced {
            break;
        }
        deadline.pause_async("nobody noticed within five seconds").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_whose_process_fails_says_so_with_its_exit_code() {
    let world = World::start().await;
    let id = world.asked("unlucky", images::failing(&world.engine)).await;

    let instance = wait_ended(&world.admin, &id).await;

    assert!(instance["reason"].as_str().is_some_and(|r| r.contains('3')), "{instance}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_does_not_exist_fails_with_dockers_reason() {
    let world = World::start().await;
    let id = world.asked("missing", "127.0.0.1:1/no/such:image").await;

    let instance = world.admin.wait_phase(&id, "failed").await;

    let reason = instance["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("127.0.0.1:1"), "{instance}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spec_that_nobody_can_satisfy_stays_pending_and_says_why() {
    let world = World::start().await;
    let image = world.admin.create_image("huge", images::busybox(&world.engine)).await;
    let spec = world.admin.create_spec("huge", &json!({ "gpu_count": 8 })).await;

    let id = world.admin.create_instance("huge", &image, &spec).await;

    let deadline = Deadline::after(tianqi_tests::client::PATIENCE);
    loop {
        let instance = world.admin.instance(&id).await;
        assert_eq!(instance["phase"], "pending", "{instance}");
        if instance["reason_code"] == "impossible" {
            let reason = instance["reason"].as_str().unwrap_or_default();
            assert!(!reason.is_empty(), "{instance}");
            break;
        }
        deadline.pause_async(&format!("no reason is given: {instance}")).await;
    }
    assert!(world.containers_of(&id).is_empty());
}

async fn wait_ended(admin: &Client, id: &str) -> Value {
    let deadline = Deadline::after(tianqi_tests::client::PATIENCE);
    loop {
        let instance = admin.instance(id).await;
        if instance["phase"] == "exited" || instance["phase"] == "failed" {
            return instance;
        }
        deadline.pause_async(&format!("it has not ended: {instance}")).await;
    }
}
