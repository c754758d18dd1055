//! I/O page tables as data.
//!
//! A page table maps an I/O virtual address (IOVA) to a physical address in the format that some IOMMU's manual
//! gives. This crate knows formats and the algorithms over them, and nothing else: no devices, no system calls, no
//! idea of what a physical address leads to.
//!
//! - [`Format`]: what an entry looks like. The module [`mod@format`] has x86-64, VT-d, AMD, Armv8 and RISC-V; each
//!   is a page of small functions.
//! - [`Arena`]: the memory that tables live in. A table has an address of its own in it, so entries hold real
//!   addresses and a table can be walked by anyone who has the arena.
//! - [`PageTable`]: map, unmap and walk, written once over all formats.
//!
//! # Who may do what at the same time
//!
//! | operation | callers at once |
//! | --- | --- |
//! | [`PageTable::walk`] | any number, at any time, without a lock |
//! | [`PageTable::map`], [`PageTable::unmap`] | one at a time for each table; the owner of the table serialises them |
//!
//! A walk that races with an unmap returns either the old translation or none. Whoever unmaps must therefore wait
//! until all walks that began before have ended, and until nothing cached from them is in use, before it gives the
//! pages to anyone else, and before it returns the emptied tables to the arena: [`PageTable::unmap`] hands those out
//! as [`EmptyTables`] for exactly that reason.

mod arena;
pub mod format;
mod table;
#[cfg(test)]
mod tests;

pub use arena::{Arena, EmptyTables, TableAddr};
pub use format::{Access, Entry, Format};
pub use table::{MapError, PageTable, Translation, UnmapError};
