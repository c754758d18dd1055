//! The whole engine under thousands of random schedules: `RUSTFLAGS="--cfg shuttle" cargo test --release -p ioasid`.
//!
//! The engine's locks and atomics are shuttle's then, and at each of them any thread may be the next to run. As in
//! `stress.rs`, memory that was taken away is filled with a secret that no device may ever show; here each run is
//! short, and a failing one can be replayed.
#![cfg(shuttle)]
#![allow(unsafe_code, reason = "looks at memory that devices write")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ioasid::memory::Segment;
use ioasid::{Access, Context, Device, Endpoint, GroupId, Ioas, Iova, IovaRange, Machine, Placement, Rid, Silent};
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

const PAGE: u64 = 4096;
const AT: u64 = 0x10_0000;
const OPEN: u64 = 0x1111_1111_1111_1111;
const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;

/// One page of memory, which lives as long as the process: a hole in the protocol is to be seen, not to crash.
#[derive(Clone, Copy)]
struct Buffer(&'static [AtomicU64; PAGE as usize / 8]);

#[repr(align(4096))]
struct Aligned([AtomicU64; PAGE as usize / 8]);

impl Buffer {
    fn new() -> Self {
        let page = Box::leak(Box::new(Aligned([const { AtomicU64::new(OPEN) }; PAGE as usize / 8])));
        Self(&page.0)
    }

    fn fill(self, value: u64) {
        self.0.iter().for_each(|word| word.store(value, Ordering::Relaxed));
    }

    fn segment(self) -> Segment {
        // SAFETY: never freed, and atomics are all that is ever used on it here.
        unsafe { Segment::local(NonNull::from(self.0).cast(), PAGE, Arc::new(())) }
    }
}

struct Setup {
    machine: Arc<Machine>,
    context: Arc<Context>,
    ioas: Arc<Ioas>,
    endpoint: Arc<Endpoint>,
    device: Device,
}

impl Setup {
    fn new() -> Self {
        let machine = Machine::with_tables(Arc::new(Silent), ioasid::memory::TableSpace::private(8 << 20).unwrap());
        let endpoint = machine.add_endpoint("0000:00:01.0".parse::<Rid>().unwrap(), GroupId(0)).unwrap();
        let context = machine.context();
        let ioas = context.ioas_alloc().unwrap();
        let device = context.bind(&endpoint).unwrap();
        device.attach(None, &ioas).unwrap();
        endpoint.set_bus_master(true).unwrap();
        Self { machine, context, ioas, endpoint, device }
    }

    fn map(&self, page: u64, buffer: Buffer) {
        let at = Placement::Fixed(Iova(AT + page * PAGE));
        self.ioas.map(at, PAGE, Access::all(), || Ok(vec![buffer.segment()])).unwrap();
    }
}

/// A device that reads, adds or borrows around `AT`, and must not see the secret.
fn device(endpoint: &Arc<Endpoint>, turns: usize) {
    let mut port = endpoint.port();
    for _ in 0..turns {
        let at = Iova(AT + thread_rng().gen_range(0..3) * PAGE + 8 * thread_rng().gen_range(0..4u64));
        let seen = match thread_rng().gen_range(0..3) {
            0 => {
                let mut word = [0; 8];
                port.read(at, &mut word).map(|()| u64::from_ne_bytes(word))
            }
            1 => port.compare_and_swap(at, OPEN, OPEN),
            _ => port.slices(at, 8, Access::READ).map(|slices| {
                thread::yield_now();
                // SAFETY: eight bytes, aligned, as long as the slices live.
                unsafe { AtomicU64::from_ptr(slices[0].as_ptr().cast()) }.load(Ordering::Relaxed)
            }),
        };
        assert_ne!(seen, Ok(SECRET), "DMA after it was taken away");
    }
}

fn explore(run: impl Fn() + Send + Sync + Clone + 'static) {
    shuttle::check_random(run.clone(), 10_000);
    shuttle::check_pct(run, 10_000, 3);
}

#[test]
fn no_dma_after_an_unmap_a_detach_or_the_loss_of_bus_mastering_returned() {
    explore(|| {
        let setup = Arc::new(Setup::new());
        let devices: Vec<_> = (0..2)
            .map(|_| {
                let setup = setup.clone();
                thread::spawn(move || device(&setup.endpoint, 6))
            })
            .collect();
        // A neighbour in the same table comes and goes meanwhile, in a thread of its own.
        let neighbour = {
            let setup = setup.clone();
            thread::spawn(move || {
                for _ in 0..2 {
                    let buffer = Buffer::new();
                    setup.map(2, buffer);
                    setup.ioas.unmap(IovaRange::new(AT + 2 * PAGE, PAGE).unwrap()).unwrap();
                    buffer.fill(SECRET);
                }
            })
        };
        for _ in 0..3 {
            let buffer = Buffer::new();
            setup.map(0, buffer);
            thread::yield_now();
            match thread_rng().gen_range(0..3) {
                0 => {
                    setup.device.detach(None).unwrap();
                    buffer.fill(SECRET);
                    setup.ioas.unmap(IovaRange::new(AT, PAGE).unwrap()).unwrap();
                    setup.device.attach(None, &setup.ioas).unwrap();
                }
                1 => {
                    setup.endpoint.set_bus_master(false).unwrap();
                    buffer.fill(SECRET);
                    setup.ioas.unmap(IovaRange::new(AT, PAGE).unwrap()).unwrap();
                    setup.endpoint.set_bus_master(true).unwrap();
                }
                _ => {
                    setup.ioas.unmap(IovaRange::new(AT, PAGE).unwrap()).unwrap();
                    buffer.fill(SECRET);
                }
            }
        }
        devices.into_iter().chain([neighbour]).for_each(|thread| thread.join().unwrap());
        assert_eq!(setup.machine.resources().0, 0, "every window went");
    });
}

#[test]
fn no_write_is_missing_from_the_dirty_log() {
    explore(|| {
        let setup = Arc::new(Setup::new());
        let buffers = [Buffer::new(), Buffer::new()];
        buffers.iter().zip(0..).for_each(|(&buffer, page)| setup.map(page, buffer));
        let hwpt = setup.device.attach(None, &setup.ioas).unwrap();
        let hwpt = setup.context.hwpt(hwpt).unwrap();
        hwpt.start_dirty_tracking(PAGE).unwrap();
        let range = IovaRange::new(AT, 2 * PAGE).unwrap();
        let device = {
            let setup = setup.clone();
            thread::spawn(move || {
                let mut port = setup.endpoint.port();
                for value in 1..6u64 {
                    let page = thread_rng().gen_range(0..2u64);
                    if thread_rng().gen_bool(0.3) {
                        // What a read brought into the IOTLB must not let a write pass unnoticed.
                        port.read(Iova(AT + page * PAGE), &mut [0; 8]).unwrap();
                    }
                    port.write(Iova(AT + page * PAGE), &value.to_ne_bytes()).unwrap();
                }
            })
        };
        // What migration does: copy the pages that were written, until nothing is.
        let mut copies = buffers.map(|buffer| buffer.0[0].load(Ordering::Relaxed));
        for _ in 0..4 {
            let mut bitmap = [0];
            hwpt.read_dirty(range, PAGE, true, &mut bitmap).unwrap();
            for (page, copy) in copies.iter_mut().enumerate().filter(|(page, _)| bitmap[0] >> page & 1 == 1) {
                *copy = buffers[page].0[0].load(Ordering::Relaxed);
            }
            thread::yield_now();
        }
        device.join().unwrap();
        let mut bitmap = [0];
        hwpt.read_dirty(range, PAGE, true, &mut bitmap).unwrap();
        for (page, copy) in copies.iter_mut().enumerate() {
            let now = buffers[page].0[0].load(Ordering::Relaxed);
            assert!(*copy == now || bitmap[0] >> page & 1 == 1, "page {page} was written and not noted");
        }
    });
}
