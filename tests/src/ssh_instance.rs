//! Somebody with an instance that they reach by SSH: a real engine, a real agent, a real guest.

use std::process::Output;

use serde_json::json;

use crate::client::{Client, PATIENCE, text};
use crate::cluster::{Agent, AgentOptions, Cluster};
use crate::deadline::Deadline;
use crate::dockerd::Dockerd;
use crate::ssh::Person;

/// Everybody's password but the admin's.
pub const PASSWORD: &str = "correct horse battery";

/// Answers what it is sent, on a free port of 127.0.0.1 that it writes to `/tmp/echo-port`.
const ECHO: &str = r#"
use IO::Socket::INET; $SIG{CHLD} = 'IGNORE'; $| = 1;
my $port = IO::Socket::INET->new(Listen => 64, LocalAddr => '127.0.0.1', LocalPort => 0) or die;
print $port->sockport, "\n";
while (1) {
    my $one = $port->accept or next;
    if (fork) { close $one; next }
    while (sysread($one, my $bytes, 65536)) { syswrite($one, $bytes) }
    exit;
}
"#;

/// Alice with a key and a running instance `one`; the fields are dropped in this order.
pub struct SshInstance {
    /// The admin.
    pub admin: Client,
    /// Its owner.
    pub alice: Client,
    /// Her own programs.
    pub ssh: Person,
    /// The instance's id.
    pub id: String,
    /// The image's id.
    pub image: String,
    /// The id of its spec.
    pub spec: String,
    /// The agent.
    pub agent: Agent,
    /// The controller.
    pub cluster: Cluster,
    /// The engine.
    pub engine: Dockerd,
}

impl SshInstance {
    /// Starts everything, with an instance of this image.
    ///
    /// # Panics
    ///
    /// When something does not start.
    pub async fn start(image: fn(&Dockerd) -> &'static str) -> Self {
        let engine = Dockerd::start();
        let cluster = Cluster::start();
        let admin = cluster.admin().await;
        let agent = cluster.add_agent(&admin, AgentOptions::on(&engine)).await;
        let image = admin.create_image("image", image(&engine)).await;
        let spec = admin.create_cpu_spec("small").await;
        let (alice, ssh) = person(&admin, &cluster, "alice").await;
        let id = alice.create_instance("one", &image, &spec).await;
        admin.wait_phase(&id, "running").await;
        Self { admin, alice, ssh, id, image, spec, agent, cluster, engine }
    }

    /// Runs a command line in the instance and returns what it wrote.
    ///
    /// # Panics
    ///
    /// When it fails.
    pub fn inside(&self, line: &str) -> String {
        let ran = self.ssh.run("ssh", &["alice+one@jump", line]);
        assert!(ran.status.success(), "{line}: {ran:?}\n{}", self.agent.log());
        out(&ran).trim_end().to_owned()
    }

    /// Starts a server in the instance that answers what it is sent, and returns its port.
    #[must_use]
    pub fn serve_echo(&self) -> u16 {
        let serve = "cat >/tmp/echo.pl; setsid perl /tmp/echo.pl >/tmp/echo-port </dev/null 2>&1 &";
        let served = self.ssh.ssh_with(&["alice+one@jump", serve], ECHO.as_bytes());
        assert!(served.status.success(), "{served:?}");
        let deadline = Deadline::after(PATIENCE);
        loop {
            let port = self.inside("cat /tmp/echo-port");
            if let Ok(port) = port.parse() {
                return port;
            }
            deadline.pause(&format!("the instance serves: {port:?}"));
        }
    }

    /// Returns the resident memory of the controller, in MiB.
    ///
    /// # Panics
    ///
    /// When it does not run.
    pub fn controller_memory_mib(&mut self) -> u64 {
        let controller = self.cluster.controller();
        assert!(!controller.has_ended(), "the controller ended:\n{}", controller.log());
        let status = std::fs::read_to_string(format!("/proc/{}/status", controller.pid()));
        let status = status.expect("a running process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("memory");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("KiB") / 1024
    }
}

/// Makes an account with a key of its own.
pub async fn person(admin: &Client, cluster: &Cluster, name: &str) -> (Client, Person) {
    let body = json!({ "name": name, "password": PASSWORD, "must_change_password": false });
    admin.post("/users", &body).await;
    let client = Client::anonymous(cluster.http()).login(name, PASSWORD).await;
    let ssh = Person::new(cluster.ssh(), "ed25519");
    let key = json!({ "name": "laptop", "public_key": ssh.public_key() });
    assert!(!text(&client.post("/me/ssh-keys", &key).await, "id").is_empty());
    (client, ssh)
}

/// Returns what a program wrote.
#[must_use]
pub fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Returns what a program complained of.
#[must_use]
pub fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
