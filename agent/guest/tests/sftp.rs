//! `tianqi-guest sftp` with OpenSSH's own client.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod tree;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

const GUEST: &str = env!("CARGO_BIN_EXE_tianqi-guest");

/// A folder on this side and a home on the other.
struct Sides {
    local: TempDir,
    home: TempDir,
}

impl Sides {
    fn new() -> Self {
        Self { local: TempDir::new().unwrap(), home: TempDir::new().unwrap() }
    }

    fn local(&self, name: &str) -> std::path::PathBuf {
        self.local.path().join(name)
    }

    fn home(&self, name: &str) -> std::path::PathBuf {
        self.home.path().join(name)
    }

    /// Runs lines in OpenSSH's client, which speaks to the guest over one socket.
    fn sftp(&self, lines: &str) -> Output {
        let mut child = Command::new("sftp")
            .args(["-q", "-b", "-", "-D", &format!("env -C / {GUEST} sftp")])
            .current_dir(self.local.path())
            .env("HOME", self.home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// As [`Sides::sftp`], and everything must have worked.
    fn sftp_ok(&self, lines: &str) -> String {
        let output = self.sftp(lines);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}\n{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

#[test]
fn tree_goes_there_and_comes_back_the_same() {
    let sides = Sides::new();
    tree::plant(&sides.local("tree"), 50 * 1024 * 1024);

    sides.sftp_ok("put -r tree there\nget -r there back\n");

    tree::assert_same(&sides.local("tree"), &sides.home("there"));
    tree::assert_same(&sides.local("tree"), &sides.local("back"));
}

#[test]
fn modes_and_times_are_kept_when_asked_for() {
    let sides = Sides::new();
    fs::write(sides.local("a"), "a").unwrap();
    fs::set_permissions(sides.local("a"), fs::Permissions::from_mode(0o640)).unwrap();
    let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_500_000_000);
    fs::File::options().write(true).open(sides.local("a")).unwrap().set_modified(then).unwrap();

    sides.sftp_ok("put -p a there\nget -p there back\n");

    for file in [sides.home("there"), sides.local("back")] {
        let metadata = fs::metadata(file).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.mtime()), (0o640, 1_500_000_000));
    }
}

#[test]
fn paths_begin_at_home_and_lead_where_they_say() {
    let sides = Sides::new();
    let home = fs::canonicalize(sides.home.path()).unwrap();
    fs::create_dir(sides.home("d")).unwrap();
    symlink("d", sides.home("link")).unwrap();

    let said = sides.sftp_ok("pwd\ncd link/../d\npwd\ncd ..\npwd\n");

    let wanted: Vec<String> = [&home, &home.join("d"), &home]
        .map(|path| format!("Remote working directory: {}", path.display()))
        .to_vec();
    let said: Vec<&str> = said.lines().filter(|line| line.starts_with("Remote")).collect();
    assert_eq!(said, wanted);
}

#[test]
fn files_are_renamed_linked_copied_and_removed() {
    let sides = Sides::new();
    fs::write(sides.home("old"), "new text").unwrap();
    fs::write(sides.home("there"), "old text").unwrap();

    sides.sftp_ok(
        "rename old there\nln there hard\nln -s there soft\ncopy there copied\n\
         mkdir made\nrmdir made\nmkdir kept\nchmod 750 kept\ncopy there gone\nrm gone\n",
    );

    assert_eq!(fs::read_to_string(sides.home("there")).unwrap(), "new text");
    assert!(!sides.home("old").exists() && !sides.home("made").exists());
    assert!(!sides.home("gone").exists());
    assert_eq!(fs::metadata(sides.home("hard")).unwrap().nlink(), 2);
    assert_eq!(fs::read_link(sides.home("soft")).unwrap(), Path::new("there"));
    assert_eq!(fs::read_to_string(sides.home("copied")).unwrap(), "new text");
    assert_eq!(fs::metadata(sides.home("kept")).unwrap().mode() & 0o7777, 0o750);
}

#[test]
fn listings_show_what_ls_shows() {
    let sides = Sides::new();
    fs::write(sides.home("数据 一"), "12345").unwrap();
    fs::set_permissions(sides.home("数据 一"), fs::Permissions::from_mode(0o4755)).unwrap();
    for number in 0..250 {
        fs::write(sides.home.path().join(format!("n{number:03}")), "").unwrap();
    }

    let said = sides.sftp_ok("ls -la\ndf\n");

    let line = said.lines().find(|line| line.ends_with("数据 一")).unwrap();
    let ls = Command::new("ls").arg("-ln").current_dir(sides.home.path()).output().unwrap();
    let ls = String::from_utf8(ls.stdout).unwrap();
    let wanted = ls.lines().find(|line| line.ends_with("数据 一") || line.contains("\\")).unwrap();
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let (line, wanted) = (words(line), words(wanted));
    // Mode, size, month, day, time; the owner is a name here and a number there.
    for column in [0, 4, 5, 6, 7] {
        assert_eq!(line[column], wanted[column], "{line:?} {wanted:?}");
    }
    let is_root = nix::unistd::geteuid().is_root();
    assert!(!is_root || line[2] == "root" && line[3] == "root", "{line:?}");
    assert_eq!(said.lines().filter(|line| line.contains(" n")).count(), 250);
    for dots in [" .", " .."] {
        assert!(said.lines().any(|line| line.ends_with(dots)));
    }
    assert!(said.contains("%Capacity"), "{said}");
}

#[test]
fn broken_transfers_go_on_where_they_stopped() {
    let sides = Sides::new();
    let whole = tree::bytes(3_000_000, 7);
    fs::write(sides.local("up"), &whole).unwrap();
    fs::write(sides.home("up"), &whole[..1_234_567]).unwrap();
    fs::write(sides.home("down"), &whole).unwrap();
    fs::write(sides.local("down"), &whole[..1_000_001]).unwrap();

    sides.sftp_ok("reput up up\nreget down down\n");

    assert!(fs::read(sides.home("up")).unwrap() == whole);
    assert!(fs::read(sides.local("down")).unwrap() == whole);
}

#[test]
fn what_cannot_be_done_is_said_and_the_session_goes_on() {
    let sides = Sides::new();
    symlink("loop", sides.home("loop")).unwrap();
    fs::create_dir(sides.home("full")).unwrap();
    fs::write(sides.home("full/file"), "").unwrap();

    let output = sides.sftp(
        "-get missing\n-get loop\n-rmdir full\n-mkdir full\n-rm full\n-cd full/file\n-get full\n\
         mkdir after\n",
    );

    assert!(output.status.success());
    assert!(sides.home("after").is_dir());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("not found") || said.contains("No such file"), "{said}");
    assert!(said.contains("Failure"), "{said}");
}

#[test]
fn strange_names_keep_their_bytes() {
    let sides = Sides::new();
    // The word "data" in GB 18030, as an archive from an older machine leaves it.
    let name = std::ffi::OsStr::from_bytes(b"\xca\xfd\xbe\xdd.txt");
    fs::create_dir(sides.home("d")).unwrap();
    fs::write(sides.home("d").join(name), "text").unwrap();

    sides.sftp_ok("get -r d d\nput -r d e\n");

    assert_eq!(fs::read_to_string(sides.local("d").join(name)).unwrap(), "text");
    assert_eq!(fs::read_to_string(sides.home("e").join(name)).unwrap(), "text");
}

#[test]
fn guest_ends_with_zero_when_the_client_leaves_and_with_one_after_nonsense() {
    let end = |bytes: &[u8]| {
        let home = TempDir::new().unwrap();
        let mut child = Command::new(GUEST)
            .arg("sftp")
            .current_dir("/")
            .env("HOME", home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        // The guest may have ended before everything was written.
        let _ = input.write_all(bytes);
        drop(input);
        let mut said = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut said).unwrap();
        (child.wait().unwrap().code(), said.len())
    };

    assert_eq!(end(b""), (Some(0), 0));
    assert_eq!(end(b"\0\0"), (Some(0), 0));
    assert_eq!(end(b"GET / HTTP/1.1\r\n\r\n"), (Some(1), 0));
    assert_eq!(end(b"\xff\xff\xff\xff"), (Some(1), 0));
    assert_eq!(end(b"\0\0\0\0"), (Some(1), 0));
    assert_eq!(end(b"\0\0\0\x05\x10\0\0\0\x01"), (Some(1), 0));
    assert!(matches!(end(b"\0\0\0\x05\x01\0\0\0\x03"), (Some(0), 1..)));
}
