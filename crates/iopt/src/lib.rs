//! I/O page tables as data.
//!
//! A page table maps an I/O virtual address (IOVA) to a physical address in the format that some IOMMU's manual
//! gives. This crate knows formats and the algorithms over them, and nothing else: no devices, no system calls, no
//! idea of what a physical address leads to.
//!
//! - [`Format`]: what an entry looks like. The module [`mod@format`] has x86-64, VT-d, AMD, Armv8 and RISC-V; each
//!   is a page of small functions.
//! - [`Arena`]: the memory that tables live in, one contiguous slice of entries ([`TableMemory`]). A table has an address
//!   of its own in it, so entries hold real addresses and a table can be walked by anyone who has that memory: see
//!   [`walk`].
//! - [`PageTable`]: map, unmap, protect, split, walk, and who wrote where, written once over all formats.
//!
//! ```
//! use std::sync::Arc;
//!
//! use iopt::format::VtdSecondStage;
//! use iopt::{Access, Arena, EmptyTables, PageTable};
//!
//! let table = PageTable::<VtdSecondStage>::new(Arc::new(Arena::new(512)))?;
//! let mut empty = EmptyTables::none();
//! table.map(0x1000, 0x20_0000, 0x2000, Access::READ, &mut empty)?;
//! assert_eq!(table.walk(0x2004).map(|found| found.pa), Some(0x20_1004));
//! table.unmap(0x1000, 0x2000, &mut empty)?;
//! // No walk is running.
//! table.free(empty);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Who may do what at the same time
//!
//! | operation | callers at once |
//! | --- | --- |
//! | [`walk`], and the walks of [`PageTable`] and [`View`] | any number, beside anything, without a lock |
//! | [`PageTable::walk_marking`] | as a walk |
//! | [`PageTable::map`], [`unmap`](PageTable::unmap), [`protect`](PageTable::protect), [`split`](PageTable::split) | any number, of ranges that do not overlap, beside anything; none waits for another |
//! | [`PageTable::read_dirty`], [`start_tracking`](PageTable::start_tracking), [`iter`](PageTable::iter) | any number, beside anything |
//! | [`PageTable::free`], [`Arena::free`] | any number, beside anything but walks that began before the tables were emptied |
//!
//! To change one range twice at once is the caller's mistake, and not a harmless one. Two unmaps that both meet an
//! entry count it twice, so a table may go while neighbours still have pages in it, or below it. Those are no longer
//! translated, and their own unmap does not find them. Worse, the arena takes the table for one that is all zero, and
//! hands it to whoever needs one next: the neighbours' pages then appear in *another page table*, at addresses that its
//! owner did not map. So the owner of an address space lets nobody unmap, map or split what somebody else is just
//! changing there. The crate does not check, as to swap each entry costs many times what the rest of an unmap does.
//!
//! A map waits for memory where the arena has to take more of it into use, and nobody waits for that map but those who
//! need more of it, too. Unmapping and freeing, walking and reading what is dirty allocate nothing. Nobody waits long
//! for who frees: however many tables go back, they go as one chain.
//!
//! A walk that races with an unmap returns either the old translation or none. Whoever unmaps must therefore wait
//! until all walks that began before have ended, and until nothing cached from them is in use, before it gives the
//! pages to anyone else, and before it returns the emptied tables to the arena: [`PageTable::unmap`] hands those out
//! as [`EmptyTables`] for exactly that reason. The same holds for what [`PageTable::protect`] no longer allows.

mod arena;
pub mod format;
mod table;
// Tables of 512 entries take Miri minutes; tests/small_tables.rs is for it.
#[cfg(all(test, not(miri)))]
mod tests;

pub use arena::{Arena, EmptyTables, Heap, TableAddr, TableMemory};
pub use format::{Access, Entry, Format};
pub use table::{
    DirtyWord, GuestMemory, GuestTranslation, Iter, Leaves, MapError, PageTable, RangeError, Translation, Upper, View,
    walk, walk_guest,
};
