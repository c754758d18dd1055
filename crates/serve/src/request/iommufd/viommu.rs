//! Requests on virtual IOMMUs, and what a guest is told by them.

use std::sync::Arc;

use ioasid::{EventQueue, Held, HwQueueOptions, IovaRange};
use ioasid_uapi::iommufd as uapi;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::{Call, ToErrno};
use crate::request::argument::Data;
use crate::request::given::{GivenFile, Ready, Waiters, Wake};
use crate::request::hardware;
use crate::request::object;

/// The most events that a queue can have room for.
const DEEPEST: u32 = 1 << 19;

pub(super) fn alloc(call: &Call<'_>) -> Result<(), Errno> {
    let mut request: uapi::ViommuAlloc = call.get()?;
    if request.flags != 0 || request.reserved != 0 || request.kind == uapi::VIOMMU_TYPE_DEFAULT {
        return Err(Errno::OPNOTSUPP);
    }
    let context = call.context();
    let device = object::endpoint(context, request.dev_id)?;
    let hardware = hardware::of(&device);
    if !hardware.has_viommu(request.kind) {
        return Err(Errno::OPNOTSUPP);
    }
    let data = Data { caller: call.caller, kind: request.kind, address: request.data_uptr, length: request.data_len };
    let parent = context.hwpt(request.hwpt_id).ok_or(Errno::NOENT)?;
    let viommu = context.viommu_alloc(&device, &parent, |id| {
        let data = Some(&data).filter(|data| data.length != 0);
        hardware.viommu(data, &|memory| call.file.add_region(id.into(), memory)).map_err(ViommuFailure)
    });
    request.out_viommu_id = viommu.map_err(|ViommuFailure(errno)| errno)?.id().into();
    call.put(&request).inspect_err(|_| {
        let _ = context.destroy(request.out_viommu_id);
    })
}

/// What making one fails with, in the engine and here.
struct ViommuFailure(Errno);

impl<E: ToErrno> From<E> for ViommuFailure {
    fn from(error: E) -> Self {
        Self(error.errno())
    }
}

pub(super) fn alloc_device(call: &Call<'_>) -> Result<(), Errno> {
    let mut request: uapi::VdeviceAlloc = call.get()?;
    let context = call.context();
    let viommu = object::viommu(context, request.viommu_id)?;
    let device = object::endpoint(context, request.dev_id)?;
    let made = context.virtual_device_alloc(&viommu, &device, request.virt_id);
    request.out_vdevice_id = made.map_err(|error| error.errno())?.id().into();
    call.put(&request).inspect_err(|_| {
        let _ = context.destroy(request.out_vdevice_id);
    })
}

pub(super) fn alloc_hw_queue(call: &Call<'_>) -> Result<(), Errno> {
    let mut request: uapi::HwQueueAlloc = call.get()?;
    if request.flags != 0 || request.kind == uapi::HW_QUEUE_TYPE_DEFAULT {
        return Err(Errno::OPNOTSUPP);
    }
    if request.length == 0 {
        return Err(Errno::INVAL);
    }
    let memory = IovaRange::new(request.nesting_parent_iova, request.length).ok_or(Errno::OVERFLOW)?;
    let context = call.context();
    let viommu = object::viommu(context, request.viommu_id)?;
    let after = hardware::of_kind(viommu.iommu().kind()).hw_queue(request.kind, request.index)?;
    let made = context.hw_queue_alloc(&viommu, HwQueueOptions::new(request.index, memory).after(after));
    request.out_hw_queue_id = made.map_err(|error| error.errno())?.id().into();
    call.put(&request).inspect_err(|_| {
        let _ = context.destroy(request.out_hw_queue_id);
    })
}

pub(super) fn alloc_event_queue(call: &Call<'_>) -> Result<(), Errno> {
    let mut request: uapi::VeventqAlloc = call.get()?;
    if request.flags != 0 || request.reserved != 0 || request.kind == uapi::VEVENTQ_TYPE_DEFAULT {
        return Err(Errno::OPNOTSUPP);
    }
    if !(1..=DEEPEST).contains(&request.veventq_depth) {
        return Err(Errno::INVAL);
    }
    let context = call.context();
    let viommu = object::viommu(context, request.viommu_id)?;
    let queue = context.event_queue_alloc(&viommu, request.kind, request.veventq_depth as usize);
    let queue = queue.map_err(|error| error.errno())?;
    request.out_veventq_id = queue.id().into();
    let held = context.hold(queue.id()).ok_or(Errno::NOENT)?;
    let waiters = Arc::new(Waiters::default());
    let told = waiters.clone();
    queue.on_arrival(Arc::new(move || told.wake()));
    let file = Arc::new(EventFile { queue, waiters, _held: held });
    call.give(request, file, |request, number| request.out_veventq_fd = number).inspect_err(|_| {
        // Unless the program has the descriptor.
        let _ = context.destroy(request.out_veventq_id);
    })
}

/// The descriptor of an event queue. The queue cannot be destroyed before it is closed.
struct EventFile {
    queue: Arc<EventQueue>,
    waiters: Arc<Waiters>,
    _held: Held,
}

const HEADER: usize = size_of::<uapi::VeventHeader>();

impl GivenFile for EventFile {
    fn read(&self, room: usize) -> Result<Vec<u8>, Errno> {
        if room < HEADER {
            return Err(Errno::INVAL);
        }
        let mut read = Vec::new();
        let mut too_large = false;
        loop {
            let left = room - read.len();
            let next = self.queue.take_if(|event| {
                let fits = HEADER + event.data.as_ref().map_or(0, Vec::len) <= left;
                too_large = !fits;
                fits
            });
            let Some(event) = next else { break };
            let flags = if event.data.is_none() { uapi::VEVENTQ_FLAG_LOST_EVENTS } else { 0 };
            read.extend_from_slice(uapi::VeventHeader { flags, sequence: event.sequence }.as_bytes());
            read.extend(event.data.into_iter().flatten());
        }
        if read.is_empty() && too_large { Err(Errno::INVAL) } else { Ok(read) }
    }

    fn poll(&self, wake: Option<Wake>) -> Ready {
        // First, so that nothing that arrives in between is missed.
        wake.into_iter().for_each(|wake| self.waiters.set(wake));
        Ready { read: self.queue.has_events(), write: false }
    }
}
