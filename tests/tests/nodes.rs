//! Nodes, whole path: joining, inventory, silence, removal.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tianqi_tests::client::{Client, PATIENCE, text};
use tianqi_tests::cluster::{AgentOptions, Cluster};
use tianqi_tests::deadline::Deadline;
use tianqi_tests::dockerd::Dockerd;

fn simulated() -> AgentOptions {
    AgentOptions {
        // Nothing listens there: an agent without Docker is still a node.
        docker: "unix:///nonexistent/docker.sock".to_owned(),
        simulate: "2xNVIDIA-L40:46068".to_owned(),
        ..AgentOptions::default()
    }
}

async fn join_token(admin: &Client, ttl_seconds: u32, max_uses: u32) -> String {
    let body = json!({ "ttl_seconds": ttl_seconds, "max_uses": max_uses });
    text(&admin.post("/join-tokens", &body).await, "token")
}

async fn refusals(admin: &Client) -> u64 {
    let page = admin.get("/audit-events?outcome=refused&action=join").await;
    page["total"].as_u64().unwrap_or_else(|| panic!("no total in {page}"))
}

/// Waits until a node's field has a value, and returns the node.
async fn wait_node(admin: &Client, id: &str, field: &str, value: &Value) -> Value {
    // A controller that has just started judges nobody for a minute.
    let deadline = Deadline::after(2 * PATIENCE);
    loop {
        let node = admin.get(&format!("/nodes/{id}")).await;
        if node[field] == *value {
            return node;
        }
        deadline.pause_async(&format!("{field} is not {value}: {node}")).await;
    }
}

/// Returns the stand-in for the slicing library, as `make test` built it beside the tests.
fn stub_library() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let library = tests.ancestors().nth(2).unwrap().join("libvgpu.so");
    assert!(library.exists(), "{} is missing: cargo build -p tianqi-stub-vgpu", library.display());
    library
}

/// Tries to join, and returns the one line that the agent wrote when it was refused.
fn refused_line(cluster: &Cluster, token: &str) -> String {
    let Err(output) = cluster.join(token, simulated()) else { panic!("it was let in") };
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    assert_eq!(stderr.lines().count(), 1, "one line says why: {stderr}");
    stderr
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_docker_joins_and_shows_its_simulated_cards() {
    let cluster = Cluster::start();
    let admin = cluster.admin().await;
    let token = join_token(&admin, 600, 1).await;

    let mut agent = cluster.join(&token, simulated()).unwrap();
    agent.start();

    let node = wait_node(&admin, agent.node_id(), "docker_status", &json!("failed")).await;
    assert!(!node["docker_reason"].as_str().unwrap_or_default().is_empty(), "{node}");
    assert_eq!(node["online"], true, "{node}");
    let gpus = admin.get(&format!("/nodes/{}/gpus", agent.node_id())).await;
    let gpus = gpus["items"].as_array().or(gpus.as_array()).cloned().unwrap_or_default();
    assert_eq!(gpus.len(), 2, "{gpus:?}");
    assert!(gpus.iter().all(|gpu| gpu["simulated"] == true), "{gpus:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refused_join_has_one_clear_line_and_an_audit_row() {
    let cluster = Cluster::start();
    let admin = cluster.admin().await;
    let once = join_token(&admin, 600, 1).await;
    cluster.join(&once, simulated()).unwrap();
    let before = refusals(&admin).await;

    let used_up = refused_line(&cluster, &once);
    assert!(used_up.contains("token"), "{used_up}");
    let mut parts = once.split('.');
    let (kind, fingerprint) = (parts.next().unwrap(), parts.nth(1).unwrap());
    let unknown = refused_line(&cluster, &format!("{kind}.{}.{fingerprint}", "A".repeat(32)));
    assert!(unknown.contains("token"), "{unknown}");

    let deadline = Deadline::after(PATIENCE);
    while refusals(&admin).await < before + 2 {
        deadline.pause_async("the refusals are not in the audit").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_with_another_fingerprint_never_sees_the_token() {
    let cluster = Cluster::start();
    let admin = cluster.admin().await;
    let token = join_token(&admin, 600, 1).await;
    let (head, _) = token.rsplit_once('.').unwrap();

    let line = refused_line(&cluster, &format!("{head}.{}", "0".repeat(64)));

    assert!(line.contains("fingerprint"), "{line}");
    cluster.join(&token, simulated()).expect("the token is still good");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_node_is_offline_and_back_when_it_returns() {
    let cluster = Cluster::start();
    let admin = cluster.admin().await;
    let token = join_token(&admin, 600, 1).await;
    let mut agent = cluster.join(&token, simulated()).unwrap();
    agent.start();
    wait_node(&admin, agent.node_id(), "online", &json!(true)).await;

    agent.process().kill();
    wait_node(&admin, agent.node_id(), "online", &json!(false)).await;
    agent.start();

    wait_node(&admin, agent.node_id(), "online", &json!(true)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_is_cut_off_and_does_not_come_back() {
    let cluster = Cluster::start();
    let admin = cluster.admin().await;
    let token = join_token(&admin, 600, 1).await;
    let mut agent = cluster.join(&token, simulated()).unwrap();
    agent.start();
    wait_node(&admin, agent.node_id(), "online", &json!(true)).await;

    admin.delete(&format!("/nodes/{}", agent.node_id())).await;

    let deadline = Deadline::after(Duration::from_secs(30));
    while !agent.process().log().contains("removed") {
        deadline.pause_async("the agent is not told").await;
    }
    let nodes = admin.get("/nodes").await;
    assert_eq!(nodes["total"], 0, "{nodes}");
}

/// Changes a node's settings and returns what trying them gave.
async fn try_settings(admin: &Client, id: &str, settings: &Value) -> Value {
    let saved = admin.patch(&format!("/nodes/{id}"), settings).await;
    let check = saved["check"].clone();
    assert!(check.is_object(), "no check in {saved}");
    check
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_a_node_are_tried_on_every_save_and_reach_its_agent() {
    let engine = Dockerd::start();
    let cluster = Cluster::start();
    let admin = cluster.admin().await;
    let mut agent = cluster.add_agent(&admin, AgentOptions::on(&engine)).await;
    let id = agent.node_id().to_owned();
    let hami = engine.root().join("hami");
    fs::create_dir_all(&hami).unwrap();
    fs::copy(stub_library(), hami.join("libvgpu.so")).unwrap();

    let found = try_settings(&admin, &id, &json!({ "hami_dir": hami })).await;
    assert_eq!(found["hami_problem"], "", "{found}");
    assert_eq!(found["hami_sha256"].as_str().map(str::len), Some(64), "{found}");
    assert_eq!(found["docker"]["status"], "connected", "{found}");
    let lost = try_settings(&admin, &id, &json!({ "hami_dir": "/nonexistent/hami" })).await;
    let problem = lost["hami_problem"].as_str().unwrap_or_default();
    assert!(problem.contains("/nonexistent/hami"), "{lost}");
    assert_eq!(lost["docker"]["status"], "connected", "{lost}");

    let nowhere = json!({ "docker_endpoint": "unix:///nonexistent/docker.sock" });
    let dead = try_settings(&admin, &id, &nowhere).await;
    assert_eq!(dead["docker"]["status"], "failed", "{dead}");
    assert_ne!(dead["docker"]["reason"], "", "{dead}");
    let node = wait_node(&admin, &id, "docker_status", &json!("failed")).await;
    assert!(node["docker_reason"].as_str().is_some_and(|it| !it.is_empty()), "{node}");
    // Kept by the agent itself: a restart changes nothing.
    agent.process().stop();
    agent.start();
    let deadline = Deadline::after(PATIENCE);
    while admin.get(&format!("/nodes/{id}")).await["agent_started_at"] == node["agent_started_at"] {
        deadline.pause_async("the agent does not come back").await;
    }
    wait_node(&admin, &id, "docker_status", &json!("failed")).await;

    let restored = try_settings(&admin, &id, &json!({ "docker_endpoint": null })).await;
    assert_eq!(restored["docker"]["status"], "connected", "{restored}");
    let node = wait_node(&admin, &id, "docker_status", &json!("connected")).await;
    assert_eq!(node["docker_reason"], "", "{node}");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_a_node_that_is_offline_are_kept_and_said_to_be_untried() {
    let cluster = Cluster::start();
    let admin = cluster.admin().await;
    let token = join_token(&admin, 600, 1).await;
    let agent = cluster.join(&token, simulated()).unwrap();

    let check = try_settings(&admin, agent.node_id(), &json!({ "hami_dir": "/opt/hami" })).await;

    assert!(check["unavailable"].as_str().is_some_and(|it| it.contains("offline")), "{check}");
    let node = admin.get(&format!("/nodes/{}", agent.node_id())).await;
    assert_eq!(node["hami_dir"], "/opt/hami", "{node}");
}
