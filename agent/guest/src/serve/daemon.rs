//! Becoming a process that belongs to nobody's program: the engine's exec ends, the guest goes on.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::sync::OnceLock;

use nix::fcntl::{OFlag, open};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, dup2_stderr, dup2_stdin, dup2_stdout, fork, setsid};

/// How many files the container lets a process open, before the guest took more for itself.
static FILES: OnceLock<(u64, u64)> = OnceLock::new();

/// Which process one is after [`detach`].
pub(super) enum Side {
    /// The one that was started.
    Caller,
    /// The one that goes on.
    Daemon,
}

/// Takes the name that one guest of a container holds; nothing when another one does.
///
/// The name is the kernel's own (abstract), so that it goes with its holder. It carries the folder's
/// inode, because containers may share a network.
///
/// # Errors
///
/// The folder is not there, or the kernel refuses.
pub(super) fn lock(folder: &Path) -> io::Result<Option<UnixListener>> {
    let found = std::fs::metadata(folder)?;
    let name = format!("tianqi-guest-{}-{}", found.dev(), found.ino());
    match UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns how many files a process of this container may open, as the engine set it.
pub(super) fn files_at_start() -> Option<(u64, u64)> {
    FILES.get().copied()
}

/// Forks. The daemon has its own session, nothing open but what it needs, and room for many streams.
///
/// # Errors
///
/// The kernel refuses.
#[allow(unsafe_code, reason = "fork is unsafe in a process with threads; this one has none yet")]
pub(super) fn detach() -> io::Result<Side> {
    // SAFETY: no thread was started before, so that the child may do whatever the parent may.
    match unsafe { fork() }? {
        ForkResult::Parent { .. } => return Ok(Side::Caller),
        ForkResult::Child => {}
    }
    setsid()?;
    let nothing = open("/dev/null", OFlag::O_RDWR, Mode::empty())?;
    dup2_stdin(&nothing)?;
    dup2_stdout(&nothing)?;
    dup2_stderr(&nothing)?;
    let (soft, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let _ = FILES.set((soft, most));
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    Ok(Side::Daemon)
}
