//! Debian's nginx in front of a controller, as `deploy/nginx.example.conf` says.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::deadline::Deadline;
use crate::process::Process;
use crate::raw_http::Pair;

/// Longest wait for it to listen.
const PATIENCE: Duration = Duration::from_secs(60);
const EXAMPLE: &str = "../deploy/nginx.example.conf";

/// A running nginx that speaks TLS on a port of its own.
#[derive(Debug)]
pub struct Nginx {
    address: String,
    pair: Pair,
    _process: Process,
    _folder: TempDir,
}

impl Nginx {
    /// Starts it before the controller at `controller` (`127.0.0.1:8890`) and waits until it listens.
    #[must_use]
    pub fn before(controller: &str) -> Self {
        let program = Path::new("/usr/sbin/nginx");
        assert!(program.exists(), "nginx is not installed: `make test` installs it");
        let folder = tempfile::Builder::new().prefix("tianqi-nginx-").tempdir().expect("folder");
        let pair = Pair::make();
        fs::write(folder.path().join("cert.pem"), &pair.certificate).expect("certificate");
        fs::write(folder.path().join("key.pem"), &pair.key).expect("key");
        let address = format!("127.0.0.1:{}", free_port());
        let config = config(folder.path(), &address, controller);
        fs::write(folder.path().join("nginx.conf"), config).expect("configuration");
        let mut command = Command::new(program);
        command.arg("-p").arg(folder.path()).arg("-c").arg(folder.path().join("nginx.conf"));
        let mut process = Process::start(command, &folder.path().join("nginx.log"));
        let deadline = Deadline::after(PATIENCE);
        while TcpStream::connect(&address).is_err() {
            assert!(!process.has_ended(), "nginx ended:\n{}", process.log());
            deadline.pause("nginx does not listen");
        }
        Self { address, pair, _process: process, _folder: folder }
    }

    /// Returns where it listens.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns its certificate, as PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.pair.certificate
    }
}

/// Returns the example with addresses and files of its own, in one process that ends with its owner.
fn config(folder: &Path, address: &str, controller: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(EXAMPLE);
    let mut example = fs::read_to_string(path).expect("the example");
    let folder = folder.display();
    for (from, to) in [
        ("server 127.0.0.1:8890;", format!("server {controller};")),
        ("listen 443 ssl http2;", format!("listen {address} ssl http2;")),
        ("server_name gpu.example.org;", "server_name localhost;".to_owned()),
        ("/etc/tianqi/tls/", format!("{folder}/")),
    ] {
        assert!(example.contains(from), "the example has no {from:?}");
        example = example.replace(from, &to);
    }
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("    {kind}_temp_path {folder}/{kind};\n"))
        .collect();
    format!(
        "daemon off;\nmaster_process off;\npid {folder}/nginx.pid;\nerror_log stderr;\n\
         events {{}}\nhttp {{\n    access_log off;\n{temporary}{example}}}\n"
    )
}

/// Returns a port that was free a moment ago; the configuration wants a number.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("free port");
    listener.local_addr().expect("free port").port()
}
