//! What the server is told of the address space that the device is attached to.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ioasid::memory::{FileRange, MemoryChunk};
use ioasid::{Access, IovaRange, Mirror, MirrorCapabilities, MirrorError, MirrorRun};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zerocopy::IntoBytes;
use zerocopy::native_endian::{U32, U64};

use super::{Link, Remote, lock};
use crate::connection::{CallError, Ended};
use crate::wire::{CommandId, DmaFlags, DmaMap, DmaUnmap};

/// What the server was told to map: by its first IOVA, how many bytes.
pub(super) type Mapped = BTreeMap<u64, u64>;

impl Mirror for Remote {
    fn capabilities(&self) -> MirrorCapabilities {
        // One that says nothing that makes sense takes pages as they are everywhere.
        let sizes = Some(self.link().page_sizes).filter(|sizes| *sizes != 0).unwrap_or(4096);
        MirrorCapabilities::default().with_page_sizes(!0 << sizes.trailing_zeros().max(12))
    }

    fn map(&self, run: &MirrorRun<'_>) -> Result<(), MirrorError> {
        let link = self.link();
        let length = run.range.len_minus_one() + 1;
        let pieces = match self.options.passes_files {
            true => run.memory().chunks().into_iter().map(Piece::from).collect(),
            false => vec![Piece { offset: 0, length, file: None }],
        };
        let mut done = Vec::new();
        for piece in pieces {
            let start = run.range.start() + piece.offset;
            match self.map_piece(&link, start, &piece, run.access) {
                Ok(()) => done.push(start),
                // It is gone, and reaches nothing.
                Err(MapPieceError::Call(CallError::Ended(_))) => return Ok(()),
                Err(error) => {
                    done.into_iter().for_each(|start| self.unmap_one(&link, start));
                    return Err(MirrorError::Failed(error.into()));
                }
            }
        }
        Ok(())
    }

    fn unmap(&self, runs: &mut dyn Iterator<Item = IovaRange>) -> Result<(), MirrorError> {
        let link = self.link();
        for run in runs {
            let starts: Vec<u64> =
                lock(&self.mapped).range(run.start()..=run.last()).map(|(start, _)| *start).collect();
            starts.into_iter().for_each(|start| self.unmap_one(&link, start));
        }
        // What it reaches by messages, the port refuses. What it has mapped, it may still reach if it did not say
        // otherwise, as long as it is there.
        let is_out_of_reach = || link.connection.ended().is_none() || !link.has_files.load(Ordering::SeqCst);
        if is_out_of_reach() || self.has_exited(&link) { Ok(()) } else { Err(MirrorError::Reachable) }
    }
}

/// Part of a run, which is one mapping of the server's.
struct Piece {
    offset: u64,
    length: u64,
    file: Option<FileRange>,
}

impl From<MemoryChunk> for Piece {
    fn from(chunk: MemoryChunk) -> Self {
        Self { offset: chunk.offset, length: chunk.length, file: chunk.file }
    }
}

/// Why the server does not map something.
#[derive(Debug, thiserror::Error)]
enum MapPieceError {
    #[error("the server has room for {0} mappings")]
    Full(u64),
    #[error(transparent)]
    Call(#[from] CallError),
}

impl Remote {
    fn map_piece(&self, link: &Link, start: u64, piece: &Piece, access: Access) -> Result<(), MapPieceError> {
        if lock(&self.mapped).len() as u64 >= link.most_maps {
            return Err(MapPieceError::Full(link.most_maps));
        }
        let file = piece.file.as_ref().filter(|_| link.descriptors > 0);
        let file = file.and_then(|range| Some((passable(&range.file, access)?, range.offset)));
        let mut flags = DmaFlags::empty();
        flags.set(DmaFlags::READ, access.contains(Access::READ));
        flags.set(DmaFlags::WRITE, access.contains(Access::WRITE));
        let map = DmaMap {
            argsz: U32::new(size_of::<DmaMap>() as u32),
            flags: U32::new(flags.bits()),
            offset: U64::new(file.as_ref().map_or(0, |(_, offset)| *offset)),
            address: U64::new(start),
            size: U64::new(piece.length),
        };
        let descriptors: Vec<_> = file.iter().map(|(file, _)| file.as_fd()).collect();
        link.has_files.fetch_or(!descriptors.is_empty(), Ordering::SeqCst);
        // From now on it is to be unmapped.
        lock(&self.mapped).insert(start, piece.length);
        let mapped = link.connection.call(CommandId::DmaMap, &[map.as_bytes()], &descriptors);
        if mapped.is_err() {
            lock(&self.mapped).remove(&start);
        }
        Ok(mapped.map(drop)?)
    }

    /// Has the server let go of a mapping. One that does not is cut off.
    fn unmap_one(&self, link: &Link, start: u64) {
        let Some(size) = lock(&self.mapped).remove(&start) else { return };
        let argsz = U32::new(size_of::<DmaUnmap>() as u32);
        let unmap = DmaUnmap { argsz, flags: U32::new(0), address: U64::new(start), size: U64::new(size) };
        if let Err(CallError::Refused(_, errno)) = link.connection.call(CommandId::DmaUnmap, &[unmap.as_bytes()], &[]) {
            link.connection.end(Ended::protocol(format!("it refuses to unmap: {errno}")));
        }
    }

    /// Whether the server's process ends in time, with all that it has mapped.
    fn has_exited(&self, link: &Link) -> bool {
        let Some(process) = &link.process else { return false };
        let patience = Timespec::try_from(self.options.patience).ok();
        poll(&mut [PollFd::new(process, PollFlags::IN)], patience.as_ref()).is_ok_and(|ready| ready > 0)
    }
}

/// The file as it is passed: who may only read what is mapped is passed one that can only be read.
fn passable(file: &Arc<File>, access: Access) -> Option<Arc<File>> {
    if access.contains(Access::WRITE) {
        return Some(file.clone());
    }
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).ok().map(Arc::new)
}
