//! What waits on a channel: in order, bounded, and holding the client back.

use proptest::prelude::*;
use tokio::io::AsyncReadExt as _;

use super::*;
use crate::features::jumpbox::flow::STUCK;

fn held_back(flow: &Flow) -> bool {
    flow.window() != WINDOW
}

#[tokio::test]
async fn pieces_come_out_as_they_went_in_and_small_ones_together() {
    let (intake, taker) = intake(Flow::default());
    for key in b"hello" {
        intake.data(&[*key]).unwrap();
    }
    intake.resize(PtySize { cols: 1, rows: 1 });
    intake.resize(PtySize { cols: 2, rows: 2 });
    intake.signal("INT".to_owned());
    intake.data(b"x").unwrap();
    intake.end();
    intake.end();
    intake.close();
    intake.data(b"too late").unwrap();

    assert_eq!(taker.next().await, Piece::Data(Bytes::from_static(b"hello")));
    assert_eq!(taker.next().await, Piece::Resize(PtySize { cols: 2, rows: 2 }));
    assert_eq!(taker.next().await, Piece::Signal("INT".to_owned()));
    assert_eq!(taker.next().await, Piece::Data(Bytes::from_static(b"x")));
    assert_eq!(taker.next().await, Piece::End);
    assert_eq!(taker.next().await, Piece::Closed);
    assert_eq!(taker.next().await, Piece::Closed);
}

#[tokio::test]
async fn a_client_is_held_back_while_too_much_waits() {
    let flow = Flow::default();
    let (intake, taker) = intake(flow.clone());
    let piece = vec![7; 32 << 10];
    while !held_back(&flow) {
        intake.data(&piece).unwrap();
    }

    let waiting = intake.0.with(|state| state.bytes);
    assert!((HIGH..HIGH + piece.len()).contains(&waiting));
    while intake.0.with(|state| state.bytes) > LOW {
        assert!(held_back(&flow), "it may not go on before it has caught up");
        taker.next().await;
    }
    assert!(!held_back(&flow));
}

#[tokio::test]
async fn a_channel_that_goes_holds_nobody_back() {
    let flow = Flow::default();
    let (first, taker) = intake(flow.clone());
    first.data(&vec![7; HIGH]).unwrap();
    assert!(held_back(&flow));
    drop(taker);
    assert!(!held_back(&flow) && first.is_closed());

    let (second, taker) = intake(flow.clone());
    second.data(&vec![7; HIGH]).unwrap();
    second.close();
    assert!(!held_back(&flow));
    while taker.next().await != Piece::Closed {}
    assert!(!held_back(&flow), "it is released once");
}

#[test]
fn a_client_that_ignores_its_window_is_found_out() {
    let (intake, _taker) = intake(Flow::default());
    let piece = vec![7; CHUNK];

    let most = (0..).take_while(|_| intake.data(&piece).is_ok()).count() * CHUNK;

    assert!(most <= MOST && most > MOST - CHUNK, "{most}");
    for _ in 0..1_000_000 {
        intake.signal("INT".to_owned());
    }
    assert!(intake.0.with(|state| state.items.len()) < MOST / CHUNK + ODD_MOST + 2);
}

#[tokio::test(start_paused = true)]
async fn a_full_channel_is_stuck_only_while_others_wait_beside_it() {
    let (intake, taker) = intake(Flow::default());
    intake.data(&vec![7; HIGH]).unwrap();

    let alone = tokio::time::timeout(STUCK * 3, taker.stuck(STUCK, || false)).await;
    assert!(alone.is_err(), "it harms nobody");
    let began = tokio::time::Instant::now();
    taker.stuck(STUCK, || true).await;
    assert!(began.elapsed() >= STUCK, "{:?}", began.elapsed());

    let moving = async {
        loop {
            taker.next().await;
            intake.data(&vec![7; CHUNK]).unwrap();
            tokio::time::sleep(STUCK / 10).await;
        }
    };
    let stuck = tokio::select! {
        () = taker.stuck(STUCK, || true) => true,
        () = moving => true,
        () = tokio::time::sleep(STUCK * 5) => false,
    };
    assert!(!stuck, "a slow channel is not a stuck one");
}

#[tokio::test]
async fn a_channel_read_as_a_stream_gives_every_byte_and_its_end() {
    let (intake, taker) = intake(Flow::default());
    let (writer, _reader) = tokio::io::duplex(16);
    let mut stream = Bytestream::new(taker, writer);
    let sent: Vec<u8> = (0..200_000_u32).map(|i| i.to_le_bytes()[0]).collect();
    for piece in sent.chunks(777) {
        intake.data(piece).unwrap();
        intake.resize(PtySize { cols: 1, rows: 1 });
    }
    intake.end();

    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.unwrap();

    assert!(got == sent);
}

proptest! {
    #[test]
    fn no_course_of_putting_in_and_taking_out_loses_or_turns_a_byte(
        steps in proptest::collection::vec((0_usize..100_000, 0_usize..4), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let flow = Flow::default();
            let (intake, taker) = intake(flow.clone());
            let (mut put, mut got, mut next) = (0_u64, 0_u64, 0_u8);
            let mut waiting = 0_usize;
            for (size, takes) in steps {
                let data: Vec<u8> = (0..size).map(|i| ((put + i as u64) % 251) as u8).collect();
                if intake.data(&data).is_ok() {
                    put += size as u64;
                    waiting += size;
                }
                for _ in 0..takes {
                    if waiting == 0 { break; }
                    let Piece::Data(bytes) = taker.next().await else { panic!("bytes are there") };
                    assert!(bytes.len() <= CHUNK);
                    for byte in &bytes {
                        assert_eq!(*byte, next);
                        next = if next == 250 { 0 } else { next + 1 };
                    }
                    got += bytes.len() as u64;
                    waiting -= bytes.len();
                }
                assert_eq!(put - got, waiting as u64);
                assert!(waiting <= MOST);
                assert!(waiting < HIGH || held_back(&flow));
                assert!(waiting > LOW || !held_back(&flow));
            }
        });
    }
}
