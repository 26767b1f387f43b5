//! Golden bytes, round trips and size limits of the protocol.

mod examples;

use std::fmt::Debug;
use std::path::PathBuf;

use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::control::{ToAgent, ToController};
use super::desired::{NodeDesired, NodeSettings};
use super::frame::{self, CHUNK, FrameError, Limit};
use super::guest::{GuestHello, ToGuest};
use super::hello::{Hello, HelloReply, decode_with_version, split_version, with_version};
use super::join::{JoinReply, JoinRequest, JoinToken};
use super::stream::{
    CheckReport, Datagram, ExecFrame, LogFrame, PullFrame, StreamOpen, StreamReply,
};
use super::telemetry::SampleBatch;
use super::{CloseCode, VERSION, Version};

/// Set to any value, it rewrites the golden files of the current version instead of comparing.
const REWRITE: &str = "TIANQI_REWRITE_GOLDEN";

/// Compares the frames of `messages`, one after the other, with the golden file, and reads them back.
fn golden<T>(name: &str, limit: Limit, messages: &[T])
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let bytes: Vec<u8> =
        messages.iter().flat_map(|message| frame::encode(message, limit).unwrap()).collect();
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join(format!("src/wire/golden/v{}-{name}.bin", VERSION.major));
    if std::env::var_os(REWRITE).is_some() {
        std::fs::write(&file, &bytes).unwrap();
    }
    let kept = std::fs::read(&file).unwrap();

    assert_eq!(kept, bytes, "{name}: the bytes of a released message changed; append instead");
    let mut rest = kept.as_slice();
    for message in messages {
        let (prefix, tail) = rest.split_at(4);
        let length = u32::from_le_bytes(prefix.try_into().unwrap()) as usize;
        let (payload, tail) = tail.split_at(length);
        assert_eq!(&frame::decode::<T>(payload).unwrap(), message);
        rest = tail;
    }
    assert!(rest.is_empty());
}

#[test]
fn every_message_keeps_its_bytes() {
    golden("hello", Limit::HELLO, &[examples::hello()]);
    golden("hello-reply", Limit::HELLO, &examples::hello_replies());
    golden("join-request", Limit::HELLO, &examples::join_requests());
    golden("join-reply", Limit::HELLO, &examples::join_replies());
    golden("to-agent", Limit::CONTROL, &examples::to_agent());
    golden("to-controller", Limit::CONTROL, &examples::to_controller());
    golden("sample-batch", Limit::TELEMETRY, &[examples::samples()]);
    golden("stream-open", Limit::OPEN, &examples::opens());
    golden("stream-reply", Limit::OPEN, &examples::replies());
    golden("exec-frame", Limit::STREAM, &examples::exec_frames());
    golden("datagram", Limit::STREAM, &examples::datagrams());
    golden("log-frame", Limit::STREAM, &examples::log_frames());
    golden("pull-frame", Limit::STREAM, &examples::pull_frames());
    golden("guest-hello", Limit::GUEST, &examples::guest_hellos());
    golden("to-guest", Limit::GUEST, &examples::to_guest());
    golden("check-report", Limit::STREAM, &examples::check_reports());
}

#[test]
fn hello_begins_with_the_version_in_four_fixed_bytes() {
    let later = Version { major: 2, minor: 259 };

    let bytes = with_version(later, &examples::hello()).unwrap();

    assert_eq!(bytes[..4], [2, 0, 3, 1]);
    assert_eq!(split_version(&bytes).unwrap().0, later);
    let (version, hello) = decode_with_version::<Hello>(&bytes).unwrap();
    assert_eq!((version, hello), (later, examples::hello()));
    assert!(matches!(split_version(&bytes[..3]), Err(FrameError::Truncated)));
}

#[test]
fn versions_agree_on_the_lower_minor_and_never_across_majors() {
    let one = |minor| Version { major: 1, minor };

    assert_eq!(one(0).agree(one(7)), Some(one(0)));
    assert_eq!(one(7).agree(one(3)), Some(one(3)));
    assert_eq!(one(0).agree(Version { major: 2, minor: 0 }), None);
}

#[test]
fn encode_refuses_a_message_over_its_limit() {
    let frame = ExecFrame::Stdout(vec![0; 300 << 10].into());

    let refused = frame::encode(&frame, Limit::STREAM);

    assert!(matches!(refused, Err(FrameError::TooLong { limit, .. }) if limit == 256 << 10));
    assert!(frame::encode(&ExecFrame::Stdout(vec![0; CHUNK].into()), Limit::STREAM).is_ok());
}

#[test]
fn control_frame_holds_the_desired_state_of_ten_thousand_instances() {
    let mut desired = examples::desired();
    let one = desired.instances[0].clone();
    desired.instances = (0..10_000).map(|_| one.clone()).collect();

    assert!(frame::encode(&ToAgent::Desired(desired), Limit::CONTROL).is_ok());
}

#[test]
fn secrets_are_not_printed() {
    let token = JoinToken { secret: "s3cret".into(), fingerprint: [1; 32] };

    let printed = format!(
        "{:?} {:?} {:?} {token:?}",
        examples::join_requests(),
        examples::settings(),
        examples::opens(),
    );

    for secret in ["s3cret", "KEY", "\"p\""] {
        assert!(!printed.contains(secret), "{secret} was printed");
    }
}

#[test]
fn join_token_reads_back_and_refuses_what_is_cut() {
    let token = JoinToken { secret: "abc-DEF_1".into(), fingerprint: [0xa5; 32] };
    let text = token.to_string();

    assert_eq!(text.parse::<JoinToken>(), Ok(token));
    assert!(format!(" {text}\n").parse::<JoinToken>().is_ok());
    for length in 0..text.len() {
        assert!(text[..length].parse::<JoinToken>().is_err(), "{length} bytes were taken");
    }
    for bad in
        [format!("{text}00"), format!("{text}."), text.replace("a5", "+5"), text.replace("a5", "é")]
    {
        assert!(bad.parse::<JoinToken>().is_err(), "{bad} was taken");
    }
}

#[test]
fn close_codes_keep_their_numbers() {
    let codes = [
        CloseCode::Shutdown,
        CloseCode::Protocol,
        CloseCode::Unauthorised,
        CloseCode::Superseded,
        CloseCode::Version,
    ];

    for (number, code) in (0_u64..).zip(codes) {
        assert_eq!(CloseCode::from_number(number), Some(code));
    }
    assert_eq!(CloseCode::from_number(5), None);
}

/// Feeds bytes to every decoder; the only demand is an answer.
fn decode_everything(bytes: &[u8]) {
    let _ = decode_with_version::<Hello>(bytes);
    let _ = decode_with_version::<HelloReply>(bytes);
    let _ = decode_with_version::<JoinRequest>(bytes);
    let _ = decode_with_version::<JoinReply>(bytes);
    let _ = frame::decode::<ToAgent>(bytes);
    let _ = frame::decode::<ToController>(bytes);
    let _ = frame::decode::<SampleBatch>(bytes);
    let _ = frame::decode::<StreamOpen>(bytes);
    let _ = frame::decode::<StreamReply>(bytes);
    let _ = frame::decode::<ExecFrame>(bytes);
    let _ = frame::decode::<Datagram>(bytes);
    let _ = frame::decode::<LogFrame>(bytes);
    let _ = frame::decode::<PullFrame>(bytes);
    let _ = frame::decode::<CheckReport>(bytes);
    let _ = frame::decode::<GuestHello>(bytes);
    let _ = frame::decode::<ToGuest>(bytes);
    let _ = frame::decode::<NodeSettings>(bytes);
}

proptest! {
    #[test]
    fn random_bytes_never_break_a_decoder(bytes in prop::collection::vec(any::<u8>(), 0..2_048)) {
        decode_everything(&bytes);
    }

    #[test]
    fn a_real_message_with_a_changed_byte_never_breaks_a_decoder(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = frame::encode(&ToController::Observed(examples::observed()), Limit::CONTROL).unwrap();
        let at = at.index(bytes.len() - 4) + 4;
        bytes[at] = byte;

        decode_everything(&bytes[4..]);
    }

    #[test]
    fn a_cut_message_is_refused(cut in any::<prop::sample::Index>()) {
        let bytes = frame::encode(&examples::desired(), Limit::CONTROL).unwrap();
        let end = cut.index(bytes.len() - 4) + 4;

        prop_assert!(frame::decode::<NodeDesired>(&bytes[4..end]).is_err());
    }

    #[test]
    fn exec_frames_round_trip(data in prop::collection::vec(any::<u8>(), 0..4_096)) {
        let sent = ExecFrame::Stdin(data.into());

        let bytes = frame::encode(&sent, Limit::STREAM).unwrap();

        prop_assert_eq!(frame::decode::<ExecFrame>(&bytes[4..]).unwrap(), sent);
    }

    #[test]
    fn random_text_is_never_mistaken_for_a_join_token(text in "\\PC{0,200}") {
        if let Ok(token) = text.parse::<JoinToken>() {
            prop_assert_eq!(token.to_string().to_lowercase(), text.trim().to_lowercase());
        }
    }
}

#[cfg(feature = "wire")]
mod framed {
    use super::*;

    #[tokio::test]
    async fn an_announced_length_over_the_limit_is_refused_before_any_byte_of_it() {
        let mut stream: &[u8] = &u32::MAX.to_le_bytes();

        let refused = frame::read_payload(&mut stream, Limit::CONTROL).await;

        assert!(
            matches!(refused, Err(FrameError::TooLong { length, .. }) if length == u64::from(u32::MAX))
        );
    }

    #[tokio::test]
    async fn a_stream_that_ends_inside_a_frame_is_told_from_one_that_ends_before_it() {
        let whole = frame::encode(&examples::to_agent()[4], Limit::CONTROL).unwrap();

        for end in 1..whole.len() {
            let cut = frame::read::<ToAgent, _>(&mut &whole[..end], Limit::CONTROL).await;
            assert!(matches!(cut, Err(FrameError::Truncated)), "{end} bytes were taken");
        }
        let none = frame::read::<ToAgent, _>(&mut &whole[..0], Limit::CONTROL).await;
        assert!(matches!(none, Ok(None)));
    }

    #[tokio::test]
    async fn written_messages_read_back_in_order() {
        let mut bytes = Vec::new();
        for message in examples::to_controller() {
            frame::write(&mut bytes, &message, Limit::CONTROL).await.unwrap();
        }

        let mut reader = bytes.as_slice();
        for sent in examples::to_controller() {
            let read: Option<ToController> =
                frame::read(&mut reader, Limit::CONTROL).await.unwrap();
            assert_eq!(read, Some(sent));
        }
    }
}
