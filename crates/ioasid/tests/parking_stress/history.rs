//! Who was attached to what, and from when until when, by a clock that counts what happens.
//!
//! ```text
//!   owner    ──open── attach ───────────────────── detach ──close──
//!   clock       3                                              9
//!   device                 begin 5 ── read ── end 7                     3 ≤ 7 and 5 ≤ 9: it may see the signature
//! ```

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use ioasid::Pasid;

/// With which PASID on the bus: not known before a part is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnBus {
    Known(Option<Pasid>),
    NotYet,
}

/// One attachment. What it is of says which event ends it.
#[derive(Debug, Clone, Copy)]
pub struct Attachment {
    pub pasid: OnBus,
    /// What its owner calls that.
    pub own: Option<Pasid>,
    pub signature: u64,
    pub context: u64,
    /// The page table, or address space, by the test's own number.
    pub target: u64,
}

#[derive(Debug)]
struct Interval {
    attachment: Attachment,
    token: u64,
    from: u64,
    /// When the call that stopped it had returned.
    to: Option<u64>,
}

pub struct History {
    clock: AtomicU64,
    /// When each device began the access that it is doing; `u64::MAX` if it does none.
    begun: Vec<AtomicU64>,
    requesters: Vec<Mutex<Vec<Interval>>>,
}

impl History {
    pub fn new(requesters: usize, devices: usize) -> Self {
        Self {
            clock: AtomicU64::new(1),
            begun: (0..devices).map(|_| AtomicU64::new(u64::MAX)).collect(),
            requesters: (0..requesters).map(|_| Mutex::default()).collect(),
        }
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// Before something is attached.
    pub fn open(&self, requester: usize, attachment: Attachment) -> u64 {
        let from = self.tick();
        let mut intervals = self.requesters[requester].lock().unwrap();
        // What ended before any access that is going on began is of no use any more, if it is known what it was.
        let oldest = self.begun.iter().map(|begun| begun.load(Ordering::SeqCst)).min().unwrap_or(from).min(from);
        intervals
            .retain(|interval| interval.attachment.pasid == OnBus::NotYet || interval.to.is_none_or(|to| to >= oldest));
        intervals.push(Interval { attachment, token: from, from, to: None });
        from
    }

    /// The PASID on the bus has become known.
    pub fn settle(&self, requester: usize, token: u64, pasid: Option<Pasid>) {
        let mut intervals = self.requesters[requester].lock().unwrap();
        if let Some(interval) = intervals.iter_mut().find(|interval| interval.token == token) {
            interval.attachment.pasid = OnBus::Known(pasid);
        }
    }

    /// It was not attached after all.
    pub fn cancel(&self, requester: usize, token: u64) {
        self.requesters[requester].lock().unwrap().retain(|interval| interval.token != token);
    }

    /// After the end of one attachment; 1 if it was not over before.
    pub fn close(&self, requester: usize, token: u64) -> usize {
        let to = self.tick();
        close(&mut self.requesters[requester].lock().unwrap(), to, |interval| interval.token == token)
    }

    /// After the end of all that are of a kind; how many were not over before.
    pub fn close_all(&self, which: impl Fn(&Attachment) -> bool) -> usize {
        let to = self.tick();
        let of_each = |intervals: &Mutex<Vec<Interval>>| {
            close(&mut intervals.lock().unwrap(), to, |interval| which(&interval.attachment))
        };
        self.requesters.iter().map(of_each).sum()
    }

    /// How many are attached to what has this signature.
    pub fn open_with(&self, signature: u64) -> usize {
        let is_open = |interval: &&Interval| interval.to.is_none() && interval.attachment.signature == signature;
        self.requesters.iter().map(|intervals| intervals.lock().unwrap().iter().filter(is_open).count()).sum()
    }

    /// Whether somebody is just being attached to what has this signature, with a PASID that is not known yet.
    pub fn is_being_attached(&self, requester: usize, signature: u64) -> bool {
        let intervals = self.requesters[requester].lock().unwrap();
        intervals
            .iter()
            .any(|interval| interval.attachment.signature == signature && interval.attachment.pasid == OnBus::NotYet)
    }

    /// A device begins an access.
    pub fn begin(&self, device: usize) -> u64 {
        // Before it is known when, nothing is forgotten.
        self.begun[device].store(0, Ordering::SeqCst);
        let now = self.clock.load(Ordering::SeqCst);
        self.begun[device].store(now, Ordering::SeqCst);
        now
    }

    /// It has ended, and read `signature`, if anything.
    pub fn end(&self, device: usize, requester: usize, pasid: Option<Pasid>, begun: u64, signature: Option<u64>) {
        let ended = self.clock.load(Ordering::SeqCst);
        if let Some(signature) = signature {
            let intervals = self.requesters[requester].lock().unwrap();
            let allowed = intervals.iter().any(|interval| {
                let Attachment { pasid: on_bus, signature: its, .. } = interval.attachment;
                let at_this_pasid = on_bus == OnBus::Known(pasid) || on_bus == OnBus::NotYet;
                let then = interval.from <= ended && interval.to.is_none_or(|to| to >= begun);
                its == signature && at_this_pasid && then
            });
            let text = signature.to_ne_bytes();
            assert!(
                allowed,
                "requester {requester}, PASID {pasid:?}: read {:?} between {begun} and {ended}, but it had {:#?}",
                text.escape_ascii().to_string(),
                intervals
                    .iter()
                    .filter(|interval| interval.attachment.pasid == OnBus::Known(pasid))
                    .collect::<Vec<_>>(),
            );
        }
        self.begun[device].store(u64::MAX, Ordering::SeqCst);
    }
}

fn close(intervals: &mut [Interval], to: u64, which: impl Fn(&Interval) -> bool) -> usize {
    let open = intervals.iter_mut().filter(|interval| interval.to.is_none() && which(interval));
    open.map(|interval| interval.to = Some(to)).count()
}
