//! Device files look like character devices to every thread that asks, also to one that is killed meanwhile.

use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::modes::{NAME, group_of, open};
use crate::driver::Memory;

const PAGE: usize = 4096;

/// What every one of many threads sees, also of open files, and while others start and end.
pub fn seen() {
    let paths = ["/dev/iommu", "/dev/vfio/vfio", &group_of(NAME), "/dev/vfio/devices/vfio0"].map(str::to_owned);
    let own = open(&paths[3]).unwrap();
    let number = std::fs::read_to_string(format!("/sys/bus/pci/devices/{NAME}/vfio-dev/vfio0/dev")).unwrap();
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (paths, own, number) = (&paths, &own, &number);
            scope.spawn(move || {
                for round in 0..100 {
                    let kind = std::fs::metadata(&paths[(n + round) % 4]).unwrap().file_type();
                    assert!(kind.is_char_device());
                    let file = std::fs::File::from(own.try_clone().unwrap());
                    let told = file.metadata().unwrap();
                    assert!(told.file_type().is_char_device() && told.len() == 0);
                    let seen = format!("{}:{}\n", libc::major(told.rdev()), libc::minor(told.rdev()));
                    assert_eq!(&seen, number);
                    std::thread::spawn(|| {}).join().unwrap();
                }
            });
        }
    });
    // What else is in the tree is what it is.
    assert!(std::fs::metadata("/dev/vfio/devices").unwrap().is_dir());
    assert!(std::fs::metadata(format!("/sys/bus/pci/devices/{NAME}/vendor")).unwrap().is_file());
    hostile();
}

/// Asks with memory that goes away, and from processes that are killed meanwhile.
fn hostile() {
    let own = open("/dev/vfio/devices/vfio0").unwrap();
    let memory = Memory::new(PAGE, libc::MAP_PRIVATE);
    let (ends, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (memory, ends, answers) = (&memory, &ends, &answers);
        scope.spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                for protection in [libc::PROT_NONE, libc::PROT_READ | libc::PROT_WRITE] {
                    // SAFETY: the memory is this function's, and no other code looks at it.
                    let done = unsafe { libc::mprotect(memory.address as *mut libc::c_void, PAGE, protection) };
                    assert_eq!(done, 0);
                }
            }
        });
        for _ in 0..500 {
            // SAFETY: the kernel checks the address.
            let told = unsafe { libc::syscall(libc::SYS_fstat, own.as_raw_fd(), memory.address) };
            let error = std::io::Error::last_os_error().raw_os_error();
            assert!(told == 0 || error == Some(libc::EFAULT));
            answers.fetch_add(u64::from(told == 0), Ordering::Relaxed);
        }
        ends.store(true, Ordering::Relaxed);
    });
    for delay in 0..50u64 {
        // SAFETY: the child makes system calls only.
        match unsafe { libc::fork() } {
            0 => loop {
                // SAFETY: room for the answer.
                unsafe {
                    let mut told: libc::stat = std::mem::zeroed();
                    libc::fstat(own.as_raw_fd(), &mut told);
                }
            },
            child => {
                std::thread::sleep(std::time::Duration::from_micros(100 * delay));
                // SAFETY: its own child.
                unsafe {
                    assert_eq!(libc::kill(child, libc::SIGKILL), 0);
                    assert_eq!(libc::waitpid(child, std::ptr::null_mut(), 0), child);
                }
            }
        }
    }
    assert!(std::fs::File::from(own).metadata().unwrap().file_type().is_char_device());
}

/// An open file keeps its name while others look at it, and opens of one name, however many at once, are each a file of
/// its own.
pub fn names() {
    const CONTAINER: &str = "/dev/vfio/vfio";
    let name = |file: &std::os::fd::OwnedFd| {
        std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap().to_str().unwrap().to_owned()
    };
    let first = open(CONTAINER).unwrap();
    let inode = std::fs::metadata(CONTAINER).unwrap().ino();
    assert_eq!(inode, std::fs::File::from(first.try_clone().unwrap()).metadata().unwrap().ino());
    assert!(std::fs::read_dir("/dev/vfio").unwrap().count() > 2);
    assert_eq!(name(&first), CONTAINER);
    let second = open(CONTAINER).unwrap();
    assert_eq!(name(&second), CONTAINER);
    assert_eq!(open(&format!("/proc/self/fd/{}", first.as_raw_fd())).err(), Some(libc::EBUSY));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let files = [CONTAINER, "/dev/iommu", CONTAINER].map(|path| open(path).unwrap());
                    let inode = |file: &std::os::fd::OwnedFd| {
                        // SAFETY: plain numbers.
                        let mut told: libc::stat = unsafe { std::mem::zeroed() };
                        // SAFETY: room for the answer.
                        assert_eq!(unsafe { libc::fstat(file.as_raw_fd(), &mut told) }, 0);
                        told.st_ino
                    };
                    assert_ne!(inode(&files[0]), inode(&files[2]));
                    std::fs::metadata(CONTAINER).unwrap();
                }
            });
        }
    });
}

/// Looks at device files in two threads while another execs, so many times over: the exec waits for those that look,
/// and they for an answer.
pub fn looks_and_execs(left: u32) {
    if left == 0 {
        return;
    }
    for path in ["/dev/vfio/vfio", "/dev/iommu"] {
        std::thread::spawn(move || {
            loop {
                let _ = std::fs::metadata(path);
            }
        });
    }
    std::thread::sleep(std::time::Duration::from_millis(2));
    let arguments = ["program".to_owned(), "looks-and-execs".to_owned(), (left - 1).to_string()];
    let error = std::os::unix::process::CommandExt::exec(
        std::process::Command::new(std::env::current_exe().unwrap()).args(arguments),
    );
    panic!("{error}");
}

/// A process that is stopped stays so, whatever its threads have asked.
pub fn stays_stopped() {
    let setup = super::Setup::new();
    // Traced for ever, if the registers of this process are.
    setup.copy(1);
    let looks = Memory::new(PAGE, libc::MAP_SHARED);
    let (own, ends) = (std::process::id() as i32, AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ends.load(Ordering::Relaxed) {
                assert!(std::fs::metadata("/dev/vfio/vfio").unwrap().file_type().is_char_device());
                looks.word(0).fetch_add(1, Ordering::Relaxed);
            }
        });
        // SAFETY: the child makes system calls only, and reads memory that both have.
        match unsafe { libc::fork() } {
            0 => {
                let mut ran = 0;
                for _ in 0..100 {
                    // SAFETY: signals to its parent.
                    unsafe { libc::kill(own, libc::SIGSTOP) };
                    std::thread::sleep(std::time::Duration::from_millis(5));
                    let before = looks.word(0).load(Ordering::Relaxed);
                    std::thread::sleep(std::time::Duration::from_millis(5));
                    ran += u64::from(looks.word(0).load(Ordering::Relaxed) != before);
                    // SAFETY: as above.
                    unsafe { libc::kill(own, libc::SIGCONT) };
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                looks.word(8).store(ran + 1, Ordering::Relaxed);
                // SAFETY: ends the child.
                unsafe { libc::_exit(0) };
            }
            child => {
                // SAFETY: its own child.
                assert_eq!(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) }, child);
            }
        }
        ends.store(true, Ordering::Relaxed);
    });
    assert_eq!(looks.word(8).load(Ordering::Relaxed), 1, "it ran while it was stopped");
    setup.finish();
}

/// A name that is opened again is a file of its own, with what it was opened for.
pub fn modes() {
    use std::os::unix::fs::FileExt as _;
    const DEVICE: &str = "/dev/vfio/devices/vfio0";
    let iommu = open("/dev/iommu").unwrap();
    let mut inodes = std::collections::BTreeSet::new();
    for round in 0..20 {
        let writes = round % 2 == 0;
        let file = std::fs::OpenOptions::new().read(true).write(writes).open(DEVICE).unwrap();
        assert!(inodes.insert(file.metadata().unwrap().ino()), "an inode is opened once");
        let owned = std::os::fd::OwnedFd::from(file);
        crate::driver::Engine::bind(&owned, &iommu).unwrap();
        let file = std::fs::File::from(owned);
        file.read_exact_at(&mut [0; 4], 7 << 40).unwrap();
        assert_eq!(file.write_at(&[2, 0], (7 << 40) + 4).is_ok(), writes);
    }
}

/// Registers are mapped while other threads look at device files.
pub fn maps_while_others_look() {
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !ends.load(Ordering::Relaxed) {
                    std::fs::metadata("/dev/vfio/vfio").unwrap();
                }
            });
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
        let setup = super::Setup::new();
        setup.copy(1);
        setup.finish();
        ends.store(true, Ordering::Relaxed);
    });
}
