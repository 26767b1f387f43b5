//! Images made on the spot, because no registry can be reached in tests.
//!
//! Each function imports its image into the engine unless it is there, and returns its reference.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::dockerd::Dockerd;

/// Ends at once on `SIGTERM`, unlike a bare `sleep` as process 1.
const IDLE: &str = "CMD [\"/bin/sh\",\"-c\",\"trap 'exit 0' TERM; echo ready; while :; do sleep 3600 & wait $!; done\"]";

/// Imports a small system of busybox that prints `ready` and idles until it is told to stop.
pub fn busybox(engine: &Dockerd) -> &'static str {
    import(engine, "tianqi/busybox:1", IDLE, &busybox_tar())
}

/// Imports an image whose process ends at once with exit code 3 and the line `no luck`.
pub fn failing(engine: &Dockerd) -> &'static str {
    let cmd = "CMD [\"/bin/sh\",\"-c\",\"echo no luck >&2; exit 3\"]";
    import(engine, "tianqi/failing:1", cmd, &busybox_tar())
}

/// Imports an image whose process takes no notice of `SIGTERM`.
pub fn stubborn(engine: &Dockerd) -> &'static str {
    let cmd = "CMD [\"/bin/sh\",\"-c\",\"trap '' TERM; echo ready; while :; do sleep 1; done\"]";
    import(engine, "tianqi/stubborn:1", cmd, &busybox_tar())
}

/// Imports an image whose process fills its log as fast as it can.
pub fn chatty(engine: &Dockerd) -> &'static str {
    let cmd = "CMD [\"/bin/sh\",\"-c\",\"yes a line of a log that never ends\"]";
    import(engine, "tianqi/chatty:1", cmd, &busybox_tar())
}

/// Imports an image whose first process cannot be started.
pub fn broken(engine: &Dockerd) -> &'static str {
    import(engine, "tianqi/broken:1", "CMD [\"/bin/does-not-exist\"]", &busybox_tar())
}

/// Imports a minimal Debian (glibc, bash, su, perl, vim, tmux, rsync, top; no SSH of any kind) that
/// idles. Making it takes a Debian mirror and about two minutes, once for each target folder.
pub fn debian(engine: &Dockerd) -> &'static str {
    import(engine, "tianqi/debian:12-3", IDLE, &debian_tar())
}

/// Imports the same Debian as an image that says it is run as `nobody`.
pub fn debian_of_nobody(engine: &Dockerd) -> &'static str {
    import_with(engine, "tianqi/debian-nobody:12-3", &[IDLE, "USER nobody"], &debian_tar())
}

/// Returns the tar archive that [`busybox`] is imported from.
pub fn busybox_tar() -> PathBuf {
    cached("busybox.tar", |path| {
        let root = path.with_extension("root");
        let script = r#"
            set -e
            rm -rf "$1"
            mkdir -p "$1/bin" "$1/etc" "$1/root" "$1/proc" "$1/sys" "$1/dev"
            mkdir -m 1777 "$1/tmp"
            cp /bin/busybox "$1/bin/busybox"
            for applet in $(/bin/busybox --list); do
                [ "$applet" = busybox ] || ln -s busybox "$1/bin/$applet"
            done
            echo 'root:x:0:0:root:/root:/bin/sh' >"$1/etc/passwd"
            echo 'nobody:x:65534:65534:nobody:/:/bin/sh' >>"$1/etc/passwd"
            echo 'root:x:0:' >"$1/etc/group"
            tar --numeric-owner --owner=0 --group=0 -C "$1" -cf "$2" .
            rm -rf "$1"
        "#;
        assert!(
            Path::new("/bin/busybox").exists(),
            "busybox-static is not installed: `make test` installs it"
        );
        run(Command::new("sh").args(["-c", script, "busybox-tar"]).arg(root).arg(path));
    })
}

/// Returns the tar archive that [`debian`] is imported from.
pub fn debian_tar() -> PathBuf {
    cached("debian-12-3.tar", |path| {
        run(Command::new("mmdebstrap")
            .args(["--variant=minbase", "--dpkgopt=path-exclude=/usr/share/doc/*"])
            .args(["--include=vim-tiny,tmux,rsync,procps", "--format=tar", "bookworm"])
            .arg(path));
    })
}

fn import(engine: &Dockerd, name: &'static str, cmd: &str, tar: &Path) -> &'static str {
    import_with(engine, name, &[cmd], tar)
}

fn import_with(engine: &Dockerd, name: &'static str, changes: &[&str], tar: &Path) -> &'static str {
    if !engine.try_docker(&["image", "inspect", name]).status.success() {
        let env = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let tar = tar.to_string_lossy();
        let changes = changes.iter().chain([&env]).flat_map(|change| ["--change", change]);
        let args: Vec<&str> = ["import"].into_iter().chain(changes).chain([&*tar, name]).collect();
        engine.docker(&args);
    }
    name
}

/// Returns the path of a file in `target/tianqi-images`, made once by `make` even when several
/// test binaries ask at the same time.
fn cached(name: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tianqi-images");
    fs::create_dir_all(&folder).expect("folder of images");
    let lock = File::create(folder.join(format!("{name}.lock"))).expect("lock of an image");
    lock.lock().expect("lock of an image");
    let path = folder.join(name);
    if !path.exists() {
        let unfinished = folder.join(format!("unfinished-{name}"));
        make(&unfinished);
        fs::rename(&unfinished, &path).expect("image is kept");
    }
    path
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().expect("the command runs");
    assert!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
