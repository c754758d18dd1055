//! `map-4k-…` and `unmap-4k-…`: 1 GiB in pages of 4 KiB, with one call; beside it, the same by other crates for x86-64.
//!
//! A sample is the time for one page. Both sides begin with an empty table, and take tables that were touched before
//! (warm) or that the kernel has yet to provide (cold). Ours gives the tables that become empty back when it unmaps;
//! theirs keep them.

use anyhow::{Context, Result, ensure};
use iopt::format;

use crate::layout::BASE;
use crate::ours::Table;
use crate::process;
use crate::random::Random;
use crate::run::{Benchmark, time};
use crate::statistics::{Pairs, Side, interleave};
use crate::table::{Figure, Row, Unit};
use crate::theirs::frames::Frames;
use crate::theirs::multiarch::Multiarch;
use crate::theirs::x86_64::X86;

const PAIRS: usize = 31;
const LENGTH: u64 = 1 << 30;
const PAGES: u64 = LENGTH >> 12;
/// One page further in its 2 MiB than the IOVA, so that nothing larger fits.
const PA: u64 = (1 << 36) + 0x1000;
/// 512 with leaves, one at each level above, and some to spare.
const TABLES: usize = 1024;

/// Against `page_table_multiarch`, warm.
pub const MAP_MULTIARCH: Benchmark = Benchmark {
    name: "map-4k-run",
    measure: |_| {
        let note = "1 GiB in one call, per page, warm arena; page_table_multiarch's map_region, frames touched before";
        row(MAP_MULTIARCH.name, warm::<Multiarch>(What::Map)?, Figure::Ratio { at_least: 8.0 }, note)
    },
};
/// Against `x86_64`, warm.
pub const MAP_X86_64: Benchmark = Benchmark {
    name: "map-4k-x86_64",
    measure: |_| {
        let note = "1 GiB in one call, per page, warm arena; x86_64's map_to for each page, frames touched before";
        row(MAP_X86_64.name, warm::<X86>(What::Map)?, Figure::None, note)
    },
};
/// Against `page_table_multiarch`, cold.
pub const MAP_COLD: Benchmark = Benchmark {
    name: "map-4k-cold",
    measure: |_| {
        let note = "1 GiB in one call, per page, with making the arena; page_table_multiarch's map_region, new frames";
        row(MAP_COLD.name, cold()?, Figure::None, note)
    },
};
/// Against `page_table_multiarch`.
pub const UNMAP_MULTIARCH: Benchmark = Benchmark {
    name: "unmap-4k-run",
    measure: |_| {
        let note = "1 GiB in one call, per page, tables given back; page_table_multiarch's unmap_region, tables kept";
        row(UNMAP_MULTIARCH.name, warm::<Multiarch>(What::Unmap)?, Figure::Ratio { at_least: 2.0 }, note)
    },
};
/// Against `x86_64`.
pub const UNMAP_X86_64: Benchmark = Benchmark {
    name: "unmap-4k-x86_64",
    measure: |_| {
        let note = "1 GiB in one call, per page, tables given back; x86_64's unmap for each page, tables kept";
        row(UNMAP_X86_64.name, warm::<X86>(What::Unmap)?, Figure::None, note)
    },
};

fn row(name: &str, samples: Pairs, figure: Figure, note: &str) -> Result<Row> {
    Ok(Row { name: name.into(), samples, unit: Unit::Time, figure, note: note.into() })
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Map,
    Unmap,
}

/// A page table of either side.
trait Subject: Sized {
    fn map(&mut self) -> Result<()>;
    fn unmap(&mut self) -> Result<()>;
    fn walk(&self, iova: u64) -> Option<u64>;

    /// Maps and unmaps, and takes the time of one of them, for each page.
    fn sample(&mut self, what: What) -> Result<f64> {
        let map = time(|| self.map())?;
        self.verify(|offset| Some(PA + offset))?;
        let unmap = time(|| self.unmap())?;
        self.verify(|_| None)?;
        Ok(if what == What::Map { map } else { unmap } / PAGES as f64)
    }

    /// Makes sure that what is mapped is `expected`, at both ends and at some addresses in between.
    fn verify(&self, expected: impl Fn(u64) -> Option<u64>) -> Result<()> {
        let mut random = Random::new(LENGTH);
        for offset in [0, LENGTH - 1].into_iter().chain((0..1000).map(|_| random.below(LENGTH))) {
            let (found, iova) = (self.walk(BASE + offset), BASE + offset);
            ensure!(found == expected(offset), "IOVA {iova:#x} leads to {found:x?}: this measures something else");
        }
        Ok(())
    }
}

impl Subject for Table<format::X86_64> {
    fn map(&mut self) -> Result<()> {
        self.map_small(BASE, PA, LENGTH)
    }

    fn unmap(&mut self) -> Result<()> {
        Table::unmap(self, BASE, LENGTH)
    }

    fn walk(&self, iova: u64) -> Option<u64> {
        Table::walk(self, iova)
    }
}

/// One of theirs.
trait Peer: Subject {
    fn new(frames: Frames) -> Result<Self>;
    fn into_frames(self) -> Frames;
}

macro_rules! peer {
    ($table:ty) => {
        impl Subject for $table {
            fn map(&mut self) -> Result<()> {
                <$table>::map(self, BASE, PA, LENGTH)
            }

            fn unmap(&mut self) -> Result<()> {
                <$table>::unmap(self, BASE, LENGTH)
            }

            fn walk(&self, iova: u64) -> Option<u64> {
                <$table>::walk(self, iova)
            }
        }

        impl Peer for $table {
            fn new(frames: Frames) -> Result<Self> {
                <$table>::new(frames)
            }

            fn into_frames(self) -> Frames {
                <$table>::into_frames(self)
            }
        }
    };
}

peer!(Multiarch);
peer!(X86);

/// The same arena, and the same frames, again and again.
fn warm<P: Peer>(what: What) -> Result<Pairs> {
    let mut ours = Table::<format::X86_64>::new(TABLES as u32)?;
    let mut frames = Some(Frames::touched(TABLES));
    interleave(PAIRS, |side| match side {
        Side::Ours => ours.sample(what),
        Side::Theirs => {
            let mut theirs = P::new(frames.take().context("the frames are gone")?)?;
            let sample = theirs.sample(what)?;
            frames = Some(theirs.into_frames());
            Ok(sample)
        }
    })
}

/// A new arena, and new frames, each time.
fn cold() -> Result<Pairs> {
    interleave(PAIRS, |side| match side {
        Side::Ours => cold_sample(|| Table::<format::X86_64>::new(TABLES as u32)),
        Side::Theirs => cold_sample(|| Multiarch::new(Frames::untouched(TABLES))),
    })
}

fn cold_sample<S: Subject>(make: impl FnOnce() -> Result<S>) -> Result<f64> {
    process::give_back();
    let mut made = None;
    let taken = time(|| {
        let mut subject = make()?;
        subject.map()?;
        made = Some(subject);
        Ok(())
    })?;
    made.context("nothing was made")?.verify(|offset| Some(PA + offset))?;
    Ok(taken / PAGES as f64)
}
