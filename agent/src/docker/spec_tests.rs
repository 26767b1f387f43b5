use tianqi_common::unit::{CorePercent, DiskGib, GpuMemoryMib, MemoryMib, Millicores};
use tianqi_common::wire::desired::{GpuSlice, RestartPolicy, Run};

use super::*;

fn instance(gpus: &[&str]) -> InstanceDesired {
    InstanceDesired {
        id: InstanceId::new(),
        generation: 3,
        run: Run::Running,
        spec: InstanceSpec {
            container_name: "train-1".to_owned(),
            image: "busybox:local".to_owned(),
            cpu: Millicores(1_500),
            memory: MemoryMib(64),
            system_disk: DiskGib(10),
            data_disk: DiskGib(5),
            shm: MemoryMib(32),
            pids_limit: 100,
            gpus: gpus.iter().map(|uuid| GpuUuid((*uuid).to_owned())).collect(),
            slice: None,
            env: vec![],
            restart: RestartPolicy::Never,
        },
    }
}

fn image(entrypoint: &[&str], cmd: &[&str]) -> ImageFacts {
    let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    ImageFacts { entrypoint: own(entrypoint), cmd: own(cmd), ..ImageFacts::default() }
}

fn engine(driver: &str, quota: bool) -> EngineFacts {
    EngineFacts {
        storage_driver: driver.to_owned(),
        backing_filesystem: "xfs".to_owned(),
        project_quota: quota,
        local: true,
        ..EngineFacts::default()
    }
}

fn node() -> NodeFacts {
    NodeFacts {
        network: "tianqi".to_owned(),
        guest: Some("/opt/guest".to_owned()),
        guest_folder: "/var/lib/tianqi-agent/guests/1".to_owned(),
    }
}

fn made(instance: &InstanceDesired, image: &ImageFacts, engine: &EngineFacts) -> Blueprint {
    blueprint(instance, image, engine, &Injection::default(), &node())
}

fn process(entrypoint: &[&str], cmd: &[&str]) -> String {
    let container = made(&instance(&[]), &image(entrypoint, cmd), &engine("overlay2", false));
    let container = container.container;
    container.entrypoint.into_iter().chain(container.cmd).collect::<Vec<_>>().join(" ")
}

#[test]
fn shells_and_empty_images_are_held_open() {
    for cmd in [&[][..], &["sh"], &["/bin/bash"], &["ash", "-l"], &["/usr/bin/zsh", "-il"]] {
        assert_eq!(process(&[], cmd), "/.tianqi/guest hold", "{cmd:?}");
    }
    assert_eq!(
        process(&["/opt/nvidia/nvidia_entrypoint.sh"], &[]),
        "/.tianqi/guest init -- /opt/nvidia/nvidia_entrypoint.sh /.tianqi/guest hold"
    );
    assert_eq!(
        process(&["/entry"], &["bash"]),
        "/.tianqi/guest init -- /entry /.tianqi/guest hold"
    );
}

#[test]
fn programs_run_under_init_with_their_arguments() {
    assert_eq!(process(&[], &["sh", "-c", "train"]), "/.tianqi/guest init -- sh -c train");
    assert_eq!(process(&["python3"], &["a.py"]), "/.tianqi/guest init -- python3 a.py");
    assert_eq!(process(&[], &["python3"]), "/.tianqi/guest init -- python3");
}

#[test]
fn without_a_guest_the_image_runs_as_it_is() {
    let shell = argv(&image(&[], &["sh"]), false);
    assert_eq!((shell.entrypoint.len(), shell.keep_stdin_open), (0, true));
    let program = argv(&image(&[], &["nginx"]), false);
    assert_eq!((program.entrypoint.len(), program.keep_stdin_open), (0, false));

    let mut remote = engine("overlay2", false);
    remote.local = false;
    let container = made(&instance(&[]), &image(&[], &["sh"]), &remote).container;
    assert!(container.binds.is_empty(), "the guest's path means nothing on another host");
}

#[test]
fn reserved_variables_never_reach_the_container() {
    let mut wanted = instance(&["GPU-1"]);
    wanted.spec.slice = Some(GpuSlice { memory: GpuMemoryMib(1), cores: CorePercent(1) });
    let names = [
        "LD_PRELOAD",
        "LD_AUDIT",
        "CUDA_DEVICE_SM_LIMIT",
        "NVIDIA_VISIBLE_DEVICES",
        "CUDA_VISIBLE_DEVICES",
        "GPU_CORE_UTILIZATION_POLICY",
        "A=B",
        "",
    ];
    wanted.spec.env = names.map(|name| (name.to_owned(), "mine".to_owned())).to_vec();
    wanted.spec.env.push(("LANG".to_owned(), "zh_CN.UTF-8".to_owned()));
    let injection = Injection {
        env: vec![("LD_PRELOAD".to_owned(), "/libvgpu/build/libvgpu.so".to_owned())],
        ..Injection::default()
    };

    let made =
        blueprint(&wanted, &image(&[], &[]), &engine("overlay2", false), &injection, &node());

    assert_eq!(
        made.container.env,
        [
            "LANG=zh_CN.UTF-8",
            "LD_PRELOAD=/libvgpu/build/libvgpu.so",
            "NVIDIA_DRIVER_CAPABILITIES=compute,utility"
        ]
    );
}

#[test]
fn cards_are_asked_for_by_uuid_and_simulated_ones_not_at_all() {
    let mut engine = engine("overlay2", false);
    let request = |gpus: &[&str], engine: &EngineFacts| {
        let container = made(&instance(gpus), &image(&[], &[]), engine).container;
        let is_void = container.env.contains(&"NVIDIA_VISIBLE_DEVICES=void".to_owned());
        (container.gpus, is_void)
    };
    assert_eq!(request(&[], &engine), (GpuRequest::None, true));
    assert_eq!(request(&["SIM-0"], &engine), (GpuRequest::None, true));
    assert_eq!(
        request(&["GPU-b", "GPU-a"], &engine),
        (GpuRequest::Nvidia(vec!["GPU-b".to_owned(), "GPU-a".to_owned()]), false)
    );

    engine.cdi_devices = vec!["nvidia.com/gpu=GPU-a".to_owned()];
    assert!(matches!(request(&["GPU-b", "GPU-a"], &engine).0, GpuRequest::Nvidia(_)));
    assert_eq!(
        request(&["GPU-a"], &engine).0,
        GpuRequest::Cdi(vec!["nvidia.com/gpu=GPU-a".to_owned()])
    );
}

#[test]
fn disks_are_limited_where_the_driver_can_and_said_where_it_cannot() {
    let plain = made(&instance(&[]), &image(&[], &[]), &engine("overlay2", false));
    assert_eq!(plain.container.disk_bytes, None);
    assert!(plain.volumes[0].options.is_empty());
    let limits: Vec<LimitState> =
        serde_json::from_str(&plain.container.labels[label::LIMITS]).unwrap();
    assert!(limits.len() == 2 && limits.iter().all(|l| !l.enforced && l.reason.contains("pquota")));

    let quota = made(&instance(&[]), &image(&[], &[]), &engine("overlay2", true));
    assert_eq!(quota.container.disk_bytes, Some(10 << 30));
    assert_eq!(quota.volumes[0].options["size"], (5_u64 << 30).to_string());
    let limits: Vec<LimitState> =
        serde_json::from_str(&quota.container.labels[label::LIMITS]).unwrap();
    assert!(limits.iter().all(|l| l.enforced && l.reason.is_empty()));
}

#[test]
fn volumes_that_the_image_declares_carry_our_label() {
    let mut image = image(&[], &[]);
    image.volumes = vec!["/var/lib/db/".to_owned(), "/data".to_owned(), "odd".to_owned()];
    let wanted = instance(&[]);

    let made = made(&wanted, &image, &engine("overlay2", false));

    let targets: Vec<&str> = made.container.volumes.iter().map(|(_, at)| at.as_str()).collect();
    assert_eq!(targets, ["/data", "/var/lib/db"]);
    assert_eq!(made.volumes[0].name, data_volume(wanted.id));
    let is_ours = |v: &CreateVolume| v.labels[label::INSTANCE] == wanted.id.to_string();
    assert!(made.volumes.iter().all(is_ours));
}

#[test]
fn absurd_sizes_do_not_wrap() {
    let mut wanted = instance(&[]);
    wanted.spec.memory = MemoryMib(u64::MAX);
    wanted.spec.cpu = Millicores(u64::MAX);
    wanted.spec.system_disk = DiskGib(u64::MAX);

    let container = made(&wanted, &image(&[], &[]), &engine("btrfs", false)).container;

    assert_eq!((container.memory_bytes, container.nano_cpus), (i64::MAX, i64::MAX));
    assert_eq!(container.disk_bytes, Some(u64::MAX));
}
