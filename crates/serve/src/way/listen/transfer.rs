//! Reads and writes of a device file, in one piece or in several.

use rustix::io::Errno;

use super::calling::Calling;
use crate::request::Caller;
use crate::request::file::OpenFile;

/// The longest read or write of a device file in one call; the rest is for the program's next call, as for any file.
const LONGEST: u64 = 1 << 20;
/// The most parts of a vectored read or write (`IOV_MAX`).
const MOST_PARTS: u64 = 1024;

/// Whether a call, of those that move data, writes the file.
pub(super) fn writes(call: i64) -> bool {
    matches!(call, libc::SYS_pwrite64 | libc::SYS_pwritev | libc::SYS_pwritev2)
}

/// A read or write of a device file, in one piece or in several.
pub(super) fn transfer(file: &dyn OpenFile, caller: &Calling<'_>, call: i64, args: [u64; 6]) -> Result<i64, Errno> {
    let [_, buffer, length, offset, ..] = args;
    let write = writes(call);
    if matches!(call, libc::SYS_pread64 | libc::SYS_pwrite64) {
        return part(file, caller, write, buffer, length, offset);
    }
    if length > MOST_PARTS {
        return Err(Errno::INVAL);
    }
    let mut done = 0i64;
    for n in 0..length {
        let mut parts = [0; 16];
        caller.read(buffer.wrapping_add(16 * n), &mut parts)?;
        let (address, length) = parts.split_at(8);
        let number = |bytes: &[u8]| bytes.try_into().map(u64::from_ne_bytes).map_err(|_| Errno::FAULT);
        let length = number(length)?;
        match part(file, caller, write, number(address)?, length, offset.wrapping_add(done as u64)) {
            Ok(moved) => {
                done += moved;
                if (moved as u64) < length {
                    break;
                }
            }
            Err(errno) if done == 0 => return Err(errno),
            Err(_) => break,
        }
    }
    Ok(done)
}

fn part(
    file: &dyn OpenFile,
    caller: &Calling<'_>,
    write: bool,
    address: u64,
    length: u64,
    offset: u64,
) -> Result<i64, Errno> {
    let mut data = vec![0; length.min(LONGEST) as usize];
    let moved = if write {
        caller.read(address, &mut data)?;
        file.write(offset, &data)?
    } else {
        let moved = file.read(offset, &mut data)?;
        caller.write(address, &data[..moved])?;
        moved
    };
    Ok(moved as i64)
}
