//! Nodes that fall silent, are drained or removed; images that are missing; ends; orphans.

use tianqi_common::id::{InstanceId, NodeId};
use tianqi_common::wire::desired::GpuUuid;
use tianqi_common::wire::observed::{NodeObserved, Orphan};
use tianqi_common::wire::stream::PullFrame;

use super::imaginary::{Loop, Nodes, check_invariants, wait_for_phases};
use crate::core::db::{args, testing};
use crate::core::event::Event;
use crate::features::instances::store;
use crate::features::instances::testing::World;
use crate::link::AgentEvent;
use crate::reconcile::{Input, Reconciler};

async fn set_online(world: &World, node: NodeId, online: bool) {
    let sql = "update nodes set online = $1 where id = $2";
    world.ctx.db.run(sql, args![online, node]).await.unwrap();
    world.ctx.events.send(Event::Node(node));
}

#[tokio::test]
async fn a_silent_node_makes_its_instances_unknown_and_gives_nothing_away() {
    for db in testing::databases().await {
        let world = World::on(db).await;
        let db = &world.ctx.db;
        let spec = world.spec("card", 1, None).await;
        let node = world.node("gpu-1", 64, 1).await;
        let nodes = Nodes::default();
        let running = Loop::start(&world, &nodes);
        let first = world.create(&world.alice, world.request("first", spec)).await.unwrap();
        wait_for_phases(db, &[("running", 1)]).await;

        nodes.silence(node, true);
        set_online(&world, node, false).await;
        wait_for_phases(db, &[("unknown", 1)]).await;
        world.create(&world.alice, world.request("second", spec)).await.unwrap();
        wait_for_phases(db, &[("unknown", 1), ("pending", 1)]).await;
        assert_eq!(db.number("select count(*) from gpu_grants", args![]).await.unwrap(), 1);

        nodes.silence(node, false);
        set_online(&world, node, true).await;
        wait_for_phases(db, &[("running", 1), ("pending", 1)]).await;
        assert_eq!(nodes.made().into_iter().collect::<Vec<_>>(), [first]);
        running.stop().await;
    }
}

#[tokio::test]
async fn a_drain_stops_what_runs_and_a_removed_node_settles_what_is_left() {
    let world = World::on(testing::sqlite().await).await;
    let db = &world.ctx.db;
    let spec = world.spec("card", 1, None).await;
    let node = world.node("gpu-1", 64, 2).await;
    let nodes = Nodes::default();
    let running = Loop::start(&world, &nodes);
    let id = world.create(&world.alice, world.request("first", spec)).await.unwrap();
    wait_for_phases(db, &[("running", 1)]).await;

    world.ctx.events.send(Event::Drain(node));
    wait_for_phases(db, &[("exited", 1)]).await;
    assert_eq!(store::get(db, id).await.unwrap().unwrap().why.code, "drained");

    nodes.silence(node, true);
    db.run("delete from nodes where id = $1", args![node]).await.unwrap();
    world.ctx.events.send(Event::Node(node));
    wait_for_phases(db, &[("failed", 1)]).await;
    let it = store::get(db, id).await.unwrap().unwrap();
    assert_eq!((it.node, it.why.code.as_str()), (None, "node_removed"));
    assert_eq!(db.number("select count(*) from node_grants", args![]).await.unwrap(), 0);
    running.stop().await;
}

#[tokio::test]
async fn a_missing_image_is_fetched_once_with_progress_and_then_it_runs() {
    let world = World::on(testing::sqlite().await).await;
    let db = &world.ctx.db;
    let spec = world.spec("cpu", 0, None).await;
    world.node("n-1", 64, 0).await;
    let sealed = world
        .ctx
        .seal
        .seal(&format!("images/{}/registry_password", world.image), b"hunter2")
        .unwrap();
    let sql =
        "update images set registry_username = $1, sealed_registry_password = $2 where id = $3";
    db.run(sql, args!["puller", sealed, world.image]).await.unwrap();
    let nodes = Nodes::default();
    let progress =
        PullFrame::Progress { done_bytes: 1, total_bytes: 2, status: "Downloading".into() };
    nodes.lack("sliceable", vec![progress, PullFrame::Done]);
    let running = Loop::start(&world, &nodes);

    let id = world.create(&world.alice, world.request("first", spec)).await.unwrap();
    wait_for_phases(db, &[("running", 1)]).await;

    let pulled = nodes.pulled();
    assert_eq!(pulled.len(), 1, "{pulled:?}");
    let credentials = pulled[0].credentials.clone().unwrap();
    assert_eq!(
        (credentials.username.as_str(), credentials.password.as_str()),
        ("puller", "hunter2")
    );
    assert_eq!(store::get(db, id).await.unwrap().unwrap().why.code, "");
    running.stop().await;
}

#[tokio::test]
async fn an_image_that_does_not_exist_fails_with_dockers_reason_and_frees_its_place() {
    let world = World::on(testing::sqlite().await).await;
    let db = &world.ctx.db;
    let spec = world.spec("card", 1, None).await;
    world.node("gpu-1", 64, 1).await;
    let nodes = Nodes::default();
    let message = "manifest for sliceable:latest not found: manifest unknown".to_owned();
    nodes.lack("sliceable", vec![PullFrame::Failed { message }]);
    let running = Loop::start(&world, &nodes);

    let id = world.create(&world.alice, world.request("first", spec)).await.unwrap();
    wait_for_phases(db, &[("failed", 1)]).await;

    let it = store::get(db, id).await.unwrap().unwrap();
    assert_eq!(it.why.code, "image_pull_failed");
    assert!(it.why.text.contains("manifest unknown"), "{}", it.why.text);
    assert_eq!(db.number("select count(*) from gpu_grants", args![]).await.unwrap(), 0);
    running.stop().await;
}

#[tokio::test]
async fn a_process_that_ends_by_itself_frees_its_place_once_the_end_stands() {
    let world = World::on(testing::sqlite().await).await;
    let db = &world.ctx.db;
    let spec = world.spec("card", 1, None).await;
    let node = world.node("gpu-1", 64, 1).await;
    let nodes = Nodes::default();
    let running = Loop::start(&world, &nodes);
    let id = world.create(&world.alice, world.request("first", spec)).await.unwrap();
    wait_for_phases(db, &[("running", 1)]).await;

    nodes.exit(id, 3);
    wait_for_phases(db, &[("exited", 1)]).await;
    let it = store::get(db, id).await.unwrap().unwrap();
    assert_eq!((it.exit_code, it.why.code.as_str()), (Some(3), "exited"));
    // It may yet be started again by its agent, so its card is still its own.
    assert_eq!(db.number("select count(*) from gpu_grants", args![]).await.unwrap(), 1);

    let sql = "update instances set updated_at = 0";
    db.run(sql, args![]).await.unwrap();
    world.create(&world.bob, world.request("second", spec)).await.unwrap();
    running.wake.send(Input::Tick).await;
    wait_for_phases(db, &[("exited", 1), ("running", 1)]).await;
    let told = nodes.told(node);
    assert_eq!(told.instances.len(), 2);
    check_invariants(db).await;
    running.stop().await;
}

#[tokio::test]
async fn an_orphan_is_left_alone_and_its_card_takes_no_work() {
    let world = World::on(testing::sqlite().await).await;
    let spec = world.spec("card", 1, None).await;
    let node = world.node("gpu-1", 64, 1).await;
    let nodes = Nodes::default();
    let orphan = Orphan {
        id: InstanceId::new(),
        container_id: "c1".into(),
        container_name: "lost-1".into(),
        running: true,
        gpus: vec![GpuUuid("GPU-gpu-1-0".into())],
    };
    let report = NodeObserved { orphans: vec![orphan], ..NodeObserved::default() };
    let (mut reconciler, _wake) = Reconciler::new(&world.ctx, nodes.clone());
    let id = world.create(&world.alice, world.request("first", spec)).await.unwrap();

    reconciler.take(Input::Agent(AgentEvent::Observed(node, Box::new(report))));
    reconciler.pass().await.unwrap();

    let it = store::get(&world.ctx.db, id).await.unwrap().unwrap();
    assert!(it.why.text.contains("lost-1"), "{:?}", it.why);
    assert_eq!(nodes.told(node).tombstones, []);

    let report = NodeObserved::default();
    reconciler.take(Input::Agent(AgentEvent::Observed(node, Box::new(report))));
    reconciler.pass().await.unwrap();
    let it = store::get(&world.ctx.db, id).await.unwrap().unwrap();
    assert_eq!(it.node, Some(node), "the card was not given back after the orphan went");
}
