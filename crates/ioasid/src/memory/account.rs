//! Who answers for memory that is pinned.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;

/// More memory would be pinned than is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no more than {limit:#x} bytes may be pinned, and {wanted:#x} would be")]
pub struct OverLimit {
    /// What is allowed, in bytes.
    pub limit: u64,
    /// What would be pinned, in bytes.
    pub wanted: u64,
}

/// Counts memory that is pinned: of a user, of a process, of whoever is to answer for it.
pub trait Account: Send + Sync {
    /// Counts `bytes` more.
    ///
    /// # Errors
    /// [`OverLimit`]; then nothing was counted.
    fn charge(&self, bytes: u64) -> Result<(), OverLimit>;

    /// Counts `bytes` less, which were charged before.
    fn release(&self, bytes: u64);
}

#[derive(Default)]
struct State {
    account: Option<Arc<dyn Account>>,
    /// What it was charged for these pages.
    charged: u64,
}

/// What some pages have been charged to whom.
#[derive(Default)]
pub(super) struct Ledger(Mutex<State>);

impl Ledger {
    pub(super) fn new(account: Option<Arc<dyn Account>>) -> Self {
        Self(Mutex::new(State { account, charged: 0 }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn charge(&self, bytes: u64) -> Result<(), OverLimit> {
        let mut state = self.lock();
        if ioasid_inject::fails() {
            return Err(OverLimit { limit: 0, wanted: bytes });
        }
        if let Some(account) = &state.account {
            account.charge(bytes)?;
        }
        state.charged += bytes;
        Ok(())
    }

    pub(super) fn release(&self, bytes: u64) {
        let mut state = self.lock();
        state.charged -= bytes;
        if let Some(account) = &state.account {
            account.release(bytes);
        }
    }

    /// Charges everything to another account, in place of the one so far, which is returned.
    pub(super) fn change(&self, account: Option<Arc<dyn Account>>) -> Result<Option<Arc<dyn Account>>, OverLimit> {
        let mut state = self.lock();
        if let Some(account) = &account {
            account.charge(state.charged)?;
        }
        let before = std::mem::replace(&mut state.account, account);
        if let Some(before) = &before {
            before.release(state.charged);
        }
        Ok(before)
    }
}
