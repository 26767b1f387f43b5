use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::{PATIENCE, World, free, path};
use crate::features::forwards::live;
use crate::features::forwards::pump;
use crate::link::WorkStream;
use crate::testing::Api;

/// A server that answers what it was sent, once its client has ended.
async fn answering() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await.unwrap();
                stream.write_all(&all).await.unwrap();
            });
        }
    });
    address
}

/// A server that echoes at once.
async fn echoing() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    address
}

async fn ends(stream: &mut TcpStream) {
    let read = tokio::time::timeout(Duration::from_secs(2), stream.read(&mut [0])).await;
    assert!(matches!(read, Ok(Ok(0) | Err(_))), "it is still open: {read:?}");
}

async fn echo(stream: &mut TcpStream) {
    stream.write_all(b"hello").await.unwrap();
    let mut answer = [0; 5];
    let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer)).await;
    read.unwrap().unwrap();
    assert_eq!(&answer, b"hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn half_closed_client_still_gets_the_whole_reply() {
    let world = World::listening().await;
    let (forward, listen) = world.leads_to(answering().await, json!({})).await;

    // Short enough to be copied, and long enough to be spliced.
    for length in [0_usize, 1, 100_000, 8_000_000] {
        let sent: Vec<u8> = (0..length).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let (mut read, mut write) = TcpStream::connect(listen).await.unwrap().into_split();
        let writing = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let reading = async { read.read_to_end(&mut got).await.unwrap() };
        tokio::time::timeout(PATIENCE, async { tokio::join!(writing, reading) }).await.unwrap();

        assert!(got == sent, "{} of {length} bytes came back", got.len());
    }

    let live = world.until(&forward, |live| live["connections"] == 0).await["live"].clone();
    assert_eq!((&live["bytes_in"], &live["bytes_out"]), (&json!(8_100_001), &json!(8_100_001)));
    assert_eq!((&live["total_connections"], &live["last_error"]), (&json!(4), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_reader_slows_its_sender_down_and_costs_no_memory() {
    let world = World::listening().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (forward, listen) = world.leads_to(listener.local_addr().unwrap(), json!({})).await;
    let mut client = TcpStream::connect(listen).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();

    // Nobody reads: what the sockets and one pipe hold goes in, and no more.
    let (block, mut sent) = (vec![7_u8; 1 << 20], 0_usize);
    while let Ok(taken) =
        tokio::time::timeout(Duration::from_millis(500), client.write(&block)).await
    {
        sent += taken.unwrap();
        assert!(sent < 64 << 20, "it is kept somewhere");
    }
    let held = world.get(&forward).await["live"]["bytes_in"].as_u64().unwrap();
    assert!(held <= u64::try_from(sent).unwrap(), "{held} of {sent}");

    client.shutdown().await.unwrap();
    let mut got = Vec::new();
    tokio::time::timeout(PATIENCE, server.read_to_end(&mut got)).await.unwrap().unwrap();
    assert_eq!(got.len(), sent, "what went in comes out");
}

#[tokio::test(flavor = "multi_thread")]
async fn switching_off_and_deleting_end_what_is_open_at_once_and_free_the_port() {
    let world = World::listening().await;
    let (forward, listen) = world.leads_to(echoing().await, json!({})).await;
    let mut open = TcpStream::connect(listen).await.unwrap();
    echo(&mut open).await;

    let off = world
        .api
        .call(&world.admin, "PUT", &format!("{forward}/enabled"), Some(json!({ "enabled": false })))
        .await;

    assert_eq!(off.body["live"]["state"], "stopped", "{off:?}");
    ends(&mut open).await;
    assert!(TcpStream::connect(listen).await.is_err(), "the port is still there");
    assert_eq!(world.get(&forward).await["live"]["connections"], 0);
    let carried = world.audited("forwards:carry").await;
    let detail = &carried[0]["detail"];
    assert_eq!(
        (&detail["connections"], &detail["bytes_in"]),
        (&json!(1), &json!(5)),
        "{carried:?}"
    );
    assert_eq!(detail["reason"], "switched_off");

    world.change(&forward, json!({ "enabled": true })).await;
    let mut open = TcpStream::connect(listen).await.unwrap();
    echo(&mut open).await;
    world.api.call(&world.admin, "DELETE", &forward, None).await;
    ends(&mut open).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn words_and_limits_change_without_closing_anything_and_another_way_closes_it() {
    let world = World::listening().await;
    let (forward, listen) = world.leads_to(echoing().await, json!({})).await;
    let (other, beside) = world.leads_to(echoing().await, json!({})).await;
    let mut open = TcpStream::connect(listen).await.unwrap();
    let mut neighbour = TcpStream::connect(beside).await.unwrap();
    echo(&mut open).await;

    world.change(&forward, json!({ "description": "changed", "max_connections": 1 })).await;
    echo(&mut open).await;
    let mut second = TcpStream::connect(listen).await.unwrap();
    ends(&mut second).await;
    let live = world.get(&forward).await["live"].clone();
    assert!(live["last_error"].as_str().unwrap().contains("1 connections"), "{live}");
    assert_eq!(live["refused_connections"], 1, "{live}");

    let target = echoing().await;
    world.change(&forward, json!({ "target_port": target.port(), "max_connections": 9 })).await;
    ends(&mut open).await;
    echo(&mut TcpStream::connect(listen).await.unwrap()).await;
    echo(&mut neighbour).await;
    assert_eq!(world.get(&other).await["live"]["connections"], 1, "another forward is not touched");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_allowed_sources_come_in() {
    let world = World::listening().await;
    let (forward, listen) =
        world.leads_to(echoing().await, json!({ "allowed_sources": ["10.0.0.0/8"] })).await;

    let mut refused = TcpStream::connect(listen).await.unwrap();
    ends(&mut refused).await;
    let live = world.get(&forward).await["live"].clone();
    assert!(live["last_error"].as_str().unwrap().contains("127.0.0.1"), "{live}");

    world.change(&forward, json!({ "allowed_sources": ["127.0.0.0/8"] })).await;
    echo(&mut TcpStream::connect(listen).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_an_error_with_its_reason_until_it_is_free() {
    let world = World::listening().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap();
    let target = echoing().await;

    let made = world
        .made(json!({ "listen_port": listen.port(), "target_ip": "127.0.0.1",
            "target_port": target.port() }))
        .await;

    assert_eq!(made["live"]["state"], "error", "{made}");
    assert!(made["live"]["reason"].as_str().unwrap().contains("taken"), "{made}");
    let listed = world.get("/forwards?state=error").await;
    assert_eq!(listed["total"], 1, "{listed}");
    drop(taken);
    world.until(&path(&made), |live| live["state"] == "listening").await;
    echo(&mut TcpStream::connect(listen).await.unwrap()).await;
    let elsewhere = json!({ "listen_ip": "192.0.2.1", "listen_port": 8_080,
        "target_ip": "127.0.0.1", "target_port": 1 });
    let made = world.made(elsewhere).await;
    assert!(made["live"]["reason"].as_str().unwrap().contains("not an address"), "{made}");
}

#[tokio::test(flavor = "multi_thread")]
async fn forwards_listen_again_after_a_restart_and_all_end_with_the_controller() {
    let mut world = World::listening().await;
    let (forward, listen) = world.leads_to(echoing().await, json!({})).await;
    let mut open = TcpStream::connect(listen).await.unwrap();
    echo(&mut open).await;

    world.end().await;
    ends(&mut open).await;
    assert!(TcpStream::connect(listen).await.is_err());
    world.keep().await;

    assert_eq!(world.get(&forward).await["live"]["state"], "listening");
    echo(&mut TcpStream::connect(listen).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_not_there_is_told_of_and_its_clients_are_let_go() {
    let mut world = World::with(Api::sqlite().await, |config| config.connect_seconds = 1).await;
    world.keep().await;
    let (forward, listen) = world.leads_to(free(false), json!({})).await;
    ends(&mut TcpStream::connect(listen).await.unwrap()).await;
    let live = world.get(&forward).await["live"].clone();
    assert!(live["last_error"].as_str().unwrap().contains("cannot be reached"), "{live}");

    // A listener whose queue is full answers nobody, as a machine that is switched off.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    full.listen(0).unwrap();
    let silent = full.local_addr().unwrap().as_socket().unwrap();
    let _queued = TcpStream::connect(silent).await.unwrap();
    let (forward, listen) = world.leads_to(silent, json!({})).await;
    let mut client = TcpStream::connect(listen).await.unwrap();
    let read = tokio::time::timeout(PATIENCE, client.read(&mut [0])).await;
    assert!(read.is_ok(), "it waits for ever");
    let live = world.get(&forward).await["live"].clone();
    assert!(live["last_error"].as_str().unwrap().contains("no answer within 1s"), "{live}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_connections_at_once_are_carried_each_to_its_own_end() {
    let world = World::listening().await;
    let (forward, listen) = world.leads_to(answering().await, json!({})).await;
    let one = |number: u32| async move {
        let mut stream = TcpStream::connect(listen).await?;
        let text = number.to_string().repeat(5_000);
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await?;
        let mut got = String::new();
        stream.read_to_string(&mut got).await?;
        assert!(got == text, "connection {number} got something else");
        io::Result::Ok(())
    };

    let all: Vec<_> = (0..300).map(|number| tokio::spawn(one(number))).collect();
    for each in all {
        tokio::time::timeout(PATIENCE, each).await.unwrap().unwrap().unwrap();
    }

    let live = world.until(&forward, |live| live["connections"] == 0).await["live"].clone();
    assert_eq!(live["total_connections"], 300, "{live}");
}

#[tokio::test]
async fn a_stream_into_an_instance_keeps_half_close_too() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    let (ours, theirs) = tokio::io::duplex(1_024);
    let (reader, writer) = tokio::io::split(theirs);
    let work = WorkStream::from_halves(reader, writer);
    let meter = Arc::new(live::Meter::default());
    let pumping = {
        let meter = meter.clone();
        tokio::spawn(async move {
            let tally = live::Tally::default();
            let ended = pump::carry(accepted, work, &meter, &tally).await;
            (ended, tally.bytes())
        })
    };

    let (mut from_pump, mut to_pump) = tokio::io::split(ours);
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut asked = String::new();
    from_pump.read_to_string(&mut asked).await.unwrap();
    to_pump.write_all(b"the answer").await.unwrap();
    to_pump.shutdown().await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();

    assert_eq!((asked.as_str(), answer.as_str()), ("question", "the answer"));
    let (ended, bytes) = pumping.await.unwrap();
    assert!(ended.is_ok(), "{ended:?}");
    assert_eq!(bytes, (8, 10));
}
