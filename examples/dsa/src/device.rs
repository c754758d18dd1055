//! A driver for Intel's Data Streaming Accelerator: one shared work queue, for this process's own memory.
//!
//! Source: Intel Data Streaming Accelerator Architecture Specification: 5.1 (descriptors), 5.2 (completion records), 9
//! (registers).

use std::arch::asm;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};

use crate::uapi::{self, ioctl, size_of};

/// Registers in BAR 0.
const CMD: usize = 0xa0;
const CMDSTS: usize = 0xa8;
const GRPCFG: usize = 0x600;
const WQCFG: usize = 0x800;
/// Commands.
const ENABLE_DEVICE: u32 = 1 << 20;
const ENABLE_WQ: u32 = 6 << 20;
const DRAIN_ALL: u32 = 3 << 20;
const CMDSTS_ACTIVE: u32 = 1 << 31;

/// Operations.
const MEMMOVE: u32 = 3 << 24;
/// Flags of a descriptor.
const BLOCK_ON_FAULT: u32 = 1 << 1;
const RECORD_VALID: u32 = 1 << 2;
const REQUEST_RECORD: u32 = 1 << 3;

/// A descriptor, on a boundary of 64 bytes as ENQCMD wants it.
#[repr(C, align(64))]
#[derive(Default)]
struct Descriptor {
    identity: u32,
    control: u32,
    completion: u64,
    source: u64,
    destination: u64,
    size: u32,
    rest: [u32; 7],
}

/// What the device says of a descriptor.
#[repr(C, align(32))]
#[derive(Default, Clone, Copy)]
pub(crate) struct Record {
    pub(crate) status: u8,
    result: u8,
    unused: u16,
    pub(crate) completed: u32,
    pub(crate) fault_address: u64,
    rest: [u64; 2],
}

impl Record {
    pub(crate) const SUCCESS: u8 = 1;
    /// A page was not there, and the descriptor did not wait.
    pub(crate) const PAGE_FAULT: u8 = 3;

    pub(crate) fn code(&self) -> u8 {
        self.status & 0x3f
    }
}

/// Registers of a device, mapped.
struct Registers(*mut u8);

impl Registers {
    fn map(device: &File, index: u32) -> io::Result<Self> {
        let mut info = uapi::RegionInfo { argsz: size_of::<uapi::RegionInfo>(), index, ..Default::default() };
        ioctl(device, uapi::VFIO_DEVICE_GET_REGION_INFO, &mut info)?;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let (length, offset) = (info.size as usize, info.offset as i64);
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let at =
            unsafe { libc::mmap(std::ptr::null_mut(), length, prot, libc::MAP_SHARED, device.as_raw_fd(), offset) };
        if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self(at.cast())) }
    }

    fn read(&self, offset: usize) -> u32 {
        // SAFETY: a register, within the mapping.
        unsafe { self.0.add(offset).cast::<u32>().read_volatile() }
    }

    fn write(&self, offset: usize, value: u32) {
        // SAFETY: as above.
        unsafe { self.0.add(offset).cast::<u32>().write_volatile(value) }
    }
}

/// A device with one shared queue, and the PASID by which it reaches this process.
pub(crate) struct Dsa {
    iommu: File,
    device: File,
    registers: Registers,
    portal: Registers,
    pub(crate) pasid: u32,
}

impl Dsa {
    /// Opens the device, lets it reach this process's memory, and gives it a queue.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
        let (iommu, device) = (open(Path::new("/dev/iommu"))?, open(path)?);
        let mut bind = uapi::Bind { argsz: size_of::<uapi::Bind>(), iommufd: iommu.as_raw_fd(), ..Default::default() };
        ioctl(&device, uapi::VFIO_DEVICE_BIND_IOMMUFD, &mut bind)?;

        // A page table that is this process, for one PASID of the device.
        let mut alloc =
            uapi::PasidAlloc { size: size_of::<uapi::PasidAlloc>(), min: 1, max: 0xf_ffff, ..Default::default() };
        ioctl(&iommu, uapi::IOASID_PASID_ALLOC, &mut alloc)?;
        let pasid = alloc.out_pasid;
        let pidfd = uapi::own_pidfd()?;
        let mut sva = uapi::HwptAlloc {
            size: size_of::<uapi::HwptAlloc>(),
            kind: uapi::HWPT_SVA,
            pidfd: pidfd.as_raw_fd(),
            ..Default::default()
        };
        ioctl(&iommu, uapi::IOASID_HWPT_ALLOC, &mut sva)?;
        let mut attach =
            uapi::Attach { argsz: size_of::<uapi::Attach>(), flags: uapi::ATTACH_PASID, pt_id: sva.out_hwpt_id, pasid };
        ioctl(&device, uapi::VFIO_DEVICE_ATTACH_IOMMUFD_PT, &mut attach)?;
        // And what this process's ENQCMD sends along.
        let mut enqcmd = uapi::Enqcmd { size: size_of::<uapi::Enqcmd>(), flags: 0, number: pasid, pasid };
        ioctl(&iommu, uapi::IOASID_ENQCMD, &mut enqcmd)?;

        enable_bus_master(&device)?;
        let registers = Registers::map(&device, 0)?;
        configure(&registers)?;
        let portal = Registers::map(&device, 2)?;
        Ok(Self { iommu, device, registers, portal, pasid })
    }

    /// Copies, and waits for it; with `wait_for_pages`, the device waits for pages that are not there.
    pub(crate) fn copy(&self, from: *const u8, to: *mut u8, size: usize, wait_for_pages: bool) -> Record {
        let mut record = Record::default();
        let at = &raw mut record;
        self.submit(from, to, size, wait_for_pages, at);
        // SAFETY: the device writes the status last, in one access.
        while unsafe { (&raw const (*at).status).read_volatile() } == 0 {
            std::thread::yield_now();
        }
        fence(Ordering::Acquire);
        // SAFETY: the device has written all of it.
        unsafe { at.read_volatile() }
    }

    /// Has the device copy, and say at `record` when it has.
    pub(crate) fn submit(&self, from: *const u8, to: *mut u8, size: usize, wait_for_pages: bool, record: *mut Record) {
        let block = if wait_for_pages { BLOCK_ON_FAULT } else { 0 };
        let descriptor = Descriptor {
            control: MEMMOVE | block | RECORD_VALID | REQUEST_RECORD,
            completion: record as u64,
            source: from as u64,
            destination: to as u64,
            size: size as u32,
            ..Descriptor::default()
        };
        // A shared queue that is full has the processor try again.
        while self.enqueue(&descriptor) {
            std::thread::yield_now();
        }
    }

    /// Returns when nothing of what was submitted is left to do.
    pub(crate) fn drain(&self) -> io::Result<()> {
        command(&self.registers, DRAIN_ALL)
    }

    /// ENQCMD; whether to try again.
    fn enqueue(&self, descriptor: &Descriptor) -> bool {
        let retry: u8;
        // SAFETY: reads the descriptor, and writes to a portal. In bytes, as assemblers of old do not know the
        // instruction.
        unsafe {
            asm!(
                ".byte 0xf2, 0x0f, 0x38, 0xf8, 0x02", // enqcmd rax, [rdx]
                "setz {retry}",
                retry = out(reg_byte) retry,
                in("rax") self.portal.0,
                in("rdx") descriptor,
                options(nostack),
            );
        }
        retry != 0
    }

    /// Executes ENQCMD with a descriptor that does nothing.
    pub(crate) fn try_enqcmd(&self) {
        self.enqueue(&Descriptor::default());
    }

    /// Gives the PASID back, while the device is attached with it still.
    pub(crate) fn free_pasid(&self) -> io::Result<()> {
        let mut free = uapi::PasidFree { size: size_of::<uapi::PasidFree>(), pasid: self.pasid };
        ioctl(&self.iommu, uapi::IOASID_PASID_FREE, &mut free)
    }

    /// Detaches the device: nobody holds the PASID any more but this process's ENQCMD.
    pub(crate) fn detach(&self) -> io::Result<()> {
        let mut detach =
            uapi::Detach { argsz: size_of::<uapi::Detach>(), flags: uapi::ATTACH_PASID, pasid: self.pasid };
        ioctl(&self.device, uapi::VFIO_DEVICE_DETACH_IOMMUFD_PT, &mut detach)
    }
}

fn enable_bus_master(device: &File) -> io::Result<()> {
    let mut config =
        uapi::RegionInfo { argsz: size_of::<uapi::RegionInfo>(), index: uapi::CONFIG, ..Default::default() };
    ioctl(device, uapi::VFIO_DEVICE_GET_REGION_INFO, &mut config)?;
    let mut command = [0; 2];
    device.read_exact_at(&mut command, config.offset + 4)?;
    // Memory space, and bus master.
    command[0] |= 1 << 1 | 1 << 2;
    device.write_all_at(&command, config.offset + 4)
}

/// Queue 0 and engine 0 in group 0; the queue is shared, and its descriptors may wait for pages.
fn configure(registers: &Registers) -> io::Result<()> {
    registers.write(GRPCFG, 1);
    registers.write(GRPCFG + 32, 1);
    let (size, threshold) = (16, 16);
    let (pasid_enable, priority, block_on_fault) = (1 << 28, 8 << 4, 1 << 1);
    let (transfer, batch) = (31, 10 << 5);
    for (word, value) in
        [size, threshold, pasid_enable | priority | block_on_fault, transfer | batch].iter().enumerate()
    {
        registers.write(WQCFG + 4 * word, *value);
    }
    command(registers, ENABLE_DEVICE)?;
    command(registers, ENABLE_WQ)
}

fn command(registers: &Registers, command: u32) -> io::Result<()> {
    registers.write(CMD, command);
    while registers.read(CMDSTS) & CMDSTS_ACTIVE != 0 {
        std::hint::spin_loop();
    }
    match registers.read(CMDSTS) & 0xff {
        0 => Ok(()),
        error => Err(io::Error::other(format!("command {command:#x} failed: error {error:#x}"))),
    }
}
