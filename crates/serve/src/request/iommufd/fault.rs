//! Fault queues: page requests that a program answers.

use std::sync::Arc;

use ioasid::{FaultQueue, FaultQueueOptions, Held, PageResponse, TakenGroup};
use ioasid_uapi::iommufd as uapi;
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::Call;
use crate::request::given::{GivenFile, Ready, Waiters, Wake};

pub(super) fn alloc(call: &Call<'_>) -> Result<(), Errno> {
    let mut request: uapi::FaultAlloc = call.get()?;
    if request.flags != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    let (id, file) = make(call, FaultQueueOptions::default())?;
    request.out_fault_id = id;
    call.give(request, file, |request, number| request.out_fault_fd = number).inspect_err(|_| {
        // Unless the program has the descriptor.
        let _ = call.context().destroy(id);
    })
}

/// A new queue's id, and the file that it is read and answered through.
pub(super) fn make(call: &Call<'_>, options: FaultQueueOptions) -> Result<(u32, Arc<dyn GivenFile>), Errno> {
    let context = call.context();
    let queue = context.fault_queue_alloc_with(options).ok_or(Errno::NOMEM)?;
    let (id, held) = (queue.id(), context.hold(queue.id()).ok_or(Errno::NOENT)?);
    let waiters = Arc::new(Waiters::default());
    let told = waiters.clone();
    queue.on_arrival(Arc::new(move || told.wake()));
    Ok((id.into(), Arc::new(FaultFile { queue, waiters, _held: held })))
}

/// The descriptor of a fault queue. The queue cannot be destroyed before it is closed.
struct FaultFile {
    queue: Arc<FaultQueue>,
    waiters: Arc<Waiters>,
    _held: Held,
}

const FAULT: usize = size_of::<uapi::HwptPgfault>();
const RESPONSE: usize = size_of::<uapi::HwptPageResponse>();

/// What a program reads of a group.
fn faults(group: &TakenGroup) -> impl Iterator<Item = uapi::HwptPgfault> + '_ {
    let last = group.requests.len() - 1;
    group.requests.iter().enumerate().map(move |(n, request)| {
        let mut flags = if n == last { uapi::PGFAULT_FLAGS_LAST_PAGE } else { 0 };
        if request.pasid.is_some() {
            flags |= uapi::PGFAULT_FLAGS_PASID_VALID;
        }
        uapi::HwptPgfault {
            flags,
            dev_id: group.device,
            pasid: request.pasid.map_or(0, |pasid| pasid.get()),
            grpid: group.number,
            perm: request.access.bits(),
            addr: request.iova,
            cookie: group.cookie,
            ..uapi::HwptPgfault::default()
        }
    })
}

impl GivenFile for FaultFile {
    fn read(&self, room: usize) -> Result<Vec<u8>, Errno> {
        if !room.is_multiple_of(FAULT) {
            return Err(Errno::SPIPE);
        }
        let mut read = Vec::new();
        loop {
            match self.queue.take((room - read.len()) / FAULT) {
                Ok(Some(group)) => faults(&group).for_each(|fault| read.extend_from_slice(fault.as_bytes())),
                Err(_) if read.is_empty() => return Err(Errno::INVAL),
                Ok(None) | Err(_) => return Ok(read),
            }
        }
    }

    fn write(&self, data: &[u8]) -> Result<usize, Errno> {
        if !data.len().is_multiple_of(RESPONSE) {
            return Err(Errno::SPIPE);
        }
        let answer = |bytes: &[u8]| {
            let response = uapi::HwptPageResponse::read_from_bytes(bytes).ok()?;
            let code = match response.code {
                uapi::PAGE_RESP_SUCCESS => PageResponse::Success,
                uapi::PAGE_RESP_INVALID => PageResponse::Invalid,
                _ => return None,
            };
            self.queue.answer(response.cookie, code).ok()
        };
        let done = data.chunks(RESPONSE).map_while(answer).count() * RESPONSE;
        if done == 0 && !data.is_empty() { Err(Errno::INVAL) } else { Ok(done) }
    }

    fn poll(&self, wake: Option<Wake>) -> Ready {
        // First, so that nothing that arrives in between is missed.
        wake.into_iter().for_each(|wake| self.waiters.set(wake));
        Ready { read: self.queue.has_groups(), write: true }
    }
}
