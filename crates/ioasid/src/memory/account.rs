//! The accounts that answer for memory that is pinned.

use std::sync::Arc;

use thiserror::Error;

use crate::base::lock::{Mutex, MutexGuard};
use crate::base::{callback, rank};

/// More memory would be pinned than is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no more than {limit:#x} bytes may be pinned, and {wanted:#x} would be")]
pub struct OverLimit {
    /// What is allowed, in bytes.
    pub limit: u64,
    /// What would be pinned, in bytes.
    pub wanted: u64,
}

/// Counts memory that is pinned: of a user, of a process, of whatever is to answer for it. It is called with no lock
/// held, and from drops, where a panic goes no further.
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

/// What some pages have been charged to which account.
#[derive(Default)]
pub(super) struct Ledger(Mutex<State, rank::Ledger>);

/// Bytes that are charged, until this is dropped or kept.
pub(super) struct Charge<'a> {
    ledger: &'a Ledger,
    bytes: u64,
}

impl Charge<'_> {
    /// Leaves it to [`Ledger::release`].
    pub(super) fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        self.ledger.release(self.bytes);
    }
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, State, rank::Ledger> {
        self.0.lock()
    }

    pub(super) fn charge(&self, bytes: u64) -> Result<Charge<'_>, OverLimit> {
        if ioasid_inject::fails() {
            return Err(OverLimit { limit: 0, wanted: bytes });
        }
        loop {
            let account = self.lock().account.clone();
            if let Some(account) = &account {
                callback::call(|| account.charge(bytes))?;
            }
            let mut state = self.lock();
            if same(&state.account, &account) {
                state.charged += bytes;
                return Ok(Charge { ledger: self, bytes });
            }
            // Another account answers since.
            drop(state);
            release(account, bytes);
        }
    }

    pub(super) fn release(&self, bytes: u64) {
        let account = {
            let mut state = self.lock();
            state.charged -= bytes;
            state.account.clone()
        };
        release(account, bytes);
    }

    /// Charges everything to another account, in place of the one so far, which is returned.
    pub(super) fn change(&self, account: Option<Arc<dyn Account>>) -> Result<Option<Arc<dyn Account>>, OverLimit> {
        loop {
            let charged = self.lock().charged;
            if let Some(account) = &account {
                callback::call(|| account.charge(charged))?;
            }
            let mut state = self.lock();
            if state.charged == charged {
                let before = std::mem::replace(&mut state.account, account);
                drop(state);
                release(before.clone(), charged);
                return Ok(before);
            }
            // Something was pinned or let go meanwhile.
            drop(state);
            release(account.clone(), charged);
        }
    }
}

fn same(one: &Option<Arc<dyn Account>>, other: &Option<Arc<dyn Account>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

/// From a drop, perhaps: what has been charged has to be released, whatever the account makes of it.
fn release(account: Option<Arc<dyn Account>>, bytes: u64) {
    if let Some(account) = account {
        callback::call_contained(|| account.release(bytes));
    }
}
