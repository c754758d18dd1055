//! A device in another process walks page tables of this one, and an unmap waits for it.

#![allow(clippy::unwrap_used, reason = "an example fails by panicking")]

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::Arc;

use ioasid::memory::{Segment, TableSpace};
use ioasid::{
    Access, GateMember, GateOwner, GroupId, GuestFormat, GuestTable, HwptOptions, Iova, IovaRange, Machine,
    NestedOptions, Placement, Silent,
};
use iopt::format::{Marked, VtdSecondStage};
use iopt::{Arena, EmptyTables, PageTable};

const PAGE: u64 = 4096;
const TABLES: u64 = 2 << 20;
/// Where the other process has the memory, for the addresses in the tables; it has the tables at 0.
const MEMORY: u64 = 1 << 30;
/// Where the device finds it.
const IOVA: u64 = 0x7000;

fn main() {
    match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => owner(),
        files => device(files),
    }
}

/// The process that has tables and memory, and says what the device reaches.
fn owner() {
    let arena = Arc::new(Arena::with_memory(TableSpace::shared(TABLES as usize).unwrap()));
    let table = PageTable::<Marked<VtdSecondStage>, _>::new(arena.clone()).unwrap();
    let (_, memory) = Segment::memfd(PAGE).unwrap();
    let gate = GateOwner::new().unwrap();
    let mut empty = EmptyTables::none();
    table.map(IOVA, MEMORY, PAGE, Access::all(), &mut empty).unwrap();

    let [orders, passages] = gate.files().map(|file| file.as_raw_fd());
    let files = [arena.memory().file().unwrap().as_raw_fd(), memory.as_raw_fd(), orders, passages];
    let paths = files.map(|file| format!("/proc/{}/fd/{file}", std::process::id()));
    let root = table.root().0.to_string();
    let mut child = Command::new(std::env::current_exe().unwrap()).args(paths).arg(root).spawn().unwrap();
    let count = || {
        let mut count = [0; 8];
        memory.read_exact_at(&mut count, 0).unwrap();
        u64::from_le_bytes(count)
    };
    while count() < 1000 {
        assert_eq!(child.try_wait().unwrap(), None, "the device has ended");
    }
    table.unmap(IOVA, PAGE, &mut empty).unwrap();
    gate.invalidate(IovaRange::new(IOVA, PAGE).unwrap(), || true).unwrap();
    // From here on nothing is written, whatever the other process is doing.
    let last = count();
    assert!(child.wait().unwrap().success());
    assert_eq!(count(), last);
    table.free(empty);
    println!("a device of another process counted to 1000 and more, and no further when that was unmapped");
}

/// The process that has the device, which counts in memory until it is refused.
fn device(files: &[String]) {
    let [tables, memory, orders, passages, root] = files else { panic!("started by the owner") };
    let read = |path: &String| File::open(path).unwrap();
    let write = |path: &String| OpenOptions::new().read(true).write(true).open(path).unwrap();
    let machine = Machine::new(Arc::new(Silent));
    let endpoint = machine.add_endpoint("0000:00:01.0".parse().unwrap(), GroupId(0)).unwrap();
    endpoint.set_bus_master(true).unwrap();
    let context = machine.context();
    let device = context.bind(&endpoint).unwrap();

    // What the addresses in the tables mean here: first the tables themselves.
    let ioas = context.ioas_alloc().unwrap();
    let tables = Segment::file(&Arc::new(read(tables)), 0, TABLES, false).unwrap();
    ioas.map(Placement::Fixed(Iova(0)), TABLES, Access::READ, || Ok(vec![tables])).unwrap();
    let memory = Segment::file(&Arc::new(write(memory)), 0, PAGE, true).unwrap();
    ioas.map(Placement::Fixed(Iova(MEMORY)), PAGE, Access::all(), || Ok(vec![memory])).unwrap();
    let parent = context.hwpt_alloc(&endpoint, &ioas, HwptOptions::default().nest_parent(true)).unwrap();

    let member = GateMember::join(OwnedFd::from(read(orders)), OwnedFd::from(write(passages))).unwrap();
    let root = GuestTable { format: GuestFormat::VtdSecondStage, root: root.parse().unwrap() };
    let options = NestedOptions::from(root).pasids(false).shared(member);
    let nested = context.hwpt_alloc_nested(&parent, options).unwrap();
    device.attach(None, &nested).unwrap();
    let mut port = endpoint.port();
    for count in 1u64.. {
        if port.write(Iova(IOVA), &count.to_le_bytes()).is_err() {
            return;
        }
    }
}
