//! What devices wrote, as bits in the memory of a program.

use ioasid::IovaRange;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::Caller;

/// Bytes of a bitmap that are fetched and put back at a time.
const CHUNK: usize = 32 << 10;

/// Sets the bits at `data`, one for each page of `range`, of pages that were written, and with `clear` forgets them.
/// `read` sets those of a part of the range, and forgets them if it is told to; `prepare` sees them first, as the
/// program has them.
///
/// # Errors
/// `EFAULT`; nothing is forgotten then that was not told. Those of `read`.
pub(super) fn tell_written(
    caller: &dyn Caller,
    range: IovaRange,
    page: u64,
    data: u64,
    clear: bool,
    prepare: impl Fn(IovaRange, &mut [u64]),
    read: impl Fn(IovaRange, bool, &mut [u64]) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let pages = range.len_minus_one() / page + 1;
    let (mut words, mut told) = (vec![0u64; CHUNK / 8], vec![0u64; CHUNK / 8]);
    for first in (0..pages).step_by(CHUNK * 8) {
        let count = (pages - first).min(CHUNK as u64 * 8);
        let start = range.start() + first * page;
        // The last page may be a part of one.
        let length = (range.last() - start).min(count.saturating_mul(page) - 1) + 1;
        let chunk = IovaRange::new(start, length).ok_or(Errno::INVAL)?;
        let (address, length) = (data.wrapping_add(first / 8), count.div_ceil(8) as usize);
        caller.read(address, &mut words.as_mut_bytes()[..length])?;
        prepare(chunk, &mut words);
        read(chunk, false, &mut words)?;
        caller.write(address, &words.as_bytes()[..length])?;
        if clear {
            // Only what was told is cleared, and what was not yet dirty then is told now.
            told.copy_from_slice(&words);
            read(chunk, true, &mut words)?;
            if told != words {
                caller.write(address, &words.as_bytes()[..length])?;
            }
        }
    }
    Ok(())
}
