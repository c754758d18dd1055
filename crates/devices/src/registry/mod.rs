//! The models by name, each with its options, and how it is built: what a front end needs that makes devices of text.
//!
//! ```text
//!   "nvme,memory=16M" ──▶ ModelInfo::parse ──▶ Options ──▶ ModelInfo::build ──▶ Built: endpoint, spec, model
//! ```
//! A front end says where on the bus a device is, and behind which IOMMU; the rest is here.

use std::sync::Arc;

use ioasid::{Endpoint, EndpointOptions, GroupId, Iommu, Machine, Mirror, Recovery, Rid};
use ioasid_vfio::{BusMaster, Interrupts, Model, Spec};
use thiserror::Error;

use crate::nvme::{NvmeError, ParseFailureError};
use crate::storage::ImageError;
use crate::virtio::Offer;
use crate::{RegisterInfo, dsa, edu, ioat, ivshmem, nvme, vfio_user, virtio};

mod options;

pub use options::{OptionError, OptionInfo, OptionKind, OptionValue, Options};

/// A model of a device.
pub struct ModelInfo {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// Its options.
    pub options: &'static [OptionInfo],
    /// Its registers: a table for each BAR that has some, and for configuration space.
    pub registers: &'static [&'static [RegisterInfo]],
    /// How many functions on the bus it is with these options.
    pub(crate) functions: fn(&Options) -> usize,
    pub(crate) check: fn(&Options) -> Result<(), BuildError>,
    pub(crate) build: Build,
    pub(crate) offer: Option<MakeOffer>,
}

/// Makes a device with these options that has no bus.
type MakeOffer = fn(&Options, Site, Context<'_>) -> Result<Offer, BuildError>;

/// Builds a device with these options at these places.
type Build = fn(&Options, &[Site], Context<'_>) -> Result<Vec<Built>, BuildError>;

/// Every model there is.
pub static MODELS: &[ModelInfo] = &[
    ioat::MODEL,
    dsa::MODEL,
    ivshmem::MODEL,
    edu::MODEL,
    nvme::MODEL,
    virtio::blk::MODEL,
    virtio::net::MODEL,
    vfio_user::MODEL,
];

/// A place on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// Where.
    pub rid: Rid,
    /// In which IOMMU group.
    pub group: GroupId,
}

/// What devices are built into.
pub struct Context<'a> {
    /// The machine.
    pub machine: &'a Arc<Machine>,
    /// The IOMMU that the device is behind.
    pub iommu: &'a Arc<Iommu>,
    /// Which device of the machine it is, by a number that no other has.
    pub number: u8,
    /// What devices have together.
    pub shared: &'a mut Shared,
    /// Is told what people should know of a device while it runs.
    pub notice: Notice,
}

/// Takes a sentence about the device at a place.
pub type Notice = Arc<dyn Fn(Rid, &str) + Send + Sync>;

/// What devices of a machine have together.
#[derive(Debug, Default)]
pub struct Shared {
    pub(crate) memories: ivshmem::Memories,
}

/// A device, before it is a function on the bus.
pub struct Built {
    /// Its way to memory.
    pub endpoint: Arc<Endpoint>,
    /// What it looks like.
    pub spec: Spec,
    /// Its interrupts.
    pub interrupts: Arc<Interrupts>,
    /// What it does.
    pub model: Arc<dyn Model>,
    /// What its Bus Master Enable switches.
    pub bus_master: Arc<dyn BusMaster>,
}

impl Built {
    /// A device whose DMA is the endpoint's, and can be switched there.
    pub(crate) fn new(endpoint: Arc<Endpoint>, spec: Spec, interrupts: Arc<Interrupts>, model: Arc<dyn Model>) -> Self {
        let bus_master = Arc::new(Switch(endpoint.clone()));
        Self { endpoint, spec, interrupts, model, bus_master }
    }
}

struct Switch(Arc<Endpoint>);

impl BusMaster for Switch {
    fn set_bus_master(&self, enabled: bool) {
        // A thread that writes configuration space holds no slices, and nothing else can be in the way.
        let _ = self.0.set_bus_master(enabled);
    }
}

/// Why there is no such device.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum BuildError {
    #[error(transparent)]
    Option(#[from] OptionError),
    #[error("two devices cannot both be at {0}: give one another bdf=")]
    SamePlace(Rid),
    #[error("{0} MiB of memory are no power of two, as a BAR has to be: write mib=1, 2, 4 or 8")]
    NoPowerOfTwo(u64),
    #[error("memory {0} is given twice, with {1} MiB and with {2}: give it the same mib= each time")]
    TwoLengths(u64, u64, u64),
    #[error("there is no memory for device {0}: {1}")]
    NoMemory(Rid, String),
    #[error("device option {0}= is for a namespace: write it after image=FILE or memory=SIZE, as in memory=16M,{0}=…")]
    NoNamespace(&'static str),
    #[error(transparent)]
    Failure(#[from] ParseFailureError),
    #[error("device {0}: {1}")]
    Nvme(Rid, NvmeError),
    #[error("device {0}: {1}")]
    Remote(Rid, String),
    #[error("device {0}: {1}")]
    Image(Rid, ImageError),
    #[error("a disk is in a file, in memory, or a back end's: give it image=FILE, memory=SIZE or vhost-user=PATH")]
    NoDisk,
    #[error("`{0}` is no address of an interface: one is written as 52:54:00:12:34:56")]
    NoAddress(String),
    #[error("tap {0} cannot be opened: {1}; as root, `ip tuntap add {0} mode tap user $USER` makes one")]
    NoTap(String, String),
    #[error("device option {0}= says nothing of a device that has {1}=: leave one of them out")]
    NotWith(&'static str, &'static str),
    #[error("device option {0}= is for a device that has {1}=")]
    OnlyWith(&'static str, &'static str),
    #[error("the queues of this device are another process's: let front ends connect to that")]
    NotOurs,
    #[error("a device of another process is found by socket=PATH")]
    NoSocket,
}

impl ModelInfo {
    /// The model of this name.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        MODELS.iter().find(|model| model.name == name)
    }

    /// Adds an option as it is written, `key=value` or `key`.
    ///
    /// # Errors
    /// If the model has none of this name, or it does not take this value, or it was given before.
    pub fn parse(&self, text: &str, options: &mut Options) -> Result<(), OptionError> {
        options.add(self.options, text)
    }

    /// Checks that options go together.
    ///
    /// # Errors
    /// If they do not.
    pub fn check(&self, options: &Options) -> Result<(), BuildError> {
        (self.check)(options)
    }

    /// How many functions on the bus it is with these options.
    #[must_use]
    pub fn functions(&self, options: &Options) -> usize {
        (self.functions)(options)
    }

    /// Builds it, at as many places as it has functions.
    ///
    /// # Errors
    /// If a place is taken, or there is no device with these options.
    ///
    /// # Panics
    /// If there are fewer places than functions.
    pub fn build(&self, options: &Options, sites: &[Site], context: Context<'_>) -> Result<Vec<Built>, BuildError> {
        assert!(sites.len() >= self.functions(options), "a place for each function");
        (self.build)(options, sites, context)
    }

    /// Makes it a device for front ends of vhost-user; `None` if it is no virtio device.
    ///
    /// # Errors
    /// As of [`ModelInfo::build`]. One that another process has is not offered on.
    pub fn offer(&self, options: &Options, site: Site, context: Context<'_>) -> Option<Result<Offer, BuildError>> {
        let offer = self.offer?;
        Some(match virtio::is_elsewhere(options) {
            true => Err(BuildError::NotOurs),
            false => offer(options, site, context),
        })
    }
}

/// For models that are one function, whatever the options.
pub(crate) fn one(_: &Options) -> usize {
    1
}

/// For models whose options always go together.
pub(crate) fn any(_: &Options) -> Result<(), BuildError> {
    Ok(())
}

impl Context<'_> {
    /// An endpoint for a device, at its place.
    pub(crate) fn endpoint(&self, site: Site, options: EndpointOptions) -> Result<Arc<Endpoint>, BuildError> {
        let endpoint = self.machine.add_endpoint_with(site.rid, site.group, options);
        endpoint.map_err(|_| BuildError::SamePlace(site.rid))
    }

    /// An endpoint for a device that is elsewhere, and has an address space by what `mirror` tells it.
    pub(crate) fn mirrored(&self, site: Site, mirror: Arc<dyn Mirror>) -> Result<Arc<Endpoint>, BuildError> {
        // What the protocols have no words for.
        let behind = EndpointOptions::behind(self.iommu).pasid_bits(0).dirty_tracking(false);
        self.endpoint(site, behind.recovery(Recovery::None).mirrored(mirror))
    }

    /// Builds a device of one function that knows no PASIDs.
    pub(crate) fn plain<M: Model + 'static>(
        &self,
        site: Site,
        spec: Spec,
        make: impl FnOnce(&Arc<Endpoint>, Arc<Interrupts>) -> Result<Arc<M>, BuildError>,
    ) -> Result<Vec<Built>, BuildError> {
        let endpoint = self.endpoint(site, EndpointOptions::behind(self.iommu).pasid_bits(0))?;
        let interrupts = Interrupts::new(&spec);
        let model = make(&endpoint, interrupts.clone())?;
        Ok(vec![Built::new(endpoint, spec, interrupts, model)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_and_every_register_has_a_name_of_its_own() {
        for (index, model) in MODELS.iter().enumerate() {
            assert!(MODELS[..index].iter().all(|other| other.name != model.name), "{}", model.name);
            assert!(std::ptr::eq(ModelInfo::find(model.name).unwrap(), model));
            let registers: Vec<_> = model.registers.iter().copied().flatten().collect();
            for (index, register) in registers.iter().enumerate() {
                let others = &registers[..index];
                assert!(others.iter().all(|other| other.name != register.name), "{} {}", model.name, register.name);
            }
        }
    }
}
