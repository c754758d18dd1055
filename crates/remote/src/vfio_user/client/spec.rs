//! What the device looks like, from its configuration space and its regions.

use std::time::Instant;

use ioasid_vfio::{BarKind, BarSpec, MsixSpec, PcieKind, Spec, SpecError, VendorCapability};

use super::{CONFIG, ConnectError, Link};
use crate::vfio_user::wire::CommandId;

/// How many vectors the server has.
pub(super) struct Interrupts {
    pub(super) has_line: bool,
    pub(super) messages: u32,
    pub(super) table: u32,
}

/// The 256 bytes of configuration space that every function has.
struct Config([u8; 256]);

impl Config {
    fn byte(&self, at: u8) -> u8 {
        self.0[usize::from(at)]
    }

    fn word(&self, at: u8) -> u16 {
        u16::from_le_bytes([self.byte(at), self.byte(at.wrapping_add(1))])
    }

    fn dword(&self, at: u8) -> u32 {
        u32::from(self.word(at)) | u32::from(self.word(at.wrapping_add(2))) << 16
    }

    /// Where the capabilities with this id are.
    fn capabilities(&self, id: u8) -> impl Iterator<Item = u8> {
        const STATUS: u8 = 0x06;
        const LIST: u16 = 1 << 4;
        let has_list = self.word(STATUS) & LIST != 0;
        let follow = |place: u8| Some(self.byte(place) & !3).filter(|at| *at >= 0x40);
        let first = follow(0x34).filter(|_| has_list);
        // There is room for so many; a list that goes in a circle has an end here.
        let all = std::iter::successors(first, move |at| follow(at + 1)).take(48);
        all.filter(move |at| self.byte(*at) == id)
    }

    fn capability(&self, id: u8) -> Option<u8> {
        self.capabilities(id).next()
    }

    /// Those whose contents are the vendor's.
    fn vendor_capabilities(&self) -> Vec<VendorCapability> {
        const VIRTIO: u16 = 0x1af4;
        const WINDOW: u8 = 5;
        let all = self.capabilities(0x09).filter_map(|at| {
            let length = usize::from(self.byte(at + 2));
            let body = self.0.get(usize::from(at) + 3..usize::from(at) + length)?;
            let is_window = self.word(0) == VIRTIO && body.first() == Some(&WINDOW) && length >= 20;
            Some(VendorCapability { body: body.to_vec(), is_window })
        });
        all.collect()
    }
}

/// Reads configuration space, by `limit`.
pub(super) fn read_spec(link: &Link, interrupts: &Interrupts, limit: Instant) -> Result<Spec, ConnectError> {
    let mut config = Config([0; 256]);
    if link.regions[CONFIG as usize] < config.0.len() as u64 {
        return Err(ConnectError::Device("it has no configuration space".to_owned()));
    }
    // In pieces that every server knows.
    for (at, dword) in (0u64..).step_by(4).zip(config.0.chunks_mut(4)) {
        link.connection.keep_to(limit, CommandId::RegionRead)?;
        link.read(CONFIG, at, dword)?;
    }
    let mut spec = parse(&config, &link.regions, interrupts)?;
    // What there is no room for beside the capabilities that are this side's, is not there.
    if spec.check() == Err(SpecError::VendorCapabilities) {
        spec.vendor_capabilities.clear();
    }
    spec.check().map_err(|error| ConnectError::Device(error.to_string()))?;
    Ok(spec)
}

fn parse(config: &Config, regions: &[u64; 8], interrupts: &Interrupts) -> Result<Spec, ConnectError> {
    if config.word(0) == 0xffff {
        return Err(ConnectError::Device("its configuration space is empty".to_owned()));
    }
    if config.byte(0x0e) & 0x7f != 0 {
        return Err(ConnectError::Device("it is a bridge".to_owned()));
    }
    let bars = read_bars(config, regions);
    let memory = |index: u8| bars.iter().any(|bar| bar.index == index && bar.kind != BarKind::Ports);
    let msix = config.capability(0x11).and_then(|at| {
        let vectors = u32::from(config.word(at + 2) & 0x7ff) + 1;
        let (table, pba) = (config.dword(at.wrapping_add(4)), config.dword(at.wrapping_add(8)));
        let [table_bar, pba_bar] = [table, pba].map(|register| (register & 7) as u8);
        // A server without vectors, or whose table is nowhere, has none.
        let vectors = vectors.min(interrupts.table) as u16;
        let there = vectors > 0 && memory(table_bar) && memory(pba_bar);
        there.then_some(MsixSpec { vectors, table_bar, table_offset: table & !7, pba_bar, pba_offset: pba & !7 })
    });
    let messages = config.capability(0x05).map_or(0, |at| 1u32 << (config.word(at + 2) >> 1 & 7).min(5));
    let messages = messages.min(interrupts.messages.min(32));
    let pcie = config.capability(0x10).map_or(PcieKind::RootComplexIntegrated, |at| {
        const INTEGRATED: u16 = 9;
        let link = config.dword(at.wrapping_add(0x0c));
        match config.word(at + 2) >> 4 & 0xf {
            INTEGRATED => PcieKind::RootComplexIntegrated,
            _ => PcieKind::Endpoint { speed: (link & 0xf).clamp(1, 6) as u8, width: (link >> 4 & 0x3f).max(1) as u8 },
        }
    });
    Ok(Spec {
        vendor: config.word(0x00),
        device: config.word(0x02),
        subsystem_vendor: config.word(0x2c),
        subsystem_device: config.word(0x2e),
        class: config.dword(0x08) >> 8,
        revision: config.byte(0x08),
        bars,
        msix,
        msi_vectors: messages.checked_ilog2().map_or(0, |log| 1 << log),
        interrupt_pin: if interrupts.has_line { config.byte(0x3d).clamp(1, 4) } else { 0 },
        pcie,
        no_soft_reset: config.capability(0x01).is_none_or(|at| config.word(at.wrapping_add(4)) & 1 << 3 != 0),
        translation: Default::default(),
        vendor_capabilities: config.vendor_capabilities(),
    })
}

fn read_bars(config: &Config, regions: &[u64; 8]) -> Vec<BarSpec> {
    let mut bars = Vec::new();
    let mut index = 0;
    while index < 6 {
        let register = config.dword(0x10 + 4 * index);
        let kind = match register {
            ports if ports & 1 != 0 => BarKind::Ports,
            wide if wide >> 1 & 3 == 2 && index < 5 => BarKind::Memory64,
            _ => BarKind::Memory32,
        };
        let size = regions[usize::from(index)];
        if let Some(size) = Some(size).filter(|size| *size > 0).and_then(u64::checked_next_power_of_two) {
            let size = if kind == BarKind::Ports { size.max(4) } else { size.max(16) };
            let prefetchable = kind != BarKind::Ports && register & 1 << 3 != 0;
            bars.push(BarSpec { index, size, kind, prefetchable });
        }
        index += if kind == BarKind::Memory64 { 2 } else { 1 };
    }
    bars
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_list_of_capabilities_in_a_circle_ends() {
        let mut config = Config([0; 256]);
        (config.0[0x06], config.0[0x34]) = (0x10, 0x40);
        (config.0[0x40], config.0[0x41]) = (0x09, 0x40);
        assert_eq!(config.capability(0x11), None);
        assert_eq!(config.capability(0x09), Some(0x40));
    }

    proptest! {
        #[test]
        fn no_configuration_space_panics(
            bytes in prop::collection::vec(any::<u8>(), 256),
            list in any::<u8>(),
            regions in prop::array::uniform8(prop_oneof![Just(0), any::<u64>(), 1u64..100_000]),
            messages in any::<u32>(),
            table in any::<u32>(),
        ) {
            let mut config = Config(bytes.try_into().unwrap());
            (config.0[0x06], config.0[0x34], config.0[0x0e]) = (0x10, list, 0);
            let parsed = parse(&config, &regions, &Interrupts { has_line: true, messages, table });
            let _ = parsed.map(|spec| spec.check());
        }
    }
}
