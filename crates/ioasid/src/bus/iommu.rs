//! An IOMMU of a machine: what devices are behind. A machine may have several, also of one kind.

use std::fmt;
use std::sync::Arc;

use super::Machine;
use crate::kind::IommuKind;
use crate::shared::Shared;

/// An IOMMU: it walks the page tables of the devices that are behind it, in the formats of its kind. A page table is
/// good for devices behind every IOMMU that walks its format; a virtual IOMMU is a part of one.
pub struct Iommu {
    kind: IommuKind,
    number: u32,
    shared: Arc<Shared>,
}

impl fmt::Debug for Iommu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iommu").field("kind", &self.kind).field("number", &self.number).finish_non_exhaustive()
    }
}

impl Iommu {
    pub(super) fn new(kind: IommuKind, number: u32, shared: &Arc<Shared>) -> Arc<Self> {
        Arc::new(Self { kind, number, shared: shared.clone() })
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> IommuKind {
        self.kind
    }

    /// Which of its machine's it is, counted from 0.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Whether it is of this machine.
    pub(super) fn is_on(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.shared, shared)
    }
}

impl Machine {
    /// Adds an IOMMU, which no device is behind yet.
    pub fn add_iommu(&self, kind: IommuKind) -> Arc<Iommu> {
        let mut iommus = self.iommus.write();
        self.push_iommu(&mut iommus, kind)
    }

    /// The first IOMMU of this kind; if there is none, it is added.
    pub fn iommu(&self, kind: IommuKind) -> Arc<Iommu> {
        let mut iommus = self.iommus.write();
        let first = iommus.iter().find(|iommu| iommu.kind() == kind).cloned();
        first.unwrap_or_else(|| self.push_iommu(&mut iommus, kind))
    }

    /// The first IOMMU that there is, or else a VT-d.
    pub(super) fn first_iommu(&self) -> Arc<Iommu> {
        let mut iommus = self.iommus.write();
        let first = iommus.first().cloned();
        first.unwrap_or_else(|| self.push_iommu(&mut iommus, IommuKind::default()))
    }

    /// All of its IOMMUs, in order of their numbers.
    #[must_use]
    pub fn iommus(&self) -> Vec<Arc<Iommu>> {
        self.iommus.read().clone()
    }

    fn push_iommu(&self, iommus: &mut Vec<Arc<Iommu>>, kind: IommuKind) -> Arc<Iommu> {
        let iommu = Iommu::new(kind, iommus.len() as u32, self.shared());
        iommus.push(iommu.clone());
        iommu
    }
}
