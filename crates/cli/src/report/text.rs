//! The report for people: one aligned line for each finding.

use std::fmt::Write as _;
use std::io::IsTerminal;

use super::{CommandOf, Ending, Finding, Report};

/// The most findings that are shown.
const MOST_ROWS: usize = 20;

/// Whether to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    colour: bool,
}

impl Style {
    /// Colour on a terminal, unless `NO_COLOR` is set.
    pub fn of(stream: &impl IsTerminal) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { colour: wanted && stream.is_terminal() }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub fn red(self, text: &str) -> String {
        self.paint("31;1", text)
    }

    pub fn green(self, text: &str) -> String {
        self.paint("32;1", text)
    }

    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }
}

impl Report {
    /// The report as text, empty if there is nothing to say.
    pub fn text(&self, style: Style) -> String {
        if self.findings.is_empty() {
            return String::new();
        }
        let rows: Vec<[String; 4]> = self.findings.iter().map(row).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths = [width(0), width(1), width(2)];
        let count = self.findings.len();
        let title = format!("ioasid: {count} finding{}", if count == 1 { "" } else { "s" });
        let mut text = style.bold(&title);
        if let Ending::Signal(signal) = self.ending {
            let _ = write!(text, " (the program ended by signal {signal}; what it left behind is not counted)");
        }
        text.push('\n');
        for [kind, device, place, detail] in rows.into_iter().take(MOST_ROWS) {
            let kind = style.red(&format!("{kind:<0$}", widths[0]));
            let line = format!("  {kind}  {device:<0$}  {place:<1$}  {detail}", widths[1], widths[2]);
            text.push_str(line.trim_end());
            text.push('\n');
        }
        if count > MOST_ROWS {
            let _ = writeln!(text, "  … and {} more: --report FILE has them", count - MOST_ROWS);
        }
        text
    }
}

/// Kind, device, place, detail.
fn row(finding: &Finding) -> [String; 4] {
    let device = |device: &str, pasid: Option<u32>| match pasid {
        Some(pasid) => format!("{device} PASID {pasid}"),
        None => device.to_owned(),
    };
    let by = |command: Option<CommandOf>| match command {
        Some(CommandOf { queue, identifier }) => format!(", by command {identifier} of queue {queue}"),
        None => String::new(),
    };
    let times = |count: u64| if count == 1 { "once".to_owned() } else { format!("{count} times") };
    match finding {
        Finding::DmaFault { device: rid, pasid, iova, access, reason, count, first, command } => [
            "DMA fault".into(),
            device(rid, *pasid),
            format!("{access} at IOVA {:#x}", iova.0),
            format!("{}: {}, first after {:.3} s{}", explain(reason), times(*count), first.0, by(*command)),
        ],
        Finding::UseAfterUnmap { device: rid, pasid, iova, access, count, first, unmapped, command } => [
            "use after unmap".into(),
            device(rid, *pasid),
            format!("{access} at IOVA {:#x}", iova.0),
            format!(
                "{:#x}..={:#x} was unmapped after {:.3} s: {}, first after {:.3} s{}",
                unmapped.start.0,
                unmapped.last.0,
                unmapped.at.0,
                times(*count),
                first.0,
                by(*command)
            ),
        ],
        Finding::MemoryLost { process, start, last, iova, at } => [
            "memory lost".into(),
            String::new(),
            format!("IOVA {:#x}", iova.0),
            format!(
                "{} bytes at {:#x} of process {process} unmapped before, after {:.3} s",
                last.0 - start.0 + 1,
                start.0,
                at.0
            ),
        ],
        Finding::ObjectLeaked { object, id, mappings, bytes } => [
            "object leaked".into(),
            String::new(),
            format!("{} {id}", object.to_uppercase()),
            format!(
                "never destroyed; {mappings} mapping{} in it, {bytes} bytes",
                if *mappings == 1 { "" } else { "s" }
            ),
        ],
        Finding::DeviceLeftAttached { device: rid, pasid, ioas, hwpt } => [
            "left attached".into(),
            device(rid, *pasid),
            ioas.map_or(format!("page table {hwpt}"), |ioas| format!("IOAS {ioas}")),
            "closed without VFIO_DEVICE_DETACH_IOMMUFD_PT".into(),
        ],
        Finding::InterruptUnread { device, interrupt, vector, sent, unread } => [
            "interrupt unread".into(),
            device.clone(),
            format!("{} vector {vector}", interrupt.to_uppercase()),
            format!("{unread} of {sent} signalled and never read from the eventfd"),
        ],
        Finding::More { what, count } => ["…".into(), String::new(), String::new(), format!("and {count} more {what}")],
    }
}

fn explain(reason: &str) -> &str {
    match reason {
        "not-bus-master" => "bus mastering is off in the device's command register",
        "not-attached" => "the device is attached to no address space",
        "not-mapped" => "nothing is mapped there",
        "not-present" => "what is mapped there is not present",
        "guest-table" => "the guest's page table leads outside of the guest's memory",
        "not-permitted" => "the mapping does not allow it",
        "memory-gone" => "the memory behind the mapping is gone",
        other => other,
    }
}
