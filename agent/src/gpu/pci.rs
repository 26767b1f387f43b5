//! Where cards sit: PCI addresses, NUMA nodes, and the NVLinks between cards.

use std::collections::BTreeMap;
use std::path::Path;

use tianqi_common::wire::inventory::GpuCard;

/// The active NVLinks of one card, by where they lead.
#[derive(Debug, Default)]
pub struct Wires {
    /// Links to another card, by its address as [`pci_key`] writes it.
    pub to_card: BTreeMap<String, u32>,
    /// Links to a switch.
    pub to_switch: u32,
}

impl Wires {
    /// Counts the links between two cards; only what both ends report counts.
    #[must_use]
    pub fn between(&self, here: &GpuCard, other: &Self, there: &GpuCard) -> u32 {
        let out = self.to_card.get(&pci_key(&there.pci_bus_id)).copied().unwrap_or(0);
        let back = other.to_card.get(&pci_key(&here.pci_bus_id)).copied().unwrap_or(0);
        out.min(back).saturating_add(self.to_switch.min(other.to_switch))
    }
}

/// Returns the NUMA node of a PCI device; firmware that does not know it says −1.
#[must_use]
pub fn numa_node(sysfs: &Path, pci_bus_id: &str) -> Option<u32> {
    let file = sysfs.join("bus/pci/devices").join(pci_key(pci_bus_id)).join("numa_node");
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Returns a PCI address the way the kernel writes it: `0000:3b:00.0`. NVML writes eight digits for
/// the domain, older libraries four.
#[must_use]
pub fn pci_key(bus_id: &str) -> String {
    let lower = bus_id.trim().to_ascii_lowercase();
    let Some((domain, rest)) = lower.split_once(':') else { return lower };
    let domain = domain.trim_start_matches('0');
    format!("{domain:0>4}:{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_addresses_are_written_like_the_kernel_does() {
        assert_eq!(pci_key("00000000:3B:00.0"), "0000:3b:00.0");
        assert_eq!(pci_key("0000:3b:00.0"), "0000:3b:00.0");
        assert_eq!(pci_key("00010000:01:00.0"), "10000:01:00.0");
        assert_eq!(pci_key("nonsense"), "nonsense");
    }

    #[test]
    fn numa_node_is_absent_where_the_firmware_does_not_tell() {
        let sysfs = tempfile::tempdir().unwrap();
        let device = sysfs.path().join("bus/pci/devices/0000:3b:00.0");
        std::fs::create_dir_all(&device).unwrap();

        std::fs::write(device.join("numa_node"), "1\n").unwrap();
        assert_eq!(numa_node(sysfs.path(), "00000000:3B:00.0"), Some(1));

        std::fs::write(device.join("numa_node"), "-1\n").unwrap();
        assert_eq!(numa_node(sysfs.path(), "00000000:3B:00.0"), None);
        assert_eq!(numa_node(sysfs.path(), "00000000:3C:00.0"), None);
    }
}
