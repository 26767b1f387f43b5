//! From a token to a node: every way in, and every way that stays shut, with its one line.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use tianqi_agent::enroll::{DialError, EnrollError, IdentityError, IdentityStore, join};
use tianqi_common::clock::{ManualClock, SharedClock, SystemClock, UnixMillis};
use tianqi_common::wire::join::JoinRefusal;
use tianqi_common::wire::{ALPN_JOIN, CloseCode, VERSION, Version};
use tianqi_controller::core::ca::Lifetimes;
use tianqi_tests::raw::Raw;
use tianqi_tests::wire::{AgentEnd, ControllerEnd, NOON, folder};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn controller() -> ControllerEnd {
    ControllerEnd::start(SystemClock::shared(), Lifetimes::default())
}

/// Waits until the controller has written down `code`: it learns of a failed handshake later.
async fn refused_as(controller: &ControllerEnd, code: &str) {
    let deadline = tianqi_tests::deadline::Deadline::after(tianqi_tests::wire::PATIENCE);
    while !controller.directory.refusals().contains(&code) {
        deadline.pause_async(&format!("no audit of {code}")).await;
    }
}

#[tokio::test]
async fn a_machine_with_a_token_becomes_a_node_whose_identity_only_its_owner_reads() {
    let (controller, (_folder, data)) = (controller(), folder());

    let identity = controller.enroll(&data).await.unwrap();

    let file = data.join("identity.json");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(*IdentityStore::open(&data).unwrap().current(), identity);
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), 1, "something was left beside it");
    assert!(!format!("{identity:?}").contains("PRIVATE KEY"));
    assert!(controller.directory.refusals().is_empty());
}

#[tokio::test]
async fn a_machine_that_has_joined_keeps_its_identity_unless_forced() {
    let (controller, (_folder, data)) = (controller(), folder());
    let first = controller.enroll(&data).await.unwrap();

    let again = controller.enroll(&data).await;

    assert!(matches!(again, Err(EnrollError::Identity(IdentityError::Exists { .. }))), "{again:?}");
    assert_eq!(*IdentityStore::open(&data).unwrap().current(), first);
    let mut forced = controller.join(&data, tianqi_tests::wire::SECRET);
    forced.force = true;
    let second = join(&forced, SystemClock::shared()).await.unwrap();
    assert_ne!(second.node, first.node);
}

#[tokio::test]
async fn a_damaged_identity_is_said_to_be_damaged_and_never_thrown_away() {
    let (controller, (_folder, data)) = (controller(), folder());
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("identity.json"), "{\"controller\":").unwrap();

    let refused = controller.enroll(&data).await;

    assert!(matches!(refused, Err(EnrollError::Identity(IdentityError::Damaged { .. }))));
    assert!(matches!(IdentityStore::open(&data), Err(IdentityError::Damaged { .. })));
    assert_eq!(std::fs::read(data.join("identity.json")).unwrap(), b"{\"controller\":");
}

#[tokio::test]
async fn a_bad_token_is_one_clear_line_here_and_a_refusal_on_record_there() {
    let controller = controller();
    let cases = [
        ("wrong", JoinRefusal::UnknownToken, "unknown_token"),
        ("used-up", JoinRefusal::UsedUp, "used_up"),
        ("expired", JoinRefusal::Expired, "expired"),
    ];
    for (secret, wanted, word) in cases {
        let (_folder, data) = folder();

        let refused = join(&controller.join(&data, secret), SystemClock::shared()).await;

        let error = refused.unwrap_err();
        assert!(
            matches!(&error, EnrollError::Refused { code, .. } if *code == wanted),
            "{error:?}"
        );
        assert!(!error.to_string().contains('\n'));
        assert!(!data.join("identity.json").exists());
        assert!(controller.directory.refusals().contains(&word));
    }
    assert_eq!(controller.directory.certificates(), 0);
}

#[tokio::test]
async fn a_fingerprint_of_another_controller_sends_no_secret_and_is_on_record() {
    let (controller, (_folder, data)) = (controller(), folder());
    let mut wanted = controller.join(&data, tianqi_tests::wire::SECRET);
    wanted.token.fingerprint[0] ^= 1;

    let refused = join(&wanted, SystemClock::shared()).await;

    let error = refused.unwrap_err();
    assert!(matches!(error, EnrollError::Dial(DialError::Fingerprint(_))), "{error:?}");
    refused_as(&controller, "fingerprint").await;
    assert_eq!(controller.directory.certificates(), 0);
}

#[tokio::test]
async fn another_major_version_is_told_which_agent_to_install() {
    let (controller, (_folder, data)) = (controller(), folder());
    let mut wanted = controller.join(&data, tianqi_tests::wire::SECRET);
    wanted.version = Version { major: VERSION.major + 1, minor: 0 };

    let error = join(&wanted, SystemClock::shared()).await.unwrap_err();

    assert!(matches!(error, EnrollError::Version { theirs: VERSION, .. }), "{error:?}");
    assert_eq!(controller.directory.refusals(), ["version"]);
}

#[tokio::test]
async fn a_higher_minor_version_joins() {
    let (controller, (_folder, data)) = (controller(), folder());
    let mut wanted = controller.join(&data, tianqi_tests::wire::SECRET);
    wanted.version = Version { minor: VERSION.minor + 7, ..VERSION };

    assert!(join(&wanted, SystemClock::shared()).await.is_ok());
}

#[tokio::test]
async fn clocks_that_differ_by_minutes_are_refused_with_the_difference() {
    let controller = ControllerEnd::start(Arc::new(ManualClock::at(NOON)), Lifetimes::default());
    for (offset_s, side) in [(600_i64, "600 s ahead"), (-600, "600 s behind")] {
        let (_folder, data) = folder();
        let theirs: SharedClock = Arc::new(ManualClock::at(UnixMillis(NOON.0 + offset_s * 1_000)));

        let wanted = controller.join(&data, tianqi_tests::wire::SECRET);
        let error = join(&wanted, theirs).await.unwrap_err();

        assert!(error.to_string().contains(side), "{error}");
    }
    assert_eq!(controller.directory.refusals(), ["clock_skew", "clock_skew"]);
}

#[tokio::test]
async fn a_clock_so_wrong_that_no_certificate_is_valid_is_said_to_be_the_clock() {
    let controller = ControllerEnd::start(Arc::new(ManualClock::at(NOON)), Lifetimes::default());
    for wrong in [UnixMillis(0), NOON.plus(DAY * 3_000)] {
        let (_folder, data) = folder();

        let wanted = controller.join(&data, tianqi_tests::wire::SECRET);
        let error = join(&wanted, Arc::new(ManualClock::at(wrong))).await.unwrap_err();

        assert!(matches!(error, EnrollError::Dial(DialError::Clock(_))), "{error:?}");
    }
    refused_as(&controller, "clock_skew").await;
}

#[tokio::test]
async fn a_machine_whose_answer_was_lost_becomes_the_same_node_when_it_asks_again() {
    let (controller, (folder, data)) = (controller(), folder());
    let first = controller.enroll(&data).await.unwrap();
    // The answer was lost: the pending key is there, the identity is not.
    let other = folder.path().join("other");
    std::fs::create_dir_all(&other).unwrap();
    std::fs::write(other.join("join-key.pem"), &first.key_pem).unwrap();

    let again = controller.enroll(&other).await.unwrap();

    assert_eq!(again.node, first.node);
    assert_ne!(again.certificate_pem, first.certificate_pem);
}

#[tokio::test]
async fn nobody_listening_is_said_within_seconds() {
    let (_folder, data) = folder();
    let controller = controller();
    let wanted = controller.join(&data, tianqi_tests::wire::SECRET);
    controller.stop().await;

    let error = join(&wanted, SystemClock::shared()).await.unwrap_err();

    assert!(matches!(error, EnrollError::Dial(DialError::Silent(_))), "{error:?}");
}

#[tokio::test]
async fn garbage_on_the_join_stream_closes_the_connection_and_nothing_else() {
    let (controller, (_folder, data)) = (controller(), folder());
    let ca_pem = controller.ca.trusted_pem();
    let hostile: [&[u8]; 4] = [
        b"\xff\xff\xff\xff",
        b"\x04\x00\x00\x00\x01\x00\x00\x00",
        b"\x03\x00\x00\x00abc",
        b"\x08\x00\x00\x00\x01\x00\x00\x00\xff\xff\xff\xff",
    ];
    for bytes in hostile {
        let raw = Raw::connect(controller.address, &ca_pem, None, ALPN_JOIN).await.unwrap();
        let (mut send, _recv) = raw.quic.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        send.finish().unwrap();

        assert_eq!(raw.close_code().await, Some(CloseCode::Protocol), "{bytes:?}");
    }
    assert!(controller.enroll(&data).await.is_ok());
}

#[tokio::test]
async fn an_expired_certificate_of_a_known_node_is_renewed_and_then_served() {
    let clock = Arc::new(ManualClock::at(NOON));
    let mut controller = ControllerEnd::start(clock.clone(), Lifetimes::default());
    let (_folder, data) = folder();
    let old = controller.enroll(&data).await.unwrap();
    clock.advance(DAY * 31);

    let agent = AgentEnd::start(&data, clock, VERSION);
    let node = controller.connected().await;

    assert_eq!(node, old.node);
    assert_ne!(agent.identity.current().certificate_pem, old.certificate_pem);
    assert_eq!(*IdentityStore::open(&data).unwrap().current(), *agent.identity.current());
    agent.stop().await;
}

#[tokio::test]
async fn an_expired_certificate_of_a_removed_node_is_not_renewed_and_the_identity_stays() {
    let clock = Arc::new(ManualClock::at(NOON));
    let controller = ControllerEnd::start(clock.clone(), Lifetimes::default());
    let (_folder, data) = folder();
    let old = controller.enroll(&data).await.unwrap();
    controller.directory.remove(old.node);
    clock.advance(DAY * 31);

    let agent = AgentEnd::start(&data, clock, VERSION);
    refused_as(&controller, "removed").await;

    agent.stop().await;
    assert_eq!(*IdentityStore::open(&data).unwrap().current(), old);
}
