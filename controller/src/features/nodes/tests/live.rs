//! Rows kept true to what agents say.

use tianqi_common::id::BootId;
use tianqi_common::unit::{GIB, GpuMemoryMib, MemoryMib};
use tianqi_common::wire::desired::{GpuUuid, Revision};
use tianqi_common::wire::inventory::{Disk, GpuCard, NodeInventory};
use tianqi_common::wire::observed::{DockerState, DockerStatus, NodeObserved};

use super::*;
use crate::core::event::Event;
use crate::features::nodes::actions;
use crate::features::nodes::connection::Keeper;
use crate::features::nodes::store::cards::{self, CardRow};
use crate::features::nodes::view::NodeView;
use crate::link::AgentEvent;

fn connected(node: NodeId, skew_ms: i64) -> AgentEvent {
    AgentEvent::Connected {
        node,
        boot: BootId::new(),
        started_at: NOW,
        program: "tianqi-agent 0.1\u{0}".to_owned(),
        skew_ms,
        address: "10.0.0.7:4000".parse().unwrap(),
    }
}

fn disconnected(room: &Room, node: NodeId) -> AgentEvent {
    let heard_at = room.ctx.clock.now();
    let reason = "the machine is down".to_owned();
    AgentEvent::Disconnected { node, boot: BootId::new(), reason, heard_at }
}

fn observed(node: NodeId, status: DockerStatus, generation: u64) -> AgentEvent {
    let docker = DockerState { status, reason: "refused\u{0}".to_owned() };
    let revision = Revision { epoch: 0, generation };
    AgentEvent::Observed(node, Box::new(NodeObserved { docker, revision, ..Default::default() }))
}

fn card(uuid: &str) -> GpuCard {
    GpuCard {
        uuid: GpuUuid(uuid.to_owned()),
        index: 0,
        model: "NVIDIA\u{0} L40".to_owned(),
        memory_total: GpuMemoryMib(46_068),
        memory_reserved: GpuMemoryMib(600),
        pci_bus_id: "00000000:3B:00.0".to_owned(),
        numa_node: None,
        minor: None,
        sick: String::new(),
        mig_enabled: false,
    }
}

fn inventory(cards: &[&str]) -> NodeInventory {
    let mut inventory =
        NodeInventory { cpu_cores: 8, memory: MemoryMib(1_024), ..Default::default() };
    let disk = |total_bytes, holds_docker| Disk { total_bytes, holds_docker, ..Disk::default() };
    inventory.disks = vec![disk(5 * GIB, false), disk(100 * GIB, true)];
    inventory.gpus.cards = cards.iter().map(|uuid| card(uuid)).collect();
    inventory
}

async fn view(room: &Room, node: NodeId) -> NodeView {
    actions::get(&room.ctx, &on(node)).await.unwrap()
}

async fn cards_of(room: &Room, node: NodeId) -> Vec<CardRow> {
    cards::of_node(&room.ctx.db, node).await.unwrap()
}

fn codes(view: &NodeView) -> Vec<&str> {
    view.notes.iter().map(|note| note.code).collect()
}

impl Room {
    async fn pass(&self, keeper: &mut Keeper, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
        keeper.tick().await;
    }
}

#[tokio::test]
async fn a_node_is_online_from_its_hello_and_offline_after_fifteen_seconds_of_silence() {
    for room in Room::on_all_engines().await {
        let node = room.node("gpu").await;
        let mut keeper = Keeper::new(room.ctx.clone());
        room.pass(&mut keeper, 100).await;
        keeper.hear(&connected(node, 0)).await;
        keeper.hear(&observed(node, DockerStatus::Connected, 3)).await;
        let shown = view(&room, node).await;
        assert!(shown.online && shown.offline_reason.is_empty());
        assert_eq!(
            (shown.docker_status.as_str(), shown.agent_program.as_str()),
            ("connected", "tianqi-agent 0.1 ")
        );

        keeper.hear(&disconnected(&room, node)).await;
        room.pass(&mut keeper, 14).await;
        assert!(view(&room, node).await.online);
        room.pass(&mut keeper, 1).await;

        let shown = view(&room, node).await;
        assert!(!shown.online);
        assert_eq!(shown.offline_reason, "the machine is down");
        assert_eq!(shown.docker_status, "unknown");
        assert!(shown.docker_reason.contains("the machine is down"), "{}", shown.docker_reason);
        let seen = shown.last_seen_at.unwrap().0;
        assert_eq!(seen, UnixMillis(room.ctx.clock.now().0 - 15_000));
        assert_eq!(codes(&shown), ["offline"]);

        keeper.hear(&connected(node, 0)).await;
        assert!(view(&room, node).await.online);
        assert_eq!(view(&room, node).await.docker_status, "unknown");
    }
}

#[tokio::test]
async fn an_agent_that_comes_back_in_time_was_never_offline() {
    let room = Room::sqlite().await;
    let node = room.node("gpu").await;
    let mut keeper = Keeper::new(room.ctx.clone());
    room.pass(&mut keeper, 100).await;
    keeper.hear(&connected(node, 0)).await;
    // The newer connection stands before the older one is known to be gone.
    keeper.hear(&connected(node, 0)).await;
    keeper.hear(&disconnected(&room, node)).await;
    room.pass(&mut keeper, 100).await;
    assert!(view(&room, node).await.online);

    keeper.hear(&disconnected(&room, node)).await;
    room.pass(&mut keeper, 10).await;
    keeper.hear(&connected(node, 0)).await;
    room.pass(&mut keeper, 100).await;
    assert!(view(&room, node).await.online);
}

#[tokio::test]
async fn nobody_is_judged_when_most_fall_silent_at_once_nor_just_after_a_start() {
    let room = Room::sqlite().await;
    let mut keeper = Keeper::new(room.ctx.clone());
    let mut nodes = Vec::new();
    for n in 0..5 {
        nodes.push(room.node(&format!("gpu-{n}")).await);
        keeper.hear(&connected(nodes[n], 0)).await;
    }
    room.pass(&mut keeper, 100).await;
    for node in &nodes[..3] {
        keeper.hear(&disconnected(&room, *node)).await;
    }
    room.pass(&mut keeper, 200).await;
    assert!(view(&room, nodes[0]).await.online);
    keeper.hear(&connected(nodes[0], 0)).await;
    room.pass(&mut keeper, 1).await;
    assert!(!view(&room, nodes[1]).await.online);

    let mut restarted = Keeper::new(room.ctx.clone());
    assert!(restarted.load().await);
    restarted.hear(&connected(nodes[0], 0)).await;
    restarted.hear(&connected(nodes[3], 0)).await;
    room.pass(&mut restarted, 59).await;
    assert!(view(&room, nodes[4]).await.online);
    room.pass(&mut restarted, 1).await;
    assert!(!view(&room, nodes[4]).await.online);
}

#[tokio::test]
async fn inventory_fills_the_row_and_the_cards_and_a_vanished_card_stays() {
    for room in Room::on_all_engines().await {
        let node = room.node("gpu").await;
        let mut keeper = Keeper::new(room.ctx.clone());
        keeper.hear(&connected(node, 0)).await;
        let hear = |cards: &[&str]| AgentEvent::Inventory(node, Box::new(inventory(cards)));
        keeper.hear(&hear(&["G1", "G2", "bad uuid\u{0}", ""])).await;

        let shown = view(&room, node).await;
        assert_eq!((shown.cpu_millicores, shown.memory_mib, shown.disk_gib), (8_000, 1_024, 100));
        assert_eq!(shown.inventory.unwrap()["cpu_cores"], 8);
        let cards = cards_of(&room, node).await;
        assert_eq!(cards.len(), 2);
        assert!(
            cards.iter().all(|card| card.present && card.mode == "shared" && card.max_shares == 10)
        );
        assert_eq!(cards[0].model, "NVIDIA  L40");

        let sql = "update node_gpus set mode = 'whole' where uuid = 'G2'";
        room.ctx.db.run(sql, args![]).await.unwrap();
        keeper.hear(&hear(&["G1"])).await;
        let cards = cards_of(&room, node).await;
        assert_eq!(cards.iter().map(|card| card.present).collect::<Vec<_>>(), [true, false]);
        keeper.hear(&hear(&["G1", "G2"])).await;
        let cards = cards_of(&room, node).await;
        let back = cards.iter().find(|card| card.uuid == "G2").unwrap();
        assert!(back.present && back.mode == "whole");
    }
}

#[tokio::test]
async fn a_card_is_not_taken_from_a_node_that_has_it_and_moves_when_it_is_gone_there() {
    for room in Room::on_all_engines().await {
        let (a, b) = (room.node("a").await, room.node("b").await);
        let mut keeper = Keeper::new(room.ctx.clone());
        let hear = |node, cards: &[&str]| AgentEvent::Inventory(node, Box::new(inventory(cards)));
        keeper.hear(&hear(a, &["G1"])).await;
        keeper.hear(&hear(b, &["G1", "G2"])).await;
        assert_eq!((cards_of(&room, a).await.len(), cards_of(&room, b).await.len()), (1, 1));

        keeper.hear(&hear(a, &[])).await;
        keeper.hear(&hear(b, &["G1"])).await;
        assert_eq!(cards_of(&room, a).await.len(), 0);
        assert_eq!(cards_of(&room, b).await.iter().filter(|card| card.present).count(), 1);
    }
}

#[tokio::test]
async fn nothing_is_written_when_nothing_changed() {
    for room in Room::on_all_engines().await {
        let node = room.node("gpu").await;
        let mut keeper = Keeper::new(room.ctx.clone());
        keeper.hear(&connected(node, 0)).await;
        keeper.hear(&AgentEvent::Inventory(node, Box::new(inventory(&["G1"])))).await;
        keeper.hear(&observed(node, DockerStatus::Failed, 1)).await;
        let before = view(&room, node).await;
        let mut events = room.ctx.events.listen();

        room.pass(&mut keeper, 5).await;
        let mut again = inventory(&["G1"]);
        again.disks[0].free_bytes = 7;
        keeper.hear(&AgentEvent::Inventory(node, Box::new(again))).await;
        keeper.hear(&observed(node, DockerStatus::Failed, 1)).await;

        let after = view(&room, node).await;
        assert_eq!(after.updated_at, before.updated_at);
        assert_eq!(after.last_seen_at, before.last_seen_at);
        assert!(events.try_recv().is_err());
        assert_eq!(codes(&after), ["docker"]);
        assert_eq!(after.docker_reason, "refused ");

        // Only the revision changed: written, but nobody is woken.
        keeper.hear(&observed(node, DockerStatus::Failed, 2)).await;
        assert!(events.try_recv().is_err());
        let sql = "select observed_generation from nodes where id = $1";
        assert_eq!(room.ctx.db.number(sql, args![node]).await.unwrap(), 2);
        keeper.hear(&observed(node, DockerStatus::Connected, 2)).await;
        assert_eq!(events.try_recv().unwrap(), Event::Node(node));

        // A restarted controller knows the inventory it has stored.
        let mut restarted = Keeper::new(room.ctx.clone());
        assert!(restarted.load().await);
        let updated_at = view(&room, node).await.updated_at;
        room.clock.advance(Duration::from_secs(1));
        restarted.hear(&AgentEvent::Inventory(node, Box::new(inventory(&["G1"])))).await;
        assert_eq!(view(&room, node).await.updated_at, updated_at);
    }
}

#[tokio::test]
async fn last_contact_is_written_every_thirty_seconds_and_a_removed_node_is_forgotten() {
    for room in Room::on_all_engines().await {
        let node = room.node("gpu").await;
        let mut keeper = Keeper::new(room.ctx.clone());
        keeper.hear(&connected(node, 0)).await;

        room.pass(&mut keeper, 29).await;
        assert_eq!(view(&room, node).await.last_seen_at.unwrap().0, NOW);
        room.pass(&mut keeper, 1).await;
        assert_eq!(view(&room, node).await.last_seen_at.unwrap().0, room.ctx.clock.now());

        actions::delete(&room.ctx, &on(node)).await.unwrap();
        keeper.hear(&AgentEvent::Inventory(node, Box::new(inventory(&["G1"])))).await;
        room.pass(&mut keeper, 30).await;
        keeper.hear(&observed(node, DockerStatus::Connected, 9)).await;
        let rows = room.ctx.db.number("select count(*) from node_gpus", args![]).await.unwrap();
        assert_eq!(rows, 0);
    }
}

#[tokio::test]
async fn a_clock_that_is_wrong_by_more_than_five_minutes_is_noted() {
    let room = Room::sqlite().await;
    let node = room.node("gpu").await;
    let mut keeper = Keeper::new(room.ctx.clone());
    keeper.hear(&connected(node, -400_000)).await;
    keeper.hear(&observed(node, DockerStatus::Connected, 1)).await;

    let shown = view(&room, node).await;
    assert_eq!(codes(&shown), ["clock_skew"]);
    assert!(shown.notes[0].message.contains("400 s behind"), "{}", shown.notes[0].message);

    keeper.hear(&connected(node, 300_000)).await;
    assert!(view(&room, node).await.notes.is_empty());
}
