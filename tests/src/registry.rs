//! A private image registry on loopback: Debian's `docker-registry`, with one account.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::deadline::Deadline;
use crate::dockerd::Dockerd;
use crate::process::Process;

/// The account's name.
pub const USERNAME: &str = "puller";
/// The account's password.
pub const PASSWORD: &str = "rosebud-of-the-registry";
/// The two as the registry keeps them: bcrypt.
const HTPASSWD: &str = "puller:$2b$05$d7cJ9ED2aGapMDLYrNqFg.qGe0cabI6FJ9j6rQcMu6AWASxTykvKS\n";
/// Longest wait for the registry to listen.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running registry. Docker speaks to it without TLS, because it is on loopback.
#[derive(Debug)]
pub struct Registry {
    address: String,
    _process: Process,
    _folder: TempDir,
}

impl Registry {
    /// Starts an empty registry on a free port and waits until it listens.
    #[must_use]
    pub fn start() -> Self {
        let program = Path::new("/usr/bin/docker-registry");
        assert!(program.exists(), "docker-registry is not installed: `make test` installs it");
        let folder = tempfile::Builder::new().prefix("tianqi-registry-").tempdir();
        let folder = folder.expect("folder of the registry");
        let address = format!("127.0.0.1:{}", free_port());
        let root = folder.path().display();
        let config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {root}/storage\n\
             http:\n  addr: {address}\n\
             auth:\n  htpasswd:\n    realm: tests\n    path: {root}/htpasswd\n"
        );
        fs::write(folder.path().join("config.yml"), config).expect("config of the registry");
        fs::write(folder.path().join("htpasswd"), HTPASSWD).expect("account of the registry");
        let mut command = Command::new(program);
        command.arg("serve").arg(folder.path().join("config.yml"));
        let mut process = Process::start(command, &folder.path().join("registry.log"));
        let deadline = Deadline::after(PATIENCE);
        while TcpStream::connect(&address).is_err() {
            assert!(!process.has_ended(), "the registry ended:\n{}", process.log());
            deadline.pause("the registry does not listen");
        }
        Self { address, _process: process, _folder: folder }
    }

    /// Returns where it listens, `127.0.0.1:port`, as image references begin.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Puts an image of `engine` into the registry as `name`, takes it off the engine under both
    /// names, and returns its reference.
    pub fn take(&self, engine: &Dockerd, image: &str, name: &str) -> String {
        let reference = format!("{}/{name}", self.address);
        engine.docker(&["tag", image, &reference]);
        engine.docker(&["login", "-u", USERNAME, "-p", PASSWORD, &self.address]);
        engine.docker(&["push", &reference]);
        engine.docker(&["logout", &self.address]);
        engine.docker(&["image", "rm", &reference, image]);
        reference
    }
}

/// Returns a port that was free a moment ago; the registry's configuration wants a number.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("free port");
    listener.local_addr().expect("free port").port()
}
