//! The part of `/sys` that belongs to the devices.
//!
//! ```text
//!   sys/bus/pci/{drivers_probe,…}
//!   sys/bus/pci/devices/0001:00:01.0 ─►
//!   sys/devices/pci0001:00/0001:00:01.0/{vendor,…,config,resourceN,driver_override,iommu_group ─►,driver ─►,vfio-dev/vfioN/dev}
//!   sys/bus/pci/drivers/vfio-pci/{bind,unbind,new_id,remove_id,0001:00:01.0 ─►,module ─►}
//!   sys/kernel/iommu_groups/G/{type,reserved_regions,devices/0001:00:01.0 ─►}
//!   sys/module/{vfio,vfio_pci,…}
//!   sys/kernel/debug/fail*/…                                  in a run for Linux's own tests
//! ```
//! Source: Linux `Documentation/ABI/testing/sysfs-bus-pci`, `sysfs-kernel-iommu_groups`, `vfio-dev`, and what a machine
//! with VFIO shows.

use std::fmt::Write as _;

use ioasid::Rid;
use ioasid_vfio::{BarKind, Function};

use super::bridge;
use super::nodes::{CDEV_MAJOR, DeviceFile, Node, Nodes};
use crate::driver::VFIO_PCI;
use crate::server::Attribute;
use crate::watch::PciDevice;

/// What a kernel that injects failures has in debugfs. Here they are injected without regard to what would have failed.
const SWITCHES: [&str; 6] = [
    "failslab/ignore-gfp-wait",
    "failslab/verbose",
    "fail_page_alloc/ignore-gfp-wait",
    "fail_page_alloc/ignore-gfp-highmem",
    "fail_page_alloc/verbose",
    "fail_iommufd/verbose",
];

/// The modules that are loaded where VFIO works, each with its parameters.
const MODULES: [(&str, &[(&str, &str)]); 5] = [
    ("iommufd", &[("allow_unsafe_interrupts", "N")]),
    ("vfio", &[("enable_unsafe_noiommu_mode", "N")]),
    ("vfio_iommu_type1", &[("allow_unsafe_interrupts", "N"), ("disable_hugepages", "N"), ("dma_entry_limit", "65535")]),
    ("vfio_pci", &[("disable_denylist", "N"), ("disable_idle_d3", "N"), ("enable_sriov", "N"), ("nointxmask", "N")]),
    ("vfio_pci_core", &[]),
];

/// Adds what is there without a device.
pub(super) fn add(nodes: &mut Nodes, selftest: bool) {
    for directory in ["bus/pci/devices", "bus/pci/slots", "devices", "kernel/iommu_groups"] {
        nodes.directory(&format!("sys/{directory}"));
    }
    nodes.add("sys/bus/pci/drivers_autoprobe", Node::Text("1\n".to_owned()));
    nodes.add("sys/bus/pci/drivers_probe", Node::Attribute(Attribute::Probe));
    let driver = format!("sys/bus/pci/drivers/{VFIO_PCI}");
    let attributes = [
        ("bind", Attribute::Bind),
        ("unbind", Attribute::Unbind),
        ("new_id", Attribute::NewId),
        ("remove_id", Attribute::RemoveId),
    ];
    for (name, attribute) in attributes {
        nodes.add(&format!("{driver}/{name}"), Node::Attribute(attribute));
    }
    nodes.add(&format!("{driver}/module"), Node::Link("../../../../module/vfio_pci".to_owned()));
    for (module, parameters) in MODULES {
        let home = format!("sys/module/{module}");
        nodes.add(&format!("{home}/initstate"), Node::Text("live\n".to_owned()));
        nodes.add(&format!("{home}/refcnt"), Node::Text("0\n".to_owned()));
        for (name, value) in parameters {
            nodes.add(&format!("{home}/parameters/{name}"), Node::Text(format!("{value}\n")));
        }
    }
    let link = Node::Link(format!("../../../bus/pci/drivers/{VFIO_PCI}"));
    nodes.add(&format!("sys/module/vfio_pci/drivers/pci:{VFIO_PCI}"), link);
    for switch in SWITCHES.iter().filter(|_| selftest) {
        nodes.add(&format!("sys/kernel/debug/{switch}"), Node::Switch);
    }
}

/// Adds what shows device `number`.
pub(super) fn add_device(nodes: &mut Nodes, number: usize, device: &PciDevice) {
    let function = device.vfio.function();
    let spec = function.spec();
    let (rid, group) = (device.rid, device.endpoint.group());
    let id = format!(
        "v{:08X}d{:08X}sv{:08X}sd{:08X}bc{:02X}sc{:02X}i{:02X}",
        spec.vendor,
        spec.device,
        spec.subsystem_vendor,
        spec.subsystem_device,
        spec.class >> 16 & 0xff,
        spec.class >> 8 & 0xff,
        spec.class & 0xff,
    );
    let uevent = format!(
        "PCI_CLASS={:X}\nPCI_ID={:04X}:{:04X}\nPCI_SUBSYS_ID={:04X}:{:04X}\n\
         PCI_SLOT_NAME={rid}\nMODALIAS=pci:{id}\n",
        spec.class, spec.vendor, spec.device, spec.subsystem_vendor, spec.subsystem_device,
    );
    let above = match &device.bus {
        Some(bus) => bridge::place(bus),
        None => bus_of(rid),
    };
    let place = format!("devices/{above}/{rid}");
    let (home, up) = (format!("sys/{place}"), up(&place));
    nodes.add(&format!("sys/bus/pci/devices/{rid}"), Node::Link(format!("../../../{place}")));
    let texts = [
        ("vendor", format!("0x{:04x}\n", spec.vendor)),
        ("device", format!("0x{:04x}\n", spec.device)),
        ("subsystem_vendor", format!("0x{:04x}\n", spec.subsystem_vendor)),
        ("subsystem_device", format!("0x{:04x}\n", spec.subsystem_device)),
        ("class", format!("0x{:06x}\n", spec.class)),
        ("revision", format!("0x{:02x}\n", spec.revision)),
        ("resource", resources(function)),
        ("irq", "0\n".to_owned()),
        ("numa_node", "-1\n".to_owned()),
        ("enable", "1\n".to_owned()),
        ("ari_enabled", "0\n".to_owned()),
        ("broken_parity_status", "0\n".to_owned()),
        ("d3cold_allowed", "0\n".to_owned()),
        ("dma_mask_bits", "64\n".to_owned()),
        ("consistent_dma_mask_bits", "64\n".to_owned()),
        ("msi_bus", "1\n".to_owned()),
        ("power_state", "D0\n".to_owned()),
        ("reset_method", if device.bus.is_some() { "flr bus\n" } else { "flr\n" }.to_owned()),
        ("modalias", format!("pci:{id}\n")),
    ];
    for (name, text) in texts {
        nodes.add(&format!("{home}/{name}"), Node::Text(text));
    }
    nodes.add(&format!("{home}/uevent"), Node::Uevent(number, uevent));
    nodes.add(&format!("{home}/driver_override"), Node::Attribute(Attribute::Override(number)));
    nodes.add(&format!("{home}/reset"), Node::Attribute(Attribute::Reset(number)));
    nodes.add(&format!("{home}/config"), Node::Config(number));
    for bar in &spec.bars {
        let file = DeviceFile::Resource(number, bar.index);
        nodes.add(&format!("{home}/resource{}", bar.index), Node::Device(file));
    }
    let links = [("subsystem", format!("{up}bus/pci")), ("iommu_group", format!("{up}kernel/iommu_groups/{group}"))];
    for (name, target) in links {
        nodes.add(&format!("{home}/{name}"), Node::Link(target));
    }
    // What goes when it is unbound.
    let bound = [
        (format!("{home}/driver"), Node::Link(format!("{up}bus/pci/drivers/{VFIO_PCI}"))),
        (format!("sys/bus/pci/drivers/{VFIO_PCI}/{rid}"), Node::Link(format!("../../../../{place}"))),
    ];
    for (path, node) in bound {
        nodes.add_if_bound(&path, node, vec![number]);
    }
    nodes.add(&format!("{home}/vfio-dev/vfio{number}/dev"), Node::Text(format!("{CDEV_MAJOR}:{number}\n")));
    let directory = nodes.directory(&format!("{home}/vfio-dev"));
    nodes.show_if_bound(directory, vec![number]);

    let home = format!("sys/kernel/iommu_groups/{group}");
    let mut reserved = String::new();
    for range in device.endpoint.reserved() {
        let _ = writeln!(reserved, "0x{:016x} 0x{:016x} msi", range.start(), range.last());
    }
    nodes.add(&format!("{home}/type"), Node::Text("DMA\n".to_owned()));
    nodes.add(&format!("{home}/reserved_regions"), Node::Text(reserved));
    nodes.add(&format!("{home}/devices/{rid}"), Node::Link(format!("../../../../{place}")));
}

/// The way from a directory to `sys`.
pub(super) fn up(place: &str) -> String {
    "../".repeat(place.split('/').count())
}

/// The name of the bus that a device is on, as a root bus has it.
pub(super) fn bus_of(rid: Rid) -> String {
    let name = rid.to_string();
    let bus = name.rsplit_once(':').map_or(&*name, |(bus, _)| bus);
    format!("pci{bus}")
}

/// `resource`: start, end and flags of six BARs, the ROM and six bridge windows, a line each.
fn resources(function: &Function) -> String {
    const PORTS: u64 = 0x100;
    const MEMORY: u64 = 0x200;
    const PREFETCH: u64 = 0x2000;
    const SIZE_ALIGNED: u64 = 0x4_0000;
    const MEMORY_64: u64 = 0x10_0000;
    let mut text = String::new();
    for index in 0..13 {
        let (mut start, mut end, mut flags) = (0, 0, 0);
        if let (Some(bar), Some(address)) = (function.spec().bar(index), function.bar_address(index)) {
            (start, end) = (address, address + bar.size - 1);
            // Bits 0 to 3 are those of the register itself.
            flags = match bar.kind {
                BarKind::Ports => PORTS | SIZE_ALIGNED | 0x1,
                BarKind::Memory32 => MEMORY | SIZE_ALIGNED,
                BarKind::Memory64 => MEMORY | SIZE_ALIGNED | MEMORY_64 | 0x4,
            };
            flags |= if bar.prefetchable { PREFETCH | 0x8 } else { 0 };
        }
        let _ = writeln!(text, "0x{start:016x} 0x{end:016x} 0x{flags:016x}");
    }
    text
}
