//! The bus: IOMMUs, the requesters behind them, their groups and parts, and what they are attached to.

mod endpoint;
mod follow;
mod group;
mod iommu;
mod machine;
mod part;
mod write_log;

pub(crate) use endpoint::{BEING_BOUND, dismiss};
pub use endpoint::{Endpoint, EndpointError, EndpointOptions};
pub use iommu::Iommu;
pub use machine::Machine;
pub(crate) use part::PartPasidError;
pub use part::{MediateError, PartPasids};
