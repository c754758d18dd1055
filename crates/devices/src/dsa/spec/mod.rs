//! What the device defines: registers, descriptors in memory, and what it writes there.
//!
//! Sources: Intel Data Streaming Accelerator Architecture Specification (order number 341204), of which the model is
//! version 1.0; Linux's `idxd/registers.h` and `uapi/linux/idxd.h` for what drivers make of it.

pub mod command;
pub mod completion;
pub mod descriptor;
pub mod registers;
