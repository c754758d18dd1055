//! Register accesses: single instructions of the program, performed from outside of it.
//!
//! A mapping of a device file raises SIGBUS at every access, as the file has no bytes (see [`crate::way::tree`]). The
//! process that maps one is traced from then on; its SIGBUS stops come here, and those that a mapped register caused
//! are taken back: the instruction is performed on the device model and the thread goes on behind it. All other
//! signals are delivered as they are, SIGBUS included.
//!
//! ```text
//!   listener: mmap of a device file ──TraceHandle::trace──► Tracer (on the runner's main thread): PTRACE_SEIZE
//!   program: load or store ──SIGBUS──► Tracer::stopped ──► ioasid-mmio ──► VfioFile::load, store
//! ```
//! Two instructions that hand work to a device, MOVDIR64B and ENQCMD, are performed here, too, for processors that have
//! none: the illegal instruction is taken back. ENQCMD goes with the PASID that the process has asked for (`enqcmd`);
//! without one it stays the general protection fault that it is on hardware.
//!
//! A process that never maps registers is never traced, and one that execs or ends is let go: the mapping is gone.
//!
//! Only the thread that traces may ask the kernel about a traced thread. So [`Tracer`] stays on one thread, which also
//! waits for children, and requests of other threads are sent to it.

mod ptrace;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};

use ioasid::memory::VmaQuery;
use ioasid_mmio::{AccessFault, Memory, Submission, XstateLayout, step};
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::Pid;

use crate::program::memory::{copy_from_process, copy_to_process, process_of};
use crate::program::processes::Purpose;
use crate::request::file::OpenFile;
use crate::server::Server;
use crate::way::listen::Tracing;
use ptrace::{Stop, ThreadVectors};

/// The longest x86 instruction, in bytes.
const LONGEST_INSTRUCTION: usize = 15;

struct Request {
    tid: u32,
    done: Sender<io::Result<()>>,
}

/// Asks the [`Tracer`] from any thread.
pub struct TraceHandle {
    requests: Mutex<Sender<Request>>,
    wake: Arc<OwnedFd>,
}

impl Tracing for TraceHandle {
    fn trace(&self, tid: u32) -> io::Result<()> {
        let (done, answer) = mpsc::channel();
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.send(Request { tid, done }).map_err(|_| gone())?;
        drop(requests);
        rustix::io::write(&*self.wake, &1u64.to_ne_bytes())?;
        answer.recv().map_err(|_| gone())?
    }
}

/// What a stop of a traced thread was, as far as somebody else has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// The thread goes on.
    GoesOn,
    /// Job control: its process stopped, by this signal, and stays stopped until it is continued.
    ByJobControl(i32),
}

/// Traces the processes that have mapped registers, and performs their accesses.
pub struct Tracer {
    server: Arc<Server>,
    requests: Receiver<Request>,
    wake: Arc<OwnedFd>,
    threads: HashSet<u32>,
    /// The mappings of each thread's process.
    mappings: HashMap<u32, VmaQuery>,
    layout: XstateLayout,
}

impl Tracer {
    /// A tracer, to be used on the thread that makes it, and a handle for the others.
    ///
    /// # Errors
    /// Of `eventfd`.
    pub fn new(server: Arc<Server>) -> io::Result<(Self, TraceHandle)> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (sender, requests) = mpsc::channel();
        let handle = TraceHandle { requests: Mutex::new(sender), wake: wake.clone() };
        let tracer = Self {
            server,
            requests,
            wake,
            threads: HashSet::new(),
            mappings: HashMap::new(),
            layout: XstateLayout::of_this_processor(),
        };
        Ok((tracer, handle))
    }

    /// Becomes readable when [`Tracer::serve_requests`] has something to do.
    #[must_use]
    pub fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Does what other threads have asked for.
    pub fn serve_requests(&mut self) {
        let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
        while let Ok(request) = self.requests.try_recv() {
            let result = self.trace_process(request.tid);
            let _ = request.done.send(result);
        }
    }

    /// Traces every thread of the process that `tid` belongs to.
    fn trace_process(&mut self, tid: u32) -> io::Result<()> {
        // Threads that traced ones start are traced by themselves, so this ends when a look finds none that is not.
        loop {
            let mut all_traced = true;
            for entry in fs::read_dir(format!("/proc/{tid}/task"))? {
                let name = entry?.file_name();
                let Some(thread) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
                if self.threads.contains(&thread) {
                    continue;
                }
                match ptrace::seize(thread) {
                    Ok(()) => all_traced = false,
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => continue,
                    Err(_) if ptrace::has_ended(thread) => continue,
                    Err(_) if ptrace::is_traced_by_us(thread) => {}
                    Err(error) => return Err(error),
                }
                self.threads.insert(thread);
            }
            if all_traced {
                return Ok(());
            }
        }
    }

    /// Whether this thread is traced.
    #[must_use]
    pub fn traces(&self, tid: u32) -> bool {
        self.threads.contains(&tid)
    }

    /// A thread or process has ended.
    pub fn ended(&mut self, tid: u32) {
        self.threads.remove(&tid);
        self.mappings.remove(&tid);
    }

    /// A traced thread has stopped, with this status of `waitpid`: does what is to be done and lets it go on.
    pub fn stopped(&mut self, tid: u32, status: i32) -> Stopped {
        // A thread that was traced from its first moment is first heard of here.
        self.threads.insert(tid);
        let signal = match ptrace::stop_of(status) {
            Stop::Group(signal) => {
                ptrace::listen(tid);
                return Stopped::ByJobControl(signal);
            }
            Stop::Exec => {
                // A thread that execs takes the number of its process.
                if let Some(former) = ptrace::former_tid(tid) {
                    self.ended(former);
                }
                return self.let_go(tid);
            }
            // A process that ends while it is traced is first the tracer's to wait for. Its parent may have been told
            // of the end by then and look for it in vain, so it is let go before.
            Stop::Exit => return self.let_go(tid),
            Stop::Event => 0,
            Stop::Signal(libc::SIGBUS) if self.perform(tid) => 0,
            Stop::Signal(signal @ (libc::SIGILL | libc::SIGSEGV)) => self.submit(tid, signal),
            Stop::Signal(signal) => signal,
        };
        ptrace::go_on(tid, signal);
        Stopped::GoesOn
    }

    /// Traces a thread no longer: it has no registers mapped any more.
    fn let_go(&mut self, tid: u32) -> Stopped {
        ptrace::detach(tid);
        self.ended(tid);
        Stopped::GoesOn
    }

    /// Performs the instruction that a thread stopped at with SIGBUS; false if the signal is the program's own affair.
    fn perform(&mut self, tid: u32) -> bool {
        let Some(address) = ptrace::bus_error_address(tid) else { return false };
        let Some(memory) = self.memory(tid) else { return false };
        if memory.register(address, 1).is_none() {
            return false;
        }
        let Some(registers) = ptrace::registers(tid) else { return false };
        let at = registers.general().rip;
        match self.step(tid, registers) {
            Ok(done) => done,
            Err(error) => {
                let _ = writeln!(
                    io::stderr(),
                    "ioasid: thread {tid}: register access at {address:#x}, instruction at {at:#x}: {error}",
                );
                false
            }
        }
    }

    /// Performs a submission to a device that a thread stopped at because its processor has no such instruction
    /// (SIGILL), or has no PASID for it (SIGSEGV). Returns the signal that it is to get, or 0.
    fn submit(&mut self, tid: u32, signal: i32) -> i32 {
        let Some(registers) = ptrace::registers(tid) else { return signal };
        let mut code = [0; LONGEST_INSTRUCTION];
        let submission = Submission::at(fetch_code(tid, registers.general().rip, &mut code));
        let missing = match submission {
            Some(Submission::Movdir64b) => signal == libc::SIGILL,
            Some(Submission::Enqcmd) => true,
            None => false,
        };
        if !missing || !ptrace::is_raised_by_kernel(tid) {
            return signal;
        }
        match self.step(tid, registers) {
            Ok(true) => 0,
            Ok(false) => signal,
            // A general protection or page fault, as a processor that has the instruction raises.
            Err(_) => {
                ptrace::set_general_protection(tid);
                libc::SIGSEGV
            }
        }
    }

    /// The memory of a thread's process.
    fn memory(&mut self, tid: u32) -> Option<ProgramMemory<'_>> {
        if let std::collections::hash_map::Entry::Vacant(entry) = self.mappings.entry(tid) {
            entry.insert(VmaQuery::new(tid).ok()?);
        }
        Some(ProgramMemory { tid, server: &self.server, mappings: self.mappings.get(&tid)? })
    }

    /// Performs the instruction that a thread stopped at; false if the thread is gone.
    fn step(&mut self, tid: u32, mut registers: ptrace::ThreadRegisters) -> Result<bool, ioasid_mmio::Error> {
        let mut vectors = ThreadVectors::new(tid, self.layout);
        let Some(mut memory) = self.memory(tid) else { return Ok(false) };
        let mut general = registers.general();
        let mut code = [0; LONGEST_INSTRUCTION];
        let code = fetch_code(tid, general.rip, &mut code);
        step(&mut general, &mut vectors, &mut memory, code)?;
        registers.set_general(&general);
        Ok(vectors.put_back() && ptrace::set_registers(tid, &registers))
    }
}

/// The bytes at `rip`, as many as there are up to the longest instruction.
fn fetch_code(tid: u32, rip: u64, code: &mut [u8; LONGEST_INSTRUCTION]) -> &[u8] {
    let in_page = (4096 - rip % 4096) as usize;
    if copy_from_process(tid, rip, code).is_ok() {
        code
    } else if in_page < code.len() && copy_from_process(tid, rip, &mut code[..in_page]).is_ok() {
        &code[..in_page]
    } else {
        &[]
    }
}

/// The memory of a stopped thread: registers of devices, and everything else.
struct ProgramMemory<'a> {
    tid: u32,
    server: &'a Server,
    mappings: &'a VmaQuery,
}

impl ProgramMemory<'_> {
    /// The device file and the offset in it that `length` bytes at `address` are, if they are registers.
    fn register(&self, address: u64, length: usize) -> Option<(Arc<dyn OpenFile>, u64)> {
        let vma = self.mappings.at(address).ok()??;
        let file = self.server.open_file(vma.dev, vma.inode)?;
        (vma.end - address >= length as u64).then(|| (file, vma.offset + (address - vma.start)))
    }
}

impl Memory for ProgramMemory<'_> {
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), AccessFault> {
        let done = match self.register(address, bytes.len()) {
            Some((file, offset)) => file.load(offset, bytes),
            None => copy_from_process(self.tid, address, bytes),
        };
        done.map_err(|_| AccessFault)
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), AccessFault> {
        let done = match self.register(address, bytes.len()) {
            Some((file, offset)) => file.store(offset, bytes),
            None => copy_to_process(self.tid, address, bytes),
        };
        done.map_err(|_| AccessFault)
    }

    /// With the PASID that the process asked for; a processor faults if there is none.
    fn enqueue(&mut self, address: u64, command: &[u8; 64]) -> Result<bool, AccessFault> {
        let process = Pid::from_raw(self.tid as i32).and_then(process_of).ok_or(AccessFault)?;
        let pid = process.as_raw_nonzero().get() as u32;
        let process = self.server.process(pid, Purpose::Mapping).map_err(|_| AccessFault)?;
        let pasid = self.server.enqcmd().physical(pid, &process).ok_or(AccessFault)?;
        let (file, offset) = self.register(address, command.len()).ok_or(AccessFault)?;
        let mut command = *command;
        command[..4].copy_from_slice(&pasid.get().to_le_bytes());
        file.enqueue(offset, &command).map_err(|_| AccessFault)?.ok_or(AccessFault)
    }
}
