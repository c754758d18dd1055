//! IOMMU groups: the functions that cannot be kept apart belong to one context at a time.

use crate::base::lock::Mutex;
use crate::base::rank;
use crate::base::types::GroupId;

#[derive(Default)]
struct State {
    /// The serial number of the context that owns the group, while it has devices bound.
    owner: Option<u64>,
    bound: usize,
}

/// One group.
pub(crate) struct Group {
    id: GroupId,
    state: Mutex<State, rank::Group>,
}

impl Group {
    pub(crate) fn new(id: GroupId) -> Self {
        Self { id, state: Mutex::default() }
    }

    pub(crate) fn id(&self) -> GroupId {
        self.id
    }

    /// Claims the group for a context, or claims it once more; false if another context has it.
    pub(crate) fn claim(&self, context: u64) -> bool {
        let mut state = self.state.lock();
        if *state.owner.get_or_insert(context) != context {
            return false;
        }
        state.bound += 1;
        true
    }

    /// Undoes one claim.
    pub(crate) fn release(&self) {
        let mut state = self.state.lock();
        state.bound -= 1;
        if state.bound == 0 {
            state.owner = None;
        }
    }
}
