use std::time::Duration;

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::{InstanceId, NodeId};
use tianqi_common::wire::telemetry::{InstanceSample, NodeSample, Sample, SampleBatch};
use tokio_util::sync::CancellationToken;

use super::live::{self, Live};
use crate::authz::RoleName;
use crate::core::db::{args, testing};
use crate::core::event::Event;
use crate::features::instances::testing::World;
use crate::link::samples;
use crate::testing::Api;

fn sample(at: i64, instance: InstanceId, cpu_millicores: u64) -> Sample {
    let instance = InstanceSample {
        id: instance,
        cpu_millicores,
        memory_used_bytes: 1,
        memory_limit_bytes: 0,
        network_rx_bytes: 0,
        network_tx_bytes: 0,
        block_read_bytes: 0,
        block_write_bytes: 0,
        pids: 1,
        gpu_memory_used_bytes: None,
    };
    let node = NodeSample { cpu_millicores, memory_used_bytes: 2, disk_free_bytes: 3 };
    Sample { at: UnixMillis(at), node, gpus: Vec::new(), instances: vec![instance] }
}

fn batch(samples: Vec<Sample>) -> SampleBatch {
    SampleBatch { dropped: 0, samples }
}

#[test]
fn the_newest_sample_of_a_node_is_the_one_that_is_read() {
    let (live, node, instance) = (Live::default(), NodeId::new(), InstanceId::new());

    let samples = vec![sample(1, instance, 10), sample(2, instance, 20)];
    live.take(node, batch(samples), UnixMillis(100));
    live.take(node, batch(Vec::new()), UnixMillis(200));

    let last = live.instance(node, instance).unwrap();
    assert_eq!((last.sample.cpu_millicores, last.at), (20, UnixMillis(2)));
    assert_eq!(last.age(UnixMillis(130)), Duration::from_millis(30));
    assert_eq!(live.node(node).unwrap().sample.node.memory_used_bytes, 2);
}

#[test]
fn what_another_node_says_of_an_instance_does_not_count() {
    let (live, liar, instance) = (Live::default(), NodeId::new(), InstanceId::new());

    live.take(liar, batch(vec![sample(1, instance, 10)]), UnixMillis(1));

    assert_eq!(live.instance(NodeId::new(), instance), None);
}

#[test]
fn an_instance_that_is_not_in_the_last_sample_has_no_figures() {
    let (live, node, gone) = (Live::default(), NodeId::new(), InstanceId::new());

    live.take(node, batch(vec![sample(1, gone, 10)]), UnixMillis(1));
    live.take(node, batch(vec![sample(2, InstanceId::new(), 10)]), UnixMillis(2));

    assert_eq!(live.instance(node, gone), None);
}

#[tokio::test]
async fn samples_are_kept_until_their_node_is_removed() {
    let world = World::on(testing::sqlite().await).await;
    let (sender, receiver) = samples::queue(4);
    let cancel = CancellationToken::new();
    let task = tokio::spawn(live::ingest(world.ctx.clone(), receiver, cancel.clone()));
    let (kept, removed) = (world.node("kept", 4, 0).await, world.node("removed", 4, 0).await);
    let (live, unknown) = (&world.ctx.live, NodeId::new());

    for node in [unknown, kept, removed] {
        sender.push(node, batch(vec![sample(1, InstanceId::new(), 10)]));
    }
    until(|| live.node(kept).is_some() && live.node(removed).is_some()).await;
    until(|| live.node(unknown).is_none()).await;
    world.ctx.db.run("delete from nodes where id = $1", args![removed]).await.unwrap();
    world.ctx.events.send(Event::Node(removed));

    until(|| live.node(removed).is_none()).await;
    assert!(live.node(kept).is_some());
    cancel.cancel();
    task.await.unwrap();
}

async fn until(is_so: impl Fn() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap();
}

#[tokio::test]
async fn figures_come_with_their_age_and_the_share_of_the_limit_or_with_why_there_are_none() {
    for api in Api::engines().await {
        let root = api.person("root", RoleName::ADMIN).await;
        let alice = api.person("alice", RoleName::USER).await;
        let bob = api.person("bob", RoleName::USER).await;
        let (node, instance) = (NodeId::new(), InstanceId::new());
        insert_node(&api, node).await;
        insert_instance(&api, instance, "alice").await;
        let stats = format!("/instances/{instance}/stats");
        let figures = format!("/nodes/{node}/telemetry");

        let answer = api.call(&alice, "GET", &stats, None).await;
        assert_eq!((answer.code(), answer.problem()), (409, "not_placed"), "{answer:?}");
        assert!(answer.text("/detail").contains("the queue is long"), "{answer:?}");
        place(&api, instance, node).await;
        let answer = api.call(&alice, "GET", &stats, None).await;
        assert_eq!((answer.code(), answer.problem()), (409, "no_sample"), "{answer:?}");
        let answer = api.call(&root, "GET", &figures, None).await;
        assert_eq!((answer.code(), answer.problem()), (409, "no_sample"), "{answer:?}");

        let now = api.ctx.clock.now();
        api.ctx.live.take(node, batch(vec![sample(1_000, instance, 125)]), now);
        api.clock.advance(Duration::from_millis(1_500));

        let answer = api.call(&alice, "GET", &stats, None).await;
        assert_eq!(answer.code(), 200, "{answer:?}");
        assert_eq!(answer.text("/sampled_at"), "1970-01-01T00:00:01.000Z");
        assert_eq!(answer.body["age_ms"], 1_500);
        assert_eq!(answer.body["cpu_limit_millicores"], 500);
        assert_eq!(answer.body["cpu_percent"], 25.0);
        assert!(answer.body["memory_limit_bytes"].is_null(), "0 is no limit: {answer:?}");
        assert_eq!(api.call(&bob, "GET", &stats, None).await.code(), 404);
        let answer = api.call(&root, "GET", &figures, None).await;
        assert_eq!(answer.body["disk_free_bytes"], 3, "{answer:?}");
        assert_eq!(api.call(&alice, "GET", &figures, None).await.code(), 403);
    }
}

async fn insert_node(api: &Api, id: NodeId) {
    const SQL: &str = "insert into nodes (id, name, region, public_ip, private_ip, ssh_port, \
         ssh_user, remark, listed, cordoned, docker_status, docker_reason, agent_program, \
         boot_started_at, online, offline_reason, clock_skew_ms, cpu_millicores, memory_mib, \
         disk_gib, observed_epoch, observed_generation, created_at, \
         updated_at) values ($1, 'node', '', '', '', 22, 'root', '', $2, $3, 'connected', '', '', \
         0, $2, '', 0, 1000, 1000, 1000, 0, 0, 0, 0)";
    api.ctx.db.run(SQL, args![id, true, false]).await.unwrap();
}

async fn insert_instance(api: &Api, id: InstanceId, owner: &str) {
    const SQL: &str = "insert into instances (id, owner_id, name, live_name, image_id, spec_id, \
         image_address, spec, environment, restart_policy, priority, remark, desired, generation, \
         phase, reason_code, reason, reason_detail, observed_generation, container_name, limits, \
         gpus, fail_if_full, restarts, queued_at, created_at, updated_at) \
         select $1, id, 'one', 'one', id, id, '', '{\"cpu_millicores\":500}', '{}', 'never', 0, '', \
         'running', 1, 'pending', '', 'the queue is long', '', 0, '', '[]', '[]', $2, 0, 0, 0, 0 \
         from users where name = $3";
    api.ctx.db.run(SQL, args![id, false, owner]).await.unwrap();
}

async fn place(api: &Api, id: InstanceId, node: NodeId) {
    let sql = "update instances set phase = 'running', node_id = $1 where id = $2";
    api.ctx.db.run(sql, args![node, id]).await.unwrap();
}
