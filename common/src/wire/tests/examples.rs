//! One example of every message and every variant, with values that show each field.

use bytes::Bytes;
use uuid::Uuid;

use crate::clock::UnixMillis;
use crate::id::{BootId, InstanceId, NodeId, TerminalId};
use crate::unit::{CorePercent, DiskGib, GpuMemoryMib, MemoryMib, Millicores};
use crate::wire::Version;
use crate::wire::control::{ToAgent, ToController};
use crate::wire::desired::*;
use crate::wire::guest::*;
use crate::wire::hello::{Hello, HelloReply};
use crate::wire::inventory::*;
use crate::wire::join::{JoinRefusal, JoinReply, JoinRequest};
use crate::wire::observed::*;
use crate::wire::stream::*;
use crate::wire::telemetry::*;

pub fn instance(n: u8) -> InstanceId {
    InstanceId(Uuid::from_bytes([n; 16]))
}

pub fn node() -> NodeId {
    NodeId(Uuid::from_bytes([7; 16]))
}

fn card(n: u8) -> GpuUuid {
    GpuUuid(format!("GPU-{n}"))
}

pub fn hello() -> Hello {
    Hello {
        node: node(),
        boot: BootId(Uuid::from_bytes([9; 16])),
        started_at: UnixMillis(1_700_000_000_000),
        now: UnixMillis(1_700_000_000_001),
        program: "0.1.0".into(),
    }
}

pub fn hello_replies() -> Vec<HelloReply> {
    vec![
        HelloReply::Welcome {
            version: Version { major: 1, minor: 0 },
            now: UnixMillis(1_700_000_000_002),
        },
        HelloReply::Refused { code: "version".into(), message: "install 1.0".into() },
    ]
}

pub fn join_requests() -> Vec<JoinRequest> {
    vec![
        JoinRequest::Join {
            secret: "s3cret".into(),
            csr_pem: "CSR".into(),
            hostname: "gpu-07".into(),
            now: UnixMillis(5),
        },
        JoinRequest::Renew { csr_pem: "CSR".into(), now: UnixMillis(-5) },
    ]
}

pub fn join_replies() -> Vec<JoinReply> {
    let refusals = [
        JoinRefusal::UnknownToken,
        JoinRefusal::UsedUp,
        JoinRefusal::Expired,
        JoinRefusal::Version,
        JoinRefusal::ClockSkew,
        JoinRefusal::BadRequest,
        JoinRefusal::Removed,
        JoinRefusal::Internal,
    ];
    let accepted =
        JoinReply::Accepted { node: node(), certificate_pem: "CERT".into(), ca_pem: "CA".into() };
    let refused = refusals.map(|code| JoinReply::Refused { code, message: "no".into() });
    std::iter::once(accepted).chain(refused).collect()
}

pub fn settings() -> NodeSettings {
    NodeSettings {
        hami_dir: Some("/opt/hami".into()),
        docker_endpoint: Some("tcp://10.0.0.1:2376".into()),
        docker_tls_ca: Some("CA".into()),
        docker_tls_cert: Some("CERT".into()),
        docker_tls_key: Some("KEY".into()),
    }
}

fn spec(slice: Option<GpuSlice>, restart: RestartPolicy) -> InstanceSpec {
    InstanceSpec {
        container_name: "train-1".into(),
        image: "busybox:latest".into(),
        cpu: Millicores(2_500),
        memory: MemoryMib(4_096),
        system_disk: DiskGib(20),
        data_disk: DiskGib(0),
        shm: MemoryMib(64),
        pids_limit: 4_096,
        gpus: vec![card(1)],
        slice,
        env: vec![("A".into(), "b c".into())],
        restart,
    }
}

pub fn desired() -> NodeDesired {
    let slice = GpuSlice { memory: GpuMemoryMib(8_192), cores: CorePercent(50) };
    let one = |n, run, slice, restart| InstanceDesired {
        id: instance(n),
        generation: u64::from(n),
        run,
        spec: spec(slice, restart),
    };
    NodeDesired {
        revision: Revision { epoch: 1, generation: 300 },
        instances: vec![
            one(1, Run::Running, Some(slice), RestartPolicy::Never),
            one(2, Run::Stopped, None, RestartPolicy::OnFailure),
            one(3, Run::Running, None, RestartPolicy::Always),
        ],
        tombstones: vec![instance(4)],
    }
}

pub fn to_agent() -> Vec<ToAgent> {
    vec![
        ToAgent::Desired(desired()),
        ToAgent::Renewed { certificate_pem: "CERT".into(), ca_pem: "CA".into() },
        ToAgent::RenewRefused { message: "later".into() },
        ToAgent::Settings(settings()),
        ToAgent::Goodbye { code: "superseded".into(), message: "a newer start took over".into() },
        ToAgent::Report,
    ]
}

pub fn inventory() -> NodeInventory {
    let gpu = |n, numa_node, minor| GpuCard {
        uuid: card(n),
        index: u32::from(n),
        model: "NVIDIA L40".into(),
        memory_total: GpuMemoryMib(46_068),
        memory_reserved: GpuMemoryMib(511),
        pci_bus_id: "00000000:3B:00.0".into(),
        numa_node,
        minor,
        sick: String::new(),
        mig_enabled: n == 2,
    };
    let kinds = [
        LinkKind::SameBoard,
        LinkKind::SingleSwitch,
        LinkKind::MultipleSwitches,
        LinkKind::HostBridge,
        LinkKind::SameNuma,
        LinkKind::CrossCpu,
    ];
    NodeInventory {
        hostname: "gpu-07".into(),
        os: "Debian GNU/Linux 12 (bookworm)".into(),
        kernel: "6.1.0".into(),
        architecture: "x86_64".into(),
        cpu_model: "Some CPU".into(),
        cpu_cores: 64,
        memory: MemoryMib(262_144),
        disks: vec![Disk {
            mount: "/".into(),
            filesystem: "ext4".into(),
            total_bytes: 1 << 40,
            free_bytes: 1 << 39,
            holds_docker: true,
        }],
        docker: Some(engine(GpuSupport::Hook)),
        gpus: GpuInventory {
            unavailable: String::new(),
            simulated: false,
            driver_version: "550.54".into(),
            cuda_version: "12.4".into(),
            cards: vec![gpu(1, Some(0), Some(0)), gpu(2, None, None)],
            links: kinds.map(|kind| GpuLink { a: card(1), b: card(2), kind, nvlinks: 4 }).into(),
        },
        hami: HamiLibrary {
            dir: "/root/HAMi-core/build".into(),
            sha256: "ab".into(),
            unusable: "no library".into(),
        },
        agent_program: "0.1.0".into(),
    }
}

fn engine(gpu_support: GpuSupport) -> DockerEngine {
    DockerEngine {
        version: "20.10.24".into(),
        api_version: "1.41".into(),
        cgroup_driver: "cgroupfs".into(),
        cgroup_version: "1".into(),
        storage_driver: "overlay2".into(),
        backing_filesystem: "extfs".into(),
        live_restore: true,
        gpu_support,
        local: true,
    }
}

pub fn observed() -> NodeObserved {
    let states = [
        ContainerState::Absent,
        ContainerState::ImageMissing,
        ContainerState::Creating,
        ContainerState::Running,
        ContainerState::Stopping,
        ContainerState::Exited { code: 137, out_of_memory: true, message: "killed".into() },
        ContainerState::Failed { message: "no such image".into(), retrying: true },
        ContainerState::Unknown,
    ];
    let kinds = [LimitKind::Slice, LimitKind::SystemDisk, LimitKind::DataDisk, LimitKind::Network];
    let limits: Vec<_> =
        kinds.map(|kind| LimitState { kind, enforced: false, reason: "not here".into() }).into();
    let instances = (1_u8..).zip(states).map(|(n, state)| InstanceObserved {
        id: instance(n),
        generation: 3,
        state,
        container_id: Some("c0ffee".into()),
        started_at: Some(UnixMillis(8)),
        restarts: 2,
        limits: limits.clone(),
        gpus: vec![card(n)],
    });
    NodeObserved {
        revision: Revision { epoch: 1, generation: 300 },
        docker: DockerState { status: DockerStatus::Failed, reason: "refused".into() },
        instances: instances.collect(),
        removed: vec![Removed { id: instance(4), leftovers: vec!["volume x".into()] }],
        orphans: vec![Orphan {
            id: instance(5),
            container_id: "dead".into(),
            container_name: "old".into(),
            running: true,
            gpus: vec![card(1)],
        }],
    }
}

pub fn to_controller() -> Vec<ToController> {
    vec![
        ToController::Inventory(Box::new(inventory())),
        ToController::Observed(observed()),
        ToController::Renew { csr_pem: "CSR".into() },
    ]
}

pub fn samples() -> SampleBatch {
    SampleBatch {
        dropped: 3,
        samples: vec![Sample {
            at: UnixMillis(11),
            node: NodeSample { cpu_millicores: 1, memory_used_bytes: 2, disk_free_bytes: u64::MAX },
            gpus: vec![GpuSample {
                uuid: card(1),
                utilisation_percent: Some(99),
                memory_used_bytes: None,
                temperature_c: Some(60),
                power_mw: Some(300_000),
            }],
            instances: vec![InstanceSample {
                id: instance(1),
                cpu_millicores: 1,
                memory_used_bytes: 2,
                memory_limit_bytes: 3,
                network_rx_bytes: 4,
                network_tx_bytes: 5,
                block_read_bytes: 6,
                block_write_bytes: 7,
                pids: 8,
                gpu_memory_used_bytes: Some(9),
            }],
        }],
    }
}

pub fn opens() -> Vec<StreamOpen> {
    let exec = |command, pty| {
        StreamOpen::Exec(Exec {
            instance: instance(1),
            command,
            pty,
            env: vec![("TERM".into(), "xterm".into())],
        })
    };
    let credentials = RegistryCredentials { username: "u".into(), password: "p".into() };
    vec![
        exec(Command::Shell(Shell::Bash), Some(PtySize { cols: 132, rows: 43 })),
        exec(Command::Shell(Shell::Sh), None),
        exec(Command::Argv(vec!["ls".into(), "-l".into()]), None),
        StreamOpen::Logs(Logs { instance: instance(1), tail: 100, follow: true, timestamps: true }),
        StreamOpen::Pull(Pull { image: "a/b:c".into(), credentials: Some(credentials) }),
        StreamOpen::Check(settings()),
        exec(Command::Line("ls *.txt".into()), None),
        terminal(None),
        terminal(Some(70_000)),
        StreamOpen::Tcp(Dial { instance: instance(1), host: "localhost".into(), port: 8888 }),
        StreamOpen::Udp(Dial { instance: instance(1), host: "::1".into(), port: 53 }),
        StreamOpen::Sftp(Sftp { instance: instance(1) }),
        StreamOpen::LogQuery(LogQuery {
            instance: instance(1),
            tail: Some(100),
            since: Some(UnixMillis(1)),
            until: None,
            follow: false,
            timestamps: true,
            search: "error".into(),
        }),
    ]
}

fn terminal(resume: Option<u64>) -> StreamOpen {
    StreamOpen::Terminal(Terminal {
        exec: Exec {
            instance: instance(1),
            command: Command::Shell(Shell::Bash),
            pty: Some(PtySize { cols: 80, rows: 24 }),
            env: Vec::new(),
        },
        id: TerminalId(Uuid::from_u128(9)),
        resume,
    })
}

pub fn datagrams() -> Vec<Datagram> {
    vec![Datagram(Bytes::from_static(b"ping")), Datagram(Bytes::new())]
}

pub fn replies() -> Vec<StreamReply> {
    let codes = [
        StreamRefusal::NoContainer,
        StreamRefusal::NotRunning,
        StreamRefusal::TooMany,
        StreamRefusal::Unsupported,
        StreamRefusal::Docker,
        StreamRefusal::BadRequest,
        StreamRefusal::Gone,
        StreamRefusal::ConnectFailed,
    ];
    let refused = codes.map(|code| StreamReply::Refused { code, message: "no".into() });
    std::iter::once(StreamReply::Open).chain(refused).collect()
}

pub fn exec_frames() -> Vec<ExecFrame> {
    vec![
        ExecFrame::Stdin(Bytes::from_static(b"ls\n")),
        ExecFrame::StdinEnd,
        ExecFrame::Stdout(Bytes::from_static(b"\x00\xff")),
        ExecFrame::Stderr(Bytes::new()),
        ExecFrame::Resize(PtySize { cols: 80, rows: 24 }),
        ExecFrame::Signal("INT".into()),
        ExecFrame::Exit { code: -1 },
        ExecFrame::Failed { message: "gone".into() },
        ExecFrame::Hangup,
        ExecFrame::Position { offset: 1 << 40 },
    ]
}

pub fn log_frames() -> Vec<LogFrame> {
    vec![
        LogFrame::Stdout(Bytes::from_static(b"out")),
        LogFrame::Stderr(Bytes::from_static(b"err")),
        LogFrame::End,
        LogFrame::Failed { message: "gone".into() },
    ]
}

pub fn pull_frames() -> Vec<PullFrame> {
    vec![
        PullFrame::Progress { done_bytes: 1, total_bytes: 2, status: "Extracting".into() },
        PullFrame::Done,
        PullFrame::Failed { message: "no such image".into() },
    ]
}

pub fn check_reports() -> Vec<CheckReport> {
    let docker = |status| DockerState { status, reason: "because".into() };
    let report = |status, engine| CheckReport {
        docker: docker(status),
        engine,
        hami_sha256: "ab".into(),
        hami_problem: "none".into(),
    };
    vec![
        report(DockerStatus::Unknown, None),
        report(DockerStatus::Connected, Some(engine(GpuSupport::Cdi))),
        report(DockerStatus::Failed, Some(engine(GpuSupport::None))),
    ]
}

pub fn guest_hellos() -> Vec<GuestHello> {
    vec![GuestHello::Control { version: 1 }, GuestHello::Stream { token: [7; 16] }]
}

pub fn to_guest() -> Vec<ToGuest> {
    vec![ToGuest::Stream { token: [9; 16] }]
}
