//! Clients that mean harm, and parts that are started again under an open shell: the controller stays
//! up, its memory bounded, and nobody else notices.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tianqi_tests::client::PATIENCE;
use tianqi_tests::deadline::Deadline;
use tianqi_tests::images;
use tianqi_tests::ssh::Background;
use tianqi_tests::ssh_instance::{PASSWORD, SshInstance, err, out, person};

/// How much memory a test's harm may cost, in MiB.
const HARM_MIB: u64 = 200;
/// How soon somebody else is served meanwhile.
const SOON: Duration = Duration::from_secs(10);

/// Somebody else runs a command; it takes no longer than it should.
fn others_are_served(world: &SshInstance) {
    let began = Instant::now();

    assert_eq!(world.inside("echo alive"), "alive");

    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

fn harm(world: &SshInstance, what: &str) -> Command {
    let port = world.cluster.ssh().to_string();
    let mut command = world.ssh.python("paramiko_hostile.py", &[what, &port, PASSWORD]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Does harm to its end while others work, and looks at what it cost.
fn bear(world: &mut SshInstance, what: &str) {
    let before = world.controller_memory_mib();
    let harming = harm(world, what).spawn().unwrap();
    let harmed = std::thread::spawn(move || harming.wait_with_output().unwrap());

    let mut times = 0;
    while !harmed.is_finished() || times == 0 {
        others_are_served(world);
        times += 1;
    }

    let harmed = harmed.join().unwrap();
    assert!(harmed.status.success(), "{what}: {}{}", out(&harmed), err(&harmed));
    let after = world.controller_memory_mib();
    assert!(after < before + HARM_MIB, "{what}: {before} MiB became {after} MiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_channels_and_guessed_names_get_one_person_nowhere_and_hold_up_nobody() {
    let mut world = SshInstance::start(images::busybox).await;
    person(&world.admin, &world.cluster, "bob").await;

    bear(&mut world, "channels");
    bear(&mut world, "guesses");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_passwords_at_speed_delay_one_address_and_tell_it_nothing() {
    let mut world = SshInstance::start(images::busybox).await;
    person(&world.admin, &world.cluster, "bob").await;

    // Alice's key opens as ever meanwhile.
    bear(&mut world, "passwords");

    // Somebody else's password does too, from another address.
    let bob = world.ssh.ssh_by_password(PASSWORD, &["bob@jump", "nothing"]);
    assert!(err(&bob).contains("Name an instance"), "{}", err(&bob));
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_silence_from_one_address_leave_the_others_their_places() {
    let mut world = SshInstance::start(images::busybox).await;
    let before = world.controller_memory_mib();
    let mut harming = harm(&world, "garbage").stdin(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();

    BufReader::new(harming.stdout.take().unwrap()).read_line(&mut said).unwrap();
    for _ in 0..3 {
        others_are_served(&world);
    }

    drop(harming.stdin.take());
    let mut complaint = String::new();
    harming.stderr.take().unwrap().read_to_string(&mut complaint).unwrap();
    assert!(harming.wait().unwrap().success() && said == "silent\n", "{complaint}");
    let after = world.controller_memory_mib();
    assert!(after < before + HARM_MIB, "{before} MiB became {after} MiB");
}

fn signal(to: &mut Background, name: &str) {
    let pid = to.child().id().to_string();
    assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_never_read_cost_little_and_hold_up_nobody() {
    let mut world = SshInstance::start(images::busybox).await;
    let before = world.controller_memory_mib();
    let mut stuck: Vec<_> =
        (0..20).map(|_| world.ssh.start(&["alice+one@jump", "cat /dev/zero"])).collect();
    let deadline = Deadline::after(PATIENCE);
    while world.inside("ps | grep -c '[c]at /dev/zero'").trim() != "20" {
        deadline.pause("the programs run");
    }

    for one in &mut stuck {
        signal(one, "-STOP");
    }
    // Long enough for what is unbounded to show: each sends as fast as it can.
    let end = Instant::now() + Duration::from_secs(15);
    while Instant::now() < end {
        others_are_served(&world);
    }

    let after = world.controller_memory_mib();
    assert!(after < before + HARM_MIB, "{before} MiB became {after} MiB");
    drop(stuck);
    let deadline = Deadline::after(PATIENCE);
    while world.inside("ps | grep -c '[c]at /dev/zero'; true").trim() != "0" {
        deadline.pause("what nobody reads any more ends");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_goes_on_while_the_engine_is_restarted() {
    let world = SshInstance::start(images::busybox).await;
    let screen = world.ssh.screen((90, 25), &["-t", "alice+one@jump"]);
    screen.line("word=$((40+2)); echo before=$word");
    screen.until("before=42");

    world.engine.stop();
    screen.line("echo without=$word");
    screen.until("without=42");
    world.engine.resume();

    screen.line("echo after=$word");
    screen.until("after=42");
    let deadline = Deadline::after(PATIENCE);
    while !world.ssh.run("ssh", &["alice+one@jump", "true"]).status.success() {
        deadline.pause("a new session opens");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_ends_the_session_with_a_clear_message_and_a_new_one_opens() {
    let mut world = SshInstance::start(images::busybox).await;
    let screen = world.ssh.screen((90, 25), &["-t", "alice+one@jump", ";", "echo", "code=$?"]);
    screen.line("echo sum=$((40+2))");
    screen.until("sum=42");
    let mut plain = world.ssh.start(&["alice+one@jump", "echo ready; sleep 1000"]);
    let mut line = String::new();
    BufReader::new(plain.child().stdout.take().unwrap()).read_line(&mut line).unwrap();

    world.agent.process().stop();

    screen.until("The connection to its node was lost.");
    screen.until("code=255");
    plain.ends_within(PATIENCE);
    let mut told = String::new();
    plain.child().stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert_eq!(told.trim(), "The connection to its node was lost.");
    let offline = world.ssh.run("ssh", &["alice+one@jump", "true"]);
    assert_eq!(offline.status.code(), Some(255));
    assert!(err(&offline).contains("does not answer now"), "{}", err(&offline));
    world.agent.start();
    world.agent.wait_until_ready(&world.admin).await;
    let deadline = Deadline::after(PATIENCE);
    while !world.ssh.run("ssh", &["alice+one@jump", "true"]).status.success() {
        deadline.pause("a new session opens");
    }
}
