//! What happens at random, and what is checked after each step.

use anyhow::{Context as _, Result, ensure};
use ioasid::{Access, BusAddress, GuestFormat, Iova, IovaRange};
use iopt::{EmptyTables, Format};

use crate::guest::{Guest, IN_TABLE, Invalidation, PROCESSES, pasid};
use crate::machine::{PART, PIECES, gpa};
use crate::model::{Expected, Mapping, translate};
use crate::random::Random;

/// Accesses after each step.
const CHECKS: u32 = 8;
/// A page that every format has beside its smallest, and where such pages are mapped.
const LARGE: u64 = 2 << 20;
const LARGE_FROM: u64 = 1 << 34;
/// How many there are of those.
const LARGE_PLACES: u64 = 3;
/// Pages beside each other at each of three places.
const PAGES: u64 = 24;
/// Guest-physical, and not the guest's.
const NOWHERE: u64 = 1 << 33;
/// One change in so many is not said at first.
const FORGOTTEN: u64 = 8;
/// The VMM takes memory away, or gives it back, once in so many steps.
const BALLOON: u64 = 16;
/// More mappings than a process has at a time, so that there is always room.
const MOST: usize = 24;

/// What was done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Changes that the guest made.
    pub steps: u32,
    /// Accesses that were compared.
    pub checks: u64,
    /// Changes of which the guest said nothing at first.
    pub forgotten: u64,
    /// Of those, how many times the device saw what had been there before.
    pub stale: u64,
    /// Accesses that found what they should not have.
    pub wrong: u64,
}

/// Where the device looks.
#[derive(Debug, Clone, Copy)]
struct Spot {
    process: usize,
    iova: u64,
    write: bool,
}

/// A change of what was there, which the guest has to say something about.
struct Change {
    /// Whose.
    processes: Vec<usize>,
    /// What it can say.
    ways: Vec<Invalidation>,
    /// Tables that nothing leads to any more, once it was said.
    empty: EmptyTables,
}

/// A guest and its steps.
pub struct Run<F: Format> {
    guest: Guest<F>,
    format: GuestFormat,
    random: Random,
    counts: Counts,
}

impl<F: Format> Run<F> {
    /// A new guest, whose steps follow from `seed`, which is not 0.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn new(format: GuestFormat, seed: u64) -> Result<Self> {
        Ok(Self { guest: Guest::new(format)?, format, random: Random::new(seed), counts: Counts::default() })
    }

    /// Makes so many changes, and says each time how many there were.
    ///
    /// # Errors
    /// If a request is refused that should not be.
    pub fn all(mut self, steps: u32, progress: impl Fn(u32)) -> Result<Counts> {
        while self.counts.steps < steps {
            let process = self.random.below(PROCESSES as u64) as usize;
            if self.step(process)? {
                self.counts.steps += 1;
                progress(self.counts.steps);
            }
            if self.random.one_in(BALLOON) {
                let piece = self.random.below(PIECES);
                self.guest.machine.toggle(piece)?;
            }
            for check in 0..CHECKS {
                let process = if check % 2 == 0 { process } else { self.random.below(PROCESSES as u64) as usize };
                let spot = self.somewhere(process);
                self.check(spot)?;
            }
        }
        Ok(self.counts)
    }

    /// One change, if what was chosen could be done.
    fn step(&mut self, process: usize) -> Result<bool> {
        let crowded = self.guest.processes[process].first.len() >= MOST;
        match self.random.below(10) {
            0..4 if !crowded => self.map(process),
            4 => self.switch(process % IN_TABLE),
            5..8 => self.remap(process),
            _ => self.unmap(process),
        }
    }

    /// Maps something new. What was not mapped is not cached, so nothing has to be said.
    fn map(&mut self, process: usize) -> Result<bool> {
        let (iova, length) = if self.random.one_in(8) {
            (LARGE_FROM + self.random.below(LARGE_PLACES) * LARGE, LARGE)
        } else {
            let (iova, pages) = (self.page(), 1 + self.random.below(8));
            (iova, pages << F::PAGE_SHIFT)
        };
        // The last pages of the space have nothing behind them.
        if iova + length > 1 << F::iova_bits() {
            return Ok(false);
        }
        let (to, write) = (self.target(length), self.random.one_in(2));
        let process = &mut self.guest.processes[process];
        let mut empty = EmptyTables::none();
        let done = process.table.map(iova, to, length, access(write), &mut empty).is_ok();
        let free = process.first.is_free(iova, length);
        ensure!(done == free, "the guest's own table and its list differ at {iova:#x}");
        if done {
            process.first.map(iova, Mapping { length, to, write });
        }
        process.table.free(empty);
        Ok(done)
    }

    fn unmap(&mut self, process: usize) -> Result<bool> {
        let Some((iova, mapping)) = self.mapping(process) else { return Ok(false) };
        let spot = Spot { process, iova: self.inside(iova, mapping), write: self.random.one_in(2) };
        self.change(spot, |run| {
            let process = &mut run.guest.processes[spot.process];
            let mut empty = EmptyTables::none();
            process.table.unmap(iova, mapping.length, &mut empty)?;
            process.first.unmap(iova);
            changed(spot.process, iova, mapping.length, empty)
        })
    }

    /// Changes where something leads, or what it allows.
    fn remap(&mut self, process: usize) -> Result<bool> {
        let Some((iova, before)) = self.mapping(process) else { return Ok(false) };
        let length = before.length;
        if self.random.one_in(3) {
            let after = Mapping { write: !before.write, ..before };
            let spot = Spot { process, iova: self.inside(iova, before), write: true };
            return self.change(spot, |run| {
                let process = &mut run.guest.processes[spot.process];
                process.table.protect(iova, length, access(after.write))?;
                process.first.map(iova, after);
                changed(spot.process, iova, length, EmptyTables::none())
            });
        }
        let after = Mapping { to: self.target(length), ..before };
        let spot = Spot { process, iova: self.inside(iova, before), write: self.random.one_in(4) };
        self.change(spot, |run| {
            let process = &mut run.guest.processes[spot.process];
            let mut empty = EmptyTables::none();
            process.table.unmap(iova, length, &mut empty)?;
            process.table.map(iova, after.to, length, access(after.write), &mut empty)?;
            process.first.map(iova, after);
            changed(spot.process, iova, length, empty)
        })
    }

    /// Two PASIDs change places.
    fn switch(&mut self, one: usize) -> Result<bool> {
        let other = (one + 1) % IN_TABLE;
        let spot = Spot { write: false, ..self.somewhere(one) };
        self.change(spot, |run| {
            run.guest.processes.swap(one, other);
            run.guest.enter(one)?;
            run.guest.enter(other)?;
            let ways = vec![Invalidation::All, Invalidation::Pasid];
            Ok(Change { processes: vec![one, other], ways, empty: EmptyTables::none() })
        })
    }

    /// Makes a change, and says so, sometimes only after the device has looked at `spot` again.
    fn change(&mut self, spot: Spot, make: impl FnOnce(&mut Self) -> Result<Change>) -> Result<bool> {
        let forgotten = self.random.one_in(FORGOTTEN);
        let before = self.expected(spot);
        if forgotten {
            self.check(spot)?;
        }
        let Change { processes, ways, empty } = make(self)?;
        if forgotten {
            self.counts.forgotten += 1;
            match self.found(spot, &[self.expected(spot), before])? {
                Some(0) => {}
                Some(_) => self.counts.stale += 1,
                None => self.wrong(spot, "what it finds was never there"),
            }
        }
        let way = ways[self.random.below(ways.len() as u64) as usize];
        processes.into_iter().try_for_each(|process| self.guest.invalidate(process, way))?;
        // Only now does no device walk them.
        self.guest.machine.arena.free(empty);
        self.check(spot)?;
        Ok(true)
    }

    /// What the model says of a spot.
    fn expected(&self, spot: Spot) -> Expected {
        let first = &self.guest.processes[spot.process].first;
        translate(first, &self.guest.machine.second, spot.iova, spot.write)
    }

    /// Compares what the device finds with the model.
    fn check(&mut self, spot: Spot) -> Result<()> {
        if self.found(spot, &[self.expected(spot)])?.is_none() {
            self.wrong(spot, "it is not as the guest has it");
        }
        Ok(())
    }

    fn found(&mut self, spot: Spot, all: &[Expected]) -> Result<Option<usize>> {
        self.counts.checks += 1;
        let at = BusAddress { pasid: pasid(spot.process), iova: Iova(spot.iova) };
        self.guest.machine.access(at, spot.write, all)
    }

    fn wrong(&mut self, spot: Spot, how: &str) {
        self.counts.wrong += 1;
        if self.counts.wrong == 1 {
            let (format, step, expected) = (self.format, self.counts.steps, self.expected(spot));
            eprintln!("{format:?}, step {step}, {spot:x?}: {how}; expected is {expected:x?}");
        }
    }

    /// A page near the beginning, at the seam of two tables, or at the end of the space.
    fn page(&mut self) -> u64 {
        let page = self.random.below(PAGES);
        let first = match self.random.below(3) {
            0 => 0,
            1 => (1 << F::INDEX_BITS) - PAGES / 2,
            _ => (1 << (F::iova_bits() - F::PAGE_SHIFT)) - PAGES,
        };
        (first + page) << F::PAGE_SHIFT
    }

    /// Where a mapping leads: somewhere in the data, or to where the guest has nothing.
    fn target(&mut self, length: u64) -> u64 {
        let aligned = !0 << if length == LARGE { LARGE.ilog2() } else { F::PAGE_SHIFT };
        if self.random.one_in(16) { NOWHERE } else { gpa(self.random.below(2 * PART) & aligned) }
    }

    fn mapping(&mut self, process: usize) -> Option<(u64, Mapping)> {
        let n = self.random.below(1 << 32);
        self.guest.processes[process].first.nth(n)
    }

    /// A word of a mapping.
    fn inside(&mut self, iova: u64, mapping: Mapping) -> u64 {
        iova + self.random.below(mapping.length) / 8 * 8
    }

    /// A word that is mapped, mostly.
    fn somewhere(&mut self, process: usize) -> Spot {
        let mapping = self.mapping(process).filter(|_| !self.random.one_in(4));
        let iova = match mapping {
            Some((iova, mapping)) => self.inside(iova, mapping),
            None => self.page() + self.random.below(1 << F::PAGE_SHIFT) / 8 * 8,
        };
        Spot { process, iova, write: self.random.one_in(4) }
    }
}

fn access(write: bool) -> Access {
    if write { Access::all() } else { Access::READ }
}

/// A change in one page table.
fn changed(process: usize, iova: u64, length: u64, empty: EmptyTables) -> Result<Change> {
    let range = IovaRange::new(iova, length).context("an empty mapping")?;
    let ways = vec![Invalidation::Range(range), Invalidation::All, Invalidation::Pasid];
    Ok(Change { processes: vec![process], ways, empty })
}
