//! The machine that a command line describes: `--device MODEL[,key=value…]`.

use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::Arc;

use ioasid::{Endpoint, GroupId, Iommu, Rid};
use ioasid_devices::ioat::{self, Ioat};
use ioasid_serve::PciDevice;
use ioasid_vfio::{BusMaster, Function, Interrupts, Model, Spec, VfioDevice};
use thiserror::Error;

/// A device model that can be asked for.
pub struct ModelEntry {
    /// As on the command line.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    spec: fn() -> Spec,
    make: fn(&Arc<Endpoint>, Arc<Interrupts>) -> Arc<dyn Model>,
}

/// Every model there is.
pub const MODELS: &[ModelEntry] = &[ModelEntry {
    name: "ioat",
    about: "Intel I/OAT DMA engine, CBDMA 3.2 (8086:2021)",
    spec: ioat::spec,
    make: |endpoint, interrupts| Ioat::new(Box::new(endpoint.port()), interrupts),
}];

/// One `--device`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceOption {
    model: usize,
    bdf: Option<Rid>,
    group: Option<GroupId>,
}

/// What is wrong with a `--device`, or with several together.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DeviceError {
    #[error("there is no device model `{0}`; there is: {known}", known = names())]
    UnknownModel(String),
    #[error("device option `{0}` is unknown; there are bdf=0000:00:01.0 and group=N")]
    UnknownKey(String),
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
        let (mut bdf, mut group) = (None, None);
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            match key {
                "bdf" | "group" if value.is_empty() => return Err(DeviceError::NoValue(key.to_owned())),
                "bdf" if bdf.replace(value.parse()?).is_some() => return Err(DeviceError::Twice("bdf")),
                "group" => {
                    let number = value.parse().map_err(|_| DeviceError::Group(value.to_owned()))?;
                    if group.replace(GroupId(number)).is_some() {
                        return Err(DeviceError::Twice("group"));
                    }
                }
                "bdf" => {}
                _ => return Err(DeviceError::UnknownKey(key.to_owned())),
            }
        }
        Ok(Self { model, bdf, group })
    }
}

struct Switch(Arc<Endpoint>);

impl BusMaster for Switch {
    fn set_bus_master(&self, enabled: bool) {
        // Who writes configuration space holds no slices, which is all that can be in the way.
        let _ = self.0.set_bus_master(enabled);
    }
}

/// Where the first BAR of a machine lies; each device has its own 16 MiB from there on.
const BAR_WINDOW: u64 = 0xc000_0000;
const BAR_WINDOW_OF_ONE: u64 = 16 << 20;

/// The PCI segment of devices without `bdf=`: few machines have one of this number.
const SEGMENT: u16 = 1;

/// Puts the devices on the bus. Those without `bdf=` take the slots from 0001:00:01.0 on, those without `group=` a
/// group each; neither takes what this machine has itself.
///
/// # Errors
/// If two are to be at the same place, or more than a bus holds.
pub fn build(iommu: &Arc<Iommu>, options: &[DeviceOption]) -> Result<Vec<PciDevice>, DeviceError> {
    let mut places: BTreeSet<Rid> = BTreeSet::new();
    for bdf in options.iter().filter_map(|option| option.bdf) {
        if !places.insert(bdf) {
            return Err(DeviceError::SamePlace(bdf));
        }
    }
    let mut groups: BTreeSet<GroupId> = options.iter().filter_map(|option| option.group).collect();
    let mut devices = Vec::with_capacity(options.len());
    for (number, option) in (0u64..).zip(options) {
        let model = &MODELS[option.model];
        let rid = match option.bdf {
            Some(rid) => rid,
            None => {
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
        let endpoint = iommu.add_endpoint(rid, group).ok_or(DeviceError::SamePlace(rid))?;
        let spec = (model.spec)();
        let interrupts = Interrupts::new(&spec);
        let device = (model.make)(&endpoint, interrupts.clone());
        let window = BAR_WINDOW + number * BAR_WINDOW_OF_ONE;
        let function = Function::new(spec, window, interrupts, device, Arc::new(Switch(endpoint.clone())))
            .expect("the specs of our own models are sound, and few enough devices fit above the window");
        devices.push(PciDevice { rid, endpoint, vfio: VfioDevice::new(Arc::new(function)) });
    }
    Ok(devices)
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
        let devices = build(&Iommu::new(Arc::new(Silent)), &options)?;
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
    fn what_is_wrong_is_said() {
        for (texts, part) in [
            (&["nvme"][..], "there is: ioat"),
            (&["ioat,colour=red"], "bdf="),
            (&["ioat,bdf=zz"], "0000:00:01.0"),
            (&["ioat,bdf="], "bdf=VALUE"),
            (&["ioat,group=-1"], "number"),
            (&["ioat,group=1,group=2"], "twice"),
            (&["ioat,bdf=0:0:1.0,bdf=0:0:2.0"], "twice"),
            (&["ioat,bdf=0:0:1.0", "ioat,bdf=0:0:1.0"], "another bdf="),
        ] {
            let error = machine(texts).unwrap_err().to_string();
            assert!(error.contains(part), "{texts:?}: {error}");
        }
    }

    #[test]
    fn a_full_bus_is_an_error() {
        assert!(machine(&["ioat"; 31]).is_ok());
        assert_eq!(machine(&["ioat"; 32]), Err(DeviceError::BusFull));
    }
}
