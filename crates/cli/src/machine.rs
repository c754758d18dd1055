//! The machine that a command line describes: `--device MODEL[,key=value…]`.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::sync::Arc;

use ioasid::{GroupId, IommuKind, Machine, Rid};
use ioasid_devices::registry::{
    BuildError, Built, Context, MODELS, ModelInfo, Notice, OptionError, Options, Shared, Site,
};
use ioasid_devices::virtio::Offer;
use ioasid_serve::{Bus, PciDevice};
use ioasid_vfio::{Function, PcieKind, VfioDevice};
use thiserror::Error;

/// One `--device`.
#[derive(Clone)]
pub struct DeviceOption {
    model: &'static ModelInfo,
    bdf: Option<Rid>,
    bus: Option<u8>,
    group: Option<GroupId>,
    /// Programs cannot map its BARs.
    unmapped: bool,
    /// The model's own.
    options: Options,
}

/// What is wrong with a `--device`, or with several together.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DeviceError {
    #[error("there is no device model `{0}`; there is: {known}", known = names())]
    UnknownModel(String),
    #[error("{0}; every device has bdf=0000:00:01.0, bus=N, group=N, map=off")]
    Option(OptionError),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error("`{0}` is no bus behind a bridge: write a number from 1 to 255")]
    Bus(String),
    #[error("device option map takes on or off, and `{0}` is neither")]
    Map(String),
    #[error("a device has a bdf= or a bus=, not both: on a bus it takes the next function, from 0001:NN:00.0 on")]
    TwoPlaces,
    #[error("bus {0} has eight devices, and has no room for more: give the device another bus=")]
    BusOfEight(u8),
    #[error("{0} devices of one --device have no bdf= or group= together: leave these out")]
    SeveralAtOnePlace(usize),
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

/// What is between commas; two commas are one in the text.
fn parts(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(next) = rest.next() {
        match (next, parts.last_mut()) {
            (',', Some(part)) if rest.next_if_eq(&',').is_some() => part.push(','),
            (',', _) => parts.push(String::new()),
            (other, Some(part)) => part.push(other),
            (_, None) => {}
        }
    }
    parts
}

/// Takes a value of an option that is given once.
fn once<T>(slot: &mut Option<T>, name: &'static str, value: T) -> Result<(), DeviceError> {
    if slot.replace(value).is_some() { Err(DeviceError::Twice(name)) } else { Ok(()) }
}

impl FromStr for DeviceOption {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let mut parts = parts(text).into_iter();
        let name = parts.next().unwrap_or_default();
        let model = ModelInfo::find(&name).ok_or(DeviceError::UnknownModel(name))?;
        let (mut bdf, mut bus, mut group, mut map, mut options) = (None, None, None, None, Options::default());
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((&part, ""));
            match key {
                "bdf" | "bus" | "group" | "map" if value.is_empty() => {
                    return Err(DeviceError::NoValue(key.to_owned()));
                }
                "bdf" => once(&mut bdf, "bdf", value.parse()?)?,
                "bus" => {
                    let number = value.parse().ok().filter(|number| *number != 0);
                    once(&mut bus, "bus", number.ok_or_else(|| DeviceError::Bus(value.to_owned()))?)?;
                }
                "group" => {
                    let number = value.parse().map_err(|_| DeviceError::Group(value.to_owned()))?;
                    once(&mut group, "group", GroupId(number))?;
                }
                "map" if value == "on" || value == "off" => once(&mut map, "map", value == "on")?,
                "map" => return Err(DeviceError::Map(value.to_owned())),
                _ => model.parse(&part, &mut options).map_err(DeviceError::Option)?,
            }
        }
        let functions = model.functions(&options);
        if functions > 1 && (bdf.is_some() || group.is_some()) {
            return Err(DeviceError::SeveralAtOnePlace(functions));
        }
        model.check(&options)?;
        if bdf.is_some() && bus.is_some() {
            return Err(DeviceError::TwoPlaces);
        }
        Ok(Self { model, bdf, bus, group, unmapped: map == Some(false), options })
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
    let mut devices: Vec<PciDevice> = Vec::with_capacity(options.len());
    let mut shared = Shared::default();
    let buses = buses(options, &mut places)?;
    for (number, option) in (0..).zip(options) {
        let sites = (0..option.model.functions(&option.options)).map(|_| {
            let rid = place(option, &buses, &mut places)?;
            let group = option.group.unwrap_or_else(|| free_group(&mut groups));
            Ok(Site { rid, group })
        });
        let sites = sites.collect::<Result<Vec<_>, DeviceError>>()?;
        let context = Context { machine, iommu, number, shared: &mut shared, notice: notice() };
        let built = option.model.build(&option.options, &sites, context)?;
        let bus = option.bus.and_then(|bus| buses.get(&bus));
        for (site, Built { endpoint, mut spec, interrupts, model, bus_master }) in sites.iter().zip(built) {
            if bus.is_some() {
                spec.pcie = LINK;
            }
            let window = BAR_WINDOW + devices.len() as u64 * BAR_WINDOW_OF_ONE;
            // The specifications of our own models are sound, so what does not fit is the window.
            let function =
                Function::new(spec, window, interrupts, model, bus_master).map_err(|_| DeviceError::TooMany)?;
            let offer = if option.unmapped { VfioDevice::not_mappable } else { VfioDevice::new };
            let device = PciDevice::new(site.rid, endpoint, offer(Arc::new(function)));
            devices.push(match bus {
                Some(bus) => device.on(bus),
                None => device,
            });
        }
    }
    Ok(devices)
}

/// Makes one of the devices, which has no bus then, for front ends of vhost-user; `None` if it is no virtio device.
///
/// # Errors
/// As of [`build`].
pub fn offer(machine: &Arc<Machine>, kind: IommuKind, option: &DeviceOption) -> Option<Result<Offer, DeviceError>> {
    let rid = option.bdf.or_else(|| Rid::new(SEGMENT, 0, 1, 0))?;
    let site = Site { rid, group: option.group.unwrap_or(GroupId(0)) };
    let (iommu, mut shared) = (machine.iommu(kind), Shared::default());
    let context = Context { machine, iommu: &iommu, number: 0, shared: &mut shared, notice: notice() };
    Some(option.model.offer(&option.options, site, context)?.map_err(DeviceError::from))
}

/// Tells people what they should know of a device while it runs.
fn notice() -> Notice {
    Arc::new(|rid, text| say!("ioasid: {rid}: {text}"))
}

/// Where the next function of a device is to be.
fn place(
    option: &DeviceOption,
    buses: &BTreeMap<u8, Arc<Bus>>,
    places: &mut BTreeSet<Rid>,
) -> Result<Rid, DeviceError> {
    match (option.bdf, option.bus) {
        (Some(rid), _) if rid.segment() == SEGMENT && buses.contains_key(&rid.bus()) => {
            Err(DeviceError::BehindBridge(rid, rid.bus()))
        }
        (Some(rid), _) => Ok(rid),
        (None, Some(bus)) => {
            let mut functions = (0..8).filter_map(|function| Rid::new(SEGMENT, bus, 0, function));
            functions.find(|rid| places.insert(*rid)).ok_or(DeviceError::BusOfEight(bus))
        }
        (None, None) => {
            let mut slots = (1..32).filter_map(|slot| Rid::new(SEGMENT, 0, slot, 0));
            let free = slots.find(|rid| !places.contains(rid) && !on_this_machine("bus/pci/devices", rid));
            let free = free.ok_or(DeviceError::BusFull)?;
            places.insert(free);
            Ok(free)
        }
    }
}

/// A group that no device of either machine is in.
fn free_group(groups: &mut BTreeSet<GroupId>) -> GroupId {
    let mut numbers = (0..=u32::MAX).map(GroupId);
    let free = numbers.find(|group| !groups.contains(group) && !on_this_machine("kernel/iommu_groups", group));
    let free = free.unwrap_or(GroupId(u32::MAX));
    groups.insert(free);
    free
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
    fn a_comma_in_a_text_is_written_twice() {
        let of = |text| parts(text).join("|");
        assert_eq!(of("nvme,image=a,,b.img,lba=512"), "nvme|image=a,b.img|lba=512");
        assert_eq!((of(""), of(","), of(",,"), of(",,,")), ("".into(), "|".into(), ",".into(), ",|".into()));
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
            (&["floppy"][..], "there is: ioat, dsa, ivshmem, edu, nvme, virtio-blk, virtio-net, vfio-user"),
            (&["ivshmem,mib=3"], "power of two"),
            (&["ivshmem,mib=16"], "from 1 to 8"),
            (&["ivshmem,memory=1,mib=2", "ivshmem,memory=1"], "2 MiB and with 1"),
            (&["ioat,colour=red"], "bdf="),
            (&["ioat,wqs=2"], "unknown"),
            (&["dsa,colour=red"], "wqs=N, slices=N"),
            (&["dsa,wqs=9"], "from 1 to 8"),
            (&["dsa,wqs=many"], "from 1 to 8"),
            (&["dsa,wqs=1,wqs=2"], "twice"),
            (&["dsa,slices=2,bdf=0:0:1.0"], "2 devices"),
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
