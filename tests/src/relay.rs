//! The network between agents and a controller, which a test may cut.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// Largest datagram that UDP can carry.
const DATAGRAM: usize = 65_536;

/// Passes datagrams both ways between any number of agents and one controller, or drops them.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    is_cut: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Starts a relay to a controller's agent port, such as `127.0.0.1:8891`.
    ///
    /// # Panics
    ///
    /// When no socket can be had.
    pub async fn start(controller: &str) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").await.expect("relay socket");
        let address = front.local_addr().expect("relay address");
        let is_cut = Arc::new(AtomicBool::new(false));
        let controller = controller.parse().expect("an address");
        let task = tokio::spawn(forward(Arc::new(front), controller, is_cut.clone()));
        Self { address, is_cut, task }
    }

    /// Returns where agents connect.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Drops every datagram from here on, both ways, without a word to either side.
    pub fn cut(&self) {
        self.is_cut.store(true, Ordering::Relaxed);
    }

    /// Passes datagrams again.
    pub fn mend(&self) {
        self.is_cut.store(false, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(front: Arc<UdpSocket>, controller: SocketAddr, is_cut: Arc<AtomicBool>) {
    let mut backs: HashMap<SocketAddr, (Arc<UdpSocket>, AbortOnDrop)> = HashMap::new();
    let mut datagram = vec![0; DATAGRAM];
    loop {
        let Ok((size, agent)) = front.recv_from(&mut datagram).await else { continue };
        if is_cut.load(Ordering::Relaxed) {
            continue;
        }
        let (back, _) = match backs.entry(agent) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let back = UdpSocket::bind("127.0.0.1:0").await.expect("relay socket");
                let back = Arc::new(back);
                let answers = answer(front.clone(), back.clone(), agent, is_cut.clone());
                unknown.insert((back, AbortOnDrop(tokio::spawn(answers))))
            }
        };
        // A datagram that cannot be sent is lost, as on any network.
        let _ = back.send_to(&datagram[..size], controller).await;
    }
}

async fn answer(
    front: Arc<UdpSocket>,
    back: Arc<UdpSocket>,
    agent: SocketAddr,
    is_cut: Arc<AtomicBool>,
) {
    let mut datagram = vec![0; DATAGRAM];
    loop {
        // An error is a refusal that the controller's machine sent while nothing listened.
        let Ok(size) = back.recv(&mut datagram).await else { continue };
        if !is_cut.load(Ordering::Relaxed) {
            let _ = front.send_to(&datagram[..size], agent).await;
        }
    }
}

/// A task that ends with its owner.
#[derive(Debug)]
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn datagrams_pass_both_ways_until_the_cut_and_after_it() {
        let controller = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let relay = Relay::start(&controller.local_addr().unwrap().to_string()).await;
        let agent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        agent.connect(relay.address()).await.unwrap();
        let mut datagram = [0; 16];

        agent.send(b"there").await.unwrap();
        let (size, from) = controller.recv_from(&mut datagram).await.unwrap();
        assert_eq!(&datagram[..size], b"there");
        controller.send_to(b"back", from).await.unwrap();
        let size = agent.recv(&mut datagram).await.unwrap();
        assert_eq!(&datagram[..size], b"back");

        relay.cut();
        agent.send(b"lost").await.unwrap();
        let silence = Duration::from_millis(200);
        let heard = tokio::time::timeout(silence, controller.recv_from(&mut datagram)).await;
        assert!(heard.is_err(), "a cut relay passed something");
        relay.mend();
        agent.send(b"again").await.unwrap();
        let (size, _) = controller.recv_from(&mut datagram).await.unwrap();
        assert_eq!(&datagram[..size], b"again");
    }
}
