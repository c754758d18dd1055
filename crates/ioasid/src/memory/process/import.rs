//! Memory of a process that was imported, wherever the process has moved it since.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::ProcessMemory;
use super::changes::Key;
use crate::base::lock::Mutex;
use crate::base::rank;
use crate::memory::{Identity, RemoteMemory};

/// A range of a process's memory, known by the addresses that it had when it was imported.
pub(super) struct Import {
    pub(super) process: Arc<ProcessMemory>,
    pub(super) start: u64,
    pub(super) length: u64,
    /// Where it was first mapped for devices.
    iova: AtomicU64,
    /// `None` as long as all of it is where it was.
    changed: Mutex<Option<Box<Changed>>, rank::Imported>,
}

/// An import of which a part is gone or has moved.
struct Changed {
    /// What is there still, in order of the addresses that it had.
    parts: Vec<Part>,
    /// By which it is known beside its first.
    keys: Vec<Key>,
}

#[derive(Clone, Copy)]
struct Part {
    start: u64,
    length: u64,
    /// Its address now.
    now: u64,
}

impl Part {
    /// The part of it that is in `range`, if it begins at `at`; and what is before and behind.
    fn split(self, at: u64, range: &Range<u64>) -> (Option<Self>, [Option<Self>; 2]) {
        let end = at + self.length;
        let from = range.start.clamp(at, end);
        let to = range.end.clamp(from, end);
        let piece = |from: u64, to: u64| {
            let before = from - at;
            (from < to).then(|| Self { start: self.start + before, length: to - from, now: self.now + before })
        };
        (piece(from, to), [piece(at, from), piece(to, end)])
    }
}

impl Changed {
    /// That of an import which is whole.
    fn of(import: &Import) -> Box<Self> {
        let whole = Part { start: import.start, length: import.length, now: import.start };
        Box::new(Self { parts: vec![whole], keys: Vec::new() })
    }
}

impl Import {
    pub(super) fn new(process: Arc<ProcessMemory>, start: u64, length: u64) -> Self {
        Self { process, start, length, iova: AtomicU64::new(0), changed: Mutex::default() }
    }

    /// Takes what is at `range` now out of it, or with `to` has it there. Returns the addresses that this had, and
    /// the IOVAs that lead to it.
    pub(super) fn change(&self, range: &Range<u64>, to: Option<u64>) -> Vec<(Range<u64>, u64)> {
        let mut changed = self.changed.lock();
        // Most are whole, and only near.
        if changed.is_none() && (range.end <= self.start || self.start + self.length <= range.start) {
            return Vec::new();
        }
        let changed = changed.get_or_insert_with(|| Changed::of(self));
        let (mut left, mut found) = (Vec::new(), Vec::new());
        for part in &changed.parts {
            let (hit, [before, behind]) = part.split(part.now, range);
            let moved = hit.zip(to).map(|(hit, to)| Part { now: to.wrapping_add(hit.now - range.start), ..hit });
            left.extend([before, moved, behind].into_iter().flatten());
            found.extend(hit);
        }
        changed.parts = left;
        let iova = self.iova.load(Ordering::Relaxed);
        found.iter().map(|hit| (hit.now..hit.now + hit.length, iova.wrapping_add(hit.start - self.start))).collect()
    }

    /// From now on, what becomes of it is no matter.
    fn forget(&self) {
        let keys = self.changed.lock().as_mut().map(|changed| std::mem::take(&mut changed.keys));
        self.process.changes.remove(self, keys.unwrap_or_default());
    }

    /// Notes a key by which it is known, too.
    pub(super) fn add_key(&self, key: Key) {
        if let Some(changed) = &mut *self.changed.lock() {
            changed.keys.push(key);
        }
    }

    /// Where `length` bytes at `address` are now, in pieces; `None` if they are where they were.
    fn places(&self, address: u64, length: usize) -> io::Result<Option<Vec<(u64, usize)>>> {
        let changed = self.changed.lock();
        let Some(changed) = &*changed else { return Ok(None) };
        let (mut at, end) = (address, address + length as u64);
        let mut places = Vec::new();
        for part in changed.parts.iter().skip_while(|part| part.start + part.length <= address) {
            if at == end || part.start > at {
                break;
            }
            let until = end.min(part.start + part.length);
            places.push((part.now + (at - part.start), (until - at) as usize));
            at = until;
        }
        if at < end { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(Some(places)) }
    }
}

impl RemoteMemory for Import {
    fn read(&self, address: u64, data: &mut [u8]) -> io::Result<()> {
        self.process.changes.copy(&self.process, false, || {
            let Some(places) = self.places(address, data.len())? else { return self.process.read(address, data) };
            let mut rest = &mut *data;
            for (now, length) in places {
                let (piece, behind) = rest.split_at_mut(length);
                self.process.read(now, piece)?;
                rest = behind;
            }
            Ok(())
        })
    }

    fn write(&self, address: u64, data: &[u8]) -> io::Result<()> {
        self.process.changes.copy(&self.process, true, || {
            let Some(places) = self.places(address, data.len())? else { return self.process.write(address, data) };
            let mut rest = data;
            for (now, length) in places {
                let (piece, behind) = rest.split_at(length);
                self.process.write(now, piece)?;
                rest = behind;
            }
            Ok(())
        })
    }

    fn identity(&self, address: u64) -> Option<Identity> {
        let moved = self.places(address, 1).ok()?;
        let now = moved.and_then(|places| places.first().copied()).map_or(address, |(now, _)| now);
        self.process.identity(now)
    }

    fn mapped_at(&self, iova: u64) {
        self.iova.store(iova, Ordering::Relaxed);
    }

    fn given_back(&self, address: u64, length: u64) {
        if length == self.length {
            return self.forget();
        }
        let range = address..address + length;
        let mut changed = self.changed.lock();
        let changed = changed.get_or_insert_with(|| Changed::of(self));
        let left = changed.parts.iter().flat_map(|part| part.split(part.start, &range).1);
        changed.parts = left.flatten().collect();
    }
}

impl Drop for Import {
    fn drop(&mut self) {
        self.forget();
    }
}
