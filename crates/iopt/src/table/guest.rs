//! Walks of tables that somebody else owns: a guest's, in memory that is itself translated.

use super::{Translation, index};
use crate::arena::TableAddr;
use crate::format::{Access, Entry, Format};

/// How often one walk tries again because its owner changed an entry while it was being marked. Hardware goes on for
/// ever; an owner who does this on purpose must not get as long.
const MOST_RETRIES: u32 = 64;

/// Memory that holds a page table which its owner changes while it is walked.
pub trait GuestMemory {
    /// Why an entry cannot be reached.
    type Error;

    /// The entry at `address`, a multiple of 8, in one access.
    ///
    /// # Errors
    /// If there is no memory at `address`, or it cannot be read.
    fn load(&mut self, address: u64) -> Result<u64, Self::Error>;

    /// Puts `new` at `address`, a multiple of 8, if `current` is there, in one access. False if something else was.
    ///
    /// # Errors
    /// If there is no memory at `address`, or it cannot be changed.
    fn compare_exchange(&mut self, address: u64, current: u64, new: u64) -> Result<bool, Self::Error>;
}

/// What a walk of a guest's table found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestTranslation {
    /// Where it leads, with everything that the table allows.
    pub found: Translation,
    /// What may be kept for later accesses: without [`Access::WRITE`] as long as the entry is not marked as written.
    pub cachable: Access,
}

/// Translates `iova`, for a device that wants `access`, in the table of format `F` whose root is at `root` of `memory`
/// and which has IOVAs of `bits`: more than an offset in the smallest page has, and no more than [`Format::iova_bits`].
/// With fewer, walks begin at a lower level. `None` if nothing is mapped.
///
/// Tables on the way are marked as accessed, and so is the page if `access` is allowed, and as written if it is a
/// write: as far as the format has such marks, and before anybody has asked where the page leads. A mark too many is
/// what processors make, too. The contents of `memory` may be anything: there are no more steps than levels, but for a
/// few more if entries change meanwhile.
///
/// # Errors
/// What `memory` says when an entry cannot be reached.
pub fn walk_guest<F: Format, M: GuestMemory>(
    memory: &mut M,
    root: TableAddr,
    bits: u32,
    iova: u64,
    access: Access,
) -> Result<Option<GuestTranslation>, M::Error> {
    if iova >> bits != 0 {
        return Ok(None);
    }
    let top = bits.saturating_sub(F::PAGE_SHIFT + 1) / F::INDEX_BITS;
    let (mut table, mut level, mut above, mut retries) = (root, top as u8, Access::all(), 0);
    loop {
        let address = table.0.wrapping_add(8 * index::<F>(iova, level) as u64) & !7;
        let bits = memory.load(address)?;
        let entry = F::decode(bits, level);
        let marks = match entry {
            Entry::Table(..) => F::ACCESSED,
            Entry::Leaf { access: here, .. } if !(above & here).contains(access) => 0,
            Entry::Leaf { .. } if access.contains(Access::WRITE) => F::ACCESSED | F::DIRTY,
            Entry::Leaf { .. } => F::ACCESSED,
            Entry::Empty => return Ok(None),
        };
        if bits & marks != marks && !memory.compare_exchange(address, bits, bits | marks)? {
            retries += 1;
            if retries > MOST_RETRIES {
                return Ok(None);
            }
            continue;
        }
        match entry {
            Entry::Table(below, here) if level > 0 => {
                table = below;
                above &= here;
                level -= 1;
            }
            Entry::Leaf { pa, page_shift, access: here } => {
                let pa = pa | (iova & !(!0 << page_shift));
                let found = Translation { pa, page_shift, access: above & here };
                let unmarked = if (bits | marks) & F::DIRTY == F::DIRTY { Access::empty() } else { Access::WRITE };
                return Ok(Some(GuestTranslation { found, cachable: found.access - unmarked }));
            }
            Entry::Table(..) | Entry::Empty => return Ok(None),
        }
    }
}
