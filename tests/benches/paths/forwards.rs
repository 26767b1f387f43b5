//! A forward to an address, beside HAProxy in `mode tcp` and socat, all on this machine in one run.
//!
//! The three lead to the same server. Rounds are interleaved and the median counts. iperf3 makes the
//! bulk; connections, latency and datagrams are made here.

use std::net::{SocketAddr, TcpListener as StdListener, UdpSocket as StdUdp};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tianqi_tests::client::{Client, PATIENCE};
use tianqi_tests::cluster::Cluster;
use tianqi_tests::deadline::Deadline;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::report::{Line, Report, Times, ms};

const ROUNDS: usize = 3;
/// How long each measurement of each round takes.
const SPAN: Duration = Duration::from_secs(2);
const MANY: usize = 32;
const PINGS: usize = 3_000;
/// Bytes of a datagram.
const DATAGRAM: usize = 200;

/// A program that ends with its owner.
struct Running(Child);

impl Running {
    fn start(program: &str, args: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap_or_else(|error| panic!("{program}: {error}")))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The same target by three ways, and by none.
#[derive(Clone, Copy, Debug)]
struct Ways {
    direct: u16,
    ours: u16,
    haproxy: u16,
    socat: u16,
}

/// What a measurement gave by each way; the median of the rounds.
#[derive(Clone, Copy, Debug)]
struct Figures {
    direct: f64,
    ours: f64,
    haproxy: f64,
    socat: f64,
}

pub async fn measure(report: &mut Report) {
    let cluster = Cluster::start();
    let admin = cluster.admin().await;
    let folder = tempfile::tempdir().unwrap();
    let (bulk, echo) = (tcp_port(), tcp_port());
    let port = bulk.to_string();
    let _iperf = Running::start("iperf3", &["-s", "-p", &port, "-B", "127.0.0.1"]);
    wait_for(bulk).await;
    let listener = TcpListener::bind(("127.0.0.1", echo)).await.unwrap();
    tokio::spawn(serve_echo(listener));
    let (bulk, _bulk_peers) = ways(&admin, folder.path(), bulk).await;
    let (echo, _echo_peers) = ways(&admin, folder.path(), echo).await;

    for (what, streams) in
        [("forward, bytes on one connection", 1), ("forward, bytes on 32 connections", MANY)]
    {
        let figures = rounds(bulk, async |port| iperf(port, streams)).await;
        add(report, what, &figures, "MB/s");
    }
    let figures = rounds(echo, async |port| connections(port).await).await;
    add(report, "forward, new connections, 32 at a time", &figures, "/s");
    latency(report, echo).await;
    datagrams(report, &admin).await;
}

/// Puts ours, HAProxy and socat before a target.
async fn ways(admin: &Client, folder: &Path, target: u16) -> (Ways, [Running; 2]) {
    let ways = Ways { direct: target, ours: tcp_port(), haproxy: tcp_port(), socat: tcp_port() };
    let body = json!({ "listen_ip": "127.0.0.1", "listen_port": ways.ours,
        "target_ip": "127.0.0.1", "target_port": target });
    let made = admin.post("/forwards", &body).await;
    assert_eq!(made["live"]["state"], "listening", "{made}");
    let config = format!(
        "global\n maxconn 2000\ndefaults\n mode tcp\n option splice-auto\n timeout connect 10s\n \
         timeout client 1h\n timeout server 1h\nlisten bench\n bind 127.0.0.1:{}\n \
         server target 127.0.0.1:{target}\n",
        ways.haproxy
    );
    let file = folder.join(format!("haproxy-{target}.cfg"));
    std::fs::write(&file, config).unwrap();
    let haproxy = Running::start("haproxy", &["-db", "-f", file.to_str().unwrap()]);
    let listen = format!("TCP-LISTEN:{},bind=127.0.0.1,fork,reuseaddr,backlog=1024", ways.socat);
    let to = format!("TCP:127.0.0.1:{target}");
    let socat = Running::start("socat", &[&listen, &to]);
    wait_for(ways.haproxy).await;
    wait_for(ways.socat).await;
    (ways, [haproxy, socat])
}

async fn rounds(ways: Ways, measure: impl AsyncFn(u16) -> f64) -> Figures {
    let mut all: [Vec<f64>; 4] = Default::default();
    for _ in 0..ROUNDS {
        for (index, port) in
            [ways.direct, ways.ours, ways.haproxy, ways.socat].into_iter().enumerate()
        {
            all[index].push(measure(port).await);
        }
    }
    let [direct, ours, haproxy, socat] = all.map(median);
    Figures { direct, ours, haproxy, socat }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn add(report: &mut Report, what: &'static str, figures: &Figures, unit: &str) {
    let Figures { direct, ours, haproxy, socat } = *figures;
    report.add(&Line {
        what,
        ours: format!("{ours:.0} {unit}, median of {ROUNDS}"),
        peer: format!(
            "HAProxy {haproxy:.0}, socat {socat:.0}, without a forward {direct:.0} {unit}"
        ),
        ratio: format!("{:.2} of HAProxy, {:.2} of socat", ours / haproxy, ours / socat),
        bar: ">= 1 times HAProxy and socat",
        met: ours >= haproxy && ours >= socat,
        reason: "",
    });
}

/// Returns the bytes a second, in millions, that iperf3 gets through.
fn iperf(port: u16, streams: usize) -> f64 {
    let (port, streams, span) = (port.to_string(), streams.to_string(), SPAN.as_secs().to_string());
    let args = ["-c", "127.0.0.1", "-p", &port, "-P", &streams, "-t", &span, "-Z", "-J"];
    let output = Command::new("iperf3").args(args).output().expect("iperf3");
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    bits.unwrap_or_else(|| panic!("{report}")) / 8e6
}

/// Returns how many connections a second are made, used once and closed.
async fn connections(port: u16) -> f64 {
    let (made, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let one = |made: Arc<AtomicU64>, is_over: Arc<AtomicBool>| async move {
        while !is_over.load(Ordering::Relaxed) {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
            stream.write_all(b"x").await.expect("it takes a byte");
            stream.read_exact(&mut [0]).await.expect("it answers");
            made.fetch_add(1, Ordering::Relaxed);
            // A reset instead of a goodbye, so that ports do not run out.
            let _ = stream.set_zero_linger();
        }
    };
    let tasks: Vec<_> =
        (0..MANY).map(|_| tokio::spawn(one(made.clone(), is_over.clone()))).collect();
    let began = Instant::now();
    tokio::time::sleep(SPAN).await;
    let (count, lasted) = (made.load(Ordering::Relaxed), began.elapsed());
    is_over.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.expect("a client");
    }
    f64::from(u32::try_from(count).unwrap()) / lasted.as_secs_f64()
}

/// Sends a small question and waits for its answer, many times.
async fn latency(report: &mut Report, ways: Ways) {
    let mut all: [Vec<Duration>; 4] = Default::default();
    for _ in 0..ROUNDS {
        for (index, port) in
            [ways.direct, ways.ours, ways.haproxy, ways.socat].into_iter().enumerate()
        {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut buffer = [7; 64];
            for _ in 0..PINGS {
                let began = Instant::now();
                stream.write_all(&buffer).await.unwrap();
                stream.read_exact(&mut buffer).await.unwrap();
                all[index].push(began.elapsed());
            }
        }
    }
    let [direct, ours, haproxy, socat] = all.map(Times::new);
    let added = |times: &Times| ms(times.at(99)) - ms(direct.at(99));
    report.add(&Line {
        what: "forward, p99 latency that it adds",
        ours: format!("{:.3} ms (median {:.3} ms in all)", added(&ours), ms(ours.at(50))),
        peer: format!(
            "HAProxy {:.3} ms, socat {:.3} ms; without a forward p99 is {:.3} ms",
            added(&haproxy),
            added(&socat),
            ms(direct.at(99))
        ),
        ratio: format!("{:.2} of HAProxy", added(&ours) / added(&haproxy)),
        ..Line::default()
    });
}

/// Floods each way with datagrams and counts what arrives.
async fn datagrams(report: &mut Report, admin: &Client) {
    let sink = StdUdp::bind("127.0.0.1:0").unwrap();
    let target = sink.local_addr().unwrap().port();
    sink.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let (ours, socat) = (udp_port(), udp_port());
    let body = json!({ "listen_ip": "127.0.0.1", "listen_port": ours, "protocol": "udp",
        "target_ip": "127.0.0.1", "target_port": target });
    let made = admin.post("/forwards", &body).await;
    assert_eq!(made["live"]["state"], "listening", "{made}");
    let listen = format!("UDP-LISTEN:{socat},bind=127.0.0.1,fork,reuseaddr");
    let _peer = Running::start("socat", &[&listen, &format!("UDP:127.0.0.1:{target}")]);
    tokio::time::sleep(Duration::from_millis(300)).await;

    let arrived = Arc::new(AtomicU64::new(0));
    let is_over = Arc::new(AtomicBool::new(false));
    let counting = {
        let (arrived, is_over) = (arrived.clone(), is_over.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 2_048];
            while !is_over.load(Ordering::Relaxed) {
                if sink.recv(&mut buffer).is_ok() {
                    arrived.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    };
    let (mut own, mut peer) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        own.push(flood(ours, &arrived).await);
        peer.push(flood(socat, &arrived).await);
    }
    is_over.store(true, Ordering::Relaxed);
    counting.join().unwrap();
    let (own, peer) = (median(own), median(peer));
    report.add(&Line {
        what: "forward, datagrams of 200 bytes that arrive under a flood",
        ours: format!("{own:.0} /s, median of {ROUNDS}"),
        peer: format!("socat {peer:.0} /s"),
        ratio: format!("{:.2}", own / peer),
        bar: ">= 1 times socat",
        met: own >= peer,
        reason: "",
    });
}

async fn flood(port: u16, arrived: &Arc<AtomicU64>) -> f64 {
    let socket = StdUdp::bind("127.0.0.1:0").unwrap();
    socket.connect(("127.0.0.1", port)).unwrap();
    let before = arrived.load(Ordering::Relaxed);
    let sending = tokio::task::spawn_blocking(move || {
        let (began, datagram) = (Instant::now(), [7; DATAGRAM]);
        while began.elapsed() < SPAN {
            for _ in 0..64 {
                // A queue that is full loses it, as a flood may.
                let _ = socket.send(&datagram);
            }
        }
        began.elapsed()
    });
    let lasted = sending.await.unwrap();
    let count = arrived.load(Ordering::Relaxed) - before;
    tokio::time::sleep(Duration::from_millis(500)).await;
    f64::from(u32::try_from(count).unwrap()) / lasted.as_secs_f64()
}

async fn serve_echo(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        tokio::spawn(async move {
            let mut buffer = [0; 4_096];
            while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                if stream.write_all(&buffer[..length]).await.is_err() {
                    return;
                }
            }
        });
    }
}

async fn wait_for(port: u16) {
    let deadline = Deadline::after(PATIENCE);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    while TcpStream::connect(address).await.is_err() {
        deadline.pause_async("nobody listens").await;
    }
}

fn tcp_port() -> u16 {
    StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn udp_port() -> u16 {
    StdUdp::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
