//! What ENQCMD of each process puts on the bus: a processor's IA32_PASID, and the table that it is translated by.
//!
//! A process has neither until it asks. It has them as long as it is the same program: another program in its place, or
//! another process of its number, has none.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use ioasid::memory::Process;
use ioasid::{Pasid, PasidHold, VirtualPasids};

/// By process number.
#[derive(Default)]
pub(crate) struct Enqcmd(Mutex<HashMap<u32, Bound>>);

struct Bound {
    process: Arc<Process>,
    /// As the process knows it.
    number: Pasid,
    table: VirtualPasids,
}

impl Enqcmd {
    /// Binds, or with `None` unbinds, a process that was opened as `process`.
    pub(crate) fn bind(&self, pid: u32, process: Arc<Process>, bound: Option<(Pasid, PasidHold)>) {
        let mut processes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        processes.retain(|_, bound| bound.process.is_current());
        match bound {
            None => drop(processes.remove(&pid)),
            Some((number, hold)) => {
                let table = VirtualPasids::new();
                table.set(Some(number), hold);
                processes.insert(pid, Bound { process, number, table });
            }
        }
    }

    /// The PASID that ENQCMD of a process puts on the bus, which now has this address space.
    pub(crate) fn physical(&self, pid: u32, process: &Arc<Process>) -> Option<Pasid> {
        let processes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What it had before an exec may live on in a child that shared it.
        let bound = processes.get(&pid).filter(|bound| Arc::ptr_eq(&bound.process, process) && process.is_current())?;
        bound.table.physical(Some(bound.number))
    }

    /// Forgets processes that have ended: the PASIDs that they held are let go.
    pub(crate) fn forget_ended(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, bound| bound.process.is_current());
    }
}

#[cfg(test)]
mod tests {
    use ioasid::{Machine, Silent};

    use super::*;

    #[test]
    fn a_process_has_none_until_it_asks_and_none_when_it_has_ended() {
        let machine = Machine::new(Arc::new(Silent));
        let context = machine.context();
        let pasid = context.pasid_alloc(5, 9).unwrap();
        let enqcmd = Enqcmd::default();
        let own = std::process::id();
        let open = |pid| Arc::new(Process::open(pid).unwrap());
        let this = open(own);
        let bound = || Some((Pasid::new(1).unwrap(), context.hold_pasid(pasid).unwrap()));
        assert_eq!(enqcmd.physical(own, &this), None);
        enqcmd.bind(own, this.clone(), bound());
        assert_eq!(enqcmd.physical(own, &this), Some(pasid));
        assert_eq!(enqcmd.physical(own, &open(own)), None, "not another program's in its place");
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let childs = open(child.id());
        assert_eq!(enqcmd.physical(child.id(), &childs), None, "not its child's");
        enqcmd.bind(child.id(), childs.clone(), bound());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(enqcmd.physical(child.id(), &childs), None);
        enqcmd.bind(own, this.clone(), None);
        assert_eq!(enqcmd.physical(own, &this), None);
        context.pasid_free(pasid).unwrap();
        assert_eq!(machine.pasids_in_use(), 0, "nobody holds it");
    }
}
