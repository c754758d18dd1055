//! What the server is told of the address space that the device is attached to.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ioasid::memory::{FileRange, MemoryChunk};
use ioasid::{Access, Iova, IovaRange, Mirror, MirrorCapabilities, MirrorError, MirrorRun, Unacknowledged};
use zerocopy::IntoBytes;
use zerocopy::native_endian::{U32, U64};

use super::tables::{NotMapped, Tables};
use super::{Link, MemoryBy, Remote, lock};
use crate::socket::Ended;
use crate::vfio_user::connection::CallError;
use crate::vfio_user::wire::{BY_MESSAGE, CommandId, DmaFlags, DmaMap, DmaUnmap};

/// What the server was told to map: by its first IOVA, how many bytes.
pub(super) type Mapped = BTreeMap<u64, u64>;

impl Mirror for Remote {
    fn capabilities(&self) -> MirrorCapabilities {
        // One that says nothing that makes sense takes pages as they are everywhere.
        let sizes = Some(self.link().page_sizes).filter(|sizes| *sizes != 0).unwrap_or(4096);
        let capabilities = MirrorCapabilities::default().with_page_sizes(!0 << sizes.trailing_zeros().max(12));
        match (&self.link().tables, IovaRange::new(0, BY_MESSAGE)) {
            (Some(_), Some(aperture)) => capabilities.with_aperture(aperture),
            _ => capabilities,
        }
    }

    fn map(&self, run: &MirrorRun<'_>) -> Result<(), MirrorError> {
        let link = self.link();
        if let Some(tables) = &link.tables {
            return self.map_in(tables, &link, run);
        }
        let length = run.range.len_minus_one() + 1;
        let pieces = match self.options.memory != MemoryBy::Messages {
            true => run.memory().chunks().into_iter().map(Piece::from).collect(),
            false => vec![Piece { offset: 0, length, file: None }],
        };
        let mut done = Vec::new();
        for piece in pieces {
            let start = run.range.start() + piece.offset;
            match self.map_piece(&link, start, &piece, run.access) {
                Ok(()) => done.push(start),
                // It is gone, and has what it has: the unmap says how it is with that.
                Err(MapPieceError::Call(CallError::Ended(_))) => done.push(start),
                Err(error) => {
                    done.into_iter().for_each(|start| self.unmap_one(&link, start));
                    return Err(self.not_mapped(&link, error));
                }
            }
        }
        Ok(())
    }

    fn unmap(&self, runs: &mut dyn Iterator<Item = IovaRange>) -> Result<(), MirrorError> {
        let link = self.link();
        if let Some(tables) = &link.tables {
            return self.unmap_in(tables, &link, runs);
        }
        let limit = link.connection.limit();
        for run in runs {
            let starts: Vec<u64> =
                lock(&self.mapped).range(run.start()..=run.last()).map(|(start, _)| *start).collect();
            for start in starts {
                // What is not unmapped by then is let go of with the connection.
                let _ = link.connection.keep_to(limit, CommandId::DmaUnmap);
                self.unmap_one(&link, start);
            }
        }
        if self.is_out_of_reach(&link) { Ok(()) } else { Err(MirrorError::Reachable) }
    }

    fn split(&self, at: Iova) -> Result<(), MirrorError> {
        let link = self.link();
        match &link.tables {
            Some(tables) => tables.split(&link.connection, at.0).map_err(|error| MirrorError::Failed(error.into())),
            None => Err(MirrorError::Unsupported("split a mapping")),
        }
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
    #[error("the device has something else there: it follows another address space")]
    Elsewhere,
    #[error("the server has room for {0} mappings")]
    Full(u64),
    #[error(transparent)]
    Call(#[from] CallError),
}

impl Remote {
    fn map_in(&self, tables: &Tables, link: &Link, run: &MirrorRun<'_>) -> Result<(), MirrorError> {
        match tables.map(&link.connection, run, self.until_cut_off(link)) {
            Ok(()) => Ok(()),
            Err(NotMapped::Failed(error)) => Err(MirrorError::Failed(error.into())),
            Err(NotMapped::Unacknowledged(_)) => {
                self.end_process(link);
                Err(self.not_mapped(link, Unacknowledged))
            }
        }
    }

    /// Why a run is not mapped, of which everything was taken back: what the server does not let go of, it may reach.
    fn not_mapped(&self, link: &Link, why: impl std::error::Error + Send + Sync + 'static) -> MirrorError {
        if self.is_out_of_reach(link) { MirrorError::Failed(Box::new(why)) } else { MirrorError::Reachable }
    }

    /// A server that is there says by its gate that it is out. One that does not in time is ended.
    fn unmap_in(
        &self,
        tables: &Tables,
        link: &Link,
        runs: &mut dyn Iterator<Item = IovaRange>,
    ) -> Result<(), MirrorError> {
        if tables.unmap(&link.connection, runs, self.until_cut_off(link)).is_err() {
            self.end_process(link);
        }
        if self.is_out_of_reach(link) { Ok(()) } else { Err(MirrorError::Reachable) }
    }

    /// Says whether to wait on for a server: from the first time that it is asked, for as long as that has to answer.
    fn until_cut_off(&self, link: &Link) -> impl FnMut() -> bool {
        let mut limit = None;
        move || {
            let limit = *limit.get_or_insert_with(|| Instant::now() + self.options.patience);
            Instant::now() < limit && !self.has_exited(link, Duration::ZERO)
        }
    }

    /// Cuts a server off whose device does not come out, and ends its process.
    fn end_process(&self, link: &Link) {
        link.connection.end(Ended::Silent(CommandId::DmaUnmap.name(), self.options.patience));
        if let Some(process) = &link.process {
            process.kill();
        }
    }

    fn map_piece(&self, link: &Link, start: u64, piece: &Piece, access: Access) -> Result<(), MapPieceError> {
        if lock(&self.mapped).len() as u64 >= link.most_maps {
            return Err(MapPieceError::Full(link.most_maps));
        }
        let file = piece.file.as_ref().filter(|_| link.descriptors > 0);
        let file = file.and_then(|range| Some((passable(&range.file, access)?, range.offset)));
        let flags = DmaFlags::of(access);
        let map = DmaMap {
            argsz: U32::new(size_of::<DmaMap>() as u32),
            flags: U32::new(flags.bits()),
            offset: U64::new(file.as_ref().map_or(0, |(_, offset)| *offset)),
            address: U64::new(start),
            size: U64::new(piece.length),
        };
        let descriptors: Vec<_> = file.iter().map(|(file, _)| file.as_fd()).collect();
        link.has_files.fetch_or(!descriptors.is_empty(), Ordering::SeqCst);
        // From now on it is to be unmapped, unless the server says that it has not mapped it.
        match lock(&self.mapped).entry(start) {
            Entry::Occupied(_) => return Err(MapPieceError::Elsewhere),
            Entry::Vacant(place) => place.insert(piece.length),
        };
        let mapped = link.connection.call(CommandId::DmaMap, &[map.as_bytes()], &descriptors);
        if let Err(CallError::Refused(..)) = mapped {
            lock(&self.mapped).remove(&start);
        }
        Ok(mapped.map(drop)?)
    }

    /// Whether the server reaches nothing that it was to unmap. What it reaches by messages, the port refuses. What it
    /// has mapped, it may still reach if it did not say otherwise, as long as it is there.
    fn is_out_of_reach(&self, link: &Link) -> bool {
        let may_have_files = link.connection.ended().is_some() && link.has_files.load(Ordering::SeqCst);
        !may_have_files || self.has_exited(link, self.options.patience)
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
    pub(super) fn has_exited(&self, link: &Link, patience: Duration) -> bool {
        link.process.as_ref().is_some_and(|process| process.has_exited(patience))
    }
}

/// The file as it is passed: who may only read what is mapped is passed one that can only be read.
pub(super) fn passable(file: &Arc<File>, access: Access) -> Option<Arc<File>> {
    if access.contains(Access::WRITE) {
        return Some(file.clone());
    }
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).ok().map(Arc::new)
}
