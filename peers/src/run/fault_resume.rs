//! `fault-resume-…`: from an access to a page that is missing, until it has been made; beside it, the same with Linux's
//! userfaultfd. On both sides a handler on another processor is told, gives the page 4 KiB, and lets the access go on.
//!
//! ```text
//!            ours                                       theirs
//!   device   DmaPort::read ──► stalls ─ ─► its bytes    a load ──► sleeps ─ ─ ─ ─► its bytes
//!                           │        ▲                          │        ▲
//!   handler     FaultQueue::take ──► populate, answer        read(2) ──► UFFDIO_COPY
//! ```
//! Polled, both handlers look again and again. Blocking, both sleep when the access is made: ours in a park that the
//! queue's arrival ends, theirs in `read`. How who makes the access waits is not chosen here: theirs sleeps, always;
//! our device spins first, for longer than it takes to wake the handler, and sleeps only if nobody answers then. So
//! ours pays for one wake between processors, and theirs for two, or with handlers that poll for none and for one.
//!
//! Each page is missing as part of a large range, as after a migration. Theirs has to find memory for the page, which
//! ours has already; both copy it. A sample is the median of a round of pages, so that a round that is disturbed counts
//! as one that is not. The first word of each page is checked, which is another one in each round.

use std::fs;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::thread::gettid;

use crate::ours::{self, Faulting};
use crate::run::{Benchmark, time};
use crate::statistics::{Side, Spread, interleave};
use crate::table::{Figure, Row, Unit};
use crate::theirs::userfault::{Content, PAGE, Userfault};
use crate::threads::{Meeting, together};

/// Pages of a round.
const PAGES: u32 = 64;
const PAIRS: usize = 51;
/// As long as a device waits for an answer: after that, nobody will ask any more.
const PATIENCE: Duration = Duration::from_secs(10);

/// With handlers that look again and again.
pub const POLLED: Benchmark = Benchmark { name: "fault-resume-polled", measure: |_| measure(Handler::Polls) };
/// With handlers that sleep.
pub const BLOCKING: Benchmark = Benchmark { name: "fault-resume-blocking", measure: |_| measure(Handler::Sleeps) };

/// How a handler waits for the next page to be missing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Handler {
    Polls,
    Sleeps,
}

fn measure(handler: Handler) -> Result<Row> {
    let (ours, theirs) = (Faulting::new(PAGES)?, Userfault::new(PAGES, handler == Handler::Polls)?);
    let mut port = ours.port();
    let mut stamp = 0;
    let samples = interleave(PAIRS, |side| {
        stamp += 1;
        match side {
            Side::Ours => {
                ours.forget()?;
                let device = |page| ours::touch(&mut port, page);
                round(stamp, handler, device, |meeting, content| serve_ours(&ours, handler, meeting, content))
            }
            Side::Theirs => {
                theirs.forget()?;
                let device = |page| Ok(theirs.touch(page));
                round(stamp, handler, device, |meeting, content| {
                    serve_theirs(&theirs, meeting, content).inspect_err(|_| theirs.give_up())
                })
            }
        }
    })?;
    let (benchmark, at_least, how) = match handler {
        Handler::Polls => (POLLED, 3.0, "polls"),
        Handler::Sleeps => (BLOCKING, 1.2, "sleeps"),
    };
    Ok(Row {
        name: benchmark.name.into(),
        samples,
        unit: Unit::Time,
        figure: Figure::Ratio { at_least },
        note: format!(
            "a stalled DMA and its page of 4 KiB, by a fault queue whose handler {how}; a load, by UFFDIO_COPY"
        ),
    })
}

/// Gives the next page of ours.
fn serve_ours(ours: &Faulting, handler: Handler, meeting: &Meeting, content: &Content) -> Result<()> {
    let (page, cookie) = match handler {
        Handler::Polls => meeting.wait_for(|| ours.next())?,
        Handler::Sleeps => {
            let handler = thread::current();
            ours.on_arrival(move || handler.unpark());
            let until = Instant::now() + PATIENCE;
            loop {
                if let Some(next) = ours.next()? {
                    break next;
                }
                ensure!(Instant::now() < until, "the device asked for nothing");
                thread::park_timeout(PATIENCE);
            }
        }
    };
    ours.give(page, cookie, content)
}

/// Gives the next page of theirs, which is waited for in the kernel if it does not poll.
fn serve_theirs(theirs: &Userfault, meeting: &Meeting, content: &Content) -> Result<()> {
    let page = meeting.wait_for(|| theirs.next())?;
    theirs.give(page, content)
}

/// What `page` begins with in the round with this `stamp`.
fn word(stamp: u32, page: u32) -> u64 {
    u64::from(stamp) << 32 | u64::from(page)
}

/// Who does what in a round.
enum Role<'a> {
    /// Makes an access to a page, and says what was there.
    Device(&'a mut (dyn FnMut(u32) -> Result<u64> + Send)),
    /// Waits for the next page, and gives it.
    Handler(&'a mut (dyn FnMut(&Meeting, &Content) -> Result<()> + Send)),
}

/// Has all pages accessed in turn, and returns what one takes.
fn round(
    stamp: u32,
    handler: Handler,
    mut device: impl FnMut(u32) -> Result<u64> + Send,
    mut serve: impl FnMut(&Meeting, &Content) -> Result<()> + Send,
) -> Result<f64> {
    let (handlers_thread, served) = (AtomicI32::new(0), AtomicU32::new(0));
    let mut roles = [Role::Device(&mut device), Role::Handler(&mut serve)];
    let times = together(&mut roles, |role, meeting| match role {
        Role::Device(touch) => {
            meeting.meet()?;
            let access = |page| {
                // The handler is done with the one before, and waits.
                meeting.wait_for(|| Ok((served.load(Ordering::Acquire) == page).then_some(())))?;
                if handler == Handler::Sleeps {
                    meeting.wait_for(|| sleeps(handlers_thread.load(Ordering::Relaxed)))?;
                }
                let mut found = 0;
                let taken = time(|| {
                    found = touch(page)?;
                    Ok(())
                })?;
                ensure!(found == word(stamp, page), "page {page} has {found:#x}: nobody gave it");
                Ok(taken)
            };
            (0..PAGES).map(access).collect::<Result<Vec<_>>>()
        }
        Role::Handler(serve) => {
            handlers_thread.store(gettid().as_raw_nonzero().get(), Ordering::Relaxed);
            let mut content = [0; PAGE / 8];
            meeting.meet()?;
            for page in 0..PAGES {
                content[0] = word(stamp, page);
                serve(meeting, &content)?;
                served.store(page + 1, Ordering::Release);
            }
            Ok(Vec::new())
        }
    })?;
    Ok(Spread::of(times.into_iter().flatten()).context("no page was accessed")?.median)
}

/// Whether a thread of this process sleeps.
fn sleeps(thread: i32) -> Result<Option<()>> {
    let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat"))?;
    // After the name, which may have anything in it, in brackets.
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
    Ok(state.is_some_and(|state| state.starts_with('S')).then_some(()))
}
