//! Threads that are traced: for as long as it takes to put the handler into their process, or, where a thread blocks
//! SIGBUS and no handler would be called, for as long as registers are mapped.
//!
//! ```text
//!   listener: mmap of a device file ──TraceHandle::trace──► Tracer (on the runner's main thread): PTRACE_SEIZE
//!                                     puts the handler in, and lets go; or
//!   program: load or store ──SIGBUS──► Tracer::stopped ──► ioasid-mmio ──► OpenFile::load, store
//! ```
//! Only the thread that traces may ask the kernel about a traced thread. So [`Tracer`] stays on one thread, which also
//! waits for children, and requests of other threads are sent to it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ioasid::memory::{Process, VmaQuery};
use ioasid_mmio::{XstateLayout, step};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use super::handler;
use super::inject::Thread;
use super::memory::{LONGEST_INSTRUCTION, ProgramMemory, fetch_code};
use super::ptrace::{self, Stop, StoppedVectors};
use super::show;
use super::stat::Answer;
use super::vectors::LazyVectors;
use super::{is_submission, tell_refused};
use crate::program::memory::{ThreadMemory, share_memory};
use crate::program::pidfd::pidfd_of;
use crate::program::status::{Status, is_being_killed, process_of};
use crate::server::Server;
use crate::way::{CharDevice, Tracing};

struct Request {
    tid: u32,
    wanted: Wanted,
    done: Sender<io::Result<()>>,
    /// When it was made.
    begun: Instant,
    /// It was tried before, and given up.
    again: bool,
}

/// For so long it is tried to trace a thread whose process executes a program, or is traced by others.
const PATIENCE: Duration = Duration::from_millis(500);

/// What is wanted of a process.
enum Wanted {
    /// Its register accesses are to be performed.
    Registers,
    /// What becomes of its memory is to be followed.
    News(Arc<Process>),
    /// The thread, which is traced here, is to see a device.
    Show(CharDevice),
    /// The thread, which was held by this number, is to go on.
    GoOn(u64),
}

/// Asks the [`Tracer`] from any thread.
#[derive(Clone)]
pub struct TraceHandle {
    requests: Arc<Mutex<Sender<Request>>>,
    wake: Arc<OwnedFd>,
}

impl Tracing for TraceHandle {
    fn trace(&self, tid: u32) -> io::Result<()> {
        self.ask(tid, Wanted::Registers)
    }

    fn follow(&self, tid: u32, process: Arc<Process>) -> io::Result<()> {
        self.ask(tid, Wanted::News(process))
    }

    fn show(&self, tid: u32, device: CharDevice) -> io::Result<()> {
        let tracer = Status::of(tid).ok_or(io::ErrorKind::NotFound)?.tracer();
        // Only its tracer can stop a thread.
        if tracer == Some(std::process::id()) {
            show::wait_for(tid, &self.send(tid, Wanted::Show(device))?)
        } else {
            show::show(tid, device)
        }
    }
}

impl TraceHandle {
    fn ask(&self, tid: u32, wanted: Wanted) -> io::Result<()> {
        self.send(tid, wanted)?.recv().map_err(|_| io::ErrorKind::BrokenPipe)?
    }

    fn send(&self, tid: u32, wanted: Wanted) -> io::Result<Receiver<io::Result<()>>> {
        let (done, answer) = mpsc::channel();
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests
            .send(Request { tid, wanted, done, begun: Instant::now(), again: false })
            .map_err(|_| io::ErrorKind::BrokenPipe)?;
        drop(requests);
        rustix::io::write(&*self.wake, &1u64.to_ne_bytes())?;
        Ok(answer)
    }
}

/// What a stop of a traced thread was, as far as the supervisor has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// The thread goes on.
    GoesOn,
    /// Job control: its process stopped, by this signal, and stays stopped until it is continued.
    ByJobControl(i32),
}

/// What a thread is stopped for.
enum Task {
    /// The handler is to be put into its memory, and to take its process's signals.
    Install,
    /// The handler is in its memory, at this address, and is to take its process's signals, too.
    Join(u64),
    /// It is to make a userfaultfd, by which its process is followed.
    Follow(Arc<Process>),
    /// What it was told of a file is to be that of a device.
    Show(CharDevice),
}

/// Puts the handler into processes that map registers; or traces them, and performs their accesses.
pub struct Tracer {
    server: Arc<Server>,
    requests: Receiver<Request>,
    wake: Arc<OwnedFd>,
    threads: HashSet<u32>,
    /// Threads that are to stop, and what then.
    stopping: HashMap<u32, Task>,
    /// Threads that stay stopped while another of ours changes their memory, each by a number, and whether they are to
    /// stay stopped with their process.
    held: HashMap<u32, (u64, bool)>,
    /// How many there were.
    holds: u64,
    /// For those others.
    own: TraceHandle,
    /// The mappings of each thread's process.
    mappings: HashMap<u32, VmaQuery>,
    layout: XstateLayout,
    /// It has said that memory cannot be followed.
    has_told: bool,
}

impl Tracer {
    /// A tracer, to be used on the thread that makes it, and a handle for the others.
    ///
    /// # Errors
    /// Of `eventfd`.
    pub fn new(server: Arc<Server>) -> io::Result<(Self, TraceHandle)> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (sender, requests) = mpsc::channel();
        let handle = TraceHandle { requests: Arc::new(Mutex::new(sender)), wake: wake.clone() };
        let tracer = Self {
            server,
            requests,
            wake,
            threads: HashSet::new(),
            stopping: HashMap::new(),
            held: HashMap::new(),
            holds: 0,
            own: handle.clone(),
            mappings: HashMap::new(),
            layout: XstateLayout::of_this_processor(),
            has_told: false,
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
        let mut later = Vec::new();
        while let Ok(request) = self.requests.try_recv() {
            let result = match &request.wanted {
                Wanted::Registers => self.prepare(request.tid, request.again),
                Wanted::News(process) => self.prepare_to_follow(request.tid, process.clone()),
                Wanted::Show(_) if !self.threads.contains(&request.tid) => Err(io::ErrorKind::NotFound.into()),
                Wanted::Show(device) => self.prepare_to_stop(request.tid, Task::Show(*device)),
                Wanted::GoOn(hold) => {
                    // Its number may be another's by now.
                    if let Some((held, with_process)) = self.held.get(&request.tid).copied()
                        && held == *hold
                    {
                        self.held.remove(&request.tid);
                        self.go_on(request.tid, with_process);
                    }
                    Ok(())
                }
            };
            match result {
                // What it would have had to wait for may wait for another thread that is traced here.
                Err(error) if was_given_up(&error) && request.begun.elapsed() < PATIENCE => {
                    later.push(Request { again: true, ..request });
                }
                result => drop(request.done.send(result)),
            }
        }
        if !later.is_empty() {
            let again = self.own.requests.lock().unwrap_or_else(PoisonError::into_inner);
            // There is a receiver, which is this.
            later.into_iter().for_each(|request| drop(again.send(request)));
            drop(again);
            let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        }
    }

    /// Sees to it that the register accesses of the process that `tid` belongs to are performed, when the system call
    /// that it is in has returned.
    fn prepare(&mut self, tid: u32, again: bool) -> io::Result<()> {
        // The first time it may have got as far as this thread.
        if handler::base_in(ThreadMemory::stopped(tid)).is_some() || self.threads.contains(&tid) && !again {
            return Ok(());
        }
        if needs_tracing(tid)? {
            return self.trace_process(tid, None);
        }
        ptrace::seize_to_stop(tid)?;
        self.stopping.insert(tid, Task::Install);
        Ok(())
    }

    /// Sees to it that the memory of the process that `tid` belongs to is followed, when the system call that it is in
    /// has returned.
    fn prepare_to_follow(&mut self, tid: u32, process: Arc<Process>) -> io::Result<()> {
        // A filter of its own may end it for the system calls that it is told to make.
        if Status::of(tid).is_none_or(|status| filters_of(&status) > usual_filters()) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.prepare_to_stop(tid, Task::Follow(process))
    }

    /// Has a thread stop when the system call has returned that it is in, for something to be done then.
    fn prepare_to_stop(&mut self, tid: u32, task: Task) -> io::Result<()> {
        if self.threads.contains(&tid) { ptrace::interrupt(tid) } else { ptrace::seize_to_stop(tid) }?;
        self.stopping.insert(tid, task);
        Ok(())
    }

    /// Lets a thread go on that was stopped for a task; or leaves it stopped with its process.
    fn go_on(&self, tid: u32, with_process: bool) {
        if !self.threads.contains(&tid) {
            // It stays stopped, if its process is.
            return ptrace::detach(tid);
        }
        // Perhaps only since it was to stop.
        ptrace::trace_on(tid);
        if with_process { ptrace::listen(tid) } else { ptrace::go_on(tid, 0) }
    }

    /// Has a stopped thread's memory tell of a device, and lets the thread go on then. Another thread does that, as it
    /// may wait for the program.
    fn show(&mut self, tid: u32, device: CharDevice, with_process: bool) {
        let (Some(answer), Ok(memory)) = (Answer::of_stopped(tid), show::memory_of(tid)) else {
            return self.go_on(tid, with_process);
        };
        self.holds += 1;
        self.held.insert(tid, (self.holds, with_process));
        let (own, hold) = (self.own.clone(), self.holds);
        self.server.elsewhere(move || {
            // No thread looks at memory that is gone.
            let _ = answer.show(&memory, device);
            let _ = own.send(tid, Wanted::GoOn(hold));
        });
    }

    /// Has a stopped thread make a userfaultfd, and follows its process by that.
    fn follow(thread: &mut Thread, process: &Arc<Process>, server: &Server) -> io::Result<()> {
        const USER_MODE_ONLY: i32 = 1;
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
        let gone = || io::Error::from(Errno::SRCH);
        let made = thread.call(libc::SYS_userfaultfd, [flags as u64, 0, 0, 0, 0, 0]).ok_or_else(gone)?;
        let number = i32::try_from(made).map_err(|_| gone())?;
        if number < 0 {
            return Err(io::Error::from_raw_os_error(-number));
        }
        let taken = pidfd_of(thread.tid()).and_then(|pidfd| pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty()))?;
        // Another thread may have put a file of its own in its place.
        let name = fs::read_link(format!("/proc/self/fd/{}", taken.as_raw_fd()))?;
        if name.as_os_str() == "anon_inode:[userfaultfd]" {
            thread.call(libc::SYS_close, [number as u64, 0, 0, 0, 0, 0]).ok_or_else(gone)?;
        }
        server.follow(process, taken)
    }

    /// Says once that the kernel lacks what is needed, or forbids it.
    fn tell_not_followed(&mut self, error: &io::Error) {
        let lacks = [libc::ENOSYS, libc::EPERM, libc::EINVAL, libc::EOPNOTSUPP];
        if error.raw_os_error().is_some_and(|error| lacks.contains(&error)) && !self.has_told {
            self.has_told = true;
            let _ = writeln!(
                io::stderr(),
                "ioasid: memory that the program unmaps too early goes unnoticed, as there is no \
                 userfaultfd ({error}). It takes Linux 6.10 or later, and a container that allows it."
            );
        }
    }

    /// Does what a thread was stopped for, and lets it go; or leaves it stopped with its process.
    fn perform_task(&mut self, tid: u32, task: Task, with_process: bool) {
        match task {
            // Another thread's mapping has brought it.
            Task::Install if handler::base_in(ThreadMemory::stopped(tid)).is_some() => {}
            Task::Install => match Thread::take(tid).and_then(|mut thread| handler::install(&mut thread)) {
                Some(base) => {
                    for other in others_in_memory_of(tid) {
                        if when_looked(other, Some(tid), || ptrace::seize_to_stop(other)).is_ok() {
                            self.stopping.insert(other, Task::Join(base));
                        }
                    }
                }
                // Its process ends, or another thread of it executes a program: there is nobody to have it. To trace
                // the other threads would be to wait for that one, which waits for this.
                None if is_being_killed(tid) || ptrace::has_moved_on(tid) => {}
                // It cannot be had: every thread is traced.
                None => {
                    ptrace::trace_on(tid);
                    self.threads.insert(tid);
                    let _ = self.trace_process(tid, Some(tid));
                    return ptrace::go_on(tid, 0);
                }
            },
            // If it cannot be had, the process has no registers.
            Task::Join(base) => drop(handler::join(tid, base)),
            Task::Follow(process) => {
                if let Some(mut thread) = Thread::take(tid)
                    && let Err(error) = Self::follow(&mut thread, &process, &self.server)
                {
                    self.tell_not_followed(&error);
                }
            }
            Task::Show(device) => return self.show(tid, device, with_process),
        }
        self.go_on(tid, with_process);
    }

    /// Traces every thread of the process that `tid` belongs to, while `held` is stopped.
    fn trace_process(&mut self, tid: u32, held: Option<u32>) -> io::Result<()> {
        // Threads that traced ones start are traced by themselves, so this ends when a look finds none that is not.
        loop {
            let mut all_traced = true;
            for entry in fs::read_dir(format!("/proc/{tid}/task"))? {
                let name = entry?.file_name();
                let Some(thread) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
                if self.threads.contains(&thread) {
                    continue;
                }
                match when_looked(thread, held, || ptrace::seize(thread)) {
                    Ok(()) => {
                        all_traced = false;
                        // A thread that vanished before it stopped left this to whichever has its number.
                        self.stopping.remove(&thread);
                    }
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => continue,
                    Err(error) => match Status::of(thread) {
                        Some(status) if status.has_ended() => continue,
                        Some(status) if status.tracer() == Some(std::process::id()) => {}
                        _ => return Err(error),
                    },
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
        self.stopping.remove(&tid);
        self.held.remove(&tid);
        self.mappings.remove(&tid);
    }

    /// A traced thread has stopped, with this status of `waitpid`: does what is to be done and lets it go on.
    pub fn stopped(&mut self, tid: u32, status: i32) -> Stopped {
        let stop = ptrace::stop_of(status);
        if let (Stop::Signal(signal), true) = (&stop, self.stopping.contains_key(&tid)) {
            ptrace::go_on(tid, *signal);
            return Stopped::GoesOn;
        }
        // A thread that ends, or executes a program, has nothing to do any more.
        let task = self.stopping.remove(&tid).filter(|_| !matches!(stop, Stop::Exit | Stop::Exec));
        if let Some(task) = task {
            let Stop::Group(signal) = stop else {
                self.perform_task(tid, task, false);
                return Stopped::GoesOn;
            };
            self.perform_task(tid, task, true);
            // Of others the supervisor hears by other means.
            return if self.threads.contains(&tid) { Stopped::ByJobControl(signal) } else { Stopped::GoesOn };
        }
        // A thread that was traced from its first moment is first heard of here.
        self.threads.insert(tid);
        let signal = match stop {
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
        if memory.device(address, 1).is_none() {
            return false;
        }
        let Some(registers) = ptrace::registers(tid) else { return false };
        let at = registers.general().rip;
        match self.step(tid, registers) {
            Ok(done) => done,
            Err(error) => {
                tell_refused(tid, address, at, &error);
                false
            }
        }
    }

    /// Performs a submission to a device that a thread stopped at. Returns the signal that it is to get, or 0.
    fn submit(&mut self, tid: u32, signal: i32) -> i32 {
        let Some(registers) = ptrace::registers(tid) else { return signal };
        let mut code = [0; LONGEST_INSTRUCTION];
        let instruction = fetch_code(ThreadMemory::stopped(tid), registers.general().rip, &mut code);
        if !is_submission(signal, instruction) || !ptrace::is_raised_by_kernel(tid) {
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
        Some(ProgramMemory {
            thread: ThreadMemory::stopped(tid),
            server: &self.server,
            mappings: self.mappings.get(&tid)?,
        })
    }

    /// Performs the instruction that a thread stopped at; false if the thread is gone.
    fn step(&mut self, tid: u32, mut registers: ptrace::ThreadRegisters) -> Result<bool, ioasid_mmio::Error> {
        let mut vectors = LazyVectors::new(StoppedVectors(tid), self.layout);
        let Some(mut memory) = self.memory(tid) else { return Ok(false) };
        let mut general = registers.general();
        let mut code = [0; LONGEST_INSTRUCTION];
        let code = fetch_code(ThreadMemory::stopped(tid), general.rip, &mut code);
        step(&mut general, &mut vectors, &mut memory, code)?;
        registers.set_general(&general);
        Ok(vectors.put_back() && ptrace::set_registers(tid, &registers))
    }
}

/// Whether the process that `tid` belongs to has to be traced: a thread of it blocks SIGBUS, so that the kernel would
/// end the process rather than call a handler; or it has filtered its own system calls, and a filter may end it for
/// those of the handler.
fn needs_tracing(tid: u32) -> io::Result<bool> {
    const SIGBUS: u64 = 1 << (libc::SIGBUS - 1);
    let usual = usual_filters();
    let needs = |thread: u32| {
        let status = Status::of(thread)?;
        Some(status.set("SigBlk:")? & SIGBUS != 0 || filters_of(&status) > usual)
    };
    let threads = fs::read_dir(format!("/proc/{tid}/task"))?.filter_map(Result::ok);
    let mut numbers = threads.filter_map(|thread| thread.file_name().to_str()?.parse().ok());
    Ok(numbers.any(|thread| needs(thread) == Some(true)))
}

/// How many filters of system calls a thread is under.
fn filters_of(status: &Status) -> u32 {
    status.number("Seccomp_filters:").unwrap_or(0)
}

/// Seizes a thread; again, if another thread of this process has it for a look at a device file, which soon ends, or if
/// it was given up, and not because `held` is stopped here.
fn when_looked(tid: u32, held: Option<u32>, seize: impl Fn() -> io::Result<()>) -> io::Result<()> {
    const PAUSE: Duration = Duration::from_micros(100);
    let own = std::process::id();
    let is_looking = || {
        let tracer = Status::of(tid).map(|status| status.tracer());
        // It may have let go, or ended, meanwhile.
        let is_ours = |tracer: u32| tracer != own && process_of(tracer).is_none_or(|process| process == own);
        tracer.is_some_and(|tracer| tracer.is_none_or(is_ours))
    };
    let begun = Instant::now();
    loop {
        match seize() {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) && begun.elapsed() < PATIENCE && is_looking() => {
                std::thread::sleep(PAUSE);
            }
            // Unless the one that is stopped is waited for, or others may be.
            Err(error)
                if was_given_up(&error)
                    && begun.elapsed() < PATIENCE
                    && held.is_some_and(|held| !ptrace::has_moved_on(held)) => {}
            seized => return seized,
        }
    }
}

/// Whether a thread was not traced as that would have had to wait.
fn was_given_up(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINTR)
}

/// How many filters a thread is under that has made none: the runner's, and those that the runner is under, too.
fn usual_filters() -> u32 {
    Status::of(std::process::id()).map_or(0, |own| filters_of(&own)) + 1
}

/// Other processes that are in the memory of a thread's, without being its threads (clone(2), CLONE_VM alone).
fn others_in_memory_of(tid: u32) -> Vec<u32> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let own = process_of(tid);
    numbers.filter(|other| Some(*other) != own && share_memory(tid, *other)).collect()
}
