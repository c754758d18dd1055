//! Memory that is mapped and makes a device fault, and a queue in which it asks for it.
#![allow(unsafe_code, reason = "memory of this process is written while a device may read it")]

use std::ptr;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ioasid::{DmaPort, FaultQueue, HwptOptions, Iova, IovaRange, OnMiss, PageResponse, Recovery};

use super::{Memory, Space};
use crate::layout::{BASE, Layout};
use crate::theirs::userfault::{Content, PAGE};

/// Pages of 4 KiB in a row, one mapping, and a device whose accesses wait.
pub struct Faulting {
    space: Space,
    queue: Arc<FaultQueue>,
    memory: Memory,
    range: IovaRange,
}

impl Faulting {
    /// So many `pages`. [`Faulting::forget`] makes them missing.
    ///
    /// # Errors
    /// Of the crate.
    pub fn new(pages: u32) -> Result<Self> {
        let (space, memory) = (Space::new()?, Memory::of(&Layout::permuted(pages, PAGE.ilog2()))?);
        ensure!(space.endpoint.recovery() == Recovery::Stall, "the device does not wait");
        let queue = space.context().fault_queue_alloc().context("no room for a fault queue")?;
        let options = HwptOptions::default().on_miss(OnMiss::Queue(queue.clone()));
        space.attached.attach(None, &space.hwpt_alloc(options)?)?;
        let range = IovaRange::new(BASE, u64::from(pages) * PAGE as u64).context("the range wraps")?;
        Ok(Self { space, queue, memory, range })
    }

    /// Maps all pages anew, as one area, and makes all of it missing.
    ///
    /// # Errors
    /// Of the crate.
    pub fn forget(&self) -> Result<()> {
        self.space.unmap_all()?;
        self.space.map(BASE, self.memory.segment(0, self.range.len_minus_one() + 1))?;
        Ok(self.space.ioas.make_fault(self.range)?)
    }

    /// A new port of the device.
    pub fn port(&self) -> DmaPort {
        self.space.port()
    }

    /// Has `tell` called when the device has asked for a page.
    pub fn on_arrival(&self, tell: impl Fn() + Send + Sync + 'static) {
        self.queue.on_arrival(Arc::new(tell));
    }

    /// The next page that is waited for, with what to answer by, if there is one.
    ///
    /// # Errors
    /// Of the crate.
    #[inline]
    pub fn next(&self) -> Result<Option<(u32, u32)>> {
        if !self.queue.has_groups() {
            return Ok(None);
        }
        let Some(group) = self.queue.take(1)? else { return Ok(None) };
        let request = group.requests.first().context("a group without a request")?;
        Ok(Some((((request.iova - BASE) / PAGE as u64) as u32, group.cookie)))
    }

    /// Gives `content` to the device, which waits for `page`.
    ///
    /// # Errors
    /// Of the crate.
    #[inline]
    pub fn give(&self, page: u32, cookie: u32, content: &Content) -> Result<()> {
        let range = IovaRange::new(BASE + u64::from(page) * PAGE as u64, PAGE as u64).context("the range wraps")?;
        ensure!(self.range.contains(&range), "page {page} is none of ours");
        // SAFETY: the mapping has these bytes, and nobody has references to them. The device does not read them before
        // it is answered, as they are in no page table.
        unsafe {
            let to = self.memory.start.byte_add(page as usize * PAGE).cast::<Content>();
            ptr::copy_nonoverlapping(content, to.as_ptr(), 1);
        }
        ensure!(self.space.ioas.populate(range)? == PAGE as u64, "page {page} was there already");
        Ok(self.queue.answer(cookie, PageResponse::Success)?)
    }
}

/// The first word of `page`, as the device reads it.
///
/// # Errors
/// If it is refused.
#[inline]
pub fn touch(port: &mut DmaPort, page: u32) -> Result<u64> {
    let mut word = [0; 8];
    port.read(Iova(BASE + u64::from(page) * PAGE as u64), &mut word)?;
    Ok(u64::from_ne_bytes(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_waited_for_until_it_is_given_and_missing_again_when_it_is_forgotten() {
        let faulting = Faulting::new(2).unwrap();
        let mut port = faulting.port();
        for content in [[5; PAGE / 8], [6; PAGE / 8]] {
            faulting.forget().unwrap();
            std::thread::scope(|scope| {
                let touched = scope.spawn(|| touch(&mut port, 1));
                let (page, cookie) = loop {
                    if let Some(next) = faulting.next().unwrap() {
                        break next;
                    }
                };
                faulting.give(page, cookie, &content).unwrap();
                assert_eq!((page, touched.join().unwrap().unwrap()), (1, content[0]));
            });
        }
    }
}
