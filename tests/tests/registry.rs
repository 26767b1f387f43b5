//! Images from a private registry, whole path: push, pull with credentials, refusals, secrets.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use reqwest::Method;
use serde_json::{Value, json};
use tianqi_tests::client::{Client, PATIENCE, text};
use tianqi_tests::cluster::{Agent, AgentOptions, Cluster};
use tianqi_tests::deadline::Deadline;
use tianqi_tests::dockerd::Dockerd;
use tianqi_tests::images;
use tianqi_tests::registry::{PASSWORD, Registry, USERNAME};

const WRONG: &str = "not-the-rosebud-at-all";

/// Dropped in this order.
struct World {
    admin: Client,
    agent: Agent,
    cluster: Cluster,
    engine: Dockerd,
    registry: Registry,
}

impl World {
    async fn start() -> Self {
        let registry = Registry::start();
        let engine = Dockerd::start();
        // The most talkative setting there is: secrets must not be in it either.
        let loud = ("TIANQI_LOG__LEVEL", "trace,quinn=info,quinn_proto=info,quinn_udp=info");
        let cluster = Cluster::start_with(&[loud]);
        let admin = cluster.admin().await;
        let mut options = AgentOptions::on(&engine);
        options.settings.push((loud.0.to_owned(), loud.1.to_owned()));
        let agent = cluster.add_agent(&admin, options).await;
        Self { admin, agent, cluster, engine, registry }
    }

    /// Asks for an instance of an image that only the registry has.
    async fn ask(&self, name: &str, reference: &str, password: &str) -> (String, String) {
        let body = json!({
            "name": name, "address": reference,
            "registry_username": USERNAME, "registry_password": password,
        });
        let image = text(&self.admin.post("/images", &body).await, "id");
        let spec = self.admin.create_cpu_spec(name).await;
        (self.admin.create_instance(name, &image, &spec).await, image)
    }

    /// Looks at an instance until it runs, and returns everything that it said on the way.
    async fn words_until_running(&self, id: &str) -> BTreeSet<String> {
        let deadline = Deadline::after(PATIENCE);
        let mut words = BTreeSet::new();
        loop {
            let instance = self.admin.instance(id).await;
            words.insert(text(&instance, "reason"));
            if instance["phase"] == "running" {
                break;
            }
            deadline.pause_async(&format!("instance is not running: {instance}")).await;
        }
        let page = self.admin.get(&format!("/instances/{id}/events?page_size=200")).await;
        let events = page["items"].as_array().cloned().unwrap_or_default();
        words.extend(events.iter().map(|event| text(event, "message")));
        words
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_image_is_pulled_with_progress_and_its_password_is_nowhere_to_be_read() {
    let mut world = World::start().await;
    let image = heavy(&world.engine);
    let reference = world.registry.take(&world.engine, image, "team/tool:1");

    let (id, _) = world.ask("private", &reference, PASSWORD).await;
    let words = world.words_until_running(&id).await;

    let fetching = format!("its node fetches the image {reference}");
    let pulled = format!("the image {reference} is on its node");
    assert!(words.contains(&fetching) && words.contains(&pulled), "{words:?}");
    // How often the phase is read decides whether a percentage is among them: a fast machine is done
    // before the second reading.
    let progress = words.iter().any(|it| it.starts_with(&format!("{fetching}: ")));
    assert!(progress, "no progress in {words:?}");
    assert_unreadable(&mut world, PASSWORD).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_fails_with_dockers_reason_and_the_right_one_heals_it() {
    let mut world = World::start().await;
    let image = images::busybox(&world.engine);
    let reference = world.registry.take(&world.engine, image, "team/tool:2");

    let (id, image) = world.ask("locked-out", &reference, WRONG).await;
    let failed = world.admin.wait_phase(&id, "failed").await;
    assert_eq!(failed["reason_code"], "image_pull_failed", "{failed}");
    let reason = failed["reason"].as_str().unwrap_or_default().to_lowercase();
    assert!(reason.contains("unauthorized") || reason.contains("basic auth"), "{failed}");

    let right = json!({ "registry_username": USERNAME, "registry_password": PASSWORD });
    let patched = world.admin.patch(&format!("/images/{image}"), &right).await;
    assert_eq!(patched["has_registry_password"], true, "{patched}");
    world.admin.act(&id, "start").await;

    world.admin.wait_phase(&id, "running").await;
    assert_unreadable(&mut world, PASSWORD).await;
    assert_unreadable(&mut world, WRONG).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_the_registry_does_not_have_fails_with_its_words() {
    let world = World::start().await;
    let reference = format!("{}/team/no-such:1", world.registry.address());

    let (id, _) = world.ask("absent", &reference, PASSWORD).await;

    let failed = world.admin.wait_phase(&id, "failed").await;
    assert_eq!(failed["reason_code"], "image_pull_failed", "{failed}");
    let reason = failed["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("team/no-such") && reason.contains("not found"), "{failed}");
}

/// Makes an image that takes a while to fetch: 96 MiB that cannot be compressed.
fn heavy(engine: &Dockerd) -> &'static str {
    let script = "head -c 100663296 /dev/urandom >/heavy";
    engine.docker(&["run", "--name=heavy", images::busybox(engine), "sh", "-c", script]);
    let cmd = r#"CMD ["sh","-c","trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"]"#;
    engine.docker(&["commit", "--change", cmd, "heavy", "tianqi/heavy:1"]);
    engine.docker(&["rm", "heavy"]);
    "tianqi/heavy:1"
}

/// Looks for a password in every answer of the API, every log, and every file of both programs.
async fn assert_unreadable(world: &mut World, password: &str) {
    for path in ["/images", "/instances", "/nodes", "/audit-events?page_size=200"] {
        let (_, answer) = world.admin.try_call(Method::GET, path, None).await;
        assert!(!answer.to_string().contains(password), "{path} shows the password");
        for item in answer["items"].as_array().into_iter().flatten() {
            let Some(id) = item["id"].as_str() else { continue };
            let one = format!("{path}/{id}");
            let (_, answer): (_, Value) = world.admin.try_call(Method::GET, &one, None).await;
            assert!(!answer.to_string().contains(password), "{one} shows the password");
        }
    }
    assert!(!world.agent.process().log().contains(password), "the agent's log shows it");
    assert!(!world.cluster.controller().log().contains(password), "the controller's log shows it");
    // The agent's folder holds its log too; the controller's database keeps the password sealed.
    assert_no_file_has(&world.agent.data_dir(), password);
    assert_no_file_has(&world.cluster.data_dir(), password);
}

fn assert_no_file_has(folder: &Path, password: &str) {
    let grep = |words: &str| {
        let mut command = Command::new("grep");
        command.args(["-r", "-a", "-l", "-F", "-e", words, "--"]).arg(folder);
        let output = command.output().expect("grep runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(grep(password), "", "the password is in a file");
    assert_ne!(grep(USERNAME).len() + grep("{").len(), 0, "nothing was searched");
}
