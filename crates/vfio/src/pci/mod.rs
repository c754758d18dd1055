//! A PCI Express function as hardware has it.
//!
//! [`Function`] is the whole; [`config`] stores its registers bit by bit, and there is one file for each structure that
//! lies in it ([`header`], [`pm`], [`express`], [`msi`], [`msix`]), or several that go together ([`translation`]): the
//! layout drawn, the bits named, and the function that lays it out. [`Interrupts`] is shared with the device model.
//!
//! ```text
//!  0x000 ┌──────────────────────┐
//!        │ type 0 header        │
//!  0x040 ├──────────────────────┤
//!        │ (the device's own)   │
//!  0x060 ├──────────────────────┤
//!        │ MSI, if any          │
//!  0x080 ├──────────────────────┤
//!        │ MSI-X, if any        │
//!  0x090 ├──────────────────────┤
//!        │ PCI Express          │
//!  0x0cc ├──────────────────────┤
//!        │ (the device's own)   │
//!  0x0e0 ├──────────────────────┤
//!        │ power management     │
//!  0x0e8 ├──────────────────────┤
//!        │ (the device's own)   │
//!  0x100 ├──────────────────────┤
//!        │ ATS, PRI, PASID,     │ or a null extended capability of 4 bytes, all zero: the list is empty
//!        │ if any               │ (PCIe Base Specification 6.0, 7.6.2)
//!  0x120 ├──────────────────────┤
//!        │ (the device's own)   │
//!  0x1000└──────────────────────┘
//! ```
//! Capabilities of the vendor's lie where there is room for them.

pub mod config;
pub mod express;
mod function;
pub mod header;
mod interrupts;
mod lines;
pub mod msi;
pub mod msix;
pub mod pm;
pub mod translation;
mod vendor;

pub use function::{BarError, Function};
pub(crate) use function::{SavedState, vendor_places};
pub use interrupts::{Interrupts, IrqIndex, Unconsumed};
