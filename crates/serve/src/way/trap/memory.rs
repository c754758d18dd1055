//! The memory of a thread that stands at an instruction: registers of devices, and everything else.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use ioasid::memory::{Vma, VmaQuery};
use ioasid_mmio::{AccessFault, Memory};

use crate::program::memory::ThreadMemory;
use crate::program::processes::Purpose;
use crate::request::file::OpenFile;
use crate::server::Server;

/// The longest x86 instruction, in bytes.
pub(super) const LONGEST_INSTRUCTION: usize = 15;

/// A breakpoint instruction.
const BREAKPOINT: u8 = 0xcc;

/// The bytes at `rip`, as many as there are up to the longest instruction; and whether a debugger has covered them.
///
/// A breakpoint raises no bus error, so where there is one, a debugger has put it in the place of the instruction that
/// did, since: it wants to know when the handler has returned. The instruction is still in the file that was mapped.
pub(super) fn fetch_instruction<'a>(
    memory: ThreadMemory<'_>,
    rip: u64,
    code: &'a mut [u8; LONGEST_INSTRUCTION],
) -> (&'a [u8], bool) {
    let is_covered = fetch_code(memory, rip, code).first() == Some(&BREAKPOINT)
        && fetch_from_file(memory.tid(), rip, code).is_some();
    (if is_covered { code } else { fetch_code(memory, rip, code) }, is_covered)
}

/// The bytes that were mapped at `rip`, if they are of a file.
fn fetch_from_file(tid: u32, rip: u64, code: &mut [u8; LONGEST_INSTRUCTION]) -> Option<()> {
    let vma = VmaQuery::new(tid).ok()?.at(rip).ok()??;
    let maps = fs::read_to_string(format!("/proc/{tid}/maps")).ok()?;
    let line = maps.lines().find(|line| line.starts_with(&format!("{:x}-", vma.start)))?;
    let path = &line[line.find('/')?..];
    let file = File::open(format!("/proc/{tid}/root{path}")).ok()?;
    let found = file.metadata().ok()?;
    if !found.is_file() || (found.dev(), found.ino()) != (vma.dev, vma.inode) {
        return None;
    }
    file.read_exact_at(code, vma.offset + (rip - vma.start)).ok()
}

/// The bytes at `rip` as they are.
pub(super) fn fetch_code<'a>(memory: ThreadMemory<'_>, rip: u64, code: &'a mut [u8; LONGEST_INSTRUCTION]) -> &'a [u8] {
    let in_page = (4096 - rip % 4096) as usize;
    if memory.read(rip, code).is_ok() {
        code
    } else if in_page < code.len() && memory.read(rip, &mut code[..in_page]).is_ok() {
        &code[..in_page]
    } else {
        &[]
    }
}

/// Bytes of a device file that a program has mapped.
pub(super) struct Mapped {
    pub(super) file: Arc<dyn OpenFile>,
    /// Of the first byte, in the file.
    pub(super) offset: u64,
    /// The mapping.
    pub(super) vma: Vma,
}

impl Mapped {
    /// `length` bytes at `address`, if they are of a device file.
    pub(super) fn find(mappings: &VmaQuery, server: &Server, address: u64, length: usize) -> Option<Self> {
        let vma = mappings.at(address).ok()??;
        let file = server.open_file(vma.dev, vma.inode)?;
        let offset = vma.offset + (address - vma.start);
        (vma.end - address >= length as u64).then_some(Self { file, offset, vma })
    }
}

/// The memory of a thread.
pub(super) struct ProgramMemory<'a> {
    pub(super) thread: ThreadMemory<'a>,
    pub(super) server: &'a Server,
    pub(super) mappings: &'a VmaQuery,
}

impl ProgramMemory<'_> {
    /// `length` bytes at `address`, if they are of a device file, of a thread that stands.
    pub(super) fn device(&self, address: u64, length: usize) -> Option<Mapped> {
        Mapped::find(self.mappings, self.server, address, length).filter(|_| self.thread.stands())
    }

    /// Whether an address is mapped as the memory of a BAR.
    pub(super) fn is_bar_memory(&self, address: u64) -> bool {
        let Ok(Some(vma)) = self.mappings.at(address) else { return false };
        let memory = self.server.bar_memory(vma.dev, vma.inode);
        memory.is_some_and(|memory| vma.offset + (address - vma.start) < memory.length())
    }
}

impl Memory for ProgramMemory<'_> {
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), AccessFault> {
        let done = match self.device(address, bytes.len()) {
            Some(Mapped { file, offset, .. }) => file.load(offset, bytes),
            None => self.thread.read(address, bytes),
        };
        done.map_err(|_| AccessFault)
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), AccessFault> {
        let done = match self.device(address, bytes.len()) {
            Some(Mapped { file, offset, .. }) => file.store(offset, bytes),
            None => self.thread.write(address, bytes),
        };
        done.map_err(|_| AccessFault)
    }

    /// With the PASID that the process asked for; a processor faults if there is none.
    fn enqueue(&mut self, address: u64, command: &[u8; 64]) -> Result<bool, AccessFault> {
        let process = self.server.process(self.thread.tid(), Purpose::Mapping).map_err(|_| AccessFault)?;
        let pasid = self.server.enqcmd().physical(process.pid(), &process).ok_or(AccessFault)?;
        let Mapped { file, offset, .. } = self.device(address, command.len()).ok_or(AccessFault)?;
        let mut command = *command;
        command[..4].copy_from_slice(&pasid.get().to_le_bytes());
        file.enqueue(offset, &command).map_err(|_| AccessFault)?.ok_or(AccessFault)
    }
}
