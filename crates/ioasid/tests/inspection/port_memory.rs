//! `PortMemory`, from within itself.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use ioasid::guest_memory::PortMemory;
use ioasid::memory::{RemoteMemory, Segment};
use ioasid::{Access, FaultReason, GuestFormat, GuestTable, HwptOptions, Iova, Placement};
use vm_memory::{Bytes, GuestAddress};

use crate::*;

thread_local! {
    static AGAIN: RefCell<Option<Rc<PortMemory>>> = const { RefCell::new(None) };
    static REFUSED: Cell<usize> = const { Cell::new(0) };
}

/// A guest's tables that read by the port that walks them: a large page of x86-64, at 0, that was accessed and written.
struct Tables;

impl RemoteMemory for Tables {
    fn read(&self, address: u64, data: &mut [u8]) -> io::Result<()> {
        if let Some(memory) = AGAIN.with(|again| again.borrow().clone()) {
            let read = memory.read_obj::<u32>(GuestAddress(0x20_0000));
            let text = format!("{:?}", read.unwrap_err());
            assert!(text.contains(&format!("{:?}", FaultReason::Recursive)), "{text}");
            REFUSED.with(|refused| refused.set(refused.get() + 1));
        }
        let at = |address: u64| match address {
            0x1000 => 0x2027u64,
            0x2000 => 0x3027,
            0x3000 | 0x3008 => 0xe7,
            _ => 0,
        };
        for (n, chunk) in (0..).zip(data.chunks_mut(8)) {
            chunk.copy_from_slice(&at(address + 8 * n).to_ne_bytes()[..chunk.len()]);
        }
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn port_memory_is_not_entered_twice() {
    let tenant = Tenant::detached(&machine(), 1);
    map(&tenant.ioas, 0, PAGE);
    map(&tenant.ioas, 0x10000, PAGE);
    let tables = Segment::remote(Arc::new(Tables), 0x1000, 3 * PAGE);
    tenant.ioas.map(Placement::Fixed(Iova(0x1000)), 3 * PAGE, Access::READ, || Ok(vec![tables])).unwrap();
    let parent = tenant.hwpt(HwptOptions::default().nest_parent(true));
    let table = GuestTable { format: GuestFormat::X86_64, root: 0x1000 };
    let nested = tenant.context.hwpt_alloc_nested(&parent, table).unwrap();
    tenant.device.attach(None, &nested).unwrap();
    let memory = Rc::new(PortMemory::new(tenant.endpoint.port(), None));
    AGAIN.with(|again| *again.borrow_mut() = Some(memory.clone()));
    let read = memory.read_obj::<u32>(GuestAddress(0x10000));
    AGAIN.with(|again| *again.borrow_mut() = None);
    read.unwrap();
    assert!(REFUSED.with(Cell::get) > 0);
    // And it goes on.
    memory.write_obj(5u32, GuestAddress(0x10000)).unwrap();
    assert_eq!(memory.read_obj::<u32>(GuestAddress(0x10000)).unwrap(), 5);
}

#[test]
fn a_refusal_says_why_and_a_guests_memory_is_one_call() {
    use ioasid::guest_memory::{MapMemoryError, map_memory};
    use vm_memory::GuestMemoryMmap;

    let tenant = Tenant::of(&machine(), 1);
    let ranges = [(GuestAddress(0), 0x2000), (GuestAddress(0x10_0000), 0x4000)];
    let memory: Arc<GuestMemoryMmap> = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
    // All of it, or nothing.
    map(&tenant.ioas, 0x10_1000, PAGE);
    assert!(matches!(map_memory(&tenant.ioas, &memory, Access::READ), Err(MapMemoryError::Map(0x10_0000, _))));
    assert_eq!(tenant.ioas.size().0, 1);
    tenant.ioas.unmap(IovaRange::ALL).unwrap();
    map_memory(&tenant.ioas, &memory, Access::READ).unwrap();
    assert_eq!(tenant.ioas.size(), (2, 0x6000));
    memory.write_obj(7u32, GuestAddress(0x10_3ffc)).unwrap();
    // It stays as long as devices reach it.
    drop(memory);
    let port = PortMemory::new(tenant.endpoint.port(), None);
    assert_eq!(port.read_obj::<u32>(GuestAddress(0x10_3ffc)).unwrap(), 7);
    assert!(port.take_refusal().is_none());
    for (address, reason) in [(0x10_0000, FaultReason::NotPermitted), (0x20_0000, FaultReason::NotMapped)] {
        port.write_obj(1u8, GuestAddress(address)).unwrap_err();
        let refusal = port.take_refusal().unwrap();
        assert_eq!((refusal.reason, refusal.at.iova), (reason, Iova(address)));
    }
    tenant.device.detach(None).unwrap();
    port.read_obj::<u8>(GuestAddress(0)).unwrap_err();
    assert_eq!(port.take_refusal().unwrap().reason, FaultReason::NotAttached);
}
