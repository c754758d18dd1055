//! Two stages: a guest's own page table, which lies in the guest's memory, over what the VMM maps for the guest.
//!
//! ```text
//!   IOVA ──► guest's table (x86-64) ──► guest-physical address ──► parent: what the VMM maps ──► bytes
//!   0x1000                              0x40000000
//! ```

use std::error::Error;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use ioasid::memory::{GuestTables, Segment};
use ioasid::{
    Access, FaultReason, GroupId, GuestFormat, GuestTable, HwptOptions, Iova, IovaRange, Machine, Placement, Silent,
};
use iopt::format::X86_64;
use iopt::{Arena, EmptyTables, PageTable};

const PAGE: u64 = 4096;
/// The guest's page tables, from its physical address 0 on, so that an entry's offset in the file is its address.
const TABLES: u64 = 2 << 20;
/// Where the guest has its data.
const DATA: u64 = 1 << 30;

fn main() -> Result<(), Box<dyn Error>> {
    let machine = Machine::new(Arc::new(Silent));
    let endpoint = machine.add_endpoint("0000:00:01.0".parse()?, GroupId(0))?;
    endpoint.set_bus_master(true)?;
    let context = machine.context();
    let device = context.bind(&endpoint)?;

    // The VMM maps the guest's memory: an address space whose IOVAs are guest-physical addresses.
    let guest_physical = context.ioas_alloc().ok_or("no ids")?;
    let memory = GuestTables::new(TABLES as usize)?;
    let tables = Segment::file(memory.file(), 0, TABLES, true)?;
    guest_physical.map(Placement::Fixed(Iova(0)), TABLES, Access::all(), || Ok(vec![tables]))?;
    let (data, file) = Segment::memfd(2 * PAGE)?;
    guest_physical.map(Placement::Fixed(Iova(DATA)), 2 * PAGE, Access::all(), || Ok(vec![data]))?;
    let options = HwptOptions::default().nest_parent(true);
    let parent = context.hwpt_alloc(device.endpoint(), &guest_physical, options)?;

    // The guest builds a table in its own memory, and has the VMM attach the device to it.
    let table = PageTable::<X86_64, _>::new(Arc::new(Arena::with_memory(memory)))?;
    let mut empty = EmptyTables::none();
    table.map(0x1000, DATA, PAGE, Access::all(), &mut empty)?;
    let root = GuestTable { format: GuestFormat::X86_64, root: table.root().0 };
    let nested = context.hwpt_alloc_nested(&parent, root)?;
    device.attach(None, &nested)?;

    let mut port = endpoint.port();
    port.write(Iova(0x1000), b"by the first entry")?;
    assert_eq!(bytes(&file, 0)?, *b"by the f");

    // It leads elsewhere now. The port may have cached what was there, until the guest says what it changed.
    table.unmap(0x1000, PAGE, &mut empty)?;
    table.map(0x1000, DATA + PAGE, PAGE, Access::READ, &mut empty)?;
    nested.invalidate(IovaRange::new(0x1000, PAGE).ok_or("empty")?)?;
    let mut found = [1; 8];
    port.read(Iova(0x1000), &mut found)?;
    assert_eq!(found, [0; 8], "the second page");
    let refused = port.write(Iova(0x1000), &[1]).err().map(|error| error.reason);
    assert_eq!(refused, Some(FaultReason::NotPermitted), "the guest allows reading only");

    // Where the guest's table leads out of its memory, nothing is reached.
    table.map(0x2000, 1 << 40, PAGE, Access::all(), &mut empty)?;
    assert!(port.read(Iova(0x2000), &mut found).is_err());
    table.free(empty);
    println!("IOVA 0x1000 went through the guest's table and its parent; an invalidation moved it to another page");
    Ok(())
}

fn bytes(file: &std::fs::File, offset: u64) -> Result<[u8; 8], std::io::Error> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, offset).map(|()| bytes)
}
