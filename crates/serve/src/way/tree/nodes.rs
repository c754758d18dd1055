//! What is in the tree, apart from the device files' behaviour: names, links and the texts of `/sys` files.
//!
//! ```text
//!   dev/iommu  dev/ioasid
//!   dev/vfio/{vfio,G,devices/vfioN}
//!   sys/bus/pci/devices/0000:00:01.0/{vendor,device,…,config,iommu_group ─►,driver ─►,vfio-dev/vfioN/dev}
//!   sys/kernel/iommu_groups/G/{type,reserved_regions,devices/0000:00:01.0 ─►}
//!   sys/kernel/debug/fail*/…                                                     in a run for Linux's own tests
//! ```
//! Source for the `/sys` part: Linux `Documentation/ABI/testing/sysfs-bus-pci`, `sysfs-kernel-iommu_groups`,
//! `vfio-dev`, and what a machine with VFIO shows.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use ioasid::GroupId;
use ioasid_vfio::{BarKind, Function};

use crate::names::GIVEN;
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

/// A device number that udev's database and `stat` could have for `vfioN`; nothing is behind it.
const CDEV_MAJOR: u32 = 511;

/// Which device file an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeviceFile {
    Iommu,
    /// `dev/vfio/vfio`
    Container,
    /// `dev/vfio/G`
    Group(GroupId),
    /// `vfioN`
    Vfio(usize),
    /// What is to be given to a program, by its name.
    Given(u64),
}

/// A node of the tree.
pub(super) enum Node {
    Directory(BTreeMap<String, usize>),
    Link(String),
    Text(String),
    /// The configuration space of device N.
    Config(usize),
    Device(DeviceFile),
    /// A switch that can be set, and makes no difference.
    Switch,
    /// A directory of files that have no names for programs.
    ToBeGiven,
}

/// The nodes; the root is number 0.
pub(super) struct Nodes(Vec<Node>);

impl Nodes {
    /// With `selftest`, there are the switches that a kernel has which injects failures.
    pub(super) fn new(devices: &[Arc<PciDevice>], groups: impl Iterator<Item = GroupId>, selftest: bool) -> Self {
        let mut nodes = Self(vec![Node::Directory(BTreeMap::new())]);
        nodes.add("dev/iommu", Node::Device(DeviceFile::Iommu));
        nodes.add("dev/ioasid", Node::Device(DeviceFile::Iommu));
        // For links from outside: a file that is bound elsewhere would be one open file for all.
        nodes.add("dev/vfio/iommu", Node::Device(DeviceFile::Iommu));
        nodes.add("dev/vfio/vfio", Node::Device(DeviceFile::Container));
        for group in groups {
            nodes.add(&format!("dev/vfio/{group}"), Node::Device(DeviceFile::Group(group)));
        }
        nodes.add(GIVEN, Node::ToBeGiven);
        for directory in ["dev/vfio/devices", "sys/bus/pci/devices", "sys/kernel/iommu_groups"] {
            nodes.directory(directory);
        }
        for switch in SWITCHES.iter().filter(|_| selftest) {
            nodes.add(&format!("sys/kernel/debug/{switch}"), Node::Switch);
        }
        for (number, device) in devices.iter().enumerate() {
            nodes.add(&format!("dev/vfio/devices/vfio{number}"), Node::Device(DeviceFile::Vfio(number)));
            nodes.add_to_sys(number, device);
        }
        nodes
    }

    pub(super) fn get(&self, number: usize) -> Option<&Node> {
        self.0.get(number)
    }

    fn add_to_sys(&mut self, number: usize, device: &PciDevice) {
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
            "DRIVER=vfio-pci\nPCI_CLASS={:X}\nPCI_ID={:04X}:{:04X}\nPCI_SUBSYS_ID={:04X}:{:04X}\n\
             PCI_SLOT_NAME={rid}\nMODALIAS=pci:{id}\n",
            spec.class, spec.vendor, spec.device, spec.subsystem_vendor, spec.subsystem_device,
        );
        let home = format!("sys/bus/pci/devices/{rid}");
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
            ("driver_override", "vfio-pci\n".to_owned()),
            ("reset_method", "flr\n".to_owned()),
            ("modalias", format!("pci:{id}\n")),
            ("uevent", uevent),
            (&format!("vfio-dev/vfio{number}/dev"), format!("{CDEV_MAJOR}:{number}\n")),
        ];
        for (name, text) in texts {
            self.add(&format!("{home}/{name}"), Node::Text(text));
        }
        let links = [
            ("driver", "../../drivers/vfio-pci".to_owned()),
            ("subsystem", "../../../pci".to_owned()),
            ("iommu_group", format!("../../../../kernel/iommu_groups/{group}")),
        ];
        for (name, target) in links {
            self.add(&format!("{home}/{name}"), Node::Link(target));
        }
        self.add(&format!("{home}/config"), Node::Config(number));

        let home = format!("sys/kernel/iommu_groups/{group}");
        let mut reserved = String::new();
        for range in device.endpoint.reserved() {
            let _ = writeln!(reserved, "0x{:016x} 0x{:016x} msi", range.start(), range.last());
        }
        self.add(&format!("{home}/type"), Node::Text("DMA\n".to_owned()));
        self.add(&format!("{home}/reserved_regions"), Node::Text(reserved));
        self.add(&format!("{home}/devices/{rid}"), Node::Link(format!("../../../../bus/pci/devices/{rid}")));
    }

    /// Adds a node, and the directories that lead to it.
    fn add(&mut self, path: &str, node: Node) {
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        let directory = self.directory(directory);
        let number = self.0.len();
        if let Node::Directory(entries) = &mut self.0[directory] {
            entries.insert(name.to_owned(), number);
        }
        self.0.push(node);
    }

    /// Makes a directory, and those that lead to it, as far as they are not there.
    fn directory(&mut self, path: &str) -> usize {
        let mut at = 0;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let next = self.0.len();
            let Node::Directory(entries) = &mut self.0[at] else { return at };
            at = *entries.entry(name.to_owned()).or_insert(next);
            if at == next {
                self.0.push(Node::Directory(BTreeMap::new()));
            }
        }
        at
    }
}

/// `resource`: start, end and flags of six BARs, the ROM and six bridge windows, a line each.
fn resources(function: &Function) -> String {
    const MEMORY: u64 = 0x200;
    const PREFETCH: u64 = 0x2000;
    const SIZE_ALIGNED: u64 = 0x4_0000;
    const MEMORY_64: u64 = 0x10_0000;
    let mut text = String::new();
    for index in 0..13 {
        let (mut start, mut end, mut flags) = (0, 0, 0);
        if let (Some(bar), Some(address)) = (function.spec().bar(index), function.bar_address(index)) {
            (start, end) = (address, address + bar.size - 1);
            flags = MEMORY | SIZE_ALIGNED | if bar.prefetchable { PREFETCH } else { 0 };
            // Bits 0 to 3 are those of the register itself.
            flags |= if bar.prefetchable { 0x8 } else { 0 };
            if bar.kind == BarKind::Memory64 {
                flags |= MEMORY_64 | 0x4;
            }
        }
        let _ = writeln!(text, "0x{start:016x} 0x{end:016x} 0x{flags:016x}");
    }
    text
}
