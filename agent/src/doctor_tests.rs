use tianqi_common::unit::GpuMemoryMib;
use tianqi_common::wire::desired::GpuUuid;
use tianqi_common::wire::inventory::GpuCard;

use super::*;

type Trouble = fn(&mut Facts);

fn engine() -> DockerEngine {
    DockerEngine {
        version: "20.10.24".to_owned(),
        api_version: "1.41".to_owned(),
        cgroup_driver: "cgroupfs".to_owned(),
        cgroup_version: "1".to_owned(),
        storage_driver: "overlay2".to_owned(),
        backing_filesystem: "extfs".to_owned(),
        live_restore: true,
        gpu_support: GpuSupport::Hook,
        local: true,
    }
}

fn card() -> GpuCard {
    GpuCard {
        uuid: GpuUuid("GPU-1".to_owned()),
        index: 0,
        model: "NVIDIA L40".to_owned(),
        memory_total: GpuMemoryMib(46_068),
        memory_reserved: GpuMemoryMib(600),
        pci_bus_id: "00000000:3B:00.0".to_owned(),
        numa_node: None,
        minor: Some(0),
        sick: String::new(),
        mig_enabled: false,
    }
}

fn healthy() -> Facts {
    Facts {
        docker: Ok(engine()),
        gpus: GpuInventory { cards: vec![card()], ..GpuInventory::default() },
        hami: HamiLibrary { sha256: "abc".to_owned(), ..HamiLibrary::default() },
        preflight: Some(Preflight {
            needed: vec!["libcuda.so.1".to_owned()],
            glibc: Some((2, 17)),
        }),
        no_mounts: String::new(),
        disks: vec![(PathBuf::from("/var/lib/docker"), 100 * GIB)],
        clock_synchronised: Some(true),
        iptables: Some(PathBuf::from("/usr/sbin/iptables")),
    }
}

fn verdict(facts: &Facts, name: &str) -> Verdict {
    let lines = lines(facts);
    let worst = |line: &&Line| match line.verdict {
        Verdict::Ok => 0,
        Verdict::Warn => 1,
        Verdict::Fail => 2,
    };
    let found = lines.iter().filter(|line| line.name == name).max_by_key(worst);
    found.unwrap_or_else(|| panic!("no line {name} in {lines:?}")).verdict
}

#[test]
fn a_healthy_node_has_only_good_lines() {
    let lines = lines(&healthy());

    assert!(lines.iter().all(|line| line.verdict == Verdict::Ok), "{lines:?}");
    assert_eq!(lines[0].to_string(), "ok    docker             20.10.24, overlay2 on extfs");
    let library = lines.iter().find(|line| line.name == "hami library").unwrap();
    assert!(library.text.contains("glibc 2.17") && library.text.contains("driver's libraries"));
}

#[test]
fn each_trouble_has_its_line() {
    let spoil = |spoil: fn(&mut Facts)| {
        let mut facts = healthy();
        spoil(&mut facts);
        facts
    };
    let cases: [(&str, Verdict, Trouble); 12] = [
        ("docker", Verdict::Fail, |f| f.docker = Err("no such file".to_owned())),
        ("docker api", Verdict::Fail, |f| f.docker.as_mut().unwrap().api_version = "1.40".into()),
        ("cgroup driver", Verdict::Warn, |f| {
            f.docker.as_mut().unwrap().cgroup_driver = "systemd".into();
        }),
        ("live-restore", Verdict::Warn, |f| f.docker.as_mut().unwrap().live_restore = false),
        ("container toolkit", Verdict::Fail, |f| {
            f.docker.as_mut().unwrap().gpu_support = GpuSupport::None;
        }),
        ("nvidia driver", Verdict::Warn, |f| f.gpus.unavailable = "no driver".into()),
        ("nvml", Verdict::Warn, |f| f.gpus.cards[0].sick = "lost".into()),
        ("hami library", Verdict::Warn, |f| f.hami.unusable = "missing".into()),
        ("slices", Verdict::Fail, |f| f.no_mounts = "not root".into()),
        ("disk", Verdict::Fail, |f| f.disks[0].1 = 1),
        ("clock", Verdict::Warn, |f| f.clock_synchronised = Some(false)),
        ("iptables", Verdict::Fail, |f| f.iptables = None),
    ];
    for (name, expected, trouble) in cases {
        assert_eq!(verdict(&spoil(trouble), name), expected, "{name}");
    }
}

#[test]
fn a_newer_engine_is_as_good() {
    let mut facts = healthy();
    facts.docker.as_mut().unwrap().api_version = "1.52".to_owned();

    assert_eq!(verdict(&facts, "docker api"), Verdict::Ok);
}

#[test]
fn this_machine_can_be_asked() {
    let _ = clock_synchronised();

    assert_eq!(program("surely-not-a-program"), None);
    assert!(program("sh").is_some());
}
