//! What a port knows of its own attachments: the context cache.
//!
//! ```text
//!   PASID, or none ──► page table, domain          domain: the tag of translations in the IOTLB
//!                      if it is nested, a second domain, of what the parent translates
//! ```
//!
//! A domain is never given to a second attachment as long as the IOTLB may hold translations of the first. So
//! forgetting an attachment means forgetting its domain, at once, however many translations are cached; what stays
//! behind is not found any more and is pushed out in time.

use std::ptr::NonNull;

use crate::base::types::{IovaRange, Pasid};
use crate::gate::invalidation::TableId;
use crate::hwpt::{Hwpt, NestedHwpt, SvaHwpt, Table};
use crate::kind::Stage1;

use super::iotlb::LAST_DOMAIN;

/// PASIDs whose attachments are known at a time; a PASID's low bits say where.
const PASIDS: usize = 256;

/// From one domain to the next. As it is odd, all are different.
const DOMAIN_SPREAD: u64 = 0x2c5;

/// A page table. Valid inside the gate: a thread that detaches waits there.
#[derive(Clone, Copy)]
pub(super) enum Attached {
    Paging(NonNull<Hwpt>),
    Nested { table: NonNull<NestedHwpt>, parent: TableId },
    Sva(NonNull<SvaHwpt>),
}

impl Attached {
    /// `None` to what is parked.
    pub(super) fn to(table: &Table) -> Option<Self> {
        Some(match table {
            Table::Paging(hwpt) => Self::Paging(NonNull::from(&**hwpt)),
            Table::Nested(nested) => {
                Self::Nested { table: NonNull::from(&**nested), parent: TableId::of(&**nested.parent()) }
            }
            Table::Sva(sva) => Self::Sva(NonNull::from(&**sva)),
            Table::Parked(_) => return None,
        })
    }
}

/// One attachment.
#[derive(Clone, Copy)]
pub(super) struct Context {
    pub(super) table: Attached,
    pub(super) domain: u64,
    /// The domain of the guest-physical addresses that the parent translates; of other tables, its own again.
    pub(super) parent_domain: u64,
    /// Of a nested table, once it was looked up: what the guest translates by.
    pub(super) stage1: Option<Stage1>,
    /// Of a nested table: log2 of the largest of the guest's pages that is cached in pieces, as the parent's pages are
    /// smaller. The guest invalidates such a page by any address in it.
    pub(super) fractured: u32,
    /// Of a PASID: whether it goes by the attachment without one, as a guest owns the PASIDs.
    pub(super) inherited: bool,
}

impl Context {
    fn is_of(&self, table: TableId) -> bool {
        let address = match self.table {
            Attached::Paging(hwpt) => hwpt.addr(),
            Attached::Nested { table, .. } => table.addr(),
            Attached::Sva(sva) => sva.addr(),
        };
        TableId::of_address(address) == table
    }

    fn is_over(&self, table: TableId) -> bool {
        matches!(self.table, Attached::Nested { parent, .. } if parent == table)
    }
}

/// Place for one of the PASIDs that share it.
type Slot = Option<(Pasid, Context)>;

#[derive(Default)]
pub(super) struct Contexts {
    plain: Option<Context>,
    /// Made when the first PASID is used.
    pasids: Option<Box<[Slot; PASIDS]>>,
    /// Domains given out since the IOTLB was last emptied.
    domains: u64,
}

// SAFETY: the cache only keeps the pointers; code that follows them says why that is right.
#[allow(unsafe_code, reason = "keeps pointers")]
unsafe impl Send for Contexts {}

impl Contexts {
    #[inline]
    pub(super) fn find(&self, pasid: Option<Pasid>) -> Option<Context> {
        match pasid {
            None => self.plain,
            Some(pasid) => {
                let (found, context) = self.pasids.as_ref()?[slot(pasid)]?;
                (found == pasid).then_some(context)
            }
        }
    }

    /// Makes room for PASIDs. Not to be called inside the gate: a thread that waits there must not wait for memory.
    #[cold]
    pub(super) fn prepare(&mut self) {
        self.pasids.get_or_insert_with(|| Box::new([None; PASIDS]));
    }

    /// Notes an attachment, with a new domain; `None` if there is no domain left, and everything has to be forgotten
    /// first.
    pub(super) fn insert(&mut self, pasid: Option<Pasid>, table: Attached, inherited: bool) -> Option<Context> {
        let domain = self.new_domain()?;
        let parent_domain = match table {
            Attached::Paging(_) | Attached::Sva(_) => domain,
            Attached::Nested { .. } => self.new_domain()?,
        };
        let context = Context { table, domain, parent_domain, stage1: None, fractured: 0, inherited };
        self.put(pasid, context);
        Some(context)
    }

    /// Notes what was found out about an attachment.
    pub(super) fn put(&mut self, pasid: Option<Pasid>, context: Context) {
        match pasid {
            None => self.plain = Some(context),
            Some(pasid) => {
                if let Some(pasids) = &mut self.pasids {
                    pasids[slot(pasid)] = Some((pasid, context));
                }
            }
        }
    }

    fn new_domain(&mut self) -> Option<u64> {
        if self.domains == LAST_DOMAIN {
            return None;
        }
        self.domains += 1;
        // Far from each other, as the IOTLB finds its sets with them.
        Some(self.domains.wrapping_mul(DOMAIN_SPREAD) & LAST_DOMAIN)
    }

    /// Notes that a page of 2^`shift` bytes of the guest's is cached in pieces.
    pub(super) fn fracture(&mut self, pasid: Option<Pasid>, shift: u32) {
        if let Some(context) = self.find(pasid)
            && context.fractured < shift
        {
            self.put(pasid, Context { fractured: shift, ..context });
        }
    }

    /// The domains of attachments to a page table, and what of each is to be forgotten with `range`.
    pub(super) fn domains_of(&self, table: TableId, range: IovaRange) -> impl Iterator<Item = (u64, IovaRange)> + '_ {
        let pasids = self.pasids.iter().flat_map(|pasids| pasids.iter().flatten().map(|(_, context)| context));
        self.plain.iter().chain(pasids).filter(move |context| context.is_of(table)).map(move |context| {
            let page = !(!0 << context.fractured);
            (context.domain, IovaRange { start: range.start & !page, last: range.last | page })
        })
    }

    /// Forgets one attachment, and what goes by it.
    pub(super) fn forget(&mut self, pasid: Option<Pasid>) {
        match pasid {
            None => {
                self.plain = None;
                self.forget_where(|context| context.inherited);
            }
            Some(pasid) => {
                if let Some(slot) = self.pasids.as_mut().map(|pasids| &mut pasids[slot(pasid)]) {
                    slot.take_if(|(found, _)| *found == pasid);
                }
            }
        }
    }

    /// Forgets the attachments to tables that are nested on `parent`: by which addresses they got there is not known.
    pub(super) fn forget_over(&mut self, parent: TableId) {
        self.forget_where(|context| context.is_over(parent));
    }

    /// Forgets where a PASID goes by a guest's table.
    pub(super) fn forget_pasid(&mut self, table: TableId, pasid: Option<Pasid>) {
        if self.find(pasid).is_some_and(|context| context.is_of(table)) {
            match pasid {
                None => self.plain = None,
                Some(_) => self.forget(pasid),
            }
        }
    }

    /// Forgets the attachments to a page table.
    pub(super) fn forget_table(&mut self, table: TableId) {
        self.forget_where(|context| context.is_of(table) || context.is_over(table));
    }

    fn forget_where(&mut self, which: impl Fn(&Context) -> bool) {
        self.plain.take_if(|context| which(context));
        for slot in self.pasids.iter_mut().flat_map(|pasids| pasids.iter_mut()) {
            slot.take_if(|(_, context)| which(context));
        }
    }

    /// Forgets all attachments.
    pub(super) fn clear(&mut self) {
        self.plain = None;
        if let Some(pasids) = &mut self.pasids {
            pasids.fill(None);
        }
    }

    /// Begins with the first domain again. The IOTLB was emptied.
    pub(super) fn restart(&mut self) {
        self.clear();
        self.domains = 0;
    }
}

fn slot(pasid: Pasid) -> usize {
    pasid.get() as usize % PASIDS
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    /// A table whose pointer no test follows.
    fn hwpt(n: usize) -> Attached {
        Attached::Paging(NonNull::new(std::ptr::without_provenance_mut(n * 4096)).unwrap())
    }

    fn id(n: usize) -> TableId {
        TableId::of_address(NonZeroUsize::new(n * 4096).unwrap())
    }

    /// One that is nested on `parent`.
    fn nested(n: usize, parent: usize) -> Attached {
        let table = NonNull::new(std::ptr::without_provenance_mut(n * 4096)).unwrap();
        Attached::Nested { table, parent: id(parent) }
    }

    #[test]
    fn a_pasid_is_told_from_another_in_its_place_and_from_none() {
        let mut contexts = Contexts::default();
        let pasids = [None, Pasid::new(5), Pasid::new(5 + PASIDS as u32)];
        for pasid in pasids {
            contexts.prepare();
            let made = contexts.insert(pasid, hwpt(1), false).unwrap();
            assert_eq!(contexts.find(pasid).unwrap().domain, made.domain);
        }
        assert!(contexts.find(pasids[1]).is_none(), "pushed out");
        contexts.forget(pasids[1]);
        assert!(contexts.find(pasids[2]).is_some(), "not forgotten in its stead");
        assert_eq!(contexts.domains_of(id(1), IovaRange::ALL).count(), 2);
        assert_eq!(contexts.domains_of(id(2), IovaRange::ALL).count(), 0);
        contexts.clear();
        assert!(pasids.iter().all(|&pasid| contexts.find(pasid).is_none()));
    }

    #[test]
    fn who_is_nested_is_forgotten_with_its_table_and_with_its_parent() {
        let mut contexts = Contexts::default();
        contexts.prepare();
        let pasids = [None, Pasid::new(1), Pasid::new(2), Pasid::new(3)];
        let fill = |contexts: &mut Contexts| {
            let made = [hwpt(1), nested(2, 1), nested(3, 1), nested(4, 9)];
            for (pasid, table) in pasids.into_iter().zip(made) {
                let context = contexts.insert(pasid, table, false).unwrap();
                assert_eq!(context.domain == context.parent_domain, matches!(table, Attached::Paging(_)));
            }
        };
        let known = |contexts: &Contexts| pasids.map(|pasid| contexts.find(pasid).is_some());
        fill(&mut contexts);
        contexts.forget_over(id(1));
        assert_eq!(known(&contexts), [true, false, false, true]);
        fill(&mut contexts);
        contexts.forget_table(id(2));
        assert_eq!(known(&contexts), [true, false, true, true]);
        fill(&mut contexts);
        contexts.forget_table(id(1));
        assert_eq!(known(&contexts), [false, false, false, true]);
    }

    #[test]
    fn what_goes_by_the_attachment_without_a_pasid_is_forgotten_with_it_and_by_itself() {
        let mut contexts = Contexts::default();
        contexts.prepare();
        let pasids = [None, Pasid::new(1), Pasid::new(2), Pasid::new(3)];
        let fill = |contexts: &mut Contexts| {
            for (pasid, inherited) in pasids.into_iter().zip([false, true, true, false]) {
                contexts.insert(pasid, nested(2, 1), inherited).unwrap();
            }
        };
        let known = |contexts: &Contexts| pasids.map(|pasid| contexts.find(pasid).is_some());
        fill(&mut contexts);
        contexts.forget(None);
        assert_eq!(known(&contexts), [false, false, false, true]);
        fill(&mut contexts);
        contexts.forget_pasid(id(2), pasids[1]);
        assert_eq!(known(&contexts), [true, false, true, true]);
        contexts.forget_pasid(id(2), None);
        assert_eq!(known(&contexts), [false, false, true, true]);
        contexts.forget_pasid(id(9), pasids[2]);
        assert_eq!(known(&contexts), [false, false, true, true], "another table");
    }

    #[test]
    fn no_domain_is_given_twice_before_a_restart() {
        let mut contexts = Contexts::default();
        let mut given = std::collections::BTreeSet::new();
        for _ in 1..=LAST_DOMAIN {
            let domain = contexts.insert(None, hwpt(1), false).unwrap().domain;
            assert!((1..=LAST_DOMAIN).contains(&domain) && given.insert(domain));
            contexts.forget(None);
        }
        assert!(contexts.insert(None, hwpt(1), false).is_none());
        contexts.restart();
        assert!(contexts.insert(None, hwpt(1), false).is_some());
    }
}
