//! A device of another process is one like any other: registers, interrupts, DMA by what it is attached to.

use ioasid::Access;
use ioasid_remote::vfio_user::MemoryBy;
use ioasid_vfio::IrqIndex;
use ioasid_vfio::device::irq::IrqActions;

use crate::bench::{Bench, Listening, bytes, counter, memory, options, signals, wait_until};

/// The ways in which a server reaches memory.
const EACH: [MemoryBy; 3] = [MemoryBy::Tables, MemoryBy::Files, MemoryBy::Messages];

#[test]
fn registers_and_resets_are_the_servers() {
    let server = Listening::to("edu");
    let bench = Bench::new(options(&server, MemoryBy::Tables));
    assert_eq!(bench.read(0), 0x0100_00ed);
    bench.write(4, 1);
    assert_eq!(bench.read(4), 0xffff_fffe);
    bench.session().reset();
    assert_eq!(bench.read(4), 0);
    assert!(bench.vfio.function().bar_read(0, 1 << 20, &mut [0; 4]).is_err());
}

#[test]
fn a_device_reaches_what_it_is_attached_to_and_nothing_when_it_is_not() {
    for how in EACH {
        let server = Listening::to("edu");
        let bench = Bench::new(options(&server, how));
        let file = memory(0x4000, 5);
        bench.map_file(0x10_0000, &file, Access::all()).unwrap();
        bench.dma(0x10_0000, 256, false);
        bench.dma(0x10_2000, 256, true);
        assert_eq!(bytes(&file, 0x2000, 257), vec![5; 257], "{how:?}");
        std::os::unix::fs::FileExt::write_all_at(&*file, &[9; 256], 0).unwrap();
        bench.dma(0x10_0000, 256, false);
        // Not bus master, not attached, not mapped, not to be written.
        bench.session().write(ioasid_vfio::device::region::file_offset(7) + 4, &[2, 0]).unwrap();
        bench.dma(0x10_3000, 256, true);
        bench.enable();
        bench.device.detach(None).unwrap();
        bench.dma(0x10_3000, 256, true);
        bench.device.attach(None, &bench.ioas).unwrap();
        bench.unmap(0x10_0000, 0x4000).unwrap();
        bench.dma(0x10_3000, 256, true);
        bench.map_file(0x10_0000, &file, Access::READ).unwrap();
        bench.dma(0x10_3000, 256, true);
        assert_eq!(bytes(&file, 0x3000, 256), vec![5; 256], "{how:?}");
        bench.unmap(0x10_0000, 0x4000).unwrap();
        bench.map_file(0x20_0000, &file, Access::all()).unwrap();
        bench.dma(0x20_3000, 256, true);
        assert_eq!(bytes(&file, 0x3000, 256), vec![9; 256], "{how:?}");
    }
}

#[test]
fn an_unmap_that_has_returned_holds() {
    for how in EACH {
        let server = Listening::to("edu");
        let bench = Bench::new(options(&server, how));
        let file = memory(0x1000, 0);
        for round in 0..200u32 {
            bench.map_file(0x10_0000, &file, Access::all()).unwrap();
            bench.start_dma(0x10_0000, 4096, true);
            if round % 2 == 0 {
                bench.unmap(0x10_0000, 0x1000).unwrap();
            } else {
                bench.device.detach(None).unwrap();
            }
            std::os::unix::fs::FileExt::write_all_at(&*file, &[0xAA; 4096], 0).unwrap();
            wait_until("the transfer has ended", || bench.read(0x98) & 1 == 0);
            assert_eq!(bytes(&file, 0, 4096), vec![0xAA; 4096], "round {round}, {how:?}");
            if round % 2 != 0 {
                bench.unmap(0x10_0000, 0x1000).unwrap();
                bench.device.attach(None, &bench.ioas).unwrap();
            }
        }
    }
}

#[test]
fn it_interrupts_by_what_is_enabled() {
    let server = Listening::to("edu");
    let bench = Bench::new(options(&server, MemoryBy::Tables));
    let (message, line) = (counter(), counter());
    bench.set_irqs(IrqIndex::Msi as u32, IrqActions::TRIGGER, Some(&message));
    bench.write(0x60, 1);
    wait_until("the message has come", || signals(&message) == 1);
    bench.write(0x64, 1);
    let none = ioasid_vfio::device::irq::IrqData::None;
    let off = |index| {
        let set =
            ioasid_vfio::device::irq::IrqSet { index, start: 0, count: 0, actions: IrqActions::TRIGGER, data: none };
        bench.session().set_irqs(&set, &mut |_| unreachable!()).unwrap();
    };
    off(IrqIndex::Msi as u32);
    // The line stays up until it is acknowledged, and signals again each time that it is unmasked.
    bench.set_irqs(IrqIndex::Intx as u32, IrqActions::TRIGGER, Some(&line));
    bench.write(0x60, 1);
    for _ in 0..20 {
        wait_until("the line is up", || signals(&line) == 1);
        bench.set_irqs(IrqIndex::Intx as u32, IrqActions::UNMASK, None);
    }
    wait_until("the line is up", || signals(&line) == 1);
    bench.write(0x64, 1);
    bench.set_irqs(IrqIndex::Intx as u32, IrqActions::UNMASK, None);
    assert_eq!(bench.read(0x24), 0);
    assert_eq!((signals(&line), signals(&message)), (0, 0));
    off(IrqIndex::Intx as u32);
}
