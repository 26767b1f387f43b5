//! Quantities as types: integers, with the unit in the name.

use serde::{Deserialize, Serialize};

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// Returns the sum, at most the largest value.
            #[must_use]
            pub fn plus(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }

            /// Returns what is left after taking `other`, at least zero.
            #[must_use]
            pub fn minus(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }
        }
    };
}

unit! {
    /// Main memory in mebibytes (1 MiB = 2^20 bytes).
    MemoryMib(u64)
}
unit! {
    /// GPU memory in mebibytes (1 MiB = 2^20 bytes).
    ///
    /// NVML reports bytes; the conversion happens once, in `agent/src/gpu`.
    GpuMemoryMib(u64)
}
unit! {
    /// Percent of one card's streaming multiprocessors, 1 to 100.
    CorePercent(u32)
}
unit! {
    /// Thousandths of a CPU core.
    Millicores(u64)
}
unit! {
    /// Disk space in gibibytes (1 GiB = 2^30 bytes).
    DiskGib(u64)
}

/// Bytes in one mebibyte.
pub const MIB: u64 = 1 << 20;
/// Bytes in one gibibyte.
pub const GIB: u64 = 1 << 30;
