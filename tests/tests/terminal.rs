//! Programs in instances: `tianqi-controller exec`, whole path.

use std::time::Duration;

use tianqi_tests::cluster::{AgentOptions, Cluster};
use tianqi_tests::dockerd::Dockerd;
use tianqi_tests::images;

#[tokio::test(flavor = "multi_thread")]
async fn exec_runs_a_program_and_passes_output_and_exit_code_on() {
    let engine = Dockerd::start();
    let cluster = Cluster::start();
    let admin = cluster.admin().await;
    let _agent = cluster.add_agent(&admin, AgentOptions::on(&engine)).await;
    let image = admin.create_image("exec", images::busybox(&engine)).await;
    let spec = admin.create_cpu_spec("exec").await;
    let id = admin.create_instance("exec", &image, &spec).await;
    admin.wait_phase(&id, "running").await;

    let script = "echo to-out; echo to-err >&2; exit 7";
    let output = cluster.run(&["exec", "exec", "--", "sh", "-c", script]);

    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "to-out\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "to-err\n");
    let bulk = cluster.run(&["exec", &id, "--", "head", "-c", "20000000", "/dev/zero"]);
    assert_eq!(bulk.stdout.len(), 20_000_000, "nothing of a big output is lost");
    let started = std::time::Instant::now();
    let missing = cluster.run(&["exec", "no-such-instance", "--", "true"]);
    assert!(!missing.status.success());
    assert!(started.elapsed() < Duration::from_secs(10), "it hung");
}
