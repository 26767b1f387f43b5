//! The clients that people use, through the jumpbox into a Debian that holds no SSH of its own: vim,
//! tmux and top in a terminal, rsync, paramiko, and what an editor asks of a connection.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use tianqi_tests::client::PATIENCE;
use tianqi_tests::deadline::Deadline;
use tianqi_tests::images;
use tianqi_tests::ssh::{Background, Screen};
use tianqi_tests::ssh_instance::{PASSWORD, SshInstance, err, out};

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Connects to a port of this machine as soon as somebody listens there.
fn connected(port: u16) -> TcpStream {
    let deadline = Deadline::after(PATIENCE);
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(socket) => {
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                return socket;
            }
            Err(_) => deadline.pause("nobody listens"),
        }
    }
}

fn says_back(socket: &mut TcpStream, word: &[u8]) {
    socket.write_all(word).unwrap();
    let mut got = vec![0; word.len()];
    socket.read_exact(&mut got).unwrap();
    assert_eq!(got, word);
}

/// Waits until the window's rows are as wanted.
fn rows_until(screen: &Screen, what: &str, is_so: impl Fn(&[String]) -> bool) {
    let deadline = Deadline::after(PATIENCE);
    loop {
        let rows = screen.rows();
        if is_so(&rows) {
            return;
        }
        deadline.pause(&format!("{what}:\n{}", rows.join("\n")));
    }
}

/// Waits until a full-screen editor of this many rows shows `last` in its last one and fills the rest.
fn fills(screen: &Screen, rows: usize, last: &str) {
    rows_until(screen, &format!("an editor of {rows} rows with {last:?}"), |shown| {
        let is_filled = shown.len() == rows && shown[1..rows - 1].iter().all(|row| row == "~");
        is_filled && shown[rows - 1].contains(last)
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn vim_fills_the_window_from_the_first_byte_and_after_each_resize() {
    let world = SshInstance::start(images::debian).await;
    let shell = world.ssh.screen((101, 37), &["-t", "alice+one@jump"]);

    shell.line("echo size=$(stty size) term=$TERM");
    shell.until("size=37 101 term=");
    shell.resize(90, 20);
    // The size travels beside what is typed, so a line may be there first.
    let deadline = Deadline::after(PATIENCE);
    while !shell.text().contains("size=20 90") {
        deadline.pause("the new size is not there");
        shell.line("echo size=$(stty size)");
    }

    let editor = world.ssh.screen((113, 41), &["-t", "alice+one@jump", "vi", "/tmp/note"]);
    fills(&editor, 41, "/tmp/note");
    editor.line(":set lines? columns?");
    editor.until("lines=41");
    editor.until("columns=113");
    editor.keys(&["Enter"]);
    editor.resize(70, 18);
    rows_until(&editor, "18 rows", |rows| rows.len() == 18 && rows[16] == "~");
    editor.line(":set lines? columns?");
    editor.until("lines=18");
    editor.until("columns=70");
    editor.keys(&["Enter"]);
    editor.keys(&["i"]);
    editor.line("written by vim 名字");
    editor.keys(&["Escape"]);
    editor.line(":wq");
    let deadline = Deadline::after(PATIENCE);
    while !world.inside("cat /tmp/note; true").contains("written by vim 名字") {
        deadline.pause(&format!("vim writes:\n{}", editor.text()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tmux_in_the_instance_splits_detaches_and_goes_on_after_the_connection() {
    let world = SshInstance::start(images::debian).await;
    let first = world.ssh.screen((100, 30), &["-t", "alice+one@jump", "tmux", "-u"]);

    first.until("[0]");
    first.line("word=$((40+2)); echo left=$word $(stty size)");
    first.until("left=42 29 100");
    first.keys(&["C-b", "%"]);
    first.line("echo right=$(tput cols)");
    rows_until(&first, "a column of its own", |rows| {
        rows.iter().any(|row| row.contains("right=49") || row.contains("right=50"))
    });
    first.resize(80, 24);
    // The size travels beside what is typed, so a line may be there first.
    let deadline = Deadline::after(PATIENCE);
    while !first.text().contains("rows=23") {
        deadline.pause("the new size is not there");
        first.line("echo rows=$(tput lines)");
    }
    first.keys(&["C-b", "d"]);
    first.until("[detached (from session 0)]");
    drop(first);

    let again = world.ssh.screen((90, 28), &["-t", "alice+one@jump", "tmux", "-u", "attach"]);
    again.until("left=42");
    again.keys(&["C-b", "o"]);
    again.line("echo kept=$word");
    again.until("kept=42");
    drop(again);

    // The connection was cut without a word: what ran in tmux goes on.
    assert!(world.inside("tmux list-panes -t 0 | wc -l").contains('2'));
    let top = world.ssh.screen((100, 30), &["-t", "alice+one@jump", "top", "-d", "1"]);
    top.until("load average");
    top.until("PID");
    rows_until(&top, "top shows tmux", |rows| rows.iter().any(|row| row.contains("tmux")));
    top.keys(&["q"]);
}

/// Returns the sums, modes and targets of a tree, a line each.
const LISTING: &str = "find . -type f -exec sha256sum {} + | LC_ALL=C sort; \
     find . -printf '%p %y %m %l\\n' | LC_ALL=C sort";

fn tree(folder: &Path) {
    fs::create_dir_all(folder.join("deep/er")).unwrap();
    fs::create_dir_all(folder.join("空")).unwrap();
    for size in 0..300_usize {
        let name = folder.join(format!("deep/er/{size}"));
        fs::write(name, vec![b'x'; size * 37]).unwrap();
    }
    let big: Vec<u8> =
        (0..12_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(folder.join("big"), big).unwrap();
    fs::write(folder.join("名 字"), "with a space").unwrap();
    fs::write(folder.join("run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(folder.join("run"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("deep/er/7", folder.join("link")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rsync_copies_a_tree_both_ways() {
    let world = SshInstance::start(images::debian).await;
    let given = world.ssh.path("given");
    tree(&given);
    let list = |folder: &Path| {
        out(&Command::new("sh").args(["-c", LISTING]).current_dir(folder).output().unwrap())
    };
    let copy = |args: &[&str]| {
        let copied = world.ssh.rsync(args).output().unwrap();
        assert!(copied.status.success(), "{args:?}: {copied:?}");
        out(&copied)
    };
    let local = format!("{}/", given.display());
    world.ssh.configure("Host one\n  ProxyJump alice@jump");

    for (at, folder) in [("alice+one@jump", "/tmp/straight"), ("one", "/tmp/jumped")] {
        let there = format!("{at}:{folder}/");
        copy(&["-a", &local, &there]);
        assert_eq!(world.inside(&format!("cd {folder} && {LISTING}")), list(&given).trim_end());
        assert_eq!(copy(&["-a", "--itemize-changes", "--checksum", &local, &there]), "", "{at}");

        world.inside(&format!("cd {folder} && echo more >>big && rm link && mv run ran"));
        let back = world.ssh.path(&at.replace('@', "-"));
        copy(&["-a", "-z", &there, &format!("{}/", back.display())]);
        assert_eq!(world.inside(&format!("cd {folder} && {LISTING}")), list(&back).trim_end());
        // Only what differs travels, and what is too much goes.
        let told = copy(&["-a", "--delete", "--stats", "--no-whole-file", &there, &local]);
        assert!(told.contains("Number of deleted files: 2"), "{told}");
        assert_eq!(list(&given), list(&back));
        fs::remove_dir_all(&given).unwrap();
        tree(&given);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn paramiko_runs_commands_copies_files_dials_and_does_several_things_at_once() {
    let world = SshInstance::start(images::debian).await;
    let echo = world.serve_echo().to_string();
    let port = world.cluster.ssh().to_string();

    let walk = world.ssh.python("paramiko_walk.py", &[&port, PASSWORD, &echo]).output().unwrap();

    assert!(walk.status.success() && out(&walk) == "walked\n", "{}{}", out(&walk), err(&walk));
}

/// Waits until a connection that others share is there.
fn shared(world: &SshInstance, host: &str, args: &[&str]) -> (Background, String) {
    let control = format!("ControlPath={}", world.ssh.path(&format!("to-{host}")).display());
    let all = [&["-N", "-M", "-o", &control], args, &[host]].concat();
    let master = world.ssh.start(&all);
    let deadline = Deadline::after(PATIENCE);
    while !world.ssh.run("ssh", &["-o", &control, "-O", "check", host]).status.success() {
        deadline.pause("the connection is not there");
    }
    (master, control)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_editors_one_connection_carries_twenty_commands_forwards_and_a_script_from_stdin() {
    let world = SshInstance::start(images::debian).await;
    let echo = world.serve_echo();
    let port = world.cluster.ssh();
    world.ssh.configure(&format!(
        "Host jumped\n  HostName one\n  User anybody\n  ProxyJump alice@jump\n\
         Host straight\n  HostName 127.0.0.1\n  Port {port}\n  User alice+one\n  HostKeyAlias jump\n"
    ));

    for host in ["jumped", "straight"] {
        let (local, socks) = (free_port(), free_port().to_string());
        let rule = format!("{local}:127.0.0.1:{echo}");
        let (_master, control) = shared(&world, host, &["-L", &rule, "-D", &socks]);
        let mut long = connected(local);
        says_back(&mut long, b"before");

        // Each waits until all the others run too.
        let commands: Vec<_> = (0..20)
            .map(|i| {
                let line = format!(
                    "mkdir -p /tmp/{host}; touch /tmp/{host}/{i}; \
                     until [ $(ls /tmp/{host} | wc -l) = 20 ]; do sleep 0.1; done; echo met; exit {i}"
                );
                let mut command = world.ssh.command("ssh", &["-o", &control, host, &line]);
                std::thread::spawn(move || command.output().unwrap())
            })
            .collect();
        for (i, command) in commands.into_iter().enumerate() {
            let ran = command.join().unwrap();
            let code = i32::try_from(i).unwrap();
            assert_eq!((ran.status.code(), out(&ran).as_str()), (Some(code), "met\n"), "{ran:?}");
        }

        let mut script = "uname -s\n".to_owned();
        script
            .extend((0..5_000).map(|i| format!("sum=$((sum + {i})) # a line of a long script\n")));
        script.push_str("echo sum=$sum in=$BASH_VERSION; exit 3\n");
        let args = ["-T", "-o", &control, host, "bash -s"];
        let ran = world.ssh.ssh_with(&args, script.as_bytes());
        assert_eq!(ran.status.code(), Some(3), "{}", err(&ran));
        assert!(out(&ran).starts_with("Linux\nsum=12497500 in=5."), "{}", out(&ran));

        let mut proxied = connected(socks.parse().unwrap());
        proxied.write_all(&[5, 1, 0]).unwrap();
        proxied.read_exact(&mut [0; 2]).unwrap();
        let [high, low] = echo.to_be_bytes();
        proxied.write_all(&[5, 1, 0, 1, 127, 0, 0, 1, high, low]).unwrap();
        let mut answer = [0; 10];
        proxied.read_exact(&mut answer).unwrap();
        assert_eq!(answer[1], 0, "{host}: {answer:?}");
        says_back(&mut proxied, b"by proxy");
        says_back(&mut long, b"the same connection as before");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_ends_before_its_input_does_always_tells_its_exit_status() {
    let world = SshInstance::start(images::busybox).await;
    let (_master, control) = shared(&world, "alice+one@jump", &[]);

    let several: Vec<_> = (0..8)
        .map(|_| {
            let runs = (0..25).map(|_| {
                let args = ["-o", &control, "alice+one@jump", "echo out; exit 3"];
                world.ssh.command("ssh", &args)
            });
            let runs: Vec<_> = runs.collect();
            let run = |mut one: Command| one.output().unwrap();
            std::thread::spawn(move || runs.into_iter().map(run).collect::<Vec<_>>())
        })
        .collect();

    for ran in several.into_iter().flat_map(|thread| thread.join().unwrap()) {
        assert_eq!((ran.status.code(), out(&ran).as_str()), (Some(3), "out\n"), "{}", err(&ran));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupts_hang_ups_variables_and_exit_statuses_are_as_at_home() {
    let world = SshInstance::start(images::debian).await;
    let ssh = |args: &[&str]| world.ssh.run("ssh", &[args, &["alice+one@jump"]].concat());

    let trap =
        "'trap \"echo got=\\$((40+2)); exit 5\" INT; echo rea\"\"dy; while :; do sleep 0.1; done'";
    let screen = world.ssh.screen((80, 24), &["-t", "alice+one@jump", trap]);
    screen.until("ready");
    screen.keys(&["C-c"]);
    screen.until("got=42");

    let wait = "trap 'echo hung up >/tmp/hup; exit' HUP; echo $$; while :; do sleep 0.1; done";
    let mut open = world.ssh.start(&["-tt", "alice+one@jump", wait]);
    let mut pid = String::new();
    BufReader::new(open.child().stdout.take().unwrap()).read_line(&mut pid).unwrap();
    drop(open);
    let deadline = Deadline::after(PATIENCE);
    let look = format!("cat /tmp/hup; kill -0 {} || echo gone", pid.trim());
    while !world.inside(&format!("({look}) 2>&1")).contains("hung up") {
        deadline.pause("the program is not hung up");
    }
    while !world.inside(&format!("({look}) 2>&1")).contains("gone") {
        deadline.pause("the program goes on");
    }

    let env =
        "SetEnv=LANG=de_DE.UTF-8 LC_TIME=zh_CN.UTF-8 LD_PRELOAD=/tmp/x.so BASH_ENV=/tmp/x PATH=/x";
    let env = world.ssh.run("ssh", &["-o", env, "alice+one@jump", "env"]);
    let shown = out(&env);
    assert!(
        shown.contains("LANG=de_DE.UTF-8\n") && shown.contains("LC_TIME=zh_CN.UTF-8\n"),
        "{env:?}"
    );
    assert!(!shown.contains("LD_PRELOAD") && !shown.contains("BASH_ENV"), "{shown}");
    assert!(!shown.contains("PATH=/x"), "{shown}");

    for code in [0, 1, 127, 137, 254, 255] {
        let line = format!("exit {code}");
        assert_eq!(world.ssh.run("ssh", &["alice+one@jump", &line]).status.code(), Some(code));
    }
    for (line, code) in [("kill -9 $$", 137), ("kill -TERM $$", 143), ("no-such-program", 127)] {
        assert_eq!(
            world.ssh.run("ssh", &["alice+one@jump", line]).status.code(),
            Some(code),
            "{line}"
        );
        let with_terminal = world.ssh.run("ssh", &["-tt", "alice+one@jump", line]);
        assert_eq!(with_terminal.status.code(), Some(code), "{line} in a terminal");
    }
    assert!(ssh(&["-o", "ConnectTimeout=5"]).status.success(), "a shell whose input is at its end");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_stay_in_the_container_with_the_rights_of_its_user() {
    let world = SshInstance::start(images::debian_of_nobody).await;
    assert_eq!(world.inside("id -un"), "nobody");
    let hostname = world.inside("cat /etc/hostname");
    let of_this_machine = fs::read_to_string("/etc/hostname").unwrap_or_default();
    assert_ne!(hostname, of_this_machine.trim());
    world.inside("ln -s /etc/shadow /tmp/secret; ln -s ../../../../etc/hostname /tmp/name");
    world.inside("ln -s / /tmp/root; mkdir /tmp/own; ln -s loop /tmp/loop");
    let sftp = |orders: &str| {
        fs::write(world.ssh.path("orders"), orders).unwrap();
        let mut sftp = world.ssh.command("sftp", &["-b", "orders", "alice+one@jump"]);
        sftp.current_dir(world.ssh.path("")).output().unwrap()
    };

    let paths = [
        "/etc/hostname",
        "/tmp/name",
        "../../../../../../../etc/hostname",
        "/tmp/own/../../../../etc/hostname",
        "/tmp/root/tmp/root/etc/hostname",
        "/proc/self/root/etc/hostname",
        "/proc/self/root/../../etc/hostname",
    ];
    for path in paths {
        let got = sftp(&format!("get {path} got\n"));
        assert!(got.status.success(), "{path}: {}", err(&got));
        assert_eq!(fs::read_to_string(world.ssh.path("got")).unwrap().trim(), hostname, "{path}");
        fs::remove_file(world.ssh.path("got")).unwrap();
    }
    for path in ["/etc/shadow", "/tmp/secret", "/tmp/root/etc/shadow", "/../etc/shadow"] {
        let refused = sftp(&format!("get {path} got\n"));
        assert!(err(&refused).contains("Permission denied"), "{path}: {}", err(&refused));
        assert!(
            fs::read(world.ssh.path("got"))
                .is_err_and(|it| it.kind() == std::io::ErrorKind::NotFound)
        );
    }
    fs::write(world.ssh.path("given"), "given").unwrap();
    for order in [
        "put given /etc/given",
        "put given /tmp/secret",
        "rm /etc/passwd",
        "rename /etc/passwd /tmp/passwd",
        "chmod 777 /etc",
        "ls /root",
        "put given /.tianqi/given",
        "get /tmp/loop got",
    ] {
        let refused = sftp(&format!("{order}\n"));
        assert!(!refused.status.success(), "{order}: {refused:?}");
    }
    assert!(sftp("put given /tmp/own/given\npwd\nls -la /tmp/own\n").status.success());
    assert_eq!(world.inside("stat -c %U /tmp/own/given"), "nobody");
}
