//! What is in the tree, apart from the behaviour of its files: names, and what is behind each.
//!
//! ```text
//!   dev/iommu  dev/ioasid
//!   dev/vfio/{vfio,G,devices/vfioN}
//!   sys/…                       (see `sys`)
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ioasid::GroupId;

use super::{bridge, sys};
use crate::names::GIVEN;
use crate::server::Attribute;
use crate::watch::PciDevice;

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
    /// `resourceN`, a BAR of a device
    Resource(usize, u8),
    /// What is to be given to a program, by its name.
    Given(u64),
}

/// The major number of devices' own files.
pub(super) const CDEV_MAJOR: u32 = 511;
/// That of groups.
const GROUP_MAJOR: u32 = 510;
/// That of devices that are alone of their kind, and which of them these are.
const MISC_MAJOR: u32 = 10;
const IOMMU_MINOR: u32 = 122;
const CONTAINER_MINOR: u32 = 196;

impl DeviceFile {
    /// The numbers that it would have as a character device; `VFIO_MINOR` is Linux's, the others are such as Linux
    /// gives when it is asked for any. Nothing is behind them.
    pub(super) fn number(self) -> Option<(u32, u32)> {
        match self {
            Self::Iommu => Some((MISC_MAJOR, IOMMU_MINOR)),
            Self::Container => Some((MISC_MAJOR, CONTAINER_MINOR)),
            Self::Group(group) => Some((GROUP_MAJOR, group.0)),
            Self::Vfio(number) => Some((CDEV_MAJOR, number as u32)),
            Self::Resource(..) | Self::Given(_) => None,
        }
    }
}

/// A node of the tree.
pub(super) enum Node {
    Directory(BTreeMap<String, usize>),
    Link(String),
    Text(String),
    /// The configuration space of a bridge.
    Bytes(Vec<u8>),
    /// The configuration space of device N.
    Config(usize),
    /// `uevent` of device N, without its driver.
    Uevent(usize, String),
    /// What can be written.
    Attribute(Attribute),
    Device(DeviceFile),
    /// A switch that can be set, and makes no difference.
    Switch,
    /// A directory of files that have no names for programs.
    ToBeGiven,
}

/// The nodes; the root is number 0.
pub(super) struct Nodes {
    nodes: Vec<Node>,
    /// The devices of which one has to be bound to vfio-pci for a node to be there, by its number.
    of_bound: HashMap<usize, Vec<usize>>,
}

impl Nodes {
    /// With `selftest`, there are the switches that a kernel has which injects failures.
    pub(super) fn new(devices: &[Arc<PciDevice>], groups: impl Iterator<Item = GroupId>, selftest: bool) -> Self {
        let mut nodes = Self { nodes: vec![Node::Directory(BTreeMap::new())], of_bound: HashMap::new() };
        nodes.add("dev/iommu", Node::Device(DeviceFile::Iommu));
        nodes.add("dev/ioasid", Node::Device(DeviceFile::Iommu));
        // For links from outside: a file that is bound elsewhere would be one open file for all.
        nodes.add("dev/vfio/iommu", Node::Device(DeviceFile::Iommu));
        nodes.add("dev/vfio/vfio", Node::Device(DeviceFile::Container));
        nodes.add(GIVEN, Node::ToBeGiven);
        nodes.directory("dev/vfio/devices");
        sys::add(&mut nodes, selftest);
        for group in groups {
            let members = devices.iter().enumerate().filter(|(_, device)| device.endpoint.group() == group);
            let members = members.map(|(number, _)| number).collect();
            nodes.add_if_bound(&format!("dev/vfio/{group}"), Node::Device(DeviceFile::Group(group)), members);
        }
        let buses: BTreeMap<_, _> =
            devices.iter().filter_map(|device| device.bus.as_ref()).map(|bus| (bus.bridge(), bus)).collect();
        buses.values().for_each(|bus| bridge::add(&mut nodes, bus, devices));
        for (number, device) in devices.iter().enumerate() {
            let file = Node::Device(DeviceFile::Vfio(number));
            nodes.add_if_bound(&format!("dev/vfio/devices/vfio{number}"), file, vec![number]);
            sys::add_device(&mut nodes, number, device);
        }
        nodes
    }

    pub(super) fn get(&self, number: usize) -> Option<&Node> {
        self.nodes.get(number)
    }

    /// The devices of which one has to be bound for a node to be there; `None` if it is always there.
    pub(super) fn needs_bound(&self, number: usize) -> Option<&[usize]> {
        self.of_bound.get(&number).map(Vec::as_slice)
    }

    /// Adds a node that is there while one of these devices is bound to vfio-pci.
    pub(super) fn add_if_bound(&mut self, path: &str, node: Node, devices: Vec<usize>) {
        let number = self.add(path, node);
        self.show_if_bound(number, devices);
    }

    /// Has a node be there only while one of these devices is bound to vfio-pci.
    pub(super) fn show_if_bound(&mut self, number: usize, devices: Vec<usize>) {
        self.of_bound.insert(number, devices);
    }

    /// Adds a node, and the directories that lead to it, and returns its number.
    pub(super) fn add(&mut self, path: &str, node: Node) -> usize {
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        let directory = self.directory(directory);
        let number = self.nodes.len();
        if let Node::Directory(entries) = &mut self.nodes[directory] {
            entries.insert(name.to_owned(), number);
        }
        self.nodes.push(node);
        number
    }

    /// Makes a directory, and those that lead to it, as far as they are not there.
    pub(super) fn directory(&mut self, path: &str) -> usize {
        let mut at = 0;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let next = self.nodes.len();
            let Node::Directory(entries) = &mut self.nodes[at] else { return at };
            at = *entries.entry(name.to_owned()).or_insert(next);
            if at == next {
                self.nodes.push(Node::Directory(BTreeMap::new()));
            }
        }
        at
    }
}
