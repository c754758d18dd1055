//! The model by name: whole, or as mediated devices of one work queue each.

use std::sync::Arc;

use ioasid::{Endpoint, EndpointOptions, GroupId, Iommu, PartPasidTable, PartPasids, Pasid, PasidHold, Recovery, Rid};
use ioasid_vfio::Interrupts;

use super::spec::registers::{QueueMode, Register};
use super::{Dsa, DsaOptions, DsaSlice, MAX_WQS, PasidTranslation, SliceQueue, slice_spec, spec};
use crate::Dma;
use crate::registry::{BuildError, Built, Context, ModelInfo, OptionInfo, OptionKind, Options, Site, any};

const WQS: &str = "wqs";
const SLICES: &str = "slices";

/// The PCI segment of devices that no program gets, as their slices are others' devices, and their first group.
const PARENT_SEGMENT: u16 = 0xfffe;
const PARENT_GROUP: u32 = 1 << 30;
/// Entries of all queues together.
const ENTRIES: u16 = 128;

/// The model.
pub const MODEL: ModelInfo = ModelInfo {
    name: "dsa",
    about: "Intel Data Streaming Accelerator 1.0 (8086:0b25)",
    options: &[
        OptionInfo::new(WQS, "work queues (8)", OptionKind::Number { least: 1, most: MAX_WQS as u64 }),
        OptionInfo::new(
            SLICES,
            "as so many mediated devices of a queue each",
            OptionKind::Number { least: 1, most: MAX_WQS as u64 },
        ),
    ],
    registers: &[Register::TABLE],
    functions: |options| options.number(SLICES).unwrap_or(1) as usize,
    check: any,
    build,
    offer: None,
};

fn build(options: &Options, sites: &[Site], context: Context<'_>) -> Result<Vec<Built>, BuildError> {
    match options.number(SLICES) {
        Some(slices) => build_slices(&sites[..slices as usize], &context),
        None => build_whole(options.number(WQS), sites[0], &context),
    }
}

/// It asks for pages that it does not find.
fn endpoint_options(iommu: &Arc<Iommu>) -> EndpointOptions {
    EndpointOptions::behind(iommu).recovery(Recovery::PageRequests)
}

fn dsa(endpoint: &Arc<Endpoint>, options: DsaOptions, interrupts: Arc<Interrupts>) -> Arc<Dsa> {
    let ports = endpoint.clone();
    let port = Box::new(move || -> Box<dyn Dma> { Box::new(ports.port()) });
    Dsa::new(options, port, Arc::new(endpoint.clone()), interrupts)
}

fn build_whole(wqs: Option<u64>, site: Site, context: &Context<'_>) -> Result<Vec<Built>, BuildError> {
    let endpoint = context.endpoint(site, endpoint_options(context.iommu))?;
    let defaults = DsaOptions::default();
    let options = DsaOptions { wqs: wqs.map_or(defaults.wqs, |wqs| wqs as u8), ..defaults };
    let spec = spec(&options);
    let interrupts = Interrupts::new(&spec);
    let model = dsa(&endpoint, options, interrupts.clone());
    Ok(vec![Built::new(endpoint, spec, interrupts, model)])
}

/// What the owner of a slice calls its PASIDs, and what they are on the bus.
struct Translation(PartPasidTable);

impl PasidTranslation for Translation {
    fn physical(&self, pasid: Option<Pasid>) -> Option<PasidHold> {
        self.0.hold(pasid)
    }
}

fn build_slices(sites: &[Site], context: &Context<'_>) -> Result<Vec<Built>, BuildError> {
    let rid = Rid::new(PARENT_SEGMENT, context.number, 0, 0).ok_or(BuildError::SamePlace(sites[0].rid))?;
    let group = GroupId(PARENT_GROUP + u32::from(context.number));
    let parent = context.endpoint(Site { rid, group }, endpoint_options(context.iommu))?;
    // The host drives it.
    let _ = parent.set_bus_master(true);
    let options = DsaOptions { wqs: sites.len() as u8, ..DsaOptions::default() };
    let device = dsa(&parent, options.clone(), Interrupts::new(&spec(&options)));
    let entries = ENTRIES / sites.len() as u16;
    let queue = SliceQueue {
        mode: QueueMode::Shared,
        size: entries,
        threshold: entries,
        priority: 8,
        block_on_fault: true,
        transfer_shift: 31,
        batch_shift: 10,
    };
    device.configure_slices(&vec![queue; sites.len()]).expect("as many queues as it has, with its entries");
    let slices = (0..).zip(sites).map(|(number, site)| {
        let taken = BuildError::SamePlace(site.rid);
        let endpoint = context.machine.add_part(&parent, site.rid, site.group, PartPasids::Translated);
        let endpoint = endpoint.map_err(|_| taken.clone())?;
        let translation = Arc::new(Translation(endpoint.virtual_pasids().ok_or_else(|| taken.clone())?));
        let spec = slice_spec(&device);
        let interrupts = Interrupts::new(&spec);
        let model = DsaSlice::new(&device, number, translation, interrupts.clone()).ok_or(taken)?;
        Ok(Built::new(endpoint, spec, interrupts, model))
    });
    slices.collect()
}
