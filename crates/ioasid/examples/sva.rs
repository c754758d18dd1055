//! Shared virtual addressing: a device uses a process's own addresses, as long as the process is there.

use std::error::Error;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use ioasid::memory::Process;
use ioasid::{BusAddress, FaultReason, GroupId, Iova, Machine, Pasid, Silent};

/// Another process, which ends when this is dropped.
struct Child(std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let machine = Machine::new(Arc::new(Silent));
    let endpoint = machine.add_endpoint("0000:00:01.0".parse()?, GroupId(0))?;
    endpoint.set_bus_master(true)?;
    let context = machine.context();
    let device = context.bind(&endpoint)?;
    let mut port = endpoint.port();

    // This process. Nothing is mapped: its address space is the page table.
    let own = context.hwpt_alloc_sva(Process::open_for_sva(std::process::id())?)?;
    let pasid = Pasid::new(5);
    device.attach(pasid, &own)?;
    let buffer: Vec<AtomicU8> = (0..3 * 4096).map(|_| AtomicU8::new(0)).collect();
    let at = |offset: usize| BusAddress { pasid, iova: Iova((buffer.as_ptr().addr() + offset) as u64) };
    port.write(at(4090), b"written by a device")?;
    let found: Vec<u8> = buffer[4090..4109].iter().map(|byte| byte.load(Ordering::Relaxed)).collect();
    assert_eq!(found, b"written by a device");
    // What this process may not touch, the device does not reach.
    let null = port.write(BusAddress { pasid, iova: Iova(8) }, &[1]);
    assert_eq!(null.err().map(|error| error.reason), Some(FaultReason::NotMapped));

    // Another process, which ends: its address space ends with it, whatever the number stands for later.
    let mut child = Child(Command::new("sleep").arg("100").spawn()?);
    let process = Process::open_for_sva(child.0.id())?;
    let first = process.vmas().at_or_after(0x1000)?.ok_or("it maps something")?;
    let theirs = context.hwpt_alloc_sva(process)?;
    device.attach(pasid, &theirs)?;
    let (at, mut byte) = (BusAddress { pasid, iova: Iova(first.start) }, [0]);
    port.read(at, &mut byte)?;
    child.0.kill()?;
    child.0.wait()?;
    let gone = port.read(at, &mut byte);
    assert_eq!(gone.err().map(|error| error.reason), Some(FaultReason::MemoryGone));
    println!("a device wrote this process's memory by its own address, and lost another process's when that ended");
    Ok(())
}
