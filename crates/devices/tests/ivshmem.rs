//! Shared memory behind PCI functions.

use std::sync::Arc;

use ioasid_devices::ivshmem::{self, Ivshmem};
use ioasid_vfio::device::region::file_offset;
use ioasid_vfio::{BarMemory, BusMaster, Function, Interrupts, Session, VfioDevice};

struct NoIommu;

impl BusMaster for NoIommu {
    fn set_bus_master(&self, _enabled: bool) {}
}

fn device(memory: &Arc<BarMemory>) -> Arc<VfioDevice> {
    let spec = ivshmem::spec(memory.length());
    let interrupts = Interrupts::new(&spec);
    let model = Ivshmem::new(memory.clone());
    let function = Function::new(spec, 0xe000_0000, interrupts, model, Arc::new(NoIommu));
    VfioDevice::new(Arc::new(function.expect("the specification is sound")))
}

fn read(session: &Session, offset: u64) -> [u8; 8] {
    let mut data = [0xee; 8];
    assert_eq!(session.read(offset, &mut data), Ok(8));
    data
}

#[test]
fn two_devices_have_one_memory_that_lasts() {
    let memory = ivshmem::memory(1 << 20).unwrap();
    let (one, other) = (device(&memory), device(&memory));
    let (first, second) = (one.open().unwrap(), other.open().unwrap());
    first.write(file_offset(2) + 0xf_fff8, &[7; 8]).unwrap();
    assert_eq!(read(&second, file_offset(2) + 0xf_fff8), [7; 8]);
    second.reset();
    drop((first, second));
    assert_eq!(read(&one.open().unwrap(), file_offset(2) + 0xf_fff8), [7; 8]);
    let mut word = [0; 4];
    memory.read(0xf_fff8, &mut word);
    assert_eq!(word, [7; 4]);
}

#[test]
fn registers_are_zero_and_stay_so() {
    let memory = ivshmem::memory(4096).unwrap();
    let session = device(&memory).open().unwrap();
    for offset in [0, 8, 0xf8] {
        session.write(file_offset(0) + offset, &[0xff; 8]).unwrap();
        assert_eq!(read(&session, file_offset(0) + offset), [0; 8]);
    }
    let info = session.region_info(2).unwrap();
    assert_eq!((info.size, info.memory.len(), info.memory[0].clone()), (4096, 1, 0..4096));
    assert_eq!(session.region_info(0).unwrap().memory, []);
}
