//! What the device is, seen from a driver: registers and descriptors, bit by bit.
//!
//! Sources of facts: Intel Xeon Processor E7 v2 Datasheet Volume 2, sections 14.4 and 14.5 (the same engine, one
//! generation earlier), and what the public drivers rely on (Linux `drivers/dma/ioat`, DPDK `drivers/dma/ioat`, FreeBSD
//! `sys/dev/ioat`, Linux's VFIO selftests).

pub mod descriptor;
pub mod registers;
