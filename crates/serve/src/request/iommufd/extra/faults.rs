//! Fault queues that say how much they take, and for how long.

use std::time::Duration;

use ioasid::FaultQueueOptions;
use ioasid_uapi::ioasid as uapi;
use rustix::io::Errno;

use super::{Call, check};
use crate::request::iommufd::fault;
use crate::request::object;

/// The most groups that a queue can have room for, and the longest that one can wait, in milliseconds: an hour.
const DEEPEST: u32 = 1 << 16;
const LONGEST: u32 = 3_600_000;

pub(super) fn alloc(call: &Call<'_>) -> Result<(), Errno> {
    let mut request: uapi::FaultQueueAlloc = call.get()?;
    check(request.flags, 0, 0)?;
    if request.depth > DEEPEST || request.timeout_ms > LONGEST {
        return Err(Errno::INVAL);
    }
    let mut options = FaultQueueOptions::default();
    if request.depth != 0 {
        options.depth = request.depth as usize;
    }
    if request.timeout_ms != 0 {
        options.timeout = Duration::from_millis(request.timeout_ms.into());
    }
    let (id, file) = fault::make(call, options)?;
    request.out_fault_id = id;
    call.give(request, file, |request, number| request.out_fault_fd = number).inspect_err(|_| {
        // Unless the program has the descriptor.
        let _ = call.context().destroy(id);
    })
}

pub(super) fn get(call: &Call<'_>) -> Result<(), Errno> {
    let mut request: uapi::FaultQueueGet = call.get()?;
    let counts = object::fault_queue(call.context(), request.fault_id)?.counts();
    (request.out_overflowed, request.out_timed_out) = (counts.overflowed, counts.timed_out);
    call.put(&request)
}
