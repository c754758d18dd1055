//! The one way in which tests build what they need.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::event::EventfdFlags;

use crate::device::region::{self, file_offset};
use crate::lock;
use crate::pci::IrqIndex;
use crate::{
    BarKind, BarSpec, BusMaster, EventFd, Function, Interrupts, Model, MsixSpec, PcieKind, Session, Spec, VfioDevice,
};

/// A function with a 64-bit BAR 0 of 16 KiB that holds MSI-X at 0x2000 and 0x3000, and a 32-bit BAR 4 of 256 bytes.
pub(crate) fn spec() -> Spec {
    Spec {
        subsystem_vendor: 0x8086,
        subsystem_device: 0x7270,
        revision: 4,
        bars: vec![
            BarSpec { index: 0, size: 0x4000, kind: BarKind::Memory64, prefetchable: true },
            BarSpec { index: 4, size: 0x100, kind: BarKind::Memory32, prefetchable: false },
        ],
        msix: Some(MsixSpec { vectors: 8, table_bar: 0, table_offset: 0x2000, pba_bar: 0, pba_offset: 0x3000 }),
        msi_vectors: 4,
        interrupt_pin: 1,
        pcie: PcieKind::Endpoint { speed: 3, width: 8 },
        ..Spec::new(0x8086, 0x2021, 0x08_80_00)
    }
}

/// What a function did to its surroundings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    BusMaster(bool),
    Reset,
    Read(u8, u64, usize),
    Write(u8, u64, Vec<u8>),
}

/// A model and an IOMMU that only remember what they were asked. Registers read as their offset's low byte.
#[derive(Default)]
pub(crate) struct Recorder(Mutex<Vec<Event>>);

impl Recorder {
    fn note(&self, event: Event) {
        lock(&self.0).push(event);
    }

    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut lock(&self.0))
    }
}

impl BusMaster for Recorder {
    fn set_bus_master(&self, enabled: bool) {
        self.note(Event::BusMaster(enabled));
    }
}

impl Model for Recorder {
    fn read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        self.note(Event::Read(bar, offset, data.len()));
        for (at, byte) in (offset..).zip(data) {
            *byte = at as u8;
        }
    }

    fn write(&self, bar: u8, offset: u64, data: &[u8]) {
        self.note(Event::Write(bar, offset, data.to_vec()));
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) -> bool {
        data.fill(0xd5);
        offset == 0x180
    }

    fn reset(&self) {
        self.note(Event::Reset);
    }
}

/// A function, and what its surroundings saw.
pub(crate) fn function(spec: Spec) -> (Arc<Function>, Arc<Recorder>) {
    let recorder = Arc::new(Recorder::default());
    let interrupts = Interrupts::new(&spec);
    let function = Function::new(spec, 0xe000_0000, interrupts, recorder.clone(), recorder.clone()).unwrap();
    (Arc::new(function), recorder)
}

/// An opened device.
pub(crate) struct Bench {
    session: Session,
    pub(crate) recorder: Arc<Recorder>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::of(spec())
    }

    pub(crate) fn of(spec: Spec) -> Self {
        let (function, recorder) = function(spec);
        let session = VfioDevice::new(function).open().unwrap();
        recorder.take();
        Self { session, recorder }
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    pub(crate) fn device(&self) -> &Arc<VfioDevice> {
        self.session.device()
    }

    pub(crate) fn interrupts(&self) -> &Arc<Interrupts> {
        self.device().function().interrupts()
    }

    pub(crate) fn take_events(&self) -> Vec<Event> {
        self.recorder.take()
    }

    /// Reads a configuration register as the program does.
    pub(crate) fn config(&self, at: u16, len: usize) -> u32 {
        let mut bytes = [0; 4];
        self.session.read(file_offset(region::CONFIG) + u64::from(at), &mut bytes[..len]).unwrap();
        u32::from_le_bytes(bytes)
    }

    /// Writes a configuration register as the program does.
    pub(crate) fn write_config(&self, at: u16, data: &[u8]) {
        self.session.write(file_offset(region::CONFIG) + u64::from(at), data).unwrap();
    }

    /// Makes the function bus master.
    pub(crate) fn enable_bus_master(&self) {
        self.write_config(crate::pci::header::COMMAND, &6u16.to_le_bytes());
        self.take_events();
    }

    /// Enables an index if it is not, and gives a vector an eventfd.
    pub(crate) fn give_eventfd(&self, index: IrqIndex, vector: u16, eventfd: EventFd) {
        if self.interrupts().enabled() != Some(index) {
            self.interrupts().enable(index, self.interrupts().count(index));
        }
        self.interrupts().assign(index, vector, vec![Some(eventfd)]);
    }

    /// Closes the device.
    pub(crate) fn close(self) -> Arc<VfioDevice> {
        Arc::clone(self.device())
    }
}

/// An eventfd, as VFIO holds it and as the program does.
pub(crate) fn eventfd() -> (EventFd, OwnedFd) {
    let theirs = rustix::event::eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
    (EventFd::new(theirs.try_clone().unwrap()).unwrap(), theirs)
}

/// Consumes the signals of an eventfd; 0 if there are none.
pub(crate) fn read_eventfd(fd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(fd, &mut count) {
        Ok(_) => u64::from_ne_bytes(count),
        Err(_) => 0,
    }
}
