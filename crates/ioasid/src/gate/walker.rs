//! What walks page tables: the ports of one requester on the bus, for threads that wait for them.

use std::any::Any;
use std::sync::Arc;

use super::invalidation::{Invalidation, TableId};
use super::requester::Requester;
use super::shared::{GateMember, JoinError, Passage};
use super::{Gate, quiesce};
use crate::base::lock::{Mutex, MutexGuard};
use crate::base::rank;
use crate::base::sync::Ordering;
use crate::base::types::IovaRange;

/// A requester whose ports walk page tables.
pub(crate) trait Walker: Any + Send + Sync {
    /// Its ports.
    fn ports(&self) -> &Ports;
}

/// The ports of a requester, each with a gate and a cache of translations.
#[derive(Default)]
pub(crate) struct Ports(Mutex<State, rank::Ports>);

#[derive(Default)]
struct State {
    /// In the order in which they were opened.
    open: Vec<Port>,
    opened: u64,
    /// The gate of another process, while they walk tables of that.
    shared: Option<SharedTable>,
    /// What those that are closed had read and written, in bytes.
    closed: (u64, u64),
}

struct Port {
    /// Counted from 1.
    number: u64,
    requester: Arc<Requester>,
    /// What its gate points to, if that points to any.
    passage: Option<Arc<Passage>>,
}

/// What ports walk of another process's.
struct SharedTable {
    member: Arc<GateMember>,
    table: TableId,
    /// How often it is attached.
    attachments: usize,
}

impl Port {
    /// Gives it a passage of a gate; without one it is shut.
    fn join(&mut self, passage: Option<Passage>) {
        let gate = &self.requester.gate;
        gate.shut.store(passage.is_none(), Ordering::Release);
        self.passage = passage.map(Arc::new);
        if let Some(passage) = &self.passage {
            gate.passage.store(Arc::as_ptr(passage).cast_mut(), Ordering::Release);
        }
    }
}

impl Ports {
    fn lock(&self) -> MutexGuard<'_, State, rank::Ports> {
        self.0.lock()
    }

    /// One more.
    pub(crate) fn open(&self) -> Arc<Requester> {
        let requester = Arc::new(Requester::new());
        let mut ports = self.lock();
        ports.opened += 1;
        let mut port = Port { number: ports.opened, requester: requester.clone(), passage: None };
        if let Some(shared) = ports.shared.as_ref().filter(|shared| shared.attachments > 0) {
            port.join(shared.member.passage(shared.table));
        }
        ports.open.push(port);
        requester
    }

    /// Takes one out that is inside no access any more.
    pub(crate) fn close(&self, requester: &Arc<Requester>) {
        let mut ports = self.lock();
        let place = ports.open.iter().position(|port| Arc::ptr_eq(&port.requester, requester));
        let closed = place.map(|place| ports.open.remove(place));
        let (read, written) = requester.traffic();
        ports.closed.0 += read;
        ports.closed.1 += written;
        drop(ports);
        drop(closed);
    }

    /// Has all of them pass another process's gate, as long as `table` is attached, which is that process's. They do
    /// when this returns, and are not attached before.
    ///
    /// # Errors
    /// [`JoinError`]; nothing is changed then.
    pub(crate) fn join(&self, member: &Arc<GateMember>, table: TableId) -> Result<(), JoinError> {
        {
            let mut ports = self.lock();
            if let Some(shared) = &mut ports.shared {
                // What another thread is leaving is there until its passages are.
                if !Arc::ptr_eq(&shared.member, member) || shared.table != table || shared.attachments == 0 {
                    return Err(JoinError::Elsewhere);
                }
                shared.attachments += 1;
                return Ok(());
            }
            let passages: Option<Vec<_>> = ports.open.iter().map(|_| member.passage(table)).collect();
            let passages = passages.ok_or(JoinError::Full)?;
            ports.open.iter_mut().zip(passages).for_each(|(port, passage)| port.join(Some(passage)));
            ports.shared = Some(SharedTable { member: member.clone(), table, attachments: 1 });
        }
        // One that is inside may not have seen it when it went in.
        quiesce(|each| self.gates(each), Invalidation::Range(table, IovaRange::ALL));
        Ok(())
    }

    /// Undoes one [`Ports::join`], when nothing goes to that table any more. Allocates nothing.
    pub(crate) fn leave(&self) {
        let table = {
            let mut ports = self.lock();
            let Some(shared) = &mut ports.shared else { return };
            shared.attachments -= 1;
            if shared.attachments > 0 {
                return;
            }
            let table = shared.table;
            for port in &ports.open {
                port.requester.gate.passage.store(std::ptr::null_mut(), Ordering::Release);
                port.requester.gate.shut.store(false, Ordering::Release);
            }
            table
        };
        // One that is inside may be going through it.
        quiesce(|each| self.gates(each), Invalidation::Range(table, IovaRange::ALL));
        loop {
            let mut ports = self.lock();
            let passage = ports.open.iter_mut().find_map(|port| port.passage.take());
            // With the last, another gate can be joined.
            let left = if passage.is_none() { ports.shared.take() } else { None };
            drop(ports);
            if passage.is_none() {
                return drop(left);
            }
        }
    }

    /// Bytes read and written by all of them so far.
    pub(crate) fn traffic(&self) -> (u64, u64) {
        let ports = self.lock();
        ports.open.iter().fold(ports.closed, |(read, written), port| {
            let more = port.requester.traffic();
            (read + more.0, written + more.1)
        })
    }

    /// Goes through the gates of all ports that there are when it begins. No lock is held meanwhile, as a thread that
    /// holds slices may want to see the ports.
    pub(crate) fn gates(&self, each: &mut dyn FnMut(&Gate)) {
        let mut last = 0;
        loop {
            let next = {
                let ports = self.lock();
                let next = ports.open.iter().find(|port| port.number > last);
                next.map(|port| (port.number, port.requester.clone()))
            };
            let Some((number, requester)) = next else { break };
            each(&requester.gate);
            last = number;
        }
    }
}
