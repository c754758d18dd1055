//! Malformed requests: a table of what is asked and what Linux answers.

use std::os::fd::AsRawFd;

use ioasid_uapi::{TYPE, io, iommufd as ii, vfio as vv};
use zerocopy::{Immutable, IntoBytes};

use super::{LENGTH, SOURCE, Setup};
use crate::driver::{Memory, ioctl, ioctl_at, open};

const EOPNOTSUPP: i32 = libc::EOPNOTSUPP;

/// An IOVA that is reserved, and the first that is beyond all that the device can address; the same, if nothing is
/// reserved.
fn unusable(iommu: i32, ioas: u32) -> (u64, u64) {
    let mut ranges = [ii::IovaRange { start: 0, last: 0 }; 8];
    let mut request = ii::IoasIovaRanges {
        size: size_of::<ii::IoasIovaRanges>() as u32,
        ioas_id: ioas,
        num_iovas: ranges.len() as u32,
        allowed_iovas: ranges.as_mut_ptr() as u64,
        ..Default::default()
    };
    ioctl(&iommu, ii::IOAS_IOVA_RANGES, &mut request).unwrap();
    let used = request.num_iovas as usize;
    (ranges[0].last + 1, ranges[used - 1].last + 1)
}

pub fn malformed() {
    let setup = Setup::new();
    let (iommu, device) = (setup.space.iommu.as_raw_fd(), setup.engine.file.as_raw_fd());
    let ioas = setup.space.ioas;
    let va = setup.source.address;
    let read_only = {
        let memory = Memory::new(4096, libc::MAP_PRIVATE);
        // SAFETY: a page of our own.
        unsafe { libc::mprotect(memory.address as *mut _, 4096, libc::PROT_READ) };
        memory
    };
    let (reserved, beyond) = unusable(iommu, ioas);
    let mut rows = 0;
    let mut row = |what: &str, fd: i32, number: u32, argument: &[u8], expected: i32| {
        let mut bytes = argument.to_vec();
        let got = ioctl_at(fd, number, bytes.as_mut_ptr() as u64);
        assert_eq!(got, Err(expected), "{what}");
        rows += 1;
    };
    fn tail<T: IntoBytes + Immutable>(value: T, size: u32, extra: u8) -> Vec<u8> {
        let mut bytes = value.as_bytes().to_vec();
        bytes[..4].copy_from_slice(&size.to_ne_bytes());
        bytes.resize((size as usize).max(bytes.len()), 0);
        if let Some(last) = bytes.last_mut().filter(|_| extra != 0) {
            *last = extra;
        }
        bytes
    }
    let map =
        ii::IoasMap { size: 40, flags: 7, ioas_id: ioas, reserved: 0, user_va: va, length: 4096, iova: 0xa0_0000 };
    let alloc = ii::IoasAlloc { size: 12, ..Default::default() };
    let unmap = ii::IoasUnmap { size: 24, ioas_id: ioas, iova: 0xa0_0000, length: 4096 };
    let ranges = ii::IoasIovaRanges { size: 32, ioas_id: ioas, ..Default::default() };
    let destroy = ii::Destroy { size: 8, id: ioas };

    row("an unknown number", iommu, io(TYPE, 0xa0), &[0; 64], libc::ENOTTY);
    row("a number below the first", iommu, io(TYPE, 0x7f), &[0; 64], libc::ENOTTY);
    row("a short destroy", iommu, ii::DESTROY, &tail(destroy, 4, 0), libc::EINVAL);
    row("a long destroy", iommu, ii::DESTROY, &tail(destroy, 16, 1), libc::E2BIG);
    row("destroying nothing", iommu, ii::DESTROY, ii::Destroy { size: 8, id: 0 }.as_bytes(), libc::ENOENT);
    row("destroying what is not there", iommu, ii::DESTROY, ii::Destroy { size: 8, id: 999 }.as_bytes(), libc::ENOENT);
    row("destroying what is attached", iommu, ii::DESTROY, destroy.as_bytes(), libc::EBUSY);
    row("a short alloc", iommu, ii::IOAS_ALLOC, &tail(alloc, 8, 0), libc::EINVAL);
    row("a long alloc", iommu, ii::IOAS_ALLOC, &tail(alloc, 4096 * 3 + 5, 1), libc::E2BIG);
    row("flags of alloc", iommu, ii::IOAS_ALLOC, ii::IoasAlloc { flags: 1, ..alloc }.as_bytes(), EOPNOTSUPP);
    row("a short ranges", iommu, ii::IOAS_IOVA_RANGES, &tail(ranges, 24, 0), libc::EINVAL);
    let bad = ii::IoasIovaRanges { reserved: 1, ..ranges };
    row("reserved field of ranges", iommu, ii::IOAS_IOVA_RANGES, bad.as_bytes(), EOPNOTSUPP);
    row("no room for ranges", iommu, ii::IOAS_IOVA_RANGES, ranges.as_bytes(), libc::EMSGSIZE);
    let bad = ii::IoasIovaRanges { ioas_id: 999, ..ranges };
    row("ranges of nothing", iommu, ii::IOAS_IOVA_RANGES, bad.as_bytes(), libc::ENOENT);
    let bad = ii::IoasIovaRanges { num_iovas: 1, allowed_iovas: 8, ..ranges };
    row("ranges to a bad address", iommu, ii::IOAS_IOVA_RANGES, bad.as_bytes(), libc::EFAULT);

    let maps = [
        ("unknown flag", ii::IoasMap { flags: 8 | 7, ..map }, EOPNOTSUPP),
        ("reserved field", ii::IoasMap { reserved: 1, ..map }, EOPNOTSUPP),
        ("neither read nor write", ii::IoasMap { flags: 1, ..map }, libc::EINVAL),
        ("no such ioas", ii::IoasMap { ioas_id: 999, ..map }, libc::ENOENT),
        ("id 0", ii::IoasMap { ioas_id: 0, ..map }, libc::ENOENT),
        ("length 0", ii::IoasMap { length: 0, ..map }, libc::EINVAL),
        ("length of everything", ii::IoasMap { length: u64::MAX, ..map }, libc::EOVERFLOW),
        ("iova at the top", ii::IoasMap { iova: u64::MAX, ..map }, libc::EOVERFLOW),
        ("iova that wraps", ii::IoasMap { iova: !0 << 12, length: 8192, ..map }, libc::EOVERFLOW),
        ("address that wraps", ii::IoasMap { user_va: !0 << 12, length: 8192, ..map }, libc::EOVERFLOW),
        ("iova between pages", ii::IoasMap { iova: 0xa0_0010, ..map }, libc::EINVAL),
        ("memory between pages", ii::IoasMap { user_va: va + 16, ..map }, libc::EINVAL),
        ("length between pages", ii::IoasMap { length: 100, ..map }, libc::EINVAL),
        ("iova that is reserved", ii::IoasMap { iova: reserved, ..map }, libc::EINVAL),
        ("iova beyond the device", ii::IoasMap { iova: beyond, ..map }, libc::EINVAL),
        ("iova in use", ii::IoasMap { iova: SOURCE, ..map }, libc::EEXIST),
        (
            "iova over the end of a mapping",
            ii::IoasMap { iova: SOURCE + LENGTH as u64 - 4096, length: 8192, ..map },
            libc::EEXIST,
        ),
        ("unmapped memory", ii::IoasMap { user_va: 4096, ..map }, libc::EFAULT),
        ("read-only memory for writing", ii::IoasMap { user_va: read_only.address, ..map }, libc::EFAULT),
        ("registers as memory", ii::IoasMap { user_va: setup.engine.registers.address, ..map }, libc::EFAULT),
        ("no room", ii::IoasMap { flags: 6, length: 1 << 60, ..map }, libc::ENOSPC),
    ];
    for (what, bad, errno) in maps {
        row(what, iommu, ii::IOAS_MAP, bad.as_bytes(), errno);
    }
    row("a short map", iommu, ii::IOAS_MAP, &tail(map, 32, 0), libc::EINVAL);
    row("a long map", iommu, ii::IOAS_MAP, &tail(map, 48, 9), libc::E2BIG);
    let unmaps = [
        ("nothing there", unmap, libc::ENOENT),
        ("part of a mapping", ii::IoasUnmap { iova: SOURCE, length: 4096, ..unmap }, libc::ENOENT),
        ("no length", ii::IoasUnmap { length: 0, ..unmap }, libc::EINVAL),
        ("a range that wraps", ii::IoasUnmap { iova: !0 << 12, length: 8192, ..unmap }, libc::EOVERFLOW),
        ("everything but not from 0", ii::IoasUnmap { length: u64::MAX, ..unmap }, libc::EOVERFLOW),
        ("no such ioas", ii::IoasUnmap { ioas_id: 77, ..unmap }, libc::ENOENT),
    ];
    for (what, bad, errno) in unmaps {
        row(what, iommu, ii::IOAS_UNMAP, bad.as_bytes(), errno);
    }

    let copy = ii::IoasCopy {
        size: 40,
        flags: 7,
        dst_ioas_id: ioas,
        src_ioas_id: ioas,
        length: 4096,
        dst_iova: 0xa0_0000,
        src_iova: SOURCE,
    };
    let copies = [
        ("unknown flag", ii::IoasCopy { flags: 8 | 7, ..copy }, EOPNOTSUPP),
        ("neither read nor write", ii::IoasCopy { flags: 1, ..copy }, libc::EINVAL),
        ("length 0", ii::IoasCopy { length: 0, ..copy }, libc::EINVAL),
        ("length of everything", ii::IoasCopy { length: u64::MAX, ..copy }, libc::EOVERFLOW),
        ("source at the top", ii::IoasCopy { src_iova: u64::MAX, ..copy }, libc::EOVERFLOW),
        ("source that wraps", ii::IoasCopy { src_iova: !0 << 12, length: 8192, ..copy }, libc::EOVERFLOW),
        ("target at the top", ii::IoasCopy { dst_iova: u64::MAX, ..copy }, libc::EOVERFLOW),
        ("no such source", ii::IoasCopy { src_ioas_id: 999, ..copy }, libc::ENOENT),
        ("no such target", ii::IoasCopy { dst_ioas_id: 999, ..copy }, libc::ENOENT),
        ("nothing at the source", ii::IoasCopy { src_iova: 0xa0_0000, ..copy }, libc::ENOENT),
        (
            "more than the source has",
            ii::IoasCopy { src_iova: SOURCE + LENGTH as u64 - 4096, length: 8192, ..copy },
            libc::ENOENT,
        ),
        ("target in use", ii::IoasCopy { dst_iova: SOURCE, ..copy }, libc::EEXIST),
        ("target that is reserved", ii::IoasCopy { dst_iova: reserved, ..copy }, libc::EINVAL),
        ("target between pages", ii::IoasCopy { dst_iova: 0xa0_0010, ..copy }, libc::EINVAL),
        ("source between pages", ii::IoasCopy { src_iova: SOURCE + 16, ..copy }, libc::EINVAL),
    ];
    for (what, bad, errno) in copies {
        row(what, iommu, ii::IOAS_COPY, bad.as_bytes(), errno);
    }
    row("a short copy", iommu, ii::IOAS_COPY, &tail(copy, 32, 0), libc::EINVAL);
    row("a long copy", iommu, ii::IOAS_COPY, &tail(copy, 48, 1), libc::E2BIG);

    // SAFETY: takes a string.
    let memfd = unsafe { libc::memfd_create(c"rows".as_ptr(), libc::MFD_CLOEXEC) };
    // SAFETY: take no pointers, and a string.
    let read_only = unsafe {
        assert_eq!(libc::ftruncate(memfd, 8192), 0);
        libc::open(format!("/proc/self/fd/{memfd}\0").as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC)
    };
    let program = open("/proc/self/exe").unwrap_or_else(|_| std::fs::File::open("/proc/self/exe").unwrap().into());
    let file =
        ii::IoasMapFile { size: 40, flags: 7, ioas_id: ioas, fd: memfd, start: 0, length: 8192, iova: 0xa0_0000 };
    let files = [
        ("unknown flag", ii::IoasMapFile { flags: 8 | 7, ..file }, EOPNOTSUPP),
        ("neither read nor write", ii::IoasMapFile { flags: 1, ..file }, libc::EINVAL),
        ("length 0", ii::IoasMapFile { length: 0, ..file }, libc::EINVAL),
        ("length of everything", ii::IoasMapFile { length: u64::MAX, ..file }, libc::EOVERFLOW),
        ("iova at the top", ii::IoasMapFile { iova: u64::MAX, ..file }, libc::EOVERFLOW),
        ("offset that wraps", ii::IoasMapFile { start: !0 << 12, ..file }, libc::EOVERFLOW),
        ("no such ioas", ii::IoasMapFile { ioas_id: 999, ..file }, libc::ENOENT),
        ("no such descriptor", ii::IoasMapFile { fd: 9999, ..file }, libc::EBADF),
        ("a negative descriptor", ii::IoasMapFile { fd: -1, ..file }, libc::EBADF),
        ("beyond the file", ii::IoasMapFile { length: 12288, ..file }, libc::EINVAL),
        ("from beyond the file", ii::IoasMapFile { start: 8192, ..file }, libc::EINVAL),
        ("a file on a disk", ii::IoasMapFile { fd: program.as_raw_fd(), flags: 5, length: 4096, ..file }, libc::EINVAL),
        ("a read-only file for writing", ii::IoasMapFile { fd: read_only, ..file }, libc::EPERM),
        ("iova in use", ii::IoasMapFile { iova: SOURCE, ..file }, libc::EEXIST),
        ("offset between pages", ii::IoasMapFile { start: 16, length: 4096, ..file }, libc::EINVAL),
    ];
    for (what, bad, errno) in files {
        row(what, iommu, ii::IOAS_MAP_FILE, bad.as_bytes(), errno);
    }
    row("a short map of a file", iommu, ii::IOAS_MAP_FILE, &tail(file, 32, 0), libc::EINVAL);
    row("a long map of a file", iommu, ii::IOAS_MAP_FILE, &tail(file, 48, 1), libc::E2BIG);

    let one = |start, last| [ii::IovaRange { start, last }];
    let allow = |ranges: &[ii::IovaRange]| ii::IoasAllowIovas {
        size: 24,
        ioas_id: ioas,
        num_iovas: ranges.len() as u32,
        allowed_iovas: ranges.as_ptr() as u64,
        ..Default::default()
    };
    let (good, empty, interrupts) = (one(0x1000, 0xff_ffff), one(5, 5), one(reserved - 0x1000, reserved + 0xfff));
    let overlapping = [ii::IovaRange { start: 0, last: 9 }, ii::IovaRange { start: 9, last: 20 }];
    let allows = [
        ("reserved field", ii::IoasAllowIovas { reserved: 1, ..allow(&good) }, EOPNOTSUPP),
        ("no such ioas", ii::IoasAllowIovas { ioas_id: 999, ..allow(&good) }, libc::ENOENT),
        ("a bad address", ii::IoasAllowIovas { allowed_iovas: 8, ..allow(&good) }, libc::EFAULT),
        ("a range of one address", allow(&empty), libc::EINVAL),
        ("ranges that overlap", allow(&overlapping), libc::EINVAL),
        ("where interrupts go", allow(&interrupts), libc::EADDRINUSE),
    ];
    for (what, bad, errno) in allows {
        row(what, iommu, ii::IOAS_ALLOW_IOVAS, bad.as_bytes(), errno);
    }
    row("a short allow", iommu, ii::IOAS_ALLOW_IOVAS, &tail(allow(&good), 16, 0), libc::EINVAL);
    row("a long allow", iommu, ii::IOAS_ALLOW_IOVAS, &tail(allow(&good), 32, 1), libc::E2BIG);

    let option = ii::IommuOption {
        size: 24,
        option_id: ii::OPTION_HUGE_PAGES,
        op: ii::OPTION_OP_SET,
        object_id: ioas,
        val64: 0,
        ..Default::default()
    };
    let options = [
        ("reserved field", ii::IommuOption { reserved: 1, ..option }, EOPNOTSUPP),
        ("no such option", ii::IommuOption { option_id: 9, ..option }, EOPNOTSUPP),
        ("no such operation", ii::IommuOption { op: 2, ..option }, EOPNOTSUPP),
        ("no such ioas", ii::IommuOption { object_id: 0, ..option }, libc::ENOENT),
        ("no such value", ii::IommuOption { val64: 2, ..option }, libc::EINVAL),
        ("large pages in use", option, libc::EINVAL),
    ];
    for (what, bad, errno) in options {
        row(what, iommu, ii::OPTION, bad.as_bytes(), errno);
    }
    row("a short option", iommu, ii::OPTION, &tail(option, 16, 0), libc::EINVAL);
    row("a long option", iommu, ii::OPTION, &tail(option, 32, 1), libc::E2BIG);

    let bind = vv::BindIommufd { argsz: 24, iommufd: iommu, ..Default::default() };
    row("binding twice", device, vv::DEVICE_BIND_IOMMUFD, bind.as_bytes(), libc::EINVAL);
    let fresh = open("/dev/vfio/devices/vfio0").unwrap();
    let unbound = fresh.as_raw_fd();
    row("info before bind", unbound, vv::DEVICE_GET_INFO, &tail(vv::DeviceInfo::default(), 24, 0), libc::EINVAL);
    row("reset before bind", unbound, vv::DEVICE_RESET, &[], libc::EINVAL);
    row("binding a bound device", unbound, vv::DEVICE_BIND_IOMMUFD, bind.as_bytes(), libc::EINVAL);
    let bad = vv::BindIommufd { iommufd: -1, ..bind };
    row("binding to no descriptor", unbound, vv::DEVICE_BIND_IOMMUFD, bad.as_bytes(), libc::EINVAL);
    let bad = vv::BindIommufd { iommufd: 9999, ..bind };
    row("binding to a closed descriptor", unbound, vv::DEVICE_BIND_IOMMUFD, bad.as_bytes(), libc::EBADF);
    let bad = vv::BindIommufd { iommufd: 1, ..bind };
    row("binding to standard output", unbound, vv::DEVICE_BIND_IOMMUFD, bad.as_bytes(), libc::EBADFD);
    row("a short bind", unbound, vv::DEVICE_BIND_IOMMUFD, &tail(bind, 12, 0), libc::EINVAL);
    row("a long bind", unbound, vv::DEVICE_BIND_IOMMUFD, &tail(bind, 32, 3), libc::E2BIG);
    let attach = vv::AttachIommufdPt { argsz: 16, pt_id: ioas, ..Default::default() };
    for (what, bad, errno) in [
        ("attach to nothing", vv::AttachIommufdPt { pt_id: 999, ..attach }, libc::ENOENT),
        ("attach to a device", vv::AttachIommufdPt { pt_id: 2, ..attach }, libc::EINVAL),
        ("unknown flag of attach", vv::AttachIommufdPt { flags: 2, ..attach }, libc::EINVAL),
        ("a short attach", vv::AttachIommufdPt { argsz: 8, ..attach }, libc::EINVAL),
        ("a PASID", vv::AttachIommufdPt { flags: 1, pasid: 1, ..attach }, libc::EINVAL),
    ] {
        row(what, device, vv::DEVICE_ATTACH_IOMMUFD_PT, bad.as_bytes(), errno);
    }
    row("a short info", device, vv::DEVICE_GET_INFO, &tail(vv::DeviceInfo::default(), 12, 0), libc::EINVAL);
    let bad = vv::RegionInfo { argsz: 32, index: 9, ..Default::default() };
    row("a region beyond the last", device, vv::DEVICE_GET_REGION_INFO, bad.as_bytes(), libc::EINVAL);
    let bad = vv::IrqInfo { argsz: 16, index: 5, ..Default::default() };
    row("an interrupt beyond the last", device, vv::DEVICE_GET_IRQ_INFO, bad.as_bytes(), libc::EINVAL);
    let irqs = vv::IrqSet { argsz: 24, flags: 4 | 32, index: 2, start: 0, count: 1 };
    for (what, bad, errno) in [
        ("a vector too many", vv::IrqSet { count: 2, argsz: 28, ..irqs }, libc::EINVAL),
        ("vectors that wrap", vv::IrqSet { start: u32::MAX, count: 2, argsz: 28, ..irqs }, libc::EINVAL),
        ("no room for the data", vv::IrqSet { argsz: 20, ..irqs }, libc::EINVAL),
        ("two kinds of data", vv::IrqSet { flags: 3 | 32, ..irqs }, libc::EINVAL),
        ("an unknown flag", vv::IrqSet { flags: 64 | 4 | 32, ..irqs }, libc::EINVAL),
    ] {
        row(what, device, vv::DEVICE_SET_IRQS, &[bad.as_bytes(), &[0; 8]].concat(), errno);
    }
    row(
        "an eventfd that is none",
        device,
        vv::DEVICE_SET_IRQS,
        &[irqs.as_bytes(), &1i32.to_ne_bytes()].concat(),
        libc::EINVAL,
    );
    row("an unknown request", device, io(TYPE, 250), &[0; 64], libc::ENOTTY);
    let reset = vv::PciHotReset { argsz: 12, ..Default::default() };
    row("a hot reset inside the root complex", device, vv::DEVICE_PCI_HOT_RESET, reset.as_bytes(), libc::ENODEV);
    row("a short hot reset", device, vv::DEVICE_PCI_HOT_RESET, &[0; 64], libc::EINVAL);

    for (fd, number) in [
        (iommu, ii::DESTROY),
        (iommu, ii::IOAS_MAP),
        (device, vv::DEVICE_GET_INFO),
        (device, vv::DEVICE_SET_IRQS),
        (unbound, vv::DEVICE_BIND_IOMMUFD),
    ] {
        assert_eq!(ioctl_at(fd, number, 16), Err(libc::EFAULT));
        rows += 1;
    }
    // The answer cannot be written: nothing may have been done.
    let mut page = Memory::new(4096, libc::MAP_PRIVATE);
    page.write(0, ii::IoasAlloc { size: 12, ..Default::default() }.as_bytes());
    page.write(64, map.as_bytes());
    // SAFETY: a page of our own.
    unsafe { libc::mprotect(page.address as *mut _, 4096, libc::PROT_READ) };
    assert_eq!(ioctl_at(iommu, ii::IOAS_ALLOC, page.address), Err(libc::EFAULT));
    assert_eq!(ioctl_at(iommu, ii::IOAS_MAP, page.address + 64), Err(libc::EFAULT));
    page.length = 4096;
    rows += 2;

    // After all that, everything is as it was: the same ids come next, nothing is mapped that was not, copies work.
    let mut next = ii::IoasAlloc { size: 12, ..Default::default() };
    ioctl(&setup.space.iommu, ii::IOAS_ALLOC, &mut next).unwrap();
    assert_eq!(next.out_ioas_id, 4, "1 is the address space, 2 the device, 3 the page table");
    ioctl(&setup.space.iommu, ii::DESTROY, &mut ii::Destroy { size: 8, id: 4 }).unwrap();
    // What is right works: the same memory at a second place, a file, and only where it is allowed.
    let mut second = ii::IoasCopy { flags: 6, ..copy };
    ioctl(&setup.space.iommu, ii::IOAS_COPY, &mut second).unwrap();
    setup.space.unmap(second.dst_iova, 4096);
    let mut whole = file;
    ioctl(&setup.space.iommu, ii::IOAS_MAP_FILE, &mut whole).unwrap();
    setup.space.unmap(0xa0_0000, 8192);
    ioctl(&setup.space.iommu, ii::IOAS_ALLOW_IOVAS, &mut allow(&good)).unwrap();
    let mut anywhere = ii::IoasMapFile { flags: 6, ..file };
    ioctl(&setup.space.iommu, ii::IOAS_MAP_FILE, &mut anywhere).unwrap();
    assert!((0x1000..=0xff_ffff - 8191).contains(&anywhere.iova), "{:#x}", anywhere.iova);
    setup.space.unmap(anywhere.iova, 8192);
    ioctl(&setup.space.iommu, ii::IOAS_ALLOW_IOVAS, &mut allow(&[])).unwrap();
    let mut get = ii::IommuOption { op: ii::OPTION_OP_GET, val64: 7, ..option };
    ioctl(&setup.space.iommu, ii::OPTION, &mut get).unwrap();
    assert_eq!(get.val64, 1);
    let mut good = map;
    ioctl(&setup.space.iommu, ii::IOAS_MAP, &mut good).unwrap();
    setup.space.unmap(0xa0_0000, 4096);
    setup.copy(11);
    setup.finish();
    println!("{rows}");
}
