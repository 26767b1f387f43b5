//! Single cases: which card, which node, which words.

use tianqi_common::unit::{CorePercent, GpuMemoryMib, MemoryMib, Millicores};
use tianqi_common::wire::inventory::{GpuLink, LinkKind};

use super::{MODELS, gpu_node, node_id, put, slice, slice_request, uuid, whole_request};
use crate::{
    GpuCapacity, GpuMode, GpuRequest, NodeCapacity, Placement, Policy, Reason, Request, Snapshot,
    Unplaced, check, default_headroom, explain, place,
};

fn link(a: u64, b: u64, kind: LinkKind, nvlinks: u32) -> GpuLink {
    GpuLink { a: uuid(0, a), b: uuid(0, b), kind, nvlinks }
}

fn refusal(node: NodeCapacity, request: &Request) -> Reason {
    explain(&Snapshot::new([node]), request).refusals[0].reason.clone()
}

#[test]
fn slices_fill_the_fullest_card_that_fits() {
    let mut node = gpu_node(0, 3);
    node.gpus[1].grant_slice(slice(3_000, 10));
    node.gpus[2].grant_slice(slice(6_000, 10));
    let mut snapshot = Snapshot::new([node]);

    assert_eq!(put(&mut snapshot, &slice_request(4_000, 10)).gpus, [uuid(0, 2)]);
    assert_eq!(put(&mut snapshot, &slice_request(4_000, 10)).gpus, [uuid(0, 1)]);
    assert_eq!(put(&mut snapshot, &slice_request(4_000, 10)).gpus, [uuid(0, 0)]);
}

#[test]
fn a_slice_joins_a_cut_card_elsewhere_before_it_opens_an_empty_one() {
    let mut cut = gpu_node(1, 2);
    cut.gpus[1].grant_slice(slice(100, 10));
    let mut fuller = gpu_node(0, 2);
    fuller.gpus[0].grant_whole();

    let placement = place(&Snapshot::new([fuller, cut]), &slice_request(100, 10)).unwrap();

    assert_eq!(placement.gpus, [uuid(1, 1)]);
}

#[test]
fn a_slice_with_all_cores_needs_an_empty_card() {
    let mut node = gpu_node(0, 1);
    node.gpus[0].grant_slice(slice(100, 1));

    let reason = refusal(node, &slice_request(100, 100));

    assert_eq!(reason.to_string(), "needs 100 % of one card's cores, most free is 99 %");
}

#[test]
fn one_whole_card_is_the_worst_connected_and_several_are_the_nearest() {
    let mut node = gpu_node(0, 4);
    node.links = vec![
        link(1, 3, LinkKind::HostBridge, 4),
        link(0, 1, LinkKind::SingleSwitch, 0),
        link(2, 3, LinkKind::MultipleSwitches, 0),
    ];
    let snapshot = Snapshot::new([node]);

    assert_eq!(place(&snapshot, &whole_request(1)).unwrap().gpus, [uuid(0, 2)]);
    assert_eq!(place(&snapshot, &whole_request(2)).unwrap().gpus, [uuid(0, 1), uuid(0, 3)]);
    let three = place(&snapshot, &whole_request(3)).unwrap().gpus;
    assert_eq!(three, [uuid(0, 0), uuid(0, 1), uuid(0, 3)]);
}

#[test]
fn cards_without_links_are_grouped_by_numa_node() {
    let mut node = gpu_node(0, 4);
    for (gpu, numa) in node.gpus.iter_mut().zip([0, 1, 0, 1]) {
        gpu.numa = Some(numa);
    }
    let mut snapshot = Snapshot::new([node]);

    assert_eq!(put(&mut snapshot, &whole_request(2)).gpus, [uuid(0, 0), uuid(0, 2)]);
    assert_eq!(put(&mut snapshot, &whole_request(2)).gpus, [uuid(0, 1), uuid(0, 3)]);
}

#[test]
fn a_node_with_many_cards_is_grouped_without_trying_every_combination() {
    let mut node = gpu_node(0, 32);
    for (position, gpu) in node.gpus.iter_mut().enumerate() {
        gpu.numa = Some(u32::from(position % 2 == 1));
    }

    let gpus = place(&Snapshot::new([node]), &whole_request(16)).unwrap().gpus;

    assert_eq!(gpus, (0..16).map(|half| uuid(0, 2 * half)).collect::<Vec<_>>());
}

#[test]
fn nodes_fill_up_by_default_and_share_out_on_request() {
    let mut used = gpu_node(1, 1);
    used.cpu_used = Millicores(1_000);
    let snapshot = Snapshot::new([gpu_node(0, 1), used]);
    let spread = Request { policy: Policy::Spread, ..whole_request(1) };

    assert_eq!(place(&snapshot, &whole_request(1)).unwrap().node, node_id(1));
    assert_eq!(place(&snapshot, &spread).unwrap().node, node_id(0));
}

#[test]
fn equal_nodes_are_chosen_by_id() {
    let snapshot = Snapshot::new([gpu_node(2, 1), gpu_node(1, 1), gpu_node(3, 1)]);

    assert_eq!(place(&snapshot, &whole_request(1)).unwrap().node, node_id(1));
}

#[test]
fn equal_nodes_of_different_models_are_chosen_by_id_too() {
    let mut other = gpu_node(2, 1);
    other.gpus[0].model = "A model that sorts first".into();

    let snapshot = Snapshot::new([other, gpu_node(1, 1)]);

    assert_eq!(place(&snapshot, &whole_request(1)).unwrap().node, node_id(1));
}

#[test]
fn an_image_that_left_a_node_no_longer_counts() {
    let mut holder = gpu_node(1, 1);
    holder.images.insert("torch".into());
    let mut snapshot = Snapshot::new([gpu_node(0, 1), holder]);
    let request = Request { image: Some("torch".into()), ..slice_request(100, 10) };
    assert_eq!(place(&snapshot, &request).unwrap().node, node_id(1));

    snapshot.upsert(gpu_node(1, 1));

    assert_eq!(place(&snapshot, &request).unwrap().node, node_id(0));
}

#[test]
fn a_node_that_holds_the_image_wins_over_a_little_fuller_one() {
    let (mut fuller, mut holder) = (gpu_node(0, 1), gpu_node(1, 1));
    fuller.memory_used = MemoryMib(100_000);
    holder.images.insert("torch".into());
    let request = Request { image: Some("torch".into()), ..slice_request(100, 10) };

    assert_eq!(
        place(&Snapshot::new([fuller.clone(), holder.clone()]), &request).unwrap().node,
        node_id(1)
    );

    fuller.cpu_used = Millicores(64_000);
    fuller.disk_used = fuller.disk_total;
    assert_eq!(place(&Snapshot::new([fuller, holder]), &request).unwrap().node, node_id(0));
}

#[test]
fn work_without_cards_goes_to_nodes_without_cards_first() {
    let snapshot = Snapshot::new([gpu_node(0, 2), gpu_node(1, 0)]);
    let request = Request { cpu: Millicores(1_000), ..Request::default() };

    assert_eq!(place(&snapshot, &request).unwrap().node, node_id(1));
}

#[test]
fn a_model_is_matched_by_its_whole_name_without_regard_to_case() {
    let mut node = gpu_node(0, 2);
    node.gpus[1].model = "NVIDIA L40S".into();
    let wants = |model: &str| Request {
        gpu: GpuRequest::Whole { count: 1, model: Some(model.into()) },
        ..Request::default()
    };

    let snapshot = Snapshot::new([node.clone()]);
    assert_eq!(place(&snapshot, &wants(" nvidia l40s ")).unwrap().gpus, [uuid(0, 1)]);
    assert_eq!(refusal(node, &wants("L40")).to_string(), "needs L40, has NVIDIA L40, NVIDIA L40S");
}

#[test]
fn a_whole_only_card_takes_no_slice_and_a_disabled_one_nothing() {
    let mut node = gpu_node(0, 1);
    node.gpus[0].mode = GpuMode::Whole;
    assert_eq!(refusal(node.clone(), &slice_request(1, 1)).code(), "no_shared_card");
    assert!(place(&Snapshot::new([node.clone()]), &whole_request(1)).is_ok());

    node.gpus[0].mode = GpuMode::Disabled;
    assert_eq!(refusal(node, &whole_request(1)).code(), "no_healthy_card");
}

#[test]
fn slicing_that_cannot_be_enforced_refuses_slices_only() {
    let mut node = gpu_node(0, 1);
    node.slicing_unusable = Some("libvgpu.so is missing".into());

    let reason = refusal(node.clone(), &slice_request(1, 1));
    assert_eq!(reason.to_string(), "cannot slice cards: libvgpu.so is missing");
    assert!(place(&Snapshot::new([node]), &whole_request(1)).is_ok());
}

#[test]
fn every_closed_gate_has_its_own_reason() {
    let reason = |change: fn(&mut NodeCapacity)| {
        let mut node = gpu_node(0, 1);
        change(&mut node);
        refusal(node, &whole_request(1)).code()
    };

    assert_eq!(reason(|node| node.gate.listed = false), "not_listed");
    assert_eq!(reason(|node| node.gate.cordoned = true), "cordoned");
    assert_eq!(reason(|node| node.gate.offline = Some("lost".into())), "offline");
    assert_eq!(reason(|node| node.gate.docker_down = Some("refused".into())), "docker_down");
}

#[test]
fn missing_card_memory_is_said_with_numbers_and_a_remedy() {
    let mut node = gpu_node(7, 1);
    node.gpus[0] = GpuCapacity::new(uuid(7, 0), MODELS[0], GpuMemoryMib(46_068));
    node.gpus[0].grant_slice(slice(34_907, 50));
    let request = slice_request(24_576, 10);

    let Err(Unplaced::Busy(shortfall)) = place(&Snapshot::new([node]), &request) else {
        panic!("a larger card would be free later")
    };

    let why = "needs 24576 MiB on one card, most free is 10240 MiB";
    assert_eq!(shortfall.summary, format!("no node fits now: gpu-07: {why}"));
    assert_eq!(
        shortfall.reasons[0].examples[0].reason.remedy(),
        "ask for at most 10240 MiB on one card, or wait until 14336 more are freed"
    );
}

#[test]
fn a_request_larger_than_every_empty_node_is_impossible_and_says_the_largest() {
    let mut node = gpu_node(0, 2);
    node.gpus[0].grant_whole();
    node.gate.cordoned = true;

    let unplaced = place(&Snapshot::new([node]), &slice_request(10_001, 10)).unwrap_err();

    assert!(unplaced.is_impossible());
    let why = "needs 10001 MiB on one card, most free is 10000 MiB";
    let head = "no listed node could ever hold this, even empty";
    assert_eq!(unplaced.to_string(), format!("{head}: gpu-00: {why}"));
}

#[test]
fn the_named_node_is_the_only_one_spoken_of() {
    let mut named = gpu_node(1, 1);
    named.gate.cordoned = true;
    let snapshot = Snapshot::new([gpu_node(0, 1), named, gpu_node(2, 1)]);
    let on = |number| Request { node: Some(node_id(number)), ..whole_request(1) };

    assert_eq!(place(&snapshot, &on(2)).unwrap().node, node_id(2));
    let refused = place(&snapshot, &on(1)).unwrap_err();
    assert_eq!(refused.to_string(), "the named node does not fit now: gpu-01: cordoned");
    let unknown = place(&snapshot, &on(9)).unwrap_err();
    assert_eq!(unknown.to_string(), "the named node is not known");
}

#[test]
fn an_empty_fleet_and_a_senseless_request_are_told_apart() {
    let nothing = place(&Snapshot::default(), &whole_request(1)).unwrap_err();
    assert_eq!(nothing.to_string(), "there is no node; join one and list it");

    for request in
        [whole_request(0), slice_request(0, 10), slice_request(1, 0), slice_request(1, 101)]
    {
        for snapshot in [Snapshot::default(), Snapshot::new([gpu_node(0, 1)])] {
            let refused = place(&snapshot, &request).unwrap_err();
            assert!(refused.is_impossible());
            assert!(refused.to_string().starts_with("the request cannot be placed: "));
        }
    }
}

#[test]
fn a_placement_that_does_not_belong_to_the_request_is_refused() {
    let snapshot = Snapshot::new([gpu_node(0, 2)]);
    let whole = Placement { node: node_id(0), gpus: vec![uuid(0, 0)], slice: None, score: 0 };
    let twice = Placement { gpus: vec![uuid(0, 0), uuid(0, 0)], ..whole.clone() };
    let gone = Placement { gpus: vec![uuid(0, 9)], ..whole.clone() };
    let code = |placement: &Placement, request: Request| {
        check(&snapshot, placement, &request).unwrap_err().code()
    };

    assert_eq!(check(&snapshot, &whole, &whole_request(1)), Ok(()));
    assert_eq!(code(&whole, whole_request(2)), "invalid_request");
    assert_eq!(code(&whole, slice_request(1, 1)), "invalid_request");
    assert_eq!(code(&twice, whole_request(2)), "invalid_request");
    assert_eq!(code(&gone, whole_request(1)), "card_gone");
}

#[test]
fn of_two_cards_with_one_uuid_the_first_counts() {
    let mut node = gpu_node(0, 2);
    node.gpus[1].uuid = uuid(0, 0);

    assert_eq!(refusal(node, &whole_request(2)).code(), "not_enough_empty_cards");
}

#[test]
fn headroom_is_two_percent_and_at_least_the_floor() {
    assert_eq!(default_headroom(GpuMemoryMib(46_068)), GpuMemoryMib(921));
    assert_eq!(default_headroom(GpuMemoryMib(8_192)), GpuMemoryMib(512));
    let card = GpuCapacity::new(uuid(0, 0), MODELS[0], GpuMemoryMib(100));
    assert_eq!((card.usable(), card.free_cores()), (GpuMemoryMib(0), CorePercent(100)));
}
