//! Peers that are no crates, or need something around them.
//!
//! - [`sorted_list`], [`locked_hash`]: the algorithms of DPDK and QEMU, which are C, written afresh.
//! - [`multiarch`], [`x86_64`]: page tables of those crates, over [`frames`].

pub mod frames;
pub mod locked_hash;
pub mod multiarch;
pub mod sorted_list;
pub mod x86_64;
