//! One client, in all five modes of VFIO: containers of both versions, `/dev/iommu` in place of a container, again in
//! both, and a device's own file.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::Ordering;

use ioasid_uapi::iommufd;
use ioasid_uapi::kvm;
use ioasid_uapi::vfio::container::{self, Type1DmaMap, Type1DmaUnmap};
use ioasid_uapi::vfio::{self, feature, group};

use super::{LENGTH, NOWHERE, RING, SOURCE, TARGET};
use crate::driver::{CBVER, CHANCMD, CHANCMP, Engine, Memory, RESET, Space, ioctl, load};

pub fn open(path: &str) -> Result<OwnedFd, i32> {
    crate::driver::open(path).map_err(|error| error.raw_os_error().unwrap())
}

/// The name of the first device.
pub const NAME: &str = "0001:00:01.0";

/// The file of a device's group, as programs find it.
pub fn group_of(name: &str) -> String {
    let link = std::fs::read_link(format!("/sys/bus/pci/devices/{name}/iommu_group")).unwrap();
    format!("/dev/vfio/{}", link.file_name().unwrap().to_str().unwrap())
}

/// How a device gets its address space.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Mode {
    /// What SET_IOMMU is given; none where the device has a file of its own.
    kind: Option<u32>,
    /// `/dev/iommu` in place of a container.
    by_iommufd: bool,
}

impl Mode {
    fn of(name: &str) -> Self {
        let (kind, by_iommufd) = match name {
            "type1" => (Some(container::TYPE1_IOMMU), false),
            "type1v2" => (Some(container::TYPE1V2_IOMMU), false),
            "compat-type1" => (Some(container::TYPE1_IOMMU), true),
            "compat-type1v2" => (Some(container::TYPE1V2_IOMMU), true),
            "cdev" => (None, true),
            other => panic!("there is no mode {other}"),
        };
        Self { kind, by_iommufd }
    }

    fn is(self, kind: u32, by_iommufd: bool) -> bool {
        self == Self { kind: Some(kind), by_iommufd }
    }
}

/// Makes a request whose argument is a number.
pub fn number(file: &OwnedFd, request: u32, argument: u64) -> Result<i32, i32> {
    // SAFETY: the request takes a number, or fails.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request.into(), argument) };
    if result < 0 { Err(std::io::Error::last_os_error().raw_os_error().unwrap()) } else { Ok(result) }
}

pub fn set_container(group: &OwnedFd, container: &OwnedFd) -> Result<i32, i32> {
    ioctl(group, group::SET_CONTAINER, &mut container.as_raw_fd())
}

pub fn status(group: &OwnedFd) -> u32 {
    let mut status = group::GroupStatus { argsz: 8, flags: 0 };
    ioctl(group, group::GET_STATUS, &mut status).unwrap();
    status.flags
}

pub fn device(group: &OwnedFd, name: &str) -> Result<OwnedFd, i32> {
    let name = std::ffi::CString::new(name).unwrap();
    let number = number(group, group::GET_DEVICE_FD, name.as_ptr() as u64)?;
    // SAFETY: the request has just made it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

pub fn map(container: &OwnedFd, address: u64, iova: u64, size: u64) -> Result<i32, i32> {
    let flags = container::DMA_MAP_FLAG_READ | container::DMA_MAP_FLAG_WRITE;
    ioctl(container, container::IOMMU_MAP_DMA, &mut Type1DmaMap { argsz: 32, flags, vaddr: address, iova, size })
}

/// How many bytes were unmapped.
pub fn unmap(container: &OwnedFd, iova: u64, size: u64) -> Result<u64, i32> {
    let mut request = Type1DmaUnmap { argsz: 24, flags: 0, iova, size };
    ioctl(container, container::IOMMU_UNMAP_DMA, &mut request)?;
    Ok(request.size)
}

/// The address space of a mode, with the device that uses it.
struct Attached {
    /// Dropped before what it is attached by.
    engine: Option<Engine>,
    group: Option<OwnedFd>,
    container: Option<OwnedFd>,
    space: Option<Space>,
}

impl Attached {
    fn new(mode: Mode) -> Self {
        let Some(kind) = mode.kind else {
            let space = Space::new();
            let engine = Engine::open(0, &space.iommu);
            engine.attach(space.ioas);
            return Self { engine: Some(engine), group: None, container: None, space: Some(space) };
        };
        let container = open(if mode.by_iommufd { "/dev/iommu" } else { "/dev/vfio/vfio" }).unwrap();
        assert_eq!(number(&container, container::GET_API_VERSION, 0), Ok(0));
        assert_eq!(number(&container, container::CHECK_EXTENSION, kind.into()), Ok(1));
        let group = open(&group_of(NAME)).unwrap();
        assert_eq!(status(&group), group::FLAGS_VIABLE);
        set_container(&group, &container).unwrap();
        assert_eq!(status(&group), group::FLAGS_VIABLE | group::FLAGS_CONTAINER_SET);
        number(&container, container::SET_IOMMU, kind.into()).unwrap();
        Self { engine: None, group: Some(group), container: Some(container), space: None }
    }

    /// With a group, memory can be mapped before a device is opened.
    fn open_device(&mut self) {
        if let Some(group) = &self.group {
            self.engine = Some(Engine::of(device(group, NAME).unwrap()));
        }
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    fn map(&self, memory: &Memory, iova: u64) {
        match &self.space {
            Some(space) => space.map_rw(memory, iova),
            None => {
                map(self.container.as_ref().unwrap(), memory.address, iova, memory.length as u64).unwrap();
            }
        }
    }

    fn unmap(&self, iova: u64, length: usize) -> Result<u64, i32> {
        if let Some(container) = &self.container {
            return unmap(container, iova, length as u64);
        }
        let space = self.space.as_ref().unwrap();
        let mut unmap = iommufd::IoasUnmap { size: 24, ioas_id: space.ioas, iova, length: length as u64 };
        ioctl(&space.iommu, iommufd::IOAS_UNMAP, &mut unmap)?;
        Ok(unmap.length)
    }
}

/// Copies, and is refused, in the mode of this name.
pub fn client(name: &str) {
    let mode = Mode::of(name);
    let mut attached = Attached::new(mode);
    let memory = |length| Memory::new(length, libc::MAP_SHARED);
    let (ring, source, target) = (memory(4096), memory(LENGTH), memory(LENGTH));
    attached.map(&ring, RING);
    attached.map(&source, SOURCE);
    attached.map(&target, TARGET);
    attached.open_device();
    for seed in 1..4 {
        source.fill(seed);
        attached.engine().copy(&ring, RING, SOURCE, TARGET, LENGTH).unwrap();
        assert!(target.holds(seed), "the copy differs");
    }
    // Half of a mapping.
    let half = attached.unmap(TARGET, LENGTH / 2);
    if mode.is(container::TYPE1_IOMMU, false) {
        // All of it, as it begins there.
        assert_eq!(half, Ok(LENGTH as u64));
    } else if mode.is(container::TYPE1_IOMMU, true) {
        assert_eq!(half, Ok(LENGTH as u64 / 2));
        assert_eq!(attached.unmap(TARGET + LENGTH as u64 / 2, LENGTH / 2), Ok(LENGTH as u64 / 2));
    } else {
        let refused = if mode.by_iommufd { libc::ENOENT } else { libc::EINVAL };
        assert_eq!(half, Err(refused));
        assert_eq!(attached.unmap(TARGET, LENGTH), Ok(LENGTH as u64));
    }
    // What is unmapped is not reached, and the device goes on afterwards.
    target.fill(77);
    attached.engine().copy(&ring, RING, SOURCE, TARGET, 64).unwrap_err();
    assert!(target.holds(77));
    attached.engine().copy(&ring, RING, SOURCE, NOWHERE, 64).unwrap_err();
    attached.map(&target, TARGET);
    source.fill(9);
    attached.engine().copy(&ring, RING, SOURCE, TARGET, LENGTH).unwrap();
    assert!(target.holds(9));
    if let Some(space) = attached.space.take() {
        attached.engine().reset();
        attached.engine().detach();
        drop(attached);
        for (iova, length) in [(RING, 4096), (SOURCE, LENGTH), (TARGET, LENGTH)] {
            space.unmap(iova, length);
        }
        space.destroy();
    }
}

/// The life of a group and a container, step by step.
pub fn life() {
    let first = open("/dev/vfio/vfio").unwrap();
    let link = std::fs::read_link(format!("/proc/self/fd/{}", first.as_raw_fd())).unwrap();
    assert_eq!(link.to_str(), Some("/dev/vfio/vfio"));
    let second = open("/dev/vfio/vfio").unwrap();
    let type1 = u64::from(container::TYPE1V2_IOMMU);
    // Without a group there is no IOMMU, and without an IOMMU no mapping.
    assert_eq!(number(&first, container::SET_IOMMU, type1), Err(libc::EINVAL));
    let page = Memory::new(4096, libc::MAP_SHARED);
    assert_eq!(map(&first, page.address, 0, 4096), Err(libc::EINVAL));
    assert_eq!(number(&first, container::CHECK_EXTENSION, container::DMA_CC_IOMMU.into()), Ok(0));
    let opened = open(&group_of(NAME)).unwrap();
    assert_eq!(open(&group_of(NAME)).err(), Some(libc::EBUSY));
    assert_eq!(device(&opened, NAME).err(), Some(libc::EINVAL));
    assert_eq!(number(&opened, group::UNSET_CONTAINER, 0), Err(libc::EINVAL));
    assert_eq!(ioctl(&opened, group::SET_CONTAINER, &mut -1i32), Err(libc::EBADF));
    assert_eq!(ioctl(&opened, group::SET_CONTAINER, &mut 900i32), Err(libc::EBADF));
    assert_eq!(set_container(&opened, &opened), Err(libc::EBADFD));
    // A descriptor that only names a container, perhaps that of another process, is none.
    let path = std::ffi::CString::new(format!("/proc/self/fd/{}", first.as_raw_fd())).unwrap();
    // SAFETY: a terminated string, and a descriptor that was just opened.
    let named = unsafe { OwnedFd::from_raw_fd(libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC)) };
    assert_eq!(set_container(&opened, &named), Err(libc::EBADF));
    assert_eq!(Engine::bind(&open("/dev/vfio/devices/vfio0").unwrap(), &named), Err(libc::EBUSY));
    drop(named);
    set_container(&opened, &first).unwrap();
    assert_eq!(set_container(&opened, &second), Err(libc::EINVAL));
    assert_eq!(device(&opened, NAME).err(), Some(libc::EINVAL), "there is no IOMMU yet");
    assert_eq!(number(&first, container::SET_IOMMU, 99), Err(libc::ENODEV));
    assert_eq!(number(&first, container::SET_IOMMU, container::UNMAP_ALL.into()), Err(libc::EINVAL));
    number(&first, container::SET_IOMMU, type1).unwrap();
    assert_eq!(number(&first, container::SET_IOMMU, type1), Err(libc::EINVAL));
    assert_eq!(number(&first, container::CHECK_EXTENSION, container::DMA_CC_IOMMU.into()), Ok(1));
    // What the devices reserve counts from here on.
    assert_eq!(map(&first, page.address, 0xfee0_0000, 4096), Err(libc::EINVAL));
    map(&first, page.address, 0x1000, 4096).unwrap();
    assert_eq!(map(&first, page.address, 0x1000, 4096), Err(libc::EEXIST));

    for name in ["", "0001:00:01", "0001:00:02.0", "0001:00:01.00", "0001:00:01.0x"] {
        assert_eq!(device(&opened, name).err(), Some(libc::ENODEV), "{name}");
    }
    let token = format!("{NAME} vf_token=01234567-89ab-cdef-0123-456789abcdef");
    for name in [&token, &format!("{NAME} vf_token="), &format!("{NAME} what=1")] {
        assert_eq!(device(&opened, name).err(), Some(libc::EINVAL), "{name}");
    }
    assert_eq!(number(&opened, group::GET_DEVICE_FD, 0), Err(libc::EFAULT));
    assert_eq!(device(&opened, &" ".repeat(5000)).err(), Some(libc::EINVAL));
    // Twice the same device, which stays until both are closed.
    let one = device(&opened, NAME).unwrap();
    let other = device(&opened, &format!("{NAME} ")).unwrap();
    assert_eq!(number(&opened, group::UNSET_CONTAINER, 0), Err(libc::EBUSY));
    let unbound = std::fs::write("/sys/bus/pci/drivers/vfio-pci/unbind", NAME);
    assert_eq!(unbound.unwrap_err().raw_os_error(), Some(libc::EBUSY));
    let own = open("/dev/vfio/devices/vfio0").unwrap();
    let iommu = open("/dev/iommu").unwrap();
    assert_eq!(Engine::bind(&own, &iommu), Err(libc::EBUSY));
    for request in [vfio::DEVICE_BIND_IOMMUFD, vfio::DEVICE_ATTACH_IOMMUFD_PT, vfio::DEVICE_DETACH_IOMMUFD_PT] {
        let wanted = if request == vfio::DEVICE_BIND_IOMMUFD { libc::EINVAL } else { libc::ENOTTY };
        assert_eq!(ioctl(&one, request, &mut [24u32; 6]), Err(wanted));
    }
    let engine = Engine::of(one);
    drop(engine);
    let mut info = vfio::DeviceInfo { argsz: 24, ..Default::default() };
    ioctl(&other, vfio::DEVICE_GET_INFO, &mut info).unwrap();
    // KVM is told of what it cannot know; of everything else the kernel says what it thinks.
    let kvm = open("/dev/null").unwrap();
    let tell = |file: i32, group, attr| {
        let addr = std::ptr::from_ref(&file) as u64;
        ioctl(&kvm, kvm::SET_DEVICE_ATTR, &mut kvm::DeviceAttr { flags: 0, group, attr, addr })
    };
    for file in [opened.as_raw_fd(), other.as_raw_fd()] {
        assert_eq!([1, 2].map(|attr| tell(file, kvm::DEV_VFIO_FILE, attr)), [Ok(0); 2]);
        assert_eq!((tell(file, 1, 3), tell(file, 2, 1)), (Err(libc::ENOTTY), Err(libc::ENOTTY)));
    }
    assert_eq!([first.as_raw_fd(), -1, 0].map(|file| tell(file, 1, 1)), [Err(libc::ENOTTY); 3]);
    // The group's own file is closed before the device's: it is open still.
    drop(opened);
    assert_eq!(open(&group_of(NAME)).err(), Some(libc::EBUSY));
    drop(other);
    // With the last group, all that was mapped is gone, and the IOMMU.
    let opened = open(&group_of(NAME)).unwrap();
    assert_eq!(unmap(&first, 0x1000, 4096), Err(libc::EINVAL));
    set_container(&opened, &first).unwrap();
    number(&first, container::SET_IOMMU, type1).unwrap();
    assert_eq!(unmap(&first, 0x1000, 4096), Ok(0));
    // The group keeps its container when the program has closed the container's last file.
    drop(first);
    let engine = Engine::of(device(&opened, NAME).unwrap());
    drop(engine);
    number(&opened, group::UNSET_CONTAINER, 0).unwrap();
    assert_eq!(status(&opened), group::FLAGS_VIABLE);
    // The runner has closed to the end what the program closed, before it unbinds the device.
    set_container(&opened, &second).unwrap();
    number(&second, container::SET_IOMMU, type1).unwrap();
    let (unbind, bind) = ("/sys/bus/pci/drivers/vfio-pci/unbind", "/sys/bus/pci/drivers/vfio-pci/bind");
    for _ in 0..10 {
        without_descriptors(|| assert_eq!(device(&opened, NAME).err(), Some(libc::EMFILE)));
        drop(device(&opened, NAME).unwrap());
        number(&opened, group::UNSET_CONTAINER, 0).unwrap();
        set_container(&opened, &second).unwrap();
        number(&second, container::SET_IOMMU, type1).unwrap();
        drop(device(&opened, NAME).unwrap());
        std::fs::write(unbind, NAME).unwrap();
        assert_eq!(device(&opened, NAME).err(), Some(libc::ENODEV));
        std::fs::write(bind, NAME).unwrap();
    }
    number(&opened, group::UNSET_CONTAINER, 0).unwrap();
    // The program need not destroy the address space that the runner makes for a group.
    set_container(&opened, &iommu).unwrap();
    drop(device(&opened, NAME).unwrap());
    number(&opened, group::UNSET_CONTAINER, 0).unwrap();
    // A device that is used by its own file keeps its group from being opened.
    drop(opened);
    Engine::bind(&own, &iommu).unwrap();
    assert_eq!(open(&group_of(NAME)).err(), Some(libc::EBUSY));
    drop(own);
    drop(open(&group_of(NAME)).unwrap());
}

/// Does something while no descriptor can be had.
fn without_descriptors(act: impl FnOnce()) {
    let limit = |soft| {
        let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: room for the limits, and limits.
        unsafe {
            assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limits), 0);
            let before = std::mem::replace(&mut limits.rlim_cur, soft);
            assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limits), 0);
            before
        }
    };
    let before = limit(0);
    act();
    limit(before);
}

/// A part of a device comes out of its group, too.
pub fn slice() {
    let (group, container) = (open(&group_of(NAME)).unwrap(), open("/dev/vfio/vfio").unwrap());
    set_container(&group, &container).unwrap();
    number(&container, container::SET_IOMMU, container::TYPE1V2_IOMMU.into()).unwrap();
    let page = Memory::new(4096, libc::MAP_SHARED);
    map(&container, page.address, 0x1000, 4096).unwrap();
    drop(device(&group, NAME).unwrap());
}

/// I/OAT's DMA to another device: memory of its BAR, and registers; and to its own.
pub fn peers() {
    const OTHER: &str = "0001:00:02.0";
    const BAR: u64 = 0x100_0000;
    const REGISTERS: u64 = 0x200_0000;
    let container = open("/dev/vfio/vfio").unwrap();
    let groups = [NAME, OTHER].map(|name| {
        let group = open(&group_of(name)).unwrap();
        set_container(&group, &container).unwrap();
        group
    });
    number(&container, container::SET_IOMMU, container::TYPE1V2_IOMMU.into()).unwrap();
    let (ring, source) = (Memory::new(4096, libc::MAP_SHARED), Memory::new(4096, libc::MAP_SHARED));
    map(&container, ring.address, RING, 4096).unwrap();
    map(&container, source.address, SOURCE, 4096).unwrap();
    let engine = Engine::of(device(&groups[0], NAME).unwrap());
    let other = device(&groups[1], OTHER).unwrap();
    // Its memory (BAR 2), which the program has touched in part, so that it is two mappings.
    let command = 0x6u16.to_ne_bytes();
    let mut info = vfio::RegionInfo { argsz: 32, index: 7, ..Default::default() };
    ioctl(&other, vfio::DEVICE_GET_REGION_INFO, &mut info).unwrap();
    let (config, file) = (info.offset, std::fs::File::from(other.try_clone().unwrap()));
    file.write_at(&command, config + 4).unwrap();
    let mut info = vfio::RegionInfo { argsz: 32, index: 2, ..Default::default() };
    ioctl(&other, vfio::DEVICE_GET_REGION_INFO, &mut info).unwrap();
    let memory = Memory::map(4 * 4096, libc::MAP_SHARED, other.as_raw_fd(), info.offset);
    memory.word(4096).store(1, Ordering::Relaxed);
    map(&container, memory.address, BAR, 4 * 4096).unwrap();
    let words = |at: usize| (0..512).map(|n| memory.word(at + 8 * n).load(Ordering::Relaxed)).collect::<Vec<_>>();
    for page in 0..4usize {
        source.fill(page as u64 + 5);
        engine.copy(&ring, RING, SOURCE, BAR + 4096 * page as u64, 4096).unwrap();
        let sent: Vec<_> = (0..512).map(|n| source.word(8 * n).load(Ordering::Relaxed)).collect();
        assert_eq!(words(4096 * page), sent);
        // And back.
        source.fill(99);
        engine.copy(&ring, RING, BAR + 4096 * page as u64, SOURCE, 4096).unwrap();
        assert_eq!((0..512).map(|n| source.word(8 * n).load(Ordering::Relaxed)).collect::<Vec<_>>(), sent);
    }
    // The device does not answer without Memory Space Enable, and does with it again.
    file.write_at(&[0; 2], config + 4).unwrap();
    engine.copy(&ring, RING, SOURCE, BAR, 64).unwrap_err();
    file.write_at(&command, config + 4).unwrap();
    engine.copy(&ring, RING, SOURCE, BAR, 64).unwrap();

    // Its own registers: the engine writes its completion address, and then resets itself in the middle of a transfer.
    map(&container, engine.registers.address, REGISTERS, 4096).unwrap();
    let register = |at: usize| REGISTERS + at as u64;
    source.word(0).store(0x1234_5678_9ac0, Ordering::Relaxed);
    engine.copy(&ring, RING, SOURCE, register(CHANCMP), 8).unwrap();
    let begin = std::time::Instant::now();
    while load::<u64>(&engine.registers, CHANCMP) != 0x1234_5678_9ac0 {
        assert!(begin.elapsed().as_secs() < 20, "what was posted never arrived");
    }
    source.word(8).store(0, Ordering::Relaxed);
    engine.copy(&ring, RING, register(CBVER), SOURCE + 8, 1).unwrap();
    assert_eq!(source.word(8).load(Ordering::Relaxed), 0x32);
    source.word(0).store(u64::from(RESET), Ordering::Relaxed);
    for _ in 0..100 {
        let _ = engine.copy(&ring, RING, SOURCE, register(CHANCMD), 1);
    }
    // What is taken back is reached no more; what the device was closed with, neither.
    unmap(&container, REGISTERS, 4096).unwrap();
    engine.copy(&ring, RING, SOURCE, register(CHANCMP), 8).unwrap_err();
    drop((file, other, memory));
    let closed = std::time::Instant::now();
    while engine.copy(&ring, RING, SOURCE, BAR, 64).is_ok() {
        assert!(closed.elapsed().as_secs() < 20, "a device that is closed is reached");
    }
    // Another use of it is not what was mapped.
    let again = device(&groups[1], OTHER).unwrap();
    std::fs::File::from(again.try_clone().unwrap()).write_at(&command, config + 4).unwrap();
    engine.copy(&ring, RING, SOURCE, BAR, 64).unwrap_err();
}

/// A part of a BAR by its descriptor, in the address space of another device, until it is taken back.
pub fn dma_buffer() {
    const OTHER: &str = "/dev/vfio/devices/vfio1";
    const BAR: u64 = 0x100_0000;
    let space = Space::new();
    let engine = Engine::open(0, &space.iommu);
    let (ring, source) = (Memory::new(4096, libc::MAP_SHARED), Memory::new(4096, libc::MAP_SHARED));
    space.map_rw(&ring, RING);
    space.map_rw(&source, SOURCE);
    engine.attach(space.ioas);
    let other = open(OTHER).unwrap();
    Engine::bind(&other, &space.iommu).unwrap();
    let mut info = vfio::RegionInfo { argsz: 32, index: 2, ..Default::default() };
    ioctl(&other, vfio::DEVICE_GET_REGION_INFO, &mut info).unwrap();
    let memory = Memory::map(4 * 4096, libc::MAP_SHARED, other.as_raw_fd(), info.offset);
    let word = |at: usize| memory.word(at).load(Ordering::Relaxed);
    let buffer = |ranges: &[[u64; 2]]| {
        let mut request = [0u32; 14];
        let head = [56, feature::DMA_BUF | feature::GET, 2, libc::O_RDWR as u32, 0, ranges.len() as u32];
        request[..6].copy_from_slice(&head);
        for (n, word) in ranges.iter().flatten().enumerate() {
            (request[6 + 2 * n], request[7 + 2 * n]) = (*word as u32, (*word >> 32) as u32);
        }
        let number = ioctl(&other, feature::DEVICE_FEATURE, &mut request).unwrap();
        // SAFETY: the request has just made it.
        unsafe { OwnedFd::from_raw_fd(number) }
    };
    let map_file = |file: &OwnedFd, start, length| {
        let flags = iommufd::MAP_FIXED_IOVA | iommufd::MAP_READABLE | iommufd::MAP_WRITEABLE;
        let (ioas_id, fd) = (space.ioas, file.as_raw_fd());
        let mut map = iommufd::IoasMapFile { size: 40, flags, ioas_id, fd, start, length, iova: BAR };
        ioctl(&space.iommu, iommufd::IOAS_MAP_FILE, &mut map)
    };
    let first = buffer(&[[2 << 12, 8192]]);
    assert_eq!(map_file(&buffer(&[[3 << 12, 4096], [1 << 12, 4096]]), 0, 4096), Err(libc::EOPNOTSUPP));
    assert_eq!([map_file(&first, 0, 3 * 4096), map_file(&first, 8192, 4096)], [Err(libc::EINVAL); 2]);
    map_file(&first, 0, 8192).unwrap();
    let copy = |seed, page: u64| {
        source.fill(seed);
        let copied = engine.copy(&ring, RING, SOURCE, BAR + 4096 * page, 4096);
        copied.map(|()| source.word(0).load(Ordering::Relaxed))
    };
    assert_eq!(copy(1, 0).unwrap(), word(2 * 4096));
    assert_eq!(copy(2, 1).unwrap(), word(3 * 4096));
    // A reset takes it back, for good; what is mapped after that is reached, until the device is closed.
    ioctl(&other, vfio::DEVICE_RESET, &mut 0).unwrap();
    let before = word(2 * 4096);
    copy(3, 0).unwrap_err();
    assert_eq!(word(2 * 4096), before);
    space.unmap(BAR, 8192);
    map_file(&first, 0, 4096).unwrap();
    assert_eq!(copy(4, 0).unwrap(), word(2 * 4096));
    drop((memory, other));
    let closed = std::time::Instant::now();
    while copy(5, 0).is_ok() {
        assert!(closed.elapsed().as_secs() < 20, "a device that is closed is reached");
    }
    space.unmap(BAR, 4096);
    assert_eq!(map_file(&first, 0, 4096), Err(libc::ENODEV));
}

/// Another process unbinds a device that is open: its user is asked to let go of it, and the other waits until it has,
/// or is killed.
pub fn asked_back() {
    const UNBIND: &str = "/sys/bus/pci/drivers/vfio-pci/unbind";
    let iommu = open("/dev/iommu").unwrap();
    let file = open("/dev/vfio/devices/vfio0").unwrap();
    Engine::bind(&file, &iommu).unwrap();
    // SAFETY: takes numbers, and gives a descriptor.
    let eventfd = unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)) };
    let head = vfio::IrqSet { argsz: 24, flags: vfio::IRQ_SET_DATA_EVENTFD | 1 << 5, index: 4, start: 0, count: 1 };
    ioctl(&file, vfio::DEVICE_SET_IRQS, &mut (head, eventfd.as_raw_fd())).unwrap();
    let asked = || {
        let mut poll = libc::pollfd { fd: eventfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor, and room for a counter.
        unsafe {
            assert_eq!(libc::poll(&mut poll, 1, 20_000), 1, "the runner never asks");
            assert_eq!(libc::read(poll.fd, [0u8; 8].as_mut_ptr().cast(), 8), 8);
        }
    };
    let other = || std::process::Command::new("sh").args(["-c", &format!("printf {NAME} >{UNBIND}")]).spawn().unwrap();
    // The process that waits can be killed, and the device stays.
    let mut killed = other();
    asked();
    killed.kill().unwrap();
    assert!(!killed.wait().unwrap().success());
    let mut info = vfio::DeviceInfo { argsz: 24, ..Default::default() };
    ioctl(&file, vfio::DEVICE_GET_INFO, &mut info).unwrap();
    // The one that has it does not wait for itself.
    assert_eq!(std::fs::write(UNBIND, NAME).unwrap_err().raw_os_error(), Some(libc::EBUSY));
    let mut waits = other();
    asked();
    assert!(waits.try_wait().unwrap().is_none(), "it is open still");
    drop(file);
    assert!(waits.wait().unwrap().success());
    assert!(!std::path::Path::new("/dev/vfio/devices/vfio0").exists());
}
