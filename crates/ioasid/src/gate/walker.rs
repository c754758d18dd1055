//! What walks page tables: the ports of one requester on the bus, for threads that wait for them.

use std::any::Any;
use std::sync::Arc;

use super::Gate;
use super::requester::Requester;
use crate::base::lock::{Mutex, MutexGuard};
use crate::base::rank;

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
    /// In the order in which they were opened, each with a number, counted from 1.
    open: Vec<(u64, Arc<Requester>)>,
    opened: u64,
    /// What those that are closed had read and written, in bytes.
    closed: (u64, u64),
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
        let number = ports.opened;
        ports.open.push((number, requester.clone()));
        requester
    }

    /// Takes one out that is inside no access any more.
    pub(crate) fn close(&self, requester: &Arc<Requester>) {
        let mut ports = self.lock();
        ports.open.retain(|(_, other)| !Arc::ptr_eq(other, requester));
        let (read, written) = requester.traffic();
        ports.closed.0 += read;
        ports.closed.1 += written;
    }

    /// Bytes read and written by all of them so far.
    pub(crate) fn traffic(&self) -> (u64, u64) {
        let ports = self.lock();
        ports.open.iter().fold(ports.closed, |(read, written), (_, port)| {
            let more = port.traffic();
            (read + more.0, written + more.1)
        })
    }

    /// Goes through the gates of all ports that there are when it begins. No lock is held meanwhile, as a thread that
    /// holds slices may want to see the ports.
    pub(crate) fn gates(&self, each: &mut dyn FnMut(&Gate)) {
        let mut last = 0;
        loop {
            let next = self.lock().open.iter().find(|(number, _)| *number > last).cloned();
            let Some((number, port)) = next else { break };
            each(&port.gate);
            last = number;
        }
    }
}
