//! Programs that pass for others, or want what is another's.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU8, Ordering};

use ioasid_uapi::{ioasid as extra, iommufd, vfio};

use super::SOURCE;
use crate::driver::{Engine, Memory, Space, ioctl, open};

/// A byte of this program's memory through the address space of another context, with the thread's own copy request.
fn copy(space: &Space, hwpt: u32, flags: u32, iova: u64, bytes: &mut [u8]) -> Result<i32, i32> {
    let (length, user_va) = (bytes.len() as u64, bytes.as_mut_ptr() as u64);
    let size = size_of::<extra::Copy>() as u32;
    ioctl(&space.iommu, extra::COPY, &mut extra::Copy { size, flags, id: hwpt, pasid: 0, iova, length, user_va })
}

/// A thread makes requests and ends, and a child gets its number. What the child maps is the child's.
///
/// `user` is the user that the child becomes, if it is to be another.
pub fn number_reused(user: Option<u32>) {
    let memory = Memory::new(4096, libc::MAP_PRIVATE);
    memory.write(0, b"before");
    let space = Space::new();
    let by_thread = |thread: &(dyn Fn() + Sync)| {
        let numbered = || {
            thread();
            // SAFETY: takes nothing.
            unsafe { libc::gettid() }
        };
        std::thread::scope(|scope| scope.spawn(numbered).join().unwrap())
    };
    // The first three hundred numbers do not come round.
    while by_thread(&|| {}) <= 300 {}
    let number = by_thread(&|| space.map_rw(&memory, SOURCE));
    let (mut here, mut there) = UnixStream::pair().unwrap();
    let child = child_with_number(number);
    if child == 0 {
        there.read_exact(&mut [0]).unwrap();
        if let Some(user) = user {
            // SAFETY: takes numbers.
            assert_eq!(unsafe { libc::setgid(user) | libc::setuid(user) }, 0);
        }
        memory.write(0, b"child's");
        let space = Space::new();
        let device = open("/dev/vfio/devices/vfio0").unwrap();
        Engine::bind(&device, &space.iommu).unwrap();
        let mut attach = vfio::AttachIommufdPt { argsz: 16, pt_id: space.ioas, ..Default::default() };
        ioctl(&device, vfio::DEVICE_ATTACH_IOMMUFD_PT, &mut attach).unwrap();
        space.map_rw(&memory, SOURCE);
        let mut read = [0; 7];
        copy(&space, attach.pt_id, 0, SOURCE, &mut read).unwrap();
        copy(&space, attach.pt_id, extra::COPY_TO, SOURCE, &mut *b"written".to_owned().as_mut()).unwrap();
        println!("the child's device reads {:?}", String::from_utf8_lossy(&read));
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) }
    }
    memory.write(0, b"parents");
    here.write_all(&[1]).unwrap();
    let mut status = 0;
    // SAFETY: `status` is written.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0);
    let bytes = memory.word(0).load(Ordering::Relaxed).to_ne_bytes();
    println!("the parent has {:?}", String::from_utf8_lossy(&bytes[..7]));
    space.unmap(SOURCE, 4096);
    space.destroy();
}

/// Forks a child with this process number, which is free: by asking for it, or by forking until the numbers come round.
fn child_with_number(number: i32) -> i32 {
    let mut wanted = [number];
    let arguments = libc::clone_args {
        exit_signal: libc::SIGCHLD as u64,
        set_tid: wanted.as_mut_ptr() as u64,
        set_tid_size: 1,
        // SAFETY: plain numbers.
        ..unsafe { std::mem::zeroed() }
    };
    // SAFETY: a fork; the child runs plain code and ends without returning.
    let child = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) };
    if child >= 0 {
        return child as i32;
    }
    for _ in 0..5_000_000 {
        // SAFETY: the child ends, or runs plain code and ends.
        match unsafe { libc::fork() } {
            // SAFETY: takes nothing, or ends the child.
            0 if unsafe { libc::getpid() } == number => return 0,
            // SAFETY: ends the child.
            0 => unsafe { libc::_exit(0) },
            child if child == number => return child,
            // SAFETY: a child of ours.
            child => assert_eq!(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) }, child),
        }
    }
    panic!("the number {number} does not come round");
}

/// Another user than the runner's pins pages until its limit, of sixteen, is reached.
pub fn pinned_by_another(user: u32) {
    let limit = libc::rlimit { rlim_cur: 16 * 4096, rlim_max: 16 * 4096 };
    // SAFETY: a limit that outlives the call, and numbers.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) | libc::setgid(user) | libc::setuid(user) }, 0);
    let (space, memory) = (Space::new(), Memory::new(64 * 4096, libc::MAP_PRIVATE));
    let device = open("/dev/vfio/devices/vfio0").unwrap();
    Engine::bind(&device, &space.iommu).unwrap();
    let mut attach = vfio::AttachIommufdPt { argsz: 16, pt_id: space.ioas, ..Default::default() };
    ioctl(&device, vfio::DEVICE_ATTACH_IOMMUFD_PT, &mut attach).unwrap();
    let map = |page: &u64| {
        let (user_va, iova, flags) = (memory.address + page * 4096, SOURCE + page * 4096, 7);
        let length = 4096;
        let mut map = iommufd::IoasMap { size: 40, flags, ioas_id: space.ioas, user_va, length, iova, reserved: 0 };
        ioctl(&space.iommu, iommufd::IOAS_MAP, &mut map).map_err(|errno| assert_eq!(errno, libc::ENOMEM)).is_ok()
    };
    println!("{}", (0..64).take_while(map).count());
}

/// A process of the same user that must not be looked into stays its own.
pub fn not_dumpable(user: Option<u32>) {
    if let Some(user) = user {
        // SAFETY: takes numbers. The change of user made this process one that must not be looked into, too.
        assert_eq!(unsafe { libc::setgid(user) | libc::setuid(user) | libc::prctl(libc::PR_SET_DUMPABLE, 1) }, 0);
    }
    let secret = Memory::new(4096, libc::MAP_PRIVATE);
    let shared = Memory::new(4096, libc::MAP_SHARED);
    // SAFETY: the bytes are in the mapping, and atomic.
    let ready = unsafe { AtomicU8::from_ptr(shared.address as *mut u8) };
    // SAFETY: the child makes system calls only, and is ended by its parent.
    let victim = unsafe { libc::fork() };
    if victim == 0 {
        secret.write(0, b"secret");
        // SAFETY: takes numbers.
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
        ready.store(1, Ordering::Release);
        loop {
            // SAFETY: takes nothing.
            unsafe { libc::pause() };
        }
    }
    while ready.load(Ordering::Acquire) == 0 {
        std::thread::yield_now();
    }
    let space = Space::new();
    // SAFETY: takes numbers.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, victim, 0) } as i32;
    let (size, kind) = (size_of::<extra::HwptAlloc>() as u32, extra::HWPT_SVA);
    let mut request = extra::HwptAlloc { size, kind, pidfd, ..Default::default() };
    println!("{:?}", ioctl(&space.iommu, extra::HWPT_ALLOC, &mut request).map_err(|errno| errno == libc::EPERM));
    // SAFETY: takes numbers; a child of ours that nobody has waited for.
    unsafe {
        libc::kill(victim, libc::SIGKILL);
        libc::waitpid(victim, std::ptr::null_mut(), 0);
    }
    ioctl(&space.iommu, iommufd::DESTROY, &mut iommufd::Destroy { size: 8, id: space.ioas }).unwrap();
}
