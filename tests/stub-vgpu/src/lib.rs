//! A stand-in for HAMi-core's `libvgpu.so`. It limits nothing. A process with the word
//! `tianqi-report` among its arguments prints, before its own `main`, one line on what reached it:
//! the limits in its environment, and those in the region file.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

/// The argument that asks for the line.
const ASK: &[u8] = b"tianqi-report";
/// Where HAMi-core keeps its region.
const REGION: &str = "/tmp/cudevshr.cache";
const NAMES: [&str; 4] =
    ["LD_PRELOAD", "CUDA_REDIRECT", "CUDA_DEVICE_MEMORY_LIMIT_0", "CUDA_DEVICE_SM_LIMIT"];

/// What the dynamic loader calls when it has loaded this library.
#[allow(unsafe_code, reason = "a constructor is an entry in a section with this name")]
#[used]
#[unsafe(link_section = ".init_array")]
static LOADED: extern "C" fn() = loaded;

extern "C" fn loaded() {
    let arguments = std::fs::read("/proc/self/cmdline").unwrap_or_default();
    if arguments.split(|byte| *byte == 0).any(|argument| argument == ASK) {
        print(&report());
    }
}

fn report() -> String {
    let mut line = "preloaded".to_owned();
    for name in NAMES {
        let value = environment(name).unwrap_or_else(|| "-".to_owned());
        line = format!("{line} {name}={value}");
    }
    match File::open(REGION) {
        Ok(region) => format!(
            "{line} magic={} version={}.{} limit={} cores={}\n",
            number(&region, 0, 4),
            number(&region, 4, 4),
            number(&region, 8, 4),
            number(&region, 1600, 8),
            number(&region, 1728, 8),
        ),
        Err(error) => format!("{line} region={error}\n"),
    }
}

#[allow(clippy::disallowed_methods, reason = "this library reports the environment it finds")]
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Reads a little-endian number of `width` bytes, at most eight.
fn number(file: &File, offset: u64, width: usize) -> u64 {
    let mut bytes = [0; 8];
    let read = bytes.get_mut(..width).map(|place| file.read_exact_at(place, offset));
    if matches!(read, Some(Ok(()))) { u64::from_le_bytes(bytes) } else { 0 }
}

/// Writes to standard output directly: the process may replace Rust's idea of it.
#[allow(unsafe_code, reason = "descriptor 1 belongs to the process, so it is copied, not closed")]
fn print(line: &str) {
    // SAFETY: dup answers a new descriptor or -1, and the new one is owned by `out` alone.
    let out = unsafe {
        let copy = libc::dup(std::io::stdout().as_raw_fd());
        (copy >= 0).then(|| File::from_raw_fd(copy))
    };
    if let Some(mut out) = out {
        let _ = std::io::Write::write_all(&mut out, line.as_bytes());
    }
}
