//! Programs whose memory keeps their own requests waiting, by userfaultfd.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use ioasid_uapi::iommufd;

use super::SOURCE;
use crate::driver::{Engine, Memory, Space, ioctl, ioctl_at};

/// Requests that wait at the same time.
const WAITING: u64 = 20;

/// Linux `include/uapi/linux/userfaultfd.h`.
const API: libc::c_ulong = 0xc018_aa3f;
const REGISTER: libc::c_ulong = 0xc020_aa00;
const API_VERSION: u64 = 0xaa;
const MISSING: u64 = 1 << 0;

/// Memory that is brought in by nobody, as long as the descriptor is open.
fn absent(pages: u64) -> (Memory, OwnedFd) {
    let memory = Memory::new(pages as usize * 4096, libc::MAP_PRIVATE);
    let (mut api, mut register) = ([API_VERSION, 0, 0], [memory.address, memory.length as u64, MISSING, 0]);
    // SAFETY: the structures are as the requests want them.
    unsafe {
        let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) as i32;
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        assert_eq!(libc::ioctl(fd, API, api.as_mut_ptr()) | libc::ioctl(fd, REGISTER, register.as_mut_ptr()), 0);
        (memory, OwnedFd::from_raw_fd(fd))
    }
}

/// Requests whose argument is not there wait, and others are answered meanwhile.
pub fn requests_wait() {
    let space = Space::new();
    let (memory, absent) = absent(WAITING);
    std::thread::scope(|scope| {
        for page in 0..WAITING {
            let (fd, argument) = (space.iommu.as_raw_fd(), memory.address + page * 4096);
            scope.spawn(move || assert_eq!(ioctl_at(fd, iommufd::IOAS_ALLOC, argument), Err(libc::EINVAL)));
        }
        for _ in 0..100 {
            let mut alloc = iommufd::IoasAlloc { size: 12, ..Default::default() };
            ioctl(&space.iommu, iommufd::IOAS_ALLOC, &mut alloc).unwrap();
            ioctl(&space.iommu, iommufd::DESTROY, &mut iommufd::Destroy { size: 8, id: alloc.out_ioas_id }).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        // Now the pages are there, and full of zeros.
        drop(absent);
    });
    space.destroy();
}

/// Ends while a device waits for memory that nobody brings in, and a child keeps it from ever coming.
pub fn ends_meanwhile() {
    let space = Space::new();
    let engine = Engine::open(0, &space.iommu);
    let ring = Memory::new(4096, libc::MAP_SHARED);
    let (memory, absent) = absent(1);
    space.map_rw(&ring, super::RING);
    space.map_rw(&memory, SOURCE);
    engine.attach(space.ioas);
    // SAFETY: the child waits with what it inherits, and has nothing of the tree.
    if unsafe { libc::fork() } == 0 {
        drop((space, engine));
        // Who waits for the output waits for the program only.
        let null = crate::driver::open("/dev/null").unwrap();
        rustix::stdio::dup2_stdout(&null).and_then(|()| rustix::stdio::dup2_stderr(&null)).unwrap();
        // SAFETY: takes a number.
        unsafe { libc::sleep(20) };
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) }
    }
    engine.start(&ring, super::RING, SOURCE, super::RING + 64, 64);
    std::thread::sleep(std::time::Duration::from_millis(50));
    drop(absent);
    println!("ending");
    std::process::exit(0);
}
