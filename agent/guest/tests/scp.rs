//! `tianqi-guest scp` with OpenSSH's own `scp`, and with lines that it would not send.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod tree;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use tempfile::TempDir;

const GUEST: &str = env!("CARGO_BIN_EXE_tianqi-guest");

/// What `scp` starts instead of `ssh`: the far side here, with its home as the working directory.
const FAKE_SSH: &str = r#"#!/bin/sh
subsystem=
while :; do
    case $1 in
    --) shift; break ;;
    -s) subsystem=1; shift ;;
    -l | -p | -o) shift 2 ;;
    -*) shift ;;
    *) break ;;
    esac
done
shift
cd "$HOME" || exit 9
[ -z "$subsystem" ] || exec "$GUEST" sftp
eval "exec \"\$GUEST\" $*"
"#;

struct Sides {
    local: TempDir,
    home: TempDir,
    ssh: PathBuf,
}

impl Sides {
    fn new() -> Self {
        let (local, home) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let ssh = home.path().with_extension("ssh");
        fs::write(&ssh, FAKE_SSH).unwrap();
        fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
        Self { local, home, ssh }
    }

    fn local(&self, name: &str) -> PathBuf {
        self.local.path().join(name)
    }

    fn home(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn scp(&self, arguments: &[&str]) -> Output {
        Command::new("scp")
            .arg("-S")
            .arg(&self.ssh)
            .args(arguments)
            .current_dir(self.local.path())
            .env("HOME", self.home.path())
            .env("GUEST", GUEST)
            .output()
            .unwrap()
    }

    fn scp_ok(&self, arguments: &[&str]) {
        let output = self.scp(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
    }

    /// Speaks to the far side by hand; returns its exit code and what it answered.
    fn speak(&self, arguments: &[&str], bytes: &[u8]) -> (Option<i32>, Vec<u8>) {
        let mut child = Command::new(GUEST)
            .arg("scp")
            .args(arguments)
            .current_dir(self.home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The far side may have ended before everything was written.
        let _ = child.stdin.take().unwrap().write_all(bytes);
        let output = child.wait_with_output().unwrap();
        (output.status.code(), output.stdout)
    }
}

impl Drop for Sides {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.ssh);
    }
}

#[test]
fn trees_go_there_and_come_back_with_the_old_protocol_and_the_new() {
    for protocol in ["-O", "-s"] {
        let sides = Sides::new();
        tree::plant(&sides.local("tree"), 8_000_000);

        sides.scp_ok(&[protocol, "-r", "tree", "host:there"]);
        sides.scp_ok(&[protocol, "-r", "host:there", "back"]);

        tree::assert_same(&sides.local("tree"), &sides.home("there"));
        tree::assert_same(&sides.local("tree"), &sides.local("back"));
    }
}

#[test]
fn several_files_and_wildcards_go_into_a_directory() {
    let sides = Sides::new();
    for name in ["a.txt", "b.txt", "c d.txt"] {
        fs::write(sides.local(name), name).unwrap();
    }
    fs::create_dir(sides.home("in")).unwrap();
    fs::create_dir(sides.local("out")).unwrap();

    sides.scp_ok(&["-O", "a.txt", "b.txt", "c d.txt", "host:in"]);
    sides.scp_ok(&["-O", "host:in/*.txt", "out"]);

    tree::assert_same(&sides.home("in"), &sides.local("out"));
    assert_eq!(fs::read_to_string(sides.local("out/c d.txt")).unwrap(), "c d.txt");
    let refused = sides.scp(&["-O", "a.txt", "b.txt", "host:in/a.txt"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Not a directory"));
}

#[test]
fn modes_and_times_are_kept_when_asked_for() {
    let sides = Sides::new();
    fs::create_dir(sides.local("d")).unwrap();
    fs::write(sides.local("d/a"), "a").unwrap();
    let then = UNIX_EPOCH + Duration::from_secs(1_500_000_000);
    fs::File::open(sides.local("d/a")).unwrap().set_modified(then).unwrap();
    fs::File::open(sides.local("d")).unwrap().set_modified(then).unwrap();
    fs::set_permissions(sides.local("d/a"), fs::Permissions::from_mode(0o466)).unwrap();
    fs::set_permissions(sides.local("d"), fs::Permissions::from_mode(0o577)).unwrap();

    sides.scp_ok(&["-O", "-rp", "d", "host:there"]);
    sides.scp_ok(&["-O", "-rp", "host:there", "back"]);

    let kept = |path: PathBuf| {
        let metadata = fs::metadata(path).unwrap();
        (metadata.mode() & 0o7777, metadata.mtime())
    };
    for folder in [sides.home("there"), sides.local("back")] {
        assert_eq!(kept(folder.join("a")), (0o466, 1_500_000_000));
        assert_eq!(kept(folder), (0o577, 1_500_000_000));
    }
}

#[test]
fn a_longer_file_is_cut_and_keeps_its_mode() {
    let sides = Sides::new();
    fs::write(sides.local("a"), "short").unwrap();
    fs::write(sides.home("a"), "much longer than that").unwrap();
    fs::set_permissions(sides.home("a"), fs::Permissions::from_mode(0o600)).unwrap();

    sides.scp_ok(&["-O", "a", "host:a"]);

    assert_eq!(fs::read_to_string(sides.home("a")).unwrap(), "short");
    assert_eq!(fs::metadata(sides.home("a")).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn links_that_lead_back_and_pipes_are_named_and_the_rest_is_copied() {
    let sides = Sides::new();
    fs::create_dir_all(sides.home("d/e")).unwrap();
    symlink("..", sides.home("d/e/back")).unwrap();
    symlink("self", sides.home("d/self")).unwrap();
    nix::unistd::mkfifo(&sides.home("d/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::write(sides.home("d/e/file\nbroken"), "").unwrap();
    fs::write(sides.home("d/e/file"), "text").unwrap();

    let output = sides.scp(&["-O", "-r", "host:d", "d"]);

    assert_eq!(output.status.code(), Some(1));
    assert_eq!(fs::read_to_string(sides.local("d/e/file")).unwrap(), "text");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said.matches("Too many").count(), 2, "{said}");
    assert!(said.contains("d/pipe: not a regular file"), "{said}");
    assert!(said.contains("d/e/file?broken: a name with a line break"), "{said}");
    assert!(!sides.local("d/e/back").exists());
}

#[test]
fn a_full_disk_is_said_after_everything_was_taken() {
    let sides = Sides::new();
    let mut bytes = b"C0644 600000 full\n".to_vec();
    bytes.extend_from_slice(&vec![b'x'; 600_000]);
    bytes.extend_from_slice(b"\0C0644 1 next\ny\0");

    let (code, said) = sides.speak(&["-t", "/dev/full"], &bytes);

    assert_eq!(code, Some(1));
    let full = b"\x01scp: /dev/full: No space left on device\n";
    assert_eq!(said, [b"\0\0".as_slice(), full, b"\0", full].concat());
}

#[test]
fn names_that_lead_elsewhere_end_the_copy() {
    for line in [
        "C0644 1 ../out",
        "C0644 1 ..",
        "C0644 1 /tmp/out",
        "D0755 0 ..",
        "C0644 1 ",
        "C644 1 a",
        "C0644 -1 a",
        "C0644 99999999999999999999 a",
        "T1 1",
        "E",
        "X",
        "D0755 0 not-recursive",
    ] {
        let sides = Sides::new();
        fs::create_dir(sides.home("in")).unwrap();
        let recursive = if line.contains("not-recursive") { "-t" } else { "-rt" };

        let (code, said) = sides.speak(&[recursive, "in"], format!("{line}\nx\0").as_bytes());

        assert_eq!(code, Some(1), "{line}");
        assert!(said.starts_with(b"\0\x01scp: protocol error: "), "{line}");
        assert_eq!(fs::read_dir(sides.home("in")).unwrap().count(), 0, "{line}");
        assert_eq!(fs::read_dir(sides.home.path()).unwrap().count(), 1, "{line}");
    }
}

#[test]
fn what_never_ends_and_what_ends_early_ends_the_copy() {
    let sides = Sides::new();
    let endless = [b"C0644 1 ".as_slice(), &vec![b'a'; 10_000_000]].concat();

    assert_eq!(sides.speak(&["-t", "a"], &endless).0, Some(1));
    assert_eq!(sides.speak(&["-t", "a"], b"C0644 1").0, Some(1));
    assert_eq!(sides.speak(&["-t", "a"], b"C0644 18446744073709551615 a\nabc").0, Some(1));
    assert_eq!(sides.speak(&["-rt", "b"], b"D0755 0 b\n").0, Some(1));
    assert_eq!(sides.speak(&["-t", "a"], b"\x02gone\n").0, Some(1));
    assert_eq!(sides.speak(&["-t", "a"], b"").0, Some(0));
    assert_eq!(sides.speak(&["-f", "a"], b"\0").0, Some(1));
    assert_eq!(sides.speak(&["-f", "a"], b"").0, Some(1));
    assert_eq!(sides.speak(&["-f"], b"").0, Some(2));
    assert_eq!(sides.speak(&["-t", "-f", "a"], b"").0, Some(2));
    assert_eq!(sides.speak(&["-t", "a", "b"], b"").0, Some(2));
}

#[test]
fn what_the_user_may_not_do_is_said() {
    let sides = Sides::new();
    fs::write(sides.home("secret"), "x").unwrap();
    fs::set_permissions(sides.home("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(sides.home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let guest = sides.home("guest");
    fs::copy(GUEST, &guest).unwrap();
    // Root may do everything, so the test goes on as somebody else.
    let nobody = |arguments: &[&str], bytes: &[u8]| {
        let mut command = Command::new(&guest);
        command.arg("scp").args(arguments).current_dir(sides.home.path());
        if nix::unistd::geteuid().is_root() {
            command.uid(65_534).gid(65_534);
        } else {
            fs::set_permissions(sides.home("secret"), fs::Permissions::from_mode(0o0)).unwrap();
            fs::set_permissions(sides.home.path(), fs::Permissions::from_mode(0o555)).unwrap();
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    };

    assert_eq!(nobody(&["-f", "secret"], b"\0"), "\x01scp: secret: Permission denied\n");
    let said = nobody(&["-t", "."], b"C0644 1 new\nC0644 1 secret\n");
    let refused = "\0\x01scp: ./new: Permission denied\n\x01scp: ./secret: Permission denied\n";
    assert_eq!(said, refused);
}
