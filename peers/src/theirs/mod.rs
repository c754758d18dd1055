//! Peers that are no crates, or need something around them.
//!
//! - [`sorted_list`], [`locked_hash`]: the algorithms of DPDK and QEMU, which are C, written afresh.
//! - [`multiarch`], [`x86_64`]: page tables of those crates, over [`frames`].
//! - [`userfault`]: missing pages, of which Linux tells a program.
//! - [`vfio_user`]: a device behind a socket.

pub mod frames;
pub mod locked_hash;
pub mod multiarch;
pub mod sorted_list;
pub mod userfault;
pub mod vfio_user;
pub mod x86_64;
