//! Quotas: how much of everything one account may have. Pure arithmetic in whole numbers; what
//! counts as used is the caller's to say.

use std::fmt;

/// A quantity that a quota limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Quantity {
    /// Instances.
    Instances,
    /// Whole cards.
    Gpus,
    /// Memory of slices, in MiB.
    GpuMemory,
    /// CPU, in millicores.
    Cpu,
    /// Main memory, in MiB.
    Memory,
    /// Disk, in GiB.
    Disk,
}

impl Quantity {
    /// Every quantity, in the order in which people read them.
    pub const ALL: [Self; 6] =
        [Self::Instances, Self::Gpus, Self::GpuMemory, Self::Cpu, Self::Memory, Self::Disk];

    /// Returns what an amount of it is called: `1 instance`, `1.5 CPU cores`.
    fn noun(self, amount: u64) -> &'static str {
        match (self, amount) {
            (Self::Instances, 1) => "instance",
            (Self::Instances, _) => "instances",
            (Self::Gpus, 1) => "whole GPU",
            (Self::Gpus, _) => "whole GPUs",
            (Self::GpuMemory, _) => "MiB of GPU memory in slices",
            (Self::Cpu, 1_000) => "CPU core",
            (Self::Cpu, _) => "CPU cores",
            (Self::Memory, _) => "MiB of memory",
            (Self::Disk, _) => "GiB of disk",
        }
    }
}

/// One value for each quantity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Each<T> {
    /// For instances.
    pub instances: T,
    /// For whole cards.
    pub gpus: T,
    /// For memory of slices.
    pub gpu_memory_mib: T,
    /// For CPU.
    pub cpu_millicores: T,
    /// For main memory.
    pub memory_mib: T,
    /// For disk.
    pub disk_gib: T,
}

/// How much of each: used, or wanted.
pub type Amounts = Each<u64>;

/// The most that may be used of each; `None` for no limit.
pub type Limits = Each<Option<u64>>;

/// What a row of quotas says of each; `None` when it says nothing.
pub type Settings = Each<Option<Setting>>;

/// What a row of quotas says of one quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// There is no limit, whatever the row below says.
    Unlimited,
    /// At most so much.
    AtMost(u64),
}

impl<T: Copy> Each<T> {
    /// Returns the value for `quantity`.
    #[must_use]
    pub fn of(&self, quantity: Quantity) -> T {
        match quantity {
            Quantity::Instances => self.instances,
            Quantity::Gpus => self.gpus,
            Quantity::GpuMemory => self.gpu_memory_mib,
            Quantity::Cpu => self.cpu_millicores,
            Quantity::Memory => self.memory_mib,
            Quantity::Disk => self.disk_gib,
        }
    }

    /// Puts each value together with its fellow of `other`.
    #[must_use]
    pub fn with<U: Copy, V>(&self, other: &Each<U>, join: impl Fn(T, U) -> V) -> Each<V> {
        Each {
            instances: join(self.instances, other.instances),
            gpus: join(self.gpus, other.gpus),
            gpu_memory_mib: join(self.gpu_memory_mib, other.gpu_memory_mib),
            cpu_millicores: join(self.cpu_millicores, other.cpu_millicores),
            memory_mib: join(self.memory_mib, other.memory_mib),
            disk_gib: join(self.disk_gib, other.disk_gib),
        }
    }
}

impl Amounts {
    /// Returns the sums, each at most the largest number.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    /// Returns `count` times each, at most the largest number.
    #[must_use]
    pub fn times(&self, count: u64) -> Self {
        self.with(self, |amount, _| amount.saturating_mul(count))
    }
}

impl Limits {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        Quantity::ALL.iter().all(|quantity| self.of(*quantity).is_none())
    }
}

impl Settings {
    /// Lays these settings over others: what these say counts, for the rest the others do. What
    /// neither limits has no limit.
    #[must_use]
    pub fn over(&self, below: &Self) -> Limits {
        self.with(below, |own, below| match own.or(below) {
            None | Some(Setting::Unlimited) => None,
            Some(Setting::AtMost(limit)) => Some(limit),
        })
    }
}

/// A limit that a request would exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Excess {
    /// Which.
    pub quantity: Quantity,
    /// The most that may be used.
    pub limit: u64,
    /// What is used already.
    pub used: u64,
    /// What the request adds.
    pub wanted: u64,
    /// By how much it is too much, at most the largest number.
    pub over: u64,
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |amount| Shown { quantity: self.quantity, amount };
        let (limit, noun) = (show(self.limit), self.quantity.noun(self.limit));
        let (used, wanted, over) = (show(self.used), show(self.wanted), show(self.over));
        write!(f, "{limit} {noun} allowed, {used} in use, {wanted} more needed, {over} too many")
    }
}

/// An amount as people write it: CPU in cores.
struct Shown {
    quantity: Quantity,
    amount: u64,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.quantity != Quantity::Cpu {
            return write!(f, "{}", self.amount);
        }
        let (whole, thousandths) = (self.amount / 1_000, self.amount % 1_000);
        if thousandths == 0 {
            return write!(f, "{whole}");
        }
        let decimals = format!("{thousandths:03}");
        write!(f, "{whole}.{}", decimals.trim_end_matches('0'))
    }
}

/// Says whether `wanted` may be added to `used`.
///
/// Only what a request adds to is looked at: somebody who has too much of one thing, because a limit
/// was lowered, may still take others.
///
/// # Errors
///
/// Every limit that would be exceeded, in the order of [`Quantity::ALL`].
pub fn check(limits: &Limits, used: &Amounts, wanted: &Amounts) -> Result<(), Vec<Excess>> {
    let excess = |quantity: &Quantity| {
        let limit = limits.of(*quantity)?;
        let (used, wanted) = (used.of(*quantity), wanted.of(*quantity));
        if wanted <= limit.saturating_sub(used) {
            return None;
        }
        let over = (u128::from(used) + u128::from(wanted)).saturating_sub(u128::from(limit));
        let over = u64::try_from(over).unwrap_or(u64::MAX);
        Some(Excess { quantity: *quantity, limit, used, wanted, over })
    };
    let found: Vec<Excess> = Quantity::ALL.iter().filter_map(excess).collect();
    if found.is_empty() { Ok(()) } else { Err(found) }
}
