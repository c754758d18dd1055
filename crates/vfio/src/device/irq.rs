//! Interrupts as VFIO offers them: what there is, and SET_IRQS.
//!
//! SET_IRQS is three things in one, told apart by action and data:
//!
//! | index | TRIGGER, eventfds | TRIGGER, none or bools | TRIGGER, none, 0 of them | MASK, UNMASK |
//! | --- | --- | --- | --- | --- |
//! | INTx | enables; replaces | as if the device had | disables | none or bools; UNMASK, an eventfd |
//! | MSI, MSI-X | enables; replaces | as if the device had | disables | no |
//! | error, request | replaces | as if the device had | takes the eventfd away | no |
//!
//! Only one of INTx, MSI and MSI-X is enabled at a time. Errors are Linux's, in Linux's order, with one
//! difference: if a descriptor is bad, nothing changes, where Linux would have taken eventfds away.
//! An eventfd for UNMASK of INTx unmasks it at each signal, until none is given in its place.

use std::io;
use std::os::fd::OwnedFd;

use bitflags::bitflags;
use rustix::io::Errno;
use thiserror::Error;

use super::Session;
use super::watched::Key;
use crate::eventfd::EventFd;
use crate::lock;
use crate::pci::{Interrupts, IrqIndex};

bitflags! {
    /// What an interrupt index can do; the bits are VFIO's.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct IrqFlags: u32 {
        /// It signals eventfds.
        const EVENTFD = 1 << 0;
        /// It can be masked.
        const MASKABLE = 1 << 1;
        /// It masks itself when it fires.
        const AUTOMASKED = 1 << 2;
        /// The number of vectors in use is fixed when it is enabled.
        const NORESIZE = 1 << 3;
    }
}

bitflags! {
    /// The action of SET_IRQS; the bits are VFIO's. Anything but exactly one is refused, after the other checks.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct IrqActions: u32 {
        /// Masks.
        const MASK = 1 << 3;
        /// Unmasks.
        const UNMASK = 1 << 4;
        /// Sets eventfds, or signals them.
        const TRIGGER = 1 << 5;
    }
}

/// The answer to GET_IRQ_INFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IrqInfo {
    /// What it can do.
    pub flags: IrqFlags,
    /// Number of vectors; 0 for an index that the device does not have.
    pub count: u32,
}

/// A SET_IRQS request.
#[derive(Debug, Clone, Copy)]
pub struct IrqSet<'a> {
    /// Interrupt index.
    pub index: u32,
    /// First vector.
    pub start: u32,
    /// Number of vectors.
    pub count: u32,
    /// What to do.
    pub actions: IrqActions,
    /// With what.
    pub data: IrqData<'a>,
}

/// The data of a SET_IRQS request: nothing, or one for each vector.
#[derive(Debug, Clone, Copy)]
pub enum IrqData<'a> {
    /// The action applies to all.
    None,
    /// The action applies where this is not 0.
    Bools(&'a [u8]),
    /// Descriptors of the program; negative for none.
    Eventfds(&'a [i32]),
}

impl IrqData<'_> {
    fn len(&self) -> Option<usize> {
        match self {
            Self::None => None,
            Self::Bools(bools) => Some(bools.len()),
            Self::Eventfds(fds) => Some(fds.len()),
        }
    }

    /// Whether the action applies to the vector at this place. Not asked of eventfds.
    fn applies(&self, place: usize) -> bool {
        match self {
            Self::Bools(bools) => bools.get(place).is_some_and(|bool| *bool != 0),
            _ => true,
        }
    }
}

/// Why interrupts could not be set.
#[derive(Debug, Error)]
pub enum IrqError {
    /// No such index or vectors (EINVAL).
    #[error("interrupt index {index} has no {count} vectors from {start} on; GET_IRQ_INFO tells how many it has")]
    Range {
        /// The index.
        index: u32,
        /// The first vector.
        start: u32,
        /// The number of vectors.
        count: u32,
    },
    /// Not one datum for each vector (EINVAL).
    #[error("{count} vectors need as many data, and {data} came")]
    DataLength {
        /// The number of vectors.
        count: u32,
        /// The number of data.
        data: usize,
    },
    /// The index does not offer the action (ENOTTY).
    #[error("{0:?} interrupts do not offer this action with this data")]
    Unsupported(IrqIndex),
    /// The action is not possible in this state, or not on these vectors (EINVAL).
    #[error("{0:?} interrupts: {1}")]
    State(IrqIndex, &'static str),
    /// MSI or MSI-X was to be enabled with no vectors at all (ERANGE).
    #[error("{0:?} interrupts are enabled with one vector at least")]
    NoVectors(IrqIndex),
    /// A descriptor could not be had, or is no eventfd. The error's own errno is the answer.
    #[error("descriptor {fd} does not serve as an eventfd: {source}")]
    Descriptor {
        /// The program's descriptor.
        fd: i32,
        /// Why.
        source: io::Error,
    },
}

/// Gets the program's descriptor with this number.
pub type FetchFd<'a> = &'a mut dyn FnMut(i32) -> io::Result<OwnedFd>;

impl Session {
    /// What GET_IRQ_INFO tells of an interrupt index.
    ///
    /// # Errors
    /// [`IrqError::Range`] for an index that is none.
    pub fn irq_info(&self, index: u32) -> Result<IrqInfo, IrqError> {
        let known = IrqIndex::from_number(index).ok_or(IrqError::Range { index, start: 0, count: 0 })?;
        let flags = IrqFlags::EVENTFD
            | match known {
                IrqIndex::Intx => IrqFlags::MASKABLE | IrqFlags::AUTOMASKED,
                // Vectors are added as they are needed, as where Linux has dynamic MSI-X.
                IrqIndex::Msix => IrqFlags::empty(),
                _ => IrqFlags::NORESIZE,
            };
        Ok(IrqInfo { flags, count: self.interrupts().count(known).into() })
    }

    /// Checks the vectors of a SET_IRQS request, before as many data are fetched from the program.
    ///
    /// # Errors
    /// [`IrqError::Range`].
    pub fn check_irq_range(&self, index: u32, start: u32, count: u32) -> Result<IrqIndex, IrqError> {
        let error = IrqError::Range { index, start, count };
        let Some(index) = IrqIndex::from_number(index) else { return Err(error) };
        let have = u32::from(self.interrupts().count(index));
        match start.checked_add(count) {
            Some(end) if start < have && end <= have => Ok(index),
            _ => Err(error),
        }
    }

    /// Performs a SET_IRQS request. `fetch` is asked for the program's descriptors, only when they are needed.
    ///
    /// # Errors
    /// [`IrqError`]; nothing has changed then.
    pub fn set_irqs(&self, request: &IrqSet<'_>, fetch: FetchFd<'_>) -> Result<(), IrqError> {
        let index = self.check_irq_range(request.index, request.start, request.count)?;
        if let Some(data) = request.data.len()
            && data != request.count as usize
        {
            return Err(IrqError::DataLength { count: request.count, data });
        }
        let _gate = lock(&self.gate);
        match (index, request.actions) {
            (IrqIndex::Intx, IrqActions::MASK | IrqActions::UNMASK) => self.mask_intx(request, fetch),
            (IrqIndex::Intx, IrqActions::TRIGGER) => self.trigger_intx(request, fetch),
            (IrqIndex::Msi | IrqIndex::Msix, IrqActions::TRIGGER) => self.trigger_messages(index, request, fetch),
            (IrqIndex::Error | IrqIndex::Request, IrqActions::TRIGGER) => self.trigger_notice(index, request, fetch),
            _ => Err(IrqError::Unsupported(index)),
        }
    }

    fn mask_intx(&self, request: &IrqSet<'_>, fetch: FetchFd<'_>) -> Result<(), IrqError> {
        if !self.is_enabled(IrqIndex::Intx) || request.count != 1 {
            return Err(IrqError::State(IrqIndex::Intx, "the one vector is masked and unmasked while it is enabled"));
        }
        let unmask = request.actions == IrqActions::UNMASK;
        match request.data {
            IrqData::Eventfds([..0]) if unmask => {
                self.watched.remove(&Key::Unmask);
                Ok(())
            }
            IrqData::Eventfds([fd]) if unmask => self.unmask_by(*fd, fetch),
            IrqData::Eventfds(_) => Err(IrqError::Unsupported(IrqIndex::Intx)),
            data => {
                match (data.applies(0), unmask) {
                    (false, _) => {}
                    (true, false) => self.interrupts().mask_intx(),
                    (true, true) => self.interrupts().unmask_intx(),
                }
                Ok(())
            }
        }
    }

    /// Has INTx unmasked at each signal of the program's descriptor.
    fn unmask_by(&self, fd: i32, fetch: FetchFd<'_>) -> Result<(), IrqError> {
        let failed = |source| IrqError::Descriptor { fd, source };
        let eventfd = fetch(fd).and_then(EventFd::new).map_err(failed)?;
        if self.watched.has(&Key::Unmask) {
            return Err(IrqError::Descriptor { fd, source: Errno::BUSY.into() });
        }
        let interrupts = self.function().interrupts().clone();
        self.watched.add(Key::Unmask, eventfd, Box::new(move || interrupts.unmask_intx())).map_err(failed)
    }

    fn trigger_intx(&self, request: &IrqSet<'_>, fetch: FetchFd<'_>) -> Result<(), IrqError> {
        const INTX: IrqIndex = IrqIndex::Intx;
        let enabled = self.is_enabled(INTX);
        if enabled && request.count == 0 && matches!(request.data, IrqData::None) {
            self.watched.remove(&Key::Unmask);
            self.interrupts().disable(INTX);
            return Ok(());
        }
        if !(enabled || self.interrupts().enabled().is_none()) || request.count != 1 {
            return Err(IrqError::State(INTX, "there is one vector, and MSI and MSI-X must be disabled"));
        }
        match request.data {
            IrqData::Eventfds(fds) => {
                let eventfds = fetch_all(fds, fetch)?;
                if !enabled {
                    self.interrupts().enable(INTX, 1);
                }
                self.interrupts().assign(INTX, 0, eventfds);
                Ok(())
            }
            _ if !enabled => Err(IrqError::State(INTX, "not enabled: it needs an eventfd first")),
            data => {
                if data.applies(0) {
                    self.interrupts().loop_back(INTX, 0);
                }
                Ok(())
            }
        }
    }

    fn trigger_messages(&self, index: IrqIndex, request: &IrqSet<'_>, fetch: FetchFd<'_>) -> Result<(), IrqError> {
        let interrupts = self.interrupts();
        let enabled = self.is_enabled(index);
        // The range was checked, and no index has more than 2048 vectors.
        let (start, end) = (request.start as u16, (request.start + request.count) as u16);
        if enabled && request.count == 0 && matches!(request.data, IrqData::None) {
            interrupts.disable(index);
            return Ok(());
        }
        if !enabled && interrupts.enabled().is_some() {
            return Err(IrqError::State(index, "another kind is enabled, and must be disabled first"));
        }
        match request.data {
            IrqData::Eventfds(_) if !enabled && end == 0 => Err(IrqError::NoVectors(index)),
            IrqData::Eventfds(fds) => {
                let grows = (start..).zip(fds).any(|(vector, fd)| *fd >= 0 && vector >= interrupts.msi_in_use());
                if enabled && index == IrqIndex::Msi && grows {
                    return Err(IrqError::State(index, "the number of vectors is fixed when it is enabled"));
                }
                let eventfds = fetch_all(fds, fetch)?;
                if !enabled {
                    interrupts.enable(index, end);
                }
                interrupts.assign(index, start, eventfds);
                Ok(())
            }
            _ if !enabled => Err(IrqError::State(index, "not enabled: it needs eventfds first")),
            data => {
                for vector in (start..end).filter(|vector| data.applies(usize::from(vector - start))) {
                    interrupts.loop_back(index, vector);
                }
                Ok(())
            }
        }
    }

    /// The error and request indices: one eventfd each, with nothing to enable.
    fn trigger_notice(&self, index: IrqIndex, request: &IrqSet<'_>, fetch: FetchFd<'_>) -> Result<(), IrqError> {
        let interrupts = self.interrupts();
        match (request.data, request.count) {
            (IrqData::None, _) if !interrupts.has_eventfd(index, 0) => {
                Err(IrqError::State(index, "there is no eventfd to signal or take away"))
            }
            (IrqData::None, 0) => {
                interrupts.assign(index, 0, vec![None]);
                Ok(())
            }
            (_, 0) | (IrqData::Eventfds([..-1]), _) => {
                Err(IrqError::State(index, "there is one vector, and its eventfd is a descriptor or -1"))
            }
            (IrqData::Eventfds(fds), _) => {
                interrupts.assign(index, 0, fetch_all(fds, fetch)?);
                Ok(())
            }
            (data, _) => {
                if data.applies(0) {
                    interrupts.loop_back(index, 0);
                }
                Ok(())
            }
        }
    }

    fn interrupts(&self) -> &Interrupts {
        self.function().interrupts()
    }

    fn is_enabled(&self, index: IrqIndex) -> bool {
        self.interrupts().enabled() == Some(index)
    }
}

/// Fetches all descriptors, or none.
fn fetch_all(fds: &[i32], fetch: FetchFd<'_>) -> Result<Vec<Option<EventFd>>, IrqError> {
    let mut one = |fd: i32| match fd {
        ..0 => Ok(None),
        _ => fetch(fd).and_then(EventFd::new).map(Some).map_err(|source| IrqError::Descriptor { fd, source }),
    };
    fds.iter().map(|fd| one(*fd)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::header::{COMMAND, STATUS};
    use crate::pci::{msi, msix};
    use crate::testing::{Bench, eventfd, read_eventfd};

    const INTX: u32 = IrqIndex::Intx as u32;
    const MSI: u32 = IrqIndex::Msi as u32;
    const MSIX: u32 = IrqIndex::Msix as u32;
    const ERROR: u32 = IrqIndex::Error as u32;

    /// A program with eventfds as descriptors 0 to 7.
    struct Program {
        bench: Bench,
        eventfds: Vec<OwnedFd>,
    }

    impl Program {
        fn new() -> Self {
            let bench = Bench::new();
            bench.enable_bus_master();
            Self { bench, eventfds: (0..8).map(|_| eventfd().1).collect() }
        }

        fn set(
            &self,
            index: u32,
            start: u32,
            count: u32,
            actions: IrqActions,
            data: IrqData<'_>,
        ) -> Result<(), IrqError> {
            let mut fetch = |fd: i32| match self.eventfds.get(fd as usize) {
                Some(fd) => fd.try_clone(),
                None if fd == 100 => Ok(std::fs::File::open("/dev/null")?.into()),
                None => Err(io::Error::from_raw_os_error(9)),
            };
            self.bench.session().set_irqs(&IrqSet { index, start, count, actions, data }, &mut fetch)
        }

        fn trigger(&self, index: u32, start: u32, count: u32, data: IrqData<'_>) -> Result<(), IrqError> {
            self.set(index, start, count, IrqActions::TRIGGER, data)
        }

        /// Uses the eventfds with these numbers from vector 0 on.
        fn enable(&self, index: u32, fds: &[i32]) {
            self.trigger(index, 0, fds.len() as u32, IrqData::Eventfds(fds)).unwrap();
        }

        /// What was signalled since the last time.
        fn read(&self, fd: usize) -> u64 {
            read_eventfd(&self.eventfds[fd])
        }
    }

    #[test]
    fn an_untouched_table_lets_interrupts_through() {
        let program = Program::new();
        program.enable(MSIX, &[0, 1]);
        program.bench.interrupts().raise(1);
        assert_eq!((program.read(0), program.read(1)), (0, 1));
        assert_eq!(program.bench.interrupts().sent(IrqIndex::Msix, 1), 1);
    }

    #[test]
    fn the_enable_bit_follows_set_irqs() {
        let program = Program::new();
        assert_eq!(program.bench.config(msix::CONTROL, 2), 7);
        program.enable(MSIX, &[0]);
        assert_eq!(program.bench.config(msix::CONTROL, 2), msix::ENABLE | 7);
        program.trigger(MSIX, 0, 0, IrqData::None).unwrap();
        assert_eq!(program.bench.config(msix::CONTROL, 2), 7);
    }

    #[test]
    fn a_vector_without_eventfd_stays_pending_until_it_gets_one() {
        let program = Program::new();
        program.enable(MSIX, &[0, -1]);
        program.bench.interrupts().raise(1);
        program.trigger(MSIX, 1, 1, IrqData::Eventfds(&[1])).unwrap();
        assert_eq!(program.read(1), 1);
    }

    #[test]
    fn what_is_pending_is_forgotten_when_msix_is_disabled() {
        let program = Program::new();
        program.enable(MSIX, &[0, -1]);
        program.bench.interrupts().raise(1);
        program.trigger(MSIX, 0, 0, IrqData::None).unwrap();
        program.enable(MSIX, &[0, 1]);
        assert_eq!(program.read(1), 0);
    }

    #[test]
    fn a_function_that_is_not_bus_master_sends_no_message() {
        let program = Program::new();
        program.enable(MSIX, &[0]);
        program.bench.write_config(COMMAND, &[2, 0]);
        program.bench.interrupts().raise(0);
        assert_eq!(program.read(0), 0);
        program.bench.write_config(COMMAND, &[6, 0]);
        assert_eq!(program.read(0), 1);
    }

    #[test]
    fn loop_back_signals_the_vectors_asked_for() {
        let program = Program::new();
        program.enable(MSIX, &[0, 1, 2]);
        program.trigger(MSIX, 0, 3, IrqData::Bools(&[1, 0, 1])).unwrap();
        program.trigger(MSIX, 2, 1, IrqData::None).unwrap();
        assert_eq!([program.read(0), program.read(1), program.read(2)], [1, 0, 2]);
    }

    #[test]
    fn one_bad_descriptor_among_many_changes_nothing() {
        let program = Program::new();
        program.enable(MSIX, &[0, 1]);
        for bad in [55, 100] {
            let error = program.trigger(MSIX, 0, 3, IrqData::Eventfds(&[2, -1, bad])).unwrap_err();
            assert!(matches!(error, IrqError::Descriptor { fd, .. } if fd == bad));
        }
        program.trigger(MSIX, 0, 3, IrqData::None).unwrap();
        assert_eq!([program.read(0), program.read(1), program.read(2)], [1, 1, 0]);
    }

    #[test]
    fn a_refused_enable_leaves_it_disabled() {
        let program = Program::new();
        program.trigger(MSIX, 0, 1, IrqData::Eventfds(&[55])).unwrap_err();
        assert_eq!(program.bench.interrupts().enabled(), None);
    }

    #[test]
    fn only_one_kind_is_enabled_at_a_time() {
        let program = Program::new();
        program.enable(MSI, &[0]);
        for index in [INTX, MSIX] {
            let refused = program.trigger(index, 0, 1, IrqData::Eventfds(&[1]));
            assert!(matches!(refused, Err(IrqError::State(..))));
        }
    }

    #[test]
    fn msi_vectors_wrap_and_their_number_is_fixed() {
        let program = Program::new();
        program.enable(MSI, &[0, 1]);
        assert_eq!(program.bench.config(msi::CONTROL, 2), 0x80 | 1 << 4 | 2 << 1 | 1);
        program.bench.interrupts().raise(3);
        assert_eq!(program.read(1), 1);
        assert!(matches!(program.trigger(MSI, 2, 1, IrqData::Eventfds(&[2])), Err(IrqError::State(..))));
    }

    #[test]
    fn intx_fires_once_and_again_when_unmasked_while_asserted() {
        let program = Program::new();
        program.enable(INTX, &[0]);
        program.bench.interrupts().set_intx(true);
        program.bench.interrupts().set_intx(true);
        assert_eq!(program.read(0), 1);
        program.set(INTX, 0, 1, IrqActions::UNMASK, IrqData::None).unwrap();
        assert_eq!(program.read(0), 1);
        program.bench.interrupts().set_intx(false);
        program.set(INTX, 0, 1, IrqActions::UNMASK, IrqData::Bools(&[1])).unwrap();
        program.bench.interrupts().set_intx(true);
        assert_eq!(program.read(0), 1);
    }

    #[test]
    fn intx_that_was_asserted_before_fires_when_enabled() {
        let program = Program::new();
        program.bench.interrupts().set_intx(true);
        assert_eq!(program.bench.config(STATUS, 2) & 8, 8);
        program.enable(INTX, &[0]);
        assert_eq!(program.read(0), 1);
    }

    #[test]
    fn interrupt_disable_masks_intx_and_clearing_it_unmasks() {
        let program = Program::new();
        program.enable(INTX, &[0]);
        program.bench.write_config(COMMAND, &[6, 4]);
        program.bench.interrupts().set_intx(true);
        program.trigger(INTX, 0, 1, IrqData::None).unwrap();
        assert_eq!(program.read(0), 0);
        program.bench.write_config(COMMAND, &[6, 0]);
        assert_eq!(program.read(0), 1);
    }

    #[test]
    fn a_masked_intx_stays_masked_over_a_reset() {
        let program = Program::new();
        program.enable(INTX, &[0]);
        program.set(INTX, 0, 1, IrqActions::MASK, IrqData::None).unwrap();
        program.bench.session().reset();
        program.bench.interrupts().set_intx(true);
        assert_eq!(program.read(0), 0);
    }

    #[test]
    fn actions_that_an_index_does_not_offer_are_told_from_bad_vectors() {
        let program = Program::new();
        let both = IrqActions::MASK | IrqActions::TRIGGER;
        for (index, actions) in [(MSIX, IrqActions::MASK), (ERROR, IrqActions::UNMASK), (INTX, both)] {
            let refused = program.set(index, 0, 1, actions, IrqData::None);
            assert!(matches!(refused, Err(IrqError::Unsupported(_))));
        }
        for (index, start, count) in [(5, 0, 1), (MSIX, 8, 0), (MSIX, 7, 2), (MSIX, 1, u32::MAX), (ERROR, 1, 0)] {
            let refused = program.set(index, start, count, IrqActions::MASK, IrqData::None);
            assert!(matches!(refused, Err(IrqError::Range { .. })));
        }
    }

    #[test]
    fn each_vector_needs_one_datum() {
        let refused = Program::new().trigger(MSIX, 0, 2, IrqData::Eventfds(&[0]));
        assert!(matches!(refused, Err(IrqError::DataLength { count: 2, data: 1 })));
    }

    #[test]
    fn msix_is_enabled_with_one_vector_at_least() {
        let refused = Program::new().trigger(MSIX, 0, 0, IrqData::Eventfds(&[]));
        assert!(matches!(refused, Err(IrqError::NoVectors(_))));
    }

    #[test]
    fn nothing_is_looped_back_before_it_is_enabled() {
        let program = Program::new();
        for index in [INTX, MSI, MSIX, ERROR] {
            let refused = program.trigger(index, 0, 1, IrqData::None);
            assert!(matches!(refused, Err(IrqError::State(..))));
        }
    }

    #[test]
    fn the_error_eventfd_is_signalled_and_taken_away() {
        let program = Program::new();
        program.enable(ERROR, &[4]);
        program.trigger(ERROR, 0, 1, IrqData::Bools(&[1])).unwrap();
        assert_eq!(program.read(4), 1);
        program.trigger(ERROR, 0, 1, IrqData::Eventfds(&[-1])).unwrap();
        assert!(program.trigger(ERROR, 0, 0, IrqData::None).is_err());
    }

    #[test]
    fn interrupt_information_is_as_in_linux() {
        let program = Program::new();
        let info = |index| program.bench.session().irq_info(index).unwrap();
        assert_eq!(info(INTX).flags.bits(), 0b0111);
        assert_eq!((info(MSI).flags.bits(), info(MSI).count), (0b1001, 4));
        assert_eq!((info(MSIX).flags.bits(), info(MSIX).count), (0b0001, 8));
        assert_eq!((info(ERROR).flags.bits(), info(ERROR).count), (0b1001, 1));
        assert!(program.bench.session().irq_info(5).is_err());
    }
}
