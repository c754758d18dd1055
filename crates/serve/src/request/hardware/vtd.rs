//! Intel VT-d in scalable mode.
//!
//! Source: Intel Virtualization Technology for Directed I/O, revision 5.0: 10.4.2 and 10.4.3 (capability registers),
//! 3.7 and 3.8 (first and second stage).

use std::mem::offset_of;

use ioasid::{GuestFormat, GuestTable, IovaRange, NestedHwpt, NestedOptions};
use ioasid_uapi::iommufd as uapi;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::{Data, Entries, Hardware};
use crate::request::ToErrno;

pub(super) struct Vtd {
    /// Of the second stage; its capability says so, beside the four that there are always.
    pub(super) five_levels: bool,
}

/// 65,536 domains; second stages of 4 levels and 48 bits, with pages of 2 MiB and 1 GiB; first stages of 4 and 5
/// levels, with pages of 1 GiB; invalidation of up to 2^18 pages; reads and writes are drained.
const CAPABILITY: u64 =
    6 | 1 << 10 | 47 << 16 | 1 << 22 | 3 << 34 | 1 << 39 | 18 << 48 | 1 << 54 | 1 << 55 | 1 << 56 | 1 << 60;
/// The width of IOVAs, less one; and 57 bits, with second stages of five levels besides.
const WIDTH: u64 = 0x3f << 16;
const FIVE_LEVELS: u64 = 56 << 16 | 1 << 11;
/// Coherent, queued invalidation, pass-through, nesting, PASIDs of 20 bits, scalable mode with dirty bits in the second
/// stage, second and first stage.
const EXTENDED_CAPABILITY: u64 =
    1 | 1 << 1 | 1 << 6 | 1 << 26 | 19 << 35 | 1 << 40 | 1 << 43 | 1 << 45 | 1 << 46 | 1 << 47;

const PAGE: u64 = 4096;

impl Hardware for Vtd {
    fn info(&self) -> (u32, Vec<u8>) {
        let cap_reg = if self.five_levels { CAPABILITY & !WIDTH | FIVE_LEVELS } else { CAPABILITY };
        let info = uapi::HwInfoVtd { cap_reg, ecap_reg: EXTENDED_CAPABILITY, ..uapi::HwInfoVtd::default() };
        (uapi::HW_INFO_TYPE_INTEL_VTD, info.as_bytes().to_vec())
    }

    fn has_nested(&self) -> bool {
        true
    }

    fn nested(&self, data: &Data<'_>) -> Result<NestedOptions, Errno> {
        if data.kind != uapi::HWPT_DATA_VTD_S1 {
            return Err(Errno::OPNOTSUPP);
        }
        let request: uapi::HwptVtdS1 = data.get(size_of::<uapi::HwptVtdS1>())?;
        // Who the requests of a device come from, and whether supervisors heed write protection, makes no difference
        // here.
        let known = uapi::VTD_S1_SRE | uapi::VTD_S1_EAFE | uapi::VTD_S1_WPE;
        if request.flags & !known != 0 || request.reserved != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        let format = match request.addr_width {
            48 => GuestFormat::X86_64,
            57 => GuestFormat::X86_64FiveLevels,
            _ => return Err(Errno::INVAL),
        };
        Ok(GuestTable { format, root: request.pgtbl_addr }.into())
    }

    fn invalidate(&self, nested: &NestedHwpt, entries: &Entries<'_>, done: &mut u32) -> Result<(), Errno> {
        if entries.kind != uapi::HWPT_INVALIDATE_DATA_VTD_S1 {
            return Err(Errno::INVAL);
        }
        for n in 0..entries.count {
            let minimum = offset_of!(uapi::HwptVtdS1Invalidate, reserved) + size_of::<u32>();
            let entry: uapi::HwptVtdS1Invalidate = entries.at(n).get(minimum)?;
            if entry.flags & !uapi::VTD_INV_FLAGS_LEAF != 0 || entry.reserved != 0 {
                return Err(Errno::OPNOTSUPP);
            }
            let everything = entry.npages == u64::MAX;
            if !entry.addr.is_multiple_of(PAGE) || (everything && entry.addr != 0) {
                return Err(Errno::INVAL);
            }
            // More than there is means everything from there on.
            let last = entry.npages.checked_mul(PAGE).and_then(|length| entry.addr.checked_add(length.max(1) - 1));
            let range = IovaRange::inclusive(entry.addr, last.unwrap_or(u64::MAX)).ok_or(Errno::INVAL)?;
            nested.invalidate(range).map_err(|error| error.errno())?;
            *done += 1;
        }
        Ok(())
    }
}
