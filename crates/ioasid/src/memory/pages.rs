//! Backing memory in a row, however many kinds it is made of.

use std::sync::Arc;

use super::{OutOfPhysicalSpace, PhysSpace, Segment, Window};

/// A reference-counted range of backing memory, with its windows in the physical space. Dropping the last reference
/// takes the windows away, so only after no DMA uses them any more.
pub struct Pages {
    space: Arc<PhysSpace>,
    windows: Vec<Arc<Window>>,
}

impl Pages {
    /// Gives `segments` windows fit to be mapped at `iova`.
    pub(crate) fn new(space: &Arc<PhysSpace>, segments: Vec<Segment>, iova: u64) -> Result<Self, OutOfPhysicalSpace> {
        let mut pages = Self { space: space.clone(), windows: Vec::with_capacity(segments.len()) };
        let mut at = iova;
        for segment in segments {
            pages.windows.push(space.insert(segment.backing, segment.length, at)?);
            at = at.wrapping_add(segment.length);
        }
        Ok(pages)
    }

    /// The physical ranges in order: (address, bytes).
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.windows.iter().map(|window| (window.base(), window.length()))
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        for window in &self.windows {
            self.space.remove(window);
        }
    }
}
