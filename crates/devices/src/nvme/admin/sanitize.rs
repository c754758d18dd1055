//! Sanitize: everything is erased, while the host can ask how far that is.

use super::super::controller::{Controller, Executed, Outcome};
use super::super::pool::Extent;
use super::super::spec::command::Command;
use super::super::spec::log::Event;
use super::super::spec::status::Status;
use super::super::subsystem::Sanitize;

/// Bytes that are erased in a step.
const STEP: u64 = 4 << 20;

/// SANACT.
mod action {
    pub(super) const EXIT_FAILURE_MODE: u32 = 1;
    pub(super) const BLOCK_ERASE: u32 = 2;
    pub(super) const OVERWRITE: u32 = 3;
}

/// How far it is.
#[derive(Debug)]
pub(in crate::nvme) struct Erasure {
    extents: Vec<Extent>,
    /// What is written, pass by pass; nothing for blocks that are erased.
    pattern: Option<u32>,
    inverts: bool,
    passes: u64,
    /// Bytes of all passes.
    total: u64,
    done: u64,
}

impl Erasure {
    /// In units of 1/65536.
    pub(super) fn progress(&self) -> u16 {
        (u128::from(self.done) * 65536 / u128::from(self.total.max(1))).min(65535) as u16
    }

    /// The next bytes: where, how many, and what is written there.
    fn next(&self) -> Option<(Extent, u64, u64, Option<u32>)> {
        let per_pass = self.total / self.passes;
        let (pass, mut within) = (self.done / per_pass.max(1), self.done % per_pass.max(1));
        if self.done >= self.total {
            return None;
        }
        for extent in &self.extents {
            if within < extent.length {
                let pattern =
                    self.pattern.map(|pattern| if self.inverts && pass % 2 == 1 { !pattern } else { pattern });
                return Some((*extent, within, STEP.min(extent.length - within), pattern));
            }
            within -= extent.length;
        }
        None
    }
}

impl Controller {
    pub(super) fn start_sanitize(&mut self, command: &Command) -> Executed {
        let word = command.word(10);
        let what = word & 7;
        if what == action::EXIT_FAILURE_MODE {
            // One that may be left: AUSE was given.
            if let Sanitize::Failed(word) = self.subsystem.sanitize {
                if word & 1 << 3 == 0 {
                    return Err(Status::SANITIZE_FAILED);
                }
                self.subsystem.sanitize = Sanitize::Never;
            }
            return Ok(Outcome::Done(0));
        }
        if !matches!(what, action::BLOCK_ERASE | action::OVERWRITE) {
            return Err(Status::INVALID_FIELD);
        }
        let mut namespaces = self.subsystem.namespaces.values();
        if namespaces.any(|namespace| self.subsystem.is_protected(namespace)) {
            return Err(Status::NAMESPACE_WRITE_PROTECTED);
        }
        let extents = self.subsystem.pool.writable();
        let overwrites = what == action::OVERWRITE;
        // OWPASS: 0 is 16.
        let passes = match word >> 4 & 0xF {
            _ if !overwrites => 1,
            0 => 16,
            passes => u64::from(passes),
        };
        self.drain()?;
        self.subsystem.sanitize = Sanitize::UnderWay(word);
        self.erasure = Some(Erasure {
            total: extents.iter().map(|extent| extent.length).sum::<u64>() * passes,
            extents,
            pattern: overwrites.then(|| command.word(11)),
            inverts: word & 1 << 8 != 0,
            passes,
            done: 0,
        });
        Ok(Outcome::Done(0))
    }

    /// Erases some more, if there is something to erase. Returns whether there was.
    pub(in crate::nvme) fn sanitize_step(&mut self) -> bool {
        let Sanitize::UnderWay(word) = self.subsystem.sanitize else { return false };
        let step = self.erasure.as_ref().and_then(Erasure::next);
        let Some((extent, at, length, pattern)) = step else {
            let flushed = self.subsystem.pool.flush();
            self.end_sanitize(if flushed.is_ok() { Sanitize::Done(word) } else { Sanitize::Failed(word) });
            return true;
        };
        let blocks = self.subsystem.pool.blocks_mut(extent);
        let erased = match pattern {
            None => blocks.zero(at, length, true, &|| true),
            Some(pattern) => {
                let bytes: Vec<u8> = pattern.to_le_bytes().into_iter().cycle().take(length as usize).collect();
                blocks.write(at, &bytes, false)
            }
        };
        match (erased, &mut self.erasure) {
            (Ok(()), Some(erasure)) => erasure.done += length,
            _ => self.end_sanitize(Sanitize::Failed(word)),
        }
        true
    }

    fn end_sanitize(&mut self, end: Sanitize) {
        self.subsystem.sanitize = end;
        self.erasure = None;
        self.subsystem.namespaces.values_mut().for_each(|namespace| namespace.unmark_all());
        self.happen(Event::SANITIZE_DONE);
    }
}
