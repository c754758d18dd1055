//! Page tables that the server's device walks by itself: what is mapped there costs no message.
//!
//! ```text
//!   IOVA ── tables, in memory that the server reads ──► address: 0 ……… the tables themselves
//!                                                                2^36 … files, as a whole, once each (windows)
//!                                                                2^47 … the IOVA again: by messages
//! ```
//! A file is passed when something in it is first mapped, and stays passed as long as something is; a few that nothing
//! needs any more are kept, as the next mapping may be of the same. What is in no file the server asks for by messages,
//! which are translated here: it is told so once for each GiB of IOVAs.
//!
//! When a translation is taken away the server's device forgets it and is waited for by a gate in shared memory (see
//! [`GateOwner`]), which takes half a microsecond where a message takes a hundred times as long.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use ioasid::memory::{MemoryChunk, TableSpace};
use ioasid::{Access, GateOwner, IovaRange, MirrorRun, Unacknowledged};
use iopt::format::{Marked, VtdSecondStage};
use iopt::{Arena, EmptyTables, PageTable};
use thiserror::Error;
use zerocopy::IntoBytes;
use zerocopy::native_endian::{U32, U64};

use super::lock;
use super::mirror::passable;
use crate::socket::Ended;
use crate::vfio_user::connection::{CallError, Connection};
use crate::vfio_user::wire::{BY_MESSAGE, CommandId, DmaFlags, DmaMap, DmaUnmap, SharedTables};

/// Room for tables: those of 512 GiB in pages of 4 KiB.
const TABLES: usize = 1 << 30;
/// Where the first file is.
const FIRST_WINDOW: u64 = 1 << 36;
/// What files are aligned to, so that all sizes of pages fit.
const WINDOW_ALIGNMENT: u64 = 1 << 30;
/// Bytes of tables that are told at once: as many as tables grow by.
const STEP: u64 = 2 << 20;
/// How many IOVAs at once the server is told to reach by messages.
const GRANULE: u64 = 1 << 30;
/// Files that are passed still when nothing is mapped of them any more.
const IDLE_WINDOWS: usize = 8;

/// Why something was not mapped.
#[derive(Debug, Error)]
pub(super) enum TablesError {
    /// The device follows another address space, and has something there.
    #[error(transparent)]
    Table(#[from] iopt::MapError),
    /// It has an IOVA that the tables have not.
    #[error("the device's page tables have 47 bits of IOVA")]
    Beyond,
    /// The server does not take a file, or to be asked by messages.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// Why a run is not mapped.
#[derive(Debug, Error)]
pub(super) enum NotMapped {
    /// It is not, as before.
    #[error(transparent)]
    Failed(#[from] TablesError),
    /// Nor is it known that the server's device does not reach it.
    #[error(transparent)]
    Unacknowledged(#[from] Unacknowledged),
}

/// Tables that a server was given.
pub(super) struct Tables {
    gate: GateOwner,
    table: PageTable<Marked<VtdSecondStage>, TableSpace>,
    state: Mutex<State>,
}

/// What was passed, and what needs it.
#[derive(Default)]
struct State {
    /// By IOVA.
    chunks: BTreeMap<u64, Chunk>,
    windows: Vec<Window>,
    /// What the server reaches by messages.
    granules: BTreeSet<u64>,
    /// Bytes of tables that it has mapped.
    tables: u64,
}

/// A run of IOVAs that is in one window, or in none.
struct Chunk {
    length: u64,
    /// Where the window begins.
    window: Option<u64>,
}

/// A file that the server has mapped as a whole.
struct Window {
    base: u64,
    length: u64,
    /// As the engine has it, which shares files.
    file: Arc<File>,
    writable: bool,
    /// Chunks that are in it.
    users: usize,
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tables").field("gate", &self.gate).finish_non_exhaustive()
    }
}

impl Tables {
    /// New ones, which the server takes; `None` if it does not.
    pub(super) fn share(connection: &Connection) -> Result<Option<Self>, CallError> {
        let make = || -> Option<Self> {
            let arena = Arc::new(Arena::with_memory(TableSpace::shared(TABLES).ok()?));
            let table = PageTable::new(arena).ok()?;
            Some(Self { gate: GateOwner::new().ok()?, table, state: Mutex::default() })
        };
        let Some(tables) = make() else { return Ok(None) };
        let argsz = U32::new(size_of::<SharedTables>() as u32);
        let offer = SharedTables { argsz, flags: U32::new(0), root: U64::new(tables.table.root().0) };
        match connection.call(CommandId::SharedTables, &[offer.as_bytes()], &tables.gate.files()) {
            Ok(_) => {}
            Err(CallError::Refused(..)) => return Ok(None),
            Err(ended) => return Err(ended),
        }
        let told = tables.tell_tables(connection, &mut lock(&tables.state));
        // One that walks tables and does not take them is of no use.
        told.map_err(|error| connection.end(Ended::protocol(error.to_string())))?;
        Ok(Some(tables))
    }

    /// Has the server map the memory that tables are in, and that of the next, so that it has a table before anything
    /// leads there.
    fn tell_tables(&self, connection: &Connection, state: &mut State) -> Result<(), CallError> {
        let arena = self.table.arena();
        let Some(file) = arena.memory().file() else { return Ok(()) };
        let needed = (arena.extent() + STEP as usize).min(TABLES) as u64;
        while state.tables < needed {
            tell(connection, state.tables, STEP, Access::READ, Some((file.as_fd(), state.tables)))?;
            state.tables += STEP;
        }
        Ok(())
    }

    /// Whether nothing is mapped.
    pub(super) fn is_empty(&self) -> bool {
        lock(&self.state).chunks.is_empty()
    }

    /// Maps a run. If that fails, nothing of it is mapped, and the server's device has been waited for, as in
    /// [`Tables::unmap`]; [`NotMapped::Unacknowledged`] says that it was in vain.
    pub(super) fn map(
        &self,
        connection: &Connection,
        run: &MirrorRun<'_>,
        is_there: impl FnMut() -> bool,
    ) -> Result<(), NotMapped> {
        if run.range.last() >= BY_MESSAGE {
            return Err(TablesError::Beyond.into());
        }
        let (mut empty, mut done) = (EmptyTables::none(), Vec::new());
        let mut state = lock(&self.state);
        let mapped = run.memory().chunks().iter().try_for_each(|chunk| {
            let iova = run.range.start() + chunk.offset;
            let (address, window) = state.place(connection, iova, chunk, run.access)?;
            self.table.map(iova, address, chunk.length, run.access, &mut empty)?;
            state.users_of(window).into_iter().for_each(|users| *users += 1);
            state.chunks.insert(iova, Chunk { length: chunk.length, window });
            done.push(iova);
            Ok(())
        });
        // Also if it failed: what there is of tables may be linked below something else next.
        let told = self.tell_tables(connection, &mut state).map_err(TablesError::from);
        let Err(error) = mapped.and(told) else { return Ok(()) };
        if matches!(error, TablesError::Call(CallError::Ended(_))) {
            // It is gone: the unmap says how it is with what it has.
            return Ok(());
        }
        let mut out_of_use = Vec::new();
        done.into_iter().for_each(|start| self.take_out(&mut state, start, &mut empty, &mut out_of_use));
        drop(state);
        // A device may have met what was written of the chunk that failed, too.
        self.gate.invalidate(run.range, is_there).map_err(NotMapped::Unacknowledged)?;
        self.settle(connection, empty, out_of_use, IDLE_WINDOWS);
        Err(error.into())
    }

    /// Takes a chunk out of the table.
    fn take_out(&self, state: &mut State, start: u64, empty: &mut EmptyTables, out_of_use: &mut Vec<u64>) {
        let Some(Chunk { length, window }) = state.chunks.remove(&start) else { return };
        let unmapped = self.table.unmap(start, length, empty);
        debug_assert_eq!(unmapped, Ok(()));
        out_of_use.extend(window);
    }

    /// Lets go of what no device uses any more.
    fn settle(&self, connection: &Connection, empty: EmptyTables, out_of_use: Vec<u64>, idle: usize) {
        self.table.free(empty);
        let mut state = lock(&self.state);
        for window in out_of_use {
            state.users_of(Some(window)).into_iter().for_each(|users| *users -= 1);
        }
        state.let_go(connection, idle);
    }

    /// Takes out what is mapped in `runs`, and waits until the server's device does not use it any more. While that is
    /// inside, `is_there` is asked whether to wait on.
    ///
    /// # Errors
    /// [`Unacknowledged`] if it says no.
    pub(super) fn unmap(
        &self,
        connection: &Connection,
        runs: &mut dyn Iterator<Item = IovaRange>,
        is_there: impl FnMut() -> bool,
    ) -> Result<(), Unacknowledged> {
        let (mut empty, mut hull) = (EmptyTables::none(), None);
        let (mut out_of_use, mut is_all) = (Vec::new(), false);
        for run in runs {
            is_all |= run == IovaRange::ALL;
            let mut state = lock(&self.state);
            let there: Vec<u64> = state.chunks.range(run.start()..=run.last()).map(|(start, _)| *start).collect();
            for start in there {
                let last = start + state.chunks.get(&start).map_or(0, |chunk| chunk.length - 1);
                self.take_out(&mut state, start, &mut empty, &mut out_of_use);
                hull = Some(hull.map_or((start, last), |(first, _)| (first, last)));
            }
        }
        if let Some(range) = hull.and_then(|(first, last)| IovaRange::new(first, last - first + 1)) {
            // What is not known to be out of use stays, tables and all.
            self.gate.invalidate(range, is_there)?;
        }
        self.settle(connection, empty, out_of_use, if is_all { 0 } else { IDLE_WINDOWS });
        Ok(())
    }

    /// Sees to it that what is mapped on either side of `at` can be unmapped by itself.
    pub(super) fn split(&self, connection: &Connection, at: u64) -> Result<(), TablesError> {
        let mut state = lock(&self.state);
        let cut = state.chunks.range_mut(..at).next_back().filter(|(start, chunk)| *start + chunk.length > at);
        let Some((start, chunk)) = cut else { return Ok(()) };
        let length = chunk.length - (at - start);
        self.table.split(at & !0xfff, 0x1000, 12)?;
        chunk.length = at - start;
        let window = chunk.window;
        state.chunks.insert(at, Chunk { length, window });
        state.users_of(window).into_iter().for_each(|users| *users += 1);
        Ok(self.tell_tables(connection, &mut state)?)
    }
}

impl State {
    fn users_of(&mut self, window: Option<u64>) -> Option<&mut usize> {
        let base = window?;
        self.windows.iter_mut().find(|window| window.base == base).map(|window| &mut window.users)
    }

    /// The address at which the server finds a chunk, and the window that it is in, if it is in one.
    fn place(
        &mut self,
        connection: &Connection,
        iova: u64,
        chunk: &MemoryChunk,
        access: Access,
    ) -> Result<(u64, Option<u64>), TablesError> {
        if let Some(range) = &chunk.file
            && let Some(base) = self.window(connection, &range.file, access, range.offset + chunk.length)?
        {
            return Ok((base + range.offset, Some(base)));
        }
        let (first, last) = (iova / GRANULE, (iova + (chunk.length - 1)) / GRANULE);
        for granule in first..=last {
            if !self.granules.contains(&granule) {
                tell(connection, BY_MESSAGE + granule * GRANULE, GRANULE, Access::all(), None)?;
                self.granules.insert(granule);
            }
        }
        Ok((BY_MESSAGE | iova, None))
    }

    /// Where the server has a file, up to `end` at least, for such accesses; `None` if it cannot be passed.
    fn window(
        &mut self,
        connection: &Connection,
        file: &Arc<File>,
        access: Access,
        end: u64,
    ) -> Result<Option<u64>, TablesError> {
        let writable = access.contains(Access::WRITE);
        let fits =
            |window: &&Window| Arc::ptr_eq(&window.file, file) && window.writable == writable && end <= window.length;
        if let Some(window) = self.windows.iter().find(fits) {
            return Ok(Some(window.base));
        }
        let Some(passed) = passable(file, access) else { return Ok(None) };
        let length = file.metadata().map_or(0, |about| about.len()) & !0xfff;
        if length < end {
            return Ok(None);
        }
        // Where there is none, it goes by messages.
        let Some(base) = self.gap(length) else { return Ok(None) };
        let rights = if writable { Access::all() } else { Access::READ };
        tell(connection, base, length, rights, Some((passed.as_fd(), 0)))?;
        self.windows.push(Window { base, length, file: file.clone(), writable, users: 0 });
        Ok(Some(base))
    }

    /// The first place that a file of this length has among the others.
    fn gap(&self, length: u64) -> Option<u64> {
        let mut taken: Vec<(u64, u64)> = self.windows.iter().map(|window| (window.base, window.length)).collect();
        taken.sort_unstable();
        let mut base = FIRST_WINDOW;
        for (start, taken) in taken {
            if base.checked_add(length)? <= start {
                break;
            }
            base = (start + taken).next_multiple_of(WINDOW_ALIGNMENT);
        }
        (base.checked_add(length)? <= BY_MESSAGE).then_some(base)
    }

    /// Has the server unmap files that nothing needs, but for so many.
    fn let_go(&mut self, connection: &Connection, idle: usize) {
        let unused = self.windows.iter().filter(|window| window.users == 0).count();
        for _ in idle..unused {
            let Some(oldest) = self.windows.iter().position(|window| window.users == 0) else { return };
            let Window { base, length, .. } = self.windows.remove(oldest);
            let argsz = U32::new(size_of::<DmaUnmap>() as u32);
            let unmap = DmaUnmap { argsz, flags: U32::new(0), address: U64::new(base), size: U64::new(length) };
            // Nothing leads there any more; but the next file is to be there.
            if let Err(CallError::Refused(_, errno)) = connection.call(CommandId::DmaUnmap, &[unmap.as_bytes()], &[]) {
                connection.end(Ended::protocol(format!("it refuses to unmap: {errno}")));
            }
        }
    }
}

/// Tells the server what is at some addresses: a file from an offset on, or what it has to ask for.
fn tell(
    connection: &Connection,
    address: u64,
    length: u64,
    access: Access,
    file: Option<(BorrowedFd<'_>, u64)>,
) -> Result<(), CallError> {
    let map = DmaMap {
        argsz: U32::new(size_of::<DmaMap>() as u32),
        flags: U32::new(DmaFlags::of(access).bits()),
        offset: U64::new(file.map_or(0, |(_, offset)| offset)),
        address: U64::new(address),
        size: U64::new(length),
    };
    let files: Vec<_> = file.into_iter().map(|(file, _)| file).collect();
    connection.call(CommandId::DmaMap, &[map.as_bytes()], &files).map(drop)
}
