//! An open `/dev/iommu` with an object of every kind in it, and a request of every number that would succeed.

use std::cell::RefCell;
use std::sync::Arc;

use ioasid::{AreaView, Machine, Silent};
use ioasid_serve::request::iommufd::IommuFile;
use ioasid_uapi::iommufd as uapi;
use ioasid_uapi::iommufd::selftest::{self as test, TestCmd, command, data};
use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::program::{MEMORY, MEMORY_FILE, Program};
use super::sequence;

pub const PAGE: u64 = 4096;
/// Where in the program's memory arguments are, data that they point to, and what is mapped.
pub const ARGUMENT: u64 = MEMORY;
pub const DATA: u64 = MEMORY + 0x1_0000;
pub const MAPPED: u64 = MEMORY + 0x4_0000;
/// The IOVA that four pages are mapped at.
pub const IOVA: u64 = test::MOCK_APERTURE_START;

/// The ids of the objects.
#[derive(Debug, Clone, Copy, Default)]
pub struct Objects {
    pub ioas: u32,
    pub stdev: u32,
    pub device: u32,
    pub automatic: u32,
    pub parent: u32,
    pub tracked: u32,
    pub nested: u32,
    pub fault_queue: u32,
    pub viommu: u32,
    pub virtual_device: u32,
    pub event_queue: u32,
    pub hw_queue: u32,
    pub access: u32,
    /// An address space that nobody needs.
    pub empty: u32,
}

impl Objects {
    /// Each with the name of its kind.
    pub fn all(&self) -> [(&'static str, u32); 14] {
        [
            ("an address space", self.ioas),
            ("a mock device", self.stdev),
            ("a device", self.device),
            ("an automatic page table", self.automatic),
            ("a parent page table", self.parent),
            ("a page table that is tracked", self.tracked),
            ("a nested page table", self.nested),
            ("a fault queue", self.fault_queue),
            ("a virtual IOMMU", self.viommu),
            ("a virtual device", self.virtual_device),
            ("an event queue", self.event_queue),
            ("a hardware queue", self.hw_queue),
            ("an access", self.access),
            ("an empty address space", self.empty),
        ]
    }
}

pub struct Setup {
    pub machine: Arc<Machine>,
    pub file: IommuFile,
    pub program: Program,
    pub objects: Objects,
    /// What was asked so far, for a fuzzer to begin with.
    pub log: RefCell<Vec<u8>>,
}

/// What a request must leave as it was if it fails.
#[derive(Debug, PartialEq, Eq)]
pub struct State {
    ids: Vec<u32>,
    areas: Vec<Vec<AreaView>>,
    ranges: Vec<(Vec<ioasid::IovaRange>, u64)>,
    large_pages: Vec<bool>,
    /// Windows, tables.
    resources: (usize, usize),
    descriptors: Vec<i32>,
    requesters: usize,
    pasids: usize,
}

impl Setup {
    pub fn new() -> Self {
        let mut setup = Self::empty();
        setup.fill();
        setup
    }

    /// A file with nothing in it.
    pub fn empty() -> Self {
        let machine = Machine::new(Arc::new(Silent));
        let file = IommuFile::new(&machine, true);
        Self { machine, file, program: Program::new(), objects: Objects::default(), log: RefCell::default() }
    }

    /// Puts `bytes` where requests find what their arguments point to.
    pub fn put_data(&self, bytes: &[u8]) {
        self.log.borrow_mut().extend(sequence::data(bytes));
        self.program.put(DATA, bytes);
    }

    /// Makes a request with these bytes as its argument.
    pub fn raw(&self, number: u32, bytes: &[u8]) -> Result<i64, Errno> {
        self.log.borrow_mut().extend(sequence::request(number, bytes));
        self.program.put(ARGUMENT, bytes);
        self.file.ioctl(number, ARGUMENT, &self.program)
    }

    /// Makes a request, and returns its argument as it came back.
    pub fn ask<T: IntoBytes + FromBytes + Immutable>(&self, number: u32, argument: T) -> Result<T, Errno> {
        self.raw(number, argument.as_bytes())?;
        Ok(T::read_from_bytes(&self.program.get(ARGUMENT, size_of::<T>())).unwrap())
    }

    /// Makes the tests' own request.
    pub fn test<T: IntoBytes + FromBytes + Immutable>(&self, op: u32, id: u32, body: T) -> Result<T, Errno> {
        let mut request = TestCmd { size: size_of::<TestCmd>() as u32, op, id, ..TestCmd::default() };
        request.body.as_mut_bytes()[..size_of::<T>()].copy_from_slice(body.as_bytes());
        let answer = self.ask(test::TEST_CMD, request)?;
        Ok(T::read_from_prefix(answer.body.as_bytes()).unwrap().0)
    }

    fn fill(&mut self) {
        let mut objects = Objects::default();
        let ioas =
            || self.ask(uapi::IOAS_ALLOC, uapi::IoasAlloc { size: 12, ..Default::default() }).unwrap().out_ioas_id;
        (objects.ioas, objects.empty) = (ioas(), ioas());
        let made = self.test(test::TEST_OP_MOCK_DOMAIN, objects.ioas, command::MockDomain::default()).unwrap();
        (objects.stdev, objects.device, objects.automatic) = (made.out_stdev_id, made.out_idev_id, made.out_hwpt_id);
        self.ask(uapi::IOAS_MAP, Self::map(&objects, IOVA)).unwrap();
        let hwpt = |flags, pt_id, data_len: u32| {
            let data_type = if data_len == 0 { 0 } else { data::HWPT_DATA_SELFTEST };
            let request = uapi::HwptAlloc {
                size: 48,
                flags,
                dev_id: objects.device,
                pt_id,
                data_type,
                data_len,
                data_uptr: DATA,
                ..Default::default()
            };
            self.ask(uapi::HWPT_ALLOC, request).unwrap().out_hwpt_id
        };
        objects.parent = hwpt(uapi::HWPT_ALLOC_NEST_PARENT, objects.ioas, 0);
        objects.tracked = hwpt(uapi::HWPT_ALLOC_DIRTY_TRACKING, objects.ioas, 0);
        objects.nested = hwpt(0, objects.parent, 8);
        let queue = uapi::FaultAlloc { size: 16, ..Default::default() };
        objects.fault_queue = self.ask(uapi::FAULT_QUEUE_ALLOC, queue).unwrap().out_fault_id;
        self.objects = objects;
        let viommu = self.viommu_alloc();
        self.objects.viommu = self.ask(uapi::VIOMMU_ALLOC, viommu).unwrap().out_viommu_id;
        let device = self.vdevice_alloc();
        self.objects.virtual_device = self.ask(uapi::VDEVICE_ALLOC, device).unwrap().out_vdevice_id;
        let events = self.veventq_alloc();
        self.objects.event_queue = self.ask(uapi::VEVENTQ_ALLOC, events).unwrap().out_veventq_id;
        let queue = self.hw_queue_alloc();
        self.objects.hw_queue = self.ask(uapi::HW_QUEUE_ALLOC, queue).unwrap().out_hw_queue_id;
        self.test(test::TEST_OP_CREATE_ACCESS, objects.ioas, command::CreateAccess { flags: 1, ..Default::default() })
            .unwrap();
        // It does not tell its id, which is the last that was taken.
        self.objects.access = self.objects.hw_queue + 1;
    }

    pub fn map(objects: &Objects, iova: u64) -> uapi::IoasMap {
        let flags = uapi::MAP_FIXED_IOVA | uapi::MAP_READABLE | uapi::MAP_WRITEABLE;
        uapi::IoasMap { size: 40, flags, ioas_id: objects.ioas, reserved: 0, user_va: MAPPED, length: 4 * PAGE, iova }
    }

    pub fn map_file(&self) -> uapi::IoasMapFile {
        let flags = uapi::MAP_FIXED_IOVA | uapi::MAP_READABLE | uapi::MAP_WRITEABLE;
        uapi::IoasMapFile {
            size: size_of::<uapi::IoasMapFile>() as u32,
            flags,
            ioas_id: self.objects.ioas,
            fd: MEMORY_FILE,
            start: 0,
            length: PAGE,
            iova: IOVA + 0x10_0000,
        }
    }

    pub fn hwpt_alloc(&self) -> uapi::HwptAlloc {
        let Objects { device, ioas, .. } = self.objects;
        uapi::HwptAlloc { size: 48, dev_id: device, pt_id: ioas, ..Default::default() }
    }

    pub fn viommu_alloc(&self) -> uapi::ViommuAlloc {
        uapi::ViommuAlloc {
            size: 40,
            kind: data::VIOMMU_TYPE_SELFTEST,
            dev_id: self.objects.device,
            hwpt_id: self.objects.parent,
            data_len: size_of::<data::Viommu>() as u32,
            data_uptr: DATA,
            ..Default::default()
        }
    }

    pub fn vdevice_alloc(&self) -> uapi::VdeviceAlloc {
        let Objects { viommu, device, .. } = self.objects;
        uapi::VdeviceAlloc { size: 24, viommu_id: viommu, dev_id: device, out_vdevice_id: 0, virt_id: 0x99 }
    }

    pub fn veventq_alloc(&self) -> uapi::VeventqAlloc {
        uapi::VeventqAlloc {
            size: 32,
            viommu_id: self.objects.viommu,
            kind: data::VEVENTQ_TYPE_SELFTEST,
            veventq_depth: 2,
            ..Default::default()
        }
    }

    pub fn hw_queue_alloc(&self) -> uapi::HwQueueAlloc {
        uapi::HwQueueAlloc {
            size: 40,
            viommu_id: self.objects.viommu,
            kind: data::HW_QUEUE_TYPE_SELFTEST,
            nesting_parent_iova: IOVA,
            length: PAGE,
            ..Default::default()
        }
    }

    /// Drops all of it, and sees to it that nothing is left anywhere.
    pub fn dispose(self, name: &str) {
        let Self { machine, file, program, .. } = self;
        drop(program);
        drop(file);
        assert_eq!(machine.resources(), (0, 0), "{name}: windows or pages are left");
        assert!(machine.view().is_empty(), "{name}: requesters are left");
        assert_eq!(machine.pasids_in_use(), 0, "{name}: PASIDs are left");
        assert_eq!(Arc::strong_count(&machine), 1, "{name}: something that was made is left");
    }

    pub fn state(&self) -> State {
        let context = self.file.context();
        let spaces = context.all_ioas();
        State {
            ids: (0..64).filter(|&id| context.has(id)).collect(),
            areas: spaces.iter().map(|ioas| ioas.areas()).collect(),
            ranges: spaces
                .iter()
                .map(|ioas| {
                    let (ranges, alignment) = ioas.iova_ranges();
                    (ranges.iter().collect(), alignment)
                })
                .collect(),
            large_pages: spaces.iter().map(|ioas| ioas.has_large_pages()).collect(),
            resources: self.machine.resources(),
            descriptors: self.program.descriptors(),
            requesters: self.machine.view().len(),
            pasids: self.machine.pasids_in_use(),
        }
    }
}
