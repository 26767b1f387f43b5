use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::net::UdpSocket;

use super::{PATIENCE, World, free};

async fn bound() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").await.unwrap()
}

async fn received(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 65_536];
    let got = tokio::time::timeout(PATIENCE, socket.recv_from(&mut buffer)).await;
    let (length, from) = got.expect("a datagram comes").unwrap();
    buffer.truncate(length);
    (buffer, from)
}

/// A server that sends every datagram back `times` times.
async fn echoing(times: usize) -> SocketAddr {
    let socket = bound().await;
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            for _ in 0..times {
                socket.send_to(&buffer[..length], from).await.unwrap();
            }
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reply_finds_its_way_back_and_datagrams_keep_their_borders() {
    let world = World::listening().await;
    let target = echoing(3).await;
    let (forward, listen) = world.leads_to(target, json!({ "protocol": "udp" })).await;
    let client = bound().await;

    for length in [0_usize, 1, 1_472, 1_473, 9_000, 65_507] {
        client.send_to(&vec![9; length], listen).await.unwrap();
        for reply in 0..3 {
            let (bytes, from) = received(&client).await;
            assert_eq!((bytes.len(), from), (length, listen), "reply {reply}");
        }
    }

    let live = world.get(&forward).await["live"].clone();
    assert_eq!(
        (&live["connections"], &live["total_connections"]),
        (&json!(1), &json!(1)),
        "{live}"
    );
}

/// D-93: one buffer shared by all made clients get each other's bytes.
#[tokio::test(flavor = "multi_thread")]
async fn many_clients_at_once_never_get_each_others_bytes() {
    let world = World::listening().await;
    let target = echoing(2).await;
    let fields = json!({ "protocol": "udp", "max_connections": 100 });
    let (forward, listen) = world.leads_to(target, fields).await;
    let (clients, rounds) = (40_usize, 40_usize);
    let one = |number: usize| async move {
        let client = bound().await;
        let mut replies = 0;
        for round in 0..rounds {
            let sent = format!("{number}/{round};").repeat(1 + (number * 7 + round) % 60);
            client.send_to(sent.as_bytes(), listen).await.unwrap();
            for _ in 0..2 {
                let mut buffer = vec![0; 65_536];
                // A datagram may be lost; it may not be somebody else's.
                let wait = Duration::from_millis(500);
                let got = tokio::time::timeout(wait, client.recv_from(&mut buffer)).await;
                let Ok(Ok((length, _))) = got else { break };
                let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
                let mine = format!("{number}/");
                let parts: Vec<_> = text.split_terminator(';').collect();
                assert!(parts.iter().all(|it| it.starts_with(&mine) && *it == parts[0]), "{text}");
                replies += 1;
            }
        }
        replies
    };

    let all: Vec<_> = (0..clients).map(|number| tokio::spawn(one(number))).collect();
    let mut replies = 0;
    for each in all {
        replies += tokio::time::timeout(PATIENCE, each).await.unwrap().unwrap();
    }

    assert!(replies * 10 >= clients * rounds * 2 * 9, "{replies} replies came");
    assert_eq!(world.get(&forward).await["live"]["connections"], clients);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flow_that_rests_ends_and_its_client_may_come_again() {
    let world = World::listening().await;
    let target = echoing(1).await;
    let fields = json!({ "protocol": "udp", "udp_idle_s": 60 });
    let (forward, listen) = world.leads_to(target, fields).await;
    let (client, resting) = (bound().await, bound().await);
    for client in [&client, &resting] {
        client.send_to(b"one", listen).await.unwrap();
        received(client).await;
    }

    world.api.clock.advance(Duration::from_secs(59));
    client.send_to(b"two", listen).await.unwrap();
    received(&client).await;
    world.api.clock.advance(Duration::from_secs(2));
    // The one that rested goes, the one that was used stays: both are looked at together.
    world.until(&forward, |live| live["connections"] == 1).await;
    client.send_to(b"still the same flow", listen).await.unwrap();
    received(&client).await;
    assert_eq!(world.get(&forward).await["live"]["total_connections"], 2);
    world.api.clock.advance(Duration::from_secs(61));
    world.until(&forward, |live| live["connections"] == 0).await;

    client.send_to(b"three", listen).await.unwrap();
    assert_eq!(received(&client).await.0, b"three");
    let live = world.get(&forward).await["live"].clone();
    assert_eq!(live["total_connections"], 3, "{live}");
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_are_limited_and_end_when_the_forward_is_switched_off() {
    let world = World::listening().await;
    let target = echoing(1).await;
    let fields = json!({ "protocol": "udp", "max_connections": 2 });
    let (forward, listen) = world.leads_to(target, fields).await;
    let clients = [bound().await, bound().await, bound().await];
    for client in &clients {
        client.send_to(b"x", listen).await.unwrap();
    }
    let live = world.until(&forward, |live| live["refused_connections"] == 1).await["live"].clone();
    assert_eq!(live["connections"], 2, "{live}");

    let off = world.change(&forward, json!({ "enabled": false })).await;

    assert_eq!(
        (&off["live"]["state"], &off["live"]["connections"]),
        (&json!("stopped"), &json!(0))
    );
    assert!(std::net::UdpSocket::bind(listen).is_ok(), "the port is still taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_not_there_is_told_of_and_may_come_back() {
    let world = World::listening().await;
    let gone = free(true);
    let (forward, listen) = world.leads_to(gone, json!({ "protocol": "udp" })).await;
    let client = bound().await;
    client.send_to(b"x", listen).await.unwrap();
    world.until(&forward, |live| live["last_error"].is_string()).await;

    let back = Arc::new(UdpSocket::bind(gone).await.unwrap());
    let asking = async {
        loop {
            client.send_to(b"again", listen).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let heard = async { received(&back).await.0 };
    tokio::select! {
        () = asking => {}
        bytes = heard => assert_eq!(bytes, b"again"),
    }
}
