//! The numbers by which a program means objects of its context, and the errno where a number means none.

use std::sync::Arc;

use ioasid::{Context, Endpoint, FaultQueue, Ioas, Target, Viommu};
use rustix::io::Errno;

/// The bound device with this number.
///
/// # Errors
/// `ENOENT`.
pub(super) fn endpoint(context: &Context, id: u32) -> Result<Arc<Endpoint>, Errno> {
    context.endpoint(id).ok_or(Errno::NOENT)
}

/// The address space with this number.
///
/// # Errors
/// `ENOENT`.
pub(super) fn ioas(context: &Context, id: u32) -> Result<Arc<Ioas>, Errno> {
    context.ioas(id).ok_or(Errno::NOENT)
}

/// The fault queue with this number.
///
/// # Errors
/// `ENOENT`.
pub(super) fn fault_queue(context: &Context, id: u32) -> Result<Arc<FaultQueue>, Errno> {
    context.fault_queue(id).ok_or(Errno::NOENT)
}

/// The virtual IOMMU with this number.
///
/// # Errors
/// `ENOENT`.
pub(super) fn viommu(context: &Context, id: u32) -> Result<Arc<Viommu>, Errno> {
    context.viommu(id).ok_or(Errno::NOENT)
}

/// What a device can be attached to, with this number.
///
/// # Errors
/// `ENOENT`, or `EINVAL` if it is something else.
pub(super) fn target(context: &Context, id: u32) -> Result<Target, Errno> {
    context.target(id).ok_or_else(|| other_kind(context, id))
}

/// What a program is told whose number means no object of the kind that it has to be: `EINVAL`, or `ENOENT` if it means
/// none.
pub(super) fn other_kind(context: &Context, id: u32) -> Errno {
    if context.has(id) { Errno::INVAL } else { Errno::NOENT }
}
