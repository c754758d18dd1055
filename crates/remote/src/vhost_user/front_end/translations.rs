//! What a back end is told of the address space that its device is attached to: what it asks for, until that is
//! unmapped.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use ioasid::{Access, Endpoint, Iova, IovaRange, Mirror, MirrorCapabilities, MirrorError, MirrorRun};
use thiserror::Error;

use super::regions::{PassError, Regions, Source};
use super::{BackEndEvent, FrontEnd, Miss};
use crate::Ended;
use crate::socket::bounded;
use crate::vhost_user::requests::RequestError;

/// What is mapped in one piece, whether or not a back end knows of it.
#[derive(Clone, Debug)]
struct Run {
    last: u64,
    access: Access,
    /// Where it is, if it is in a file.
    at: Option<(Source, u64)>,
    /// The back end has a translation, or had one.
    is_told: bool,
}

/// Translations for the back end of a device: a mirror of the address space that the device is attached to.
///
/// The back end has the files that memory is in, and is told where in them an IOVA leads when it asks. An unmap takes
/// that back, and returns when the back end has said that it goes by it no longer. One that does not say so is cut off,
/// and believed only when its process has ended: the unmap fails then
/// ([`UnmapError::Mirror`](ioasid::UnmapError::Mirror)).
pub struct Translations {
    patience: Duration,
    /// Is told what the back end cannot have.
    told: Box<dyn Fn(&str) + Send + Sync>,
    state: Mutex<State>,
    /// Held by the thread that brings another back end.
    follows: Mutex<()>,
}

#[derive(Default)]
struct State {
    runs: BTreeMap<u64, Run>,
    /// The back end that there is, or was: as long as it may reach what it was told.
    link: Option<Arc<FrontEnd>>,
    regions: Regions,
    /// The device may reach memory.
    is_on: bool,
    /// That the back end cannot have something was told.
    has_told: bool,
    /// By which what is not mapped is refused as any access is, and noted.
    endpoint: Weak<Endpoint>,
}

/// Why there is no other back end.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FollowError {
    /// The one before is cut off, and may still reach memory that it was told of.
    #[error("the back end before this one may still reach memory: end its process first")]
    Reachable,
    /// There is no thread to be had.
    #[error("there is no thread to be had: {0}")]
    Resources(#[from] std::io::Error),
}

/// Why a back end is not given a translation.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GiveError {
    /// The device may not reach memory now.
    #[error("the device is no bus master")]
    NoBusMaster(u64),
    /// Nothing is mapped there, or it may not be used so.
    #[error("nothing is mapped for it at IOVA {0:#x}")]
    NotMapped(u64),
    /// What is mapped is no memory that another process can have.
    #[error("the back end cannot have what is at IOVA {0:#x}: {1}")]
    NotShared(u64, String),
    /// The back end.
    #[error(transparent)]
    Request(#[from] RequestError),
}

impl fmt::Debug for Translations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Translations").field("patience", &self.patience).finish_non_exhaustive()
    }
}

impl Translations {
    /// For back ends that have so long to answer: a millisecond to an hour, or what is nearest to that. `told` is told,
    /// once for each back end, that it cannot have something.
    #[must_use]
    pub fn new(patience: Duration, told: impl Fn(&str) + Send + Sync + 'static) -> Arc<Self> {
        let (state, follows) = (Mutex::default(), Mutex::default());
        Arc::new(Self { patience: bounded(patience), told: Box::new(told), state, follows })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the back end asks for and is not mapped is an access of this device's that is refused.
    pub fn refuse_as(&self, endpoint: &Arc<Endpoint>) {
        self.lock().endpoint = Arc::downgrade(endpoint);
    }

    /// From now on `link` is the back end. A thread of its own answers what it asks for, until it goes, and calls
    /// `changed` when the device's configuration has changed. One that is followed already goes on as it was.
    ///
    /// # Errors
    /// [`FollowError`].
    pub fn follow(
        self: &Arc<Self>,
        link: &Arc<FrontEnd>,
        changed: impl Fn() + Send + 'static,
    ) -> Result<(), FollowError> {
        let _follows = self.follows.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.lock().link.clone();
        if before.as_ref().is_some_and(|before| Arc::ptr_eq(before, link)) {
            return Ok(());
        }
        let is_told = |state: &State| state.runs.values().any(|run| run.is_told);
        if let Some(before) = before {
            before.cut_off(Ended::Here);
            if is_told(&self.lock()) && !before.has_exited(self.patience) {
                return Err(FollowError::Reachable);
            }
        }
        let mut state = self.lock();
        state.runs.values_mut().for_each(|run| run.is_told = false);
        (state.link, state.regions, state.has_told) = (Some(link.clone()), Regions::default(), false);
        drop(state);
        let (translations, attended) = (Arc::downgrade(self), link.clone());
        let thread = std::thread::Builder::new().name("vhost-misses".to_owned());
        let thread = thread.spawn(move || attend(&translations, &attended, &changed));
        // Nobody would answer it.
        thread.map(drop).inspect_err(|_| link.cut_off(Ended::Here)).map_err(FollowError::Resources)
    }

    /// Answers what the back end asks for.
    fn bring(&self, link: &Arc<FrontEnd>, miss: &Miss) {
        let given = self.give(link, miss.iova, 1, miss.access);
        link.answer(miss, given.is_ok());
    }

    /// Gives the back end what `length` bytes from `iova` on lead to. Where nothing is mapped, the endpoint refuses and
    /// notes an access, as if the device had made it.
    ///
    /// # Errors
    /// [`GiveError`]; then it may have some of them.
    pub fn give(&self, link: &Arc<FrontEnd>, iova: u64, length: u64, access: Access) -> Result<(), GiveError> {
        let (mut at, last) = (iova, iova.saturating_add(length.max(1) - 1));
        loop {
            match self.give_one(link, at, access) {
                Ok(given) if given >= last => return Ok(()),
                Ok(given) => at = given + 1,
                Err(error) => return Err(self.note(error, access)),
            }
        }
    }

    fn note(&self, error: GiveError, access: Access) -> GiveError {
        let mut state = self.lock();
        match &error {
            GiveError::NoBusMaster(iova) | GiveError::NotMapped(iova) => {
                let endpoint = state.endpoint.upgrade();
                drop(state);
                // Nothing is moved, whatever is mapped there by now.
                endpoint.iter().for_each(|endpoint| drop(endpoint.port().slices(Iova(*iova), 1, access)));
            }
            GiveError::NotShared(..) if !std::mem::replace(&mut state.has_told, true) => {
                drop(state);
                (self.told)(&error.to_string());
            }
            _ => {}
        }
        error
    }

    /// Gives what `iova` is in; returns the last IOVA of that.
    fn give_one(&self, link: &Arc<FrontEnd>, iova: u64, access: Access) -> Result<u64, GiveError> {
        let mut state = self.lock();
        if !state.link.as_ref().is_some_and(|current| Arc::ptr_eq(current, link)) {
            return Err(RequestError::Ended(Ended::Here).into());
        }
        let State { runs, regions, is_on, .. } = &mut *state;
        if !*is_on {
            return Err(GiveError::NoBusMaster(iova));
        }
        let found = runs.range(..=iova).next_back().filter(|(_, run)| run.last >= iova);
        let found = found.filter(|(_, run)| run.access.contains(access));
        let (start, run) = found.ok_or(GiveError::NotMapped(iova))?;
        let (start, last, access) = (*start, run.last, run.access);
        let Some((source, offset)) = &run.at else {
            return Err(GiveError::NotShared(iova, "it is in no file, as memory that is mapped shared is".to_owned()));
        };
        let length = (last - start).saturating_add(1);
        let all_of = |id| runs.values().filter(move |run| run.at.as_ref().is_some_and(|(source, _)| source.id == id));
        // A file is passed as what is mapped of it allows, so mostly once.
        let may_be_written = || all_of(source.id).any(|run| run.access.contains(Access::WRITE));
        let in_use = |id| all_of(id).any(|run| run.is_told);
        let writes = access.contains(Access::WRITE);
        let user = match regions.address(link, source, *offset..offset + length, writes, may_be_written, in_use) {
            Ok(user) => user,
            Err(PassError::Request(RequestError::Ended(ended))) => return Err(RequestError::Ended(ended).into()),
            Err(error) => return Err(GiveError::NotShared(iova, error.to_string())),
        };
        // Before it is sent: whatever becomes of that, it is taken back.
        if let Some(run) = runs.get_mut(&start) {
            run.is_told = true;
        }
        link.update(start, length, user, access)?;
        Ok(last)
    }

    /// Whether the device may reach memory. With `false`, this returns when the back end goes by no translation any
    /// more, or is cut off.
    pub fn set_bus_master(&self, enabled: bool) {
        let mut state = self.lock();
        state.is_on = enabled;
        let told = state.told(IovaRange::ALL).filter(|_| !enabled);
        drop(state);
        if let Some(told) = told {
            self.is_taken_back(&told, Instant::now() + self.patience);
        }
    }

    /// Whether the device may reach memory.
    #[must_use]
    pub fn is_bus_master(&self) -> bool {
        self.lock().is_on
    }

    /// Takes translations back. Returns whether the back end has said that it goes by them no longer; if not, it is cut
    /// off.
    fn is_taken_back(&self, told: &Told, limit: Instant) -> bool {
        let taken = told.link.invalidate(told.range, limit);
        if let Err(RequestError::Refused(name)) = taken {
            told.link.end(Ended::protocol(format!("it refuses {name}")));
        }
        taken.is_ok()
    }
}

/// The back end goes with it.
impl Drop for Translations {
    fn drop(&mut self) {
        if let Some(link) = self.lock().link.take() {
            link.cut_off(Ended::Here);
        }
    }
}

/// Answers a back end, until it goes.
fn attend(translations: &Weak<Translations>, link: &Arc<FrontEnd>, changed: &dyn Fn()) {
    loop {
        match link.event() {
            Ok(Some(BackEndEvent::Miss(miss))) => match translations.upgrade() {
                Some(translations) => translations.bring(link, &miss),
                None => return,
            },
            Ok(Some(BackEndEvent::ConfigChange)) => changed(),
            Ok(None) if link.is_gone() => return,
            Ok(None) => {
                let mut signs: Vec<_> = link.signs().collect();
                // A signal, or memory that there is not: it looks again.
                let _ = rustix::event::poll(&mut signs, None);
            }
            Err(_) => return,
        }
    }
}

/// What is to be taken back, and from whom.
struct Told {
    link: Arc<FrontEnd>,
    range: IovaRange,
}

impl State {
    /// Where the runs begin that have something of this range.
    fn reached(&self, range: IovaRange) -> impl Iterator<Item = (u64, &Run)> {
        let first = self.runs.range(..=range.start()).next_back().map_or(range.start(), |(start, _)| *start);
        let runs = self.runs.range(first..=range.last()).filter(move |(_, run)| run.last >= range.start());
        runs.map(|(start, run)| (*start, run))
    }

    /// What the back end was told of in this range. A run stays told until it is unmapped: whoever unmaps it asks the
    /// back end to forget it, and waits, whatever else is under way.
    fn told(&self, range: IovaRange) -> Option<Told> {
        let mut told = self.reached(range).filter(|(_, run)| run.is_told);
        let (first, run) = told.next()?;
        let last = told.last().map_or(run.last, |(_, run)| run.last);
        Some(Told { link: self.link.clone()?, range: IovaRange::inclusive(first, last)? })
    }

    /// Nothing of this range is mapped any more.
    fn remove(&mut self, range: IovaRange) {
        let reached: Vec<u64> = self.reached(range).map(|(start, _)| start).collect();
        reached.iter().for_each(|start| drop(self.runs.remove(start)));
    }
}

impl Mirror for Translations {
    fn capabilities(&self) -> MirrorCapabilities {
        MirrorCapabilities::default()
    }

    /// The back end is told when it asks.
    fn map(&self, run: &MirrorRun<'_>) -> Result<(), MirrorError> {
        let chunks = run.memory().chunks().into_iter().map(|chunk| {
            let start = run.range.start() + chunk.offset;
            let at = chunk.file.and_then(|range| Some((Source::of(&range.file).ok()?, range.offset)));
            (start, Run { last: start + (chunk.length - 1), access: run.access, at, is_told: false })
        });
        self.lock().runs.extend(chunks);
        Ok(())
    }

    fn unmap(&self, runs: &mut dyn Iterator<Item = IovaRange>) -> Result<(), MirrorError> {
        let limit = Instant::now() + self.patience;
        for run in runs {
            let mut state = self.lock();
            let told = state.told(run);
            state.remove(run);
            drop(state);
            let is_out = |told: Told| self.is_taken_back(&told, limit) || told.link.has_exited(self.patience);
            if !told.is_none_or(is_out) {
                // From now on nobody says what is unmapped.
                self.lock().runs.clear();
                return Err(MirrorError::Reachable);
            }
        }
        Ok(())
    }

    /// What the back end knows as one piece it forgets as one.
    fn split(&self, at: Iova) -> Result<(), MirrorError> {
        let mut state = self.lock();
        let before = state.runs.range_mut(..at.0).next_back();
        let Some((start, run)) = before.filter(|(_, run)| run.last >= at.0) else { return Ok(()) };
        let behind = run.at.as_ref().map(|(source, offset)| (source.clone(), offset + (at.0 - start)));
        let second = Run { at: behind, ..run.clone() };
        run.last = at.0 - 1;
        state.runs.insert(at.0, second);
        Ok(())
    }
}
