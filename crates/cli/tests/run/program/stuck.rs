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

/// Waits in a register access whose other operand is memory that nobody brings in.
pub fn register_access() {
    let space = Space::new();
    let engine = Engine::open(0, &space.iommu);
    let (memory, _absent) = absent(1);
    println!("waiting");
    // SAFETY: one byte, from a register to memory of ours.
    unsafe {
        std::arch::asm!(
            "movsb",
            inout("rsi") engine.registers.address + 8 => _,
            inout("rdi") memory.address => _,
        );
    }
    panic!("nobody brings it in");
}

/// Maps registers in one thread while another executes a program, again and again.
pub fn map_and_exec() {
    for round in 0..60u64 {
        // SAFETY: the child runs plain code, and ends or executes a program.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let space = Space::new();
            let device = crate::driver::open("/dev/vfio/devices/vfio0").unwrap();
            Engine::bind(&device, &space.iommu).unwrap();
            for _ in 0..20 {
                std::thread::spawn(|| {
                    loop {
                        std::thread::park();
                    }
                });
            }
            let go = std::sync::Arc::new(std::sync::Barrier::new(2));
            let begin = go.clone();
            std::thread::spawn(move || {
                begin.wait();
                for n in 0..round * 2_000 {
                    std::hint::black_box(n);
                }
                let error = std::os::unix::process::CommandExt::exec(&mut std::process::Command::new("true"));
                panic!("{error}");
            });
            go.wait();
            let _ = Memory::try_map(4096, libc::MAP_SHARED, device.as_raw_fd(), 0).map(std::mem::forget);
            loop {
                std::thread::park();
            }
        }
        let mut status = 0;
        // SAFETY: a child of ours.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0, "round {round}");
    }
}

/// Processes that share memory, and are no threads, touch registers: one from before they were mapped, one from after.
pub fn shared_memory_processes() {
    static REGISTERS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    extern "C" fn child(_: *mut libc::c_void) -> i32 {
        loop {
            match REGISTERS.load(std::sync::atomic::Ordering::Acquire) {
                // SAFETY: takes nothing.
                0 => drop(unsafe { libc::sched_yield() }),
                // SAFETY: a register of a mapping that stays.
                address => return i32::from(unsafe { ((address + 8) as *const u8).read_volatile() } != 0x32),
            }
        }
    }
    let start = || {
        let stack = Memory::new(64 << 10, libc::MAP_PRIVATE);
        let top = (stack.address + stack.length as u64) as *mut libc::c_void;
        // SAFETY: a stack that is not used by anybody else, and is leaked.
        let pid = unsafe { libc::clone(child, top, libc::CLONE_VM | libc::SIGCHLD, std::ptr::null_mut()) };
        std::mem::forget(stack);
        assert!(pid > 0);
        pid
    };
    let wait = |pid: i32| {
        let mut status = 0;
        // SAFETY: a child of ours.
        assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
        assert_eq!(status, 0);
    };
    let before = start();
    let space = Space::new();
    let engine = Engine::open(0, &space.iommu);
    // Whoever was there has the handler a moment after the mapping is made.
    std::thread::sleep(std::time::Duration::from_millis(50));
    REGISTERS.store(engine.registers.address, std::sync::atomic::Ordering::Release);
    wait(before);
    wait(start());
    drop(engine);
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
