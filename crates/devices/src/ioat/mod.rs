//! Intel I/OAT (QuickData Technology, "CBDMA") version 3.2: the DMA engine of Skylake-X, 8086:2021.
//!
//! A chain of descriptors in memory, a doorbell that says how many of them to process, a status that says which one
//! was last. [`Ioat`] is one function with its one channel.
//!
//! ```text
//!            BAR 0, configuration space              memory
//!   driver ────────────┬──────────────                 ▲
//!                      ▼                               │ Dma
//!                    Ioat ──▶ channel ◀── jobs ──▶ worker (a thread)
//!                      │      (registers, states)      │
//!                      └────▶ interrupts ◀─── events ──┘
//! ```
//!
//! | file | what |
//! | --- | --- |
//! | `spec/` | registers and descriptors, as the device defines them |
//! | `channel` | the state machine; its lock |
//! | `worker` | DMA; never under a lock |
//! | `interrupts` | masks, rearming, the INTx line |
//!
//! Accesses of any size at any offset have a meaning: each register sees exactly those of its bytes that are
//! accessed, in ascending order of registers, and side effects belong to the byte that holds the bit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use ioasid_vfio::{BarKind, BarSpec, Model, MsixSpec, Spec};

use crate::registers::overlaps;
use crate::registry::{ModelInfo, any, one};
use crate::{Dma, Interrupts};

mod channel;
mod interrupts;
pub mod spec;
mod worker;

use channel::{Channel, Effect};
use interrupts::InterruptLogic;
use spec::registers::{
    BAR0_SIZE, CAPABILITY, CHANNELS, COMPATIBILITY, ChannelControl, ConfigRegister, GENERAL_CONTROL_STORED, Register,
    TRANSFER_CAPABILITY, VERSION,
};
use worker::Worker;

/// The model.
pub const MODEL: ModelInfo = ModelInfo {
    name: "ioat",
    about: "Intel I/OAT DMA engine, CBDMA 3.2 (8086:2021)",
    options: &[],
    registers: &[Register::TABLE, ConfigRegister::TABLE],
    functions: one,
    check: any,
    build: |_, sites, context| {
        context.plain(sites[0], spec(), |endpoint, interrupts| Ok(Ioat::new(Box::new(endpoint.port()), interrupts)))
    },
    offer: None,
};

/// What the function looks like on the bus.
///
/// Source: Linux's and DPDK's drivers for identity and BAR; Intel Xeon E7 v2 datasheet, volume 2, for the MSI-X layout.
#[must_use]
pub fn spec() -> Spec {
    Spec {
        subsystem_vendor: 0x8086,
        revision: 0x04,
        bars: vec![BarSpec { index: 0, size: BAR0_SIZE, kind: BarKind::Memory64, prefetchable: false }],
        msix: Some(MsixSpec { vectors: 1, table_bar: 0, table_offset: 0x2000, pba_bar: 0, pba_offset: 0x3000 }),
        interrupt_pin: 1,
        ..Spec::new(0x8086, 0x2021, 0x08_8000)
    }
}

/// A function of the engine, with its one channel.
///
/// Every method may be called from any thread at any time, but not from within [`Dma`] or [`Interrupts`] on the
/// device's own thread. Dropping it ends that thread: no DMA happens afterwards.
pub struct Ioat {
    channel: Arc<Channel>,
    interrupts: Arc<InterruptLogic>,
    worker: Worker,
    /// GENCTRL.
    general: AtomicU8,
}

impl Ioat {
    /// A device at power-on that reaches memory through `dma` and interrupts through `interrupts`. It starts no thread
    /// before its first doorbell.
    pub fn new(dma: Box<dyn Dma>, interrupts: Arc<dyn Interrupts>) -> Arc<Self> {
        let interrupts = Arc::new(InterruptLogic::new(interrupts));
        Arc::new(Self {
            channel: Arc::new(Channel::new(Arc::clone(&interrupts))),
            interrupts,
            worker: Worker::new(dma),
            general: AtomicU8::new(0),
        })
    }

    /// A load of `data.len()` bytes at `offset` of BAR `bar`. Reserved bytes are zero; what is outside any BAR is ones.
    pub fn read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        let inside = if bar == 0 { BAR0_SIZE.saturating_sub(offset) } else { 0 };
        let (inside, outside) = data.split_at_mut(data.len().min(inside as usize));
        inside.fill(0);
        outside.fill(0xFF);
        for access in overlaps(Register::ALL, Register::TABLE, offset, inside.len()) {
            let value = self.read_register(access.register, access.mask()).to_le_bytes();
            inside[access.data].copy_from_slice(&value[access.bytes]);
        }
    }

    /// A store of `data` at `offset` of BAR `bar`. Reserved bytes, and what is outside any BAR, ignore it.
    pub fn write(&self, bar: u8, offset: u64, data: &[u8]) {
        if bar != 0 {
            return;
        }
        for access in overlaps(Register::ALL, Register::TABLE, offset, data.len()) {
            let (value, mask) = (access.value(data), access.mask());
            self.write_register(access.register, value, mask);
        }
    }

    /// A read of configuration space, if it is one of registers that only this device has: returns whether it is. An
    /// access that is only in part, is not.
    pub fn config_read(&self, offset: u16, data: &mut [u8]) -> bool {
        if !is_config(offset, data.len()) {
            return false;
        }
        for access in overlaps(ConfigRegister::ALL, ConfigRegister::TABLE, offset.into(), data.len()) {
            let value = match access.register {
                ConfigRegister::UncorrectableStatus => 0,
                ConfigRegister::ChannelError => self.channel.read_config_errors(),
                ConfigRegister::ChannelErrorMask => self.channel.read_config_mask(),
            };
            data[access.data].copy_from_slice(&value.to_le_bytes()[access.bytes]);
        }
        true
    }

    /// A write of configuration space, if it is one of registers that only this device has: returns whether it is. An
    /// access that is only in part, is not.
    pub fn config_write(&self, offset: u16, data: &[u8]) -> bool {
        if !is_config(offset, data.len()) {
            return false;
        }
        for access in overlaps(ConfigRegister::ALL, ConfigRegister::TABLE, offset.into(), data.len()) {
            let (value, mask) = (access.value(data) as u32, access.mask() as u32);
            match access.register {
                ConfigRegister::UncorrectableStatus => {}
                ConfigRegister::ChannelError => self.channel.clear_config_errors(value),
                ConfigRegister::ChannelErrorMask => self.channel.write_config_mask(value, mask),
            }
        }
        true
    }

    /// A reset of the function. When it returns, no DMA is in flight, none starts before the next doorbell, and every
    /// register has its power-on value. It waits at most for the one access that is under way.
    pub fn reset(&self) {
        self.channel.reset_function();
        self.interrupts.deliver();
        self.general.store(0, Ordering::Relaxed);
    }

    fn read_register(&self, register: Register, mask: u64) -> u64 {
        match register {
            Register::ChannelCount => CHANNELS.into(),
            Register::TransferCapability => TRANSFER_CAPABILITY.into(),
            Register::GeneralControl => self.general.load(Ordering::Relaxed).into(),
            Register::InterruptControl => self.interrupts.read_control().into(),
            Register::AttentionStatus => {
                // Bit 0 is the only channel's; the other bytes are read without effect.
                if mask & 0xFF == 0 { 0 } else { self.interrupts.read_attention().into() }
            }
            Register::Version => VERSION.into(),
            Register::Capability => CAPABILITY.bits().into(),
            Register::ChannelControl => {
                let takes = mask & u64::from(ChannelControl::IN_USE.bits()) != 0;
                self.channel.read_control(self.interrupts.is_disabled(), takes).into()
            }
            Register::Compatibility => COMPATIBILITY.into(),
            Register::Command => self.channel.read_command().into(),
            Register::Count => self.channel.read_count().into(),
            Register::Status => self.channel.status().0,
            Register::ChainAddress => self.channel.read_chain(),
            Register::CompletionAddress => self.channel.read_completion(),
            Register::CurrentDescriptor => self.channel.read_current(),
            Register::Error => self.channel.read_errors().into(),
            Register::ErrorMask => self.channel.read_mask().into(),
            Register::DcaControl => self.channel.read_dca().into(),
        }
    }

    /// A store of the bytes of `value` that `mask` selects; the other bytes of `value` are zero.
    fn write_register(&self, register: Register, value: u64, mask: u64) {
        match register {
            Register::GeneralControl => self.general.store(value as u8 & GENERAL_CONTROL_STORED, Ordering::Relaxed),
            Register::InterruptControl => self.interrupts.write_control(value as u8),
            Register::ChannelControl => {
                self.channel.write_control(value as u16, mask as u16);
                if value & u64::from(ChannelControl::INTERRUPT_DISABLE.bits()) != 0 {
                    self.interrupts.rearm();
                }
            }
            Register::Command => self.see_to(self.channel.write_command(value as u8)),
            Register::Count => self.see_to(self.channel.write_count(value as u16, mask as u16)),
            Register::ChainAddress => self.channel.write_chain(value, mask),
            Register::CompletionAddress => self.channel.write_completion(value, mask),
            Register::Error => self.channel.clear_errors(value as u32),
            Register::ErrorMask => self.channel.write_mask(value as u32, mask as u32),
            Register::DcaControl => self.channel.write_dca(value as u32, mask as u32),
            Register::ChannelCount
            | Register::TransferCapability
            | Register::AttentionStatus
            | Register::Version
            | Register::Capability
            | Register::Compatibility
            | Register::Status
            | Register::CurrentDescriptor => {}
        }
    }

    fn see_to(&self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Deliver => self.interrupts.deliver(),
            Effect::Work => {
                if !self.worker.ensure_running(&self.channel, &self.interrupts) {
                    self.see_to(self.channel.no_worker());
                }
            }
        }
    }
}

impl Model for Ioat {
    fn read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        Ioat::read(self, bar, offset, data);
    }

    fn write(&self, bar: u8, offset: u64, data: &[u8]) {
        Ioat::write(self, bar, offset, data);
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) -> bool {
        Ioat::config_read(self, offset, data)
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> bool {
        Ioat::config_write(self, offset, data)
    }

    fn reset(&self) {
        Ioat::reset(self);
    }
}

impl Drop for Ioat {
    fn drop(&mut self) {
        self.channel.quit();
        self.worker.join();
    }
}

/// Whether an access to configuration space is to nothing but the device's own registers.
fn is_config(offset: u16, len: usize) -> bool {
    let accesses = overlaps(ConfigRegister::ALL, ConfigRegister::TABLE, offset.into(), len);
    let covered: usize = accesses.map(|access| access.data.len()).sum();
    len > 0 && covered == len
}
