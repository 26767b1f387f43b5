//! `tianqi-guest`: the first process of an instance.
//!
//! Bound read-only into every container at `/.tianqi/guest`. `hold` keeps a container open whose
//! image has nothing to run; `init -- PROGRAM …` runs the image's program, passes signals on to it,
//! reaps orphans and ends as it ends. Static, without threads, so that it runs in any image.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

const USAGE: &str = "usage: tianqi-guest hold | init -- PROGRAM [ARGUMENT…] | version";

/// Exit code when the program cannot be started, as shells have it.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;
const BAD_USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut rest = arguments.into_iter();
    let code = match rest.next().as_ref().and_then(|verb| verb.to_str()) {
        Some("hold") => hold(),
        Some("init") => {
            let argv: Vec<OsString> = match rest.next() {
                Some(dashes) if dashes == "--" => rest.collect(),
                first => first.into_iter().chain(rest).collect(),
            };
            init(&argv)
        }
        Some("version") => {
            say(&format!("tianqi-guest {}", env!("CARGO_PKG_VERSION")));
            0
        }
        _ => {
            complain(USAGE);
            BAD_USAGE
        }
    };
    ExitCode::from(code)
}

/// Waits until it is told to end, reaping whatever is left to it.
fn hold() -> u8 {
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
fn init(argv: &[OsString]) -> u8 {
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

fn say(line: &str) {
    // Nobody may be reading; there is nothing better to do about it.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "tianqi-guest: {line}");
}
