//! Pins: software reaches what an address space maps without DMA, from any thread, and lets go when it is to be
//! unmapped.

use std::error::Error;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use ioasid::memory::Segment;
use ioasid::{Access, AccessError, Iova, IovaRange, Machine, PinnedRange, Placement, Silent};

const PAGE: u64 = 4096;

/// What is pinned. The lock is held while pinning, so that a notice finds in the list what is pinned.
type Pins = Arc<Mutex<Vec<Arc<PinnedRange>>>>;

fn lock(pins: &Pins) -> MutexGuard<'_, Vec<Arc<PinnedRange>>> {
    pins.lock().unwrap_or_else(PoisonError::into_inner)
}

fn main() -> Result<(), Box<dyn Error>> {
    let machine = Machine::new(Arc::new(Silent));
    let context = machine.context();
    let ioas = context.ioas_alloc().ok_or("no ids")?;
    let (_, file) = Segment::memfd(4 * PAGE)?;
    // Two mappings that touch, of pages that do not.
    for (iova, offset) in [(0x1000, 0), (0x2000, 2 * PAGE)] {
        let memory = Segment::file(&file, offset, PAGE, true)?;
        ioas.map(Placement::Fixed(Iova(iova)), PAGE, Access::all(), || Ok(vec![memory]))?;
    }

    // The notice: by the time it returns, everything in the range is let go.
    let pins = Pins::default();
    let told = pins.clone();
    let notice = move |range: IovaRange| lock(&told).retain(|pin| !pin.range().overlaps(&range));
    let access = context.access(Some(Box::new(notice))).ok_or("no ids")?;
    access.attach(&ioas)?;

    // Reading and writing needs no pin.
    access.write(Iova(0x1ffe), b"both")?;
    let mut found = [0; 2];
    file.read_exact_at(&mut found, 2 * PAGE)?;
    assert_eq!(&found, b"th");

    // Pinned, the bytes stay where they are: to be handed to another process as ranges of a file …
    let pinned = {
        let mut pins = lock(&pins);
        pins.push(Arc::new(access.pin(Iova(0x1000), 2 * PAGE, Access::all())?));
        pins[0].clone()
    };
    let places = pinned.chunks().into_iter().map(|chunk| (chunk.offset, chunk.length, chunk.file.map(|at| at.offset)));
    assert_eq!(places.collect::<Vec<_>>(), [(0, PAGE, Some(0)), (PAGE, PAGE, Some(2 * PAGE))]);

    // … or to be read and written by another thread, for as long as it takes.
    let worker = thread::spawn(move || {
        let mut found = [0; 4];
        pinned.read(PAGE - 2, &mut found)?;
        pinned.write(0, &found)?;
        // The list has the other reference: what is dropped last lets go.
        drop(pinned);
        Ok::<_, std::io::Error>(found)
    });
    assert_eq!(&worker.join().map_err(|_| "the worker panicked")??, b"both");

    // An unmap gives one notice for all that is pinned in its range, and succeeds when it has been let go.
    assert_eq!(ioas.unmap(IovaRange::ALL)?, 2 * PAGE);
    assert!(lock(&pins).is_empty());
    assert!(matches!(access.pin(Iova(0x1000), 1, Access::READ), Err(AccessError::NotMapped(_))));
    let mut found = [0; 4];
    file.read_exact_at(&mut found, 0)?;
    assert_eq!(&found, b"both", "what was written is in the file");
    println!("two pages were pinned, used by another thread, and let go at the notice of an unmap");
    Ok(())
}
