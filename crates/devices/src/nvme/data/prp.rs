//! PRPs: pages of the host, or parts of them (NVMe over PCIe Transport Specification 1.0, 4.1.1).
//!
//! ```text
//!   PRP1 ──▶ ....▓▓▓▓    the first page, from an offset on
//!   PRP2 ──▶ ▓▓▓▓▓▓▓▓    the second and last page, or
//!        ──▶ list ──▶ ▓▓▓▓▓▓▓▓
//!               │ ──▶ ▓▓▓▓▓▓▓▓
//!               └ the last entry of a page: the next page of the list, if there is more
//! ```

use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

use super::super::memory::Memory;
use super::super::spec::status::Status;
use super::Layout;

/// Entries that are read at once.
const AT_ONCE: usize = 64;

pub(super) fn follow(
    layout: &mut Layout,
    [first, second]: [u64; 2],
    length: u64,
    page_shift: u32,
    memory: &mut Memory,
) -> Result<(), Status> {
    if length == 0 {
        return Ok(());
    }
    let page = 1 << page_shift;
    if !first.is_multiple_of(4) {
        return Err(Status::PRP_OFFSET_INVALID);
    }
    let here = (page - first % page).min(length);
    layout.push(Some(first), here);
    let left = length - here;
    if left == 0 {
        return Ok(());
    }
    if left <= page {
        if !second.is_multiple_of(page) {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        layout.push(Some(second), left);
        return Ok(());
    }
    follow_list(second, left.div_ceil(page), page, memory, |index, address| {
        layout.push(Some(address), (left - index * page).min(page));
    })
}

/// Reads `entries` pages of a list.
fn follow_list(
    list: u64,
    entries: u64,
    page: u64,
    memory: &mut Memory,
    mut each: impl FnMut(u64, u64),
) -> Result<(), Status> {
    if !list.is_multiple_of(8) {
        return Err(Status::PRP_OFFSET_INVALID);
    }
    let (mut at, mut done) = (list, 0);
    let mut buffer = [U64::ZERO; AT_ONCE];
    while done < entries {
        let room = (page - at % page) / 8;
        let wanted = room.min(entries - done).min(AT_ONCE as u64);
        let got = &mut buffer[..wanted as usize];
        memory.read(at, got.as_mut_bytes())?;
        // The last entry of a page is a pointer to the next one if more pages follow than one.
        let is_link = wanted == room && entries - done > wanted;
        let pages = if is_link { &got[..got.len() - 1] } else { &got[..] };
        for entry in pages {
            if !entry.get().is_multiple_of(page) {
                return Err(Status::PRP_OFFSET_INVALID);
            }
            each(done, entry.get());
            done += 1;
        }
        if is_link {
            at = got[got.len() - 1].get();
            if !at.is_multiple_of(page) {
                return Err(Status::PRP_OFFSET_INVALID);
            }
        } else {
            at = at.wrapping_add(wanted * 8);
        }
    }
    Ok(())
}

/// The pages of a queue that is not contiguous.
///
/// # Errors
/// What is wrong with the list.
pub(in crate::nvme) fn queue_pages(
    list: u64,
    bytes: u64,
    page_shift: u32,
    memory: &mut Memory,
) -> Result<Vec<u64>, Status> {
    let page = 1 << page_shift;
    let mut pages = Vec::new();
    follow_list(list, bytes.div_ceil(page), page, memory, |_, address| pages.push(address))?;
    Ok(pages)
}
