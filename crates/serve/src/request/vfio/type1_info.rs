//! What GET_INFO of a container tells.

use std::mem::offset_of;

use ioasid::Ioas;
use ioasid::memory::PAGE_SIZE;
use ioasid_uapi::vfio::container as uapi;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::capability::{chain, header};
use crate::request::Caller;
use crate::request::argument::get_part;

const SHORTEST: usize = offset_of!(uapi::Type1Info, cap_offset);
const WHOLE: usize = size_of::<uapi::Type1Info>();

/// The request, of which the caller must know the beginning.
///
/// # Errors
/// `EFAULT`, `EINVAL`.
pub(in crate::request) fn get(caller: &dyn Caller, address: u64) -> Result<uapi::Type1Info, Errno> {
    let info: uapi::Type1Info = get_part(caller, address, SHORTEST)?;
    if (info.argsz as usize) < SHORTEST { Err(Errno::INVAL) } else { Ok(info) }
}

/// How many more mappings there can be.
pub(in crate::request) fn available(avail: u32) -> Vec<u8> {
    uapi::Type1InfoDmaAvail { header: header(uapi::TYPE1_INFO_DMA_AVAIL), avail }.as_bytes().to_vec()
}

/// What can be mapped.
pub(in crate::request) fn ranges(ioas: &Ioas) -> Vec<u8> {
    let ranges: Vec<_> = ioas.iova_ranges().0.iter().collect();
    let header = header(uapi::TYPE1_INFO_CAP_IOVA_RANGE);
    let count = uapi::Type1InfoCapIovaRange { header, nr_iovas: ranges.len() as u32, reserved: 0 };
    let ranges = ranges.iter().map(|range| uapi::IovaRange { start: range.start(), end: range.last() });
    ranges.fold(count.as_bytes().to_vec(), |bytes, range| [&bytes, range.as_bytes()].concat())
}

/// The page sizes. What is smaller than the processor's pages is not told.
pub(in crate::request) fn page_sizes(ioas: &Ioas) -> u64 {
    let sizes = ioas.page_sizes();
    let small = sizes & (PAGE_SIZE - 1) != 0;
    sizes & !(PAGE_SIZE - 1) | if small { PAGE_SIZE } else { 0 }
}

/// Answers with these page sizes and all of the capabilities, or none where the caller has less room than they take.
/// The size of the answer is told then, or with `always`.
///
/// # Errors
/// `EFAULT`.
pub(in crate::request) fn put(
    caller: &dyn Caller,
    address: u64,
    asked: uapi::Type1Info,
    page_sizes: u64,
    capabilities: Vec<Vec<u8>>,
    always: bool,
) -> Result<(), Errno> {
    let capabilities = chain(capabilities, WHOLE);
    let (room, needed) = (asked.argsz as usize, WHOLE + capabilities.len());
    let fits = room >= needed;
    let mut info = uapi::Type1Info {
        flags: uapi::IOMMU_INFO_PGSIZES | uapi::IOMMU_INFO_CAPS,
        iova_pgsizes: page_sizes,
        cap_offset: 0,
        ..asked
    };
    if always || !fits {
        info.argsz = needed as u32;
    }
    if fits {
        info.cap_offset = WHOLE as u32;
        caller.write(address.wrapping_add(WHOLE as u64), &capabilities)?;
    }
    caller.write(address, &info.as_bytes()[..WHOLE.min(room)])
}
