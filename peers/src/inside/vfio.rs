//! A device: bound to a context, attached to an address space, its registers mapped.
#![allow(unsafe_code, reason = "registers are mapped memory")]

use std::fs::{File, OpenOptions};
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use anyhow::{Context, Result};

use super::iommufd::{Ioas, Iommufd};
use super::uapi::{AttachIommufdPt, BAR0, BAR2, BindIommufd, CONFIG, RegionInfo, call};
use crate::memory::Shared;

/// The first device of the runner, and its only one here.
const PATH: &str = "/dev/vfio/devices/vfio0";
/// The command register in configuration space.
const PCI_COMMAND: u64 = 4;
/// Memory decoding, bus mastering, and no INTx.
const PCI_COMMAND_WANTED: u16 = 1 << 1 | 1 << 2 | 1 << 10;

/// A device, bound to a context.
pub struct Device(OwnedFd);

impl Device {
    /// Opens the device and binds it to `context`.
    ///
    /// # Errors
    /// Of opening it and of the request.
    pub fn bind(context: &Iommufd) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(PATH);
        let device = Self(file.with_context(|| format!("cannot open {PATH}"))?.into());
        let iommufd = context.descriptor().as_raw_fd();
        call(&device.0, &mut BindIommufd { iommufd, ..BindIommufd::default() })?;
        Ok(device)
    }

    /// Has the device's DMA translated by `ioas`, and lets it make some.
    ///
    /// # Errors
    /// Of the request, or if configuration space cannot be written.
    pub fn attach(&self, ioas: Ioas) -> Result<()> {
        call(&self.0, &mut AttachIommufdPt { pt_id: ioas.0, ..AttachIommufdPt::default() })?;
        let config = self.region(CONFIG)?;
        let file = File::from(self.0.try_clone()?);
        let written = file.write_all_at(&PCI_COMMAND_WANTED.to_le_bytes(), config.offset + PCI_COMMAND);
        written.context("cannot write PCI_COMMAND")
    }

    /// Maps BAR 0.
    ///
    /// # Errors
    /// Of the request and of `mmap`.
    pub fn registers(&self) -> Result<Bar> {
        Ok(Bar(self.map(BAR0)?))
    }

    /// Maps BAR 2.
    ///
    /// # Errors
    /// Of the request and of `mmap`.
    pub fn memory(&self) -> Result<Shared> {
        self.map(BAR2)
    }

    fn map(&self, index: u32) -> Result<Shared> {
        let region = self.region(index)?;
        let mapping = Shared::of_file(&self.0, region.offset as usize, region.size_of_region as usize);
        mapping.with_context(|| format!("cannot map BAR {index}"))
    }

    fn region(&self, index: u32) -> Result<RegionInfo> {
        let mut info = RegionInfo { index, ..RegionInfo::default() };
        call(&self.0, &mut info)?;
        Ok(info)
    }
}

/// A mapped BAR.
pub struct Bar(Shared);

/// A register: its offset in the BAR, and its width by the type.
pub struct Register<T> {
    offset: usize,
    width: PhantomData<T>,
}

impl<T> Register<T> {
    /// The one at `offset`.
    pub const fn at(offset: usize) -> Self {
        assert!(offset.is_multiple_of(size_of::<T>()));
        Self { offset, width: PhantomData }
    }
}

/// An integer that a register can hold.
pub trait Value: Copy {}
impl Value for u8 {}
impl Value for u16 {}
impl Value for u32 {}
impl Value for u64 {}

impl Bar {
    fn pointer<T>(&self, register: &Register<T>) -> NonNull<T> {
        assert!(register.offset + size_of::<T>() <= self.0.length());
        // SAFETY: inside the mapping, as was just seen.
        unsafe { self.0.start().add(register.offset) }.cast()
    }

    /// Loads it, once.
    pub fn read<T: Value>(&self, register: &Register<T>) -> T {
        // SAFETY: mapped, aligned as `Register::at` saw to, and any bits make an integer.
        unsafe { self.pointer(register).read_volatile() }
    }

    /// Stores to it, once.
    pub fn write<T: Value>(&self, register: &Register<T>, value: T) {
        // SAFETY: as above.
        unsafe { self.pointer(register).write_volatile(value) }
    }
}
