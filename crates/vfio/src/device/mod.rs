//! The VFIO device: a PCI function as Linux's vfio-pci lets a program use it.
//!
//! A [`VfioDevice`] is there as long as its function. Opening it, which a consumer does when it has authorised a
//! program (BIND_IOMMUFD, or a descriptor out of a group), gives a [`Session`], and everything the program may do is a
//! method of that. Dropping the session closes the device: DMA stops, interrupts lose their eventfds, and the function
//! is reset. So a program that was killed leaves nothing behind.
//!
//! ```text
//!   closed ── open ──► Session: BARs answer, not bus master, no interrupts
//!      ▲                  │ read, write, mapped_read, mapped_write   (region)
//!      │                  │ set_irqs, irq_info                       (irq)
//!      └───── drop ───────┘ reset, info
//! ```
//!
//! What differs from bare hardware, as in Linux: registers that would disturb others are read-only
//! (`permissions`), MSI-X and MSI are enabled by SET_IRQS only, and a reset, or a wake from D3hot that amounts to one,
//! keeps the configuration.
//!
//! Lock protocol: `gate` orders SET_IRQS, configuration writes and resets of one session. Reads, and all BAR accesses,
//! take no lock of the session.

pub mod irq;
mod permissions;
pub mod region;
mod watched;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bitflags::bitflags;
use thiserror::Error;

use crate::lock;
use crate::pci::pm::PowerState;
use crate::pci::{Function, IrqIndex, SavedState, pm};
use crate::spec::BarKind;
use watched::Watched;

bitflags! {
    /// What GET_INFO says of the device; the bits are VFIO's.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct DeviceFlags: u32 {
        /// RESET works.
        const RESET = 1 << 0;
        /// It is a PCI device: regions and interrupts have PCI's fixed indices.
        const PCI = 1 << 1;
    }
}

/// The answer to GET_INFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceInfo {
    /// What kind of device it is.
    pub flags: DeviceFlags,
    /// Number of region indices.
    pub regions: u32,
    /// Number of interrupt indices.
    pub irqs: u32,
}

/// Why a device could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// It has been opened already (EINVAL of BIND_IOMMUFD in Linux).
    #[error("the device is in use: it is opened once at a time, and must be closed first")]
    InUse,
    /// There is no memory for the pages of its BARs that are memory.
    #[error("there is no memory for the device's BARs: {0}")]
    Memory(#[from] std::io::Error),
}

/// A PCI function that programs can open, one at a time.
#[derive(Debug)]
pub struct VfioDevice {
    function: Arc<Function>,
    /// Whether programs can map its BARs that are memory.
    mappable: bool,
    is_open: AtomicBool,
}

impl VfioDevice {
    /// Offers a function to programs.
    pub fn new(function: Arc<Function>) -> Arc<Self> {
        Arc::new(Self { function, mappable: true, is_open: AtomicBool::new(false) })
    }

    /// Offers a function to programs, which can read its BARs and write them, but not map them: for those that would
    /// have others than themselves make the accesses, as a VMM its guest by KVM.
    pub fn not_mappable(function: Arc<Function>) -> Arc<Self> {
        Arc::new(Self { function, mappable: false, is_open: AtomicBool::new(false) })
    }

    /// Whether programs can map a BAR.
    pub fn can_map(&self, bar: u8) -> bool {
        self.mappable && self.function.spec().bar(bar).is_some_and(|bar| bar.kind != BarKind::Ports)
    }

    /// The function.
    pub fn function(&self) -> &Arc<Function> {
        &self.function
    }

    /// Opens the device: resets the function, puts its BARs in place and lets them answer. It is not bus master.
    ///
    /// # Errors
    /// [`OpenError`]; it is as before then.
    pub fn open(self: &Arc<Self>) -> Result<Session, OpenError> {
        if self.is_open.swap(true, Ordering::AcqRel) {
            return Err(OpenError::InUse);
        }
        if let Err(error) = self.function.power_on() {
            self.is_open.store(false, Ordering::Release);
            return Err(error.into());
        }
        Ok(Session { device: Arc::clone(self), gate: Mutex::default(), watched: Watched::default() })
    }

    /// Asks the program that has it open to let go of it, by the eventfd of the request index, if there is one.
    pub fn ask_back(&self) {
        self.function.interrupts().ask_back();
    }
}

/// One program's use of a device. Dropping it closes the device, and returns when no DMA is in flight.
pub struct Session {
    device: Arc<VfioDevice>,
    gate: Mutex<Gate>,
    watched: Watched,
}

/// What is changed only by one request at a time.
#[derive(Default)]
struct Gate {
    /// What the function had when it went to D3hot, if it forgets it there.
    asleep: Option<SavedState>,
}

impl Session {
    /// The device.
    pub fn device(&self) -> &Arc<VfioDevice> {
        &self.device
    }

    /// What GET_INFO tells.
    pub fn info(&self) -> DeviceInfo {
        DeviceInfo {
            flags: DeviceFlags::RESET | DeviceFlags::PCI,
            regions: region::COUNT,
            irqs: IrqIndex::ALL.len() as u32,
        }
    }

    /// Resets the function and keeps its configuration and eventfds. When it returns, no DMA from before is in flight.
    pub fn reset(&self) {
        let mut gate = lock(&self.gate);
        if self.function().power_state() == PowerState::D3Hot {
            self.write_power(&mut gate, pm::CONTROL, &[0]);
        }
        self.function().reset_keeping_config();
    }

    fn function(&self) -> &Function {
        &self.device.function
    }

    /// Writes to the power management register, keeping the configuration over a sleep.
    fn write_power(&self, gate: &mut Gate, at: u16, data: &[u8]) {
        let function = self.function();
        let forgets = !function.spec().no_soft_reset;
        let before = function.power_state();
        let awake = (forgets && before == PowerState::D0).then(|| function.save());
        function.config_write_piece(at, data, u32::MAX);
        match (before, function.power_state()) {
            (PowerState::D0, PowerState::D3Hot) => gate.asleep = awake,
            (PowerState::D3Hot, PowerState::D0) => {
                if let Some(saved) = gate.asleep.take() {
                    function.restore(&saved);
                }
            }
            _ => {}
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Nothing that a program signals reaches the next one's device.
        self.watched.close();
        let function = self.function();
        function.reset();
        for index in IrqIndex::ALL {
            function.interrupts().disable(index);
        }
        self.device.is_open.store(false, Ordering::Release);
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({:?})", self.function())
    }
}

#[cfg(test)]
mod tests {
    use super::irq::IrqActions;
    use super::*;
    use crate::pci::express::DEVICE_CONTROL;
    use crate::pci::header::{COMMAND, Command};
    use crate::testing::{Bench, Event, eventfd, read_eventfd, spec};
    use irq::{IrqData, IrqSet};
    use proptest::prelude::*;
    use region::file_offset;

    const MASTER: [u8; 2] = (Command::MEMORY.bits() | Command::BUS_MASTER.bits()).to_le_bytes();

    #[test]
    fn a_device_is_opened_once_at_a_time() {
        let bench = Bench::new();
        assert!(matches!(bench.device().open(), Err(OpenError::InUse)));
        let device = bench.close();
        assert!(device.open().is_ok());
    }

    #[test]
    fn an_opened_device_answers_and_is_not_bus_master() {
        let bench = Bench::new();
        assert_eq!(bench.config(COMMAND, 2), u32::from(Command::MEMORY.bits()));
    }

    #[test]
    fn closing_stops_dma_and_takes_every_eventfd() {
        let bench = Bench::new();
        bench.write_config(COMMAND, &MASTER);
        bench.give_eventfd(IrqIndex::Msix, 0, eventfd().0);
        bench.take_events();
        let recorder = Arc::clone(&bench.recorder);
        let device = bench.close();
        assert_eq!(recorder.take(), [Event::Reset, Event::BusMaster(false)]);
        assert!(!device.function().bars_answer());
        assert!(!device.function().interrupts().has_eventfd(IrqIndex::Msix, 0));
    }

    #[test]
    fn closing_keeps_the_account_of_unread_interrupts() {
        let bench = Bench::new();
        bench.write_config(COMMAND, &MASTER);
        bench.give_eventfd(IrqIndex::Msix, 3, eventfd().0);
        bench.interrupts().raise(3);
        let device = bench.close();
        let account = device.function().interrupts().take_unconsumed();
        assert_eq!(account.len(), 1);
        assert_eq!((account[0].vector, account[0].sent, account[0].unread), (3, 1, 1));
    }

    #[test]
    fn a_reset_keeps_configuration_and_interrupts() {
        let bench = Bench::new();
        bench.write_config(COMMAND, &MASTER);
        let (ours, theirs) = eventfd();
        bench.give_eventfd(IrqIndex::Msix, 1, ours);
        bench.take_events();
        bench.session().reset();
        assert_eq!(bench.take_events(), [Event::Reset, Event::BusMaster(false), Event::BusMaster(true)]);
        assert_eq!(bench.config(COMMAND, 2), u32::from(u16::from_le_bytes(MASTER)));
        bench.interrupts().raise(1);
        assert_eq!(read_eventfd(&theirs), 1);
    }

    #[test]
    fn a_function_level_reset_keeps_configuration_as_the_hosts_does() {
        let bench = Bench::new();
        bench.write_config(COMMAND, &MASTER);
        bench.take_events();
        bench.write_config(DEVICE_CONTROL, &0x8000u16.to_le_bytes());
        assert!(bench.take_events().contains(&Event::Reset));
        assert_eq!(bench.config(COMMAND, 2), u32::from(u16::from_le_bytes(MASTER)));
    }

    #[test]
    fn a_function_that_forgets_in_d3_gets_its_configuration_back_in_d0() {
        let bench = Bench::of(crate::Spec { no_soft_reset: false, ..spec() });
        bench.write_config(COMMAND, &MASTER);
        bench.write_config(pm::CONTROL, &[3, 0]);
        bench.take_events();
        bench.write_config(pm::CONTROL, &[0, 0]);
        assert_eq!(bench.take_events(), [Event::Reset, Event::BusMaster(false), Event::BusMaster(true)]);
        assert_eq!(bench.config(COMMAND, 2), u32::from(u16::from_le_bytes(MASTER)));
    }

    #[test]
    fn a_reset_wakes_the_function() {
        let bench = Bench::new();
        bench.write_config(pm::CONTROL, &[3, 0]);
        assert!(!bench.device().function().bars_answer());
        bench.session().reset();
        assert!(bench.device().function().bars_answer());
    }

    proptest! {
        #[test]
        fn no_access_of_a_program_panics_or_changes_what_the_function_is(
            accesses in prop::collection::vec((0u32..11, 0u64..0x5000, prop::collection::vec(any::<u8>(), 0..200)), 1..40),
        ) {
            let bench = Bench::new();
            for (index, offset, mut data) in accesses {
                let at = file_offset(index) + offset;
                let _ = bench.session().write(at, &data);
                let _ = bench.session().mapped_write(at, &data);
                let _ = bench.session().read(at, &mut data);
                let _ = bench.session().mapped_read(at, &mut data);
                prop_assert!(bench.session().region_info(index).is_ok() == (index < region::VGA));
            }
            prop_assert_eq!(bench.config(0, 4), 0x2021_8086);
            prop_assert_eq!(bench.config(crate::pci::msix::AT, 4), 0x0007_9011);
        }

        #[test]
        fn no_set_irqs_request_panics(
            requests in prop::collection::vec(
                (0u32..7, 0u32..12, 0u32..12, any::<u32>(), 0u8..3, prop::collection::vec(-3i32..4, 12)), 1..40),
        ) {
            let bench = Bench::new();
            let fds: Vec<_> = (0..3).map(|_| eventfd().1).collect();
            for (index, start, count, actions, kind, numbers) in requests {
                let fds_given = &numbers[..count as usize];
                let bools: Vec<u8> = fds_given.iter().map(|number| *number as u8).collect();
                let data = match kind {
                    0 => IrqData::None,
                    1 => IrqData::Bools(&bools),
                    _ => IrqData::Eventfds(fds_given),
                };
                let actions = IrqActions::from_bits_truncate(actions);
                let mut fetch = |fd: i32| fds.get(fd as usize).ok_or(std::io::ErrorKind::NotFound)?.try_clone();
                let _ = bench.session().set_irqs(&IrqSet { index, start, count, actions, data }, &mut fetch);
                bench.interrupts().raise(start as u16);
                bench.interrupts().set_intx(count % 2 == 0);
            }
        }
    }
}
