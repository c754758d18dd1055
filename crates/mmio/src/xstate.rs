//! Vector registers in the form in which ptrace hands them over: the XSAVE area, in its standard format.
//!
//! ```text
//!   0    legacy area: FSW at 2, FTW at 4, MXCSR at 24, ST/MM at 32, XMM0..15 at 160, XCR0 (put there by Linux) at 464
//!   512  header: XSTATE_BV, a bit for each component that holds something but its initial value
//!   ...  components, each where CPUID says: 2 YMM upper halves of 0..15, 5 k0..7, 6 ZMM upper halves of 0..15,
//!        7 ZMM16..31 whole
//! ```
//!
//! A register is scattered over up to three components:
//!
//! ```text
//!            bytes   0..16          16..32         32..64
//!   0..15            legacy area    component 2    component 6
//!   16..31           component 7
//! ```
//!
//! Invariant: a component whose bit in XSTATE_BV is clear reads as zero, whatever its bytes are, and is zeroed before
//! the first write makes it count.
//!
//! Follows the SDM, volume 1, 13.4 to 13.6, and `PTRACE_GETREGSET` with `NT_X86_XSTATE` of Linux.

use std::ops::Range;

use crate::Vectors;

const X87: usize = 0;
const SSE: usize = 1;
const YMM_UPPER: usize = 2;
const MASKS: usize = 5;
const ZMM_UPPER: usize = 6;
const ZMM_16_TO_31: usize = 7;

const CONTROL_WORD: usize = 0;
const STATUS_WORD: Range<usize> = 2..4;
const TAG_WORD: usize = 4;
const MXCSR: Range<usize> = 24..28;
const STACK: usize = 32;
const XMM: usize = 160;
const XCR0: Range<usize> = 464..472;
const XSTATE_BV: Range<usize> = 512..520;
const HEADER_END: usize = 576;

/// Where the processor keeps the components of an XSAVE area that lie beyond the legacy area.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XstateLayout {
    /// Component 2: bytes 16 to 31 of vector registers 0 to 15.
    pub ymm_upper: Option<usize>,
    /// Component 5: the mask registers.
    pub masks: Option<usize>,
    /// Component 6: bytes 32 to 63 of vector registers 0 to 15.
    pub zmm_upper: Option<usize>,
    /// Component 7: vector registers 16 to 31.
    pub zmm_16_to_31: Option<usize>,
}

impl XstateLayout {
    /// The layout of the processor that this runs on, and so of all threads that it traces.
    #[cfg(target_arch = "x86_64")]
    #[must_use]
    pub fn of_this_processor() -> Self {
        use core::arch::x86_64::__cpuid_count;
        let offset = |component| {
            // A leaf that the processor does not have gives numbers, which are checked against the buffer's size before
            // use.
            let (leaf_max, leaf) = (__cpuid_count(0, 0).eax, __cpuid_count(0xd, component));
            (leaf_max >= 0xd && leaf.eax != 0).then_some(leaf.ebx as usize)
        };
        Self { ymm_upper: offset(2), masks: offset(5), zmm_upper: offset(6), zmm_16_to_31: offset(7) }
    }
}

/// [`Vectors`] over the bytes of an XSAVE area, as `PTRACE_GETREGSET` fills it and `PTRACE_SETREGSET` takes it.
///
/// A component that the buffer is too short for, or that XCR0 (bytes 464 to 471) does not enable, is one that the
/// thread does not have.
#[derive(Debug)]
pub struct Xstate<'a> {
    bytes: &'a mut [u8],
    layout: XstateLayout,
    modified: bool,
}

impl<'a> Xstate<'a> {
    /// `bytes` is the XSAVE area, in the standard (not compacted) format.
    #[must_use]
    pub fn new(bytes: &'a mut [u8], layout: XstateLayout) -> Self {
        Self { bytes, layout, modified: false }
    }

    /// Whether a register was written: only then does the thread need the bytes back.
    #[must_use]
    pub fn is_modified(&self) -> bool {
        self.modified
    }

    fn number(&self, range: Range<usize>) -> u64 {
        let mut number = [0; 8];
        if let Some(bytes) = self.bytes.get(range) {
            number[..bytes.len()].copy_from_slice(bytes);
        }
        u64::from_le_bytes(number)
    }

    /// Where a component's bytes are; `None` if the thread does not have it.
    fn component(&self, component: usize) -> Option<Range<usize>> {
        let (start, length) = match component {
            X87 => (Some(STACK), 128),
            SSE => (Some(XMM), 256),
            YMM_UPPER => (self.layout.ymm_upper, 256),
            MASKS => (self.layout.masks, 64),
            ZMM_UPPER => (self.layout.zmm_upper, 512),
            ZMM_16_TO_31 => (self.layout.zmm_16_to_31, 1024),
            _ => return None,
        };
        let range = start?..start?.checked_add(length)?;
        let is_in_place = component <= SSE || range.start >= HEADER_END;
        let is_enabled = self.number(XCR0) >> component & 1 != 0;
        (is_enabled && is_in_place && self.bytes.len() >= range.end.max(HEADER_END)).then_some(range)
    }

    /// Where part `index` of `length` bytes of a component is.
    fn part(&self, component: usize, index: usize, length: usize) -> Option<Range<usize>> {
        let whole = self.component(component)?;
        let start = whole.start + index * length;
        (start + length <= whole.end).then_some(start..start + length)
    }

    fn is_initial(&self, component: usize) -> bool {
        self.number(XSTATE_BV) >> component & 1 == 0
    }

    /// Copies a part of a component to `to`; `None` if the thread does not have it.
    fn read(&self, component: usize, index: usize, to: &mut [u8]) -> Option<()> {
        let part = self.part(component, index, to.len())?;
        if self.is_initial(component) {
            to.fill(0);
        } else {
            to.copy_from_slice(&self.bytes[part]);
        }
        Some(())
    }

    /// Whether a component can take this value. One that the thread does not have holds zeros as it is.
    fn can_hold(&self, component: usize, value: &[u8]) -> bool {
        self.component(component).is_some() || value.iter().all(|&byte| byte == 0)
    }

    /// Replaces a part of a component that [can hold](Self::can_hold) it.
    fn write(&mut self, component: usize, index: usize, value: &[u8]) {
        let Some(part) = self.part(component, index, value.len()) else {
            return;
        };
        if self.is_initial(component) {
            if value.iter().all(|&byte| byte == 0) {
                return;
            }
            self.begin(component);
        }
        self.modified = true;
        self.bytes[part].copy_from_slice(value);
    }

    /// Makes a component that has its initial value one that is stored, with that value.
    fn begin(&mut self, component: usize) {
        let bits = self.number(XSTATE_BV);
        if let Some(range) = self.component(component) {
            self.bytes[range].fill(0);
        }
        match component {
            X87 => {
                self.bytes[..MXCSR.start].fill(0);
                self.bytes[CONTROL_WORD..CONTROL_WORD + 2].copy_from_slice(&0x37fu16.to_le_bytes());
            }
            // MXCSR counts as soon as SSE or AVX does.
            SSE | YMM_UPPER if bits & (1 << SSE | 1 << YMM_UPPER) == 0 => {
                self.bytes[MXCSR].copy_from_slice(&0x1f80u32.to_le_bytes());
            }
            _ => {}
        }
        self.bytes[XSTATE_BV].copy_from_slice(&(bits | 1 << component).to_le_bytes());
    }

    /// Which of the stack's slots holds an MMX register: they are stored from the top of the x87 stack on.
    fn slot(&self, index: usize) -> usize {
        let top = if self.is_initial(X87) { 0 } else { self.number(STATUS_WORD) >> 11 & 7 };
        index.wrapping_sub(top as usize) & 7
    }
}

impl Vectors for Xstate<'_> {
    fn load(&mut self, index: usize) -> Option<[u8; 64]> {
        let mut value = [0; 64];
        match index {
            0..16 => {
                self.read(SSE, index, &mut value[..16])?;
                // The processor may well lack these.
                let _ = self.read(YMM_UPPER, index, &mut value[16..32]);
                let _ = self.read(ZMM_UPPER, index, &mut value[32..]);
            }
            16..32 => self.read(ZMM_16_TO_31, index - 16, &mut value)?,
            _ => return None,
        }
        Some(value)
    }

    fn store(&mut self, index: usize, value: &[u8; 64]) -> bool {
        let (low, rest) = value.split_at(16);
        let (middle, high) = rest.split_at(16);
        let parts: &[(usize, &[u8])] = match index {
            0..16 => &[(SSE, low), (YMM_UPPER, middle), (ZMM_UPPER, high)],
            16..32 => &[(ZMM_16_TO_31, value)],
            _ => return false,
        };
        let fits = parts.iter().all(|&(component, part)| self.can_hold(component, part));
        if fits {
            for &(component, part) in parts {
                self.write(component, index % 16, part);
            }
        }
        fits
    }

    fn mask(&mut self, index: usize) -> Option<u64> {
        let mut value = [0; 8];
        self.read(MASKS, index, &mut value)?;
        Some(u64::from_le_bytes(value))
    }

    fn set_mask(&mut self, index: usize, value: u64) -> bool {
        if index >= 8 || self.component(MASKS).is_none() {
            return false;
        }
        self.write(MASKS, index, &value.to_le_bytes());
        true
    }

    fn mmx(&mut self, index: usize) -> Option<u64> {
        if index >= 8 {
            return None;
        }
        let mut slot = [0; 16];
        self.read(X87, self.slot(index), &mut slot)?;
        Some(u64::from_le_bytes(slot[..8].try_into().ok()?))
    }

    fn set_mmx(&mut self, index: usize, value: u64) -> bool {
        if index >= 8 || self.component(X87).is_none() {
            return false;
        }
        if self.is_initial(X87) {
            self.begin(X87);
        }
        // An MMX instruction sets TOP to 0, so each register moves to the slot of its own number, and tags all as
        // valid (SDM volume 1, 9.5.1). Exponent and sign of the one written become ones.
        let first = self.slot(0);
        self.bytes[STACK..STACK + 128].rotate_left(16 * first);
        self.bytes[STATUS_WORD.start + 1] &= !0x38;
        self.bytes[TAG_WORD] = 0xff;
        let slot = STACK + 16 * index;
        self.bytes[slot..slot + 8].copy_from_slice(&value.to_le_bytes());
        self.bytes[slot + 8..slot + 10].fill(0xff);
        self.modified = true;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: XstateLayout =
        XstateLayout { ymm_upper: Some(576), masks: Some(1088), zmm_upper: Some(1152), zmm_16_to_31: Some(1664) };

    /// An area full of stale bytes, with these components enabled and present.
    fn area(length: usize, enabled: u64, present: u64) -> Vec<u8> {
        let mut bytes = vec![0x5a; length];
        bytes[XCR0].copy_from_slice(&enabled.to_le_bytes());
        bytes[XSTATE_BV].copy_from_slice(&present.to_le_bytes());
        bytes
    }

    #[test]
    fn an_initial_component_reads_as_zero() {
        let mut bytes = area(2688, 0xe7, 1 << SSE);
        let mut xstate = Xstate::new(&mut bytes, LAYOUT);
        let value = xstate.load(3).unwrap();
        assert_eq!((value[..16].to_vec(), value[16..].to_vec()), (vec![0x5a; 16], vec![0; 48]));
        assert_eq!(xstate.mask(1), Some(0));
        assert!(!xstate.is_modified());
    }

    #[test]
    fn writing_an_initial_component_zeroes_its_other_registers() {
        let mut bytes = area(2688, 0xe7, 0);
        let mut xstate = Xstate::new(&mut bytes, LAYOUT);
        assert!(xstate.store(17, &[7; 64]) && xstate.set_mask(2, 9));
        assert_eq!((xstate.load(17), xstate.load(18)), (Some([7; 64]), Some([0; 64])));
        assert_eq!((xstate.mask(2), xstate.mask(3)), (Some(9), Some(0)));
        assert!(xstate.is_modified());
        assert_eq!(xstate.number(XSTATE_BV), 1 << MASKS | 1 << ZMM_16_TO_31);
    }

    #[test]
    fn a_register_that_the_thread_lacks_is_refused() {
        for (length, enabled) in [(2688, 7), (1088, 0xe7)] {
            let mut bytes = area(length, enabled, 7);
            let mut xstate = Xstate::new(&mut bytes, LAYOUT);
            assert_eq!((xstate.load(16), xstate.mask(0)), (None, None));
            let mut upper = [0; 64];
            assert!(xstate.store(0, &upper));
            upper[32] = 1;
            assert!(!xstate.store(0, &upper));
        }
    }

    #[test]
    fn the_first_write_gives_control_registers_their_initial_values() {
        let mut bytes = area(2688, 0xe7, 0);
        let mut xstate = Xstate::new(&mut bytes, LAYOUT);
        assert!(xstate.store(1, &[1; 64]) && xstate.set_mmx(2, 3));
        assert_eq!(xstate.number(MXCSR), 0x1f80);
        assert_eq!(xstate.number(CONTROL_WORD..CONTROL_WORD + 2), 0x37f);
        assert_eq!((xstate.number(STATUS_WORD), xstate.number(TAG_WORD..TAG_WORD + 1)), (0, 0xff));
        assert_eq!((xstate.mmx(2), xstate.mmx(1)), (Some(3), Some(0)));
    }

    #[test]
    fn control_registers_that_count_are_kept() {
        let mut bytes = area(2688, 0xe7, 1 << X87 | 1 << YMM_UPPER);
        let mut xstate = Xstate::new(&mut bytes, LAYOUT);
        assert!(xstate.store(1, &[1; 64]) && xstate.set_mmx(2, 3));
        assert_eq!(xstate.number(MXCSR), 0x5a5a_5a5a);
        assert_eq!(xstate.number(CONTROL_WORD..CONTROL_WORD + 2), 0x5a5a);
    }

    #[test]
    fn a_buffer_of_any_size_is_safe() {
        for length in 0..2700 {
            let mut bytes = vec![0xff; length];
            let mut xstate = Xstate::new(&mut bytes, LAYOUT);
            for index in 0..40 {
                let _ = (xstate.load(index), xstate.store(index, &[1; 64]));
                let _ = (xstate.mask(index), xstate.set_mask(index, 1), xstate.mmx(index), xstate.set_mmx(index, 1));
            }
        }
    }

    #[test]
    fn an_mmx_register_keeps_its_number_when_the_stack_top_moves() {
        let mut bytes = area(2688, 0xe7, 1 << X87);
        bytes[STATUS_WORD].copy_from_slice(&(3u16 << 11).to_le_bytes());
        for slot in 0..8 {
            bytes[STACK + 16 * slot..][..8].fill(slot as u8);
        }
        let mut xstate = Xstate::new(&mut bytes, LAYOUT);
        let before: Vec<_> = (0..8).map(|index| xstate.mmx(index)).collect();
        assert_eq!(before[3], Some(0));
        assert!(xstate.set_mmx(5, 0x1234));
        let after: Vec<_> = (0..8).map(|index| xstate.mmx(index)).collect();
        assert_eq!(after[5], Some(0x1234));
        assert_eq!([&before[..5], &before[6..]].concat(), [&after[..5], &after[6..]].concat());
    }
}
