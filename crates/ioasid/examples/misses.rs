//! Misses: what happens where something is mapped and not present belongs to the page table. A device that can wait
//! does, until the reader of a queue has brought the page in, or until the engine has.

use std::error::Error;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;

use ioasid::memory::{Pages, Segment};
use ioasid::{
    Access, FaultReason, GroupId, HwptOptions, Iova, IovaRange, Machine, OnMiss, PageResponse, Placement, Silent,
};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let machine = Machine::new(Arc::new(Silent));
    let endpoint = machine.add_endpoint("0000:00:01.0".parse()?, GroupId(0))?;
    endpoint.set_bus_master(true)?;
    let context = machine.context();
    let device = context.bind(&endpoint)?;
    let mut port = endpoint.port();

    // Four pages are mapped, and made to fault: as with memory that is still on its way from another host.
    let ioas = context.ioas_alloc().ok_or("no ids")?;
    let all = IovaRange::new(0x10_0000, 4 * PAGE).ok_or("empty")?;
    let memory = Segment::memfd(4 * PAGE)?.0;
    ioas.map(Placement::Fixed(Iova(all.start())), 4 * PAGE, Access::all(), || Ok(vec![memory]))?;
    ioas.make_fault(all)?;

    // A page table that refuses, which is the default.
    device.attach(None, &ioas)?;
    let refused = port.write(Iova(0x10_0000), &[1]);
    assert_eq!(refused.err().map(|error| error.reason), Some(FaultReason::NotPresent));

    // One that asks a queue: the transaction waits, outside of its gate, until the request is answered.
    let queue = context.fault_queue_alloc().ok_or("no ids")?;
    let (arrived, arrival) = mpsc::channel();
    queue.on_arrival(Arc::new(move || {
        // The other end is there as long as main is.
        let _ = arrived.send(());
    }));
    let options = HwptOptions::default().on_miss(OnMiss::Queue(queue.clone()));
    let asking = context.hwpt_alloc(device.endpoint(), &ioas, options)?;
    device.attach(None, &asking)?;
    let written = thread::scope(|scope| -> Result<_, Box<dyn Error>> {
        let writer = scope.spawn(|| port.write(Iova(0x10_0000), &[2]));
        arrival.recv()?;
        let group = queue.take(usize::MAX)?.ok_or("a request")?;
        assert_eq!(group.requests[0].iova, 0x10_0000);
        assert_eq!(ioas.populate(IovaRange::new(0x10_0000, PAGE).ok_or("empty")?)?, PAGE);
        queue.answer(group.cookie, PageResponse::Success)?;
        Ok(writer.join())
    })?;
    written.map_err(|_| "the device's thread panicked")??;

    // One that brings in what is behind the mapping: 1 MiB, of which only what is needed is asked for.
    let asked = Arc::new(Mutex::new(0));
    let count = asked.clone();
    let lazy = Pages::new(0, MIB, true, move |_, length| {
        *count.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) += length;
        Ok(vec![Segment::memfd(length)?.0])
    });
    let lazily = context.ioas_alloc().ok_or("no ids")?;
    lazily.map_pages(Some(Iova(MIB)), &lazy, 0, MIB, Access::all())?;
    lazily.make_fault(IovaRange::new(MIB, MIB).ok_or("empty")?)?;
    let options = HwptOptions::default().on_miss(OnMiss::Resolve);
    let resolving = context.hwpt_alloc(device.endpoint(), &lazily, options)?;
    device.attach(None, &resolving)?;
    port.write(Iova(MIB + 0x3_4567), &[3])?;
    let bytes = *asked.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    assert_eq!(bytes, 64 << 10);
    assert_eq!(lazily.faults_at(Iova(MIB)), Some(true), "elsewhere devices fault still");
    println!("one write waited for the reader of a queue; another brought in {bytes} of {MIB} bytes by itself");
    Ok(())
}
