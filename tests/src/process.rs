//! A program under test as a child process, which a test may kill.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::deadline::Deadline;

/// A child process that logs to a file and is ended with its owner.
#[derive(Debug)]
pub struct Process {
    child: Option<Child>,
    log: PathBuf,
}

impl Process {
    /// Starts a command; what it writes is appended to `log`.
    ///
    /// # Panics
    ///
    /// When it does not start.
    #[must_use]
    pub fn start(mut command: Command, log: &Path) -> Self {
        let file: File =
            OpenOptions::new().create(true).append(true).open(log).expect("log of a process");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("log of a process"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        Self { child: Some(child), log: log.to_owned() }
    }

    /// Returns the process id.
    ///
    /// # Panics
    ///
    /// After its end.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the process runs").id()
    }

    /// Returns everything it has written.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child
            .as_mut()
            .is_none_or(|child| child.try_wait().is_ok_and(|status| status.is_some()))
    }

    /// Sends it a signal, such as `-STOP`, as the program `kill` takes it.
    ///
    /// # Panics
    ///
    /// When it does not run.
    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").arg(signal).arg(self.pid().to_string()).status();
        assert!(status.is_ok_and(|status| status.success()), "{signal} was not sent");
    }

    /// Ends it with `SIGKILL`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks it to end with `SIGTERM` and waits until it has.
    ///
    /// # Panics
    ///
    /// When it takes longer than 30 seconds.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let _ = Command::new("kill").arg("-TERM").arg(child.id().to_string()).status();
        let deadline = Deadline::after(Duration::from_secs(30));
        while child.try_wait().is_ok_and(|status| status.is_none()) {
            deadline.pause(&format!("the process does not end; {}", self.log.display()));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
