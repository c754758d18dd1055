//! A PCI function: its configuration space, its interrupts and its device model, put together.
//!
//! Configuration registers are stored as bits ([`config`](super::config)); a write is performed first, and what it
//! causes is found by comparing [`Controls`] before and after: DMA switched, INTx disabled, a change of power state, a
//! reset.
//!
//! Lock protocol: `order` is held through a configuration write or a reset and all that it causes, so that the last
//! write decides. `config` is held for single reads and writes of registers, never while a model or the IOMMU is
//! called. A BAR access takes `config` for a moment only, to see that the BAR answers: one that races with the write
//! that turns memory decoding off may still reach the model, as one that was on the bus already would.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use thiserror::Error;

use super::config::{Bits, ConfigSpace, Write, pieces};
use super::header::{self, Command, Status};
use super::interrupts::{Interrupts, SavedInterrupts};
use super::pm::{self, PowerState};
use super::vendor::{self, Window};
use super::{express, msi, msix, translation};
use crate::bar_memory::{BarMemory, BarPages};
use crate::lock;
use crate::model::{BusMaster, Model};
use crate::spec::{BarKind, BarSpec, MsixSpec, Spec, SpecError};

/// One PCI Express function.
pub struct Function {
    spec: Spec,
    bar_addresses: [u64; 6],
    order: Mutex<()>,
    config: Mutex<ConfigSpace>,
    interrupts: Arc<Interrupts>,
    model: Arc<dyn Model>,
    memory: Vec<BarPages>,
    windows: Vec<Window>,
    bus_master: Arc<dyn BusMaster>,
    resets: AtomicU64,
}

/// Why a BAR did not answer.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum BarError {
    /// Memory Space Enable is clear, or the function is in D3hot.
    #[error("the function does not answer: memory decoding is disabled, or it is in D3hot")]
    Disabled,
    /// There are no such bytes.
    #[error("BAR {bar} has no {len} bytes at {offset:#x}")]
    Outside {
        /// The BAR.
        bar: u8,
        /// The offset in it.
        offset: u64,
        /// The length of the access.
        len: usize,
    },
}

/// What the host keeps of a function over a reset.
#[derive(Clone)]
pub(crate) struct SavedState {
    config: Vec<u8>,
    interrupts: SavedInterrupts,
}

/// The bits that switch something outside configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Controls {
    command: Command,
    power: PowerState,
}

impl Controls {
    fn of(config: &ConfigSpace) -> Self {
        let command = Command::from_bits_truncate(config.read(header::COMMAND, 2) as u16);
        Self { command, power: PowerState::of(config) }
    }

    fn answers(self, kind: BarKind) -> bool {
        let switch = if kind == BarKind::Ports { Command::PORTS } else { Command::MEMORY };
        self.command.contains(switch) && self.power == PowerState::D0
    }

    fn may_dma(self) -> bool {
        self.command.contains(Command::BUS_MASTER) && self.power == PowerState::D0
    }

    fn intx_disabled(self) -> bool {
        self.command.contains(Command::INTX_DISABLE)
    }
}

impl Function {
    /// Puts a function together, in its state after power-on: BARs at 0, nothing enabled.
    ///
    /// `interrupts` is the object that the model raises its interrupts on. `window` is the physical address from
    /// which on the BARs are placed, lowest index first, each at a multiple of its size and of 4096.
    ///
    /// # Errors
    /// [`SpecError`], if there cannot be such a function or its BARs do not fit above `window`.
    pub fn new(
        spec: Spec,
        window: u64,
        interrupts: Arc<Interrupts>,
        model: Arc<dyn Model>,
        bus_master: Arc<dyn BusMaster>,
    ) -> Result<Self, SpecError> {
        spec.check()?;
        let memory = model.memory();
        spec.check_memory(&memory)?;
        let bar_addresses = place_bars(&spec, window)?;
        let places = vendor_places(&spec).ok_or(SpecError::VendorCapabilities)?;
        let config = Mutex::new(lay_out(&spec, &places));
        let (order, resets) = (Mutex::new(()), AtomicU64::new(0));
        let windows = places.iter().zip(&spec.vendor_capabilities);
        let windows = windows.filter(|(_, capability)| capability.is_window).map(|(at, _)| Window(*at)).collect();
        Ok(Self { spec, bar_addresses, order, config, interrupts, model, memory, windows, bus_master, resets })
    }

    /// The description that the function was made from.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The function's interrupts.
    pub fn interrupts(&self) -> &Arc<Interrupts> {
        &self.interrupts
    }

    /// The physical address at which the host placed a BAR.
    pub fn bar_address(&self, bar: u8) -> Option<u64> {
        self.spec.bar(bar).map(|_| self.bar_addresses[usize::from(bar)])
    }

    /// The pages of BARs that are memory.
    pub fn memory(&self) -> &[BarPages] {
        &self.memory
    }

    /// Whether the function's BARs that are memory answer now.
    pub fn bars_answer(&self) -> bool {
        self.controls().answers(BarKind::Memory64)
    }

    /// Reads configuration space. An access of more than one register is cut into aligned pieces of up to 4 bytes.
    ///
    /// Bytes beyond the space read as all ones, as where no function answers.
    pub fn config_read(&self, offset: u16, data: &mut [u8]) {
        let inside = data.len().min(super::config::SIZE.saturating_sub(offset.into()));
        let (data, beyond) = data.split_at_mut(inside);
        beyond.fill(0xff);
        if !self.model.is_present() {
            data.fill(0xff);
            return;
        }
        for (at, range) in pieces(offset, data.len()) {
            self.config_read_piece(at, &mut data[range]);
        }
    }

    /// Writes configuration space, as [`Function::config_read`], with everything that the write causes: when it
    /// returns, a reset is complete, and DMA that was switched off is not in flight.
    pub fn config_write(&self, offset: u16, data: &[u8]) {
        let inside = data.len().min(super::config::SIZE.saturating_sub(offset.into()));
        if !self.model.is_present() {
            return;
        }
        for (at, range) in pieces(offset, inside) {
            self.config_write_piece(at, &data[range], u32::MAX);
        }
    }

    fn config_read_piece(&self, at: u16, data: &mut [u8]) {
        let len = data.len() as u16;
        self.look_through_window(at);
        let stored = {
            let config = lock(&self.config);
            config.is_claimed(at).then(|| config.read(at, len))
        };
        let Some(stored) = stored else {
            if !self.model.config_read(at, data) {
                data.fill(0);
            }
            return;
        };
        let live = self.live_bits(at & !3) >> (u32::from(at % 4) * 8);
        data.copy_from_slice(&(stored | live).to_le_bytes()[..data.len()]);
    }

    /// The bits of a doubleword that are kept elsewhere: interrupt state, by the one who decides by it.
    fn live_bits(&self, dword: u16) -> u32 {
        match dword {
            header::COMMAND if self.interrupts.intx_asserted() => u32::from(Status::INTERRUPT.bits()) << 16,
            msix::AT => self.interrupts.msix_control() << 16,
            msi::AT => self.interrupts.msi_control() << 16,
            _ => 0,
        }
    }

    /// One aligned write, of which the bits in `allowed` take part.
    pub(crate) fn config_write_piece(&self, at: u16, data: &[u8], allowed: u32) {
        let _order = lock(&self.order);
        let mut value = [0; 4];
        value[..data.len()].copy_from_slice(data);
        let write = Write { at, len: data.len() as u16, value: u32::from_le_bytes(value), allowed };
        let (before, after) = {
            let mut config = lock(&self.config);
            if !config.is_claimed(at) {
                drop(config);
                self.model.config_write(at, data);
                return;
            }
            let before = Controls::of(&config);
            config.write(write);
            pm::set_state(&mut config, before.power.after(write.onto(pm::CONTROL, 2)));
            (before, Controls::of(&config))
        };
        if write.onto(express::DEVICE_CONTROL, 2).value & express::INITIATE_FLR != 0 {
            self.reset_in_order();
            return;
        }
        self.write_interrupt_control(write);
        self.switch(before, after);
        self.write_through_window(at);
    }

    /// The window whose bytes are in this doubleword, and what it is over.
    fn window_target(&self, at: u16) -> Option<(Window, (u8, u64, usize))> {
        let window = *self.windows.iter().find(|window| window.data() == at & !3)?;
        Some((window, window.target(&lock(&self.config))?))
    }

    /// Before a window's bytes are read, they become those of the BAR.
    fn look_through_window(&self, at: u16) {
        let Some((window, (bar, offset, length))) = self.window_target(at) else { return };
        let mut bytes = [0; 4];
        if self.bar_read(bar, offset, &mut bytes[..length]).is_ok() {
            lock(&self.config).set(window.data(), 4, u32::from_le_bytes(bytes));
        }
    }

    /// When a window's bytes were written, the BAR's become those.
    fn write_through_window(&self, at: u16) {
        let Some((window, (bar, offset, length))) = self.window_target(at) else { return };
        let bytes = lock(&self.config).read(window.data(), 4).to_le_bytes();
        let _ = self.bar_write(bar, offset, &bytes[..length]);
    }

    /// Whether a program writes what is in this doubleword.
    pub(crate) fn is_window_register(&self, dword: u16) -> bool {
        self.windows.iter().any(|window| window.takes(dword))
    }

    fn write_interrupt_control(&self, write: Write) {
        let reached = |bits: Bits| (bits.mask != 0).then_some(bits);
        if let (Some(_), Some(bits)) = (self.spec.msix, reached(write.onto(msix::CONTROL, 2))) {
            self.interrupts.write_msix_control(bits);
        }
        if let (1.., Some(bits)) = (self.spec.msi_vectors, reached(write.onto(msi::CONTROL, 2))) {
            self.interrupts.write_msi_control(bits);
        }
    }

    /// Does what a change of the control bits causes.
    fn switch(&self, before: Controls, after: Controls) {
        let wakes = before.power == PowerState::D3Hot && after.power == PowerState::D0;
        if wakes && !self.spec.no_soft_reset {
            self.reset_in_order();
            return;
        }
        if before.may_dma() != after.may_dma() {
            self.interrupts.set_may_send(after.may_dma());
            self.bus_master.set_bus_master(after.may_dma());
        }
        if before.intx_disabled() != after.intx_disabled() {
            self.interrupts.set_intx_disabled(after.intx_disabled());
        }
    }

    /// Function level reset: when it returns, no DMA is in flight and every register has its power-on value.
    pub fn reset(&self) {
        let _order = lock(&self.order);
        self.reset_in_order();
    }

    /// How often it was reset.
    pub fn resets(&self) -> u64 {
        self.resets.load(Ordering::Acquire)
    }

    fn reset_in_order(&self) {
        self.resets.fetch_add(1, Ordering::AcqRel);
        lock(&self.config).reset();
        // The model first: it ends its own DMA, which would count as refused if bus mastering were switched off under
        // it.
        self.model.reset();
        self.memory.iter().for_each(|pages| pages.memory.clear());
        self.bus_master.set_bus_master(false);
        self.interrupts.reset();
    }

    /// Does what firmware and host do before a program sees the function: BARs have addresses, and answer. Their memory
    /// is new, so that no former user of the function reaches it.
    ///
    /// # Errors
    /// If there is no memory to be had.
    pub(crate) fn power_on(&self) -> io::Result<()> {
        let _order = lock(&self.order);
        self.memory.iter().try_for_each(|pages| pages.memory.renew())?;
        self.reset_in_order();
        let mut config = lock(&self.config);
        for bar in &self.spec.bars {
            header::set_bar_address(&mut config, bar, self.bar_addresses[usize::from(bar.index)]);
        }
        let switches = if self.spec.has_ports() { Command::MEMORY | Command::PORTS } else { Command::MEMORY };
        config.set(header::COMMAND, 2, switches.bits().into());
        Ok(())
    }

    /// What a reset would lose.
    pub(crate) fn save(&self) -> SavedState {
        SavedState { config: lock(&self.config).save(), interrupts: self.interrupts.save() }
    }

    /// Puts back what a reset lost.
    pub(crate) fn restore(&self, saved: &SavedState) {
        let _order = lock(&self.order);
        let (before, after) = {
            let mut config = lock(&self.config);
            let before = Controls::of(&config);
            config.restore(&saved.config);
            (before, Controls::of(&config))
        };
        self.switch(before, after);
        self.interrupts.restore(&saved.interrupts);
    }

    /// Resets the function and puts its configuration back, as Linux's reset of a device in use does.
    pub(crate) fn reset_keeping_config(&self) {
        let saved = self.save();
        self.reset();
        self.restore(&saved);
    }

    /// Whether a byte of configuration space belongs to the header or to a capability.
    pub(crate) fn is_standard_register(&self, at: u16) -> bool {
        lock(&self.config).is_claimed(at)
    }

    /// The power state.
    pub(crate) fn power_state(&self) -> PowerState {
        self.controls().power
    }

    fn controls(&self) -> Controls {
        Controls::of(&lock(&self.config))
    }

    /// Reads from a BAR in one access, as the processor does.
    ///
    /// # Errors
    /// [`BarError`], if the BARs do not answer or the bytes are not within the BAR.
    pub fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) -> Result<(), BarError> {
        self.check_bar(bar, offset, data.len())?;
        if !self.model.is_present() {
            data.fill(0xff);
            return Ok(());
        }
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let (place, inside, len) = self.place(bar, at, data.len() - done);
            let part = &mut data[done..done + len];
            match place {
                Place::Table => self.interrupts.read_table(inside as usize, part),
                Place::Pending => self.interrupts.read_pending(inside as usize, part),
                Place::Memory(memory) => memory.read(inside, part),
                Place::Model => self.model.read(bar, inside, part),
            }
            done += len;
        }
        Ok(())
    }

    /// Writes to a BAR in one access, as the processor does.
    ///
    /// # Errors
    /// As [`Function::bar_read`]; nothing is written then.
    pub fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), BarError> {
        self.check_bar(bar, offset, data.len())?;
        if !self.model.is_present() {
            return Ok(());
        }
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let (place, inside, len) = self.place(bar, at, data.len() - done);
            let part = &data[done..done + len];
            match place {
                Place::Table => self.interrupts.write_table(inside as usize, part),
                Place::Pending => {}
                Place::Memory(memory) => memory.write(inside, part),
                Place::Model => self.model.write(bar, inside, part),
            }
            done += len;
        }
        Ok(())
    }

    /// Sends a command of 64 bytes by a deferrable write: see [`Model::enqueue`].
    ///
    /// # Errors
    /// As [`Function::bar_read`].
    pub fn bar_enqueue(&self, bar: u8, offset: u64, command: &[u8; 64]) -> Result<Option<bool>, BarError> {
        self.check_bar(bar, offset, command.len())?;
        Ok(match self.place(bar, offset, command.len()) {
            (Place::Model, _, 64) => self.model.enqueue(bar, offset, command),
            _ => None,
        })
    }

    /// Fails as [`Function::bar_read`] would.
    ///
    /// # Errors
    /// [`BarError`].
    pub fn check_bar(&self, bar: u8, offset: u64, len: usize) -> Result<(), BarError> {
        let inside = |spec: &&BarSpec| offset.checked_add(len as u64).is_some_and(|end| end <= spec.size);
        let spec = self.spec.bar(bar).filter(inside).ok_or(BarError::Outside { bar, offset, len })?;
        if self.controls().answers(spec.kind) { Ok(()) } else { Err(BarError::Disabled) }
    }

    /// Whether some of these bytes of a BAR are the MSI-X table.
    pub(crate) fn is_msix_table(&self, bar: u8, offset: u64, len: usize) -> bool {
        self.spec.msix.as_ref().is_some_and(|spec| {
            let start = u64::from(spec.table_offset);
            spec.table_bar == bar && offset < start + spec.table_len() && start < offset.saturating_add(len as u64)
        })
    }

    /// What lies at `at` in a BAR, where in that, and how many of `len` bytes lie in it.
    fn place(&self, bar: u8, at: u64, len: usize) -> (Place<'_>, u64, usize) {
        let msix = self.spec.msix.iter().flat_map(|spec: &MsixSpec| {
            [
                (spec.table_bar, u64::from(spec.table_offset), spec.table_len(), Place::Table),
                (spec.pba_bar, u64::from(spec.pba_offset), spec.pba_len(), Place::Pending),
            ]
        });
        let memory = self.memory.iter();
        let memory = memory.map(|pages| (pages.bar, pages.offset, pages.memory.length(), Place::Memory(&pages.memory)));
        let up_to = |end: u64| usize::try_from(end - at).map_or(len, |left| left.min(len));
        let mut until = u64::MAX;
        for (_, start, size, place) in msix.chain(memory).filter(|structure| structure.0 == bar) {
            if (start..start + size).contains(&at) {
                return (place, at - start, up_to(start + size));
            }
            if at < start {
                until = until.min(start);
            }
        }
        (Place::Model, at, up_to(until))
    }
}

/// What answers for the bytes of a BAR.
enum Place<'a> {
    Table,
    Pending,
    Memory(&'a BarMemory),
    Model,
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spec { vendor, device, .. } = self.spec;
        write!(f, "Function({vendor:04x}:{device:04x}, {:?})", self.controls())
    }
}

/// The capabilities that are not the device's own: where each lies, and its length.
fn standard(spec: &Spec) -> Vec<(u16, u16)> {
    let all = [
        (msi::AT, msi::LEN, spec.msi_vectors != 0),
        (msix::AT, msix::LEN, spec.msix.is_some()),
        (express::AT, express::LEN, true),
        (pm::AT, pm::LEN, true),
    ];
    all.into_iter().filter(|(.., present)| *present).map(|(at, length, _)| (at, length)).collect()
}

/// Where the device's own capabilities lie, if they fit.
pub(crate) fn vendor_places(spec: &Spec) -> Option<Vec<u16>> {
    vendor::place(spec, &standard(spec))
}

/// All registers of a function, in their power-on state, its capabilities linked in the order of their places; those of
/// the vendor's lie where `own` says.
fn lay_out(spec: &Spec, own: &[u16]) -> ConfigSpace {
    let mut present: Vec<u16> = standard(spec).iter().map(|(at, _)| *at).chain(own.iter().copied()).collect();
    present.sort_unstable();
    let next_after = |at: u16| present.iter().find(|place| **place > at).map_or(0, |place| *place as u8);
    let mut config = ConfigSpace::empty();
    header::lay_out(&mut config, spec, next_after(0));
    if spec.msi_vectors != 0 {
        msi::lay_out(&mut config, next_after(msi::AT), spec.msi_vectors);
    }
    if let Some(msix) = &spec.msix {
        msix::lay_out(&mut config, next_after(msix::AT), msix);
    }
    express::lay_out(&mut config, next_after(express::AT), spec.pcie, spec.translation.pasid.is_some());
    pm::lay_out(&mut config, next_after(pm::AT), spec.no_soft_reset);
    for (at, capability) in own.iter().zip(&spec.vendor_capabilities) {
        vendor::lay_out(&mut config, *at, next_after(*at), capability);
    }
    translation::lay_out(&mut config, &spec.translation);
    config
}

/// Ports that are kept for each function: room for three BARs.
const PORTS_OF_ONE: u64 = 3 * 256;

fn place_bars(spec: &Spec, window: u64) -> Result<[u64; 6], SpecError> {
    let mut addresses = [0; 6];
    let mut free = window;
    let mut bars = spec.bars.clone();
    bars.sort_by_key(|bar| bar.index);
    // There are 64 KiB of ports: some for each of 64 windows, as 16 MiB of memory are.
    let mut free_ports = 0x1000 + (window >> 24 & 0x3f) * PORTS_OF_ONE;
    for bar in bars {
        if bar.kind == BarKind::Ports {
            addresses[usize::from(bar.index)] = free_ports;
            free_ports += 256;
            continue;
        }
        let place = || {
            let start = free.checked_next_multiple_of(bar.size.max(4096))?;
            let last = start.checked_add(bar.size - 1)?;
            let low = bar.kind == BarKind::Memory64 || last <= u64::from(u32::MAX);
            low.then_some((start, last.checked_add(1)?))
        };
        let (start, end) = place().ok_or(SpecError::BarPlacement(bar.index, window))?;
        addresses[usize::from(bar.index)] = start;
        free = end;
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::header::{BAR_0, COMMAND, STATUS};
    use crate::spec::VendorCapability;
    use crate::testing::{Event, Recorder, function, spec};
    use proptest::prelude::*;

    fn powered_on() -> (Arc<Function>, Arc<Recorder>) {
        let (function, recorder) = function(spec());
        function.power_on().unwrap();
        recorder.take();
        (function, recorder)
    }

    fn read(function: &Function, at: u16, len: usize) -> u32 {
        let mut bytes = [0; 4];
        function.config_read(at, &mut bytes[..len]);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn the_capability_list_names_every_capability_and_ends() {
        let (function, _) = function(spec());
        let mut at = read(&function, header::CAPABILITIES, 1) as u16;
        let mut ids = vec![];
        while at != 0 {
            ids.push(read(&function, at, 1) as u8);
            at = read(&function, at + 1, 1) as u16;
        }
        assert_eq!(ids, [msi::ID, msix::ID, express::ID, pm::ID]);
        assert_eq!(read(&function, 0x100, 4), 0);
    }

    #[test]
    fn the_identity_is_the_specifications() {
        let (function, _) = function(spec());
        assert_eq!(read(&function, 0x00, 4), 0x2021_8086);
        assert_eq!(read(&function, 0x08, 4), 0x0880_0004);
        assert_eq!(read(&function, 0x2c, 4), 0x7270_8086);
        assert_eq!(read(&function, header::INTERRUPT_PIN, 1), 1);
    }

    #[test]
    fn bus_master_is_switched_once_for_each_change() {
        let (function, recorder) = powered_on();
        function.config_write(COMMAND, &[6, 0]);
        function.config_write(COMMAND, &[6, 0]);
        function.config_write(COMMAND, &[2, 0]);
        assert_eq!(recorder.take(), [Event::BusMaster(true), Event::BusMaster(false)]);
    }

    #[test]
    fn d3_stops_dma_and_d0_lets_it_go_on() {
        let (function, recorder) = powered_on();
        function.config_write(COMMAND, &[6, 0]);
        function.config_write(pm::CONTROL, &[3, 0]);
        function.config_write(pm::CONTROL, &[0, 0]);
        assert_eq!(recorder.take(), [true, false, true].map(Event::BusMaster));
    }

    #[test]
    fn power_states_that_are_not_offered_change_nothing() {
        let (function, _) = powered_on();
        function.config_write(pm::CONTROL, &[1, 0]);
        assert_eq!(function.power_state(), PowerState::D0);
    }

    #[test]
    fn waking_a_function_that_forgets_resets_it() {
        let (function, recorder) = function(Spec { no_soft_reset: false, ..spec() });
        function.config_write(COMMAND, &[2, 0]);
        function.config_write(pm::CONTROL, &[3, 0]);
        recorder.take();
        function.config_write(pm::CONTROL, &[0, 0]);
        assert_eq!(recorder.take(), [Event::Reset, Event::BusMaster(false)]);
        assert_eq!(read(&function, COMMAND, 2), 0);
    }

    #[test]
    fn initiating_a_function_level_reset_gives_power_on_values() {
        let (function, recorder) = powered_on();
        function.config_write(BAR_0, &[0xff; 4]);
        function.config_write(express::DEVICE_CONTROL, &[0, 0x80]);
        assert_eq!(recorder.take(), [Event::Reset, Event::BusMaster(false)]);
        assert_eq!(read(&function, BAR_0, 4), 0xc);
        assert_eq!(read(&function, express::DEVICE_CONTROL, 2), 0x2810);
    }

    #[test]
    fn the_function_mask_holds_interrupts_until_it_is_cleared() {
        let (function, _) = powered_on();
        function.config_write(COMMAND, &[6, 0]);
        let (ours, theirs) = crate::testing::eventfd();
        function.interrupts().enable(crate::IrqIndex::Msix, 8);
        function.interrupts().assign(crate::IrqIndex::Msix, 0, vec![Some(ours)]);
        function.config_write(msix::CONTROL, &[0, 0xc0]);
        function.interrupts().raise(0);
        assert_eq!(crate::testing::read_eventfd(&theirs), 0);
        function.config_write(msix::CONTROL, &[0, 0x80]);
        assert_eq!(crate::testing::read_eventfd(&theirs), 1);
    }

    #[test]
    fn an_access_across_the_edge_of_the_table_is_cut() {
        let (function, recorder) = powered_on();
        function.bar_write(0, 0x1ffc, &[9; 8]).unwrap();
        assert_eq!(recorder.take(), [Event::Write(0, 0x1ffc, vec![9; 4])]);
        let mut address = [0; 4];
        function.bar_read(0, 0x2000, &mut address).unwrap();
        assert_eq!(address, [8, 9, 9, 9]);
    }

    #[test]
    fn bytes_that_a_bar_does_not_have_are_refused() {
        let (function, recorder) = powered_on();
        for (bar, offset) in [(0, 0x3ffd), (0, u64::MAX - 1), (1, 0), (9, 0)] {
            assert!(matches!(function.bar_write(bar, offset, &[0; 4]), Err(BarError::Outside { .. })));
        }
        assert_eq!(recorder.take(), []);
    }

    #[test]
    fn bars_are_placed_at_multiples_of_their_size() {
        let (function, _) = powered_on();
        assert_eq!((function.bar_address(0), function.bar_address(4)), (Some(0xe000_0000), Some(0xe000_4000)));
        assert_eq!(function.bar_address(1), None);
        assert_eq!(read(&function, BAR_0 + 16, 4), 0xe000_4000);
        assert_eq!(place_bars(&spec(), 1 << 32), Err(SpecError::BarPlacement(4, 1 << 32)));
    }

    /// The bits of the header that software can change by writing ones and zeros, for the fixture's function.
    fn header_mask(at: u16) -> u8 {
        let masks: [(u16, &[u8]); 6] = [
            (COMMAND, &[0x46, 0x05]),
            (header::CACHE_LINE_SIZE, &[0xff]),
            (BAR_0, &[0x00, 0xc0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            (BAR_0 + 16, &[0x00, 0xff, 0xff, 0xff]),
            (header::INTERRUPT_LINE, &[0xff]),
            (STATUS, &[0, 0]),
        ];
        masks.iter().find_map(|(start, mask)| mask.get(usize::from(at.checked_sub(*start)?)).copied()).unwrap_or(0)
    }

    proptest! {
        #[test]
        fn random_writes_to_the_header_change_only_writable_bits(
            writes in prop::collection::vec((0u16..64, prop::collection::vec(any::<u8>(), 1..9)), 1..30),
        ) {
            let (function, _) = powered_on();
            let mut model = [0; 64];
            function.config_read(0, &mut model);
            for (at, data) in &writes {
                let data = &data[..data.len().min(64 - usize::from(*at))];
                function.config_write(*at, data);
                for (at, byte) in (*at..).zip(data) {
                    let (mask, old) = (header_mask(at), model[usize::from(at)]);
                    model[usize::from(at)] = old & !mask | byte & mask;
                }
            }
            let mut now = [0; 64];
            function.config_read(0, &mut now);
            prop_assert_eq!(now, model);
        }

        #[test]
        fn no_write_or_read_of_configuration_space_panics(at in any::<u16>(), data in prop::collection::vec(any::<u8>(), 0..40)) {
            let (function, _) = powered_on();
            function.config_write(at, &data);
            function.config_read(at, &mut data.clone());
            prop_assert_eq!(read(&function, 0, 4), 0x2021_8086);
        }
    }

    #[test]
    fn vendor_capabilities_lie_in_gaps_and_a_window_leads_to_a_bar() {
        let bytes = |length: usize| VendorCapability { body: (0..length as u8 - 3).collect(), is_window: false };
        let window = VendorCapability { body: vec![5; 17], is_window: true };
        let vendor_capabilities = vec![bytes(16), window.clone(), bytes(16)];
        let (function, recorder) = function(Spec { vendor_capabilities, ..spec() });
        function.power_on().unwrap();
        recorder.take();
        let read = |at: u16| {
            let mut byte = [0];
            function.config_read(at, &mut byte);
            byte[0]
        };
        let mut found = Vec::new();
        let mut at = read(0x34);
        while at != 0 {
            found.push((read(at.into()), at));
            at = read(u16::from(at) + 1);
        }
        assert!(found.windows(2).all(|pair| pair[0].1 < pair[1].1), "{found:x?}");
        let own: Vec<u16> = found.iter().filter(|(id, _)| *id == 9).map(|(_, at)| (*at).into()).collect();
        assert_eq!(own.len(), 3, "{found:x?}");
        let at = *own.iter().find(|at| read(**at + 2) == 20).unwrap();
        // BAR 0, at 8, 4 bytes.
        function.config_write(at + 4, &[0]);
        function.config_write(at + 8, &8u32.to_le_bytes());
        function.config_write(at + 12, &4u32.to_le_bytes());
        function.config_write(at + 16, &[1, 2, 3, 4]);
        assert_eq!(recorder.take(), [Event::Write(0, 8, vec![1, 2, 3, 4])]);
        let mut bytes = [0; 4];
        function.config_read(at + 16, &mut bytes);
        assert_eq!(recorder.take(), [Event::Read(0, 8, 4)]);
        // What is no access of a BAR reaches none.
        for (bar, offset, length) in [(0, 2, 4), (0, 0, 3), (5, 0, 4), (0, u32::MAX - 3, 4), (0, 0, 0)] {
            function.config_write(at + 4, &[bar]);
            function.config_write(at + 8, &offset.to_le_bytes());
            function.config_write(at + 12, &u32::to_le_bytes(length));
            function.config_write(at + 16, &[1, 2, 3, 4]);
            assert_eq!(recorder.take(), [], "{bar} {offset:#x} {length}");
        }
        let too_many = Spec { vendor_capabilities: vec![window; 9], ..spec() };
        assert_eq!(too_many.check(), Err(SpecError::VendorCapabilities));
        let short =
            Spec { vendor_capabilities: vec![VendorCapability { body: vec![0; 4], is_window: true }], ..spec() };
        assert_eq!(short.check(), Err(SpecError::VendorCapabilities));
    }
}
