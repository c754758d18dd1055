//! The frame that the kernel made for the handler: registers, where the program goes on with them when it returns.
//!
//! ```text
//!   struct ucontext       flags, link, stack
//!   +40  sigcontext       r8 … r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, eflags
//!   +184                  segments, error, trap, mask, cr2
//!   +224                  address of the vector registers, in XSAVE's layout
//!   +296 mask of signals
//! ```
//! Source: Linux `arch/x86/include/uapi/asm/sigcontext.h` and `include/uapi/asm-generic/ucontext.h`.

use ioasid_mmio::Registers;
use rustix::io::Errno;

use super::vectors::{Area, LARGEST_XSTATE};
use crate::program::memory::ThreadMemory;

const REGISTERS: u64 = 40;
const VECTORS: u64 = 224;
/// Registers of the frame, and for each but the last two its index among those of an instruction.
pub(super) const WORDS: usize = 18;
const ORDER: [usize; 16] = [8, 9, 10, 11, 12, 13, 14, 15, 7, 6, 5, 3, 2, 0, 1, 4];
/// In the legacy part of the XSAVE area: that there is more, and how much in all.
const EXTENDED: usize = 464;
const MAGIC: u32 = 0x4650_5853;
/// Bytes of the legacy part and the header.
const LEAST: usize = 576;

/// The registers, as an instruction knows them, of words in the order of a frame.
pub(super) fn registers_of(words: &[u64; WORDS], fs_base: u64, gs_base: u64) -> Registers {
    let mut gpr = [0; 16];
    ORDER.into_iter().zip(words).for_each(|(register, word)| gpr[register] = *word);
    Registers { gpr, rip: words[16], rflags: words[17], fs_base, gs_base }
}

/// Puts the registers into words in the order of a frame.
pub(super) fn words_of(registers: &Registers, words: &mut [u64; WORDS]) {
    ORDER.into_iter().zip(&mut *words).for_each(|(register, word)| *word = registers.gpr[register]);
    (words[16], words[17]) = (registers.rip, registers.rflags);
}

/// A frame in the memory of a thread.
pub(super) struct Frame<'a> {
    memory: ThreadMemory<'a>,
    context: u64,
    words: [u64; WORDS],
    vectors_at: u64,
}

impl<'a> Frame<'a> {
    /// The frame of which the context is at `context`.
    pub(super) fn read(memory: ThreadMemory<'a>, context: u64) -> Result<Self, Errno> {
        let mut bytes = [0; (VECTORS - REGISTERS) as usize + 8];
        memory.read(context.wrapping_add(REGISTERS), &mut bytes)?;
        let (all, _) = bytes.as_chunks::<8>();
        let word = |n: usize| u64::from_ne_bytes(all[n]);
        let vectors_at = word(all.len() - 1);
        Ok(Self { memory, context, words: std::array::from_fn(word), vectors_at })
    }

    pub(super) fn registers(&self, fs_base: u64, gs_base: u64) -> Registers {
        registers_of(&self.words, fs_base, gs_base)
    }

    /// Has the thread go on with these registers.
    pub(super) fn put_back(&mut self, new: &Registers) -> bool {
        words_of(new, &mut self.words);
        let bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.memory.write(self.context.wrapping_add(REGISTERS), &bytes).is_ok()
    }

    pub(super) fn vectors(&self) -> FrameVectors<'a> {
        FrameVectors { memory: self.memory, at: self.vectors_at }
    }
}

/// The vector registers of a frame.
pub(super) struct FrameVectors<'a> {
    memory: ThreadMemory<'a>,
    at: u64,
}

impl Area for FrameVectors<'_> {
    fn fetch(&self) -> Option<Vec<u8>> {
        let mut legacy = [0; LEAST];
        self.memory.read(self.at, &mut legacy).ok()?;
        let word = |at: usize| u32::from_ne_bytes([legacy[at], legacy[at + 1], legacy[at + 2], legacy[at + 3]]);
        let length = if word(EXTENDED) == MAGIC { word(EXTENDED + 16) as usize } else { LEAST };
        let mut bytes = vec![0; length.clamp(LEAST, LARGEST_XSTATE)];
        self.memory.read(self.at, &mut bytes).ok()?;
        Some(bytes)
    }

    fn put(&self, bytes: &mut [u8]) -> bool {
        self.memory.write(self.at, bytes).is_ok()
    }
}
