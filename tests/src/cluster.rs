//! A controller and agents as a person would run them: the built programs, each with its own data
//! folder, joined by a real token, over real QUIC on loopback.

use std::net::{TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::binaries::binary;
use crate::client::{Client, text};
use crate::deadline::Deadline;
use crate::dockerd::Dockerd;
use crate::process::Process;

/// The admin's password in every test controller.
pub const ADMIN_PASSWORD: &str = "correct-horse-battery-staple";
/// Settings under which one account at one address may ask as often as a test does.
pub const UNLIMITED: [(&str, &str); 2] =
    [("TIANQI_LIMITS__ADDRESS_PER_SECOND", "0"), ("TIANQI_LIMITS__ACCOUNT_PER_SECOND", "0")];
/// Longest wait for a program to be ready.
const PATIENCE: Duration = Duration::from_secs(60);

/// A controller of one's own; its agents are started beside it.
#[derive(Debug)]
pub struct Cluster {
    folder: TempDir,
    http: String,
    agents: String,
    ssh: u16,
    controller: Option<Process>,
    settings: Vec<(String, String)>,
}

impl Cluster {
    /// Starts a controller on SQLite and waits until it answers.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a controller with these environment variables besides, such as
    /// `TIANQI_DATABASE__URL`.
    #[must_use]
    pub fn start_with(settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::Builder::new().prefix("tianqi-").tempdir().expect("data folder");
        let mut cluster = Self {
            folder,
            http: format!("127.0.0.1:{}", free_tcp_port()),
            agents: format!("127.0.0.1:{}", free_udp_port()),
            ssh: free_tcp_port(),
            controller: None,
            settings: settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        };
        cluster.start_controller();
        cluster
    }

    /// Starts the controller where it was stopped or killed, and waits until it answers.
    pub fn start_controller(&mut self) {
        let mut command = self.command();
        command.arg("serve");
        let mut process = Process::start(command, &self.folder.path().join("controller.log"));
        let deadline = Deadline::after(PATIENCE);
        while std::net::TcpStream::connect(&self.http).is_err() {
            assert!(!process.has_ended(), "the controller ended:\n{}", process.log());
            deadline.pause("the controller does not listen");
        }
        self.controller = Some(process);
    }

    /// Returns the running controller, to stop, kill or read it.
    pub fn controller(&mut self) -> &mut Process {
        self.controller.as_mut().expect("the controller was started")
    }

    /// Kills the controller and starts it again.
    pub fn kill_and_restart_controller(&mut self) {
        self.controller().kill();
        self.start_controller();
    }

    /// Returns where the console and API listen.
    #[must_use]
    pub fn http(&self) -> &str {
        &self.http
    }

    /// Returns where agents connect.
    #[must_use]
    pub fn agents(&self) -> &str {
        &self.agents
    }

    /// Returns the port of 127.0.0.1 where people come in by SSH.
    #[must_use]
    pub fn ssh(&self) -> u16 {
        self.ssh
    }

    /// Returns the controller's data folder.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("controller")
    }

    /// Logs in as the admin of the first start.
    pub async fn admin(&self) -> Client {
        Client::anonymous(&self.http).login("admin", ADMIN_PASSWORD).await
    }

    /// Runs the controller's program with these arguments beside the running one, as a person on
    /// its machine would.
    #[must_use]
    pub fn run(&self, args: &[&str]) -> Output {
        self.command_of(args).output().expect("the controller's program runs")
    }

    /// Returns the same as a command, to start and watch.
    #[must_use]
    pub fn command_of(&self, args: &[&str]) -> Command {
        let mut command = self.command();
        command.args(args).stdin(Stdio::null());
        command
    }

    /// Returns what the controller has written since its first start, running or not.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("controller.log")).unwrap_or_default()
    }

    /// Joins an agent by a fresh token, starts it, and waits until its Docker engine answers.
    pub async fn add_agent(&self, admin: &Client, options: AgentOptions) -> Agent {
        self.add_agent_through(&self.agents, admin, options).await
    }

    /// The same for an agent that reaches the controller through `address`, such as a relay's.
    pub async fn add_agent_through(
        &self,
        address: &str,
        admin: &Client,
        options: AgentOptions,
    ) -> Agent {
        let token = admin.post("/join-tokens", &json!({ "ttl_seconds": 600, "max_uses": 1 })).await;
        let agent = Self::join_through(address, &text(&token, "token"), options);
        let mut agent = agent.unwrap_or_else(|output| {
            panic!("join failed: {}", String::from_utf8_lossy(&output.stderr))
        });
        agent.start();
        agent.wait_until_ready(admin).await;
        agent
    }

    /// Joins an agent by `token` without starting it; the output of `join` when it is refused.
    ///
    /// # Errors
    ///
    /// When the agent was not let in.
    pub fn join(&self, token: &str, options: AgentOptions) -> Result<Agent, Output> {
        Self::join_through(&self.agents, token, options)
    }

    fn join_through(address: &str, token: &str, options: AgentOptions) -> Result<Agent, Output> {
        let folder = tempfile::Builder::new().prefix("tianqi-agent-").tempdir();
        let mut agent = Agent {
            folder: folder.expect("data folder"),
            options,
            process: None,
            node_id: String::new(),
        };
        let mut command = agent.command();
        command.args(["join", "--controller", address, "--token", token]);
        let output = command.stdin(Stdio::null()).output().expect("the agent's program runs");
        if !output.status.success() {
            return Err(output);
        }
        agent.node_id = node_id_in(&output);
        Ok(agent)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(binary("tianqi-controller"));
        command
            .env("TIANQI_DATA_DIR", self.data_dir())
            .env("TIANQI_HTTP__LISTEN", &self.http)
            .env("TIANQI_AGENTS__LISTEN", &self.agents)
            .env("TIANQI_JUMPBOX__LISTEN", format!("127.0.0.1:{}", self.ssh))
            .env("TIANQI_ADMIN_PASSWORD", ADMIN_PASSWORD)
            .envs(UNLIMITED)
            .envs(self.settings.iter().map(|(key, value)| (key, value)));
        command
    }
}

/// How an agent is started.
#[derive(Clone, Debug, Default)]
pub struct AgentOptions {
    /// The Docker endpoint; the agent's default when empty.
    pub docker: String,
    /// Simulated cards, such as `2xNVIDIA-L40:46068`; real ones when empty.
    pub simulate: String,
    /// Environment variables besides.
    pub settings: Vec<(String, String)>,
}

impl AgentOptions {
    /// Options of an agent on this engine, with a bridge and a subnet that no other test has.
    #[must_use]
    pub fn on(engine: &Dockerd) -> Self {
        let (bridge, subnet) = engine.instance_network();
        let settings = [("TIANQI_NETWORK__BRIDGE", bridge), ("TIANQI_NETWORK__SUBNET", subnet)];
        Self {
            docker: engine.endpoint(),
            simulate: String::new(),
            settings: settings.map(|(key, value)| (key.to_owned(), value)).to_vec(),
        }
    }

    /// The same with simulated cards, such as `2xNVIDIA-L40:46068`.
    #[must_use]
    pub fn simulating(self, cards: &str) -> Self {
        Self { simulate: cards.to_owned(), ..self }
    }
}

/// An agent as a child process.
#[derive(Debug)]
pub struct Agent {
    folder: TempDir,
    options: AgentOptions,
    process: Option<Process>,
    node_id: String,
}

impl Agent {
    /// Starts the agent.
    pub fn start(&mut self) {
        let mut command = self.command();
        command.arg("run");
        if !self.options.simulate.is_empty() {
            command.args(["--simulate-gpus", &self.options.simulate]);
        }
        self.process = Some(Process::start(command, &self.folder.path().join("agent.log")));
    }

    /// Returns the running agent, to stop, kill or read it.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the agent was started")
    }

    /// Kills the agent and starts it again.
    pub fn kill_and_restart(&mut self) {
        self.process().kill();
        self.start();
    }

    /// Returns what it has written since its first start, running or not.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("agent.log")).unwrap_or_default()
    }

    /// Makes a second agent with the same identity, as a copied disk would be; not started.
    #[must_use]
    pub fn twin(&self) -> Self {
        let folder =
            tempfile::Builder::new().prefix("tianqi-twin-").tempdir().expect("data folder");
        let status = Command::new("cp").arg("-a").arg(self.data_dir()).arg(folder.path()).status();
        assert!(status.is_ok_and(|status| status.success()), "the identity could not be copied");
        Self { folder, options: self.options.clone(), process: None, node_id: self.node_id.clone() }
    }

    /// Returns the id of its node.
    #[must_use]
    pub fn node_id(&self) -> &str {
        &self.node_id
    }

    /// Returns the agent's data folder.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Waits until the controller has heard from its Docker engine, and returns the node.
    pub async fn wait_until_ready(&mut self, admin: &Client) -> Value {
        let deadline = Deadline::after(PATIENCE);
        loop {
            let node = admin.get(&format!("/nodes/{}", self.node_id)).await;
            // A controller that has just started still knows what the engine was before.
            if node["online"] == true && node["docker_status"] == "connected" {
                return node;
            }
            let ended = self.process().has_ended();
            assert!(!ended, "the agent ended:\n{}", self.process().log());
            deadline.pause_async(&format!("the node is not ready: {node}")).await;
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(binary("tianqi-agent"));
        command
            .env("TIANQI_DATA_DIR", self.data_dir())
            .envs(self.options.settings.iter().map(|(key, value)| (key, value)));
        if !self.options.docker.is_empty() {
            command.env("TIANQI_DOCKER__ENDPOINT", &self.options.docker);
        }
        command
    }
}

/// Finds the node's id in what `join` printed.
fn node_id_in(output: &Output) -> String {
    let printed = String::from_utf8_lossy(&output.stdout);
    let words = printed.split(|c: char| !c.is_ascii_hexdigit() && c != '-');
    let id = words.into_iter().find(|word| word.parse::<uuid::Uuid>().is_ok());
    id.unwrap_or_else(|| panic!("join printed no node id: {printed}")).to_owned()
}

/// Returns a port that was free a moment ago. The programs keep it over restarts, so it cannot be
/// left to them to choose.
fn free_tcp_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("free port");
    listener.local_addr().expect("free port").port()
}

fn free_udp_port() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("free port");
    socket.local_addr().expect("free port").port()
}
