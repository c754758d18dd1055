//! Memory that programs have pinned, counted for each user or process, against what RLIMIT_MEMLOCK allows.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use ioasid::memory::{Account, OverLimit, Process};

use crate::watch::Watcher;

/// Who answers for pinned memory.
#[derive(Debug, Clone)]
pub(crate) enum Whose {
    /// A user, with all processes.
    User(u32),
    /// A process: its address space, which neither a child nor a later process of its number has.
    Process(Arc<Process>),
    /// A process, whatever it may and whoever else answers.
    Pinned(Arc<Process>),
}

impl Whose {
    /// What tells them apart. The address is one object's as long as this is kept.
    fn key(&self) -> (u8, usize) {
        match self {
            Self::User(user) => (0, *user as usize),
            Self::Process(process) => (1, Arc::as_ptr(process).addr()),
            Self::Pinned(process) => (2, Arc::as_ptr(process).addr()),
        }
    }
}

impl PartialEq for Whose {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Whose {}

impl Hash for Whose {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

/// Bytes that are pinned.
type Count = Mutex<u64>;

/// What all users and processes have pinned.
pub(crate) struct Accounts {
    counts: Mutex<HashMap<Whose, Weak<Count>>>,
    watcher: Arc<dyn Watcher>,
}

impl Accounts {
    /// Nobody has pinned anything. `watcher` is told what they may not pin.
    pub(crate) fn new(watcher: Arc<dyn Watcher>) -> Self {
        Self { counts: Mutex::default(), watcher }
    }

    /// The account of a user or process who may pin no more than `limit` bytes.
    pub(crate) fn of(&self, whose: Whose, limit: u64) -> Arc<dyn Account> {
        Arc::new(Limited { count: self.count(whose), limit, watcher: self.watcher.clone() })
    }

    /// Bytes that all of these answer for together.
    pub(crate) fn bytes(&self, whose: impl Fn(&Whose) -> bool) -> u64 {
        let accounts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let meant = accounts.iter().filter(|(one, _)| whose(one)).filter_map(|(_, count)| count.upgrade());
        meant.map(|count| *count.lock().unwrap_or_else(PoisonError::into_inner)).sum()
    }

    fn count(&self, whose: Whose) -> Arc<Count> {
        let mut accounts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let known = accounts.get(&whose).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            // Also of those who are gone.
            accounts.retain(|_, count| count.strong_count() > 0);
            let count = Arc::new(Count::default());
            accounts.insert(whose, Arc::downgrade(&count));
            count
        })
    }
}

/// Two accounts, which both answer.
pub(crate) struct Both(pub(crate) Arc<dyn Account>, pub(crate) Arc<dyn Account>);

impl Account for Both {
    fn charge(&self, bytes: u64) -> Result<(), OverLimit> {
        self.0.charge(bytes)?;
        self.1.charge(bytes).inspect_err(|_| self.0.release(bytes))
    }

    fn release(&self, bytes: u64) {
        self.0.release(bytes);
        self.1.release(bytes);
    }
}

/// An account with the limit that held when something was mapped.
struct Limited {
    count: Arc<Count>,
    limit: u64,
    watcher: Arc<dyn Watcher>,
}

impl Account for Limited {
    fn charge(&self, bytes: u64) -> Result<(), OverLimit> {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = count.saturating_add(bytes);
        if wanted > self.limit {
            drop(count);
            let error = OverLimit { limit: self.limit, wanted };
            self.watcher.memory_refused(error);
            return Err(error);
        }
        *count = wanted;
        Ok(())
    }

    fn release(&self, bytes: u64) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Refused(Mutex<Vec<OverLimit>>);

    impl Watcher for Refused {
        fn memory_refused(&self, error: OverLimit) {
            self.0.lock().unwrap().push(error);
        }
    }

    #[test]
    fn what_one_pins_counts_for_all_of_the_same_user_and_for_no_other() {
        let refused = Arc::new(Refused::default());
        let accounts = Accounts::new(refused.clone());
        let (one, same) = (accounts.of(Whose::User(1), 10), accounts.of(Whose::User(1), 12));
        let process = Arc::new(Process::open(std::process::id()).unwrap());
        let pinned = Whose::Pinned(process.clone());
        let others = [Whose::User(2), Whose::Process(process)].map(|whose| accounts.of(whose, 10));
        one.charge(8).unwrap();
        assert_eq!(one.charge(3), Err(OverLimit { limit: 10, wanted: 11 }));
        same.charge(3).unwrap();
        others.iter().for_each(|other| other.charge(10).unwrap());
        one.release(8);
        assert_eq!(same.charge(u64::MAX), Err(OverLimit { limit: 12, wanted: u64::MAX }));
        same.charge(9).unwrap();
        assert_eq!(accounts.bytes(|whose| *whose == Whose::User(1)), 12);
        let both = Both(accounts.of(pinned.clone(), u64::MAX), one.clone());
        assert!(both.charge(1).is_err());
        assert_eq!(accounts.bytes(|whose| *whose == pinned), 0);
        same.release(3);
        both.charge(1).unwrap();
        let bytes = [pinned.clone(), Whose::User(1)].map(|one| accounts.bytes(|whose| *whose == one));
        assert_eq!(bytes, [1, 10]);
        both.release(1);
        drop((one, same, both));
        accounts.of(Whose::User(1), 5).charge(5).unwrap();
        let told = refused.0.lock().unwrap().iter().map(|error| error.limit).collect::<Vec<_>>();
        assert_eq!(told, [10, 12, 10]);
    }
}
