//! Two programs, or two contexts, that must not get in each other's way.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use ioasid_uapi::{ioasid as extra, iommufd};

use super::{LENGTH, RING, SOURCE, TARGET};
use crate::driver::{Engine, Memory, Space, ioctl, open};

/// Runs two processes at once, each with a device, a context and memory of its own. Each tries to reach what the
/// other has, at the same IOVAs and at the addresses where the other's memory is, and both compare their memory after.
pub fn isolation() {
    let (a, b) = UnixStream::pair().unwrap();
    // SAFETY: the child runs plain code and ends without returning.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop(a);
        let text = one_side(1, b, "b", "a");
        // The parent's line goes first.
        let mut end = [0];
        let _ = text.1.take(1).read(&mut end);
        println!("{}", text.0);
        std::io::stdout().flush().unwrap();
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) }
    }
    drop(b);
    let (text, peer) = one_side(0, a, "a", "b");
    println!("{text}");
    std::io::stdout().flush().unwrap();
    drop(peer);
    let mut status = 0;
    // SAFETY: `status` is written.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "the other side failed");
}

fn one_side(number: u32, mut peer: UnixStream, name: &str, other: &str) -> (String, UnixStream) {
    // Each side's memory lies at IOVAs that the other has not mapped.
    let base = u64::from(number) * 0x4000_0000;
    let space = Space::new();
    let engine = Engine::open(number, &space.iommu);
    let (ring, source, target) = (
        Memory::new(4096, libc::MAP_SHARED),
        Memory::new(LENGTH, libc::MAP_SHARED),
        Memory::new(LENGTH, libc::MAP_PRIVATE),
    );
    for (memory, iova) in [(&ring, RING), (&source, SOURCE), (&target, TARGET)] {
        space.map_rw(memory, base + iova);
    }
    engine.attach(space.ioas);
    let seed = 0x1234_5678 + u64::from(number);
    source.fill(seed);
    engine.copy(&ring, base + RING, base + SOURCE, base + TARGET, LENGTH).unwrap();
    assert!(target.holds(seed));

    let mut theirs = [0; 24];
    let ours: Vec<u8> =
        [base, source.address, target.address].iter().flat_map(|address| address.to_ne_bytes()).collect();
    peer.write_all(&ours).unwrap();
    peer.read_exact(&mut theirs).unwrap();
    let word = |n: usize| u64::from_ne_bytes(theirs[8 * n..8 * n + 8].try_into().unwrap());
    let mut tried = 0;
    for n in 0..100u64 {
        // Their IOVAs, and their addresses as if they were IOVAs.
        let address = match n % 4 {
            0 => word(0) + SOURCE + n * 4096,
            1 => word(0) + TARGET + n * 4096,
            2 => (word(1) + n * 4096) & 0xffff_ffff_ffff,
            _ => (word(2) + n * 4096) & 0xffff_ffff_ffff,
        };
        assert!(engine.copy(&ring, base + RING, base + SOURCE, address, 4096).is_err(), "wrote {address:#x}");
        assert!(engine.copy(&ring, base + RING, address, base + TARGET, 4096).is_err(), "read {address:#x}");
        tried += 2;
    }
    // Neither can take the other's device.
    let device = open(&format!("/dev/vfio/devices/vfio{}", 1 - number)).unwrap();
    assert_eq!(Engine::bind(&device, &space.iommu), Err(libc::EINVAL));
    peer.write_all(&[1]).unwrap();
    peer.read_exact(&mut [0]).unwrap();
    assert!(source.holds(seed) && target.holds(seed), "somebody else changed this side's memory");

    engine.reset();
    engine.detach();
    drop(engine);
    space.unmap(0, usize::MAX);
    space.destroy();
    (format!("{name} tried {tried} addresses of {other} and reached none"), peer)
}

/// Devices 0 and 1 share a group, device 2 has one of its own.
pub fn groups() {
    let (one, two) = (Space::new(), Space::new());
    let file = |number: u32| open(&format!("/dev/vfio/devices/vfio{number}")).unwrap();
    let (a, b, c) = (file(0), file(1), file(2));
    Engine::bind(&a, &one.iommu).unwrap();
    assert_eq!(Engine::bind(&b, &two.iommu), Err(libc::EPERM), "its group belongs to the other context");
    Engine::bind(&c, &two.iommu).unwrap();
    Engine::bind(&b, &one.iommu).unwrap();
    assert_eq!(Engine::bind(&b, &one.iommu), Err(libc::EINVAL), "it is bound already");
    drop((a, b));
    let a = file(0);
    Engine::bind(&a, &two.iommu).unwrap();
    drop((a, c));
    one.destroy();
    two.destroy();
    println!("as it should be");
}

/// A device that was closed is not in the way of what comes next.
pub fn close_then_destroy() {
    for _ in 0..200 {
        let space = Space::new();
        let file = open("/dev/vfio/devices/vfio0").unwrap();
        Engine::bind(&file, &space.iommu).unwrap();
        let mut attach = ioasid_uapi::vfio::AttachIommufdPt { argsz: 16, pt_id: space.ioas, ..Default::default() };
        ioctl(&file, ioasid_uapi::vfio::DEVICE_ATTACH_IOMMUFD_PT, &mut attach).unwrap();
        let mut detach = ioasid_uapi::vfio::DetachIommufdPt { argsz: 12, ..Default::default() };
        ioctl(&file, ioasid_uapi::vfio::DEVICE_DETACH_IOMMUFD_PT, &mut detach).unwrap();
        drop(file);
        let again = open("/dev/vfio/devices/vfio0").unwrap();
        Engine::bind(&again, &space.iommu).unwrap();
        drop(again);
        space.destroy();
    }
}

/// Names a process of another user's, and its own.
pub fn sva_of_another() {
    let space = Space::new();
    let alloc = |pid: i32| {
        // SAFETY: takes numbers.
        let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        assert!(pidfd >= 0, "pidfd_open of {pid}: {}", std::io::Error::last_os_error());
        let mut request = extra::HwptAlloc {
            size: size_of::<extra::HwptAlloc>() as u32,
            kind: extra::HWPT_SVA,
            pidfd: pidfd as i32,
            ..Default::default()
        };
        ioctl(&space.iommu, extra::HWPT_ALLOC, &mut request).map(|_| request.out_hwpt_id)
    };
    assert_eq!(alloc(1), Err(libc::EPERM));
    let own = alloc(std::process::id() as i32).unwrap();
    let mut destroy = iommufd::Destroy { size: 8, id: own };
    ioctl(&space.iommu, iommufd::DESTROY, &mut destroy).unwrap();
    space.destroy();
}
