//! What everything else is made of: addresses and ids, sets of ranges, locks and fences, the observer.

pub(crate) mod callback;
pub(crate) mod ids;
pub(crate) mod lock;
pub(crate) mod observe;
pub(crate) mod ranges;
pub(crate) mod rank;
pub(crate) mod sync;
pub(crate) mod types;
