//! Programs that make the runner ask its own tree, or keep what keeps the runner.

use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

use ioasid_uapi::{ioasid as extra, iommufd};
use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType};

use super::SOURCE;
use crate::driver::{Engine, Memory, Space, ioctl, ioctl_at, open};

/// The ways of [`asking`].
pub const WAYS: [&str; 5] = ["argument", "file", "sva", "replaced", "shared"];

/// Makes, in four threads and until it is killed, requests with which the runner meets its own tree.
pub fn asking(way: &str) {
    let space = Space::new();
    let engine = Engine::open(0, &space.iommu);
    engine.attach(space.ioas);
    let registers = engine.registers.address;
    // Whoever asks for the size makes the file large to everybody: accesses of the kernel go to the tree then.
    rustix::fs::fstat(&engine.file).unwrap();
    // SAFETY: advice about a mapping of ours.
    unsafe { libc::madvise(registers as *mut libc::c_void, engine.registers.length, libc::MADV_RANDOM) };
    let (memory, others) = (Memory::new(4 * 4096, libc::MAP_PRIVATE), Memory::new(16 * 4096, libc::MAP_SHARED));
    let copy = |id: u32, flags: u32, iova: u64| {
        let (mut bytes, size) = ([0u8; 8], size_of::<extra::Copy>() as u32);
        let user_va = bytes.as_mut_ptr() as u64;
        let _ =
            ioctl(&space.iommu, extra::COPY, &mut extra::Copy { size, flags, id, pasid: 0, iova, length: 8, user_va });
    };
    let request: Box<dyn Fn(u64) + Sync> = match way {
        "argument" => Box::new(|_| {
            let _ = ioctl_at(space.iommu.as_raw_fd(), iommufd::IOAS_ALLOC, registers + 0x80);
        }),
        "file" => Box::new(|thread| {
            let _ = map_file(&space, &engine.file, SOURCE + thread * 4096);
        }),
        "sva" => {
            // SAFETY: takes numbers.
            let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) } as i32;
            let (size, kind) = (size_of::<extra::HwptAlloc>() as u32, extra::HWPT_SVA);
            let mut alloc = extra::HwptAlloc { size, kind, pidfd, ..Default::default() };
            ioctl(&space.iommu, extra::HWPT_ALLOC, &mut alloc).unwrap();
            let hwpt = alloc.out_hwpt_id;
            Box::new(move |_| copy(hwpt, 0, registers + 0x80))
        }
        "replaced" => {
            let mut devices = ioasid_uapi::vfio::AttachIommufdPt { argsz: 16, pt_id: space.ioas, ..Default::default() };
            ioctl(&engine.file, ioasid_uapi::vfio::DEVICE_ATTACH_IOMMUFD_PT, &mut devices).unwrap();
            let hwpt = devices.pt_id;
            space.map_rw(&memory, SOURCE);
            let (at, length) = (memory.address as *mut libc::c_void, memory.length);
            let flags = libc::MAP_SHARED | libc::MAP_FIXED;
            // SAFETY: over a mapping of ours, of which nothing is used any more.
            let mapped = unsafe { libc::mmap(at, length, 3, flags, engine.file.as_raw_fd(), 0) };
            assert_eq!(mapped, at);
            rustix::fs::fstat(&engine.file).unwrap();
            Box::new(move |_| copy(hwpt, 0, SOURCE + 0x80))
        }
        "shared" => {
            // The files of the tree are among those in which the runner may look for the memory.
            (0..40).for_each(|_| std::mem::forget(open("/dev/iommu").unwrap()));
            let (space, others) = (&space, &others);
            Box::new(move |thread| {
                let start = thread as usize * 4096;
                space.map_part(others, start..start + 4096, SOURCE + thread * 4096);
                space.unmap(SOURCE + thread * 4096, 4096);
            })
        }
        other => panic!("there is no way {other}"),
    };
    println!("asking");
    std::io::stdout().flush().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let request = &request;
            scope.spawn(move || {
                loop {
                    request(thread);
                }
            });
        }
    });
}

fn map_file(space: &Space, file: &impl AsRawFd, iova: u64) -> Result<i32, i32> {
    let flags = iommufd::MAP_FIXED_IOVA | iommufd::MAP_READABLE | iommufd::MAP_WRITEABLE;
    let (fd, length) = (file.as_raw_fd(), 4096);
    let mut map = iommufd::IoasMapFile { size: 40, flags, ioas_id: space.ioas, fd, start: 0, length, iova };
    ioctl(&space.iommu, iommufd::IOAS_MAP_FILE, &mut map)
}

/// Maps what is no memory: files of the tree, and a socket that a descriptor of it is on its way through. Linux finds
/// out when a page table is filled.
pub fn keeping() {
    let space = Space::new();
    let device = open("/dev/vfio/devices/vfio0").unwrap();
    Engine::bind(&device, &space.iommu).unwrap();
    let sockets = rustix::net::socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).unwrap();
    let sent = [space.iommu.as_fd()];
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut room);
    ancillary.push(SendAncillaryMessage::ScmRights(&sent));
    rustix::net::sendmsg(&sockets.0, &[IoSlice::new(b"x")], &mut ancillary, SendFlags::empty()).unwrap();
    for (place, file) in (0..).zip([space.iommu.as_raw_fd(), device.as_raw_fd(), sockets.1.as_raw_fd()]) {
        map_file(&space, &file, SOURCE + place * 4096).unwrap();
    }
    let mut attach = ioasid_uapi::vfio::AttachIommufdPt { argsz: 16, pt_id: space.ioas, ..Default::default() };
    assert_eq!(ioctl(&device, ioasid_uapi::vfio::DEVICE_ATTACH_IOMMUFD_PT, &mut attach), Err(libc::EINVAL));
    println!("mapped");
}
