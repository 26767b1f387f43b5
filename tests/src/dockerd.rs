//! A real Docker engine for tests, apart from any engine of the machine.
//!
//! Each engine has its own containerd, data, socket, bridge, address pools and cgroup parent.
//! It runs with `live-restore`, and finds in its `PATH` a recorder in place of NVIDIA's container
//! hook, so that Docker takes GPU requests on a machine without a card. A guard process removes
//! every trace when the [`Dockerd`] is dropped, and also when the test process is killed.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::deadline::Deadline;

/// Engines that may run at once on one machine.
const SLOTS: u8 = 64;
/// Longest wait for an engine to answer or to end.
const PATIENCE: Duration = Duration::from_secs(60);
const SLOT_FOLDER: &str = "/tmp/tianqi-engine-slots";
const GUARD: &str = include_str!("engine-guard.sh");
/// Stands where NVIDIA's hook would: keeps the runtime's configuration of each container that
/// asked for cards, by container id.
const HOOK: &str = r#"#!/bin/sh
state=$(cat)
id=$(printf %s "$state" | sed -n 's/.*"id":"\([^"]*\)".*/\1/p')
bundle=$(printf %s "$state" | sed -n 's/.*"bundle":"\([^"]*\)".*/\1/p')
printf %s "$state" >"@HOOKS@/$id.state.json"
cp "$bundle/config.json" "@HOOKS@/$id.config.json"
"#;

/// A running engine. Methods panic when the engine misbehaves: this is test equipment.
pub struct Dockerd {
    root: PathBuf,
    slot: u8,
    live_restore: bool,
    containerd: Mutex<Option<Child>>,
    dockerd: Mutex<Option<Child>>,
    guard: Option<Child>,
    _lock: File,
}

impl Dockerd {
    /// Returns the engine that all tests of this binary share, starting it at the first call.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Dockerd> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// Starts an engine of one's own, for tests that stop, kill or fill it.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with_live_restore(true)
    }

    /// Starts an engine of one's own whose containers end with it when `live_restore` is false.
    #[must_use]
    pub fn start_with_live_restore(live_restore: bool) -> Self {
        require("dockerd", "docker.io");
        require("containerd", "docker.io");
        require("docker", "docker.io");
        require("iptables", "iptables");
        require("ip", "iproute2");
        let (slot, lock) = take_slot();
        let root = PathBuf::from(format!("/tmp/tianqi-engine-{slot}"));
        // A machine that lost power leaves an engine without its guard.
        let swept = guard_command(&root, slot).arg("now").status();
        assert!(swept.is_ok_and(|status| status.success()), "could not sweep {}", root.display());
        let engine = Self {
            guard: Some(start_guard(&root, slot, &lock)),
            root,
            slot,
            live_restore,
            containerd: Mutex::new(None),
            dockerd: Mutex::new(None),
            _lock: lock,
        };
        engine.prepare();
        engine.resume();
        engine
    }

    /// Returns the path of the engine's socket.
    pub fn socket(&self) -> PathBuf {
        self.root.join("docker.sock")
    }

    /// Returns the endpoint as the agent's configuration takes it.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Returns the name for the bridge of an agent's instances on this engine, and its subnet; two
    /// agents on one machine must not share them.
    pub fn instance_network(&self) -> (String, String) {
        (format!("tqinst{}", self.slot), format!("10.232.{}.128/25", self.slot))
    }

    /// Returns the folder that holds everything of this engine; it is removed with the engine.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the process id of `dockerd`, while it runs.
    pub fn pid(&self) -> Option<u32> {
        lock(&self.dockerd).as_ref().map(Child::id)
    }

    /// Runs the `docker` client with these arguments and returns what it printed, trimmed.
    ///
    /// # Panics
    ///
    /// When the command fails; the message holds what it wrote to standard error.
    pub fn docker(&self, args: &[&str]) -> String {
        let output = self.try_docker(args);
        assert!(
            output.status.success(),
            "docker {args:?} failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Runs the `docker` client with these arguments, also when it may fail.
    pub fn try_docker(&self, args: &[&str]) -> Output {
        Command::new("docker")
            .arg("--host")
            .arg(self.endpoint())
            .args(args)
            .stdin(Stdio::null())
            .env("DOCKER_CONFIG", self.root.join("client"))
            .output()
            .expect("docker runs")
    }

    /// Returns the ids of all containers with this label, running or not.
    pub fn containers_labelled(&self, label: &str) -> Vec<String> {
        let filter = format!("label={label}");
        lines(&self.docker(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &filter]))
    }

    /// Returns the names of all volumes.
    pub fn volumes(&self) -> Vec<String> {
        lines(&self.docker(&["volume", "ls", "--quiet"]))
    }

    /// Returns the cards that a container asked NVIDIA's hook for when it last started, as the
    /// hook would see them in `NVIDIA_VISIBLE_DEVICES`; `None` when the hook was not called.
    pub fn visible_devices(&self, container_id: &str) -> Option<String> {
        let path = self.root.join("hooks").join(format!("{container_id}.config.json"));
        let config: serde_json::Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        let env = config.pointer("/process/env")?.as_array()?;
        // The last one wins, as in the container.
        env.iter()
            .filter_map(|pair| pair.as_str()?.strip_prefix("NVIDIA_VISIBLE_DEVICES="))
            .next_back()
            .map(str::to_owned)
    }

    /// Ends `dockerd` and waits until it is gone. Containers go on (unless started without
    /// `live-restore`).
    pub fn stop(&self) {
        self.end(Signal::Term);
    }

    /// Ends `dockerd` with `SIGKILL` and waits until it is gone.
    pub fn kill(&self) {
        self.end(Signal::Kill);
    }

    /// Starts `dockerd` where it was stopped or killed, and waits until it answers.
    pub fn resume(&self) {
        let mut running = lock(&self.dockerd);
        assert!(running.is_none(), "the engine runs already");
        // Engines share the machine's firewall; two that start at once trip over each other's
        // chains.
        let turn = File::create(Path::new(SLOT_FOLDER).join("starting")).expect("turn to start");
        turn.lock().expect("turn to start");
        // A killed engine leaves its pid file; a new one refuses to start while the number in it
        // belongs to any process, which on a busy machine happens.
        let _ = fs::remove_file(self.root.join("docker.pid"));
        *running = Some(self.spawn_dockerd());
        drop(running);
        self.wait_until_it_answers();
    }

    /// Stops and starts `dockerd`.
    pub fn restart(&self) {
        self.stop();
        self.resume();
    }

    /// Returns the last lines of the engine's log, for messages of failed tests.
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.root.join("dockerd.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn prepare(&self) {
        for folder in ["bin", "hooks", "client", "containerd"] {
            fs::create_dir_all(self.root.join(folder)).expect("folder of the engine");
        }
        let hook = self.root.join("bin/nvidia-container-runtime-hook");
        let hooks = self.root.join("hooks");
        fs::write(&hook, HOOK.replace("@HOOKS@", &hooks.to_string_lossy())).expect("hook");
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("hook is executable");
        let root = self.root.display();
        let config = format!(
            "version = 2\nroot = \"{root}/containerd/root\"\nstate = \"{root}/containerd/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{root}/containerd.sock\"\n"
        );
        fs::write(self.root.join("containerd.toml"), config).expect("containerd.toml");
        // Keeps the machine's own /etc/docker/daemon.json out of it.
        fs::write(self.root.join("daemon.json"), "{}").expect("daemon.json");
        let mut command = Command::new("containerd");
        command.arg("--config").arg(self.root.join("containerd.toml"));
        *lock(&self.containerd) = Some(self.spawn(command, "containerd.log"));
        let deadline = Deadline::after(PATIENCE);
        while UnixStream::connect(self.root.join("containerd.sock")).is_err() {
            deadline.pause("containerd does not listen");
        }
    }

    fn spawn_dockerd(&self) -> Child {
        let mut command = Command::new("dockerd");
        let (root, slot) = (self.root.display(), self.slot);
        // Docker makes its default bridge itself only under the name docker0; another must exist.
        self.make_bridge();
        command
            .arg(format!("--config-file={root}/daemon.json"))
            .arg(format!("--host={}", self.endpoint()))
            .arg(format!("--data-root={root}/data"))
            .arg(format!("--exec-root={root}/exec"))
            .arg(format!("--pidfile={root}/docker.pid"))
            .arg(format!("--containerd={root}/containerd.sock"))
            .arg(format!("--bridge=tqtest{slot}"))
            .arg(format!("--default-address-pool=base=10.232.{slot}.0/25,size=27"))
            .arg(format!("--cgroup-parent=/tianqi-test-{slot}"))
            .arg("--exec-opt=native.cgroupdriver=cgroupfs")
            .arg(format!("--live-restore={}", self.live_restore))
            .arg("--iptables=true");
        self.spawn(command, "dockerd.log")
    }

    fn make_bridge(&self) {
        let bridge = format!("tqtest{}", self.slot);
        if Path::new("/sys/class/net").join(&bridge).exists() {
            return;
        }
        let address = format!("10.231.{}.1/24", self.slot);
        for args in [
            vec!["link", "add", &bridge, "type", "bridge"],
            vec!["addr", "add", &address, "dev", &bridge],
            vec!["link", "set", &bridge, "up"],
        ] {
            let status = Command::new("ip").args(&args).status().expect("ip runs");
            assert!(status.success(), "ip {args:?} failed");
        }
    }

    fn spawn(&self, mut command: Command, log: &str) -> Child {
        let log = OpenOptions::new().create(true).append(true).open(self.root.join(log));
        let log = log.expect("log of the engine");
        let path = format!(
            "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            self.root.join("bin").display()
        );
        command
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log of the engine"))
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("the engine starts")
    }

    fn wait_until_it_answers(&self) {
        let deadline = Deadline::after(PATIENCE);
        while !self.answers() {
            let ended = lock(&self.dockerd)
                .as_mut()
                .is_none_or(|child| child.try_wait().is_ok_and(|status| status.is_some()));
            assert!(!ended, "dockerd ended while starting:\n{}", self.log_tail());
            deadline.pause("dockerd does not answer /_ping");
        }
    }

    fn answers(&self) -> bool {
        let Ok(mut stream) = UnixStream::connect(self.socket()) else { return false };
        let request = b"GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n";
        let mut reply = String::new();
        stream.set_read_timeout(Some(Duration::from_secs(5))).is_ok()
            && stream.write_all(request).is_ok()
            && stream.read_to_string(&mut reply).is_ok()
            && reply.starts_with("HTTP/1.1 200")
    }

    fn end(&self, signal: Signal) {
        let mut child = lock(&self.dockerd).take().expect("the engine runs");
        let _ = Command::new("kill").arg(signal.flag()).arg(child.id().to_string()).status();
        let deadline = Deadline::after(PATIENCE);
        while child.try_wait().is_ok_and(|status| status.is_none()) {
            deadline.pause("dockerd does not end");
        }
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        let Some(mut guard) = self.guard.take() else { return };
        drop(guard.stdin.take());
        let _ = guard.wait();
        for child in [&self.dockerd, &self.containerd] {
            if let Some(mut child) = lock(child).take() {
                let _ = child.wait();
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Signal {
    Term,
    Kill,
}

impl Signal {
    fn flag(self) -> &'static str {
        match self {
            Self::Term => "-TERM",
            Self::Kill => "-KILL",
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

/// Fails with the package's name when a program is missing.
fn require(program: &str, package: &str) {
    let found = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .any(|folder| Path::new(folder).join(program).exists());
    assert!(
        found,
        "{program} is not installed: `make test` installs it, or apt-get install {package}"
    );
}

/// Takes a number that no other engine of this machine uses; the lock on its file lasts as long
/// as the engine and its guard.
fn take_slot() -> (u8, File) {
    let folder = Path::new(SLOT_FOLDER);
    fs::create_dir_all(folder).expect("folder of slots");
    for slot in 0..SLOTS {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join(slot.to_string()))
            .expect("slot file (an engine needs root)");
        if file.try_lock().is_ok() {
            return (slot, file);
        }
    }
    panic!("{SLOTS} test engines run already");
}

fn guard_command(root: &Path, slot: u8) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", GUARD, "engine-guard"]).arg(root).arg(slot.to_string());
    command
}

/// Starts the guard in a process group of its own, so that Ctrl-C does not end it. It holds the
/// slot's lock as its standard output until it has cleaned up.
fn start_guard(root: &Path, slot: u8, lock: &File) -> Child {
    guard_command(root, slot)
        .stdin(Stdio::piped())
        .stdout(lock.try_clone().expect("lock"))
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("the guard starts")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images;

    #[test]
    fn containers_outlive_a_killed_engine_and_nothing_outlives_its_drop() {
        let engine = Dockerd::start();
        let root = engine.root().to_owned();
        let bridge = format!("/sys/class/net/tqtest{}", engine.slot);
        let image = images::busybox(&engine);
        let id = engine.docker(&["run", "-d", "-v", "kept:/data", image]);
        let pid = engine.docker(&["inspect", "-f", "{{.State.Pid}}", &id]);

        engine.kill();
        assert!(Path::new("/proc").join(&pid).exists(), "live-restore kept the container");
        engine.resume();

        assert_eq!(engine.docker(&["inspect", "-f", "{{.State.Pid}}", &id]), pid);
        assert_eq!(engine.volumes(), ["kept"]);
        drop(engine);
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "the container runs on: {state}");
        assert!(!root.exists(), "{} is still there", root.display());
        assert!(!Path::new(&bridge).exists(), "{bridge} is still there");
    }

    #[test]
    fn gpu_request_reaches_the_recorder_with_its_uuids() {
        let engine = Dockerd::shared();
        let image = images::busybox(engine);

        let id = engine.docker(&["run", "-d", "--gpus", "\"device=GPU-a,GPU-b\"", image]);
        let without = engine.docker(&["run", "-d", image]);

        assert_eq!(engine.visible_devices(&id).as_deref(), Some("GPU-a,GPU-b"));
        assert_eq!(engine.visible_devices(&without), None);
    }
}
