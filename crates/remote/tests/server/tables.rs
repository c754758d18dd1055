//! Page tables of a client, which the device walks: right ones, wrong ones, and none.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use ioasid::memory::TableSpace;
use ioasid::{Access, GateOwner, IovaRange};
use ioasid_remote::vfio_user::wire::{BY_MESSAGE, CommandId, DmaFlags, SharedTables};
use iopt::format::{Marked, VtdSecondStage};
use iopt::{Arena, EmptyTables, PageTable};
use zerocopy::IntoBytes;
use zerocopy::native_endian::{U32, U64};

use crate::peer::{Peer, memfd, server};

const BOTH: DmaFlags = DmaFlags::READ.union(DmaFlags::WRITE);
const PAGE: u64 = 4096;
const STEP: u64 = 2 << 20;
const DATA: u64 = 1 << 36;

fn share(peer: &mut Peer, root: u64, gate: &[BorrowedFd<'_>]) -> Result<(), u32> {
    let tables = SharedTables { argsz: U32::new(16), flags: U32::new(0), root: U64::new(root) };
    peer.call_with(CommandId::SharedTables, tables.as_bytes(), gate).map(drop)
}

fn byte(file: &File, at: u64) -> u8 {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0]
}

#[test]
fn a_device_walks_what_the_client_has_written() {
    let server = server("edu", &[]);
    for round in 0..3 {
        let mut peer = Peer::enabled(&server, true);
        let arena = Arc::new(Arena::with_memory(TableSpace::shared(8 << 20).unwrap()));
        let table = PageTable::<Marked<VtdSecondStage>, _>::new(arena.clone()).unwrap();
        let (gate, file) = (GateOwner::new().unwrap(), memfd(16 * PAGE, 7));
        share(&mut peer, table.root().0, &gate.files()).unwrap();
        let tables = (arena.memory().file().unwrap() as &dyn AsFd, 0);
        peer.map(0, STEP, DmaFlags::READ, Some(tables)).unwrap();
        peer.map(DATA, 16 * PAGE, BOTH, Some((&file, 0))).unwrap();
        for step in 0..50u64 {
            let (page, iova) = (step % 16, 0x10_0000 + step % 3 * PAGE);
            let mut empty = EmptyTables::none();
            table.map(iova, DATA + page * PAGE, PAGE, Access::all(), &mut empty).unwrap();
            file.write_all_at(&[step as u8], page * PAGE).unwrap();
            peer.dma(iova, 1, false);
            peer.dma(iova + 8, 1, true);
            assert_eq!(byte(&file, page * PAGE + 8), step as u8, "round {round}");
            table.unmap(iova, PAGE, &mut empty).unwrap();
            gate.invalidate(IovaRange::new(iova, PAGE).unwrap(), || true).unwrap();
            table.free(empty);
            peer.dma(iova + 8, 2, true);
            assert_eq!(byte(&file, page * PAGE + 9), 7, "round {round}");
        }
        // What is taken away below the tables is gone, too.
        table.map(0x10_0000, DATA, PAGE, Access::all(), &mut EmptyTables::none()).unwrap();
        peer.dma(0x10_0010, 1, true);
        assert_ne!(byte(&file, 0x10), 7);
        peer.unmap(DATA, 16 * PAGE, 0).unwrap();
        file.write_all_at(&[7], 0x10).unwrap();
        peer.dma(0x10_0010, 1, true);
        assert_eq!(byte(&file, 0x10), 7);
        if round == 1 {
            // The one after that shares nothing, and is as if there had been no other.
            peer.end().unwrap();
            let mut plain = Peer::enabled(&server, true);
            plain.map(0x10_0000, PAGE, BOTH, Some((&file, 0))).unwrap();
            plain.dma(0x10_0020, 1, true);
            assert_eq!(byte(&file, 0x20), 0);
        }
    }
}

#[test]
fn what_are_no_tables_is_refused_and_the_next_ones_work() {
    let server = server("edu", &[]);
    let mut peer = Peer::enabled(&server, true);
    let (gate, file) = (GateOwner::new().unwrap(), memfd(PAGE, 0));
    let [orders, passages] = gate.files();
    let (invalid, busy) = (22, 16);
    assert_eq!(share(&mut peer, 0, &[]), Err(invalid));
    assert_eq!(share(&mut peer, 0, &[orders]), Err(invalid));
    assert_eq!(share(&mut peer, 0, &[orders, passages, orders]), Err(invalid));
    assert_eq!(share(&mut peer, 0, &[passages, orders]), Err(invalid));
    assert_eq!(share(&mut peer, 0, &[orders, file.as_fd()]), Err(invalid));
    assert_eq!(share(&mut peer, 0, &[file.as_fd(), passages]), Err(invalid));
    assert_eq!(share(&mut peer, 8, &[orders, passages]), Err(invalid), "a root is a page");
    peer.map(0x1000, PAGE, BOTH, Some((&file, 0))).unwrap();
    assert_eq!(share(&mut peer, 0, &[orders, passages]), Err(busy), "something is mapped");
    peer.unmap(0x1000, PAGE, 0).unwrap();
    share(&mut peer, 0, &[orders, passages]).unwrap();
    assert_eq!(share(&mut peer, 0, &[orders, passages]), Err(invalid), "there are some already");
    // Tables that are nowhere, and then there.
    peer.dma(0x1000, 1, true);
    peer.map(0, PAGE, BOTH, Some((&file, 0))).unwrap();
    peer.dma(0x1000, 1, true);
    assert_eq!(peer.read(0, 0, 4), [0xed, 0, 0, 1]);
}

/// Tables and orders that change all the time, and are nothing: the device is refused, or reaches what was mapped.
#[test]
fn whatever_is_in_tables_and_orders_the_server_goes_on() {
    let server = server("edu", &[]);
    let mut random = fastrand::Rng::with_seed(11);
    for _ in 0..20 {
        let mut peer = Peer::enabled(&server, true);
        let gate = GateOwner::new().unwrap();
        let [_, passages] = gate.files();
        // Sealed as the orders are, and written all the same.
        let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
        let orders = File::from(rustix::fs::memfd_create("orders", flags).unwrap());
        orders.set_len(4096).unwrap();
        rustix::fs::fcntl_add_seals(&orders, rustix::fs::SealFlags::SHRINK).unwrap();
        let (tables, file) = (memfd(16 * PAGE, 0), memfd(16 * PAGE, 7));
        share(&mut peer, 0, &[orders.as_fd(), passages]).unwrap();
        peer.map(0, 16 * PAGE, BOTH, Some((&tables, 0))).unwrap();
        peer.map(DATA, 16 * PAGE, BOTH, Some((&file, 0))).unwrap();
        for _ in 0..40 {
            for _ in 0..64 {
                let target = match random.u8(0..5) {
                    0 => random.u64(0..16) * PAGE,
                    1 => DATA + random.u64(0..20) * PAGE,
                    2 => BY_MESSAGE + random.u64(0..4) * PAGE,
                    _ => random.u64(..) & !0xfff,
                };
                let entry = target | random.u64(0..4096);
                tables.write_all_at(&entry.to_ne_bytes(), random.u64(0..16 * 512) * 8).unwrap();
                tables.write_all_at(&entry.to_ne_bytes(), random.u64(0..8) * PAGE).unwrap();
            }
            orders.write_all_at(&random.u64(..).to_ne_bytes(), random.u64(0..80) * 8).unwrap();
            orders.write_all_at(&random.u64(0..3).to_ne_bytes(), 0).unwrap();
            peer.dma(random.u64(0..1 << 28) & !0xfff & if random.bool() { 0xf000 } else { !0 }, 64, random.bool());
        }
        assert_eq!(peer.read(0, 0, 4), [0xed, 0, 0, 1]);
    }
}
