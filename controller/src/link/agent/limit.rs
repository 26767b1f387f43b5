//! How often one address may do something: a fixed window of one minute, bounded in size.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const WINDOW: Duration = Duration::from_secs(60);
/// Addresses remembered at once. When more come within one minute, all of them share what is left:
/// newcomers are refused, which a flood of forged addresses cannot turn into memory.
const MAX_ADDRESSES: usize = 10_000;

/// Counts by address.
#[derive(Debug)]
pub(super) struct PerAddress {
    most: u32,
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    began: Duration,
    counts: HashMap<IpAddr, u32>,
}

impl PerAddress {
    /// Allows `most` per minute.
    pub(super) fn new(most: u32) -> Self {
        Self { most, window: Mutex::default() }
    }

    /// Counts one more at `now` (monotonic) and says whether it is still allowed.
    pub(super) fn allow(&self, address: IpAddr, now: Duration) -> bool {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_sub(window.began) >= WINDOW {
            *window = Window { began: now, counts: HashMap::new() };
        }
        if window.counts.len() >= MAX_ADDRESSES && !window.counts.contains_key(&address) {
            return false;
        }
        let count = window.counts.entry(address).or_default();
        *count = count.saturating_add(1);
        *count <= self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_refused_over_its_share_and_served_again_a_minute_later() {
        let limit = PerAddress::new(2);
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));

        assert!(limit.allow(one, Duration::ZERO));
        assert!(limit.allow(one, Duration::ZERO));
        assert!(!limit.allow(one, Duration::from_secs(59)));
        assert!(limit.allow(other, Duration::from_secs(59)));
        assert!(limit.allow(one, Duration::from_secs(60)));
    }

    #[test]
    fn a_flood_of_addresses_is_refused_without_remembering_it() {
        let limit = PerAddress::new(1);
        for n in 0..20_000_u32 {
            limit.allow(IpAddr::from(n.to_be_bytes()), Duration::ZERO);
        }

        let remembered = limit.window.lock().unwrap().counts.len();

        assert_eq!(remembered, MAX_ADDRESSES);
    }
}
