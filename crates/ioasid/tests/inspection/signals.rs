//! SIGBUS that no touch of memory raised.

use std::io;
use std::mem::MaybeUninit;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ioasid::memory::Segment;
use ioasid::{Access, Iova, Placement};

use crate::*;

/// The handler belongs to the process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends this thread a SIGBUS with an address, as any process of the same user can.
fn queue_sigbus(address: u64) {
    // struct siginfo: si_signo, si_errno; si_code (SI_QUEUE), padding; si_addr.
    let mut info = [0u64; 16];
    info[0] = libc::SIGBUS as u64;
    info[1] = u64::from(-1i32 as u32);
    info[2] = address;
    // SAFETY: the array is as large as a siginfo.
    let sent = unsafe {
        let (process, thread) = (libc::getpid(), libc::syscall(libc::SYS_gettid));
        libc::syscall(libc::SYS_rt_tgsigqueueinfo, process, thread, libc::SIGBUS, info.as_ptr())
    };
    assert_eq!(sent, 0, "{}", io::Error::last_os_error());
}

fn handler() -> usize {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: asks for the present action only, which fills in `action`.
    unsafe {
        assert_eq!(libc::sigaction(libc::SIGBUS, std::ptr::null(), action.as_mut_ptr()), 0);
        action.assume_init().sa_sigaction
    }
}

#[test]
fn a_signal_that_was_sent_takes_no_memory() {
    let _alone = alone();
    let tenant = Tenant::of(&machine(), 1);
    map(&tenant.ioas, 0x1000, PAGE);
    let mut port = tenant.endpoint.port();
    port.write(Iova(0x1000), &[7; 8]).unwrap();
    let address = port.slices(Iova(0x1000), 8, Access::READ).unwrap()[0].as_ptr() as u64;
    queue_sigbus(address);
    let mut got = [0; 8];
    port.read(Iova(0x1000), &mut got).unwrap();
    assert_eq!(got, [7; 8]);
}

#[test]
fn a_signal_that_was_sent_leaves_the_guard() {
    let _alone = alone();
    let tenant = Tenant::of(&machine(), 1);
    let (segment, file) = Segment::memfd(PAGE).unwrap();
    tenant.ioas.map(Placement::Fixed(Iova(0x1000)), PAGE, Access::all(), || Ok(vec![segment])).unwrap();
    let before = handler();
    queue_sigbus(0x10);
    assert_eq!(handler(), before);
    file.set_len(0).unwrap();
    assert!(tenant.endpoint.port().read(Iova(0x1000), &mut [0; 8]).is_err());
}
