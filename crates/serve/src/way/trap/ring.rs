//! Register accesses that the handler asks for in memory which the program and this process share: no system call, and
//! no thread to wake, where one access follows another.
//!
//! ```text
//!   0x000   whether the poller looks
//!   0x040   the states of 15 slots, in one cache line, which is all that is looked at
//!   0x100   slot: whether it is claimed, length of the instruction or result, address, 18 registers, instruction
//!   …       15 slots of 0x100 bytes
//! ```
//! ```text
//!            handler          poller, listener          handler
//!   FREE ───────────► ASKED ──────────► TAKEN ──► ANSWERED ──► FREE
//!      ◄────────────────
//!         withdrawn
//! ```
//! The ring belongs to one address space, and whatever is asked in it is a register access of that. So nothing else is
//! performed here: an instruction that touches other memory, or vector registers, is asked for by a system call.
#![allow(unsafe_code, reason = "shared memory")]

use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use ioasid::memory::Process;
use ioasid_mmio::{AccessFault, Memory, step_register_access};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::frame::{WORDS, registers_of, words_of};
use super::memory::{LONGEST_INSTRUCTION, Mapped};
use crate::server::Server;

/// Bytes of a ring.
pub(super) const LENGTH: usize = 0x1000;
/// Slots of a ring.
pub(super) const SLOTS: usize = 15;
/// Bytes of a slot, and of what is before the first.
pub(super) const SLOT: usize = 0x100;

/// States of a slot, beside 0.
pub(super) const ASKED: u32 = 1;
const TAKEN: u32 = 2;
pub(super) const ANSWERED: u32 = 3;

/// Results: the instruction was performed, or has to be asked for in the other way.
const DONE: u32 = 0;
const ASK_OTHERWISE: u32 = 1;

/// As it is in the shared memory. The program may write anything to it at any time.
#[repr(C)]
struct Shared {
    looks: AtomicU32,
    unused: [u32; 15],
    states: [AtomicU32; SLOTS],
    also_unused: [u32; (SLOT - 64) / 4 - SLOTS],
    slots: [Slot; SLOTS],
}

#[repr(C)]
struct Slot {
    /// By a thread of the program; the runner does not read it.
    claimed: AtomicU32,
    /// Bytes of the instruction that could be read; then the result.
    detail: AtomicU32,
    address: AtomicU64,
    registers: [AtomicU64; WORDS],
    instruction: [AtomicU64; 2],
    unused: [u64; (SLOT - 16) / 8 - WORDS - 2],
}

const _: () = assert!(size_of::<Shared>() == LENGTH && size_of::<Slot>() == SLOT);
/// Where the handler finds the states, and the parts of a slot.
pub(super) const STATES_AT: usize = std::mem::offset_of!(Shared, states);
pub(super) const ADDRESS_AT: usize = std::mem::offset_of!(Slot, address);
pub(super) const REGISTERS_AT: usize = std::mem::offset_of!(Slot, registers);
pub(super) const INSTRUCTION_AT: usize = std::mem::offset_of!(Slot, instruction);

/// The shared memory, mapped into this process.
struct SharedMapping(NonNull<Shared>);

// SAFETY: what it points to consists of atomics, and of bytes that are not used.
unsafe impl Send for SharedMapping {}
// SAFETY: as above.
unsafe impl Sync for SharedMapping {}

impl std::ops::Deref for SharedMapping {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        // SAFETY: the mapping is as long as this is there, the file cannot be shortened, and every access is atomic.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for SharedMapping {
    fn drop(&mut self) {
        // SAFETY: made by `mmap`, of this length, and references to it end with this.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), LENGTH) };
    }
}

/// The ring of an address space.
pub(super) struct Ring {
    memory: SharedMapping,
    process: Arc<Process>,
    under_way: Mutex<UnderWay>,
    answered: Condvar,
}

/// Accesses that are under way, whatever the shared memory says.
#[derive(Default)]
struct UnderWay {
    /// A bit for each slot.
    slots: u32,
    /// Threads that wait for one.
    waiting: u32,
}

/// A slot whose access is under way. Whatever happens to that, it is answered.
struct Taken<'a> {
    ring: &'a Ring,
    number: usize,
    result: u32,
}

impl Ring {
    /// A new one, and the file that it is in, for the program to map.
    ///
    /// # Errors
    /// Of the system calls.
    pub(super) fn new(process: Arc<Process>) -> Result<(Self, OwnedFd), Errno> {
        let file = memfd_create(c"ioasid registers", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, LENGTH as u64)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let memory = map(&file)?;
        Ok((Self { memory, process, under_way: Mutex::default(), answered: Condvar::new() }, file))
    }

    /// The address space that it belongs to.
    pub(super) fn process(&self) -> &Arc<Process> {
        &self.process
    }

    /// Tells the program whether the poller looks. The handler may have set it to no, when no answer came.
    pub(super) fn set_looks(&self, looks: bool) {
        if self.memory.looks.load(Ordering::Relaxed) != u32::from(looks) {
            self.memory.looks.store(looks.into(), Ordering::SeqCst);
        }
    }

    /// Performs what is asked for. Returns whether anything was.
    pub(super) fn answer(&self, server: &Server) -> bool {
        (0..SLOTS).filter(|number| self.answer_one(*number, server)).count() > 0
    }

    /// Performs what is asked for in a slot, or waits until an access that is under way there is done.
    pub(super) fn finish(&self, number: usize, server: &Server) {
        if number < SLOTS && !self.answer_one(number, server) {
            self.wait(number);
        }
    }

    fn answer_one(&self, number: usize, server: &Server) -> bool {
        let Some(mut taken) = self.take(number) else { return false };
        if self.perform(&self.memory.slots[number], server) {
            taken.result = DONE;
        }
        true
    }

    fn wait(&self, number: usize) {
        let bit = 1 << number;
        let mut under_way = self.under_way();
        under_way.waiting += 1;
        let is_taken = |under_way: &mut UnderWay| under_way.slots & bit != 0;
        let mut under_way = self.answered.wait_while(under_way, is_taken).unwrap_or_else(PoisonError::into_inner);
        under_way.waiting -= 1;
    }

    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a slot in which something is asked for.
    fn take(&self, number: usize) -> Option<Taken<'_>> {
        let (state, bit) = (&self.memory.states[number], 1 << number);
        if state.load(Ordering::Relaxed) != ASKED {
            return None;
        }
        let mut under_way = self.under_way();
        let is_free = under_way.slots & bit == 0;
        // The handler may have withdrawn it.
        if !is_free || state.compare_exchange(ASKED, TAKEN, Ordering::SeqCst, Ordering::Relaxed).is_err() {
            return None;
        }
        under_way.slots |= bit;
        Some(Taken { ring: self, number, result: ASK_OTHERWISE })
    }

    /// Performs the instruction in a slot. False if it has not been begun.
    fn perform(&self, slot: &Slot, server: &Server) -> bool {
        let about = slot.address.load(Ordering::Relaxed);
        let before = slot.registers.each_ref().map(|word| word.load(Ordering::Relaxed));
        let code: [u8; 16] = zerocopy::transmute!(slot.instruction.each_ref().map(|word| word.load(Ordering::Relaxed)));
        let length = slot.detail.load(Ordering::Relaxed) as usize;
        let code = &code[..length.min(LONGEST_INSTRUCTION)];
        let mut registers = registers_of(&before, 0, 0);
        let mut memory = RegisterMemory { server, process: &self.process, about };
        if step_register_access(&mut registers, &mut memory, code).is_err() {
            return false;
        }
        let mut after = before;
        words_of(&registers, &mut after);
        // What is not written stays where it is, in the cache of the program's processor.
        let changed = slot.registers.iter().zip(after).zip(before).filter(|((_, after), before)| after != before);
        changed.for_each(|((word, after), _)| word.store(after, Ordering::Relaxed));
        true
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let slot = &self.ring.memory.slots[self.number];
        slot.detail.store(self.result, Ordering::Relaxed);
        let mut under_way = self.ring.under_way();
        self.ring.memory.states[self.number].store(ANSWERED, Ordering::Release);
        under_way.slots &= !(1 << self.number);
        // A notice is a system call, even if no thread waits for it.
        if under_way.waiting > 0 {
            self.ring.answered.notify_all();
        }
    }
}

fn map(file: impl AsFd) -> Result<SharedMapping, Errno> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, wherever there is room.
    let at = unsafe { mmap(std::ptr::null_mut(), LENGTH, protection, MapFlags::SHARED, file, 0)? };
    NonNull::new(at.cast()).map(SharedMapping).ok_or(Errno::NOMEM)
}

/// The registers that a program has mapped, at the address that its thread stands for, and nothing else.
struct RegisterMemory<'a> {
    server: &'a Server,
    process: &'a Process,
    about: u64,
}

impl RegisterMemory<'_> {
    fn register(&self, address: u64, length: usize) -> Result<Mapped, AccessFault> {
        if self.about.wrapping_sub(address) >= length as u64 {
            return Err(AccessFault);
        }
        let found = Mapped::find(self.process.vmas(), self.server, address, length).ok_or(AccessFault)?;
        // The program shall map what is memory, so that no access comes here.
        if found.file.memory(found.offset).is_some() { Err(AccessFault) } else { Ok(found) }
    }
}

impl Memory for RegisterMemory<'_> {
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), AccessFault> {
        let Mapped { file, offset, .. } = self.register(address, bytes.len())?;
        file.load(offset, bytes).map_err(|_| AccessFault)
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), AccessFault> {
        let Mapped { file, offset, .. } = self.register(address, bytes.len())?;
        file.store(offset, bytes).map_err(|_| AccessFault)
    }
}

#[cfg(test)]
mod tests;
