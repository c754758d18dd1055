use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, poll};

use super::*;

/// An image in a place of its own.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("ioasid-{name}-{}", std::process::id())))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Both engines do the same.
fn with_each(name: &str, test: impl Fn(&mut dyn Engine, Arc<Image>)) {
    for kind in ["uring", "threads"] {
        let place = Place::new(&format!("{name}-{kind}"));
        let image = open(&place.0, Some(1 << 20), 512, false).unwrap();
        let mut engine: Box<dyn Engine> = if kind == "uring" { engine() } else { Box::new(Threads::default()) };
        test(&mut *engine, image);
    }
}

fn job(image: &Arc<Image>, token: usize, operation: Operation, offset: u64, bytes: &[u8]) -> Job {
    let mut buffer = Buffer::default();
    buffer.resize(bytes.len());
    buffer.bytes_mut().copy_from_slice(bytes);
    Job { token, image: image.clone(), operation, offset, buffer }
}

fn wait(engine: &mut dyn Engine, count: usize) -> Vec<Done> {
    let mut done = Vec::new();
    engine.reap(&mut done);
    while done.len() < count {
        poll(&mut [PollFd::from_borrowed_fd(engine.readiness().unwrap(), PollFlags::IN)], None).unwrap();
        engine.reap(&mut done);
    }
    done.sort_by_key(|done| done.token);
    done
}

#[test]
fn what_is_written_is_read() {
    with_each("written", |engine, image| {
        // Aligned, and past the page cache; and not.
        for (offset, length) in [(8192, 4096), (512, 1536)] {
            engine.submit(job(&image, 1, Operation::Write { durable: offset == 512 }, offset, &vec![7; length]));
            assert!(wait(engine, 1)[0].result.is_ok());
            engine.submit(job(&image, 2, Operation::Read, offset, &vec![0; length]));
            let done = wait(engine, 1);
            assert!(done[0].result.is_ok() && done[0].token == 2);
            assert_eq!(done[0].buffer.bytes(), vec![7; length]);
        }
        engine.submit(job(&image, 3, Operation::Zero { length: 1024, deallocate: true }, 512, &[]));
        engine.submit(job(&image, 4, Operation::Flush, 0, &[]));
        assert!(wait(engine, 2).iter().all(|done| done.result.is_ok()));
        let mut bytes = [1; 1536];
        image.read(512, &mut bytes).unwrap();
        assert_eq!((bytes[..1024].iter().max(), bytes[1024]), (Some(&0), 7));
        assert_eq!(engine.under_way(), 0);
    });
}

#[test]
fn more_jobs_than_a_ring_has_entries_are_all_done() {
    with_each("many", |engine, image| {
        for token in 0..1000 {
            engine.submit(job(
                &image,
                token,
                Operation::Write { durable: false },
                token as u64 * 512,
                &[token as u8; 512],
            ));
        }
        let done = wait(engine, 1000);
        assert!(done.iter().enumerate().all(|(token, done)| done.token == token && done.result.is_ok()));
        for token in 0..1000 {
            let mut bytes = [0; 512];
            image.read(token * 512, &mut bytes).unwrap();
            assert_eq!(bytes, [token as u8; 512]);
        }
    });
}

#[test]
fn what_was_cut_off_is_an_error() {
    with_each("cut", |engine, image| {
        rustix::fs::ftruncate(image.cached(), 4096).unwrap();
        engine.submit(job(&image, 0, Operation::Read, 0, &[0; 4096]));
        engine.submit(job(&image, 1, Operation::Read, 2048, &[0; 4096]));
        engine.submit(job(&image, 2, Operation::Read, 8192, &[0; 4096]));
        let done = wait(engine, 3);
        assert_eq!(done.iter().map(|done| done.result.is_ok()).collect::<Vec<_>>(), [true, false, false]);
    });
}

#[test]
fn an_engine_that_is_dropped_has_done_its_jobs() {
    with_each("dropped", |engine, image| {
        for token in 0..300 {
            engine.submit(job(&image, token, Operation::Write { durable: false }, token as u64 * 512, &[9; 512]));
        }
        let _ = engine;
    });
}

#[test]
fn memory_becomes_zero_byte_by_byte() {
    let mut memory = MemoryBlocks::new(5 * 4096).unwrap();
    for (offset, length) in [(0, 5 * 4096), (512, 512), (512, 4096), (4000, 9000), (4096, 8192), (20000, 480), (3, 0)] {
        memory.slice_mut(0, 5 * 4096).fill(1);
        memory.zero(offset, length);
        for (at, byte) in (0..).zip(memory.slice(0, 5 * 4096)) {
            assert_eq!(*byte == 0, (offset..offset + length).contains(&at), "{offset} {length} {at}");
        }
    }
}
