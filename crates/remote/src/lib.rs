//! Devices of other processes, and devices for other processes.
//!
//! ```text
//!   vfio_user    a PCI device: its registers, its interrupts, its DMA
//!   vhost_user   the queues of a virtio device
//!   ───────────
//!   socket       messages, descriptors beside them, deadlines
//! ```
//! Every byte that comes is the other side's, and so is its timing: what is no message ends the connection or is
//! refused, a peer that does not answer is given up after a stated time, and neither leaves anything behind.

mod socket;
pub mod vfio_user;
pub mod vhost_user;

pub use socket::Ended;
