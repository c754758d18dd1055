//! The machine that a command line describes: `--device MODEL[,key=value…]`.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::sync::Arc;

use ioasid::{
    Endpoint, EndpointOptions, GroupId, Iommu, IommuKind, Machine, PartPasidTable, PartPasids, Pasid, PasidHold,
    Recovery, Rid,
};
use ioasid_devices::dsa::spec::registers::QueueMode;
use ioasid_devices::dsa::{self, Dsa, DsaOptions, DsaSlice, PasidTranslation, SliceQueue};
use ioasid_devices::edu::{self, Edu};
use ioasid_devices::ioat::{self, Ioat};
use ioasid_devices::ivshmem::{self, Ivshmem};
use ioasid_serve::{Bus, PciDevice};
use ioasid_vfio::{BarMemory, BusMaster, Function, Interrupts, Model, PcieKind, Spec, VfioDevice};
use thiserror::Error;

/// A device model that can be asked for.
pub struct ModelEntry {
    /// As on the command line.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// Its own options, each with the numbers that it takes.
    pub options: &'static [NumberOption],
    kind: Kind,
}

/// An option of a model that is a number.
pub struct NumberOption {
    /// As on the command line.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    least: u32,
    most: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ioat,
    Dsa,
    Ivshmem,
    Edu,
}

/// Every model there is.
pub const MODELS: &[ModelEntry] = &[
    ModelEntry { name: "ioat", about: "Intel I/OAT DMA engine, CBDMA 3.2 (8086:2021)", options: &[], kind: Kind::Ioat },
    ModelEntry {
        name: "dsa",
        about: "Intel Data Streaming Accelerator 1.0 (8086:0b25)",
        options: &[
            NumberOption { name: WQS, about: "work queues (8)", least: 1, most: 8 },
            NumberOption {
                name: SLICES,
                about: "as so many mediated devices, of one shared work queue each",
                least: 1,
                most: 8,
            },
        ],
        kind: Kind::Dsa,
    },
    ModelEntry {
        name: "ivshmem",
        about: "shared memory, as QEMU's ivshmem-plain (1af4:1110)",
        options: &[
            NumberOption { name: MIB, about: "MiB of memory, a power of two (1)", least: 1, most: 8 },
            NumberOption { name: MEMORY, about: "the same memory as others of this number", least: 0, most: 255 },
        ],
        kind: Kind::Ivshmem,
    },
    ModelEntry {
        name: "edu",
        about: "QEMU's educational device: factorials and DMA (1234:11e8)",
        options: &[],
        kind: Kind::Edu,
    },
];

const WQS: &str = "wqs";
const SLICES: &str = "slices";
const MIB: &str = "mib";
const MEMORY: &str = "memory";

/// One `--device`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceOption {
    model: usize,
    bdf: Option<Rid>,
    bus: Option<u8>,
    group: Option<GroupId>,
    /// Programs cannot map its BARs.
    unmapped: bool,
    /// The model's own, by name.
    numbers: BTreeMap<&'static str, u32>,
}

impl DeviceOption {
    fn number(&self, name: &str) -> Option<u32> {
        self.numbers.get(name).copied()
    }

    /// How many functions it is on the bus.
    fn functions(&self) -> usize {
        self.number(SLICES).unwrap_or(1) as usize
    }
}

/// What is wrong with a `--device`, or with several together.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DeviceError {
    #[error("there is no device model `{0}`; there is: {known}", known = names())]
    UnknownModel(String),
    #[error("device option `{0}` is unknown; there are bdf=0000:00:01.0, bus=N, group=N, map=off{1}")]
    UnknownKey(String, String),
    #[error("device option {0} takes a number from {1} to {2}, and `{3}` is none")]
    Number(&'static str, u32, u32, String),
    #[error("`{0}` is no bus behind a bridge: write a number from 1 to 255")]
    Bus(String),
    #[error("device option map takes on or off, and `{0}` is neither")]
    Map(String),
    #[error("a device has a bdf= or a bus=, not both: on a bus it takes the next function, from 0001:NN:00.0 on")]
    TwoPlaces,
    #[error("bus {0} has eight devices, and has no room for more: give the device another bus=")]
    BusOfEight(u8),
    #[error("{0} slices are as many devices, and have no bdf= or group= together")]
    SlicesAtOnePlace(u32),
    #[error("{0} MiB of memory are no power of two, as a BAR has to be: write mib=1, 2, 4 or 8")]
    NoPowerOfTwo(u32),
    #[error("memory {0} is given twice, with {1} MiB and with {2}: give it the same mib= each time")]
    TwoLengths(u32, u64, u64),
    #[error("there is no memory for device {0}: {1}")]
    NoMemory(Rid, String),
    #[error("device option `{0}` has no value: write {0}=VALUE")]
    NoValue(String),
    #[error("device option `{0}` is given twice")]
    Twice(&'static str),
    #[error(transparent)]
    Rid(#[from] ioasid::ParseRidError),
    #[error("`{0}` is not an IOMMU group: write a number from 0 to 4294967295")]
    Group(String),
    #[error("two devices cannot both be at {0}: give one another bdf=")]
    SamePlace(Rid),
    #[error("{0} is on a bus behind a bridge: give the device bus={1} instead of bdf=")]
    BehindBridge(Rid, u8),
    #[error("there is room for the registers of 64 devices, and not for more")]
    TooMany,
    #[error("there is no room for another device on bus 0001:00: give it a bdf=")]
    BusFull,
}

fn names() -> String {
    MODELS.iter().map(|model| model.name).collect::<Vec<_>>().join(", ")
}

impl FromStr for DeviceOption {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let mut parts = text.split(',');
        let name = parts.next().unwrap_or_default();
        let model = MODELS.iter().position(|model| model.name == name);
        let model = model.ok_or_else(|| DeviceError::UnknownModel(name.to_owned()))?;
        let own = MODELS[model].options;
        let (mut bdf, mut bus, mut group, mut map, mut numbers) = (None, None, None, None, BTreeMap::new());
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            match key {
                "bdf" | "bus" | "group" | "map" if value.is_empty() => {
                    return Err(DeviceError::NoValue(key.to_owned()));
                }
                "bdf" if bdf.replace(value.parse()?).is_some() => return Err(DeviceError::Twice("bdf")),
                "bus" => {
                    let number = value.parse().ok().filter(|number| *number != 0);
                    if bus.replace(number.ok_or_else(|| DeviceError::Bus(value.to_owned()))?).is_some() {
                        return Err(DeviceError::Twice("bus"));
                    }
                }
                "group" => {
                    let number = value.parse().map_err(|_| DeviceError::Group(value.to_owned()))?;
                    if group.replace(GroupId(number)).is_some() {
                        return Err(DeviceError::Twice("group"));
                    }
                }
                "map" => {
                    let is_on = match value {
                        "on" => true,
                        "off" => false,
                        _ => return Err(DeviceError::Map(value.to_owned())),
                    };
                    if map.replace(is_on).is_some() {
                        return Err(DeviceError::Twice("map"));
                    }
                }
                "bdf" => {}
                _ => {
                    let Some(NumberOption { name, least, most, .. }) = own.iter().find(|option| option.name == key)
                    else {
                        let known = own.iter().map(|option| format!(", {}=N", option.name)).collect();
                        return Err(DeviceError::UnknownKey(key.to_owned(), known));
                    };
                    let number = value.parse().ok().filter(|number| (least..=most).contains(&number));
                    let number = number.ok_or_else(|| DeviceError::Number(name, *least, *most, value.to_owned()))?;
                    if numbers.insert(*name, number).is_some() {
                        return Err(DeviceError::Twice(name));
                    }
                }
            }
        }
        if let Some(slices) = numbers.get(SLICES).filter(|&&slices| slices > 1 && (bdf.is_some() || group.is_some())) {
            return Err(DeviceError::SlicesAtOnePlace(*slices));
        }
        if let Some(mib) = numbers.get(MIB).filter(|mib| !mib.is_power_of_two()) {
            return Err(DeviceError::NoPowerOfTwo(*mib));
        }
        if bdf.is_some() && bus.is_some() {
            return Err(DeviceError::TwoPlaces);
        }
        Ok(Self { model, bdf, bus, group, unmapped: map == Some(false), numbers })
    }
}

struct Switch(Arc<Endpoint>);

impl BusMaster for Switch {
    fn set_bus_master(&self, enabled: bool) {
        // A thread that writes configuration space holds no slices, and nothing else can be in the way.
        let _ = self.0.set_bus_master(enabled);
    }
}

/// Where the first BAR of a machine lies; each device has its own 16 MiB from there on.
const BAR_WINDOW: u64 = 0xc000_0000;
const BAR_WINDOW_OF_ONE: u64 = 16 << 20;

/// A device behind a bridge is at the end of a link: here, of one lane at 8 GT/s.
const LINK: PcieKind = PcieKind::Endpoint { speed: 3, width: 1 };

/// The PCI segment of devices without `bdf=`: few machines have one of this number.
const SEGMENT: u16 = 1;

/// Puts the devices on the bus. Those without `bdf=` take the slots from 0001:00:01.0 on, those without `group=` a
/// group each; neither takes what this machine has itself.
///
/// # Errors
/// If two are to be at the same place, or more than a bus holds.
pub fn build(machine: &Arc<Machine>, kind: IommuKind, options: &[DeviceOption]) -> Result<Vec<PciDevice>, DeviceError> {
    let iommu = &machine.iommu(kind);
    let mut places: BTreeSet<Rid> = BTreeSet::new();
    for bdf in options.iter().filter_map(|option| option.bdf) {
        if !places.insert(bdf) {
            return Err(DeviceError::SamePlace(bdf));
        }
    }
    let mut groups: BTreeSet<GroupId> = options.iter().filter_map(|option| option.group).collect();
    let functions = options.iter().flat_map(|option| std::iter::repeat_n(option, option.functions()));
    let mut devices: Vec<PciDevice> = Vec::with_capacity(options.len());
    let mut parent: Option<(&DeviceOption, Parent)> = None;
    let mut memories: BTreeMap<u32, Arc<BarMemory>> = BTreeMap::new();
    let buses = buses(options, &mut places)?;
    for (number, option) in (0u64..).zip(functions) {
        let rid = match (option.bdf, option.bus) {
            (Some(rid), _) if rid.segment() == SEGMENT && buses.contains_key(&rid.bus()) => {
                return Err(DeviceError::BehindBridge(rid, rid.bus()));
            }
            (Some(rid), _) => rid,
            (None, Some(bus)) => {
                let mut functions = (0..8).filter_map(|function| Rid::new(SEGMENT, bus, 0, function));
                let free = functions.find(|rid| places.insert(*rid));
                free.ok_or(DeviceError::BusOfEight(bus))?
            }
            (None, None) => {
                let mut slots = (1..32).filter_map(|slot| Rid::new(SEGMENT, 0, slot, 0));
                let free = slots.find(|rid| !places.contains(rid) && !on_this_machine("bus/pci/devices", rid));
                let free = free.ok_or(DeviceError::BusFull)?;
                places.insert(free);
                free
            }
        };
        let group = option.group.unwrap_or_else(|| {
            let mut numbers = (0..=u32::MAX).map(GroupId);
            let free = numbers.find(|group| !groups.contains(group) && !on_this_machine("kernel/iommu_groups", group));
            let free = free.unwrap_or(GroupId(u32::MAX));
            groups.insert(free);
            free
        });
        let made = match (MODELS[option.model].kind, option.number(SLICES)) {
            (Kind::Ioat, _) => ioat(machine, iommu, rid, group),
            (Kind::Edu, _) => edu(machine, iommu, rid, group),
            (Kind::Ivshmem, _) => {
                let memory = shared_memory(option, rid, &mut memories)?;
                ivshmem(machine, iommu, rid, group, memory)
            }
            (Kind::Dsa, None) => whole_dsa(machine, iommu, rid, group, option.number(WQS)),
            (Kind::Dsa, Some(slices)) => {
                // One parent for all slices of one option.
                if parent.as_ref().is_none_or(|(of, parent)| !std::ptr::eq(*of, option) || parent.next == slices) {
                    parent = Some((option, Parent::new(machine, iommu, number, slices)?));
                }
                let Some((_, parent)) = &mut parent else { continue };
                parent.slice(machine, rid, group)
            }
        };
        let Made { endpoint, mut spec, interrupts, device } = made.ok_or(DeviceError::SamePlace(rid))?;
        let bus = option.bus.and_then(|bus| buses.get(&bus));
        if bus.is_some() {
            spec.pcie = LINK;
        }
        let window = BAR_WINDOW + number * BAR_WINDOW_OF_ONE;
        // The specifications of our own models are sound, so what does not fit is the window.
        let function = Function::new(spec, window, interrupts, device, Arc::new(Switch(endpoint.clone())))
            .map_err(|_| DeviceError::TooMany)?;
        let offer = if option.unmapped { VfioDevice::not_mappable } else { VfioDevice::new };
        let device = PciDevice::new(rid, endpoint, offer(Arc::new(function)));
        devices.push(match bus {
            Some(bus) => device.on(bus),
            None => device,
        });
    }
    Ok(devices)
}

/// The buses behind bridges, by number. The bridges take the last slots of bus 0.
fn buses(options: &[DeviceOption], places: &mut BTreeSet<Rid>) -> Result<BTreeMap<u8, Arc<Bus>>, DeviceError> {
    let mut buses = BTreeMap::new();
    for number in options.iter().filter_map(|option| option.bus) {
        if buses.contains_key(&number) {
            continue;
        }
        let mut slots = (1..32).rev().filter_map(|slot| Rid::new(SEGMENT, 0, slot, 0));
        let bridge = slots.find(|rid| !places.contains(rid) && !on_this_machine("bus/pci/devices", rid));
        let bridge = bridge.ok_or(DeviceError::BusFull)?;
        places.insert(bridge);
        buses.insert(number, Bus::new(bridge, number));
    }
    Ok(buses)
}

/// A device, before it is a function on the bus.
struct Made {
    endpoint: Arc<Endpoint>,
    spec: Spec,
    interrupts: Arc<Interrupts>,
    device: Arc<dyn Model>,
}

/// `None` if the place is taken.
fn ioat(machine: &Arc<Machine>, iommu: &Arc<Iommu>, rid: Rid, group: GroupId) -> Option<Made> {
    // It has no PASID capability.
    let options = EndpointOptions::behind(iommu).pasid_bits(0);
    let endpoint = machine.add_endpoint_with(rid, group, options).ok()?;
    let spec = ioat::spec();
    let interrupts = Interrupts::new(&spec);
    let device = Ioat::new(Box::new(endpoint.port()), interrupts.clone());
    Some(Made { endpoint, spec, interrupts, device })
}

/// `None` if the place is taken.
fn edu(machine: &Arc<Machine>, iommu: &Arc<Iommu>, rid: Rid, group: GroupId) -> Option<Made> {
    let endpoint = machine.add_endpoint_with(rid, group, EndpointOptions::behind(iommu).pasid_bits(0)).ok()?;
    let spec = edu::spec();
    let interrupts = Interrupts::new(&spec);
    let device = Edu::new(Box::new(endpoint.port()), interrupts.clone());
    Some(Made { endpoint, spec, interrupts, device })
}

/// The memory of an ivshmem device: that of its number, if it has one.
fn shared_memory(
    option: &DeviceOption,
    rid: Rid,
    memories: &mut BTreeMap<u32, Arc<BarMemory>>,
) -> Result<Arc<BarMemory>, DeviceError> {
    const MIBIBYTE: u64 = 1 << 20;
    let length = u64::from(option.number(MIB).unwrap_or(1)) * MIBIBYTE;
    let number = option.number(MEMORY);
    if let Some((number, memory)) = number.and_then(|number| Some((number, memories.get(&number)?))) {
        let known = memory.length();
        if known != length {
            return Err(DeviceError::TwoLengths(number, known / MIBIBYTE, length / MIBIBYTE));
        }
        return Ok(memory.clone());
    }
    let memory = ivshmem::memory(length).map_err(|error| DeviceError::NoMemory(rid, error.to_string()))?;
    if let Some(number) = number {
        memories.insert(number, memory.clone());
    }
    Ok(memory)
}

/// It makes no DMA. `None` if the place is taken.
fn ivshmem(
    machine: &Arc<Machine>,
    iommu: &Arc<Iommu>,
    rid: Rid,
    group: GroupId,
    memory: Arc<BarMemory>,
) -> Option<Made> {
    let endpoint = machine.add_endpoint_with(rid, group, EndpointOptions::behind(iommu).pasid_bits(0)).ok()?;
    let spec = ivshmem::spec(memory.length());
    let interrupts = Interrupts::new(&spec);
    Some(Made { endpoint, spec, interrupts, device: Ivshmem::new(memory) })
}

/// It asks for pages that it does not find.
fn dsa_endpoint(iommu: &Arc<Iommu>) -> EndpointOptions {
    EndpointOptions::behind(iommu).recovery(Recovery::PageRequests)
}

fn dsa(endpoint: &Arc<Endpoint>, options: DsaOptions, interrupts: Arc<Interrupts>) -> Arc<Dsa> {
    let ports = endpoint.clone();
    let port = Box::new(move || -> Box<dyn ioasid_devices::Dma> { Box::new(ports.port()) });
    Dsa::new(options, port, Arc::new(endpoint.clone()), interrupts)
}

fn whole_dsa(machine: &Arc<Machine>, iommu: &Arc<Iommu>, rid: Rid, group: GroupId, wqs: Option<u32>) -> Option<Made> {
    let endpoint = machine.add_endpoint_with(rid, group, dsa_endpoint(iommu)).ok()?;
    let defaults = DsaOptions::default();
    let options = DsaOptions { wqs: wqs.map_or(defaults.wqs, |wqs| wqs as u8), ..defaults };
    let spec = dsa::spec(&options);
    let interrupts = Interrupts::new(&spec);
    let device = dsa(&endpoint, options, interrupts.clone());
    Some(Made { endpoint, spec, interrupts, device })
}

/// A device that no program gets, of which the slices are parts.
struct Parent {
    endpoint: Arc<Endpoint>,
    device: Arc<Dsa>,
    /// The next slice.
    next: u32,
}

/// The PCI segment of such parents, and their first group.
const PARENT_SEGMENT: u16 = 0xfffe;
const PARENT_GROUP: u32 = 1 << 30;

/// What the owner of a slice calls its PASIDs, and what they are on the bus.
struct Translation(PartPasidTable);

impl PasidTranslation for Translation {
    fn physical(&self, pasid: Option<Pasid>) -> Option<PasidHold> {
        self.0.hold(pasid)
    }
}

impl Parent {
    fn new(machine: &Arc<Machine>, iommu: &Arc<Iommu>, number: u64, slices: u32) -> Result<Self, DeviceError> {
        let rid = Rid::new(PARENT_SEGMENT, number as u8, 0, 0).ok_or(DeviceError::BusFull)?;
        let group = GroupId(PARENT_GROUP + number as u32);
        let endpoint =
            machine.add_endpoint_with(rid, group, dsa_endpoint(iommu)).map_err(|_| DeviceError::SamePlace(rid))?;
        // The host drives it.
        let _ = endpoint.set_bus_master(true);
        let options = DsaOptions { wqs: slices as u8, ..DsaOptions::default() };
        let interrupts = Interrupts::new(&dsa::spec(&options));
        let device = dsa(&endpoint, options, interrupts);
        let queue = SliceQueue {
            mode: QueueMode::Shared,
            size: 128 / slices as u16,
            threshold: 128 / slices as u16,
            priority: 8,
            block_on_fault: true,
            transfer_shift: 31,
            batch_shift: 10,
        };
        let queues = vec![queue; slices as usize];
        device.configure_slices(&queues).expect("as many queues as it has, with as many entries together");
        Ok(Self { endpoint, device, next: 0 })
    }

    fn slice(&mut self, machine: &Arc<Machine>, rid: Rid, group: GroupId) -> Option<Made> {
        let endpoint = machine.add_part(&self.endpoint, rid, group, PartPasids::Translated).ok()?;
        let translation = Arc::new(Translation(endpoint.virtual_pasids()?));
        let spec = dsa::slice_spec(&self.device);
        let interrupts = Interrupts::new(&spec);
        let device = DsaSlice::new(&self.device, self.next as u8, translation, interrupts.clone())?;
        self.next += 1;
        Some(Made { endpoint, spec, interrupts, device })
    }
}

fn on_this_machine(directory: &str, name: impl std::fmt::Display) -> bool {
    std::path::Path::new("/sys").join(directory).join(name.to_string()).exists()
}

#[cfg(test)]
mod tests {
    use ioasid::Silent;

    use super::*;

    fn machine(texts: &[&str]) -> Result<Vec<(String, u32)>, DeviceError> {
        let options = texts.iter().map(|text| text.parse()).collect::<Result<Vec<_>, _>>()?;
        let devices = build(&Machine::new(Arc::new(Silent)), IommuKind::Vtd, &options)?;
        Ok(devices.iter().map(|device| (device.rid.to_string(), device.endpoint.group().0)).collect())
    }

    #[test]
    fn devices_get_slots_and_groups_of_their_own() {
        let two = machine(&["ioat", "ioat"]).unwrap();
        assert_eq!((&*two[0].0, &*two[1].0), ("0001:00:01.0", "0001:00:02.0"));
        assert_ne!(two[0].1, two[1].1);
    }

    #[test]
    fn what_is_chosen_is_kept_and_the_rest_makes_way() {
        let three = machine(&["ioat", "ioat,bdf=0001:00:01.0,group=7", "ioat,group=7"]).unwrap();
        assert_eq!((&*three[0].0, &*three[1].0, &*three[2].0), ("0001:00:02.0", "0001:00:01.0", "0001:00:03.0"));
        assert_ne!(three[0].1, 7);
        assert_eq!((three[1].1, three[2].1), (7, 7));
    }

    #[test]
    fn a_bus_behind_a_bridge_has_functions() {
        let four = machine(&["ioat,bus=2", "edu,bus=3", "ioat", "edu,bus=2,group=7"]).unwrap();
        let places: Vec<_> = four.iter().map(|(rid, _)| rid.as_str()).collect();
        assert_eq!(places, ["0001:02:00.0", "0001:03:00.0", "0001:00:01.0", "0001:02:00.1"]);
        assert_eq!(four[3].1, 7);
    }

    #[test]
    fn more_devices_than_have_room_are_an_error() {
        let texts: Vec<String> = (0..72).map(|n| format!("edu,bus={}", n / 8 + 1)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        assert_eq!(machine(&texts[..64]).map(|devices| devices.len()), Ok(64));
        assert_eq!(machine(&texts), Err(DeviceError::TooMany));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (texts, part) in [
            (&["nvme"][..], "there is: ioat, dsa, ivshmem, edu"),
            (&["ivshmem,mib=3"], "power of two"),
            (&["ivshmem,mib=16"], "from 1 to 8"),
            (&["ivshmem,memory=1,mib=2", "ivshmem,memory=1"], "2 MiB and with 1"),
            (&["ioat,colour=red"], "bdf="),
            (&["ioat,wqs=2"], "unknown"),
            (&["dsa,colour=red"], "wqs=N, slices=N"),
            (&["dsa,wqs=9"], "from 1 to 8"),
            (&["dsa,wqs=many"], "from 1 to 8"),
            (&["dsa,wqs=1,wqs=2"], "twice"),
            (&["dsa,slices=2,bdf=0:0:1.0"], "slices"),
            (&["ioat,bdf=zz"], "0000:00:01.0"),
            (&["ioat,bdf="], "bdf=VALUE"),
            (&["ioat,group=-1"], "number"),
            (&["ioat,map=maybe"], "on or off"),
            (&["ioat,map=off,map=on"], "twice"),
            (&["ioat,bus=0"], "from 1 to 255"),
            (&["ioat,bus=256"], "from 1 to 255"),
            (&["ioat,bus="], "bus=VALUE"),
            (&["ioat,bus=1,bus=1"], "twice"),
            (&["ioat,bus=1,bdf=0:0:1.0"], "not both"),
            (&["edu,bus=9"; 9], "another bus="),
            (&["edu,bus=2", "edu,bdf=0001:02:05.0"], "bus=2"),
            (&["ioat,group=1,group=2"], "twice"),
            (&["ioat,bdf=0:0:1.0,bdf=0:0:2.0"], "twice"),
            (&["ioat,bdf=0:0:1.0", "ioat,bdf=0:0:1.0"], "another bdf="),
        ] {
            let error = machine(texts).unwrap_err().to_string();
            assert!(error.contains(part), "{texts:?}: {error}");
        }
    }

    #[test]
    fn slices_are_devices_with_groups_of_their_own() {
        let five = machine(&["dsa,slices=2", "dsa,wqs=4", "dsa,slices=2"]).unwrap();
        let places: BTreeSet<_> = five.iter().map(|(rid, _)| rid.clone()).collect();
        let groups: BTreeSet<_> = five.iter().map(|(_, group)| *group).collect();
        assert_eq!((places.len(), groups.len()), (5, 5));
    }

    #[test]
    fn devices_share_memory_by_number() {
        let texts = ["ivshmem,memory=7,mib=2", "ivshmem,mib=2", "ivshmem,memory=7,mib=2", "ivshmem,memory=8"];
        let options: Vec<DeviceOption> = texts.iter().map(|text| text.parse().unwrap()).collect();
        let devices = build(&Machine::new(Arc::new(Silent)), IommuKind::Vtd, &options).unwrap();
        let memory = |number: usize| devices[number].vfio.function().memory()[0].memory.clone();
        assert!(Arc::ptr_eq(&memory(0), &memory(2)));
        assert!(!Arc::ptr_eq(&memory(0), &memory(1)) && !Arc::ptr_eq(&memory(0), &memory(3)));
        assert_eq!((memory(1).length(), memory(3).length()), (2 << 20, 1 << 20));
    }

    #[test]
    fn a_full_bus_is_an_error() {
        assert!(machine(&["ioat"; 31]).is_ok());
        assert_eq!(machine(&["ioat"; 32]), Err(DeviceError::BusFull));
    }
}
