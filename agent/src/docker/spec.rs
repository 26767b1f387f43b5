//! Pure: how the container of an instance is made. Nothing here asks an engine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tianqi_common::id::InstanceId;
use tianqi_common::unit::{GIB, MIB};
use tianqi_common::wire::desired::{GpuUuid, InstanceDesired, InstanceSpec};
use tianqi_common::wire::guest::RUN;
use tianqi_common::wire::observed::{LimitKind, LimitState};

use super::model::GpuRequest;
use super::{CreateContainer, CreateVolume, EngineFacts, ImageFacts, label};
use crate::gpu::inject::{Bind, Injection};

/// Where the guest stands in every instance.
pub const GUEST: &str = "/.tianqi/guest";
/// Where the data volume stands.
pub const DATA: &str = "/data";
/// Cards whose uuid begins so are imaginary.
pub const SIMULATED: &str = "SIM-";
/// Most processes of an instance whose spec gives no number.
const DEFAULT_PIDS: u32 = 4_096;

/// Capabilities that Docker gives by default and no instance gets.
const DROPPED: [&str; 4] = [
    // A chroot into a tree without /etc/ld.so.preload would escape the slice.
    "SYS_CHROOT",
    // A device node of one's own making is a way around the device list.
    "MKNOD",
    // Raw sockets forge addresses on the bridge that all instances of the node share.
    "NET_RAW",
    // The audit log is the node's.
    "AUDIT_WRITE",
];

/// What the node adds to every instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Docker's name of the network that instances stand on.
    pub network: String,
    /// The guest's program on the node; nothing when it is missing.
    pub guest: Option<String>,
    /// The folder of the socket that the instance's guest dials.
    pub guest_folder: String,
}

/// A container to be made, with what must stand before it and what it will not enforce.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blueprint {
    /// The container.
    pub container: CreateContainer,
    /// Volumes to make first.
    pub volumes: Vec<CreateVolume>,
}

/// Returns how the container of `instance` is made.
#[must_use]
pub fn blueprint(
    instance: &InstanceDesired,
    image: &ImageFacts,
    engine: &EngineFacts,
    injection: &Injection,
    node: &NodeFacts,
) -> Blueprint {
    let spec = &instance.spec;
    let limits = limits(spec, engine, injection);
    let volumes = volumes(instance, image, engine);
    let guest = node.guest.as_ref().filter(|_| engine.local);
    let argv = argv(image, guest.is_some());
    let mut binds = injection.binds.clone();
    binds.extend(guest.map(|path| Bind {
        source: path.clone(),
        target: GUEST.to_owned(),
        read_only: true,
    }));
    binds.extend(guest.map(|_| Bind {
        source: node.guest_folder.clone(),
        target: RUN.to_owned(),
        read_only: true,
    }));
    let container = CreateContainer {
        name: spec.container_name.clone(),
        image: spec.image.clone(),
        entrypoint: argv.entrypoint,
        cmd: argv.cmd,
        keep_stdin_open: argv.keep_stdin_open,
        env: env(spec, injection),
        labels: labels(instance, &limits),
        nano_cpus: signed(spec.cpu.0.saturating_mul(1_000_000)),
        memory_bytes: signed(spec.memory.0.saturating_mul(MIB)),
        pids_limit: i64::from(if spec.pids_limit == 0 { DEFAULT_PIDS } else { spec.pids_limit }),
        shm_bytes: signed(spec.shm.0.saturating_mul(MIB)),
        cap_drop: DROPPED.map(str::to_owned).to_vec(),
        security_opt: vec!["no-new-privileges".to_owned()],
        log_driver: "local".to_owned(),
        log_options: BTreeMap::from([
            ("max-size".to_owned(), "10m".to_owned()),
            ("max-file".to_owned(), "3".to_owned()),
        ]),
        network: node.network.clone(),
        disk_bytes: (spec.system_disk.0 > 0 && why_no_disk_limit(engine).is_none())
            .then(|| spec.system_disk.0.saturating_mul(GIB)),
        gpus: gpu_request(&spec.gpus, engine),
        binds,
        volumes: volumes.iter().map(|(volume, at)| (volume.name.clone(), at.clone())).collect(),
    };
    Blueprint { container, volumes: volumes.into_iter().map(|(volume, _)| volume).collect() }
}

/// Returns whether users may not set this environment variable, because it would loosen a slice or
/// ask for other cards.
#[must_use]
pub fn is_reserved_env(name: &str, is_sliced: bool) -> bool {
    const NAMES: [&str; 5] = [
        "LD_PRELOAD",
        "LD_AUDIT",
        "CUDA_REDIRECT",
        "CUDA_DISABLE_CONTROL",
        "GPU_CORE_UTILIZATION_POLICY",
    ];
    const PREFIXES: [&str; 3] = ["CUDA_DEVICE_", "NVIDIA_", "TIANQI_"];
    NAMES.contains(&name)
        || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || (is_sliced && name == "CUDA_VISIBLE_DEVICES")
}

/// Returns the folder of the socket that an instance's guest dials.
#[must_use]
pub fn guest_folder(folders: &Path, instance: InstanceId) -> PathBuf {
    folders.join(instance.to_string())
}

/// Returns the name of an instance's data volume.
#[must_use]
pub fn data_volume(instance: InstanceId) -> String {
    format!("tianqi-{instance}-data")
}

/// The user's variables come first; what the node decides comes after and wins.
fn env(spec: &InstanceSpec, injection: &Injection) -> Vec<String> {
    let is_plain = |name: &str| !name.is_empty() && !name.contains(['=', '\0']);
    let mut all: BTreeMap<&str, &str> = spec
        .env
        .iter()
        .filter(|(name, value)| {
            is_plain(name) && !value.contains('\0') && !is_reserved_env(name, spec.slice.is_some())
        })
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    all.extend(injection.env.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    if real_cards(&spec.gpus).next().is_none() {
        // An engine whose default runtime is NVIDIA's would give every card to an image that asks.
        all.insert("NVIDIA_VISIBLE_DEVICES", "void");
    } else {
        all.insert("NVIDIA_DRIVER_CAPABILITIES", "compute,utility");
    }
    all.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn labels(instance: &InstanceDesired, limits: &[LimitState]) -> BTreeMap<String, String> {
    let gpus: Vec<&str> = instance.spec.gpus.iter().map(|gpu| gpu.0.as_str()).collect();
    BTreeMap::from([
        (label::INSTANCE.to_owned(), instance.id.to_string()),
        (label::GENERATION.to_owned(), instance.generation.to_string()),
        (label::GPUS.to_owned(), gpus.join(",")),
        (label::CONTAINER_NAME.to_owned(), instance.spec.container_name.clone()),
        (label::LIMITS.to_owned(), serde_json::to_string(limits).unwrap_or_default()),
    ])
}

fn real_cards(gpus: &[GpuUuid]) -> impl Iterator<Item = &str> {
    gpus.iter().map(|gpu| gpu.0.as_str()).filter(|uuid| !uuid.starts_with(SIMULATED))
}

fn gpu_request(gpus: &[GpuUuid], engine: &EngineFacts) -> GpuRequest {
    let uuids: Vec<String> = real_cards(gpus).map(str::to_owned).collect();
    let names: Vec<String> = uuids.iter().map(|uuid| format!("nvidia.com/gpu={uuid}")).collect();
    if uuids.is_empty() {
        GpuRequest::None
    } else if names.iter().all(|name| engine.cdi_devices.contains(name)) {
        GpuRequest::Cdi(names)
    } else {
        GpuRequest::Nvidia(uuids)
    }
}

fn limits(spec: &InstanceSpec, engine: &EngineFacts, injection: &Injection) -> Vec<LimitState> {
    let state = |kind, reason: Option<String>| LimitState {
        kind,
        enforced: reason.is_none(),
        reason: reason.unwrap_or_default(),
    };
    let mut limits = injection.limits.clone();
    if spec.system_disk.0 > 0 {
        limits.push(state(LimitKind::SystemDisk, why_no_disk_limit(engine)));
    }
    if spec.data_disk.0 > 0 {
        limits.push(state(LimitKind::DataDisk, why_no_volume_limit(engine)));
    }
    limits
}

fn why_no_disk_limit(engine: &EngineFacts) -> Option<String> {
    match engine.storage_driver.as_str() {
        "btrfs" | "zfs" | "devicemapper" => None,
        "overlay2" if engine.project_quota => None,
        driver => Some(format!(
            "storage driver {driver} on {} cannot limit a container's disk; overlay2 on xfs \
             mounted with pquota can",
            engine.backing_filesystem
        )),
    }
}

fn why_no_volume_limit(engine: &EngineFacts) -> Option<String> {
    (!engine.project_quota).then(|| {
        format!(
            "docker's data on {} cannot limit a volume; xfs mounted with pquota can",
            engine.backing_filesystem
        )
    })
}

/// The data volume, and one for each path that the image declares: Docker would make those
/// anonymous, and a container removed by other hands would leave them behind for ever.
fn volumes(
    instance: &InstanceDesired,
    image: &ImageFacts,
    engine: &EngineFacts,
) -> Vec<(CreateVolume, String)> {
    let labels = BTreeMap::from([(label::INSTANCE.to_owned(), instance.id.to_string())]);
    let mut volumes = Vec::new();
    let data_disk = instance.spec.data_disk.0;
    if data_disk > 0 {
        let size = ("size".to_owned(), data_disk.saturating_mul(GIB).to_string());
        let is_limited = why_no_volume_limit(engine).is_none();
        let volume = CreateVolume {
            name: data_volume(instance.id),
            labels: labels.clone(),
            options: is_limited.then_some(size).into_iter().collect(),
        };
        volumes.push((volume, DATA.to_owned()));
    }
    for path in &image.volumes {
        let at = path.trim_end_matches('/');
        if !at.starts_with('/') || (at == DATA && data_disk > 0) {
            continue;
        }
        let digest = hex::encode(Sha256::digest(at.as_bytes()));
        let name = format!("tianqi-{}-{}", instance.id, digest.get(..12).unwrap_or_default());
        let volume = CreateVolume { name, labels: labels.clone(), options: BTreeMap::new() };
        volumes.push((volume, at.to_owned()));
    }
    volumes
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Argv {
    entrypoint: Vec<String>,
    cmd: Vec<String>,
    keep_stdin_open: bool,
}

/// Decides what runs as process 1.
///
/// An image that would only start a shell would end at once, because instances have no terminal of
/// their own: the guest holds it open instead. Anything else runs under the guest's `init`, which
/// reaps orphans and passes signals on (Docker's own `--init` needs a program that is not on every
/// node).
fn argv(image: &ImageFacts, has_guest: bool) -> Argv {
    let holds_open = |argv: &[String]| argv.is_empty() || is_interactive_shell(argv);
    let own: Vec<String> = image.entrypoint.iter().chain(&image.cmd).cloned().collect();
    if !has_guest {
        let entrypoint = if own.is_empty() { vec!["sh".to_owned()] } else { Vec::new() };
        // A shell whose input stays open waits for it.
        return Argv { entrypoint, cmd: Vec::new(), keep_stdin_open: holds_open(&own) };
    }
    let hold = [GUEST.to_owned(), "hold".to_owned()];
    if holds_open(&own) {
        return Argv { entrypoint: hold.to_vec(), ..Argv::default() };
    }
    let init = [GUEST.to_owned(), "init".to_owned(), "--".to_owned()];
    let mut cmd: Vec<String> = own.clone();
    let wraps_shell = !image.entrypoint.is_empty()
        && (is_interactive_shell(&image.cmd) || ends_in_shell(&image.entrypoint, &image.cmd));
    if wraps_shell {
        cmd = image.entrypoint.iter().cloned().chain(hold).collect();
    }
    Argv { entrypoint: init.to_vec(), cmd, keep_stdin_open: false }
}

/// Returns whether `argv` is a shell that would read commands from its input.
fn is_interactive_shell(argv: &[String]) -> bool {
    const SHELLS: [&str; 8] = ["sh", "bash", "ash", "dash", "zsh", "ksh", "fish", "tcsh"];
    const FLAGS: [&str; 4] = ["-i", "-l", "-il", "--login"];
    let Some((program, flags)) = argv.split_first() else {
        return false;
    };
    let name = program.rsplit('/').next().unwrap_or(program);
    SHELLS.contains(&name) && flags.iter().all(|flag| FLAGS.contains(&flag.as_str()))
}

/// NVIDIA's images begin with a script that prints a banner and, given nothing to run, a shell.
fn ends_in_shell(entrypoint: &[String], cmd: &[String]) -> bool {
    cmd.is_empty() && entrypoint.last().is_some_and(|last| last.ends_with("/nvidia_entrypoint.sh"))
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
