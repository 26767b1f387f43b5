//! How fast placing is, beside published figures of others: `cargo bench -p tianqi-scheduler`.
//!
//! Each fleet is made by a fixed random sequence, so that runs compare. A measured placement is
//! `place` and `apply`; a fleet in balance also releases one instance for every one placed.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a benchmark prints, stops at the first surprise and reads the machine's clock"
)]

use std::time::{Duration, Instant};

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::{InstanceId, NodeId};
use tianqi_common::unit::{CorePercent, DiskGib, GpuMemoryMib, MemoryMib, Millicores};
use tianqi_common::wire::desired::GpuUuid;
use tianqi_common::wire::inventory::{GpuLink, LinkKind};
use tianqi_scheduler::{
    GpuCapacity, GpuRequest, NodeCapacity, Pending, Placement, Policy, QueuePolicy, Request,
    Snapshot, explain, place, plan_queue,
};

const MODELS: [(&str, u64); 3] =
    [("NVIDIA L40", 46_068), ("NVIDIA H200", 143_771), ("NVIDIA A100-SXM4-80GB", 81_920)];
const IMAGES: u64 = 20;
const BAR_PER_SECOND: f64 = 10_000.0;
const BAR_P99: Duration = Duration::from_millis(1);
const BAR_EXPLAIN: Duration = Duration::from_millis(20);
const PEERS: &str = "beside (published): kube-scheduler 180/s with a GPU-like resource, \
                     Nomad 1500-3750/s";

/// SplitMix64: small, and the same numbers on every machine.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

fn id(number: u64) -> NodeId {
    format!("00000000-0000-7000-8000-{number:012x}").parse().unwrap()
}

fn node(number: u64, dice: &mut Dice) -> NodeCapacity {
    let mut node = NodeCapacity::new(id(number), format!("gpu-{number:05}"));
    node.cpu_total = Millicores(128_000);
    node.memory_total = MemoryMib(1_048_576);
    node.disk_total = DiskGib(8_000);
    let (model, memory) = MODELS[usize::try_from(number % 3).unwrap()];
    for card in 0..8 {
        let uuid = GpuUuid(format!("GPU-{number:08x}-0000-0000-0000-{card:012x}"));
        let mut gpu = GpuCapacity::new(uuid, model, GpuMemoryMib(memory));
        gpu.numa = Some(u32::from(card >= 4));
        node.gpus.push(gpu);
    }
    for pair in node.gpus.chunks(2) {
        let (a, b) = (pair[0].uuid.clone(), pair[1].uuid.clone());
        node.links.push(GpuLink { a, b, kind: LinkKind::SingleSwitch, nvlinks: 4 });
    }
    for _ in 0..4 {
        node.images.insert(format!("registry.example/image-{}", dice.below(IMAGES)));
    }
    node
}

fn slices(dice: &mut Dice) -> Request {
    let memory = [2_048, 4_096, 8_192, 16_384, 24_576][usize::try_from(dice.below(5)).unwrap()];
    let cores = [10, 20, 30, 50][usize::try_from(dice.below(4)).unwrap()];
    let model =
        (dice.below(4) == 0).then(|| MODELS[usize::try_from(dice.below(3)).unwrap()].0.to_owned());
    Request {
        cpu: Millicores(1_000 * (1 + dice.below(4))),
        memory: MemoryMib(4_096 * (1 + dice.below(4))),
        disk: DiskGib(20),
        gpu: GpuRequest::Slice { memory: GpuMemoryMib(memory), cores: CorePercent(cores), model },
        node: None,
        image: Some(format!("registry.example/image-{}", dice.below(IMAGES))),
        policy: Policy::BinPack,
    }
}

/// Slices mostly; also whole cards and work without cards.
fn mixed(dice: &mut Dice) -> Request {
    let mut request = slices(dice);
    match dice.below(10) {
        0 => request.gpu = GpuRequest::None,
        1 => {
            let count = [1, 1, 2, 4][usize::try_from(dice.below(4)).unwrap()];
            request.gpu = GpuRequest::Whole { count, model: None };
        }
        _ => {}
    }
    request
}

fn spread(dice: &mut Dice) -> Request {
    Request { policy: Policy::Spread, ..mixed(dice) }
}

struct Fleet {
    snapshot: Snapshot,
    placed: Vec<(Placement, Request)>,
    dice: Dice,
}

impl Fleet {
    fn new(nodes: u64) -> Self {
        let mut dice = Dice(2_024);
        let nodes: Vec<NodeCapacity> = (0..nodes).map(|number| node(number, &mut dice)).collect();
        Self { snapshot: Snapshot::new(nodes), placed: Vec::new(), dice }
    }

    /// Places up to `instances`; a hundred refusals end it: the fleet counts as full then.
    fn fill(mut self, instances: usize, make: fn(&mut Dice) -> Request) -> Self {
        let mut refused = 0;
        while self.placed.len() < instances && refused < 100 {
            let request = make(&mut self.dice);
            match place(&self.snapshot, &request) {
                Ok(placement) => self.book(placement, request),
                Err(_) => refused += 1,
            }
        }
        self
    }

    fn book(&mut self, placement: Placement, request: Request) {
        self.snapshot.apply(&placement, &request).unwrap();
        self.placed.push((placement, request));
    }

    fn release_any(&mut self) {
        let at = usize::try_from(self.dice.below(self.placed.len() as u64)).unwrap();
        let (placement, request) = self.placed.swap_remove(at);
        self.snapshot.release(&placement, &request);
    }

    /// Times `rounds` placements; with `balance` an instance leaves before each one.
    fn measure(&mut self, rounds: usize, balance: bool, make: fn(&mut Dice) -> Request) -> Figures {
        let mut times = Vec::with_capacity(rounds);
        let mut refused = Vec::new();
        for _ in 0..rounds {
            if balance {
                self.release_any();
            }
            let request = make(&mut self.dice);
            let start = Instant::now();
            let result = place(&self.snapshot, &request);
            if let Ok(placement) = result {
                self.snapshot.apply(&placement, &request).unwrap();
                times.push(start.elapsed());
                self.placed.push((placement, request));
            } else {
                refused.push(start.elapsed());
            }
        }
        Figures::new(times, refused)
    }
}

struct Figures {
    times: Vec<Duration>,
    total: Duration,
    refused: Vec<Duration>,
}

impl Figures {
    fn new(mut times: Vec<Duration>, mut refused: Vec<Duration>) -> Self {
        let total = times.iter().sum();
        times.sort_unstable();
        refused.sort_unstable();
        Self { times, total, refused }
    }

    fn at(&self, percent: usize) -> Duration {
        self.times[(self.times.len() - 1) * percent / 100]
    }

    fn per_second(&self) -> f64 {
        f64::from(u32::try_from(self.times.len()).unwrap()) / self.total.as_secs_f64()
    }

    fn print(&self, what: &str) {
        let met = self.per_second() >= BAR_PER_SECOND && self.at(99) <= BAR_P99;
        println!(
            "{what}: {:.0}/s, p50 {:?}, p99 {:?}, max {:?} over {}; \
             bar >= 10000/s and p99 <= 1ms: {}; {PEERS}",
            self.per_second(),
            self.at(50),
            self.at(99),
            self.at(100),
            self.times.len(),
            verdict(met),
        );
        if let Some(median) = self.refused.get(self.refused.len() / 2) {
            println!("  and {} refusals with reasons: p50 {median:?}", self.refused.len());
        }
    }
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "NOT MET" }
}

fn bench_explain(fleet: &Fleet, what: &str, request: &Request) {
    let mut times = Vec::new();
    let mut candidates = 0;
    for _ in 0..30 {
        let start = Instant::now();
        let explanation = explain(&fleet.snapshot, request);
        times.push(start.elapsed());
        candidates = explanation.candidates.len();
    }
    let figures = Figures::new(times, Vec::new());
    println!(
        "explain, 5000 nodes, {what} ({candidates} candidates): p50 {:?}, max {:?}; \
         bar <= 20ms: {}; beside: none published",
        figures.at(50),
        figures.at(100),
        verdict(figures.at(100) <= BAR_EXPLAIN),
    );
}

fn bench_queue(fleet: &mut Fleet, entries: u64) {
    let pending: Vec<Pending> = (0..entries)
        .map(|age| Pending {
            instance: InstanceId::new(),
            priority: 0,
            created_at: UnixMillis(i64::try_from(age).unwrap()),
            request: mixed(&mut fleet.dice),
        })
        .collect();
    let now = UnixMillis(10_000_000);
    let start = Instant::now();
    let decisions = plan_queue(&mut fleet.snapshot, &pending, now, &QueuePolicy::default());
    println!("queue of {} pending, 10000 nodes: {:?}", decisions.len(), start.elapsed());
}

fn main() {
    let mut five = Fleet::new(5_000);
    five.measure(20_000, false, slices).print("place slices, 5000 nodes x 8 cards, from empty");
    let request = slices(&mut Dice(7));
    bench_explain(&five, "a slice", &request);
    let whole = GpuRequest::Whole { count: 4, model: None };
    bench_explain(&five, "four cards", &Request { gpu: whole, ..request.clone() });
    let huge = GpuMemoryMib(1 << 40);
    let never = GpuRequest::Slice { memory: huge, cores: CorePercent(10), model: None };
    bench_explain(&five, "a slice nobody can hold", &Request { gpu: never, ..request });

    let mut ten = Fleet::new(10_000).fill(50_000, mixed);
    let title = "10000 nodes x 8 cards x 50000 instances";
    ten.measure(50_000, true, mixed).print(&format!("place mixed, {title}, coming and going"));
    ten.measure(20_000, true, slices).print(&format!("place slices, {title}, coming and going"));
    let mut apart = Fleet::new(10_000).fill(50_000, spread);
    apart.measure(50_000, true, spread).print(&format!("place spread, {title}, coming and going"));
    let mut full = Fleet::new(10_000).fill(1_000_000, slices);
    let title =
        format!("beyond the bar: 10000 full nodes x 8 cards x {} instances", full.placed.len());
    full.measure(5_000, true, slices).print(&format!("place slices, {title}"));
    bench_queue(&mut ten, 1_000);
}
