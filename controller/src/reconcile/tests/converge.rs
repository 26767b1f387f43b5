//! The loop may be ended anywhere; reports may be of another time; nothing to do is nothing done.

use rand::RngExt as _;
use std::time::Duration;

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::InstanceId;
use tianqi_common::wire::observed::{
    ContainerState, DockerState, DockerStatus, InstanceObserved, NodeObserved,
};

use super::imaginary::{Loop, Nodes, check_invariants, phases, wait_for_phases};
use crate::core::db::{args, testing};
use crate::features::instances::actions::{self, Verb};
use crate::features::instances::store;
use crate::features::instances::testing::{World, granted};
use crate::reconcile::{Reconciler, observe};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_that_is_killed_anywhere_converges_after_its_next_start() {
    for db in testing::databases().await {
        let world = World::on(db).await;
        let db = &world.ctx.db;
        let spec = world.spec("slice", 1, Some((2_048, 10))).await;
        world.node("gpu-1", 64, 1).await;
        world.node("gpu-2", 64, 1).await;
        let nodes = Nodes::default();
        let mut running = Loop::start(&world, &nodes);
        let mut made: Vec<InstanceId> = Vec::new();

        for round in 0..24_usize {
            let name = format!("train-{round}");
            made.push(world.create(&world.alice, world.request(&name, spec)).await.unwrap());
            if round % 3 == 2 {
                let grant = granted(&world.ctx, &world.alice, made.remove(0)).await.unwrap();
                actions::delete(&world.ctx, &grant).await.unwrap();
            }
            if round % 5 == 4 {
                let grant = granted(&world.ctx, &world.alice, made[0]).await.unwrap();
                // It may be queued or on its way: whatever applies is fine here.
                let _ = actions::steer(&world.ctx, &grant, Verb::Restart).await;
            }
            if round % 2 == 0 {
                let pause = rand::rng().random_range(0..15);
                tokio::time::sleep(Duration::from_millis(pause)).await;
                running.kill().await;
                check_invariants(db).await;
                running = Loop::start(&world, &nodes);
            }
        }
        let expected = i64::try_from(made.len()).unwrap();
        wait_for_phases(db, &[("running", expected)]).await;

        check_invariants(db).await;
        assert_eq!(nodes.made(), made.into_iter().collect());
        running.stop().await;
    }
}

#[tokio::test]
async fn a_pass_that_finds_nothing_to_do_writes_nothing_and_tells_nobody() {
    for db in testing::databases().await {
        let world = World::on(db).await;
        let spec = world.spec("card", 1, None).await;
        world.node("gpu-1", 64, 2).await;
        let nodes = Nodes::default();
        let running = Loop::start(&world, &nodes);
        for n in 0..5 {
            let request = world.request(&format!("i-{n}"), spec);
            world.create(&world.alice, request).await.unwrap();
        }
        wait_for_phases(&world.ctx.db, &[("running", 2), ("pending", 3)]).await;
        running.stop().await;
        let (mut quiet, _wake) = Reconciler::new(&world.ctx, nodes.clone());
        quiet.pass().await.unwrap();
        quiet.pass().await.unwrap();
        let mut heard = world.ctx.events.listen();
        let published = nodes.published();

        quiet.look_at_everything();
        quiet.pass().await.unwrap();

        assert!(heard.try_recv().is_err(), "something was written");
        assert_eq!(nodes.published(), published);
    }
}

#[tokio::test]
async fn after_the_restore_of_an_old_copy_a_row_counts_on_from_what_the_agent_did() {
    for db in testing::databases().await {
        let world = World::on(db).await;
        let db = &world.ctx.db;
        let spec = world.spec("card", 1, None).await;
        let node = world.node("gpu-1", 64, 1).await;
        let nodes = Nodes::default();
        let running = Loop::start(&world, &nodes);
        let id = world.create(&world.alice, world.request("first", spec)).await.unwrap();
        wait_for_phases(db, &[("running", 1)]).await;
        running.stop().await;
        let report = NodeObserved {
            docker: DockerState { status: DockerStatus::Connected, reason: String::new() },
            instances: vec![InstanceObserved {
                id,
                generation: 41,
                state: ContainerState::Exited {
                    code: 0,
                    out_of_memory: false,
                    message: "stopped".into(),
                },
                container_id: Some("c1".into()),
                started_at: None,
                restarts: 0,
                limits: Vec::new(),
                gpus: Vec::new(),
            }],
            ..NodeObserved::default()
        };

        observe::take(db, node, &report, UnixMillis(1)).await.unwrap();

        let it = store::get(db, id).await.unwrap().unwrap();
        assert_eq!(it.generation, 42, "the next change would not be newer than what was done");
        assert_eq!(phases(db).await.len(), 1);
        let again = observe::take(db, node, &report, UnixMillis(2)).await.unwrap();
        assert_eq!(again.changed, [], "the same report was taken in twice");
        db.run("delete from instances", args![]).await.unwrap();
        let unknown = observe::take(db, node, &report, UnixMillis(3)).await.unwrap();
        assert_eq!(unknown.changed, []);
    }
}
