//! The guest, run as a real process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PATIENCE: Duration = Duration::from_secs(20);

fn guest(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tianqi-guest"));
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null());
    command
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

/// Waits for the end, and kills a guest that does not come to one.
fn end(mut child: Child) -> ExitStatus {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let (ended, waiting) = mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        if waiting.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    });
    let status = child.wait().unwrap();
    drop(ended);
    watch.join().unwrap();
    status
}

/// Reads the first line, which says that everything before it has happened.
fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    line.trim().to_owned()
}

fn code_of(script: &str) -> Option<i32> {
    end(guest(&["init", "--", "sh", "-c", script]).spawn().unwrap()).code()
}

#[test]
fn init_ends_with_the_code_of_its_program() {
    assert_eq!(code_of("exit 0"), Some(0));
    assert_eq!(code_of("exit 42"), Some(42));
    assert_eq!(code_of("kill -KILL $$"), Some(128 + 9));
    assert_eq!(code_of("kill -TERM $$"), Some(128 + 15));
}

#[test]
fn init_passes_signals_on_and_the_program_decides() {
    let mut child = guest(&[
        "init",
        "--",
        "sh",
        "-c",
        "trap 'exit 7' USR1; echo ready; while :; do sleep 0.05; done",
    ])
    .spawn()
    .unwrap();
    assert_eq!(first_line(&mut child), "ready");

    signal(&child, Signal::SIGUSR1);

    assert_eq!(end(child).code(), Some(7));
}

#[test]
fn init_ends_when_its_program_does_not_mind_the_signal() {
    let mut child =
        guest(&["init", "--", "sh", "-c", "echo ready; exec sleep 600"]).spawn().unwrap();
    assert_eq!(first_line(&mut child), "ready");

    signal(&child, Signal::SIGTERM);

    assert_eq!(end(child).code(), Some(128 + 15));
}

#[test]
fn init_gives_its_program_no_blocked_signals() {
    let mut child = guest(&["init", "--", "grep", "SigBlk", "/proc/self/status"]).spawn().unwrap();

    assert_eq!(first_line(&mut child), "SigBlk:\t0000000000000000");
    end(child);
}

#[test]
fn init_says_what_cannot_be_started() {
    let output = guest(&["init", "--", "/no/such/program"]).output().unwrap();
    assert_eq!(output.status.code(), Some(127));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/no/such/program"));

    assert_eq!(guest(&["init", "--", "/etc"]).output().unwrap().status.code(), Some(126));
    assert_eq!(guest(&["init", "--"]).output().unwrap().status.code(), Some(2));
    assert_eq!(guest(&["dance"]).output().unwrap().status.code(), Some(2));
}

/// As process 1 of its own process namespace, where orphans come to it.
fn first_process(arguments: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args([
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        env!("CARGO_BIN_EXE_tianqi-guest"),
    ]);
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null());
    command
}

#[test]
fn init_reaps_orphans_as_process_1() {
    let script = "(sh -c 'sleep 0.1 & exec true') ; \
                  while grep -q sleep /proc/[0-9]*/comm 2>/dev/null; do sleep 0.02; done; \
                  grep -l 'State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l; echo $PPID";
    let output = first_process(&["init", "--", "sh", "-c", script]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if text.is_empty() && String::from_utf8_lossy(&output.stderr).contains("unshare") {
        // Only root may make process namespaces; the container tests cover the rest.
        return;
    }
    assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["0", "1"]);
}

#[test]
fn hold_stays_until_it_is_told_to_end_and_then_ends_well() {
    for told in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        let mut child = guest(&["hold"]).spawn().unwrap();
        let status = format!("/proc/{}/status", child.id());
        let asleep = |status: &str| status.lines().any(|line| line.starts_with("State:\tS"));
        let mut waited = Duration::ZERO;
        // Asleep means that it waits for signals; before that, their default action would end it.
        while !asleep(&std::fs::read_to_string(&status).unwrap()) {
            assert!(waited < PATIENCE, "hold never waits");
            std::thread::sleep(Duration::from_millis(10));
            waited += Duration::from_millis(10);
        }
        signal(&child, Signal::SIGUSR1);
        assert_eq!(child.try_wait().unwrap(), None);

        signal(&child, told);

        let status = end(child);
        assert_eq!((status.code(), status.signal()), (Some(0), None));
    }
}

#[test]
fn version_names_the_program() {
    let mut text = String::new();
    let mut child = guest(&["version"]).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text.trim(), format!("tianqi-guest {}", env!("CARGO_PKG_VERSION")));
    end(child);
}
