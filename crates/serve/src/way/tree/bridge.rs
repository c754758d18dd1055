//! Bridges, as `/sys` shows them: QEMU's PCI Express root port, with its bus.
//!
//! Source: PCIe Base Specification 6.0, 7.5.1.3 and 7.5.3; QEMU, `docs/pcie.txt`.

use std::sync::Arc;

use super::nodes::{Node, Nodes};
use super::sys::{bus_of, up};
use crate::bus::Bus;
use crate::watch::PciDevice;

/// QEMU's root port, and the driver that Linux has for it.
const VENDOR: u16 = 0x1b36;
const DEVICE: u16 = 0x000c;
const DRIVER: &str = "pcieport";
/// PCI bridge, normal decode.
const CLASS: u32 = 0x06_0400;
/// Where its one capability is.
const EXPRESS: usize = 0x40;

/// Where a bridge is in `sys/devices`; its bus is below it.
pub(super) fn place(bus: &Bus) -> String {
    format!("{}/{}", bus_of(bus.bridge()), bus.bridge())
}

/// Adds what shows a bridge to those of these devices that are behind it.
pub(super) fn add(nodes: &mut Nodes, bus: &Bus, devices: &[Arc<PciDevice>]) {
    let rid = bus.bridge();
    let place = format!("devices/{}", place(bus));
    let (home, up) = (format!("sys/{place}"), up(&place));
    let id = format!("v{VENDOR:08X}d{DEVICE:08X}sv00000000sd00000000bc06sc04i00");
    let uevent = format!(
        "DRIVER={DRIVER}\nPCI_CLASS={CLASS:X}\nPCI_ID={VENDOR:04X}:{DEVICE:04X}\nPCI_SUBSYS_ID=0000:0000\n\
         PCI_SLOT_NAME={rid}\nMODALIAS=pci:{id}\n"
    );
    let texts = [
        ("vendor", format!("0x{VENDOR:04x}\n")),
        ("device", format!("0x{DEVICE:04x}\n")),
        ("subsystem_vendor", "0x0000\n".to_owned()),
        ("subsystem_device", "0x0000\n".to_owned()),
        ("class", format!("0x{CLASS:06x}\n")),
        ("revision", "0x00\n".to_owned()),
        ("resource", "0x0000000000000000 0x0000000000000000 0x0000000000000000\n".repeat(13)),
        ("irq", "0\n".to_owned()),
        ("numa_node", "-1\n".to_owned()),
        ("secondary_bus_number", format!("{}\n", bus.number())),
        ("subordinate_bus_number", format!("{}\n", bus.number())),
        ("modalias", format!("pci:{id}\n")),
        ("uevent", uevent),
    ];
    for (name, text) in texts {
        nodes.add(&format!("{home}/{name}"), Node::Text(text));
    }
    nodes.add(&format!("{home}/config"), Node::Bytes(config(bus.number(), window(bus, devices))));
    let links = [
        (format!("sys/bus/pci/devices/{rid}"), format!("../../../{place}")),
        (format!("sys/bus/pci/drivers/{DRIVER}/{rid}"), format!("../../../../{place}")),
        (format!("{home}/subsystem"), format!("{up}bus/pci")),
        (format!("{home}/driver"), format!("{up}bus/pci/drivers/{DRIVER}")),
    ];
    for (path, target) in links {
        nodes.add(&path, Node::Link(target));
    }
}

/// The first and the last address of the BARs behind a bridge, in units of 64 KiB.
fn window(bus: &Bus, devices: &[Arc<PciDevice>]) -> (u16, u16) {
    let behind = devices.iter().filter(|device| device.bus.as_ref().is_some_and(|of| of.bridge() == bus.bridge()));
    let ends = behind.flat_map(|device| {
        let function = device.vfio.function();
        function.spec().bars.iter().filter_map(|bar| {
            let first = function.bar_address(bar.index)?;
            Some((first >> 16, (first + bar.size - 1) >> 16))
        })
    });
    let (first, last) = ends.fold((u64::MAX, 0), |(first, last), bar| (first.min(bar.0), last.max(bar.1)));
    (first as u16, last as u16)
}

/// Configuration space of a root port with a bus of this number, and with this window of memory.
fn config(bus: u8, (first, last): (u16, u16)) -> Vec<u8> {
    let mut config = vec![0; 256];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x00, &VENDOR.to_le_bytes());
    put(0x02, &DEVICE.to_le_bytes());
    // Memory space, bus master; a list of capabilities.
    put(0x04, &[0x06, 0, 0x10, 0]);
    put(0x09, &CLASS.to_le_bytes()[..3]);
    // A bridge's header.
    put(0x0e, &[1]);
    // Its buses: the primary is the root bus.
    put(0x18, &[0, bus, bus]);
    // Windows go by units of 1 MiB; those of I/O and of prefetchable memory are closed.
    put(0x1c, &[0xf0, 0]);
    put(0x20, &(first & 0xfff0).to_le_bytes());
    put(0x22, &(last & 0xfff0).to_le_bytes());
    put(0x24, &[0xf0, 0xff, 0, 0]);
    put(0x34, &[EXPRESS as u8]);
    // A root port with a slot, and a link of one lane at 8 GT/s.
    put(EXPRESS, &[0x10, 0, 0x42, 0x01]);
    put(EXPRESS + 0x0c, &[0x13, 0, 0, 0]);
    put(EXPRESS + 0x12, &[0x13, 0]);
    put(EXPRESS + 0x2c, &[0x0e, 0, 0, 0]);
    put(EXPRESS + 0x30, &[0x03, 0]);
    config
}
