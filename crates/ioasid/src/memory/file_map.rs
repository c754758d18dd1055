//! Files of programs, mapped into this process once however many areas are in them.
//!
//! The kernel gives a process some 65,000 mappings (`vm.max_map_count`), and each costs it memory. So a file is mapped
//! in pieces of one GiB, and all areas in a piece share it:
//!
//! ```text
//!   file      ├────────── 1 GiB ──────────┼────────── 1 GiB ──────────┼── the rest ──┤
//!   areas        ├──┤  ├┤   ├─────┤            ├──────┤
//!   mapped    ├───────────────────────────┼───────────────────────────┤
//! ```
//! A piece ends where the file ended when it was mapped, as to map more of a file of huge pages would make it longer.
//! An area behind that, or one in what was lost since, has the piece mapped anew; the others stay in theirs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::{Arc, Weak};

use rustix::fs::{AtFlags, StatxFlags, statx};

use super::PAGE_SIZE;
use super::guard::GuardedMap;
use crate::base::lock::StaticMutex;

/// Bytes of a piece, a multiple of the largest page.
const PIECE: u64 = 1 << 30;

/// What is mapped: the device and inode number of the file, when it was made, whether for writing, which piece.
type Key = (u64, u64, i64, u32, bool, u64);

/// All pieces that areas use.
static PIECES: StaticMutex<BTreeMap<Key, Weak<FileMap>>> = StaticMutex::new(BTreeMap::new());

/// A mapped piece of a file.
pub(super) struct FileMap {
    key: Key,
    /// The offset in the file of its first byte.
    start: u64,
    file: Arc<File>,
    map: GuardedMap,
}

/// Part of a piece, with every page brought in.
pub(super) struct Part {
    pub(super) map: Arc<FileMap>,
    pub(super) start: NonNull<u8>,
    pub(super) length: u64,
}

impl FileMap {
    /// `length` bytes of `file` at `offset`, both multiples of the page size, with every page brought in.
    ///
    /// # Errors
    /// `EFAULT` if a page does not exist; of `mmap`.
    pub(super) fn parts(file: &Arc<File>, offset: u64, length: u64, writable: bool) -> io::Result<Vec<Part>> {
        let end = offset.checked_add(length).ok_or(rustix::io::Errno::FAULT)?;
        let mut parts = Vec::with_capacity(1);
        let mut at = offset;
        while at < end {
            let stop = end.min((at / PIECE + 1) * PIECE);
            parts.push(Self::part(file, at, stop - at, writable)?);
            at = stop;
        }
        Ok(parts)
    }

    fn part(file: &Arc<File>, offset: u64, length: u64, writable: bool) -> io::Result<Part> {
        let stat = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | StatxFlags::BTIME)?;
        let device = libc::makedev(stat.stx_dev_major, stat.stx_dev_minor);
        let born = (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec);
        let key = (device, stat.stx_ino, born.0, born.1, writable, offset / PIECE);
        let known = PIECES.lock().get(&key).and_then(Weak::upgrade);
        let map = match known.filter(|map| map.has(offset, length)) {
            Some(map) => map,
            None => Self::new(key, file, offset / PIECE * PIECE, stat.stx_size, writable)?,
        };
        if !map.has(offset, length) {
            return Err(rustix::io::Errno::FAULT.into());
        }
        let (before, length) = ((offset - map.start) as usize, length as usize);
        match map.map.populate(before, length) {
            // Before Linux 5.14 pages come in as they are touched.
            Err(error) if error.raw_os_error() != Some(libc::EINVAL) => Err(error),
            _ => Ok(Part { start: map.map.at(before), map, length: length as u64 }),
        }
    }

    fn new(key: Key, file: &Arc<File>, start: u64, size: u64, writable: bool) -> io::Result<Arc<Self>> {
        let end = size.next_multiple_of(PAGE_SIZE).min(start + PIECE);
        let length = end.checked_sub(start).filter(|&length| length > 0).ok_or(rustix::io::Errno::FAULT)?;
        let map = GuardedMap::new(file.as_fd(), start, length, writable)?;
        let map = Arc::new(Self { key, start, file: file.clone(), map });
        PIECES.lock().insert(key, Arc::downgrade(&map));
        Ok(map)
    }

    /// Whether these bytes of the file are in it, as far as is known.
    fn has(&self, offset: u64, length: u64) -> bool {
        let before = (offset - self.start) as usize;
        before + length as usize <= self.map.length()
            && !self.map.entry().has_lost(self.map.at(before), length as usize)
    }

    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub(super) fn map(&self) -> &GuardedMap {
        &self.map
    }
}

impl Drop for FileMap {
    fn drop(&mut self) {
        let mut pieces = PIECES.lock();
        // Unless it is mapped anew.
        if pieces.get(&self.key).is_some_and(|map| map.strong_count() == 0) {
            pieces.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;
    use crate::memory::Segment;

    const PAGE: u64 = 4096;

    fn memfd(length: u64) -> Arc<File> {
        let file = File::from(memfd_create(c"test", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(length).unwrap();
        Arc::new(file)
    }

    fn one(file: &Arc<File>, offset: u64, length: u64) -> Part {
        let mut parts = FileMap::parts(file, offset, length, true).unwrap();
        assert_eq!(parts.len(), 1);
        parts.remove(0)
    }

    #[test]
    fn a_file_is_mapped_once_by_whatever_descriptor() {
        let file = memfd(8 * PAGE);
        let again = Arc::new(file.try_clone().unwrap());
        let (first, second) = (one(&file, PAGE, PAGE), one(&again, 4 * PAGE, 4 * PAGE));
        assert!(Arc::ptr_eq(&first.map, &second.map));
        assert_eq!(second.start.addr().get() - first.start.addr().get(), 3 * PAGE as usize);
        let read_only = FileMap::parts(&file, 0, PAGE, false).unwrap();
        assert!(!Arc::ptr_eq(&first.map, &read_only[0].map));
        assert!(!Arc::ptr_eq(&first.map, &one(&memfd(8 * PAGE), 0, PAGE).map), "another file");
        let key = first.map.key;
        drop((first, second));
        assert!(!PIECES.lock().contains_key(&key));
    }

    #[test]
    fn a_file_that_grows_is_mapped_anew_and_one_that_ends_before_is_an_error() {
        let file = memfd(2 * PAGE);
        let before = one(&file, 0, PAGE);
        let short = FileMap::parts(&file, PAGE, 2 * PAGE, true).err().unwrap();
        assert_eq!(short.raw_os_error(), Some(libc::EFAULT));
        file.set_len(4 * PAGE).unwrap();
        let after = one(&file, PAGE, 2 * PAGE);
        assert!(!Arc::ptr_eq(&before.map, &after.map));
        drop(before);
        assert!(Arc::ptr_eq(&after.map, &one(&file, 0, PAGE).map));
    }

    #[test]
    fn what_crosses_pieces_is_in_several() {
        let file = memfd(2 * PIECE + PAGE);
        let parts = FileMap::parts(&file, PIECE - PAGE, PIECE + 2 * PAGE, true).unwrap();
        let lengths: Vec<u64> = parts.iter().map(|part| part.length).collect();
        assert_eq!(lengths, [PAGE, PIECE, PAGE]);
    }

    #[test]
    fn what_was_lost_is_mapped_anew() {
        let file = memfd(4 * PAGE);
        let segment = |offset, pages| Segment::of_file(&file, offset, pages * PAGE, true).unwrap().remove(0);
        let before = segment(0, 4);
        file.set_len(PAGE).unwrap();
        // The compiler drops a read whose result the test does not use.
        let is_lost = |at| {
            let mut byte = [0];
            let read = before.backing.read(at, &mut byte);
            std::hint::black_box(byte);
            read.is_err()
        };
        assert!(is_lost(2 * PAGE));
        assert!(!is_lost(0) && !before.backing.is_gone(0, 2 * PAGE));
        assert!(before.backing.is_gone(2 * PAGE, 1));
        assert!(is_lost(PAGE), "there is a first access that finds it out");
        file.set_len(4 * PAGE).unwrap();
        let after = segment(2 * PAGE, 1);
        after.backing.write(0, &[1]).unwrap();
        assert!(is_lost(2 * PAGE), "what was lost stays lost");
        let mut byte = [0];
        segment(2 * PAGE, 1).backing.read(0, &mut byte).unwrap();
        assert_eq!(byte, [1]);
    }
}
