//! What devices keep blocks in: memory, or a file.
//!
//! ```text
//!   worker ── bytes ───────────────────────────▶ Memory     at once
//!     │
//!     └── Job ──▶ Engine ──▶ io_uring, or threads ──▶ File
//!          ▲                         │
//!          └──────── Done ───────────┘
//! ```

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

mod buffer;
mod image;
mod memory;
mod threads;
mod uring;

pub(crate) use buffer::Buffer;
pub use image::ImageError;
pub(crate) use image::{Image, open};
pub(crate) use memory::MemoryBlocks;
use threads::Threads;
use uring::Uring;

/// What a file is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Fills the buffer.
    Read,
    /// Writes the buffer; with `durable`, so that it is there after a loss of power.
    Write { durable: bool },
    /// What was written is there after a loss of power.
    Flush,
    /// Makes bytes zero; with `deallocate`, without room for them.
    Zero { length: u64, deallocate: bool },
}

/// Something for a file to do.
#[derive(Debug)]
pub(crate) struct Job {
    /// Whose it is.
    pub(crate) token: usize,
    pub(crate) image: Arc<Image>,
    pub(crate) operation: Operation,
    /// The first byte.
    pub(crate) offset: u64,
    pub(crate) buffer: Buffer,
}

impl Job {
    /// A job for [`Engine::submit`], once it has a token.
    pub(crate) fn new(image: &Arc<Image>, operation: Operation, offset: u64, buffer: Buffer) -> Self {
        Self { token: 0, image: image.clone(), operation, offset, buffer }
    }
}

/// Something that a file has done.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) token: usize,
    pub(crate) result: io::Result<()>,
    pub(crate) buffer: Buffer,
}

/// What carries out jobs, several at once and in any order. Dropping it waits for those under way.
pub(crate) trait Engine: Send {
    /// Takes a job, to begin it at the next [`Engine::reap`] at the latest.
    fn submit(&mut self, job: Job);
    /// Adds what has been done since.
    fn reap(&mut self, done: &mut Vec<Done>);
    /// Ends what has not begun, and what goes on step by step, with an error: nobody waits for it any more.
    fn give_up(&mut self);
    /// How many jobs are not done.
    fn under_way(&self) -> usize;
    /// Is readable when there is something to reap.
    fn readiness(&self) -> Option<BorrowedFd<'_>>;
}

/// The best engine that the kernel allows.
pub(crate) fn engine() -> Box<dyn Engine> {
    match Uring::new() {
        Ok(uring) => Box::new(uring),
        Err(_) => Box::new(Threads::default()),
    }
}

/// Where blocks are.
#[derive(Debug)]
pub(crate) enum Blocks {
    Memory(MemoryBlocks),
    Image(Arc<Image>),
}

impl Blocks {
    /// Bytes.
    pub(crate) fn length(&self) -> u64 {
        match self {
            Self::Memory(memory) => memory.length(),
            Self::Image(image) => image.length(),
        }
    }

    /// Reads at once.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Memory(memory) => data.copy_from_slice(memory.slice(offset, data.len())),
            Self::Image(image) => image.read(offset, data)?,
        }
        Ok(())
    }

    /// Writes at once.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8], durable: bool) -> io::Result<()> {
        match self {
            Self::Memory(memory) => memory.slice_mut(offset, data.len()).copy_from_slice(data),
            Self::Image(image) => {
                image.write(offset, data)?;
                if durable {
                    image.flush()?;
                }
            }
        }
        Ok(())
    }

    /// What was written is there after a loss of power.
    pub(crate) fn flush(&self) -> io::Result<()> {
        match self {
            Self::Memory(_) => Ok(()),
            Self::Image(image) => image.flush(),
        }
    }

    /// Makes bytes zero: at once, or step by step as long as it `goes_on`.
    pub(crate) fn zero(
        &mut self,
        offset: u64,
        length: u64,
        deallocate: bool,
        goes_on: &dyn Fn() -> bool,
    ) -> io::Result<()> {
        match self {
            Self::Memory(memory) => memory.zero(offset, length),
            Self::Image(image) => image.zero(offset, length, deallocate, goes_on)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
