use proptest::prelude::*;

use super::*;

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const INNER: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";

fn fill(dir: &Path, files: &[(&str, &str)]) {
    fs::create_dir_all(dir).unwrap();
    for (name, text) in files {
        fs::write(dir.join(name), text).unwrap();
    }
}

fn at(root: &Path, below: &str) -> Mount {
    Mount { root: "/".to_owned(), point: root.join(below) }
}

#[test]
fn version_1_is_read_from_the_group_of_each_controller() {
    let root = tempfile::tempdir().unwrap();
    let controllers = ["cpuacct", "memory", "pids", "blkio"];
    let mounts = Mounts {
        v1: controllers.map(|name| (name.to_owned(), at(root.path(), name))).into(),
        v2: Some(at(root.path(), "unified")),
    };
    let group = |name: &str| root.path().join(name).join("docker").join(ID);
    fill(&group("cpuacct"), &[("cpuacct.usage", "5000000\n")]);
    fill(
        &group("memory"),
        &[
            ("memory.usage_in_bytes", "10000\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.stat", "inactive_file 1\ntotal_inactive_file 4000\n"),
        ],
    );
    fill(&group("pids"), &[("pids.current", "3\n")]);
    let io = "8:0 Read 4096\n8:0 Write 100\n8:16 Read 4\n8:16 Sync 9\nTotal 4209\n";
    fill(&group("blkio"), &[("blkio.throttle.io_service_bytes", io)]);
    let membership = Membership::parse(&format!(
        "9:name=systemd:/docker/{ID}\n8:pids:/docker/{ID}\n7:blkio:/docker/{ID}\n\
         4:memory:/docker/{ID}\n2:cpu,cpuacct:/docker/{ID}/init.scope\n0::/\n"
    ));

    let found = usage(&membership, &mounts, ID).unwrap();

    let (cpu_ns, memory_bytes) = (5_000_000, 6000);
    let (read_bytes, write_bytes) = (4100, 100);
    let memory_limit_bytes = 0;
    let expected =
        Usage { cpu_ns, memory_bytes, memory_limit_bytes, pids: 3, read_bytes, write_bytes };
    assert_eq!(found, expected);
    assert_eq!(usage(&membership, &mounts, INNER), None, "another container's process is not read");
}

#[test]
fn version_2_is_read_from_one_group() {
    let root = tempfile::tempdir().unwrap();
    let mounts = Mounts { v1: BTreeMap::new(), v2: Some(at(root.path(), "")) };
    fill(
        &root.path().join(format!("system.slice/docker-{ID}.scope")),
        &[
            ("cpu.stat", "usage_usec 5000\nuser_usec 4000\n"),
            ("memory.current", "10000\n"),
            ("memory.max", "max\n"),
            ("memory.stat", "anon 1\ninactive_file 4000\n"),
            ("pids.current", "3\n"),
            ("io.stat", "8:0 rbytes=4096 wbytes=100 rios=1\n8:16 rbytes=4 wbytes=0\n"),
        ],
    );
    let text = format!("0::/system.slice/docker-{ID}.scope/init.scope\n");
    let membership = Membership::parse(&text);

    let found = usage(&membership, &mounts, ID).unwrap();

    let (cpu_ns, memory_bytes) = (5_000_000, 6000);
    let (read_bytes, write_bytes) = (4100, 100);
    let memory_limit_bytes = 0;
    let expected =
        Usage { cpu_ns, memory_bytes, memory_limit_bytes, pids: 3, read_bytes, write_bytes };
    assert_eq!(found, expected);
}

#[test]
fn container_ids_come_from_every_form_outermost_first() {
    let ids = |path: &str| {
        let membership = Membership::parse(&format!("4:memory:{path}\n"));
        membership.container_ids().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };

    assert_eq!(ids(&format!("/docker/{ID}")), [ID]);
    assert_eq!(ids(&format!("/user.slice/user-1000.slice/docker-{ID}.scope")), [ID]);
    assert_eq!(ids(&format!("/custom/parent/{ID}/docker/{INNER}")), [ID, INNER]);
    assert!(ids("/system.slice/ssh.service").is_empty());
}

#[test]
fn a_hierarchy_that_is_mounted_from_below_its_root_is_found() {
    let table = format!(
        "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
         35 31 0:32 /docker/{ID} /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
         41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n"
    );
    let mounts = Mounts::parse(&table);

    assert_eq!(mounts.v2.as_ref().unwrap().point, Path::new("/sys/fs/cgroup/unified"));
    let membership = Membership::parse(&format!("4:memory:/docker/{ID}/docker/{INNER}\n"));
    assert_eq!(
        membership.dir(&mounts, "memory", INNER),
        Some(PathBuf::from(format!("/sys/fs/cgroup/memory/docker/{INNER}")))
    );
    let climbing = Membership::parse(&format!("4:memory:/docker/{ID}/../{INNER}\n"));
    assert_eq!(climbing.dir(&mounts, "memory", INNER), None);
}

proptest! {
    #[test]
    fn garbage_from_the_kernel_never_panics(text in "[ -~\\n:/]{0,200}", id in ".{0,70}") {
        let membership = Membership::parse(&text);
        let _ = membership.container_ids();
        let _ = usage(&membership, &Mounts::parse(&text), &id);
        let _ = (blkio_v1(&text), io_v2(&text), keyed(&text, "usage_usec"));
    }
}
