//! What the ids of a context stand for.

use std::sync::Arc;

use crate::bus::Endpoint;
use crate::fault::FaultQueue;
use crate::hwpt::{Hwpt, Table};
use crate::ioas::Ioas;
use crate::viommu::{EventQueue, HwQueue, Viommu, VirtualDevice};

/// A caller's object that has an id in a context and is destroyed by it, as the objects of a context are.
pub trait External: Send + Sync {
    /// Its id is gone: the context destroyed it.
    fn destroyed(&self);
}

#[derive(Clone)]
pub(crate) enum Object {
    Ioas(Arc<Ioas>),
    Hwpt(Table),
    /// What is bound. Its [`Device`](crate::Device) is held by the consumer that bound it.
    Device(Arc<Endpoint>),
    /// Its [`IoasAccess`](crate::IoasAccess) is held by the consumer that made it.
    Access,
    FaultQueue(Arc<FaultQueue>),
    Viommu(Arc<Viommu>),
    VirtualDevice(Arc<VirtualDevice>),
    EventQueue(Arc<EventQueue>),
    HwQueue(Arc<HwQueue>),
    External(Arc<dyn External>),
}

impl Object {
    /// Whether it is this page table, which mirrors an address space.
    pub(crate) fn is_hwpt(&self, hwpt: &Arc<Hwpt>) -> bool {
        matches!(self, Self::Hwpt(Table::Paging(other)) if Arc::ptr_eq(other, hwpt))
    }

    /// Whether it is this page table.
    pub(crate) fn is_table(&self, table: &Table) -> bool {
        matches!(self, Self::Hwpt(other) if other.is(table))
    }
}
