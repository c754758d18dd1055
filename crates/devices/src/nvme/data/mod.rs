//! Where the data of a command is: what its PRPs or its SGL come to.

use super::memory::Memory;
use super::spec::command::Command;
use super::spec::status::Status;

mod prp;
mod sgl;

pub(super) use prp::queue_pages;

/// Which way data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    ToHost,
    FromHost,
}

/// A part of a command's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    /// `None` for bytes that the host does not want (a bit bucket).
    address: Option<u64>,
    length: u64,
}

/// Where the data of a command is, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    parts: Vec<Part>,
}

impl Layout {
    /// Bytes in one piece.
    pub(super) fn flat(address: u64, length: u64) -> Self {
        Self { parts: vec![Part { address: Some(address), length }] }
    }

    /// Adds a part, or lengthens the last one if it goes on there.
    fn push(&mut self, address: Option<u64>, length: u64) {
        if length == 0 {
            return;
        }
        if let Some(last) = self.parts.last_mut()
            && let (Some(end), Some(next)) = (last.address.and_then(|at| at.checked_add(last.length)), address)
            && end == next
        {
            last.length += length;
            return;
        }
        self.parts.push(Part { address, length });
    }

    /// Finds out where the `length` bytes of a command are. Nothing but lists is read.
    ///
    /// # Errors
    /// What is wrong with its pointers.
    pub(super) fn find(
        &mut self,
        command: &Command,
        length: u64,
        page_shift: u32,
        direction: Direction,
        memory: &mut Memory,
    ) -> Result<(), Status> {
        self.parts.clear();
        let pointers = command.data.map(u64::from);
        match command.data_kind() {
            0 => prp::follow(self, pointers, length, page_shift, memory),
            1 | 2 => sgl::follow(self, pointers, length, direction, memory),
            _ => Err(Status::INVALID_FIELD),
        }
    }

    /// The parts of the bytes from `from` on, each with where it is in these.
    fn parts(&self, from: u64, length: usize) -> impl Iterator<Item = (Option<u64>, std::ops::Range<usize>)> {
        let (mut skip, mut done) = (from, 0);
        self.parts.iter().filter_map(move |part| {
            let skipped = skip.min(part.length);
            skip -= skipped;
            let here = (part.length - skipped).min((length - done) as u64) as usize;
            let range = done..done + here;
            done += here;
            (here > 0).then(|| (part.address.map(|at| at + skipped), range))
        })
    }

    /// Writes `data` to where bytes `from` on of it are.
    pub(super) fn write(&self, memory: &mut Memory, from: u64, data: &[u8]) -> Result<(), Status> {
        for (address, range) in self.parts(from, data.len()) {
            if let Some(address) = address {
                memory.write(address, &data[range])?;
            }
        }
        Ok(())
    }

    /// Reads bytes `from` on of it to `data`.
    pub(super) fn read(&self, memory: &mut Memory, from: u64, data: &mut [u8]) -> Result<(), Status> {
        for (address, range) in self.parts(from, data.len()) {
            if let Some(address) = address {
                memory.read(address, &mut data[range])?;
            }
        }
        Ok(())
    }
}
