//! The first process of a container: it starts the image's program, or holds the container open.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::{BAD_USAGE, USAGE, complain};

/// Exit code when the program cannot be started, as shells have it.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// Waits until it is told to end, reaping whatever is left to it.
pub(crate) fn hold() -> u8 {
    let Some(signals) = block_all() else {
        return 1;
    };
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => while let Reaped::Another = reap(None) {},
            Ok(Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT) => return 0,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                complain(&format!("waiting for signals failed: {error}"));
                return 1;
            }
        }
    }
}

/// Runs a program, passes signals on, and returns its exit code, or 128 and the signal that ended it.
pub(crate) fn init(argv: &[OsString]) -> u8 {
    let Some((program, arguments)) = argv.split_first() else {
        complain(USAGE);
        return BAD_USAGE;
    };
    let Some(signals) = block_all() else {
        return 1;
    };
    let child = match spawn(program, arguments) {
        Ok(child) => child,
        Err(error) => {
            complain(&format!("{}: {error}", program.display()));
            let is_missing = error.kind() == std::io::ErrorKind::NotFound;
            return if is_missing { NOT_FOUND } else { NOT_EXECUTABLE };
        }
    };
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => loop {
                match reap(Some(child)) {
                    Reaped::Program(code) => return code,
                    Reaped::Another => {}
                    Reaped::Nobody => break,
                }
            },
            // A terminal's own signals reach the program without our help.
            Ok(Signal::SIGTTIN | Signal::SIGTTOU) | Err(Errno::EINTR) => {}
            Ok(signal) => {
                // The program may have ended just now; its SIGCHLD follows.
                let _ = kill(child, signal);
            }
            Err(error) => {
                complain(&format!("waiting for signals failed: {error}"));
                return 1;
            }
        }
    }
}

/// Blocks every signal, so that they are taken one by one and none is lost between two waits.
fn block_all() -> Option<SigSet> {
    let mut signals = SigSet::all();
    for fault in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGABRT]
    {
        signals.remove(fault);
    }
    match signals.thread_block() {
        Ok(()) => Some(signals),
        Err(error) => {
            complain(&format!("blocking signals failed: {error}"));
            None
        }
    }
}

#[allow(unsafe_code, reason = "the child must unblock signals between fork and exec")]
fn spawn(program: &OsString, arguments: &[OsString]) -> std::io::Result<Pid> {
    let mut command = Command::new(program);
    command.args(arguments);
    let unblock = || {
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
            .map_err(std::io::Error::from)
    };
    // SAFETY: the closure makes one system call, allocates nothing and takes no lock.
    unsafe { command.pre_exec(unblock) };
    let child = command.spawn()?;
    i32::try_from(child.id()).map(Pid::from_raw).map_err(std::io::Error::other)
}

enum Reaped {
    /// The program ended with this code.
    Program(u8),
    /// An orphan ended.
    Another,
    /// Nobody else has ended.
    Nobody,
}

fn reap(program: Option<Pid>) -> Reaped {
    match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::Exited(pid, code)) if Some(pid) == program => {
            Reaped::Program(u8::try_from(code & 0xff).unwrap_or(u8::MAX))
        }
        Ok(WaitStatus::Signaled(pid, signal, _)) if Some(pid) == program => {
            Reaped::Program(u8::try_from(128 + signal as i32).unwrap_or(u8::MAX))
        }
        Ok(WaitStatus::StillAlive) | Err(_) => Reaped::Nobody,
        Ok(_) => Reaped::Another,
    }
}
