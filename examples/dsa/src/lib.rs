//! Shared virtual addressing: a device copies between buffers of `malloc`, which nobody mapped for it.
//!
//! Run it as `ioasid run --device dsa,wqs=4 -- target/release/ioasid-example-dsa`. It needs neither a processor with
//! ENQCMD nor a device.
//!
//! 1. The device copies from pages of which half were never touched to pages that were never touched, and waits for each.
//! 2. It does so without waiting: it stops where a page is missing, the program touches the page and has it go on.
//! 3. After a fork, what the device copies arrives in this process and not in the child, which cannot use the device either.
//! 4. The PASID is given back: the device reaches nothing any more.

mod device;
mod uapi;

use std::error::Error;
use std::path::{Path, PathBuf};

use device::{Dsa, Record};

const PAGE: usize = 4096;

/// Memory of `malloc`.
struct Buffer {
    start: *mut u8,
    pages: usize,
}

impl Buffer {
    fn new(pages: usize) -> Self {
        // SAFETY: so much that it is memory which the kernel gives afresh.
        let start: *mut u8 = unsafe { libc::malloc(pages * PAGE) }.cast();
        assert!(!start.is_null());
        Self { start, pages }
    }

    fn len(&self) -> usize {
        self.pages * PAGE
    }

    /// The word of number `n`.
    fn word(&self, n: usize) -> *mut u64 {
        assert!(8 * n + 8 <= self.len());
        // SAFETY: inside.
        unsafe { self.start.cast::<u64>().add(n) }
    }

    fn get(&self, n: usize) -> u64 {
        // SAFETY: of memory that is this one's; volatile, as a device may write it.
        unsafe { self.word(n).read_volatile() }
    }

    fn set(&self, n: usize, value: u64) {
        // SAFETY: as above.
        unsafe { self.word(n).write_volatile(value) }
    }

    /// Words in a page.
    const WORDS: usize = PAGE / 8;

    /// Something in every second page; the others stay untouched.
    fn fill(&self, seed: u64) {
        for n in (0..self.pages).step_by(2).flat_map(|page| page * Self::WORDS..(page + 1) * Self::WORDS) {
            self.set(n, expected(seed, n));
        }
    }

    /// Whether it has what [`Buffer::fill`] has put into another, and beside that what was there before.
    fn is_copy(&self, of: &Self, seed: u64) -> bool {
        (0..self.len() / 8).all(|n| {
            let touched = (n / Self::WORDS).is_multiple_of(2);
            self.get(n) == if touched { expected(seed, n) } else { of.get(n) }
        })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: it is of `malloc`, and nobody uses it any more.
        unsafe { libc::free(self.start.cast()) }
    }
}

fn expected(seed: u64, n: usize) -> u64 {
    (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed
}

/// The VFIO device of this kind.
fn find() -> Result<(String, PathBuf), Box<dyn Error>> {
    let mut devices: Vec<_> = std::fs::read_dir("/sys/bus/pci/devices")?.collect::<Result<_, _>>()?;
    devices.sort_by_key(|entry| entry.file_name());
    for entry in devices {
        let word = |name: &str| std::fs::read_to_string(entry.path().join(name)).unwrap_or_default().trim().to_owned();
        if (word("vendor"), word("device")) == ("0x8086".into(), "0x0b25".into())
            && let Ok(mut names) = std::fs::read_dir(entry.path().join("vfio-dev"))
            && let Some(name) = names.next()
        {
            return Ok((
                entry.file_name().to_string_lossy().into(),
                Path::new("/dev/vfio/devices").join(name?.file_name()),
            ));
        }
    }
    Err("no DSA that VFIO has: run me as `ioasid run --device dsa,wqs=4 -- target/release/ioasid-example-dsa`".into())
}

/// All of it, with buffers of so many pages.
///
/// # Errors
/// The first thing that is not as it should be.
pub fn run(pages: usize) -> Result<(), Box<dyn Error>> {
    let (bdf, path) = find()?;
    let dsa = Dsa::open(&path)?;
    println!("device       {bdf}  8086:0b25  {}", path.display());
    println!("queue        shared, PASID {}, this process's own address space", dsa.pasid);
    waiting(&dsa, pages)?;
    without_waiting(&dsa, pages.min(256))?;
    after_a_fork(&dsa)?;
    without_a_pasid(&dsa)
}

fn say(what: &str, detail: &str) {
    println!("{what:<12} {detail}");
}

fn waiting(dsa: &Dsa, pages: usize) -> Result<(), Box<dyn Error>> {
    let (source, target) = (Buffer::new(pages), Buffer::new(pages));
    source.fill(1);
    let record = dsa.copy(source.start, target.start, source.len(), true);
    if record.code() != Record::SUCCESS || !target.is_copy(&source, 1) {
        return Err(format!("the copy failed: status {:#x}", record.status).into());
    }
    say(
        "copied",
        &format!("{} bytes; {} pages were never touched before, and came in on the way", source.len(), pages * 3 / 2),
    );
    Ok(())
}

fn without_waiting(dsa: &Dsa, pages: usize) -> Result<(), Box<dyn Error>> {
    let (source, target) = (Buffer::new(pages), Buffer::new(pages));
    source.fill(2);
    let (mut done, mut faults) = (0, 0);
    while done < source.len() {
        let record =
            dsa.copy(source.start.wrapping_add(done), target.start.wrapping_add(done), source.len() - done, false);
        match record.code() {
            Record::SUCCESS => done = source.len(),
            Record::PAGE_FAULT => {
                done += record.completed as usize;
                faults += 1;
                let missing = record.fault_address as *mut u8;
                // SAFETY: in one of the buffers; what is there is written back.
                unsafe { missing.write_volatile(missing.read_volatile()) };
            }
            code => return Err(format!("the copy failed: status {code:#x}").into()),
        }
    }
    if !target.is_copy(&source, 2) || faults == 0 {
        return Err(format!("what arrived is not what was sent, or nothing was missing ({faults} faults)").into());
    }
    say("in parts", &format!("{} bytes, {faults} page faults that the program mended itself", source.len()));
    Ok(())
}

fn after_a_fork(dsa: &Dsa) -> Result<(), Box<dyn Error>> {
    let (source, target) = (Buffer::new(64), Buffer::new(64));
    source.fill(3);
    (0..target.pages).for_each(|page| target.set(page * Buffer::WORDS, 77));
    let (mut go, mut done) = ([0; 2], [0; 2]);
    // SAFETY: room for two descriptors each.
    assert_eq!(unsafe { (libc::pipe(go.as_mut_ptr()), libc::pipe(done.as_mut_ptr())) }, (0, 0));
    // SAFETY: this program has one thread.
    match unsafe { libc::fork() } {
        -1 => return Err(std::io::Error::last_os_error().into()),
        0 => child(dsa, &target, go[0]),
        child => {
            let record = dsa.copy(source.start, target.start, source.len(), true);
            let copied = record.code() == Record::SUCCESS && target.is_copy(&source, 3);
            let mut status = 0;
            // SAFETY: a byte, and room for a status.
            unsafe {
                libc::write(go[1], b"g".as_ptr().cast(), 1);
                libc::waitpid(child, &mut status, 0);
            }
            if !copied || status != 0 {
                return Err(format!("after the fork: copied {copied}, and the child ended with {status:#x}").into());
            }
        }
    }
    say("after fork", "this process has what was copied, the child what it had; its ENQCMD is a protection fault");
    Ok(())
}

extern "C" fn protection_fault(_: libc::c_int) {
    // SAFETY: ends the process.
    unsafe { libc::_exit(0) }
}

/// What the child does: it looks at its memory when the device has written, and tries to use the device.
fn child(dsa: &Dsa, target: &Buffer, go: i32) -> ! {
    let mut byte = 0u8;
    // SAFETY: room for a byte.
    unsafe { libc::read(go, (&raw mut byte).cast(), 1) };
    let mine = (0..target.pages).all(|page| target.get(page * Buffer::WORDS) == 77);
    if !mine {
        // SAFETY: ends the process.
        unsafe { libc::_exit(1) }
    }
    // SAFETY: the handler only ends the process.
    unsafe { libc::signal(libc::SIGSEGV, protection_fault as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    dsa.try_enqcmd();
    // SAFETY: ends the process.
    unsafe { libc::_exit(2) }
}

fn without_a_pasid(dsa: &Dsa) -> Result<(), Box<dyn Error>> {
    let (source, target) = (Buffer::new(64), Buffer::new(64));
    source.fill(4);
    (0..target.len() / 8).for_each(|n| target.set(n, 5));
    dsa.free_pasid()?;
    // The record is in the same address space, so nobody is told; the device says when it is done with it.
    let mut record = Record::default();
    dsa.submit(source.start, target.start, source.len(), true, &raw mut record);
    dsa.drain()?;
    if record.code() != 0 || (0..target.len() / 8).any(|n| target.get(n) != 5) {
        return Err("something arrived with a PASID that was given back".into());
    }
    say("given back", "the PASID is parked: the device reaches nothing with it");
    Ok(dsa.detach()?)
}
