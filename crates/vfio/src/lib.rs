//! PCI functions, and the VFIO device that hands one to a program.
//!
//! ```text
//!  serve: decodes requests, owns errno            devices: registers, engines
//!      │ typed calls                                  │ implements Model
//!  ┌───▼──────────────────────────┐                   │
//!  │ device   VfioDevice, Session │ what Linux's vfio-pci lets a program do
//!  └───┬──────────────────────────┘                   │
//!  ┌───▼──────────────────────────┐  register access  │
//!  │ pci      Function            ├──────────────────►│
//!  │          configuration space │                   │
//!  │          MSI-X, MSI, INTx    │◄──────────────────┤ Interrupts::raise
//!  └───┬──────────────────────────┘                   │
//!      │ BusMaster: may this RID reach memory?        │ DMA port (not here)
//!      ▼                                              ▼
//! ```
//!
//! [`pci`] behaves as the PCI specifications say hardware does, and [`device`] adds what Linux's vfio-pci driver puts
//! in between: registers that the program may not write, resets that keep the configuration, interrupts that arrive
//! as eventfds. Neither knows a page table, an ioctl number or a file system. The DMA side touches this crate in one
//! place, the hook [`BusMaster`].
//!
//! Everything that arrives through a [`Session`] is the program's and is checked before use; a refused request
//! changes nothing.
//!
//! # Example
//!
//! A device whose one register counts how often it was read:
//!
//! ```
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicU32, Ordering};
//! use ioasid_vfio::device::region::file_offset;
//! use ioasid_vfio::{BarKind, BarSpec, BusMaster, Function, Interrupts, Model, Spec, VfioDevice};
//!
//! #[derive(Default)]
//! struct Counter(AtomicU32);
//!
//! impl Model for Counter {
//!     fn read(&self, _bar: u8, _offset: u64, data: &mut [u8]) {
//!         data.fill(0);
//!         data[0] = self.0.fetch_add(1, Ordering::Relaxed) as u8;
//!     }
//!     fn write(&self, _bar: u8, _offset: u64, _data: &[u8]) {}
//!     fn reset(&self) {
//!         self.0.store(0, Ordering::Relaxed);
//!     }
//! }
//!
//! struct NoIommu;
//!
//! impl BusMaster for NoIommu {
//!     fn set_bus_master(&self, _enabled: bool) {}
//! }
//!
//! let spec = Spec {
//!     bars: vec![BarSpec { index: 0, size: 4096, kind: BarKind::Memory32, prefetchable: false }],
//!     ..Spec::new(0x1234, 0x0001, 0x08_80_00)
//! };
//! let interrupts = Interrupts::new(&spec);
//! let function = Function::new(spec, 0xe000_0000, interrupts, Arc::new(Counter::default()), Arc::new(NoIommu))?;
//! let session = VfioDevice::new(Arc::new(function)).open()?;
//!
//! let mut register = [0; 4];
//! session.mapped_read(file_offset(0), &mut register)?;
//! session.mapped_read(file_offset(0), &mut register)?;
//! assert_eq!(register, [1, 0, 0, 0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bar_memory;
pub mod device;
mod eventfd;
mod model;
pub mod pci;
mod spec;
#[cfg(test)]
mod testing;

pub use bar_memory::{BarMemory, BarPages, BarView};
pub use device::{Session, VfioDevice};
pub use eventfd::EventFd;
pub use model::{BusMaster, Model};
pub use pci::{BarError, Function, Interrupts, IrqIndex, Unconsumed};
pub use spec::{BarKind, BarSpec, MsixSpec, PasidSpec, PcieKind, Spec, SpecError, TranslationSpec, VendorCapability};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, also after a panic of another thread: no code in this crate leaves a state half changed when it calls out.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
