//! Requests in a row on VFIO's files, from bytes that may mean anything: containers, groups, devices' own files and
//! `/dev/iommu`, with what a program reads, writes and closes meanwhile.
//!
//! ```text
//!  kind  file  length  length bytes      kind  file  length  …
//! ```

use std::sync::Arc;

use ioasid::{EndpointOptions, GroupId, Iommu, IommuKind, Machine, Rid, Silent};
use ioasid_devices::edu::{self, Edu};
use ioasid_serve::request::file::{Closer, Mapping, OpenFile};
use ioasid_serve::request::iommufd::IommuFile;
use ioasid_serve::request::vfio::VfioFile;
use ioasid_serve::request::vfio::container::ContainerFile;
use ioasid_serve::request::vfio::group::Group;
use ioasid_serve::{Bus, PciDevice, Watcher};
use ioasid_uapi::iommufd as iommu;
use ioasid_uapi::vfio::{self, container, feature, group};
use ioasid_vfio::{BusMaster, Function, Interrupts, VfioDevice};
use rustix::io::Errno;

use super::program::Program;
use super::setup::{ARGUMENT, DATA};

/// What is asked of any file.
const REQUESTS: [u32; 27] = [
    group::GET_STATUS,
    group::SET_CONTAINER,
    group::UNSET_CONTAINER,
    group::GET_DEVICE_FD,
    container::GET_API_VERSION,
    container::CHECK_EXTENSION,
    container::SET_IOMMU,
    container::IOMMU_GET_INFO,
    container::IOMMU_MAP_DMA,
    container::IOMMU_UNMAP_DMA,
    container::IOMMU_DIRTY_PAGES,
    vfio::DEVICE_GET_INFO,
    vfio::DEVICE_GET_REGION_INFO,
    vfio::DEVICE_GET_IRQ_INFO,
    vfio::DEVICE_SET_IRQS,
    vfio::DEVICE_RESET,
    vfio::DEVICE_GET_PCI_HOT_RESET_INFO,
    vfio::DEVICE_PCI_HOT_RESET,
    vfio::DEVICE_IOEVENTFD,
    vfio::DEVICE_BIND_IOMMUFD,
    vfio::DEVICE_ATTACH_IOMMUFD_PT,
    vfio::DEVICE_DETACH_IOMMUFD_PT,
    feature::DEVICE_FEATURE,
    iommu::IOAS_ALLOC,
    iommu::IOAS_MAP_FILE,
    iommu::DESTROY,
    0x3b7f,
];

const FIRST_OTHER: u8 = REQUESTS.len() as u8;
/// Opens a file.
const OPEN: u8 = FIRST_OTHER;
/// Closes it.
const CLOSE: u8 = FIRST_OTHER + 1;
/// Puts the bytes where arguments point.
const PUT: u8 = FIRST_OTHER + 2;
/// Has the next request's n-th thing fail.
const FAIL: u8 = FIRST_OTHER + 3;
const READ: u8 = FIRST_OTHER + 4;
const WRITE: u8 = FIRST_OTHER + 5;
const LOAD: u8 = FIRST_OTHER + 6;
const STORE: u8 = FIRST_OTHER + 7;
const MAP: u8 = FIRST_OTHER + 8;
const KINDS: u8 = FIRST_OTHER + 9;
/// Most steps, so that no input takes long; and most files that are open at once.
const MOST_STEPS: usize = 200;
const MOST_FILES: usize = 12;

struct Switch(Arc<ioasid::Endpoint>);

impl BusMaster for Switch {
    fn set_bus_master(&self, enabled: bool) {
        let _ = self.0.set_bus_master(enabled);
    }
}

struct Nobody;

impl Watcher for Nobody {}

/// Four devices: one alone, one that shares its group, and two behind a bridge.
struct Host {
    machine: Arc<Machine>,
    devices: Vec<Arc<PciDevice>>,
    groups: Vec<Arc<Group>>,
}

impl Host {
    fn new() -> Self {
        let machine = Machine::new(Arc::new(Silent));
        let iommu = machine.iommu(IommuKind::Vtd);
        let bus = Bus::new(Rid::new(1, 0, 31, 0).unwrap(), 1);
        let places = [(0, 1, 0, 1), (0, 2, 0, 1), (1, 0, 0, 2), (1, 0, 1, 3)];
        let device = |(number, device, function, group): (u8, u8, u8, u32)| {
            let made = pci_device(&machine, &iommu, Rid::new(1, number, device, function).unwrap(), GroupId(group));
            Arc::new(if number == 0 { made } else { made.on(&bus) })
        };
        let devices: Vec<_> = places.into_iter().map(device).collect();
        let members = |id| devices.iter().filter(|device| device.endpoint.group() == id).cloned().collect();
        let groups = (1..=3).map(GroupId).map(|id| Group::new(id, members(id))).collect();
        Self { machine, devices, groups }
    }

    fn open(&self, which: u8) -> Result<Arc<dyn OpenFile>, Errno> {
        Ok(match which % 9 {
            0 => Arc::new(IommuFile::new(&self.machine, false)),
            1 => Arc::new(ContainerFile::new(&self.machine)),
            number @ 2..=4 => Arc::new(self.groups[usize::from(number) - 2].open()?),
            number => {
                let device = &self.devices[usize::from(number) - 5];
                let group = self.groups.iter().find(|group| group.id() == device.endpoint.group()).unwrap();
                Arc::new(VfioFile::new(device.clone(), group.clone(), which < 128))
            }
        })
    }
}

fn pci_device(machine: &Arc<Machine>, iommu: &Arc<Iommu>, rid: Rid, group: GroupId) -> PciDevice {
    let options = EndpointOptions::behind(iommu).pasid_bits(0);
    let endpoint = machine.add_endpoint_with(rid, group, options).unwrap();
    let spec = edu::spec();
    let interrupts = Interrupts::new(&spec);
    let model = Edu::new(Box::new(endpoint.port()), interrupts.clone());
    let function = Function::new(spec, 0xc000_0000, interrupts, model, Arc::new(Switch(endpoint.clone()))).unwrap();
    PciDevice::new(rid, endpoint, VfioDevice::new(Arc::new(function)))
}

/// The bytes that mean one step.
pub fn step(kind: u8, file: u8, bytes: &[u8]) -> Vec<u8> {
    [&[kind, file, bytes.len() as u8], bytes].concat()
}

/// The bytes that mean a request with this argument on a file.
pub fn request(number: u32, file: u8, argument: &[u8]) -> Vec<u8> {
    step(REQUESTS.iter().position(|&known| known == number).unwrap() as u8, file, argument)
}

/// The bytes that open a file: `/dev/iommu`, a container, one of three groups, one of four devices.
pub fn open(which: u8) -> Vec<u8> {
    step(OPEN, which, &[])
}

fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    let length = bytes.len().min(8);
    word[..length].copy_from_slice(&bytes[..length]);
    u64::from_le_bytes(word)
}

/// Where a step reads or writes: a region, and a place in it.
fn offset(bytes: &[u8]) -> u64 {
    let [region, low, high, ..] = *bytes else { return word(bytes) };
    u64::from(region % 12) << 40 | u64::from(low) | u64::from(high) << 8 | if region >= 128 { 0x4_0000 } else { 0 }
}

/// Does what `bytes` mean, and sees to it that in the end nothing is left, and everything can be had again. Returns the
/// requests that failed.
pub fn perform(mut bytes: &[u8]) -> Vec<(u32, Errno)> {
    let mut failed = Vec::new();
    let host = Host::new();
    let program = Program::new();
    let before = host.machine.resources();
    let mut fail = 0;
    for _ in 0..MOST_STEPS {
        let [kind, file, length, rest @ ..] = bytes else { break };
        let (argument, rest) = rest.split_at((*length as usize).min(rest.len()));
        bytes = rest;
        let first = argument.first().copied().unwrap_or_default();
        let numbers = program.descriptors();
        let number = numbers.get(usize::from(*file) % numbers.len().max(1)).copied();
        let Some(found) = number.and_then(|number| program.opened(number)) else {
            open_one(&host, &program, *file, &mut fail);
            continue;
        };
        match kind % KINDS {
            OPEN if numbers.len() < MOST_FILES => open_one(&host, &program, *file, &mut fail),
            OPEN | CLOSE => close(&program, number, found),
            PUT => program.put(DATA, argument),
            FAIL => fail = u32::from(first),
            READ => drop(found.read(offset(argument), &mut [0; 16][..usize::from(first % 17)])),
            WRITE => drop(found.write(offset(argument), argument.get(3..).unwrap_or_default())),
            LOAD => drop(found.load(offset(argument), &mut [0; 8][..1 << (first % 4)])),
            STORE => drop(found.store(offset(argument), &word(argument).to_le_bytes()[..1 << (first % 4)])),
            MAP => {
                let mapping = Mapping { offset: offset(argument), length: 4096, shared: first < 200, execute: false };
                let _ = found.check_mmap(mapping);
            }
            kind => {
                let number = REQUESTS[usize::from(kind)];
                // These have a number where others have an address.
                let by_value = [container::CHECK_EXTENSION, container::SET_IOMMU].contains(&number);
                let address = if by_value { first.into() } else { ARGUMENT };
                program.put(ARGUMENT, &[0; 256]);
                program.put(ARGUMENT, argument);
                let request = || found.ioctl(number, address, &program);
                let (result, _) = ioasid_inject::failing(std::mem::take(&mut fail), request);
                program.forget_reserved();
                match result {
                    // A descriptor that was given is there.
                    Some(Ok(given @ 100..)) => assert!(program.opened(given as i32).is_some(), "{given} is not there"),
                    Some(Err(errno)) => failed.push((number, errno)),
                    _ => {}
                }
            }
        }
    }
    for number in program.descriptors() {
        if let Some(file) = program.opened(number) {
            close(&program, Some(number), file);
        }
    }
    assert_eq!(host.machine.resources(), before, "windows or pages are left");
    for group in &host.groups {
        drop(group.open().unwrap());
    }
    for device in &host.devices {
        assert!(device.endpoint.is_bus_master() || device.vfio.open().is_ok(), "a device is left open");
        assert!(!device.endpoint.has_write_log(), "a log is left");
    }
    failed
}

fn open_one(host: &Host, program: &Program, which: u8, fail: &mut u32) {
    let (opened, _) = ioasid_inject::failing(std::mem::take(fail), || host.open(which));
    if let Ok(file) = opened {
        program.has_opened(file);
    }
}

fn close(program: &Program, number: Option<i32>, file: Arc<dyn OpenFile>) {
    program.forget(number);
    file.close(Closer::Program, &Nobody);
}

/// The kinds of things that a sequence begins with: every way to an open device.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let fd = |number: i32| number.to_ne_bytes();
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
    // The first file has the number 100.
    let container_of_group = [
        open(1),
        open(2),
        request(group::SET_CONTAINER, 1, &fd(100)),
        request(container::SET_IOMMU, 0, &[container::TYPE1V2_IOMMU as u8]),
        request(group::GET_DEVICE_FD, 1, b"0001:00:01.0\0"),
    ]
    .concat();
    let by_file = [
        open(0),
        open(7),
        request(vfio::DEVICE_BIND_IOMMUFD, 1, &words(&[16, 0, 100, 0])),
        request(iommu::IOAS_ALLOC, 0, &words(&[12, 0, 0])),
        request(vfio::DEVICE_ATTACH_IOMMUFD_PT, 1, &words(&[12, 0, 2])),
    ]
    .concat();
    let map = words(&[32, 3, 0x14_0000, 0, 0x10_0000, 0, 0x4000, 0]);
    let mapped = [container_of_group.clone(), request(container::IOMMU_MAP_DMA, 0, &map)].concat();
    let bus_master = step(WRITE, 2, &[7, 4, 0, 6, 0]);
    let irqs = request(vfio::DEVICE_SET_IRQS, 2, &words(&[24, 4 | 32, 0, 0, 1, 5]));
    let log = words(&[32, feature::DMA_LOGGING_START | feature::SET, 4096, 0, 1, 0, DATA as u32, 0]);
    let logged = [step(PUT, 0, &words(&[0x10_0000, 0, 0x4000, 0])), request(feature::DEVICE_FEATURE, 2, &log)].concat();
    let buffer = words(&[40, feature::DMA_BUF | feature::GET, 0, 2, 0, 1, 0, 0, 0x1000, 0]);
    let whole = [open(0), open(2), request(group::SET_CONTAINER, 1, &fd(100))].concat();
    // The other device behind the bridge, too.
    let both = [
        open(8),
        request(vfio::DEVICE_BIND_IOMMUFD, 2, &words(&[16, 0, 100, 0])),
        request(vfio::DEVICE_GET_PCI_HOT_RESET_INFO, 1, &words(&[28, 0, 0])),
        request(vfio::DEVICE_PCI_HOT_RESET, 1, &words(&[12, 0, 0])),
    ]
    .concat();
    vec![
        ("group", container_of_group),
        ("file", by_file.clone()),
        ("compat", [whole, request(group::GET_DEVICE_FD, 1, b"0001:00:01.0\0")].concat()),
        ("mapped", [mapped.clone(), bus_master.clone(), irqs].concat()),
        ("logged", [mapped.clone(), bus_master, logged].concat()),
        ("buffer", [mapped, request(feature::DEVICE_FEATURE, 2, &buffer)].concat()),
        ("hot-reset", [by_file, both].concat()),
    ]
}

#[test]
fn sequences_of_anything_leave_nothing() {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let seeds = seeds();
    for (name, bytes) in &seeds {
        assert_eq!(perform(bytes), [], "{name} leads nowhere");
    }
    for round in 0..3000 {
        // What leads somewhere, with some bytes changed, and then anything.
        let mut bytes = seeds[random() as usize % seeds.len()].1.clone();
        for _ in 0..random() % 4 {
            let at = random() as usize % bytes.len();
            bytes[at] = random() as u8;
        }
        for _ in 0..random() % 20 {
            let argument: Vec<u8> = (0..random() % 40)
                .map(|_| if random() % 2 == 0 { random() as u8 % 8 } else { random() as u8 })
                .collect();
            bytes.extend(step(random() as u8, random() as u8, &argument));
        }
        if std::panic::catch_unwind(|| perform(&bytes)).is_err() {
            panic!("round {round}: {bytes:?}");
        }
    }
}
