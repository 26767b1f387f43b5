//! What the kernel says of a process.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

/// Ticks of `/proc/PID/stat` in a second, on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// Returns the resident memory of a process in MB (10^6 bytes).
pub fn rss_mb(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    let kib: f64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("kB");
    kib * 1_024.0 / 1_000_000.0
}

/// Returns the seconds of CPU that a process has used.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    // The name may hold spaces; it ends with the last parenthesis.
    let (_, rest) = stat.rsplit_once(')').expect("stat");
    let ticks = rest.split_whitespace().skip(11).take(2);
    ticks.map(|ticks| ticks.parse::<f64>().expect("ticks")).sum::<f64>() / TICKS_PER_SECOND
}

/// Returns the seconds of CPU that the whole machine has used since its start.
pub fn machine_cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/stat").expect("/proc/stat");
    let numbers = stat.lines().next().into_iter().flat_map(str::split_whitespace).skip(1);
    let ticks: Vec<f64> = numbers.map(|ticks| ticks.parse().expect("ticks")).collect();
    // User, nice, system; idle and waiting; interrupts; the rest is counted in these.
    let [user, nice, system, _, _, interrupt, soft, ..] = ticks[..] else { panic!("{stat}") };
    (user + nice + system + interrupt + soft) / TICKS_PER_SECOND
}

/// Returns the share of one core, in percent, that a process uses over `span`, and its largest
/// resident memory in MB.
pub async fn watch(pid: u32, span: Duration) -> (f64, f64) {
    let (began, before) = (std::time::Instant::now(), cpu_seconds(pid));
    let mut most = rss_mb(pid);
    while began.elapsed() < span {
        tokio::time::sleep(Duration::from_secs(1)).await;
        most = most.max(rss_mb(pid));
    }
    let used = cpu_seconds(pid) - before;
    (100.0 * used / began.elapsed().as_secs_f64(), most)
}

/// Returns two addresses on loopback that were free a moment ago, one for TCP and one for UDP.
pub fn free_addresses() -> (String, String) {
    let tcp = TcpListener::bind("127.0.0.1:0").expect("free port");
    let udp = UdpSocket::bind("127.0.0.1:0").expect("free port");
    let text = |address: std::io::Result<std::net::SocketAddr>| address.expect("port").to_string();
    (text(tcp.local_addr()), text(udp.local_addr()))
}
