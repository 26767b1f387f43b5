//! Tests of the crate as a whole: properties over small random fleets, and cases.

mod cases;
mod invariants;
mod queue;
mod quota;
mod refusals;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use tianqi_common::id::{InstanceId, NodeId};
use tianqi_common::unit::{CorePercent, DiskGib, GpuMemoryMib, MemoryMib, Millicores};
use tianqi_common::wire::desired::{GpuSlice, GpuUuid};
use tianqi_common::wire::inventory::{GpuLink, LinkKind};

use crate::{
    GpuCapacity, GpuMode, GpuRequest, NodeCapacity, NodeGate, Policy, Request, Snapshot, place,
};

const MODELS: [&str; 2] = ["NVIDIA L40", "NVIDIA H200"];
const IMAGES: [&str; 2] = ["alpine", "torch"];

fn node_id(number: u64) -> NodeId {
    format!("00000000-0000-0000-0000-{number:012x}").parse().unwrap()
}

fn instance_id(number: u64) -> InstanceId {
    format!("00000000-0000-0000-0001-{number:012x}").parse().unwrap()
}

fn uuid(node: u64, card: u64) -> GpuUuid {
    GpuUuid(format!("GPU-{node}-{card}"))
}

fn slice(memory: u64, cores: u32) -> GpuSlice {
    GpuSlice { memory: GpuMemoryMib(memory), cores: CorePercent(cores) }
}

fn slice_request(memory: u64, cores: u32) -> Request {
    let gpu =
        GpuRequest::Slice { memory: GpuMemoryMib(memory), cores: CorePercent(cores), model: None };
    Request { gpu, ..Request::default() }
}

fn whole_request(count: u32) -> Request {
    Request { gpu: GpuRequest::Whole { count, model: None }, ..Request::default() }
}

/// A roomy open node with `cards` cards of which slices may take 10 000 MiB.
fn gpu_node(number: u64, cards: u64) -> NodeCapacity {
    let mut node = NodeCapacity::new(node_id(number), format!("gpu-{number:02}"));
    node.cpu_total = Millicores(64_000);
    node.memory_total = MemoryMib(256_000);
    node.disk_total = DiskGib(2_000);
    for card in 0..cards {
        let total = GpuMemoryMib(10_512);
        node.gpus.push(GpuCapacity::new(uuid(number, card), MODELS[0], total));
    }
    node
}

/// Small amounts that collide often, and a few absurd ones.
fn amount() -> impl Strategy<Value = u64> {
    prop_oneof![10 => 0_u64..12, 1 => Just(u64::MAX), 1 => Just(u64::MAX / 1_000 + 1)]
}

fn card() -> impl Strategy<Value = GpuCapacity> {
    let total = prop_oneof![3 => Just(12_u64), 1 => amount()];
    let numbers = (total, 0_u64..2, 0_u64..2, prop_oneof![4 => 2_u32..5, 1 => 0_u32..2]);
    let state = (0_usize..2, option::weighted(0.1, Just("ecc".to_owned())), option::of(0_u32..2));
    let mode = prop_oneof![
        6 => Just(GpuMode::Shared), 2 => Just(GpuMode::Whole), 1 => Just(GpuMode::Disabled)
    ];
    let grants = (prop::bool::weighted(0.15), vec((0_u64..5, 1_u32..60), 0..3));
    (numbers, state, mode, grants).prop_map(|(numbers, state, mode, (whole, slices))| {
        let (total, reserved, headroom, max_shares) = numbers;
        let mut gpu = GpuCapacity::new(uuid(0, 0), MODELS[state.0], GpuMemoryMib(total));
        gpu.memory_reserved = GpuMemoryMib(reserved);
        gpu.headroom = GpuMemoryMib(headroom);
        gpu.max_shares = max_shares;
        (gpu.sick, gpu.numa, gpu.mode) = (state.1, state.2, mode);
        if whole && max_shares > 0 {
            gpu.grant_whole();
        }
        for (memory, cores) in slices {
            let fits = gpu.free_memory().0 >= memory && gpu.free_cores().0 >= cores;
            if fits && gpu.free_shares() > 0 && mode == GpuMode::Shared {
                gpu.grant_slice(slice(memory, cores));
            }
        }
        gpu
    })
}

fn gate() -> impl Strategy<Value = NodeGate> {
    let why = |text: &'static str| option::weighted(0.08, Just(text.to_owned()));
    (prop::bool::weighted(0.9), prop::bool::weighted(0.1), why("lost"), why("refused")).prop_map(
        |(listed, cordoned, offline, docker_down)| NodeGate {
            listed,
            cordoned,
            offline,
            docker_down,
        },
    )
}

fn total_and_used() -> impl Strategy<Value = (u64, u64)> {
    let total = prop_oneof![3 => Just(12_u64), 1 => amount()];
    let used = prop_oneof![Just(0_u64), 0_u64..12];
    (total, used).prop_map(|(total, used)| (total, used.min(total)))
}

fn node(number: u64) -> impl Strategy<Value = NodeCapacity> {
    let host = (total_and_used(), total_and_used(), total_and_used());
    let link = (0_u64..5, 0_u64..5, 0_u32..3);
    let images = prop::sample::subsequence(IMAGES.to_vec(), 0..=IMAGES.len());
    let slicing = option::weighted(0.1, Just("no library".to_owned()));
    (host, gate(), vec(card(), 0..5), vec(link, 0..4), images, slicing).prop_map(move |parts| {
        let (host, gate, mut gpus, links, images, slicing_unusable) = parts;
        let mut node = NodeCapacity::new(node_id(number), format!("node-{number}"));
        node.gate = gate;
        (node.cpu_total, node.cpu_used) = (Millicores(host.0.0), Millicores(host.0.1));
        (node.memory_total, node.memory_used) = (MemoryMib(host.1.0), MemoryMib(host.1.1));
        (node.disk_total, node.disk_used) = (DiskGib(host.2.0), DiskGib(host.2.1));
        for (position, gpu) in (0..).zip(&mut gpus) {
            gpu.uuid = uuid(number, position);
        }
        node.gpus = gpus;
        let link = |(a, b, nvlinks)| {
            let (a, b) = (uuid(number, a), uuid(number, b));
            GpuLink { a, b, kind: LinkKind::HostBridge, nvlinks }
        };
        node.links = links.into_iter().map(link).collect();
        node.images = images.into_iter().map(str::to_owned).collect();
        node.slicing_unusable = slicing_unusable;
        node
    })
}

fn fleet() -> impl Strategy<Value = Vec<NodeCapacity>> {
    (0_u64..9).prop_flat_map(|count| (0..count).map(node).collect::<Vec<_>>())
}

fn gpu_request() -> impl Strategy<Value = GpuRequest> {
    let model = || option::weighted(0.3, prop::sample::select(vec![" nvidia l40", "NVIDIA H200"]));
    let owned = |model: Option<&str>| model.map(str::to_owned);
    let count = prop_oneof![9 => 0_u32..4, 1 => Just(u32::MAX)];
    let memory = prop_oneof![4 => 1_u64..6, 1 => amount()];
    let cores = prop_oneof![12 => 1_u32..60, 1 => Just(100), 1 => Just(0), 1 => Just(u32::MAX)];
    prop_oneof![
        1 => Just(GpuRequest::None),
        2 => (count, model()).prop_map(move |(count, model)| GpuRequest::Whole {
            count,
            model: owned(model),
        }),
        4 => (memory, cores, model()).prop_map(move |(memory, cores, model)| GpuRequest::Slice {
            memory: GpuMemoryMib(memory),
            cores: CorePercent(cores),
            model: owned(model),
        }),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let small = || prop_oneof![40 => 0_u64..3, 1 => Just(u64::MAX)];
    let image = option::of(prop::sample::select(IMAGES.to_vec()));
    let policy = prop_oneof![Just(Policy::BinPack), Just(Policy::Spread)];
    let named = option::weighted(0.15, 0_u64..9);
    (small(), small(), small(), gpu_request(), named, image, policy).prop_map(|parts| Request {
        cpu: Millicores(parts.0),
        memory: MemoryMib(parts.1),
        disk: DiskGib(parts.2),
        gpu: parts.3,
        node: parts.4.map(node_id),
        image: parts.5.map(str::to_owned),
        policy: parts.6,
    })
}

/// Places and books, for cases in which it must work.
fn put(snapshot: &mut Snapshot, request: &Request) -> crate::Placement {
    let placement = place(snapshot, request).unwrap();
    snapshot.apply(&placement, request).unwrap();
    placement
}
