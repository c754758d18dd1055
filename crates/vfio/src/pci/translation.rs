//! The extended capabilities for translation: ATS, page requests, PASID (PCIe Base Specification 6.0, 10.5 and 7.8.9).
//!
//! ```text
//!           31          20 19   16 15           0
//!  ATS      │ next        │ version │ id 0x000f  │
//!  +0x04    │ control: 15 enable     │ capability │
//!  PRI      │ next        │ version │ id 0x0013  │
//!  +0x04    │ status: 15 responses   │ control: 0 enable │
//!           │  have a PASID, 8 stopped │          │
//!  +0x08    │ most requests outstanding            │
//!  +0x0c    │ requests allowed outstanding         │
//!  PASID    │ next        │ version │ id 0x001b  │
//!  +0x04    │ control: 2 privileged,  │ capability: 12:8 width, │
//!           │  0 enable               │  2 privileged           │
//! ```
//!
//! They lie one after the other from 0x100 on, which is where the list begins. A program can write nothing of them: the
//! owner of the IOMMU enables them before it gives the device away, as Linux's drivers do, and keeps them. ATS and
//! PASIDs read as enabled. Page requests read as stopped, as a guest's driver takes them over only then. The page table
//! decides whether the device makes any, whatever the driver writes.

use super::config::ConfigSpace;
use crate::spec::TranslationSpec;

/// Where the list of extended capabilities begins.
pub const FIRST: u16 = 0x100;
/// Id of the ATS capability.
pub const ATS_ID: u16 = 0x000f;
/// Id of the page request capability.
pub const PRI_ID: u16 = 0x0013;
/// Id of the PASID capability.
pub const PASID_ID: u16 = 0x001b;

const ATS_LEN: u16 = 0x08;
const PRI_LEN: u16 = 0x10;
const PASID_LEN: u16 = 0x08;

/// ATS: requests are page-aligned.
const ATS_ALIGNED: u32 = 1 << 5;
const ATS_ENABLE: u32 = 1 << 15;
/// PRI: no page request is outstanding, and none is made.
const PRI_STOPPED: u32 = 1 << 8;
/// PRI: responses to requests with a PASID have it, too.
const PRI_RESPONSE_PASID: u32 = 1 << 15;
const PASID_PRIVILEGED: u32 = 1 << 2;
const PASID_ENABLE: u32 = 1 << 0;

/// Lays out those that the function has. Without any, the list is one null capability.
pub(crate) fn lay_out(config: &mut ConfigSpace, spec: &TranslationSpec) {
    let present = [
        spec.ats.then_some((ATS_ID, ATS_LEN)),
        spec.page_requests.map(|_| (PRI_ID, PRI_LEN)),
        spec.pasid.map(|_| (PASID_ID, PASID_LEN)),
    ];
    let mut present = present.into_iter().flatten().peekable();
    if present.peek().is_none() {
        config.claim(FIRST, 4);
    }
    let mut at = FIRST;
    while let Some((id, len)) = present.next() {
        let end = at + len;
        let next = if present.peek().is_some() { end } else { 0 };
        config.claim(at, len);
        config.define(at, 4, u32::from(id) | 1 << 16 | u32::from(next) << 20, 0);
        lay_out_one(config, at, id, spec);
        at = end;
    }
}

fn lay_out_one(config: &mut ConfigSpace, at: u16, id: u16, spec: &TranslationSpec) {
    if let (PRI_ID, Some(outstanding)) = (id, spec.page_requests) {
        let pasid = if spec.pasid.is_some() { PRI_RESPONSE_PASID } else { 0 };
        config.define(at + 0x06, 2, pasid | PRI_STOPPED, 0);
        config.define(at + 0x08, 4, outstanding, 0);
        config.define(at + 0x0c, 4, outstanding, 0);
    }
    if let (PASID_ID, Some(pasid)) = (id, spec.pasid) {
        let privileged = if pasid.privileged { PASID_PRIVILEGED } else { 0 };
        config.define(at + 0x04, 2, privileged | u32::from(pasid.width) << 8, 0);
        config.define(at + 0x06, 2, privileged | PASID_ENABLE, 0);
    }
    if id == ATS_ID {
        config.define(at + 0x04, 2, ATS_ALIGNED, 0);
        config.define(at + 0x06, 2, ATS_ENABLE, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::PasidSpec;

    const PASID: Option<PasidSpec> = Some(PasidSpec { width: 20, privileged: true });

    fn list(spec: &TranslationSpec) -> (ConfigSpace, Vec<(u16, u16)>) {
        let mut config = ConfigSpace::empty();
        lay_out(&mut config, spec);
        let (mut at, mut found) = (FIRST, vec![]);
        while at != 0 {
            let header = config.read(at, 4);
            found.push((at, header as u16));
            at = (header >> 20) as u16;
        }
        (config, found)
    }

    #[test]
    fn the_list_begins_at_0x100_whatever_is_in_it() {
        let all = TranslationSpec { ats: true, page_requests: Some(512), pasid: PASID };
        assert_eq!(list(&all).1, [(0x100, ATS_ID), (0x108, PRI_ID), (0x118, PASID_ID)]);
        let pasid = TranslationSpec { ats: false, page_requests: None, pasid: PASID };
        assert_eq!(list(&pasid).1, [(0x100, PASID_ID)]);
        assert_eq!(list(&TranslationSpec::default()).1, [(0x100, 0)]);
    }

    #[test]
    fn what_there_is_cannot_be_written() {
        let (mut config, _) = list(&TranslationSpec { ats: true, page_requests: Some(512), pasid: PASID });
        let registers = |config: &ConfigSpace| [0x104, 0x10c, 0x110, 0x114, 0x11c].map(|at| config.read(at, 4));
        let before = registers(&config);
        assert_eq!(before, [0x8000_0020, 0x8100_0000, 512, 512, 0x0005_1404]);
        for at in (0x100..0x120).step_by(4) {
            config.write(super::super::config::Write { at, len: 4, value: u32::MAX, allowed: u32::MAX });
            config.write(super::super::config::Write { at, len: 4, value: 0, allowed: u32::MAX });
        }
        assert_eq!(registers(&config), before);
    }
}
