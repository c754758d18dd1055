//! Dirty tracking: which pages devices wrote, as a VMM asks that copies a guest's memory while the guest runs.

use std::error::Error;
use std::sync::Arc;

use ioasid::memory::Segment;
use ioasid::{Access, GroupId, Hwpt, HwptOptions, Iova, IovaRange, Machine, Placement, Silent};

const PAGE: u64 = 4096;
/// A large page, at a place where it can be one.
const BASE: u64 = 1 << 30;
const LENGTH: u64 = 2 << 20;

/// The numbers of the pages that were written since the last time.
fn written(hwpt: &Hwpt) -> Result<Vec<u64>, Box<dyn Error>> {
    let pages = LENGTH / PAGE;
    let mut bitmap = vec![0; pages.div_ceil(64) as usize];
    // With `clear`: each write that is noted has arrived when this returns, and the next one is noted afresh.
    hwpt.read_dirty(IovaRange::new(BASE, LENGTH).ok_or("empty")?, PAGE, true, &mut bitmap)?;
    Ok((0..pages).filter(|page| bitmap[*page as usize / 64] >> (page % 64) & 1 == 1).collect())
}

fn main() -> Result<(), Box<dyn Error>> {
    let machine = Machine::new(Arc::new(Silent));
    let endpoint = machine.add_endpoint("0000:00:01.0".parse()?, GroupId(0))?;
    endpoint.set_bus_master(true)?;
    let context = machine.context();
    let device = context.bind(&endpoint)?;
    let ioas = context.ioas_alloc().ok_or("no ids")?;
    ioas.map(Placement::Fixed(Iova(BASE)), LENGTH, Access::all(), || Ok(vec![Segment::memfd(LENGTH)?.0]))?;

    // Only devices whose IOMMU tracks what they write can be attached to this page table.
    let options = HwptOptions::default().dirty_tracking(true);
    let hwpt = context.hwpt_alloc(device.endpoint(), &ioas, options)?;
    device.attach(None, &hwpt)?;
    let mut port = endpoint.port();
    port.write(Iova(BASE), &[1])?;

    // From here on, and for each page of 4 KiB by itself.
    hwpt.start_dirty_tracking(PAGE)?;
    assert_eq!(written(&hwpt)?, [0; 0], "what was written before is not noted");
    port.write(Iova(BASE + 3 * PAGE + 4000), &[1; 200])?;
    port.read(Iova(BASE + 9 * PAGE), &mut [0; 8])?;
    port.fetch_add(Iova(BASE + 500 * PAGE), 1)?;
    assert_eq!(written(&hwpt)?, [3, 4, 500]);

    // The translation of page 3 is cached, and a write to it is noted all the same.
    port.write(Iova(BASE + 3 * PAGE), &[2])?;
    assert_eq!(written(&hwpt)?, [3]);
    assert_eq!(written(&hwpt)?, [0; 0]);
    hwpt.stop_dirty_tracking();
    println!("of 512 pages a device wrote 3, 4 and 500, and then 3 again: each was noted once");
    Ok(())
}
