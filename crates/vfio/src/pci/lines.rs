//! Interrupt lines: an eventfd each, and the account of what was sent and never read.
//!
//! When a line loses its eventfd, what the program had left unread in it is added to the account; so neither
//! replacing an eventfd nor closing the device hides that interrupts went unnoticed. The account has one entry for a
//! line at most, however often the program replaces eventfds.

use std::collections::BTreeMap;

use crate::eventfd::EventFd;

/// VFIO's interrupt indices of a PCI device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum IrqIndex {
    /// The level-triggered line INTA to INTD.
    Intx = 0,
    /// MSI.
    Msi = 1,
    /// MSI-X.
    Msix = 2,
    /// The device had an uncorrectable error.
    Error = 3,
    /// The host asks the program to let go of the device.
    Request = 4,
}

impl IrqIndex {
    /// All, in their order.
    pub const ALL: [Self; 5] = [Self::Intx, Self::Msi, Self::Msix, Self::Error, Self::Request];

    /// The index with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }
}

/// Signals that a program never read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unconsumed {
    /// Which kind of interrupt.
    pub index: IrqIndex,
    /// The vector of that kind.
    pub vector: u16,
    /// How many signals went to the eventfds in question.
    pub sent: u64,
    /// How many of them were unread when the reading was taken: now, or when VFIO let go of the eventfd. An eventfd
    /// that serves several vectors, or that the program itself writes, is counted in full for each, up to `sent`.
    pub unread: u64,
}

/// One vector.
#[derive(Debug, Default)]
pub(crate) struct Line {
    eventfd: Option<EventFd>,
    /// Through the present eventfd.
    sent: u64,
    /// Through all of them.
    sent_in_total: u64,
}

impl Line {
    /// Signals the eventfd, if there is one.
    pub(crate) fn fire(&mut self) {
        if let Some(eventfd) = &self.eventfd {
            eventfd.signal();
            self.sent += 1;
            self.sent_in_total += 1;
        }
    }

    pub(crate) fn has_eventfd(&self) -> bool {
        self.eventfd.is_some()
    }

    pub(crate) fn sent_in_total(&self) -> u64 {
        self.sent_in_total
    }

    /// Signals sent through the present eventfd, and how many of them are unread, if any are.
    fn unread(&self) -> Option<(u64, u64)> {
        let unread = self.eventfd.as_ref()?.unread().min(self.sent);
        (unread > 0).then_some((self.sent, unread))
    }
}

/// The lines of one function, and the account.
#[derive(Debug)]
pub(crate) struct Lines {
    lines: [Vec<Line>; 5],
    released: BTreeMap<(IrqIndex, u16), (u64, u64)>,
}

impl Lines {
    /// Lines without eventfds; `counts` gives the number for each index.
    pub(crate) fn new(counts: [u16; 5]) -> Self {
        let lines = counts.map(|count| std::iter::repeat_with(Line::default).take(count.into()).collect());
        Self { lines, released: BTreeMap::new() }
    }

    /// The lines of an index.
    pub(crate) fn of(&mut self, index: IrqIndex) -> &mut Vec<Line> {
        &mut self.lines[index as usize]
    }

    /// Gives a line another eventfd, or none.
    pub(crate) fn assign(&mut self, index: IrqIndex, vector: u16, eventfd: Option<EventFd>) {
        let Some(line) = self.lines[index as usize].get_mut(usize::from(vector)) else { return };
        if let Some((sent, unread)) = line.unread() {
            let account = self.released.entry((index, vector)).or_default();
            account.0 += sent;
            account.1 += unread;
        }
        line.eventfd = eventfd;
        line.sent = 0;
    }

    /// Takes every eventfd of an index away.
    pub(crate) fn release(&mut self, index: IrqIndex) {
        for vector in 0..self.lines[index as usize].len() {
            self.assign(index, vector as u16, None);
        }
    }

    /// What is unread now, in the eventfds that are still assigned.
    pub(crate) fn unread_now(&self) -> Vec<Unconsumed> {
        IrqIndex::ALL
            .into_iter()
            .flat_map(|index| {
                self.lines[index as usize].iter().enumerate().map(move |(vector, line)| (index, vector, line))
            })
            .filter_map(|(index, vector, line)| {
                let (sent, unread) = line.unread()?;
                Some(Unconsumed { index, vector: vector as u16, sent, unread })
            })
            .collect()
    }

    /// Takes the account of eventfds that are no longer assigned.
    pub(crate) fn take_released(&mut self) -> Vec<Unconsumed> {
        std::mem::take(&mut self.released)
            .into_iter()
            .map(|((index, vector), (sent, unread))| Unconsumed { index, vector, sent, unread })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{eventfd, read_eventfd};

    fn lines() -> Lines {
        Lines::new([1, 0, 2, 1, 1])
    }

    fn unconsumed(sent: u64, unread: u64) -> Vec<Unconsumed> {
        vec![Unconsumed { index: IrqIndex::Msix, vector: 1, sent, unread }]
    }

    #[test]
    fn what_the_program_has_read_is_not_unconsumed() {
        let mut lines = lines();
        let (ours, theirs) = eventfd();
        lines.assign(IrqIndex::Msix, 1, Some(ours));
        lines.of(IrqIndex::Msix)[1].fire();
        read_eventfd(&theirs);
        lines.of(IrqIndex::Msix)[1].fire();
        assert_eq!(lines.unread_now(), unconsumed(2, 1));
    }

    #[test]
    fn replacing_an_eventfd_does_not_lose_the_finding() {
        let mut lines = lines();
        for _ in 0..2 {
            lines.assign(IrqIndex::Msix, 1, Some(eventfd().0));
            lines.of(IrqIndex::Msix)[1].fire();
        }
        lines.release(IrqIndex::Msix);
        assert_eq!(lines.unread_now(), []);
        assert_eq!(lines.take_released(), unconsumed(2, 2));
        assert_eq!(lines.take_released(), []);
    }

    #[test]
    fn what_the_program_wrote_itself_is_not_ours() {
        let mut lines = lines();
        let (ours, theirs) = eventfd();
        rustix::io::write(&theirs, &9u64.to_ne_bytes()).unwrap();
        lines.assign(IrqIndex::Msix, 1, Some(ours));
        assert_eq!(lines.unread_now(), []);
    }
}
