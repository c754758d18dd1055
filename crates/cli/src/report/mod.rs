//! What a run had to say about the program's DMA, collected while it runs.
//!
//! - [`Collector`] is told of everything as it happens, and keeps what is worth reporting within bounds.
//! - [`Report`] is the result: findings in the order of their first occurrence. `text` shows it to people; its
//!   serialised form is the JSON of `--report`.

mod text;

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ioasid::memory::{LostMemory, OverLimit};
use ioasid::{Fault, FaultReason, IovaRange, Leftover, Observer, Pasid, Rid};
use ioasid_serve::Watcher;
use ioasid_vfio::{IrqIndex, Unconsumed};
use serde::{Serialize, Serializer};

pub use text::Style;

/// The form of the JSON report. It changes when a field changes its meaning or goes.
const FORMAT: u32 = 1;
/// Distinct faults that are kept. A device that runs wild makes more; they are counted.
const MOST_FAULTS: usize = 1024;
/// Ranges of lost memory that are kept.
const MOST_LOST: usize = 1024;
/// Unmapped ranges that are remembered, so that an access to one of them can be told from one to nowhere.
const MOST_UNMAPS: usize = 1 << 16;
/// Leftovers and unread interrupts that are kept.
const MOST_LEFTOVERS: usize = 1024;

/// How the program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// By itself, with this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
}

/// A number that is written in hexadecimal: `"0x1000"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hex(pub u64);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

/// Seconds since the run began.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Seconds(pub f64);

/// An earlier unmap that explains a fault.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Unmapped {
    /// First IOVA of the mapping.
    pub start: Hex,
    /// Last IOVA of the mapping.
    pub last: Hex,
    /// When it was unmapped.
    pub at: Seconds,
}

/// A command of a queue, as the driver calls them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CommandOf {
    pub queue: u16,
    pub identifier: u16,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Finding {
    /// A DMA was refused.
    DmaFault {
        device: String,
        pasid: Option<u32>,
        iova: Hex,
        access: &'static str,
        reason: &'static str,
        /// Refused accesses to the same page, of the same kind.
        count: u64,
        first: Seconds,
        /// What the first one was for, if the device says so.
        command: Option<CommandOf>,
    },
    /// A DMA was refused at an address that had been mapped, and was unmapped before.
    UseAfterUnmap {
        device: String,
        pasid: Option<u32>,
        iova: Hex,
        access: &'static str,
        count: u64,
        first: Seconds,
        unmapped: Unmapped,
        command: Option<CommandOf>,
    },
    /// A process unmapped, replaced or dropped memory while an IOVA led to it.
    MemoryLost {
        process: u32,
        /// The first address.
        start: Hex,
        /// The last address.
        last: Hex,
        /// Where the first byte was first mapped.
        iova: Hex,
        at: Seconds,
    },
    /// An object was never destroyed.
    ObjectLeaked { object: &'static str, id: u32, mappings: usize, bytes: u64 },
    /// A device was closed without being detached.
    DeviceLeftAttached { device: String, pasid: Option<u32>, ioas: Option<u32>, hwpt: u32 },
    /// An interrupt was signalled, and nobody read the eventfd.
    InterruptUnread { device: String, interrupt: &'static str, vector: u16, sent: u64, unread: u64 },
    /// More of the same than is kept.
    More { what: &'static str, count: u64 },
}

/// Bytes that a device moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Traffic {
    pub device: String,
    pub bytes_read: u64,
    pub bytes_written: u64,
}

/// The result of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub format: u32,
    pub program: Vec<String>,
    pub ending: Ending,
    pub seconds: Seconds,
    pub findings: Vec<Finding>,
    pub traffic: Vec<Traffic>,
}

#[derive(PartialEq, Eq, Hash)]
struct FaultKey {
    rid: Rid,
    pasid: Option<Pasid>,
    page: u64,
    write: bool,
    reason: FaultReason,
}

struct FaultEntry {
    iova: u64,
    count: u64,
    first: Duration,
    unmapped: Option<(IovaRange, Duration)>,
    command: Option<CommandOf>,
}

#[derive(Default)]
struct State {
    faults: HashMap<FaultKey, FaultEntry>,
    more_faults: u64,
    /// Whose memory, and when.
    lost: Vec<(u32, LostMemory, Duration)>,
    more_lost: u64,
    /// Newest last: (address space, range, when).
    unmaps: VecDeque<(u64, IovaRange, Duration)>,
    leftovers: Vec<Leftover>,
    unread: Vec<(Rid, Unconsumed)>,
    more_leftovers: u64,
}

/// Collects what is worth reporting.
pub struct Collector {
    began: Instant,
    state: Mutex<State>,
    /// The first memory that the program was not allowed to pin.
    refused: OnceLock<OverLimit>,
}

impl Collector {
    pub fn new() -> Self {
        Self { began: Instant::now(), state: Mutex::default(), refused: OnceLock::new() }
    }

    /// The first memory that the program was not allowed to pin, if there was some.
    pub fn refused_memory(&self) -> Option<OverLimit> {
        self.refused.get().copied()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was collected. A program that is killed cannot clean up, so what it left is not held against it.
    pub fn report(&self, program: Vec<String>, ending: Ending, traffic: Vec<Traffic>) -> Report {
        let state = self.lock();
        let faults = state.faults.iter().map(|(key, entry)| (entry.first, fault_finding(key, entry)));
        let lost = state.lost.iter().map(|(process, lost, at)| (*at, lost_finding(*process, lost, *at)));
        let mut found: Vec<_> = lost.chain(faults).collect();
        found.sort_by_key(|(first, _)| *first);
        let mut findings: Vec<Finding> = found.into_iter().map(|(_, finding)| finding).collect();
        for (what, count) in [("DMA faults", state.more_faults), ("ranges of lost memory", state.more_lost)] {
            if count > 0 {
                findings.push(Finding::More { what, count });
            }
        }
        if matches!(ending, Ending::Status(_)) {
            findings.extend(state.leftovers.iter().map(leftover_finding));
            findings.extend(state.unread.iter().map(|(rid, unread)| unread_finding(*rid, unread)));
            if state.more_leftovers > 0 {
                findings
                    .push(Finding::More { what: "objects, attachments or interrupts", count: state.more_leftovers });
            }
        }
        let seconds = Seconds(self.began.elapsed().as_secs_f64());
        Report { format: FORMAT, program, ending, seconds, findings, traffic }
    }
}

impl Observer for Collector {
    fn fault(&self, fault: &Fault) {
        let now = self.began.elapsed();
        let mut state = self.lock();
        let key = FaultKey {
            rid: fault.rid,
            pasid: fault.pasid,
            page: fault.iova.0 >> 12,
            write: fault.write,
            reason: fault.reason,
        };
        if let Some(entry) = state.faults.get_mut(&key) {
            entry.count += 1;
        } else if state.faults.len() == MOST_FAULTS {
            state.more_faults += 1;
        } else {
            let iova = fault.iova.0;
            let unmapped = (fault.reason == FaultReason::NotMapped)
                .then(|| {
                    state
                        .unmaps
                        .iter()
                        .rev()
                        .find(|(ioas, r, _)| Some(*ioas) == fault.ioas && r.start() <= iova && iova <= r.last())
                })
                .flatten()
                .map(|&(_, range, when)| (range, when));
            let command = fault.work.map(|work| CommandOf { queue: work.queue, identifier: work.command });
            state.faults.insert(key, FaultEntry { iova, count: 1, first: now, unmapped, command });
        }
    }

    fn unmapped(&self, ioas: u64, range: IovaRange) {
        let now = self.began.elapsed();
        let mut state = self.lock();
        if state.unmaps.len() == MOST_UNMAPS {
            state.unmaps.pop_front();
        }
        state.unmaps.push_back((ioas, range, now));
    }

    fn left_behind(&self, what: &Leftover) {
        let mut state = self.lock();
        if state.leftovers.len() == MOST_LEFTOVERS {
            state.more_leftovers += 1;
        } else {
            state.leftovers.push(what.clone());
        }
    }
}

impl Watcher for Collector {
    fn interrupts_unread(&self, rid: Rid, unread: &[Unconsumed]) {
        let mut state = self.lock();
        for one in unread {
            if state.unread.len() == MOST_LEFTOVERS {
                state.more_leftovers += 1;
            } else {
                state.unread.push((rid, *one));
            }
        }
    }

    fn memory_refused(&self, error: OverLimit) {
        let _ = self.refused.set(error);
    }

    fn memory_lost(&self, pid: u32, lost: LostMemory) {
        let now = self.began.elapsed();
        let mut state = self.lock();
        if state.lost.len() == MOST_LOST {
            state.more_lost += 1;
        } else {
            state.lost.push((pid, lost, now));
        }
    }
}

fn lost_finding(process: u32, lost: &LostMemory, at: Duration) -> Finding {
    let (start, last) = (Hex(lost.address), Hex(lost.address + (lost.length - 1)));
    Finding::MemoryLost { process, start, last, iova: Hex(lost.iova), at: Seconds(at.as_secs_f64()) }
}

fn fault_finding(key: &FaultKey, entry: &FaultEntry) -> Finding {
    let device = key.rid.to_string();
    let pasid = key.pasid.map(Pasid::get);
    let access = if key.write { "write" } else { "read" };
    let (iova, count, first) = (Hex(entry.iova), entry.count, Seconds(entry.first.as_secs_f64()));
    match entry.unmapped {
        Some((range, when)) => {
            let at = Seconds(when.as_secs_f64());
            let unmapped = Unmapped { start: Hex(range.start()), last: Hex(range.last()), at };
            Finding::UseAfterUnmap { device, pasid, iova, access, count, first, unmapped, command: entry.command }
        }
        None => {
            let reason = match key.reason {
                FaultReason::NotBusMaster => "not-bus-master",
                FaultReason::NotAttached => "not-attached",
                FaultReason::NotMapped => "not-mapped",
                FaultReason::NotPresent => "not-present",
                FaultReason::GuestTable => "guest-table",
                FaultReason::NotPermitted => "not-permitted",
                FaultReason::MemoryGone => "memory-gone",
                FaultReason::NotLocal => "not-local",
                FaultReason::Misaligned => "misaligned",
                _ => "other",
            };
            Finding::DmaFault { device, pasid, iova, access, reason, count, first, command: entry.command }
        }
    }
}

fn leftover_finding(what: &Leftover) -> Finding {
    match what {
        Leftover::Attachment { rid, pasid, hwpt, ioas } => Finding::DeviceLeftAttached {
            device: rid.to_string(),
            pasid: pasid.map(Pasid::get),
            ioas: ioas.map(|id| id.0.get()),
            hwpt: hwpt.0.get(),
        },
        Leftover::Ioas { id, areas, bytes } => {
            Finding::ObjectLeaked { object: "ioas", id: id.0.get(), mappings: *areas, bytes: *bytes }
        }
        _ => Finding::More { what: "objects", count: 1 },
    }
}

fn unread_finding(rid: Rid, unread: &Unconsumed) -> Finding {
    let interrupt = match unread.index {
        IrqIndex::Intx => "intx",
        IrqIndex::Msi => "msi",
        IrqIndex::Msix => "msi-x",
        IrqIndex::Error => "error",
        IrqIndex::Request => "request",
    };
    let Unconsumed { vector, sent, unread, .. } = *unread;
    Finding::InterruptUnread { device: rid.to_string(), interrupt, vector, sent, unread }
}

#[cfg(test)]
mod tests {
    use ioasid::Iova;

    use super::*;

    fn fault(iova: u64, reason: FaultReason) -> Fault {
        let rid = "0000:00:01.0".parse().unwrap();
        Fault { rid, pasid: None, iova: Iova(iova), write: true, reason, ioas: Some(5), work: None }
    }

    fn findings(collector: &Collector) -> Vec<Finding> {
        collector.report(Vec::new(), Ending::Status(0), Vec::new()).findings
    }

    #[test]
    fn faults_of_one_page_are_counted_together() {
        let collector = Collector::new();
        for iova in [0x5000, 0x5008, 0x6000] {
            collector.fault(&fault(iova, FaultReason::NotMapped));
        }
        let counts: Vec<_> = findings(&collector)
            .into_iter()
            .map(|finding| match finding {
                Finding::DmaFault { iova, count, reason: "not-mapped", .. } => (iova.0, count),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(counts, [(0x5000, 2), (0x6000, 1)]);
    }

    #[test]
    fn an_access_to_what_was_unmapped_is_told_from_one_to_nowhere() {
        let collector = Collector::new();
        collector.unmapped(5, IovaRange::inclusive(0x5000, 0x5fff).unwrap());
        collector.unmapped(6, IovaRange::inclusive(0x7000, 0x7fff).unwrap());
        for iova in [0x5010, 0x6000, 0x7000] {
            collector.fault(&fault(iova, FaultReason::NotMapped));
        }
        let kinds: Vec<_> =
            findings(&collector).iter().map(|finding| matches!(finding, Finding::UseAfterUnmap { .. })).collect();
        assert_eq!(kinds, [true, false, false], "another address space's unmap does not count");
    }

    #[test]
    fn a_device_that_runs_wild_is_kept_within_bounds() {
        let collector = Collector::new();
        for page in 0..5000 {
            collector.fault(&fault(page << 12, FaultReason::NotMapped));
        }
        let findings = findings(&collector);
        assert_eq!(findings.len(), MOST_FAULTS + 1);
        assert_eq!(findings.last(), Some(&Finding::More { what: "DMA faults", count: 5000 - MOST_FAULTS as u64 }));
    }

    #[test]
    fn what_a_killed_program_left_is_not_held_against_it() {
        let collector = Collector::new();
        let id = ioasid::ObjectId(std::num::NonZeroU32::MIN);
        collector.left_behind(&Leftover::Ioas { id, areas: 1, bytes: 4096 });
        assert_eq!(findings(&collector).len(), 1);
        assert!(collector.report(Vec::new(), Ending::Signal(9), Vec::new()).findings.is_empty());
    }

    #[test]
    fn the_json_names_each_kind() {
        let collector = Collector::new();
        collector.fault(&fault(0x5000, FaultReason::NotPermitted));
        let report = collector.report(vec!["true".into()], Ending::Status(0), Vec::new());
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["ending"]["status"], 0);
        assert_eq!(json["findings"][0]["kind"], "dma-fault");
        assert_eq!(json["findings"][0]["reason"], "not-permitted");
        assert_eq!(json["findings"][0]["iova"], "0x5000");
    }
}
