//! Registers, commands, completions and data structures, as the specifications define them.
//!
//! Sources: NVM Express Base Specification 2.0, NVM Command Set Specification 1.0, NVMe over PCIe Transport
//! Specification 1.0.

pub mod command;
pub mod identify;
pub mod log;
pub mod registers;
pub mod status;
