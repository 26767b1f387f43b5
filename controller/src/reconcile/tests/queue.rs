//! The queue under concurrency, and what stopping and starting do to places.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use tianqi_common::id::{InstanceId, NodeId};

use super::imaginary::{Loop, Nodes, check_invariants, wait_for_phases};
use crate::core::db::{Db, args, row, testing};
use crate::features::instances::actions::{self, Verb};
use crate::features::instances::lifecycle::Phase;
use crate::features::instances::store;
use crate::features::instances::testing::{World, granted};

const CREATES: usize = 64;
const SLOTS: i64 = 10;

row! {
    struct IdRow { id: uuid::Uuid }
}

async fn in_phase(db: &Db, phase: &str) -> BTreeSet<InstanceId> {
    let sql = "select id from instances where phase = $1 and deleted_at is null";
    let rows: Vec<IdRow> = db.all(sql, args![phase]).await.unwrap();
    rows.into_iter().map(|row| InstanceId(row.id)).collect()
}

async fn delete(world: &World, id: InstanceId) {
    let grant = granted(&world.ctx, &world.admin, id).await.unwrap();
    actions::delete(&world.ctx, &grant).await.unwrap();
}

async fn steer(world: &World, id: InstanceId, verb: Verb) {
    let grant = granted(&world.ctx, &world.alice, id).await.unwrap();
    actions::steer(&world.ctx, &grant, verb).await.unwrap();
}

async fn create_all(world: &World, spec: uuid::Uuid) {
    let creates = (0..CREATES)
        .map(|n| world.create(&world.alice, world.request(&format!("train-{n}"), spec)));
    for created in join_all(creates).await {
        created.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_64_creates_at_once_for_10_cards_10_run_and_the_rest_drains_in_order() {
    for db in testing::databases().await {
        let world = World::on(db).await;
        let db = &world.ctx.db;
        let spec = world.spec("card", 1, None).await;
        world.node("gpu-1", 64, 6).await;
        world.node("gpu-2", 64, 4).await;
        let nodes = Nodes::default();
        let running = Loop::start(&world, &nodes);

        create_all(&world, spec).await;
        wait_for_phases(db, &[("running", SLOTS), ("pending", 54)]).await;
        check_invariants(db).await;
        assert_eq!(db.number("select count(*) from gpu_grants", args![]).await.unwrap(), SLOTS);
        let untold = "select count(*) from instances where reason_code = 'queued'";
        while db.number(untold, args![]).await.unwrap() > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        for it in store::pending(db, 100).await.unwrap() {
            assert_eq!(it.why.code, "no_capacity", "{:?}", it.why);
            assert!(it.why.text.contains("empty cards"), "{:?}", it.why);
        }

        for _ in 0..3 {
            let before = in_phase(db, "running").await;
            let next: BTreeSet<_> =
                store::queue_order(db).await.unwrap().into_iter().take(4).collect();
            let leaving: Vec<_> = before.iter().copied().take(4).collect();
            for id in &leaving {
                delete(&world, *id).await;
            }
            wait_until_running(db, &next).await;
            check_invariants(db).await;
        }
        wait_for_phases(db, &[("running", SLOTS), ("pending", 42)]).await;
        running.stop().await;
    }
}

async fn wait_until_running(db: &Db, ids: &BTreeSet<InstanceId>) {
    let reached = async {
        while !ids.is_subset(&in_phase(db, "running").await) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), reached).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_loops_at_once_never_grant_a_place_twice() {
    for db in testing::databases().await {
        let world = World::on(db).await;
        let spec = world.spec("slice", 1, Some((4_096, 20))).await;
        world.node("gpu-1", 64, 1).await;
        world.node("gpu-2", 64, 1).await;
        let nodes = Nodes::default();
        let loops = [Loop::start(&world, &nodes), Loop::start(&world, &nodes)];

        create_all(&world, spec).await;
        // 20 percent of the cores each: five of them fit on a card.
        wait_for_phases(&world.ctx.db, &[("running", SLOTS), ("pending", 54)]).await;

        check_invariants(&world.ctx.db).await;
        for one in loops {
            one.stop().await;
        }
    }
}

#[tokio::test]
async fn a_stop_frees_cards_but_keeps_the_disk_and_a_start_goes_back_to_them() {
    for db in testing::databases().await {
        let world = World::on(db).await;
        let db = &world.ctx.db;
        let spec = world.spec("card", 1, None).await;
        world.node("gpu-1", 64, 2).await;
        let nodes = Nodes::default();
        let running = Loop::start(&world, &nodes);
        let first = world.create(&world.alice, world.request("first", spec)).await.unwrap();
        wait_for_phases(db, &[("running", 1)]).await;
        let placed = store::get(db, first).await.unwrap().unwrap();

        steer(&world, first, Verb::Stop).await;
        wait_for_phases(db, &[("exited", 1)]).await;
        let held = |column: &str| format!("select {column} from node_grants");
        assert_eq!(db.number("select count(*) from gpu_grants", args![]).await.unwrap(), 0);
        assert_eq!(db.number(&held("cpu_millicores"), args![]).await.unwrap(), 0);
        assert_eq!(db.number(&held("disk_gib"), args![]).await.unwrap(), 2);

        // Two others take both cards: the first waits for the card of its container.
        world.create(&world.bob, world.request("second", spec)).await.unwrap();
        world.create(&world.bob, world.request("third", spec)).await.unwrap();
        wait_for_phases(db, &[("running", 2), ("exited", 1)]).await;
        steer(&world, first, Verb::Start).await;
        let waits = async {
            while store::get(db, first).await.unwrap().unwrap().why.code != "no_capacity" {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), waits).await.unwrap();

        for it in store::on_node(db, placed.node.unwrap()).await.unwrap() {
            if it.id != first && it.gpus == placed.gpus {
                delete(&world, it.id).await;
            }
        }
        wait_for_phases(db, &[("running", 2)]).await;
        let again = store::get(db, first).await.unwrap().unwrap();
        assert_eq!((again.node, &again.gpus), (placed.node, &placed.gpus));
        assert!(again.generation > placed.generation);
        running.stop().await;
    }
}

#[tokio::test]
async fn what_can_never_fit_stays_pending_and_says_so() {
    let world = World::on(testing::sqlite().await).await;
    let spec = world.spec("eight", 8, None).await;
    world.node("gpu-1", 64, 2).await;
    let running = Loop::start(&world, &Nodes::default());

    let id = world.create(&world.alice, world.request("huge", spec)).await.unwrap();
    let says = async {
        loop {
            let it = store::get(&world.ctx.db, id).await.unwrap().unwrap();
            if it.why.code == "impossible" {
                assert_eq!(it.state.phase, Phase::Pending);
                return it.why;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let why = tokio::time::timeout(std::time::Duration::from_secs(20), says).await.unwrap();

    assert!(why.text.contains("8"), "{why:?}");
    let detail: serde_json::Value = serde_json::from_str(&why.detail).unwrap();
    assert_eq!(detail["kind"], "impossible");
    running.stop().await;
}

#[tokio::test]
async fn a_higher_priority_goes_first_and_a_named_node_is_kept_to() {
    let world = World::on(testing::sqlite().await).await;
    let db = &world.ctx.db;
    let spec = world.spec("card", 1, None).await;
    let node: NodeId = world.node("gpu-1", 64, 1).await;
    let nodes = Nodes::default();
    let low = world.create(&world.alice, world.request("low", spec)).await.unwrap();
    let mut urgent = world.request("urgent", spec);
    urgent.priority = Some(5);
    urgent.node_id = Some(node.0);
    let urgent = world.create(&world.admin, urgent).await.unwrap();

    let running = Loop::start(&world, &nodes);
    wait_for_phases(db, &[("running", 1), ("pending", 1)]).await;

    assert_eq!(store::get(db, urgent).await.unwrap().unwrap().node, Some(node));
    assert_eq!(store::queue_order(db).await.unwrap(), [low]);
    running.stop().await;
}
