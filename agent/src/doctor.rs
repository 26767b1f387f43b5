//! `tianqi-agent doctor`: one line for each thing that a node needs.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tianqi_common::unit::{GIB, MIB};
use tianqi_common::wire::inventory::{DockerEngine, GpuInventory, GpuSupport, HamiLibrary};

use crate::docker::Docker;
use crate::gpu::GpuProbe;
use crate::gpu::collector::NOT_READ_YET;
use crate::gpu::elf::Preflight;
use crate::gpu::hami::HamiInjector;
use crate::inventory::DOCKER_ROOT;
use crate::telemetry::host::disk_bytes;

/// Longest wait for the first reading of the cards.
const PATIENCE: Duration = Duration::from_secs(20);
/// Oldest Docker API that the agent speaks.
const OLDEST_API: (u32, u32) = (1, 41);
/// Below this much free space a disk is worth a warning.
const LITTLE_SPACE: u64 = 10 * GIB;
/// Below this much free space nothing can be done.
const NO_SPACE: u64 = 512 * MIB;
/// Where programs of the system are.
const PROGRAMS: [&str; 5] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin"];

/// How something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// The node works without, in part.
    Warn,
    /// The node cannot serve instances.
    Fail,
}

/// What was found out about one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Which thing.
    pub name: &'static str,
    /// How it stands.
    pub verdict: Verdict,
    /// What was found, and what to do when it is not well.
    pub text: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        write!(f, "{verdict:<5} {:<18} {}", self.name, self.text)
    }
}

/// Everything that the lines are made of.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The engine, or why it does not answer.
    pub docker: Result<DockerEngine, String>,
    /// The cards.
    pub gpus: GpuInventory,
    /// The slicing library.
    pub hami: HamiLibrary,
    /// What the library asks for, when there is one.
    pub preflight: Option<Preflight>,
    /// Why small filesystems cannot be mounted for slices; empty when they can.
    pub no_mounts: String,
    /// Directories with their free bytes.
    pub disks: Vec<(PathBuf, u64)>,
    /// Whether the kernel's clock is kept by a time service; nothing when it does not tell.
    pub clock_synchronised: Option<bool>,
    /// Where iptables is.
    pub iptables: Option<PathBuf>,
}

/// Finds out everything and returns the lines. Takes some seconds on a machine whose cards sleep.
pub async fn run(
    docker: &dyn Docker,
    probe: &dyn GpuProbe,
    hami: &Arc<HamiInjector>,
    data_dir: &Path,
) -> Vec<Line> {
    let mut inventory = probe.watch();
    let was_read = |found: &GpuInventory| found.unavailable != NOT_READ_YET;
    let gpus = match tokio::time::timeout(PATIENCE, inventory.wait_for(was_read)).await {
        Ok(Ok(found)) => found.clone(),
        _ => probe.inventory(),
    };
    let engine = docker.engine().await.map_err(|error| chain(&error));
    let docker_root = match docker.facts().await {
        Ok(facts) => PathBuf::from(facts.root_dir),
        Err(_) => PathBuf::from(DOCKER_ROOT),
    };
    let directories = vec![data_dir.to_owned(), docker_root];
    let hami = Arc::clone(hami);
    let local = tokio::task::spawn_blocking(move || {
        let free = |path: PathBuf| disk_bytes(&path).map(|(free, _)| (path, free));
        Facts {
            docker: engine,
            gpus,
            hami: hami.library(),
            preflight: hami.preflight(),
            no_mounts: why_no_mounts(),
            disks: directories.into_iter().filter_map(free).collect(),
            clock_synchronised: clock_synchronised(),
            iptables: program("iptables"),
        }
    });
    match local.await {
        Ok(facts) => lines(&facts),
        Err(error) => vec![line("doctor", Verdict::Fail, error.to_string())],
    }
}

/// Returns the lines for `facts`: pure.
#[must_use]
pub fn lines(facts: &Facts) -> Vec<Line> {
    let mut lines = docker_lines(&facts.docker, &facts.gpus);
    lines.extend(gpu_lines(&facts.gpus));
    lines.push(toolkit_line(facts));
    lines.extend(slice_lines(facts));
    lines.extend(facts.disks.iter().map(|(path, free)| disk_line(path, *free)));
    lines.push(match facts.clock_synchronised {
        Some(true) => line("clock", Verdict::Ok, "kept by a time service"),
        Some(false) => {
            let text =
                "not kept by a time service; install chrony, or certificates may seem invalid";
            line("clock", Verdict::Warn, text)
        }
        None => line("clock", Verdict::Warn, "the kernel does not tell whether it is kept"),
    });
    lines.push(match &facts.iptables {
        Some(path) => line("iptables", Verdict::Ok, path.display().to_string()),
        None => line(
            "iptables",
            Verdict::Fail,
            "missing; instances would have no walls: install iptables",
        ),
    });
    lines
}

fn line(name: &'static str, verdict: Verdict, text: impl Into<String>) -> Line {
    Line { name, verdict, text: text.into() }
}

fn docker_lines(docker: &Result<DockerEngine, String>, gpus: &GpuInventory) -> Vec<Line> {
    let engine = match docker {
        Ok(engine) => engine,
        Err(reason) => {
            return vec![line("docker", Verdict::Fail, format!("does not answer: {reason}"))];
        }
    };
    let DockerEngine { version, storage_driver, backing_filesystem, .. } = engine;
    let storage = format!("{version}, {storage_driver} on {backing_filesystem}");
    let (major, minor) = OLDEST_API;
    let api = &engine.api_version;
    let is_new_enough = version_pair(api).is_some_and(|found| found >= OLDEST_API);
    let loses_cards = engine.cgroup_driver == "systemd"
        && engine.gpu_support == GpuSupport::Hook
        && !gpus.cards.is_empty();
    vec![
        line("docker", Verdict::Ok, storage),
        match is_new_enough {
            true => line("docker api", Verdict::Ok, api.clone()),
            false => {
                line("docker api", Verdict::Fail, format!("{api} is older than {major}.{minor}"))
            }
        },
        match loses_cards {
            false => line(
                "cgroup driver",
                Verdict::Ok,
                format!("{}, version {}", engine.cgroup_driver, engine.cgroup_version),
            ),
            true => line(
                "cgroup driver",
                Verdict::Warn,
                "systemd with NVIDIA's hook: a daemon-reload takes cards from running containers; \
                 use CDI or native.cgroupdriver=cgroupfs",
            ),
        },
        match engine.live_restore {
            true => line("live-restore", Verdict::Ok, "on"),
            false => line(
                "live-restore",
                Verdict::Warn,
                "off: a restart of Docker ends every instance; set \"live-restore\": true in daemon.json",
            ),
        },
    ]
}

fn gpu_lines(gpus: &GpuInventory) -> Vec<Line> {
    if gpus.simulated {
        let text = format!("{} simulated cards", gpus.cards.len());
        return vec![line("nvidia driver", Verdict::Warn, text)];
    }
    if !gpus.unavailable.is_empty() {
        return vec![line(
            "nvidia driver",
            Verdict::Warn,
            format!("no cards: {}", gpus.unavailable),
        )];
    }
    let driver = format!("{}, CUDA up to {}", gpus.driver_version, gpus.cuda_version);
    let mut lines = vec![line("nvidia driver", Verdict::Ok, driver)];
    for card in &gpus.cards {
        let name = format!("{} {} ({} MiB)", card.uuid, card.model, card.memory_total.0);
        lines.push(if !card.sick.is_empty() {
            line("nvml", Verdict::Warn, format!("{name} is sick: {}", card.sick))
        } else if card.mig_enabled {
            line("nvml", Verdict::Warn, format!("{name} has MIG on and takes no work"))
        } else {
            line("nvml", Verdict::Ok, name)
        });
    }
    if gpus.cards.is_empty() {
        lines.push(line("nvml", Verdict::Warn, "the driver knows no card"));
    }
    lines
}

fn toolkit_line(facts: &Facts) -> Line {
    let name = "container toolkit";
    let has_cards = !facts.gpus.cards.is_empty() && !facts.gpus.simulated;
    match facts.docker.as_ref().map(|engine| engine.gpu_support) {
        Ok(GpuSupport::Cdi) => line(name, Verdict::Ok, "cards by CDI"),
        Ok(GpuSupport::Hook) => line(name, Verdict::Ok, "cards by NVIDIA's hook"),
        Ok(GpuSupport::None) if has_cards => {
            let text = "missing: Docker cannot hand out cards; install nvidia-container-toolkit";
            line(name, Verdict::Fail, text)
        }
        Ok(GpuSupport::None) => line(name, Verdict::Ok, "not installed, and no card needs it"),
        Err(_) => line(name, Verdict::Warn, "not known while Docker does not answer"),
    }
}

fn slice_lines(facts: &Facts) -> Vec<Line> {
    let HamiLibrary { dir, sha256, unusable } = &facts.hami;
    if !unusable.is_empty() {
        let text = format!("{unusable}; slices are not enforced");
        return vec![line("hami library", Verdict::Warn, text)];
    }
    let preflight = facts.preflight.clone().unwrap_or_default();
    let glibc = preflight.glibc.map_or(String::new(), |(major, minor)| {
        format!(", for images with glibc {major}.{minor} or newer")
    });
    let needs = if preflight.needs_driver() {
        ", needs the driver's libraries in the container"
    } else {
        ""
    };
    let library = format!("sha256 {sha256} from {dir}{glibc}{needs}");
    let slices = match facts.no_mounts.as_str() {
        "" => line("slices", Verdict::Ok, "enforced"),
        reason => line("slices", Verdict::Fail, format!("cannot be prepared: {reason}")),
    };
    vec![line("hami library", Verdict::Ok, library), slices]
}

fn disk_line(path: &Path, free: u64) -> Line {
    let verdict = match free {
        0..NO_SPACE => Verdict::Fail,
        NO_SPACE..LITTLE_SPACE => Verdict::Warn,
        _ => Verdict::Ok,
    };
    line("disk", verdict, format!("{} MiB free for {}", free / MIB, path.display()))
}

fn version_pair(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Returns why filesystems mounted by this process would not reach Docker.
fn why_no_mounts() -> String {
    if !nix::unistd::geteuid().is_root() {
        return "the agent does not run as root".to_owned();
    }
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    if namespace("self") != namespace("1") {
        return "the agent has a mount namespace of its own, in which Docker sees nothing; its unit \
                must not set ProtectSystem=, PrivateTmp= and the like"
            .to_owned();
    }
    String::new()
}

#[allow(unsafe_code, reason = "no crate in use wraps this call")]
fn clock_synchronised() -> Option<bool> {
    // SAFETY: a zeroed `timex` asks for nothing to be changed, and the kernel fills it in.
    let status = unsafe {
        let mut state: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut state) >= 0).then_some(state.status)
    };
    status.map(|status| status & libc::STA_UNSYNC == 0)
}

fn program(name: &str) -> Option<PathBuf> {
    PROGRAMS.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.is_file())
}

#[cfg(test)]
#[path = "doctor_tests.rs"]
mod tests;
