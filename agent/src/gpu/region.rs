//! The bytes of HAMi-core's shared region (layout 1.2), written before a container starts and read
//! beside it.
//!
//! The first process of a container takes its limits from this file when it exists, so a region that
//! the agent filled in holds even where no environment arrives. The tenant can write the file: what
//! is read from it is a hint, never a truth.
//!
//! Layouts 1.1 and 1.2 share every offset used here. HAMi 2.8.1 calls itself 1.1 as well but is
//! shifted; its file has another size, by which it is known.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use tianqi_common::unit::{CorePercent, GpuMemoryMib, MIB};
use tianqi_common::wire::desired::GpuSlice;

/// Size of the file: the structure and one byte.
pub const SIZE: u64 = 2_008_953;
/// Size of the file of HAMi 2.8.1.
const SIZE_SHIFTED: u64 = 2_008_985;
/// Cards that a region has room for.
pub const DEVICES: usize = 16;

const MAGIC: u32 = 19_920_718;
const MAJOR: u32 = 1;
const MINOR: u32 = 2;
const SEM: usize = 24;
const LIMIT: usize = 1600;
const SM_LIMIT: usize = 1728;
const HEAD: usize = 1856;
const PROCS: usize = 1856;
const PROC_STRIDE: usize = 1960;
const MOST_PROCS: usize = 1024;
const PROC_NUM: usize = 2_008_896;
const UTILIZATION_SWITCH: usize = 2_008_900;
const RECENT_KERNEL: usize = 2_008_904;
const PRIORITY: usize = 2_008_908;
const SEM_POSTINIT: usize = 2_008_920;
const TAIL: usize = 2_008_953 - PROC_NUM;

/// `sem_t` of a free semaphore that processes share, as glibc lays it out: value at 0, and at 8 the
/// flag that other processes use it too.
const FREE_SEMAPHORE: [(usize, u32); 2] = [(0, 1), (8, 128)];

/// What a region says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Layout version, such as `(1, 2)`.
    pub version: (u32, u32),
    /// Bytes allowed on each card.
    pub limits: Vec<u64>,
    /// Percent of the multiprocessors allowed on each card.
    pub core_limits: Vec<u64>,
    /// Processes that registered.
    pub processes: Vec<Process>,
}

/// One process of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id inside the container.
    pub pid: i32,
    /// Its id on the node; 0 until HAMi-core found it.
    pub host_pid: i32,
    /// Bytes that it booked, on all cards.
    pub used_bytes: u64,
}

/// Why a region cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The file cannot be read.
    #[error("the region file cannot be read")]
    Io(#[source] io::Error),
    /// The file has a size of no known layout.
    #[error("a region of {0} bytes has a layout that is not known")]
    UnknownSize(u64),
    /// The file begins like no known layout.
    #[error("a region with magic {magic} and version {major}.{minor} is not known")]
    UnknownVersion {
        /// First word.
        magic: u32,
        /// Second word.
        major: u32,
        /// Third word.
        minor: u32,
    },
}

/// Returns the first and the last bytes of a fresh region, each with its offset; zeroes lie between.
#[must_use]
pub fn seed(slice: GpuSlice) -> [(u64, Vec<u8>); 2] {
    let mut head = vec![0; HEAD];
    put(&mut head, 0, &MAGIC.to_le_bytes());
    put(&mut head, 4, &MAJOR.to_le_bytes());
    put(&mut head, 8, &MINOR.to_le_bytes());
    let GpuSlice { memory: GpuMemoryMib(mib), cores: CorePercent(cores) } = slice;
    // A container sees one card. The other places get what the environment would give them, so that
    // the library finds nothing to complain about.
    for device in 0..DEVICES {
        put(&mut head, LIMIT + device * 8, &mib.saturating_mul(MIB).to_le_bytes());
        put(&mut head, SM_LIMIT + device * 8, &u64::from(cores.clamp(1, 100)).to_le_bytes());
    }
    let mut tail = vec![0; TAIL];
    put(&mut tail, UTILIZATION_SWITCH - PROC_NUM, &1_u32.to_le_bytes());
    put(&mut tail, RECENT_KERNEL - PROC_NUM, &2_u32.to_le_bytes());
    put(&mut tail, PRIORITY - PROC_NUM, &1_u32.to_le_bytes());
    for (offset, value) in FREE_SEMAPHORE {
        put(&mut head, SEM + offset, &value.to_le_bytes());
        put(&mut tail, SEM_POSTINIT - PROC_NUM + offset, &value.to_le_bytes());
    }
    [(0, head), (PROC_NUM as u64, tail)]
}

fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(offset).zip(value) {
        *to = *from;
    }
}

/// Fills `path` in place with a fresh region, making it if need be. Never by renaming: a bind in a
/// container follows the file, not its name. All its space is taken at once, so that nothing else in
/// a small filesystem can starve it.
///
/// # Errors
///
/// When the file cannot be written.
pub fn write(path: &Path, slice: GpuSlice) -> io::Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    nix::fcntl::posix_fallocate(&file, 0, SIZE.cast_signed())?;
    for (offset, bytes) in seed(slice) {
        file.write_all_at(&bytes, offset)?;
    }
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    file.set_permissions(everybody)
}

/// Reads the region at `path`.
///
/// # Errors
///
/// [`RegionError`] when the file is missing or its layout is not known.
pub fn read(path: &Path) -> Result<Region, RegionError> {
    let file = open_to_read(path).map_err(RegionError::Io)?;
    let size = file.metadata().map_err(RegionError::Io)?.len();
    if size != SIZE && size != SIZE_SHIFTED {
        return Err(RegionError::UnknownSize(size));
    }
    let mut bytes = Vec::new();
    file.take(SIZE_SHIFTED).read_to_end(&mut bytes).map_err(RegionError::Io)?;
    parse(&bytes)
}

fn open_to_read(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

/// Reads the bytes of a region. A process whose numbers are being written is left out.
///
/// # Errors
///
/// [`RegionError`] when the layout is not known.
pub fn parse(bytes: &[u8]) -> Result<Region, RegionError> {
    let (shift, slot_shift) = match bytes.len() as u64 {
        SIZE => (0, 0),
        SIZE_SHIFTED => (32, 8),
        other => return Err(RegionError::UnknownSize(other)),
    };
    let (magic, major, minor) = (word(bytes, 0), word(bytes, 4), word(bytes, 8));
    let known = magic == MAGIC && major == MAJOR && (minor == 1 || minor == MINOR);
    if !known || (shift == 32 && minor != 1) {
        return Err(RegionError::UnknownVersion { magic, major, minor });
    }
    let table = |from: usize| (0..DEVICES).map(|i| long(bytes, from + shift + i * 8)).collect();
    let count = (word(bytes, PROC_NUM + shift) as usize).min(MOST_PROCS);
    let processes = (0..count)
        .filter_map(|slot| process(bytes, PROCS + shift + slot * PROC_STRIDE, slot_shift, minor))
        .collect();
    Ok(Region {
        version: (major, minor),
        limits: table(LIMIT),
        core_limits: table(SM_LIMIT),
        processes,
    })
}

fn process(bytes: &[u8], slot: usize, shift: usize, minor: u32) -> Option<Process> {
    let pid = word(bytes, slot).cast_signed();
    let status = word(bytes, slot + 1928 + shift);
    let is_being_written = minor == MINOR && long(bytes, slot + 1936) % 2 == 1;
    if pid == 0 || status == 0 || is_being_written {
        return None;
    }
    let used = (0..DEVICES)
        .map(|device| long(bytes, slot + 8 + shift + device * 64 + 32))
        // Above 2^63 a counter went below zero (HAMi #1181).
        .filter(|total| *total < 1 << 63)
        .fold(0_u64, u64::saturating_add);
    Some(Process { pid, host_pid: word(bytes, slot + 4).cast_signed(), used_bytes: used })
}

fn word(bytes: &[u8], offset: usize) -> u32 {
    let found = bytes.get(offset..).and_then(<[u8]>::first_chunk::<4>);
    found.map_or(0, |found| u32::from_le_bytes(*found))
}

fn long(bytes: &[u8], offset: usize) -> u64 {
    let found = bytes.get(offset..).and_then(<[u8]>::first_chunk::<8>);
    found.map_or(0, |found| u64::from_le_bytes(*found))
}

#[cfg(test)]
#[path = "region_tests.rs"]
mod tests;
