//! What devices wrote, told by the requests of a container.

use std::sync::Arc;

use ioasid::memory::PAGE_SIZE;
use ioasid::{Access, AreaView, Hwpt, Ioas, IovaRange};
use ioasid_uapi::vfio::container as uapi;
use rustix::io::Errno;
use zerocopy::{FromZeros, IntoBytes};

use super::capability::header;
use super::type1::Type1;
use super::{get, lock};
use crate::request::bitmap::tell_written;
use crate::request::{Caller, ToErrno};

/// Bytes of the largest bitmap that can be asked for: as many bits as Linux's counts.
const LARGEST: u64 = 1 << 28;
/// The end of what programs can have addresses of.
const END_OF_ADDRESSES: u64 = (1 << 47) - PAGE_SIZE;

/// That it can be asked which pages were written.
pub(super) fn capability() -> Vec<u8> {
    let header = header(uapi::TYPE1_INFO_CAP_MIGRATION);
    let (pgsize_bitmap, max_dirty_bitmap_size) = (PAGE_SIZE, LARGEST);
    uapi::Type1InfoCapMigration { header, flags: 0, pad: 0, pgsize_bitmap, max_dirty_bitmap_size }.as_bytes().to_vec()
}

/// Whether a page table notes what devices write.
fn can_track(table: &Hwpt) -> bool {
    table.options().is_some_and(|options| options.dirty_tracking)
}

/// Begins to note what devices write, page by page.
pub(super) fn start(table: &Hwpt) -> Result<(), Errno> {
    if can_track(table) { table.start_dirty_tracking(PAGE_SIZE).map_err(|error| error.errno()) } else { Ok(()) }
}

/// DIRTY_PAGES.
pub(super) fn request(iommu: &Type1, address: u64, caller: &dyn Caller) -> Result<(), Errno> {
    const SHORT: usize = size_of::<uapi::DirtyBitmap>();
    let (request, argsz) = get::<uapi::DirtyBitmap>(address, caller, SHORT)?;
    match request.flags {
        uapi::DIRTY_PAGES_FLAG_START => set_tracking(iommu, true),
        uapi::DIRTY_PAGES_FLAG_STOP => set_tracking(iommu, false),
        uapi::DIRTY_PAGES_FLAG_GET_BITMAP => {
            if (argsz as usize) < SHORT + size_of::<uapi::DirtyBitmapGet>() {
                return Err(Errno::INVAL);
            }
            let mut request = uapi::DirtyBitmapGet::new_zeroed();
            caller.read(address.wrapping_add(SHORT as u64), request.as_mut_bytes())?;
            get_bitmap(iommu, &request, caller)
        }
        _ => Err(Errno::INVAL),
    }
}

fn set_tracking(iommu: &Type1, on: bool) -> Result<(), Errno> {
    let mut tracks = lock(&iommu.tracks);
    if *tracks == on {
        return Ok(());
    }
    for table in iommu.tables().iter().filter(|table| can_track(table)) {
        if on {
            start(table)?;
        } else {
            table.stop_dirty_tracking();
        }
    }
    *tracks = on;
    Ok(())
}

fn get_bitmap(iommu: &Type1, request: &uapi::DirtyBitmapGet, caller: &dyn Caller) -> Result<(), Errno> {
    let uapi::DirtyBitmapGet { iova, size, bitmap } = request;
    if size.checked_sub(1).is_some_and(|more| iova.checked_add(more).is_none()) {
        return Err(Errno::OVERFLOW);
    }
    check(bitmap, *size)?;
    if bitmap.pgsize != PAGE_SIZE || !(iova | size).is_multiple_of(PAGE_SIZE) {
        return Err(Errno::INVAL);
    }
    let range = IovaRange::new(*iova, *size).ok_or(Errno::INVAL)?;
    if !*lock(&iommu.tracks) {
        return Err(Errno::INVAL);
    }
    let areas = iommu.ioas.areas_in(range);
    // No mapping is told of in part.
    if areas.iter().any(|area| !range.contains(&area.range)) {
        return Err(Errno::INVAL);
    }
    tell(iommu, range, &areas, bitmap, true, caller)
}

/// Fails unless a bitmap has a bit for each page of `size` bytes.
fn check(bitmap: &uapi::Bitmap, size: u64) -> Result<(), Errno> {
    let end = bitmap.data.checked_add(bitmap.size).filter(|&end| end <= END_OF_ADDRESSES);
    let pages = size.checked_shr(bitmap.pgsize.trailing_zeros()).unwrap_or(0);
    let needed = pages.div_ceil(64).saturating_mul(8);
    let fits = pages != 0 && bitmap.size != 0 && bitmap.size <= LARGEST && bitmap.size >= needed;
    if end.is_some() && fits { Ok(()) } else { Err(Errno::INVAL) }
}

/// The bitmap that stands behind a request to unmap `size` bytes, of which the caller has set aside `argsz`.
///
/// # Errors
/// `EINVAL`, `EFAULT`.
pub(super) fn bitmap_behind(address: u64, argsz: u32, size: u64, caller: &dyn Caller) -> Result<uapi::Bitmap, Errno> {
    const SHORT: usize = size_of::<uapi::Type1DmaUnmap>();
    let mut bitmap = uapi::Bitmap::new_zeroed();
    if (argsz as usize) < SHORT + size_of_val(&bitmap) {
        return Err(Errno::INVAL);
    }
    caller.read(address.wrapping_add(SHORT as u64), bitmap.as_mut_bytes())?;
    check(&bitmap, size)?;
    Ok(bitmap)
}

/// Mappings that devices do not write, as they are about to be unmapped. What is there still when this is dropped can
/// be written again.
pub(super) struct Unwritten<'a> {
    ioas: &'a Ioas,
    areas: Vec<AreaView>,
}

impl Drop for Unwritten<'_> {
    fn drop(&mut self) {
        for area in &self.areas {
            let _ = self.ioas.protect(area.range, area.access);
        }
    }
}

/// Tells what was written in `range`, which is about to be unmapped: nothing is written there any more, as long as what
/// is returned is there.
///
/// # Errors
/// `EFAULT` and the like.
pub(super) fn tell_before_unmap<'a>(
    iommu: &'a Type1,
    range: IovaRange,
    bitmap: uapi::Bitmap,
    caller: &dyn Caller,
) -> Result<Unwritten<'a>, Errno> {
    let mut unwritten = Unwritten { ioas: &iommu.ioas, areas: Vec::new() };
    let areas = iommu.ioas.areas_in(range);
    for area in areas.iter().filter(|area| area.access.contains(Access::WRITE)) {
        iommu.ioas.protect(area.range, Access::READ).map_err(|error| error.errno())?;
        unwritten.areas.push(*area);
    }
    tell(iommu, range, &areas, &bitmap, false, caller)?;
    Ok(unwritten)
}

/// Puts the bits of `areas`, which are mapped in `range`, into a bitmap; the others stay as they are.
fn tell(
    iommu: &Type1,
    range: IovaRange,
    areas: &[AreaView],
    bitmap: &uapi::Bitmap,
    clear: bool,
    caller: &dyn Caller,
) -> Result<(), Errno> {
    let (tracking, others): (Vec<Arc<Hwpt>>, Vec<_>) = iommu.tables().into_iter().partition(|table| can_track(table));
    let prepare = |part: IovaRange, words: &mut [u64]| {
        for area in areas.iter().filter(|area| area.range.overlaps(&part)) {
            let (first, last) = (area.range.start().max(part.start()), area.range.last().min(part.last()));
            let bit = |iova: u64| (iova - part.start()) / PAGE_SIZE;
            // By way of a page table that notes nothing, everything may have been written.
            let written = !others.is_empty() && area.access.contains(Access::WRITE);
            set_bits(words, bit(first), bit(last), written);
        }
    };
    let read = |range, clear, words: &mut [u64]| {
        let mut tables = tracking.iter();
        tables.try_for_each(|table| table.read_dirty(range, PAGE_SIZE, clear, words)).map_err(|error| error.errno())
    };
    tell_written(caller, range, PAGE_SIZE, bitmap.data, clear, prepare, read)
}

/// Sets or clears the bits from `first` to `last`.
fn set_bits(words: &mut [u64], first: u64, last: u64, set: bool) {
    for number in first / 64..=last / 64 {
        let low = if number == first / 64 { u64::MAX << (first % 64) } else { u64::MAX };
        let high = if number == last / 64 { u64::MAX >> (63 - last % 64) } else { u64::MAX };
        let word = &mut words[number as usize];
        *word = if set { *word | (low & high) } else { *word & !(low & high) };
    }
}
