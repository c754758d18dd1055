//! Who has which number. It is noted after the engine gave it, and crossed out before it is given back, so what is
//! noted is held.

use std::collections::BTreeMap;
use std::sync::Mutex;

use ioasid::Pasid;

/// Object ids of one context, each with how many have it, and what it stands for, by the test's own number.
#[derive(Default)]
pub struct Ids(Mutex<BTreeMap<u32, (usize, u64)>>);

impl Ids {
    /// Somebody has `id`, which stands for `what`; it must not stand for anything else.
    pub fn hold(&self, id: u32, what: u64) {
        let mut ids = self.0.lock().unwrap();
        let entry = ids.entry(id).or_insert((0, what));
        assert_eq!(entry.1, what, "object id {id} was given out while somebody had it");
        entry.0 += 1;
    }

    /// Somebody lets it go.
    pub fn release(&self, id: u32) {
        let mut ids = self.0.lock().unwrap();
        let entry = ids.get_mut(&id).unwrap();
        entry.0 -= 1;
        if entry.0 == 0 {
            ids.remove(&id);
        }
    }
}

#[derive(Default)]
struct Holders {
    count: usize,
    /// The context that allocated it.
    allocated: Option<u64>,
    /// The context that freed it, while others had it.
    parked: Option<u64>,
}

impl Holders {
    fn check(&self, pasid: Pasid, context: u64) {
        assert!(self.allocated.is_none_or(|of| of == context), "PASID {pasid} is another context's");
        assert_eq!(self.parked, None, "PASID {pasid} is parked");
    }
}

/// PASIDs of the whole machine.
#[derive(Default)]
pub struct Pasids(Mutex<BTreeMap<Pasid, Holders>>);

impl Pasids {
    /// A context was given a PASID: nobody may have it.
    pub fn allocate(&self, pasid: Pasid, context: u64) {
        let mut all = self.0.lock().unwrap();
        let holders = all.entry(pasid).or_default();
        assert_eq!(holders.count, 0, "PASID {pasid} was given out while somebody had it");
        *holders = Holders { count: 1, allocated: Some(context), parked: None };
    }

    /// A part was given a PASID on the bus: nobody may have it.
    pub fn hold_new(&self, pasid: Pasid) {
        let mut all = self.0.lock().unwrap();
        let holders = all.entry(pasid).or_default();
        assert_eq!(holders.count, 0, "PASID {pasid} was given to a part while somebody had it");
        holders.count = 1;
    }

    /// A device is attached with it for a context, or somebody keeps it: it may be nobody else's.
    pub fn hold(&self, pasid: Pasid, context: u64) {
        let mut all = self.0.lock().unwrap();
        let holders = all.entry(pasid).or_default();
        holders.check(pasid, context);
        holders.count += 1;
    }

    /// Who has it has attached something else with it.
    pub fn use_again(&self, pasid: Pasid, context: u64) {
        self.0.lock().unwrap()[&pasid].check(pasid, context);
    }

    pub fn release(&self, pasid: Pasid) {
        let mut all = self.0.lock().unwrap();
        let holders = all.get_mut(&pasid).unwrap();
        holders.count -= 1;
        if holders.count == 0 {
            all.remove(&pasid);
        }
    }

    /// Its context frees it; whether others have it still.
    pub fn free(&self, pasid: Pasid) -> bool {
        let mut all = self.0.lock().unwrap();
        let holders = all.get_mut(&pasid).unwrap();
        holders.parked = holders.allocated.take();
        drop(all);
        self.release(pasid);
        self.0.lock().unwrap().contains_key(&pasid)
    }

    /// How many are held.
    pub fn held(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Whether any is parked.
    pub fn any_parked(&self) -> bool {
        self.0.lock().unwrap().values().any(|holders| holders.parked.is_some())
    }
}
