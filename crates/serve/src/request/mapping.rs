//! What is the same for every request that maps memory or unmaps it.

use std::sync::Arc;

use ioasid::memory::{Account, PAGE_SIZE};
use ioasid::{Access, Ioas, Iova, IovaRange};
use rustix::io::Errno;

use super::{Caller, ToErrno};

/// Memory of a caller that is to be mapped.
pub(super) struct Memory {
    /// Where it begins.
    pub(super) address: u64,
    /// Bytes.
    pub(super) length: u64,
    /// Whether other devices' memory may be in it.
    pub(super) peers: bool,
    /// Who answers for it.
    pub(super) account: Option<Arc<dyn Account>>,
}

/// Maps memory of the caller at `iova` or anywhere, and returns where.
pub(super) fn map_memory(
    caller: &dyn Caller,
    ioas: &Ioas,
    memory: Memory,
    iova: Option<Iova>,
    access: Access,
) -> Result<u64, Errno> {
    let Memory { address, length, peers, account } = memory;
    let (start, whole) = pages_around(address, length)?;
    let pages = caller.pages(start, whole, access.contains(Access::WRITE), peers).map_err(|error| error.errno())?;
    pages.charge_to(account).map_err(|_| Errno::NOMEM)?;
    let mapped = ioas.map_pages(iova, &pages, address - start, length, access);
    Ok(mapped.map_err(|error| error.errno())?.0)
}

/// The whole pages that `length` bytes from `start` on lie in: where they begin, and how many bytes they have.
pub(super) fn pages_around(start: u64, length: u64) -> Result<(u64, u64), Errno> {
    let end = start.checked_add(length).and_then(|end| end.checked_next_multiple_of(PAGE_SIZE));
    let start = start & !(PAGE_SIZE - 1);
    Ok((start, end.ok_or(Errno::OVERFLOW)? - start))
}

/// Unmaps what is in `range`, and has the caller told how many bytes these were, unless it `said` so itself. It is told
/// before, as nothing could be undone for one that cannot be told.
pub(super) fn unmap_telling(
    ioas: &Ioas,
    range: IovaRange,
    said: u64,
    tell: impl Fn(u64) -> Result<(), Errno>,
    unmap: impl FnOnce() -> Result<u64, Errno>,
) -> Result<(), Errno> {
    let expected = ioas.bytes_in(range);
    if expected != said {
        tell(expected)?;
    }
    match unmap() {
        Ok(bytes) if bytes == expected => Ok(()),
        // Somebody else mapped or unmapped something meanwhile.
        Ok(bytes) => tell(bytes),
        Err(error) => {
            if expected != said {
                // It was told a moment ago; whoever took the memory away since does not look at it.
                let _ = tell(said);
            }
            Err(error)
        }
    }
}
