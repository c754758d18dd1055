//! Programs that do with threads, processes and signals what programs do.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ioasid_uapi::vfio;

use super::Setup;
use crate::driver::{CBVER, CHANCMP, Engine, Memory, load, open, store};

pub fn threads() {
    let setup = Setup::new();
    let registers = &setup.engine.registers;
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..200 {
                    assert_eq!(load::<u8>(registers, CBVER), 0x32);
                }
                // A thread that a traced one starts is traced too.
                std::thread::scope(|scope| {
                    scope.spawn(|| assert_eq!(load::<u8>(registers, CBVER), 0x32));
                });
            });
        }
    });
    setup.copy(1);
    setup.finish();
}

/// Forks, runs `child` there, and waits for its success.
fn in_child(child: impl FnOnce()) {
    // SAFETY: the child runs plain code and ends without returning.
    match unsafe { libc::fork() } {
        0 => {
            let fine = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).is_ok();
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(!fine)) }
        }
        pid => {
            let mut status = 0;
            // SAFETY: `status` is written.
            assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
            assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "status {status:#x}");
        }
    }
}

pub fn fork_and_share() {
    // Before anything of it is open: the child opens its own.
    in_child(|| Setup::new().finish());
    let setup = Setup::new();
    // The child drives the device that its parent opened, through the mapping that it inherits.
    in_child(|| setup.copy(2));
    in_child(|| in_child(|| setup.copy(3)));
    setup.copy(4);
    setup.finish();
}

static OWN: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid siginfo; the page is ours to replace.
    unsafe {
        let address = (*info).si_addr() as usize & !4095;
        let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        libc::mmap(address as *mut _, 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
    }
    OWN.fetch_add(1, Ordering::Relaxed);
}

pub fn own_sigbus() {
    // SAFETY: a handler of the signature that SA_SIGINFO asks for.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
    }
    let setup = Setup::new();
    let file = rustix::fs::memfd_create(c"empty", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    for round in 1..50 {
        let empty = Memory::map(4096, libc::MAP_SHARED, file.as_raw_fd(), 0);
        assert_eq!(load::<u64>(&empty, 8), 0);
        assert_eq!(OWN.load(Ordering::Relaxed), round);
        assert_eq!(load::<u8>(&setup.engine.registers, CBVER), 0x32);
    }
    assert_eq!(OWN.load(Ordering::Relaxed), 49, "registers raise none");
    setup.finish();
}

static TICKS: AtomicU32 = AtomicU32::new(0);

extern "C" fn on_tick(_: libc::c_int) {
    TICKS.fetch_add(1, Ordering::Relaxed);
}

/// Signals sent to a thread that keeps touching registers all arrive, one by one.
pub fn signals() {
    // SAFETY: a handler that only counts.
    unsafe { libc::signal(libc::SIGUSR1, on_tick as *const () as usize) };
    let setup = Setup::new();
    // SAFETY: takes no pointers.
    let (pid, tid) = unsafe { (libc::getpid(), libc::gettid()) };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for sent in 1..=300 {
                // SAFETY: takes no pointers.
                unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, libc::SIGUSR1) };
                while TICKS.load(Ordering::Relaxed) < sent {
                    std::hint::spin_loop();
                }
            }
        });
        let mut value = 1u64;
        while TICKS.load(Ordering::Relaxed) < 300 {
            value = value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1) & 0xffff_ffff_ffc0;
            store(&setup.engine.registers, CHANCMP, value);
            assert_eq!(load::<u64>(&setup.engine.registers, CHANCMP), value);
        }
    });
    setup.finish();
}

/// Becomes another program that has the files but not the mapping, and maps again.
pub fn exec() {
    let setup = Setup::new();
    setup.copy(1);
    setup.engine.detach();
    for memory in [(super::RING, 4096), (super::SOURCE, super::LENGTH), (super::TARGET, super::LENGTH)] {
        setup.space.unmap(memory.0, memory.1);
    }
    let (file, iommu) = (setup.engine.file.as_raw_fd(), setup.space.iommu.as_raw_fd());
    for fd in [file, iommu] {
        // SAFETY: takes no pointers.
        assert_eq!(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }, 0);
    }
    let arguments = ["program".to_owned(), "after-exec".to_owned(), format!("{file},{iommu},{}", setup.space.ioas)];
    let error = std::os::unix::process::CommandExt::exec(
        std::process::Command::new(std::env::current_exe().unwrap()).args(arguments),
    );
    panic!("{error}");
}

/// The exec is made by another thread than the first, which is what some runtimes do.
pub fn exec_from_thread() {
    std::thread::spawn(exec).join().unwrap();
}

/// The first thread ends, and others go on and map registers.
pub fn first_thread_ends() {
    std::thread::spawn(|| {
        let status = || std::fs::read_to_string("/proc/self/status").unwrap();
        while !status().lines().any(|line| line.starts_with("State:") && line.contains('Z')) {
            std::thread::yield_now();
        }
        let setup = Setup::new();
        setup.copy(1);
        setup.finish();
        std::process::exit(0);
    });
    // SAFETY: ends this thread alone; nothing of its stack is used by the other.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
}

pub fn after_exec(numbers: &str) {
    let numbers: Vec<i32> = numbers.split(',').map(|number| number.parse().unwrap()).collect();
    // SAFETY: descriptors that were left open for us.
    let (file, iommu) = unsafe {
        use std::os::fd::FromRawFd;
        (std::os::fd::OwnedFd::from_raw_fd(numbers[0]), std::os::fd::OwnedFd::from_raw_fd(numbers[1]))
    };
    let mut info = vfio::RegionInfo { argsz: 32, ..Default::default() };
    crate::driver::ioctl(&file, vfio::DEVICE_GET_REGION_INFO, &mut info).unwrap();
    let registers = Memory::map(info.size as usize, libc::MAP_SHARED, file.as_raw_fd(), info.offset);
    assert_eq!(load::<u8>(&registers, CBVER), 0x32);
    drop(Engine { file, registers });
    crate::driver::Space { iommu, ioas: numbers[2] as u32 }.destroy();
}

pub fn daemon() {
    let setup = Setup::new();
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    // SAFETY: the child runs plain code and ends without returning.
    if unsafe { libc::fork() } == 0 {
        drop(theirs);
        // The other end closes when the parent has ended.
        let _ = ours.read(&mut [0]);
        setup.copy(8);
        assert_eq!(load::<u8>(&setup.engine.registers, CBVER), 0x32);
        drop(open("/dev/iommu").unwrap());
        setup.finish();
        println!("child copied");
        std::io::stdout().flush().unwrap();
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) }
    }
    println!("parent ends");
    std::io::stdout().flush().unwrap();
    // The child has the files and the mappings; nothing is undone here.
    // SAFETY: ends the program.
    unsafe { libc::_exit(0) }
}
