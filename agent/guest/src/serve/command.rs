//! What is run for an [`Exec`]: the program, its environment, and how a missing one is told.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command as Program;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::setsid;
use tianqi_common::shell;
use tianqi_common::wire::stream::{Command, Exec};

use super::daemon;

/// Where this program stands in every container.
const SELF: &str = "/.tianqi/guest";

/// Returns what to run, without its input and output.
///
/// # Errors
///
/// One sentence when the image has nothing that could run it.
pub(super) fn program(wanted: &Exec) -> Result<Program, String> {
    let found: Vec<&str> = shell::SHELLS
        .iter()
        .filter_map(|places| places.iter().find(|path| is_program(path)).copied())
        .collect();
    let command = match &wanted.command {
        Command::Line(line) => Command::Line(with_scp(line, is_in_path("scp"))),
        command @ (Command::Shell(_) | Command::Argv(_)) => command.clone(),
    };
    let argv = shell::argv(&command, &found).ok_or_else(|| shell::NO_SHELL.to_owned())?;
    let (name, arguments) = argv.split_first().ok_or("the program's name is empty")?;
    let mut program = Program::new(name);
    program.args(arguments).envs(wanted.env.iter().map(|(name, value)| (name, value)));
    Ok(program)
}

/// What is in front of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Front {
    /// A terminal on its standard input, which it takes for its own.
    Terminal,
    /// Pipes.
    Pipes,
}

/// Lets a program begin as its own session, with what the container gives every process.
#[allow(unsafe_code, reason = "it is set apart between fork and exec")]
pub(super) fn set_apart(program: &mut Program, front: Front) {
    let files = daemon::files_at_start();
    let apart = move || {
        setsid()?;
        if front == Front::Terminal {
            rustix::process::ioctl_tiocsctty(std::io::stdin())?;
        }
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
        if let Some((soft, hard)) = files {
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls alone, allocates nothing and takes no lock.
    unsafe { program.pre_exec(apart) };
}

/// An old `scp` asks for its far side by name; where the image has none, this program is it.
fn with_scp(line: &str, has_scp: bool) -> String {
    match line.strip_prefix("scp ") {
        Some(arguments) if !has_scp => format!("{SELF} scp {arguments}"),
        Some(_) | None => line.to_owned(),
    }
}

#[allow(clippy::disallowed_methods, reason = "the container's own PATH is what is asked about")]
fn is_in_path(name: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').any(|folder| is_program(&format!("{folder}/{name}")))
}

fn is_program(path: &str) -> bool {
    Path::new(path)
        .metadata()
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_scp_finds_its_far_side_in_an_image_without_one() {
        assert_eq!(with_scp("scp -t /data", false), "/.tianqi/guest scp -t /data");
        assert_eq!(with_scp("scp -t /data", true), "scp -t /data");
        assert_eq!(with_scp("scpx -t /data", false), "scpx -t /data");
        assert_eq!(with_scp("ls", false), "ls");
    }
}
