//! What owners do, at random: several threads on the same few contexts.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, RwLock};

use ioasid::{
    AttachError, BindError, Context, DestroyError, Device, Held, HwptError, HwptOptions, Machine, ObjectId, Pasid,
    PasidError, PasidHold,
};

use crate::history::{Attachment, OnBus};
use crate::memory::{Space, number};
use crate::numbers::{Ids, Pasids};
use crate::{ALLOCATED, CONTEXTS, DONE, ENDED, HIGHEST, Random, Scene};

/// Most devices that a thread has bound, address spaces and page tables of a context, and PASIDs that a driver keeps.
const DEVICES: usize = 2;
const SPACES: usize = 2;
const TABLES: usize = 8;
const KEPT: usize = 3;
/// Requesters that are not mediated; the next is, and what is bound beyond them are its parts.
const WHOLE: usize = 3;

/// A context, and what the test knows of it.
pub struct Owned {
    context: Arc<Context>,
    number: u64,
    ids: Arc<Ids>,
    spaces: Mutex<Vec<Arc<Space>>>,
    tables: Mutex<Vec<Arc<Table>>>,
    /// What is in here, nobody has freed yet.
    pasids: Mutex<Vec<Pasid>>,
    of_machine: Arc<Pasids>,
    /// Held to keep a PASID or attach with one, and alone to allocate one, to free one or all: otherwise nobody could
    /// say which came first.
    order: RwLock<()>,
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.pasids.lock().unwrap().drain(..).for_each(|pasid| {
            self.of_machine.free(pasid);
        });
    }
}

impl Owned {
    pub fn new(machine: &Arc<Machine>, pasids: &Arc<Pasids>) -> Arc<Self> {
        DONE.add("contexts opened", 1);
        Arc::new(Self {
            context: machine.context(),
            number: number(),
            ids: Arc::default(),
            spaces: Mutex::default(),
            tables: Mutex::default(),
            pasids: Mutex::default(),
            of_machine: pasids.clone(),
            order: RwLock::default(),
        })
    }
}

/// A page table. Whoever knows it has its id, so that this means nothing else.
struct Table {
    id: u32,
    number: u64,
    signature: u64,
    space: Option<Arc<Space>>,
    is_parent: bool,
    ids: Arc<Ids>,
    /// That the object is there is noted, too, until somebody parks it.
    parked: Mutex<bool>,
    _held: Held,
}

impl Drop for Table {
    fn drop(&mut self) {
        if !*self.parked.lock().unwrap() {
            self.ids.release(self.id);
        }
        self.ids.release(self.id);
    }
}

/// What a device can be attached to.
#[derive(Clone)]
enum Target {
    Space(Arc<Space>),
    Table(Arc<Table>),
}

impl Target {
    /// Its id and number, the signature that is reached by it, and whose memory that is, if not a process's.
    fn parts(&self) -> (u32, u64, u64, Option<&Arc<Space>>) {
        match self {
            Self::Space(space) => (space.ioas.id().into(), space.number, space.signature, Some(space)),
            Self::Table(table) => (table.id, table.number, table.signature, table.space.as_ref()),
        }
    }
}

/// An attachment that this thread made.
struct Made {
    token: u64,
    /// The page table's id, which this holds, and the number of what it stands for.
    id: u32,
    number: u64,
    /// The PASID on the bus, which this holds.
    pasid: Option<Pasid>,
}

/// A device that this thread has bound.
struct Bound {
    device: Device,
    owned: Arc<Owned>,
    endpoint: usize,
    made: BTreeMap<Option<Pasid>, Made>,
}

pub struct Owner<'m> {
    scene: &'m Scene,
    random: Random,
    bound: Vec<Bound>,
    /// A driver's, with the context's number.
    kept: Vec<(PasidHold, Arc<Owned>)>,
    /// The address space that it unmapped last.
    unmapped: Option<Arc<Space>>,
}

impl<'m> Owner<'m> {
    pub fn new(scene: &'m Scene, seed: u64) -> Self {
        Self { scene, random: Random(seed), bound: Vec::new(), kept: Vec::new(), unmapped: None }
    }

    pub fn run(mut self) {
        while !self.scene.stop.load(Ordering::Relaxed) {
            let slot = self.random.below(CONTEXTS);
            let owned = self.scene.contexts[slot].lock().unwrap().clone();
            match self.random.below(1000) {
                0..3 => self.close(slot),
                3..43 => self.bind(&owned),
                43..53 => self.drop_device(),
                53..153 => self.make_table(&owned),
                153..203 => self.park(&owned),
                203..283 => self.allocate(&owned),
                283..333 => self.free(&owned),
                333..363 => self.keep(&owned),
                363..403 => self.let_go(),
                403..413 => self.unmap(&owned),
                413..415 => self.end_process(),
                415..420 => self.scene.children.begin(),
                420..850 => self.attach(),
                _ => self.detach(),
            }
        }
        self.bound.drain(..).for_each(|bound| drop_bound(self.scene, bound));
        while !self.kept.is_empty() {
            self.let_go();
        }
    }

    /// Another context in place of one, which its devices are bound to still.
    fn close(&mut self, slot: usize) {
        let new = Owned::new(&self.scene.machine, &self.scene.pasids);
        let old = std::mem::replace(&mut *self.scene.contexts[slot].lock().unwrap(), new);
        let _alone = old.order.write().unwrap();
        old.pasids.lock().unwrap().drain(..).for_each(|pasid| {
            self.scene.pasids.free(pasid);
        });
        old.context.close().unwrap();
        let ended = self.scene.history.close_all(|attachment| attachment.context == old.number);
        ENDED.add("context closed", ended);
    }

    fn bind(&mut self, owned: &Arc<Owned>) {
        let endpoint = self.random.below(self.scene.endpoints.len());
        if self.bound.len() >= DEVICES {
            return;
        }
        match owned.context.bind(&self.scene.endpoints[endpoint]) {
            Ok(device) => {
                owned.ids.hold(device.id().into(), number());
                DONE.add(if endpoint < WHOLE { "devices bound" } else { "parts of a device bound" }, 1);
                self.bound.push(Bound { device, owned: owned.clone(), endpoint, made: BTreeMap::new() });
            }
            Err(error) => {
                // Who unbinds it lets the group go last.
                assert!(matches!(error, BindError::AlreadyBound | BindError::GroupBusy), "{error}");
            }
        }
    }

    fn drop_device(&mut self) {
        if !self.bound.is_empty() {
            let which = self.random.below(self.bound.len());
            drop_bound(self.scene, self.bound.swap_remove(which));
        }
    }

    fn make_table(&mut self, owned: &Arc<Owned>) {
        let context = &owned.context;
        if owned.spaces.lock().unwrap().len() < SPACES {
            let space = Space::new(context);
            owned.ids.hold(space.ioas.id().into(), space.number);
            owned.spaces.lock().unwrap().push(space);
        }
        if owned.tables.lock().unwrap().len() >= TABLES {
            return;
        }
        let table = match self.random.below(3) {
            0 => self.make_paging(owned),
            1 => self.make_nested(owned),
            _ => self.make_sva(owned),
        };
        owned.tables.lock().unwrap().extend(table);
    }

    fn make_paging(&mut self, owned: &Arc<Owned>) -> Option<Arc<Table>> {
        let device = self.bound.iter().find(|bound| Arc::ptr_eq(&bound.owned, owned))?.device.endpoint();
        let space = self.random.pick(&owned.spaces.lock().unwrap())?;
        let is_parent = self.random.below(2) == 0;
        let options = HwptOptions::default().nest_parent(is_parent).pasids(true);
        let made = owned.context.hwpt_alloc(device, &space.ioas, options);
        let id = made
            .inspect_err(|error| assert!(matches!(error, HwptError::Missing(_) | HwptError::Closed), "{error}"))
            .ok()?
            .id();
        DONE.add("page tables made", 1);
        note(owned, id, space.signature, Some(space), is_parent)
    }

    fn make_nested(&mut self, owned: &Arc<Owned>) -> Option<Arc<Table>> {
        let parents: Vec<_> = owned.tables.lock().unwrap().iter().filter(|table| table.is_parent).cloned().collect();
        let parent = self.random.pick(&parents)?;
        // Somebody may park it meanwhile.
        let on = owned.context.nest_parent(parent.id)?;
        let made = owned.context.hwpt_alloc_nested(on, Space::guest_table());
        let id = made
            .inspect_err(|error| assert!(matches!(error, HwptError::Missing(_) | HwptError::Closed), "{error}"))
            .ok()?
            .id();
        DONE.add("nested page tables made", 1);
        let space = parent.space.clone()?;
        note(owned, id, space.guests, Some(space), false)
    }

    fn make_sva(&mut self, owned: &Arc<Owned>) -> Option<Arc<Table>> {
        let waiter = self.random.pick(&self.scene.children.all())?;
        // It may end before, or between.
        let made = owned.context.hwpt_alloc_sva(waiter.open()?).ok()?;
        DONE.add("SVA page tables made", 1);
        note(owned, made.id(), waiter.signature, None, false)
    }

    fn park(&mut self, owned: &Arc<Owned>) {
        let table = {
            let mut tables = owned.tables.lock().unwrap();
            if tables.is_empty() {
                return;
            }
            let which = self.random.below(tables.len());
            tables.swap_remove(which)
        };
        let mut parked = table.parked.lock().unwrap();
        *parked = true;
        owned.ids.release(table.id);
        match owned.context.park(table.id) {
            Ok(()) => {
                let ended = self.scene.history.close_all(|attachment| attachment.target == table.number);
                ENDED.add("page table parked", ended);
                DONE.add("page tables parked", 1);
                DONE.add("ids of objects that waited", usize::from(ended > 0));
            }
            // One is nested on it.
            Err(DestroyError::Busy(_)) => {
                owned.ids.hold(table.id, table.number);
                *parked = false;
                owned.tables.lock().unwrap().push(table.clone());
            }
            // The context was closed.
            Err(error) => assert!(matches!(error, DestroyError::Missing(_)), "{error}"),
        }
    }

    fn allocate(&mut self, owned: &Arc<Owned>) {
        let some_parked = self.scene.pasids.any_parked();
        // Others of this context could attach with it by chance, before it is noted whose it is.
        let _alone = owned.order.write().unwrap();
        match owned.context.pasid_alloc(ALLOCATED.0, ALLOCATED.1) {
            Ok(pasid) => {
                self.scene.pasids.allocate(pasid, owned.number);
                DONE.add("PASIDs allocated", 1);
                owned.pasids.lock().unwrap().push(pasid);
            }
            Err(error) => {
                assert!(matches!(error, PasidError::Full(..)), "{error}");
                DONE.add("no PASID free, as some are parked", usize::from(some_parked));
            }
        }
    }

    fn free(&mut self, owned: &Arc<Owned>) {
        let _alone = owned.order.write().unwrap();
        let pasid = {
            let mut pasids = owned.pasids.lock().unwrap();
            if pasids.is_empty() {
                return;
            }
            let which = self.random.below(pasids.len());
            pasids.swap_remove(which)
        };
        let waits = self.scene.pasids.free(pasid);
        owned.context.pasid_free(pasid).unwrap();
        let ended = self.scene.history.close_all(|attachment| {
            // A part may be given the number at once, for something else.
            let is_same = attachment.pasid == OnBus::Known(Some(pasid)) && attachment.own == Some(pasid);
            attachment.context == owned.number && is_same
        });
        ENDED.add("PASID freed", ended);
        DONE.add("PASIDs parked", usize::from(waits));
        let kept = self.kept.iter().filter(|(hold, of)| hold.pasid() == pasid && Arc::ptr_eq(of, owned));
        kept.for_each(|(hold, _)| assert!(hold.is_parked()));
    }

    /// A driver writes a PASID into a device.
    fn keep(&mut self, owned: &Arc<Owned>) {
        let _order = owned.order.read().unwrap();
        let Some(pasid) = self.random.pick(&owned.pasids.lock().unwrap()) else { return };
        if self.kept.len() < KEPT
            && let Ok(hold) = owned.context.hold_pasid(pasid)
        {
            self.scene.pasids.hold(pasid, owned.number);
            self.kept.push((hold, owned.clone()));
        }
    }

    fn let_go(&mut self) {
        if !self.kept.is_empty() {
            let (hold, _) = self.kept.remove(0);
            self.scene.pasids.release(hold.pasid());
        }
    }

    /// Takes away what is mapped in an address space.
    fn unmap(&mut self, owned: &Arc<Owned>) {
        let Some(space) = owned.spaces.lock().unwrap().pop() else { return };
        space.unmap(&self.scene.history);
        let ended =
            self.scene.history.close_all(|attachment| [space.signature, space.guests].contains(&attachment.signature));
        ENDED.add("memory unmapped", ended);
        if let Some(before) = self.unmapped.replace(space) {
            before.check_untouched();
        }
    }

    fn end_process(&mut self) {
        let which = self.random.below(64);
        if let Some(waiter) = self.scene.children.take(which) {
            waiter.end();
            // Its memory goes when nobody reads it any more, which may be a moment later: attachments are not over.
            let ended = self.scene.history.open_with(waiter.signature);
            ENDED.add("process ended", ended);
        }
    }

    fn attach(&mut self) {
        if self.bound.is_empty() {
            return;
        }
        let which = self.random.below(self.bound.len());
        let bound = &mut self.bound[which];
        let owned = bound.owned.clone();
        let own = match self.random.below(8) {
            0 => None,
            // One that was not allocated, or is another's.
            1 => Pasid::new(1 + self.random.below(HIGHEST as usize) as u32),
            _ => self.random.pick(&owned.pasids.lock().unwrap()),
        };
        let tables = owned.tables.lock().unwrap().iter().cloned().map(Target::Table).collect::<Vec<_>>();
        let spaces = owned.spaces.lock().unwrap().iter().cloned().map(Target::Space).collect::<Vec<_>>();
        let Some(target) = self.random.pick(&[tables, spaces].concat()) else { return };
        let _order = own.map(|_| owned.order.read().unwrap());

        let (scene, is_part) = (self.scene, bound.endpoint >= WHOLE);
        let (id, number, signature, space) = target.parts();
        let before = bound.made.remove(&own);
        let (requester, known) = match (is_part, &before) {
            (false, _) => (bound.endpoint, OnBus::Known(own)),
            (true, None) => (WHOLE, OnBus::NotYet),
            (true, Some(before)) => (WHOLE, OnBus::Known(before.pasid)),
        };
        let token = scene
            .history
            .open(requester, Attachment { pasid: known, own, signature, context: owned.number, target: number });
        if let (Some(space), OnBus::Known(pasid)) = (space, known) {
            space.may_write(requester, pasid);
        }
        if let Some(before) = &before {
            owned.ids.release(before.id);
        }
        // Somebody may have parked it.
        let found = owned.context.target(id).ok_or(None);
        match found.and_then(|target| bound.device.attach(own, target).map_err(Some)) {
            Ok(table) => {
                let pasid = match scene.endpoints[bound.endpoint].virtual_pasids() {
                    Some(numbers) => numbers.physical(own),
                    None => own,
                };
                if let Some(space) = space {
                    space.may_write(requester, pasid);
                }
                // An automatic table is its address space's, and has an id of its own.
                owned.ids.hold(table.into(), number);
                match (&before, pasid) {
                    (Some(before), _) => {
                        ENDED.add("replaced", scene.history.close(requester, before.token));
                        assert_eq!(before.pasid, pasid, "it is another on the bus");
                        if own == pasid {
                            own.into_iter().for_each(|own| scene.pasids.use_again(own, owned.number));
                        }
                    }
                    (None, Some(pasid)) if is_part && own != Some(pasid) => scene.pasids.hold_new(pasid),
                    (None, Some(pasid)) => scene.pasids.hold(pasid, owned.number),
                    (None, None) => {}
                }
                scene.history.settle(requester, token, pasid);
                DONE.add(if own.is_some() { "attached by PASID" } else { "attached by RID" }, 1);
                bound.made.insert(own, Made { token, id: table.into(), number, pasid });
            }
            Err(error) => {
                let expected = error.as_ref().is_none_or(|error| {
                    matches!(error, AttachError::Missing(_) | AttachError::PasidElsewhere(_) | AttachError::Closed)
                });
                assert!(expected, "{error:?}");
                scene.history.cancel(requester, token);
                DONE.add("attaching refused", 1);
                if let Some(before) = before {
                    owned.ids.hold(before.id, before.number);
                    bound.made.insert(own, before);
                }
            }
        }
    }

    fn detach(&mut self) {
        if self.bound.is_empty() {
            return;
        }
        let which = self.random.below(self.bound.len());
        let bound = &mut self.bound[which];
        let keys: Vec<_> = bound.made.keys().copied().collect();
        let Some(own) = self.random.pick(&keys) else { return };
        let Some(made) = bound.made.remove(&own) else { return };
        bound.owned.ids.release(made.id);
        made.pasid.into_iter().for_each(|pasid| self.scene.pasids.release(pasid));
        bound.device.detach(own).unwrap();
        let requester = bound.endpoint.min(WHOLE);
        ENDED.add("detached", self.scene.history.close(requester, made.token));
    }
}

/// Notes a page table that was made, and keeps its id from meaning something else.
fn note(
    owned: &Arc<Owned>,
    id: ObjectId,
    signature: u64,
    space: Option<Arc<Space>>,
    is_parent: bool,
) -> Option<Arc<Table>> {
    // Gone already, if the context was closed.
    let held = owned.context.hold(id)?;
    let (number, id) = (number(), id.into());
    // There is the object, and what holds it.
    owned.ids.hold(id, number);
    owned.ids.hold(id, number);
    let (ids, parked) = (owned.ids.clone(), Mutex::new(false));
    Some(Arc::new(Table { id, number, signature, space, is_parent, ids, parked, _held: held }))
}

fn drop_bound(scene: &Scene, bound: Bound) {
    let Bound { device, owned, endpoint, made } = bound;
    for made in made.values() {
        owned.ids.release(made.id);
        made.pasid.into_iter().for_each(|pasid| scene.pasids.release(pasid));
    }
    owned.ids.release(device.id().into());
    drop(device);
    let ended = made.values().map(|made| scene.history.close(endpoint.min(WHOLE), made.token));
    ENDED.add("device dropped", ended.sum());
}
