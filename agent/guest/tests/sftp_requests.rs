//! `tianqi-guest sftp` spoken to by hand: what OpenSSH's client does not ask for.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod client;
mod tree;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::process::Command;

use tempfile::TempDir;

use self::client::{Client, word};

const GUEST: &str = env!("CARGO_BIN_EXE_tianqi-guest");

const OK: u32 = 0;
const EOF: u32 = 1;
const NO_SUCH_FILE: u32 = 2;
const DENIED: u32 = 3;
const FAILURE: u32 = 4;
const BAD_MESSAGE: u32 = 5;
const UNSUPPORTED: u32 = 8;

const READ: u32 = 1;
const WRITE: u32 = 2;
const APPEND: u32 = 4;
const CREATE: u32 = 8;
const TRUNCATE: u32 = 16;
const EXCLUSIVE: u32 = 32;

#[test]
fn open_flags_mean_what_they_say() {
    let mut client = Client::new();

    let file = client.open("a", WRITE | CREATE | EXCLUSIVE).handle().to_vec();
    assert_eq!(client.ask(6, &fields!(file.as_slice(), 3_u64, "abc")).code(), OK);
    assert_eq!(client.ask(5, &fields!(file.as_slice(), 0_u64, 9_u32)).code(), NO_SUCH_FILE);
    assert_eq!(client.ask(4, &fields!(file.as_slice())).code(), OK);
    assert_eq!(fs::read(client.home("a")).unwrap(), b"\0\0\0abc");
    assert_eq!(client.open("a", WRITE | CREATE | EXCLUSIVE).code(), FAILURE);
    assert_eq!(client.open("b", WRITE).code(), NO_SUCH_FILE);

    let file = client.open("a", WRITE | APPEND).handle().to_vec();
    assert_eq!(client.ask(6, &fields!(file.as_slice(), 0_u64, "def")).code(), OK);
    assert_eq!(fs::read(client.home("a")).unwrap(), b"\0\0\0abcdef");

    let file = client.open("a", READ).handle().to_vec();
    let read = client.ask(5, &fields!(file.as_slice(), 6_u64, u32::MAX));
    assert_eq!((read.kind, &read.body[4..]), (103, b"def".as_slice()));
    assert_eq!(client.ask(5, &fields!(file.as_slice(), 9_u64, 1_u32)).code(), EOF);
    assert_eq!(client.ask(5, &fields!(file.as_slice(), u64::MAX, 1_u32)).code(), BAD_MESSAGE);
    assert_eq!(client.ask(6, &fields!(file.as_slice(), 0_u64, "x")).code(), NO_SUCH_FILE);

    client.open("a", WRITE | TRUNCATE).handle();
    assert_eq!(fs::metadata(client.home("a")).unwrap().len(), 0);
    client.leave();
}

#[test]
fn a_read_carries_as_much_as_the_limits_say() {
    let mut client = Client::new();
    let content = tree::bytes(300_000, 3);
    fs::write(client.home("a"), &content).unwrap();

    let limits = client.extended("limits@openssh.com", b"");
    let file = client.open("a", READ).handle().to_vec();
    let read = client.ask(5, &fields!(file.as_slice(), 0_u64, u32::MAX));

    assert_eq!(limits.body, fields!(262_144_u64, 261_120_u64, 261_120_u64, 512_u64));
    assert_eq!(read.body.len(), 4 + 261_120);
    assert!(read.body[4..] == content[..261_120]);
    client.leave();
}

#[test]
fn handles_are_counted_and_strange_ones_refused() {
    let mut client = Client::new();
    fs::write(client.home("a"), "").unwrap();

    let mut handles: Vec<Vec<u8>> = Vec::new();
    for number in 0..512 {
        let reply =
            if number % 2 == 0 { client.open("a", READ) } else { client.ask(11, &fields!(".")) };
        handles.push(reply.handle()[..].to_vec());
    }

    assert_eq!(client.open("b", WRITE | CREATE).code(), FAILURE);
    assert!(!client.home("b").exists());
    let (file, directory) = (handles[0][..].to_vec(), handles[1][..].to_vec());
    assert_eq!(client.ask(12, &fields!(file.as_slice())).code(), FAILURE);
    assert_eq!(client.ask(5, &fields!(directory.as_slice(), 0_u64, 1_u32)).code(), FAILURE);
    assert_eq!(client.ask(4, &fields!(file.as_slice())).code(), OK);
    assert_eq!(client.ask(4, &fields!(file.as_slice())).code(), FAILURE);
    for strange in ["", "abc", "\u{7f}\u{7f}\u{7f}\u{7f}", "far too long"] {
        assert_eq!(client.ask(4, &fields!(strange)).code(), FAILURE);
    }
    assert_ne!(client.open("b", WRITE | CREATE).handle(), file);
    client.leave();
}

#[test]
fn rename_leaves_what_is_there_and_the_extension_replaces_it() {
    let mut client = Client::new();
    fs::write(client.home("a"), "a").unwrap();
    fs::write(client.home("b"), "b").unwrap();

    assert_eq!(client.ask(18, &fields!("a", "b")).code(), FAILURE);
    assert_eq!(fs::read(client.home("b")).unwrap(), b"b");
    assert_eq!(client.ask(18, &fields!("a", "c")).code(), OK);
    assert_eq!(client.extended("posix-rename@openssh.com", &fields!("c", "b")).code(), OK);
    assert_eq!(fs::read(client.home("b")).unwrap(), b"a");
    client.leave();
}

#[test]
fn attributes_are_set_on_paths_links_and_files() {
    let mut client = Client::new();
    fs::write(client.home("a"), "12345").unwrap();
    symlink("a", client.home("link")).unwrap();
    let link_mtime = || 1_600_000_000_u32;

    // Size, mode and times in one request.
    let all = fields!("a", 0xd_u32, 3_u64, 0o100_640_u32, 5_u32, 1_500_000_000_u32);
    assert_eq!(client.ask(9, &all).code(), OK);
    let times = fields!("link", 8_u32, 7_u32, link_mtime());
    assert_eq!(client.extended("lsetstat@openssh.com", &times).code(), OK);

    let file = fs::metadata(client.home("a")).unwrap();
    assert_eq!((file.len(), file.mode() & 0o7777), (3, 0o640));
    assert_eq!((file.atime(), file.mtime()), (5, 1_500_000_000));
    assert_eq!(fs::symlink_metadata(client.home("link")).unwrap().mtime(), 1_600_000_000);

    let file = client.open("a", READ | WRITE).handle().to_vec();
    let set = fields!(file.as_slice(), 0x5_u32, 9_u64, 0o600_u32);
    assert_eq!(client.ask(10, &set).code(), OK);
    let stat = client.ask(8, &fields!(file.as_slice()));
    assert_eq!((stat.kind, &stat.body[..12]), (105, fields!(0xf_u32, 9_u64).as_slice()));
    // What can be set is set, though the size cannot be.
    let half = fields!("a", 0x5_u32, u64::MAX, 0o644_u32);
    assert_eq!(client.ask(9, &half).code(), FAILURE);
    assert_eq!(fs::metadata(client.home("a")).unwrap().mode() & 0o7777, 0o644);
    client.leave();
}

#[test]
fn paths_are_made_real_even_when_their_last_part_is_missing() {
    let mut client = Client::new();
    let home = fs::canonicalize(client.home.path()).unwrap();
    fs::create_dir(client.home("d")).unwrap();
    symlink("d/later", client.home("dangling")).unwrap();
    symlink("loop", client.home("loop")).unwrap();
    let real = |client: &mut Client, path: &str| client.ask(16, &fields!(path));

    for (path, wanted) in [
        ("", home.clone()),
        (".", home.clone()),
        ("d/..", home.clone()),
        ("new", home.join("new")),
        ("d/../d/new", home.join("d/new")),
        ("dangling", home.join("d/later")),
        ("/", "/".into()),
    ] {
        assert_eq!(real(&mut client, path).name(), wanted, "{path}");
    }
    for path in ["missing/new", "loop", "missing/..", "d/../missing/../d"] {
        assert_eq!(real(&mut client, path).code(), NO_SUCH_FILE, "{path}");
    }
    let expanded = client.extended("expand-path@openssh.com", &fields!("~/d"));
    assert_eq!(expanded.name(), home.join("d"));
    let nobody = client.extended("expand-path@openssh.com", &fields!("~no such user/x"));
    assert_eq!(nobody.code(), NO_SUCH_FILE);
    let home_said = client.extended("home-directory", &fields!("")).name();
    assert_eq!(home_said, home);
    client.leave();
}

#[test]
fn long_names_are_those_of_ls() {
    let mut client = Client::new();
    fs::write(client.home("old"), "12345").unwrap();
    let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    fs::File::open(client.home("old")).unwrap().set_modified(then).unwrap();
    fs::set_permissions(client.home("old"), fs::Permissions::from_mode(0o640)).unwrap();
    let id = |flag: &str| {
        String::from_utf8(Command::new("id").arg(flag).output().unwrap().stdout).unwrap()
    };
    let (user, group) = (id("-un"), id("-gn"));

    let directory = client.ask(11, &fields!(".")).handle().to_vec();
    let names = client.ask(12, &fields!(directory.as_slice()));

    assert_eq!((names.kind, word(&names.body)), (104, 3));
    let said = String::from_utf8_lossy(&names.body).into_owned();
    let (user, group) = (user.trim(), group.trim());
    let wanted = format!("-rw-r-----   1 {user:<8} {group:<8}        5 Sep  9  2001 old");
    assert!(said.contains(&wanted), "{said}");
    assert_eq!(client.ask(12, &fields!(directory.as_slice())).code(), EOF);
    client.leave();
}

#[test]
fn numbers_are_told_their_names() {
    let mut client = Client::new();

    let ids = [0_u32.to_be_bytes(), 4_000_000_000_u32.to_be_bytes()].concat();
    let ids = ids.as_slice();
    let reply = client.extended("users-groups-by-id@openssh.com", &fields!(ids, ids));

    let names = fields!("root", "");
    assert_eq!(reply.body, fields!(names.as_slice(), names.as_slice()));
    let many = vec![0; 200_000];
    let ids = fields!(many.as_slice(), "");
    assert_eq!(client.extended("users-groups-by-id@openssh.com", &ids).code(), FAILURE);
    client.leave();
}

#[test]
fn pipes_and_odd_paths_are_refused_at_once() {
    let mut client = Client::new();
    nix::unistd::mkfifo(&client.home("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink("loop", client.home("loop")).unwrap();
    let long = "x".repeat(100_000);

    let pipe = client.open("pipe", READ).handle().to_vec();
    assert_eq!(client.ask(5, &fields!(pipe.as_slice(), 0_u64, 1_u32)).code(), FAILURE);
    assert_eq!(client.open("pipe", WRITE).code(), 1102);
    client.ask(4, &fields!(pipe.as_slice()));
    for (path, wanted) in [("", NO_SUCH_FILE), ("loop", NO_SUCH_FILE), ("a\0b", BAD_MESSAGE)] {
        assert_eq!(client.open(path, READ).code(), wanted, "{path}");
        assert_eq!(client.ask(17, &fields!(path)).code(), wanted, "{path}");
        assert_eq!(client.ask(11, &fields!(path)).code(), wanted, "{path}");
    }
    assert_eq!(client.open(&long, READ).code(), BAD_MESSAGE);
    assert_eq!(client.ask(20, &fields!(long.as_str(), "l")).code(), BAD_MESSAGE);
    client.leave();
}

#[test]
fn what_the_user_may_not_do_is_denied() {
    let home = TempDir::new().unwrap();
    let guest = home.path().join("guest");
    fs::copy(GUEST, &guest).unwrap();
    fs::write(home.path().join("secret"), "x").unwrap();
    fs::set_permissions(home.path().join("secret"), fs::Permissions::from_mode(0o0)).unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o555)).unwrap();
    // Root may do everything, so the guest runs as somebody else.
    let user = nix::unistd::geteuid().is_root().then_some(65_534);
    let mut client = Client::with(&guest, home, user);

    assert_eq!(client.open("secret", READ).code(), DENIED);
    assert_eq!(client.open("new", WRITE | CREATE).code(), DENIED);
    assert_eq!(client.ask(14, &fields!("d", 0_u32)).code(), DENIED);
    assert_eq!(client.ask(13, &fields!("secret")).code(), DENIED);
    client.leave();
}

#[test]
fn requests_that_make_no_sense_are_refused_one_by_one() {
    let mut client = Client::new();

    for kind in [2, 21, 99, 101, 199, 201, 255] {
        assert_eq!(client.ask(kind, b"").code(), UNSUPPORTED, "{kind}");
    }
    for kind in (3..=20).chain([200]) {
        assert_eq!(client.ask(kind, b"").code(), BAD_MESSAGE, "{kind}");
        assert_eq!(client.ask(kind, b"\xff\xff\xff\xffabc").code(), BAD_MESSAGE, "{kind}");
    }
    assert_eq!(client.extended("nobody@example.com", b"").code(), UNSUPPORTED);
    // More pairs of extended attributes than there are bytes.
    let pairs = fields!("d", 0x8000_0000_u32, u32::MAX);
    assert_eq!(client.ask(14, &pairs).code(), BAD_MESSAGE);
    assert!(!client.home("d").exists());
    client.leave();
}

#[test]
fn any_bytes_in_any_request_get_an_answer() {
    let mut client = Client::new();
    let seeds = tree::bytes(4096, 11);

    for round in 0..2000_usize {
        let kind = [3, 4, 5, 6, 7, 8, 10, 12, 16, 17, 19, 200][round % 12];
        let length = usize::from(seeds[round]) % 64;
        let mut body = tree::bytes(length, round as u64);
        // Often a length that fits, so that what comes after it is looked at too.
        if round % 2 == 0 && length > 4 {
            body[..3].fill(0);
            body[3] %= 16;
        }
        client.ask(kind, &body);
    }
    client.leave();
}

#[test]
fn packets_may_come_in_any_pieces_and_many_at_once() {
    let mut client = Client::new();
    fs::write(client.home("a"), "x").unwrap();
    let mut bytes = Vec::new();
    for id in 0..3000_u32 {
        let body = fields!(id, "a");
        bytes.extend_from_slice(&u32::try_from(body.len() + 1).unwrap().to_be_bytes());
        bytes.push(17);
        bytes.extend_from_slice(&body);
    }

    let mut writer = client.socket.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        for (index, piece) in bytes.chunks(7).enumerate() {
            writer.write_all(piece).unwrap();
            if index % 1000 == 0 {
                std::thread::yield_now();
            }
        }
    });

    for id in 0..3000_u32 {
        let (kind, body) = client.receive();
        assert_eq!((kind, word(&body)), (105, id));
    }
    writing.join().unwrap();
    client.leave();
}

#[test]
fn copies_end_with_the_file_or_with_the_client() {
    let mut client = Client::new();
    let content = tree::bytes(700_000, 5);
    fs::write(client.home("a"), &content).unwrap();
    let from = client.open("a", READ).handle().to_vec();
    let to = client.open("b", WRITE | CREATE).handle().to_vec();
    let (from, to) = (from.as_slice(), to.as_slice());

    let copied = fields!(from, 100_000_u64, 0_u64, to, 10_u64);
    assert_eq!(client.extended("copy-data", &copied).code(), OK);
    assert_eq!(client.extended("copy-data", &fields!(from, 0_u64, 3_u64, to, 0_u64)).code(), OK);
    let same = fields!(from, 0_u64, 0_u64, from, 0_u64);
    assert_eq!(client.extended("copy-data", &same).code(), BAD_MESSAGE);

    let copy = fs::read(client.home("b")).unwrap();
    assert!(copy[..3] == content[..3] && copy[3..10] == [0; 7]);
    assert!(copy[10..] == content[100_000..]);

    let from = client.open("/dev/zero", READ).handle().to_vec();
    let to = client.open("/dev/null", WRITE).handle().to_vec();
    let (from, to) = (from.as_slice(), to.as_slice());
    client.send(200, &fields!(1_u32, "copy-data", from, 0_u64, 0_u64, to, 0_u64));
    assert_eq!(client.vanish(), Some(1));
}
