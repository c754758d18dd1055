//! A picture of a machine, for people to look at.

use crate::base::ids::ObjectId;
use crate::base::types::{GroupId, Pasid, Rid};
use crate::bus::Machine;
use crate::ioas::AreaView;

/// A picture of one endpoint: see [`Machine::view`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointView {
    /// Its requester id.
    pub rid: Rid,
    /// Its group.
    pub group: GroupId,
    /// Bytes that it read and wrote by DMA.
    pub traffic: (u64, u64),
    /// What it is attached to.
    pub attachments: Vec<AttachmentView>,
}

/// A picture of one attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachmentView {
    /// For this PASID, or for transactions without.
    pub pasid: Option<Pasid>,
    /// The page table.
    pub hwpt: ObjectId,
    /// The address space, if it is of one.
    pub ioas: Option<ObjectId>,
    /// What is mapped in it, in order of IOVA; for a nested table, of the guest's physical address.
    pub areas: Vec<AreaView>,
}

impl Machine {
    /// A picture of which device can reach what, for people to look at.
    #[must_use]
    pub fn view(&self) -> Vec<EndpointView> {
        self.endpoints()
            .iter()
            .map(|endpoint| {
                // The areas are read after the attachments were let go, as their lock is the outer one.
                let mut attached = Vec::new();
                endpoint.find_attachment(|(pasid, table)| {
                    attached.push((*pasid, table.clone()));
                    None::<()>
                });
                EndpointView {
                    rid: endpoint.rid(),
                    group: endpoint.group(),
                    traffic: endpoint.traffic(),
                    attachments: attached
                        .into_iter()
                        .map(|(pasid, table)| AttachmentView {
                            pasid,
                            hwpt: table.id(),
                            ioas: table.ioas().map(|ioas| ioas.id()),
                            areas: table.ioas().map(|ioas| ioas.areas()).unwrap_or_default(),
                        })
                        .collect(),
                }
            })
            .collect()
    }
}
