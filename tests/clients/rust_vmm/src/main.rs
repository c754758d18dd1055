//! A driver of QEMU's `edu` and of an I/OAT engine on rust-vmm's crates, by group and by the devices' own files.
//!
//!     ioasid-client-rust-vmm group|file EDU IOAT

use std::error::Error;
use std::fs::OpenOptions;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iommufd_ioctls::IommuFd;
use kvm_ioctls::DeviceFd;
use vfio_ioctls::{DmaLoggingRange, VfioContainer, VfioDevice, VfioDeviceFd, VfioIommufd, VfioOps};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const IOVA: u64 = 0x10_0000;
const PAGE: usize = 4096;
/// Interrupts, by their indices.
const INTX: u32 = 0;
const MSIX: u32 = 2;
const CONFIG: u32 = 7;
/// Where `edu` has memory of its own.
const BUFFER: u64 = 0x4_0000;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [way, edu, ioat] = &arguments[..] else {
        return Err("usage: ioasid-client-rust-vmm group|file EDU IOAT".into());
    };
    // KVM's device for VFIO, as far as these crates use it: where there is no KVM, any file that knows no such request.
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    // SAFETY: its own descriptor from here on.
    let kvm = Some(Arc::new(VfioDeviceFd::new_from_kvm(unsafe { DeviceFd::from_raw_fd(kvm.into_raw_fd()) })));
    let space: Arc<dyn VfioOps> = match way.as_str() {
        "group" => Arc::new(VfioContainer::new(kvm)?),
        _ => Arc::new(VfioIommufd::new(Arc::new(IommuFd::new()?), None, kvm)?),
    };
    let device = |name: &str| -> Result<VfioDevice> {
        let path: PathBuf = ["/sys/bus/pci/devices", name].iter().collect();
        let device = VfioDevice::new(&path, space.clone(), true)?;
        // Memory space, and bus master.
        device.region_write(CONFIG, &[6, 0], 4);
        Ok(device)
    };
    let (edu, ioat) = (device(edu)?, device(ioat)?);
    let mut memory = Box::new([[0u8; PAGE]; 3]);
    let pages = memory.as_mut_ptr().cast::<u8>();
    // Of the three pages, two that are whole.
    let at = pages.wrapping_add(pages.align_offset(PAGE));
    // SAFETY: the memory lives as long as the mapping, and no reference to it lives meanwhile.
    unsafe { space.vfio_dma_map(IOVA, 2 * PAGE, at)? };

    let identification = load(&edu, 0);
    assert_eq!(identification, 0x0100_00ed);
    copy(&edu, at);
    println!("{way:<6} DMA of {} bytes, in and out", PAGE);
    resample(&edu)?;
    println!("{way:<6} INTx, masked by itself and unmasked by an eventfd");
    msix(&ioat)?;
    println!("{way:<6} MSI-X");
    log(&edu)?;
    println!("{way:<6} DMA logging");
    edu.reset();
    assert_eq!(load(&edu, 0x24), 0);
    copy(&edu, at);
    println!("{way:<6} reset, and DMA again");
    space.vfio_dma_unmap(IOVA, 2 * PAGE)?;
    // SAFETY: within two pages of ours, which no device reaches any more.
    (0..PAGE).for_each(|n| unsafe { at.add(n).write_volatile(0xee) });
    transfer(&edu, BUFFER, IOVA, 2);
    // SAFETY: as above.
    assert!((0..PAGE).all(|n| unsafe { at.add(n).read_volatile() } == 0xee), "DMA after an unmap");
    println!("{way:<6} unmapped, and no DMA");
    Ok(())
}

fn load(device: &VfioDevice, offset: u64) -> u32 {
    let mut word = [0; 4];
    device.region_read(0, &mut word, offset);
    u32::from_le_bytes(word)
}

fn store(device: &VfioDevice, offset: u64, value: u64) {
    device.region_write(0, &(value as u32).to_le_bytes(), offset);
}

/// Moves a page, and waits for it.
fn transfer(edu: &VfioDevice, from: u64, to: u64, command: u64) {
    store(edu, 0x80, from);
    store(edu, 0x88, to);
    store(edu, 0x90, PAGE as u64);
    store(edu, 0x98, command | 1);
    let begun = Instant::now();
    while load(edu, 0x98) & 1 != 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "the transfer never ends");
    }
}

/// One page to the device, and back to the other.
fn copy(edu: &VfioDevice, at: *mut u8) {
    for n in 0..PAGE {
        // SAFETY: within two pages of ours.
        unsafe {
            at.add(n).write_volatile((n * 7) as u8);
            at.add(PAGE + n).write_volatile(0);
        }
    }
    transfer(edu, IOVA, BUFFER, 0);
    transfer(edu, BUFFER, IOVA + PAGE as u64, 2);
    // SAFETY: as above.
    assert!((0..PAGE).all(|n| unsafe { at.add(PAGE + n).read_volatile() } == (n * 7) as u8), "the copy differs");
}

fn wait(event: &EventFd) -> Result<()> {
    let begun = Instant::now();
    while event.read().is_err() {
        if begun.elapsed() > Duration::from_secs(20) {
            return Err("an interrupt was lost".into());
        }
    }
    Ok(())
}

fn resample(edu: &VfioDevice) -> Result<()> {
    let (trigger, unmask) = (EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?);
    edu.enable_irq(INTX, vec![&trigger])?;
    edu.set_irq_resample_fd(INTX, vec![&unmask])?;
    for _ in 0..100 {
        store(edu, 0x60, 1);
        wait(&trigger)?;
        store(edu, 0x60, 2);
        assert!(trigger.read().is_err(), "it is masked");
        unmask.write(1)?;
        // It is asserted still.
        wait(&trigger)?;
        store(edu, 0x64, 3);
        unmask.write(1)?;
        while load(edu, 0x24) != 0 {}
    }
    edu.disable_irq(INTX)?;
    Ok(())
}

fn msix(ioat: &VfioDevice) -> Result<()> {
    let event = EventFd::new(EFD_NONBLOCK)?;
    ioat.enable_msix(vec![&event])?;
    ioat.trigger_irq(MSIX, 0)?;
    wait(&event)?;
    ioat.disable_msix()?;
    ioat.trigger_irq(MSIX, 0).expect_err("MSI-X is off");
    Ok(())
}

fn log(edu: &VfioDevice) -> Result<()> {
    let range = || DmaLoggingRange { iova: IOVA, length: 2 * PAGE as u64 };
    assert_eq!(edu.start_dma_logging(PAGE as u64, &[range()])?, PAGE as u64);
    edu.start_dma_logging(PAGE as u64, &[range()]).expect_err("there is one");
    transfer(edu, BUFFER, IOVA + PAGE as u64, 2);
    assert_eq!(edu.report_dma_logging(range(), PAGE as u64)?, [0b10]);
    assert_eq!(edu.report_dma_logging(range(), PAGE as u64)?, [0]);
    edu.stop_dma_logging()?;
    Ok(())
}
