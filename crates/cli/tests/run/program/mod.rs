//! The programs that the tests run under `ioasid run`. A program that finds something wrong panics.

mod bar_memory;
mod char_devices;
pub mod circle;
mod dma_logging;
mod dsa_peers;
mod handlers;
mod identity;
mod in_flight;
mod life;
mod misuse;
mod modes;
pub mod nvme;
mod pinning;
mod random;
mod registers;
mod remains;
mod requests;
mod sharing;
mod stuck;
mod type1;
mod virtio;

use std::os::fd::AsRawFd;

use crate::driver::{Engine, Memory, Space};

/// IOVAs that the programs use.
pub const RING: u64 = 0x10_0000;
pub const SOURCE: u64 = 0x20_0000;
pub const TARGET: u64 = 0x60_0000;
/// Where nothing is ever mapped.
pub const NOWHERE: u64 = 0x90_0000;

/// Runs one program to its end.
pub fn run(name: &str, arguments: &[String]) {
    let argument = arguments.first().map(String::as_str).unwrap_or_default();
    match name {
        "copy" => copy(argument),
        "endless" => endless(),
        "disk-checks" => virtio::checks(argument),
        "unmaps-when-told" => unmaps_when_told(),
        "mapping" => registers::mapping_endlessly(),
        "never-mapped" => misuse::never_mapped(),
        "use-after-unmap" => misuse::use_after_unmap(),
        "read-only" => misuse::read_only(),
        "not-bus-master" => misuse::not_bus_master(),
        "not-attached" => misuse::not_attached(),
        "memory-gone" => misuse::memory_gone(),
        "memory-replaced" => misuse::memory_replaced(),
        "file-cut-short" => misuse::file_cut_short(),
        "leaked-object" => misuse::leaked_object(),
        "just-exits" => misuse::just_exits(argument),
        "left-attached" => misuse::left_attached(),
        "interrupt-unread" => misuse::interrupt_unread(),
        "threads" => life::threads(),
        "fork" => life::fork_and_share(),
        "own-sigbus" => life::own_sigbus(),
        "signals" => life::signals(),
        "exec" => life::exec(),
        "exec-from-thread" => life::exec_from_thread(),
        "first-thread-ends" => life::first_thread_ends(),
        "close-then-destroy" => sharing::close_then_destroy(),
        "open-modes" => registers::open_modes(),
        "after-exec" => life::after_exec(argument),
        "daemon" => life::daemon(),
        "information" => registers::information(),
        "forged-store" => registers::forged_store(),
        "registers" => registers::exact(),
        "bar-memory" => bar_memory::used(true),
        "bar-memory-traced" => bar_memory::used(false),
        "wide-accesses" => registers::wide(),
        "requests" => requests::malformed(),
        "many-areas" => many_areas(),
        "number-reused" => identity::number_reused(argument.parse().ok()),
        "not-dumpable" => identity::not_dumpable(argument.parse().ok()),
        "pinned-by-another" => identity::pinned_by_another(argument.parse().unwrap()),
        "asking" => circle::asking(argument),
        "keeping" => circle::keeping(),
        "stuck" => stuck::requests_wait(),
        "stuck-register-access" => stuck::register_access(),
        "map-and-exec" => stuck::map_and_exec(),
        "shared-memory-processes" => stuck::shared_memory_processes(),
        "stuck-and-ended" => stuck::ends_meanwhile(),
        "random" => random::requests(argument.parse().unwrap(), arguments[1].parse().unwrap()),
        "nothing-remains" => remains::nothing(),
        "few-mappings" => remains::few_mappings(),
        "endless-map" => remains::endless_map(),
        "pinning" => pinning::as_linux(argument),
        "storm" => handlers::storm(),
        "forked-in-accesses" => handlers::forked_in_accesses(),
        "sent-in-accesses" => handlers::sent_in_accesses(),
        "filtered" => handlers::filtered(),
        "own-handlers" => handlers::own_handlers(),
        "blocked-bus-errors" => blocked_bus_errors(),
        "traced" => traced(argument, arguments),
        "isolation" => sharing::isolation(),
        "groups" => sharing::groups(),
        "nvme-removed" => nvme::removed(),
        "nvme-unmapped-list" => nvme::unmapped_list(),
        "nvme-writer" => nvme::writer(argument, arguments[1].parse().unwrap()),
        "sva" => ioasid_example_dsa::run(64).unwrap(),
        "mode" => modes::client(argument),
        "groups-and-containers" => modes::life(),
        "peers" => modes::peers(),
        "dma-buffer" => modes::dma_buffer(),
        "reset-together" => in_flight::reset_together(),
        "interrupts-resample" => in_flight::interrupts_resample(),
        "doorbell-by-eventfd" => in_flight::doorbell_by_eventfd(),
        "char-devices" => char_devices::seen(),
        "dma-logging" => dma_logging::exact(),
        "dsa-peers" => dsa_peers::by_address(),
        "dsa-buffers" => dsa_peers::by_buffer(),
        "asked-back" => modes::asked_back(),
        "not-mapped" => registers::not_mapped(),
        "resource" => registers::resource(),
        "names" => char_devices::names(),
        "looks-and-execs" => char_devices::looks_and_execs(argument.parse().unwrap()),
        "stays-stopped" => char_devices::stays_stopped(),
        "modes-of-opens" => char_devices::modes(),
        "maps-while-others-look" => char_devices::maps_while_others_look(),
        "slice-of-a-group" => modes::slice(),
        "type1-errors" => type1::errors(),
        "type1-cuts" => type1::cuts(),
        "type1-addresses" => type1::addresses(),
        "type1-limit" => type1::limit(),
        "type1-dirty" => type1::dirty(),
        "sva-of-another" => sharing::sva_of_another(),
        other => panic!("there is no program {other}"),
    }
}

/// Another program, with a thread that blocks SIGBUS: registers are performed by a tracer then, as no handler would be
/// called in that thread.
fn traced(name: &str, arguments: &[String]) {
    let (ready, blocked) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // SAFETY: a mask that is filled in before it is used.
        unsafe {
            let mut mask: libc::sigset_t = std::mem::zeroed();
            libc::sigaddset(&mut mask, libc::SIGBUS);
            assert_eq!(libc::pthread_sigmask(libc::SIG_BLOCK, &mask, std::ptr::null_mut()), 0);
        }
        ready.send(()).unwrap();
        loop {
            std::thread::park();
        }
    });
    blocked.recv().unwrap();
    run(name, &arguments[1..]);
}

/// A thread that blocks SIGBUS touches registers.
fn blocked_bus_errors() {
    // SAFETY: a mask that is filled in before it is used.
    unsafe {
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&mut mask, libc::SIGBUS);
        assert_eq!(libc::sigprocmask(libc::SIG_BLOCK, &mask, std::ptr::null_mut()), 0);
    }
    let setup = Setup::new();
    setup.copy(7);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    assert!(!status.contains("TracerPid:\t0\n"));
    setup.finish();
}

/// An attached engine with a ring, a source and a target of one MiB.
pub struct Setup {
    pub space: Space,
    pub engine: Engine,
    pub ring: Memory,
    pub source: Memory,
    pub target: Memory,
}

pub const LENGTH: usize = 1 << 20;

impl Setup {
    pub fn new() -> Self {
        Self::with(LENGTH, |length| Memory::new(length, libc::MAP_SHARED))
    }

    pub fn with(length: usize, memory: impl Fn(usize) -> Memory) -> Self {
        let space = Space::new();
        let engine = Engine::open(0, &space.iommu);
        let (ring, source, target) = (memory(4096), memory(length), memory(length));
        space.map_rw(&ring, RING);
        space.map_rw(&source, SOURCE);
        space.map_rw(&target, TARGET);
        engine.attach(space.ioas);
        Self { space, engine, ring, source, target }
    }

    /// Copies and checks.
    pub fn copy(&self, seed: u64) {
        self.source.fill(seed);
        self.engine.copy(&self.ring, RING, SOURCE, TARGET, self.source.length.min(LENGTH)).unwrap();
        assert!(self.target.holds(seed), "the copy differs");
    }

    /// Undoes everything as a program should.
    pub fn finish(self) {
        self.engine.reset();
        self.engine.detach();
        drop(self.engine);
        self.space.unmap(RING, self.ring.length);
        self.space.unmap(SOURCE, self.source.length);
        self.space.unmap(TARGET, self.target.length);
        self.space.destroy();
    }
}

/// Maps private and shared memory page by page, and copies through all of it.
fn many_areas() {
    let space = Space::new();
    let engine = Engine::open(0, &space.iommu);
    let ring = Memory::new(4096, libc::MAP_SHARED);
    let (source, target) = (Memory::new(LENGTH, libc::MAP_PRIVATE), Memory::new(LENGTH, libc::MAP_SHARED));
    space.map_rw(&ring, RING);
    engine.attach(space.ioas);
    let pages = || (0..LENGTH).step_by(4096);
    for page in pages() {
        space.map_part(&source, page..page + 4096, SOURCE + page as u64);
        space.map_part(&target, page..page + 4096, TARGET + page as u64);
    }
    source.fill(5);
    engine.copy(&ring, RING, SOURCE, TARGET, LENGTH).unwrap();
    assert!(target.holds(5), "the copy differs");
    engine.detach();
    drop(engine);
    space.unmap(RING, ring.length);
    for page in pages() {
        space.unmap(SOURCE + page as u64, 4096);
    }
    space.unmap(TARGET, LENGTH);
    space.destroy();
}

fn copy(kind: &str) {
    let memory = |length: usize| match kind {
        "shared" => Memory::new(length, libc::MAP_SHARED),
        "private" => Memory::new(length, libc::MAP_PRIVATE),
        "memfd" => {
            let file = rustix::fs::memfd_create(c"test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            rustix::fs::ftruncate(&file, length as u64).unwrap();
            Memory::map(length, libc::MAP_SHARED, file.as_raw_fd(), 0)
        }
        // Private, but for one shared page in the middle: three mappings in one range.
        "mixed" => {
            let memory = Memory::new(length, libc::MAP_PRIVATE);
            let middle = (memory.address as usize + length / 2) & !4095;
            let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
            // SAFETY: replaces a page of the mapping above.
            let at = unsafe { libc::mmap(middle as *mut _, 4096, prot, flags | libc::MAP_FIXED, -1, 0) };
            assert_eq!(at as usize, middle);
            memory
        }
        other => panic!("there is no memory {other}"),
    };
    let setup = Setup::with(LENGTH, memory);
    for seed in 1..5 {
        setup.copy(seed);
    }
    setup.finish();
}

/// Copies, and unmaps when it is told to.
fn unmaps_when_told() {
    let setup = Setup::new();
    setup.copy(1);
    println!("copying");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    setup.space.unmap(TARGET, LENGTH);
    println!("unmapped");
}

/// Copies until it is killed.
fn endless() {
    let setup = Setup::new();
    println!("copying");
    for seed in 1.. {
        setup.copy(seed);
    }
}
