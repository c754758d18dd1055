//! A mirror: whatever has to have the same mappings as an address space. This one keeps a list of which bytes of which
//! file lie where, as a device in another process would be sent it.

use std::collections::BTreeMap;
use std::error::Error;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ioasid::memory::{PinnedMemory, Segment};
use ioasid::{Access, Iova, IovaRange, MapError, Mirror, MirrorError, MirrorRun, Placement, Silent};
use ioasid::{Machine, MirrorCapabilities};

const PAGE: u64 = 4096;

/// What is mapped, by its first address.
#[derive(Default)]
struct Remote(Mutex<BTreeMap<u64, Mapping>>);

struct Mapping {
    access: Access,
    /// The descriptor that would be sent, and the offset in the file.
    file: (i32, u64),
    /// Keeps the bytes where they are. It is let go before `unmap` returns.
    _memory: PinnedMemory,
}

impl Remote {
    fn list(&self) -> MutexGuard<'_, BTreeMap<u64, Mapping>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn files(&self) -> Vec<(u64, Access, i32, u64)> {
        self.list().iter().map(|(&at, each)| (at, each.access, each.file.0, each.file.1)).collect()
    }
}

impl Mirror for Remote {
    fn capabilities(&self) -> MirrorCapabilities {
        // The other side has 32 bits of IOVA, and pages of 4 KiB and more.
        MirrorCapabilities::default().with_aperture(IovaRange::new(0, 1 << 32).unwrap_or(IovaRange::ALL))
    }

    fn map(&self, run: &MirrorRun<'_>) -> Result<(), MirrorError> {
        let memory = run.memory();
        let chunks = memory.chunks();
        let [chunk] = chunks.as_slice() else { return Err(MirrorError::Unsupported("map several files at once")) };
        let file = chunk.file.as_ref().ok_or(MirrorError::Unsupported("map what is in no file"))?;
        let file = (file.file.as_raw_fd(), file.offset);
        self.list().insert(run.range.start(), Mapping { access: run.access, file, _memory: memory });
        Ok(())
    }

    /// When it returns, the other side reaches nothing of this any more: here a real one waits for the answer.
    fn unmap(&self, runs: &mut dyn Iterator<Item = IovaRange>) -> Result<(), MirrorError> {
        runs.for_each(|run| self.list().retain(|at, _| !(run.start()..=run.last()).contains(at)));
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let machine = Machine::new(Arc::new(Silent));
    let ioas = machine.context().ioas_alloc().ok_or("no ids")?;
    let (_, file) = Segment::memfd(8 * PAGE)?;
    let map = |iova: u64, offset: u64, pages: u64| {
        let memory = Segment::file(&file, offset, pages * PAGE, true).map_err(Into::into);
        ioas.map(Placement::Fixed(Iova(iova)), pages * PAGE, Access::all(), || memory.map(|memory| vec![memory]))
    };
    map(0x1000, 0, 2)?;

    // It joins: what is mapped already is handed to it, and what is mapped from then on as well.
    let remote = Arc::new(Remote::default());
    ioas.add_mirror(remote.clone())?;
    map(0x8000, 4 * PAGE, 1)?;
    let fd = file.as_raw_fd();
    assert_eq!(remote.files(), [(0x1000, Access::all(), fd, 0), (0x8000, Access::all(), fd, 4 * PAGE)]);

    // What it cannot map is refused for the address space, which is as it was.
    assert!(matches!(map(1 << 32, 0, 1), Err(MapError::Reserved(_))));
    ioas.protect(IovaRange::new(0x8000, PAGE).ok_or("empty")?, Access::READ)?;
    assert_eq!(remote.files()[1], (0x8000, Access::READ, fd, 4 * PAGE));
    ioas.unmap(IovaRange::new(0x1000, 2 * PAGE).ok_or("empty")?)?;
    assert_eq!(remote.files().len(), 1);
    let mirror: Arc<dyn Mirror> = remote.clone();
    ioas.remove_mirror(&mirror)?;
    println!("a mirror followed a join, a map, a change of rights and an unmap");
    Ok(())
}
