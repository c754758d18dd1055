//! Handles: what a device is attached to, what software reads through, what a nested page table is made on.
//!
//! Each is made of an object by `into()`. An object that was destroyed, or is another context's, is a handle as well:
//! the context that is given it finds out, by its id and its identity, and refuses it. A number that comes from
//! elsewhere, such as a program, is looked up in the context first.

use std::fmt;
use std::sync::Arc;

use super::{Context, Object};
use crate::base::ids::ObjectId;
use crate::base::types::Pasid;
use crate::bus::Endpoint;
use crate::hwpt::{Hwpt, NestedHwpt, SvaHwpt, Table};
use crate::ioas::Ioas;
use crate::viommu::Viommu;

/// What a device is attached to: an [`Ioas`], a [`Hwpt`], a [`NestedHwpt`] or a [`SvaHwpt`].
#[derive(Clone)]
pub struct Target(pub(crate) TargetKind);

#[derive(Clone)]
pub(crate) enum TargetKind {
    /// By a page table that is made for it, or that there is.
    Ioas(Arc<Ioas>),
    Table(Table),
}

/// What software reads and writes through: a page table of any kind, or what a device is attached to.
#[derive(Clone)]
pub struct Reach(pub(crate) ReachKind);

#[derive(Clone)]
pub(crate) enum ReachKind {
    Table(Table),
    Device(Arc<Endpoint>, Option<Pasid>),
}

/// What a nested page table is made on: a [`Hwpt`] that was made to be a parent, or a [`Viommu`] over one.
#[derive(Clone)]
pub struct NestParent(pub(crate) NestParentKind);

#[derive(Clone)]
pub(crate) enum NestParentKind {
    Hwpt(Arc<Hwpt>),
    Viommu(Arc<Viommu>),
}

macro_rules! from_tables {
    ($($table:ty => $variant:ident),*) => {
        $(impl From<&Arc<$table>> for Target {
            fn from(table: &Arc<$table>) -> Self {
                Self(TargetKind::Table(Table::$variant(table.clone())))
            }
        }

        impl From<&Arc<$table>> for Reach {
            fn from(table: &Arc<$table>) -> Self {
                Self(ReachKind::Table(Table::$variant(table.clone())))
            }
        }

        impl From<Arc<$table>> for Target {
            fn from(table: Arc<$table>) -> Self {
                Self(TargetKind::Table(Table::$variant(table)))
            }
        })*
    };
}

from_tables!(Hwpt => Paging, NestedHwpt => Nested, SvaHwpt => Sva);

impl From<&Arc<Ioas>> for Target {
    fn from(ioas: &Arc<Ioas>) -> Self {
        Self(TargetKind::Ioas(ioas.clone()))
    }
}

impl From<&Self> for Target {
    fn from(target: &Self) -> Self {
        target.clone()
    }
}

impl Target {
    /// The id of the address space or page table in its context.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        match &self.0 {
            TargetKind::Ioas(ioas) => ioas.id(),
            TargetKind::Table(table) => table.id(),
        }
    }
}

impl From<&Self> for Reach {
    fn from(reach: &Self) -> Self {
        reach.clone()
    }
}

impl Reach {
    /// What the transactions of `device` with `pasid`, or without, go to at the time of each access.
    #[must_use]
    pub fn of_device(device: &Arc<Endpoint>, pasid: Option<Pasid>) -> Self {
        Self(ReachKind::Device(device.clone(), pasid))
    }
}

impl From<&Arc<Hwpt>> for NestParent {
    fn from(hwpt: &Arc<Hwpt>) -> Self {
        Self(NestParentKind::Hwpt(hwpt.clone()))
    }
}

impl From<&Arc<Viommu>> for NestParent {
    fn from(viommu: &Arc<Viommu>) -> Self {
        Self(NestParentKind::Viommu(viommu.clone()))
    }
}

impl From<&Self> for NestParent {
    fn from(parent: &Self) -> Self {
        parent.clone()
    }
}

impl NestParent {
    /// Its id in its context.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        match &self.0 {
            NestParentKind::Hwpt(hwpt) => hwpt.id(),
            NestParentKind::Viommu(viommu) => viommu.id(),
        }
    }

    /// The page table that maps the guest's physical addresses.
    #[must_use]
    pub fn hwpt(&self) -> &Arc<Hwpt> {
        match &self.0 {
            NestParentKind::Hwpt(hwpt) => hwpt,
            NestParentKind::Viommu(viommu) => viommu.parent(),
        }
    }
}

impl Context {
    /// The address space or page table with this id; `None` if there is no object with it, or one of another kind.
    #[must_use]
    pub fn target(&self, id: u32) -> Option<Target> {
        match self.get(id)? {
            Object::Ioas(ioas) => Some(Target(TargetKind::Ioas(ioas))),
            Object::Hwpt(table) => Some(Target(TargetKind::Table(table))),
            _ => None,
        }
    }

    /// The page table with this id, of any kind; `None` if there is no object with it, or one of another kind.
    #[must_use]
    pub fn reach(&self, id: u32) -> Option<Reach> {
        match self.get(id)? {
            Object::Hwpt(table) => Some(Reach(ReachKind::Table(table))),
            _ => None,
        }
    }

    /// The page table or virtual IOMMU with this id; `None` if there is no object with it, or one of another kind.
    #[must_use]
    pub fn nest_parent(&self, id: u32) -> Option<NestParent> {
        match self.get(id)? {
            Object::Hwpt(Table::Paging(hwpt)) => Some(NestParent(NestParentKind::Hwpt(hwpt))),
            Object::Viommu(viommu) => Some(NestParent(NestParentKind::Viommu(viommu))),
            _ => None,
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({})", self.id())
    }
}

impl fmt::Debug for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            ReachKind::Table(table) => write!(f, "Reach({})", table.id()),
            ReachKind::Device(device, pasid) => {
                f.debug_tuple("Reach").field(&format_args!("{}", device.rid())).field(pasid).finish()
            }
        }
    }
}

impl fmt::Debug for NestParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NestParent({})", self.id())
    }
}
