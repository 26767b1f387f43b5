//! What goes wrong on real machines: copied disks, full disks, old backups, talkative programs.

use std::fs;
use std::time::Duration;

use serde_json::json;
use tianqi_tests::client::{Client, PATIENCE};
use tianqi_tests::cluster::{Agent, AgentOptions, Cluster};
use tianqi_tests::deadline::Deadline;
use tianqi_tests::disk::{SmallDisk, SmallVolumes};
use tianqi_tests::dockerd::Dockerd;
use tianqi_tests::images;

async fn world(engine: &Dockerd) -> (Cluster, Client, Agent) {
    let cluster = Cluster::start();
    let admin = cluster.admin().await;
    let agent = cluster.add_agent(&admin, AgentOptions::on(engine)).await;
    (cluster, admin, agent)
}

async fn ask(admin: &Client, name: &str, address: &str) -> String {
    let image = admin.create_image(name, address).await;
    let spec = admin.create_cpu_spec(name).await;
    admin.create_instance(name, &image, &spec).await
}

async fn wait_log(agent: &mut Agent, words: &str) {
    let deadline = Deadline::after(PATIENCE);
    while !agent.process().log().contains(words) {
        deadline.pause_async(&format!("the log says nothing of {words:?}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_agents_with_one_identity_the_newer_serves_and_the_older_is_told() {
    let engine = Dockerd::start();
    let (_cluster, admin, mut older) = world(&engine).await;

    let mut newer = older.twin();
    newer.start();

    wait_log(&mut older, "a newer start of this node's agent took over").await;
    newer.wait_until_ready(&admin).await;
    let id = ask(&admin, "served", images::busybox(&engine)).await;
    admin.wait_phase(&id, "running").await;
    assert_eq!(engine.containers_labelled("tianqi.instance").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_nothing_that_runs_and_heals_by_itself() {
    let engine = Dockerd::start();
    let (_cluster, admin, mut agent) = world(&engine).await;
    let before = ask(&admin, "before", images::busybox(&engine)).await;
    admin.wait_phase(&before, "running").await;
    let disk = SmallDisk::under(&mut agent);

    disk.fill();
    agent.kill_and_restart();
    agent.wait_until_ready(&admin).await;
    let during = ask(&admin, "during", images::busybox(&engine)).await;
    assert_eq!(admin.wait_phase(&before, "running").await["phase"], "running");
    assert!(!agent.process().has_ended());
    disk.free();

    admin.wait_phase(&during, "running").await;
    assert_eq!(engine.containers_labelled("tianqi.instance").len(), 2);
    agent.process().stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn restoring_an_old_backup_deletes_nothing_that_is_newer() {
    let engine = Dockerd::start();
    let (cluster, admin, mut agent) = world(&engine).await;
    let backup = cluster.data_dir().join("old.backup");
    let taken = cluster.run(&["backup", &backup.to_string_lossy()]);
    assert!(taken.status.success(), "{taken:?}");
    let newer = ask(&admin, "newer", images::busybox(&engine)).await;
    admin.wait_phase(&newer, "running").await;
    let container = engine.containers_labelled(&format!("tianqi.instance={newer}"));

    let restored = cluster.run(&["restore", &backup.to_string_lossy()]);
    assert!(restored.status.success(), "{restored:?}");
    let admin = login_again(&cluster).await;
    agent.wait_until_ready(&admin).await;
    let id = ask(&admin, "after", images::busybox(&engine)).await;
    admin.wait_phase(&id, "running").await;

    let left = engine.containers_labelled(&format!("tianqi.instance={newer}"));
    assert_eq!(left, container, "an orphan is left to an admin");
    assert_eq!(engine.docker(&["inspect", "-f", "{{.State.Running}}", &left[0]]), "true");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_never_stops_talking_fills_no_disk() {
    let engine = Dockerd::start();
    let (_cluster, admin, _agent) = world(&engine).await;
    let id = ask(&admin, "chatty", images::chatty(&engine)).await;
    admin.wait_phase(&id, "running").await;
    let container = engine.containers_labelled(&format!("tianqi.instance={id}")).remove(0);
    let logs = engine.root().join("data/containers").join(&container).join("local-logs");

    // Enough for the log to be rotated at least once on a slow machine.
    tokio::time::sleep(Duration::from_secs(10)).await;

    let files = fs::read_dir(logs).unwrap().flatten();
    let size: u64 = files.map(|file| file.metadata().map_or(0, |data| data.len())).sum();
    assert!(size > 0 && size < 200 * 1024 * 1024, "{size} bytes of log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_fills_its_data_volume_harms_neither_agent_nor_controller() {
    let engine = Dockerd::start();
    let volumes = SmallVolumes::under(&engine);
    let (mut cluster, admin, mut agent) = world(&engine).await;
    let image = admin.create_image("greedy", images::busybox(&engine)).await;
    // What lies in the tmpfs below the volume counts as memory of whoever wrote it.
    let spec = admin.create_spec("greedy", &json!({ "memory_mib": 256 })).await;
    let greedy = admin.create_instance("greedy", &image, &spec).await;
    admin.wait_phase(&greedy, "running").await;

    // Bounded, so that a mistake in this test fills nobody's disk.
    let fill = "dd if=/dev/zero of=/data/filler bs=1M count=256; test -s /data/filler";
    let filled = cluster.run(&["exec", "greedy", "--", "sh", "-c", fill]);
    assert!(filled.status.success(), "{filled:?}");
    let said = String::from_utf8_lossy(&filled.stderr).into_owned();
    assert!(said.contains("No space left on device"), "{said}");

    assert_eq!(admin.instance(&greedy).await["phase"], "running");
    let echoed = cluster.run(&["exec", "greedy", "--", "echo", "alive"]);
    assert_eq!(String::from_utf8_lossy(&echoed.stdout), "alive\n");
    agent.kill_and_restart();
    agent.wait_until_ready(&admin).await;
    assert!(!cluster.controller().has_ended() && !agent.process().has_ended());
    admin.delete(&format!("/instances/{greedy}")).await;
    admin.wait_gone(&greedy).await;

    assert!(engine.containers_labelled("tianqi.instance").is_empty());
    assert!(engine.volumes().is_empty(), "{:?}", engine.volumes());
    let next = ask(&admin, "next", images::busybox(&engine)).await;
    admin.wait_phase(&next, "running").await;
    assert!(volumes.is_mounted());
}

/// Waits for the controller to start again by itself, and logs in. Its port is open for a moment more
/// before it does, and what is asked then concerns the database that is about to go.
async fn login_again(cluster: &Cluster) -> Client {
    let deadline = Deadline::after(PATIENCE);
    while !cluster.log().contains("starting again") {
        deadline.pause_async("the controller does not start again").await;
    }
    while std::net::TcpStream::connect(cluster.http()).is_err() {
        deadline.pause_async("the controller does not come back").await;
    }
    cluster.admin().await
}
