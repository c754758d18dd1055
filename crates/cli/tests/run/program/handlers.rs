//! Programs with signal handlers of their own, beside registers that raise signals.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use crate::driver::{CBVER, Engine, Memory, Space, load};

static CALLS: AtomicI32 = AtomicI32::new(0);
static ADDRESS: AtomicU64 = AtomicU64::new(0);
static STACK: AtomicU64 = AtomicU64::new(0);
static BLOCKED: AtomicU64 = AtomicU64::new(0);

/// Notes what it was called for, and has the program go on behind an instruction of three bytes.
extern "C" fn note(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    CALLS.fetch_add(signal, Ordering::Relaxed);
    STACK.store(&raw const signal as u64, Ordering::Relaxed);
    let mut mask = 0u64;
    // SAFETY: as the kernel, or what stands for it, calls a handler; the mask is written.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, std::ptr::null::<u64>(), &raw mut mask, 8);
        if (*info).si_code > 0 {
            ADDRESS.store((*info).si_addr() as u64, Ordering::Relaxed);
            (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RIP as usize] += 3;
        }
    }
    BLOCKED.store(mask, Ordering::Relaxed);
}

fn set(signal: i32, handler: usize, flags: i32, masked: Option<i32>) -> usize {
    // SAFETY: plain structures, and a handler that does what a handler may.
    unsafe {
        let (mut action, mut before): (libc::sigaction, libc::sigaction) = (std::mem::zeroed(), std::mem::zeroed());
        action.sa_sigaction = handler;
        action.sa_flags = flags | libc::SA_SIGINFO;
        if let Some(masked) = masked {
            libc::sigaddset(&mut action.sa_mask, masked);
        }
        assert_eq!(libc::sigaction(signal, &action, &mut before), 0);
        before.sa_sigaction
    }
}

/// One load at an address, by an instruction of three bytes.
fn touch(address: u64) {
    // SAFETY: whatever it reads is thrown away, and a fault has a handler.
    unsafe { std::arch::asm!("mov rcx, [rax]", in("rax") address, out("rcx") _) };
}

/// Where a file is mapped beyond its end.
fn beyond_the_end() -> Memory {
    let file = rustix::fs::memfd_create(c"test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    Memory::map(4096, libc::MAP_SHARED, std::os::fd::AsRawFd::as_raw_fd(&file), 0)
}

fn expect(calls: i32, address: u64) {
    assert_eq!((CALLS.swap(0, Ordering::Relaxed), ADDRESS.swap(0, Ordering::Relaxed)), (calls, address));
}

pub fn own_handlers() {
    let before = note as *const () as usize;
    set(libc::SIGSEGV, before, 0, None);
    let space = Space::new();
    let engine = Engine::open(0, &space.iommu);
    let check = || assert_eq!(load::<u8>(&engine.registers, CBVER), 0x32);
    check();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    assert!(status.contains("TracerPid:\t0\n"), "a program that maps registers is not traced");
    // A fault of its own, with a handler from before the mapping, and one from after.
    touch(8);
    expect(libc::SIGSEGV, 8);
    // (Rust's library has one, for overflows of the stack.)
    assert_ne!(set(libc::SIGBUS, before, 0, Some(libc::SIGUSR1)), before);
    let beyond = beyond_the_end();
    touch(beyond.address);
    expect(libc::SIGBUS, beyond.address);
    let bit = |signal: i32| 1u64 << (signal - 1);
    assert_eq!(BLOCKED.load(Ordering::Relaxed), bit(libc::SIGBUS) | bit(libc::SIGUSR1));
    check();
    // Sent signals, one that may come again, and one that is not blocked while it is handled.
    let send = |signal: i32| {
        // SAFETY: takes numbers.
        assert_eq!(unsafe { libc::raise(signal) }, 0);
    };
    send(libc::SIGBUS);
    expect(libc::SIGBUS, 0);
    set(libc::SIGILL, before, libc::SA_NODEFER, None);
    send(libc::SIGILL);
    expect(libc::SIGILL, 0);
    assert_eq!(BLOCKED.load(Ordering::Relaxed), 0);
    set(libc::SIGILL, before, libc::SA_RESETHAND, None);
    send(libc::SIGILL);
    expect(libc::SIGILL, 0);
    assert_eq!(set(libc::SIGILL, libc::SIG_IGN, 0, None), libc::SIG_DFL);
    send(libc::SIGILL);
    expect(0, 0);
    check();
    on_another_stack(&check);
    // What it said is what it is told.
    assert_eq!(set(libc::SIGBUS, before, 0, None), before);
    in_others(&check, beyond.address);
    check();
    drop(engine);
    space.destroy();
}

/// A handler that wants the alternate stack has it, also when a register is touched in it.
fn on_another_stack(check: &dyn Fn()) {
    let stack = Memory::new(64 << 10, libc::MAP_PRIVATE);
    let alternate = libc::stack_t { ss_sp: stack.address as *mut libc::c_void, ss_flags: 0, ss_size: stack.length };
    // SAFETY: memory that outlives its use.
    assert_eq!(unsafe { libc::sigaltstack(&alternate, std::ptr::null_mut()) }, 0);
    set(libc::SIGSEGV, note as *const () as usize, libc::SA_ONSTACK, None);
    check();
    touch(16);
    expect(libc::SIGSEGV, 16);
    let at = STACK.load(Ordering::Relaxed);
    assert!((stack.address..stack.address + stack.length as u64).contains(&at));
    let none = libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
    // SAFETY: takes the stack away again.
    assert_eq!(unsafe { libc::sigaltstack(&none, std::ptr::null_mut()) }, 0);
}

/// Children have actions of their own; default actions are done.
fn in_others(check: &dyn Fn(), beyond: u64) {
    let status_of = |child: &dyn Fn()| {
        // SAFETY: the child runs plain code and ends without returning.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            child();
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) }
        }
        let mut status = 0;
        // SAFETY: `status` is written.
        assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
        if libc::WIFSIGNALED(status) { -libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
    };
    assert_eq!(status_of(&|| check()), 0);
    let by_default = |signal: i32| {
        set(signal, libc::SIG_DFL, 0, None);
    };
    assert_eq!(
        status_of(&|| {
            by_default(libc::SIGBUS);
            check();
            touch(beyond);
        }),
        -libc::SIGBUS
    );
    // SAFETY: takes numbers.
    let raise = |signal: i32| assert_eq!(unsafe { libc::raise(signal) }, 0);
    assert_eq!(
        status_of(&|| {
            by_default(libc::SIGBUS);
            raise(libc::SIGBUS);
        }),
        -libc::SIGBUS
    );
    assert_eq!(
        status_of(&|| {
            set(libc::SIGBUS, libc::SIG_IGN, 0, None);
            touch(beyond);
        }),
        -libc::SIGBUS
    );
    assert_eq!(
        status_of(&|| {
            by_default(libc::SIGSEGV);
            touch(8);
        }),
        -libc::SIGSEGV
    );
    // A child that is in this process's memory until it executes sets its signals to the default.
    assert!(std::process::Command::new("true").status().unwrap().success());
    touch(beyond);
    expect(libc::SIGBUS, beyond);
}

static MAPPED: AtomicU64 = AtomicU64::new(0);
static STORMS: AtomicU64 = AtomicU64::new(0);

/// Touches a register, wherever the program is.
extern "C" fn touch_in_storm(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: a register of a mapping that stays.
    if unsafe { ((MAPPED.load(Ordering::Relaxed) + CBVER as u64) as *const u8).read_volatile() } != 0x32 {
        std::process::abort();
    }
    STORMS.fetch_add(1, Ordering::Relaxed);
}

/// Threads map registers at once, and touch them while signals whose handlers touch them come every 150 microseconds,
/// children are made that touch them, and actions are set.
pub fn storm() {
    let space = Space::new();
    let engines: Vec<Engine> = std::thread::scope(|scope| {
        let space = &space;
        let open = (0..4).map(|number| scope.spawn(move || Engine::open(number, &space.iommu))).collect::<Vec<_>>();
        open.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    MAPPED.store(engines[0].registers.address, Ordering::Relaxed);
    set(libc::SIGALRM, touch_in_storm as *const () as usize, libc::SA_RESTART, None);
    let time = |micros| libc::timeval { tv_sec: 0, tv_usec: micros };
    let timer = |micros| {
        let timer = libc::itimerval { it_interval: time(micros), it_value: time(micros) };
        // SAFETY: takes a structure.
        assert_eq!(unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) }, 0);
    };
    timer(150);
    std::thread::scope(|scope| {
        for engine in &engines {
            scope.spawn(|| (0..3_000).for_each(|_| assert_eq!(load::<u8>(&engine.registers, CBVER), 0x32)));
        }
        scope.spawn(|| {
            let own = note as *const () as usize;
            set(libc::SIGBUS, own, 0, None);
            (0..300).for_each(|_| assert_eq!(set(libc::SIGBUS, own, 0, None), own));
        });
        for _ in 0..50 {
            // SAFETY: the child touches a register and ends.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let fine = load::<u8>(&engines[1].registers, CBVER) == 0x32;
                // SAFETY: ends the child.
                unsafe { libc::_exit(i32::from(!fine)) }
            }
            let mut status = -1;
            // SAFETY: `status` is written; a signal may come first.
            while unsafe { libc::waitpid(child, &mut status, 0) } != child {}
            assert_eq!(status, 0);
        }
    });
    timer(0);
    assert!(STORMS.load(Ordering::Relaxed) > 100);
    assert_eq!(CALLS.load(Ordering::Relaxed), 0, "no access reached the program's own handler");
    drop(engines);
    space.destroy();
}

static IS_CHILD: AtomicI32 = AtomicI32::new(0);
static CHILDREN: AtomicI32 = AtomicI32::new(0);

/// Makes a child, wherever the program is, which goes on from there.
extern "C" fn fork_there(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the child goes on as this does, which has no other threads.
    if unsafe { libc::fork() } == 0 {
        IS_CHILD.store(1, Ordering::Relaxed);
    } else {
        CHILDREN.fetch_add(1, Ordering::Relaxed);
    }
}

/// A timer of this process that sends a signal.
fn timer(signal: i32) -> libc::timer_t {
    // SAFETY: plain integers, of which zero is one.
    let (mut event, mut timer): (libc::sigevent, libc::timer_t) = unsafe { std::mem::zeroed() };
    (event.sigev_notify, event.sigev_signo) = (libc::SIGEV_SIGNAL, signal);
    // SAFETY: reads the one and writes the other.
    assert_eq!(unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) }, 0);
    timer
}

/// Signals whose handler makes a child come in the middle of register accesses, also of a process's first ones: parent
/// and child have registers of their own from there on.
pub fn forked_in_accesses() {
    const WANTED: i32 = 300;
    let space = Space::new();
    let engine = Engine::open(0, &space.iommu);
    // SIGTERM is not blocked during an access.
    set(libc::SIGTERM, fork_there as *const () as usize, libc::SA_RESTART, None);
    let timer = timer(libc::SIGTERM);
    let read = || assert_eq!(load::<u8>(&engine.registers, CBVER), 0x32);
    let mut made = 0;
    while made < WANTED {
        let time = libc::timespec { tv_sec: 0, tv_nsec: 1000 * (20 + i64::from(made % 200)) };
        let once = libc::itimerspec { it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 }, it_value: time };
        // SAFETY: takes a structure.
        assert_eq!(unsafe { libc::timer_settime(timer, 0, &once, std::ptr::null_mut()) }, 0);
        while CHILDREN.load(Ordering::Relaxed) == made && IS_CHILD.load(Ordering::Relaxed) == 0 {
            read();
        }
        if IS_CHILD.load(Ordering::Relaxed) == 1 {
            // In its own ring, once it has one.
            (0..50).for_each(|_| read());
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) }
        }
        made = CHILDREN.load(Ordering::Relaxed);
        let mut status = -1;
        // SAFETY: `status` is written.
        assert!(unsafe { libc::wait(&mut status) } > 0);
        assert_eq!(status, 0, "child {made}");
    }
    drop(engine);
    space.destroy();
}

/// A fault's signal that another thread sends in the middle of register accesses reaches the program's handler, each
/// time.
pub fn sent_in_accesses() {
    const SENT: i32 = 2000;
    set(libc::SIGSEGV, note as *const () as usize, 0, None);
    let space = Space::new();
    let engine = Engine::open(0, &space.iommu);
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let engine = &engine;
        scope.spawn(move || {
            // SAFETY: has no arguments.
            tell.send(unsafe { libc::syscall(libc::SYS_gettid) }).unwrap();
            while CALLS.load(Ordering::Relaxed) < SENT * libc::SIGSEGV {
                assert_eq!(load::<u8>(&engine.registers, CBVER), 0x32);
            }
        });
        let thread = told.recv().unwrap();
        for sent in 1..=SENT {
            // SAFETY: takes numbers.
            unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), thread, libc::SIGSEGV) };
            let began = std::time::Instant::now();
            while CALLS.load(Ordering::Relaxed) < sent * libc::SIGSEGV {
                assert!(began.elapsed().as_secs() < 10, "signal {sent} has not arrived");
            }
        }
    });
    drop(engine);
    space.destroy();
}

/// A program that would be ended for a system call that it does not make itself.
pub fn filtered() {
    let op = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::SYS_arch_prctl as u32, 0, 1),
        op(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_KILL_PROCESS, 0, 0),
        op(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: a filter that outlives the call.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let set = libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter);
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    }
    let space = Space::new();
    let engine = Engine::open(0, &space.iommu);
    assert_eq!(load::<u8>(&engine.registers, CBVER), 0x32);
    drop(engine);
    space.destroy();
}
