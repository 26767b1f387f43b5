//! OpenSSH's own clients against a jumpbox, and a terminal around them.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::deadline::Deadline;

/// Longest wait for something to be shown.
const PATIENCE: Duration = Duration::from_secs(40);

/// Somebody with a key of their own, and a configuration in which `jump` is the jumpbox.
#[derive(Debug)]
pub struct Person {
    folder: TempDir,
}

impl Person {
    /// Makes a key of this kind, such as `ed25519`, and the configuration.
    #[must_use]
    pub fn new(port: u16, kind: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("tianqi-ssh-").tempdir().expect("folder");
        let person = Self { folder };
        let key = person.path("key");
        let made = Command::new("ssh-keygen")
            .args(["-q", "-N", "", "-C", "test", "-t", kind, "-f"])
            .arg(&key)
            .status();
        assert!(made.is_ok_and(|status| status.success()), "ssh-keygen makes a key");
        let config = format!(
            "Host jump\n  HostName 127.0.0.1\n  Port {port}\n  HostKeyAlias jump\n\
             Host *\n  IdentityFile {key}\n  IdentitiesOnly yes\n  IdentityAgent none\n  \
             UserKnownHostsFile {known}\n  GlobalKnownHostsFile /dev/null\n  \
             StrictHostKeyChecking accept-new\n  BatchMode yes\n  LogLevel ERROR\n  \
             ConnectTimeout 30\n",
            key = key.display(),
            known = person.path("known_hosts").display(),
        );
        fs::write(person.path("config"), config).expect("configuration");
        person
    }

    /// Returns a path in this person's folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns the line of the public key.
    #[must_use]
    pub fn public_key(&self) -> String {
        fs::read_to_string(self.path("key.pub")).expect("public key")
    }

    /// Returns what is known of hosts so far.
    #[must_use]
    pub fn known_hosts(&self) -> String {
        fs::read_to_string(self.path("known_hosts")).unwrap_or_default()
    }

    /// Returns a command of `ssh`, `scp` or `sftp` with this person's configuration.
    #[must_use]
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.arg("-F").arg(self.path("config")).args(args);
        command.env_remove("LANG").env_remove("LC_ALL").stdin(Stdio::null());
        command
    }

    /// Runs a program to its end.
    #[must_use]
    pub fn run(&self, program: &str, args: &[&str]) -> Output {
        self.command(program, args).output().expect("the client runs")
    }

    /// Runs `ssh` with this input to its end.
    #[must_use]
    pub fn ssh_with(&self, args: &[&str], input: &[u8]) -> Output {
        let mut command = self.command("ssh", args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("ssh runs");
        let mut stdin = child.stdin.take().expect("a pipe");
        let input = input.to_vec();
        let writer = std::thread::spawn(move || {
            // A program that reads nothing breaks the pipe, which is fine.
            let _ = stdin.write_all(&input);
        });
        let output = child.wait_with_output().expect("ssh ends");
        writer.join().expect("input is written");
        output
    }

    /// Runs `ssh` to its end with a password in place of the key.
    #[must_use]
    pub fn ssh_by_password(&self, password: &str, args: &[&str]) -> Output {
        let ask = self.path("askpass");
        fs::write(&ask, format!("#!/bin/sh\necho '{password}'\n")).expect("askpass");
        fs::set_permissions(&ask, fs::Permissions::from_mode(0o700)).expect("askpass");
        let mut all = vec!["-o", "BatchMode=no", "-o", "PubkeyAuthentication=no"];
        all.extend(["-o", "NumberOfPasswordPrompts=1"]);
        all.extend(args);
        let mut command = self.command("ssh", &all);
        command.env("SSH_ASKPASS", &ask).env("SSH_ASKPASS_REQUIRE", "force").env("DISPLAY", "x");
        command.output().expect("ssh runs")
    }

    /// Returns `rsync` with this person's configuration.
    #[must_use]
    pub fn rsync(&self, args: &[&str]) -> Command {
        let mut command = Command::new("rsync");
        command.args(["-e", &format!("ssh -F {}", self.path("config").display())]).args(args);
        command.stdin(Stdio::null());
        command
    }

    /// Returns a program of Debian's Python with this person's folder as the current one. `file` is
    /// in `tests/tests/python`.
    #[must_use]
    pub fn python(&self, file: &str, args: &[&str]) -> Command {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("python").join(file);
        // Another Python that comes first in the path does not have Debian's paramiko.
        let mut command = Command::new("/usr/bin/python3");
        command.arg("-B").arg(program).args(args).current_dir(self.folder.path());
        command.stdin(Stdio::null());
        command
    }

    /// Adds lines to the configuration.
    pub fn configure(&self, lines: &str) {
        let known = fs::read_to_string(self.path("config")).expect("configuration");
        // The first value that fits counts, so what is special stands before what is usual.
        fs::write(self.path("config"), format!("{lines}\n{known}")).expect("configuration");
    }

    /// Starts `ssh` beside the test.
    #[must_use]
    pub fn start(&self, args: &[&str]) -> Background {
        let mut command = self.command("ssh", args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Background(command.spawn().expect("ssh runs"))
    }

    /// Opens a terminal of this size and runs `ssh` in it.
    #[must_use]
    pub fn screen(&self, size: (u16, u16), args: &[&str]) -> Screen {
        let socket = self.path(&format!("tmux-{}", uuid::Uuid::now_v7().simple()));
        let config = self.path("config");
        let line = format!("ssh -F {} {}; sleep 1000", config.display(), args.join(" "));
        let screen = Screen { socket };
        let (cols, rows) = (size.0.to_string(), size.1.to_string());
        screen.tmux(&[
            "-f",
            "/dev/null",
            "-u",
            "new-session",
            "-d",
            "-x",
            &cols,
            "-y",
            &rows,
            &line,
        ]);
        screen
    }
}

/// An `ssh` beside the test; it is ended with its owner.
#[derive(Debug)]
pub struct Background(Child);

impl Background {
    /// Returns the process.
    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Waits until it has ended, and returns how long that took.
    pub fn ends_within(&mut self, limit: Duration) -> Duration {
        let began = std::time::Instant::now();
        let deadline = Deadline::after(limit);
        while self.0.try_wait().expect("a child").is_none() {
            deadline.pause("ssh goes on");
        }
        began.elapsed()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A terminal, as a person looks at it.
#[derive(Debug)]
pub struct Screen {
    socket: PathBuf,
}

impl Screen {
    /// Types keys, as `tmux send-keys` names them.
    pub fn keys(&self, keys: &[&str]) {
        let mut args = vec!["send-keys", "--"];
        args.extend(keys);
        self.tmux(&args);
    }

    /// Types a line.
    pub fn line(&self, text: &str) {
        self.tmux(&["send-keys", "-l", "--", text]);
        self.tmux(&["send-keys", "Enter"]);
    }

    /// Changes the window's size.
    pub fn resize(&self, cols: u16, rows: u16) {
        self.tmux(&["resize-window", "-x", &cols.to_string(), "-y", &rows.to_string()]);
    }

    /// Returns what is shown.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.tmux(&["capture-pane", "-p", "-S", "-200"])).into_owned()
    }

    /// Returns the rows of the window, without what has left it.
    #[must_use]
    pub fn rows(&self) -> Vec<String> {
        let shown = self.tmux(&["capture-pane", "-p"]);
        String::from_utf8_lossy(&shown).lines().map(str::to_owned).collect()
    }

    /// Waits until this is shown, and returns everything that is.
    pub fn until(&self, wanted: &str) -> String {
        self.until_times(wanted, 1)
    }

    /// Waits until this is shown so many times, and returns everything that is.
    pub fn until_times(&self, wanted: &str, times: usize) -> String {
        let deadline = Deadline::after(PATIENCE);
        loop {
            let text = self.text();
            if text.matches(wanted).count() >= times {
                return text;
            }
            deadline.pause(&format!("{wanted:?} is not shown:\n{text}"));
        }
    }

    fn tmux(&self, args: &[&str]) -> Vec<u8> {
        let output = tmux(&self.socket, args).output().expect("tmux is installed");
        assert!(output.status.success(), "{args:?}: {output:?}");
        output.stdout
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = tmux(&self.socket, &["kill-server"]).output();
    }
}

fn tmux(socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("tmux");
    command.arg("-S").arg(socket).args(args).env("TERM", "xterm-256color").env_remove("TMUX");
    command.env("LANG", "C.UTF-8");
    command
}
