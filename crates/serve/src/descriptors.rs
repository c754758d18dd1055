//! Tables of descriptors that have only what is meant.
#![allow(unsafe_code, reason = "close_range has no safe wrapper, and takes descriptors from their owners")]

use std::io;
use std::os::fd::RawFd;

/// Closes all descriptors from `first` on but `kept`; with `apart`, in a table that the calling thread then has of its
/// own. Makes system calls only, as a child of a process with threads must.
///
/// # Errors
/// Of close_range(2): `ENOMEM` and the like.
///
/// # Safety
/// Whatever owns a descriptor that is closed neither uses nor drops it any more, by the table that it is closed in.
pub unsafe fn close_others(kept: &mut [RawFd], first: RawFd, apart: bool) -> io::Result<()> {
    // From above, as the range behind the last is never empty, and so makes the table.
    kept.sort_unstable_by(|one, other| other.cmp(one));
    let mut flags = if apart { libc::CLOSE_RANGE_UNSHARE } else { 0 };
    let mut last = i64::from(libc::c_uint::MAX);
    let below = kept.iter().filter(|number| **number >= first).map(|number| i64::from(*number));
    for number in below.chain([i64::from(first) - 1]) {
        if number < last {
            // SAFETY: takes numbers; the caller answers for the owners.
            if unsafe { libc::syscall(libc::SYS_close_range, number + 1, last, flags) } != 0 {
                return Err(io::Error::last_os_error());
            }
            flags = 0;
        }
        last = number - 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_thread_apart_has_what_it_keeps_and_others_have_all() {
        let files: Vec<File> = (0..5).map(|_| File::open("/dev/null").unwrap()).collect();
        let numbers: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        // SAFETY: takes a number.
        let is_open = |number: &RawFd| unsafe { libc::fcntl(*number, libc::F_GETFD) } >= 0;
        let kept = [numbers[3], numbers[1]];
        let open = std::thread::scope(|scope| {
            let apart = || {
                // SAFETY: this thread uses none of them.
                unsafe { close_others(&mut kept.clone(), 3, true) }.unwrap();
                numbers.iter().map(is_open).collect::<Vec<_>>()
            };
            scope.spawn(apart).join().unwrap()
        });
        assert_eq!(open, [false, true, false, true, false]);
        assert!(numbers.iter().all(is_open));
        let all = std::thread::scope(|scope| {
            // SAFETY: this thread uses none of them.
            let all = || unsafe { close_others(&mut [], 0, true) }.map(|()| (0..1000).filter(is_open).count());
            scope.spawn(all).join().unwrap()
        });
        assert_eq!(all.unwrap(), 0);
    }
}
