//! What happens over several commands: queues, events, doorbells, arbitration, sanitize, fused commands.
#![allow(clippy::unwrap_used, reason = "only tests use it")]

use std::time::Duration;

use ioasid_devices::nvme::NvmeOptions;
use ioasid_devices::nvme::spec::command::{Command, admin, nvm};
use ioasid_devices::nvme::spec::log::page;
use ioasid_devices::nvme::spec::registers::{Register, csts};
use ioasid_devices::nvme::spec::status::Status;
use ioasid_vfio::Model;

use crate::bench::{
    Bench, CONFIGURATION, DATA, Image, LISTS, NOWHERE, PAGE, Pair, With, command, in_memory, options, pattern, read,
    status, wait_until, write,
};

const ALL: u32 = 0xFFFF_FFFF;

#[test]
fn queues_wrap_and_wait_for_room() {
    let mut bench = Bench::new();
    // A completion queue of two entries has room for one.
    let mut pair = bench.pair(1, 2);
    for _ in 0..50 {
        assert_eq!(bench.status(&mut pair, read(0, 1)), Status::SUCCESS);
    }
    let mut pair = bench.pair(2, 8);
    for round in 0..50 {
        for _ in 0..7 {
            bench.submit(&mut pair, read(0, 1));
        }
        wait_until("all are done", || {
            let at = pair.completions + u64::from((pair.head + 6) % 8) * 16 + 14;
            let phase = pair.phase ^ (pair.head + 6 >= 8);
            bench.memory.get(at, 1)[0] & 1 == u8::from(phase)
        });
        // Full: the next one waits, and is done when there is room.
        bench.submit(&mut pair, read(0, 1));
        std::thread::sleep(Duration::from_millis(u64::from(round == 0) * 20));
        for _ in 0..8 {
            assert_eq!(status(&bench.wait(&mut pair)), Status::SUCCESS);
        }
    }
}

#[test]
fn queues_in_pages_that_are_scattered_work() {
    let mut bench = Bench::new();
    let pages: Vec<u8> = [5u64, 1, 4, 2].iter().flat_map(|page| (DATA + page * 2 * PAGE).to_le_bytes()).collect();
    bench.memory.set(LISTS, &pages);
    let entries = (255 << 16) | 1;
    let pair = Pair::new(1, 256);
    bench.clear(&pair);
    bench.done(command(admin::CREATE_COMPLETION_QUEUE, 0).word(10, entries).word(11, 1).data(pair.completions, 0));
    bench.done(command(admin::CREATE_SUBMISSION_QUEUE, 0).word(10, entries).word(11, 1 << 16).data(LISTS, 0));
    let mut pair = pair;
    for index in 0..600u64 {
        let page = [5, 1, 4, 2][(pair.tail / 64) as usize];
        let at = DATA + page * 2 * PAGE + u64::from(pair.tail % 64) * 64;
        let read = command(nvm::READ, 1).long(index % 2048).data(LISTS + 0x10000, 0).id(index as u16);
        bench.memory.set(at, zerocopy::IntoBytes::as_bytes(&read));
        pair.tail = (pair.tail + 1) % 256;
        bench.ring_tail(&pair);
        let completion = bench.wait(&mut pair);
        assert_eq!((status(&completion), completion.identifier.get()), (Status::SUCCESS, index as u16));
    }
}

#[test]
fn doorbells_that_are_wrong_are_events() {
    let mut bench = Bench::new();
    let mut admin = std::mem::replace(&mut bench.admin, Pair::new(0, 32));
    bench.submit(&mut admin, command(admin::ASYNC_EVENT_REQUEST, 0));
    // Of a queue that there is not.
    bench.w32(0x1000 + 9 * 8, 1);
    let event = bench.wait(&mut admin);
    assert_eq!((status(&event), event.result.get()), (Status::SUCCESS, 1 << 16));
    let log = |bench: &mut Bench, admin: &mut Pair, number: u8| {
        let word = u32::from(number) | 15 << 16;
        let log = command(admin::GET_LOG_PAGE, ALL).word(10, word).data(DATA, 0);
        assert_eq!(bench.status(admin, log), Status::SUCCESS);
    };
    let mut pair = {
        std::mem::swap(&mut bench.admin, &mut admin);
        let pair = bench.pair(1, 16);
        std::mem::swap(&mut bench.admin, &mut admin);
        pair
    };
    // Of the same type: it waits until the page is read, and until there is a request.
    bench.w32(0x1008, 16);
    bench.submit(&mut admin, command(admin::ASYNC_EVENT_REQUEST, 0));
    std::thread::sleep(Duration::from_millis(20));
    assert!(bench.poll(&mut admin).is_none());
    log(&mut bench, &mut admin, page::ERRORS);
    let event = admin.early.pop().unwrap_or_else(|| bench.wait(&mut admin));
    assert_eq!(event.result.get(), 1 << 16 | 1 << 8, "a value that is no place");
    // A head beyond what was written.
    bench.submit(&mut admin, command(admin::ASYNC_EVENT_REQUEST, 0));
    log(&mut bench, &mut admin, page::ERRORS);
    bench.w32(0x100C, 5);
    bench.submit(&mut pair, read(0, 1));
    let event = admin.early.pop().unwrap_or_else(|| bench.wait(&mut admin));
    assert_eq!(event.result.get(), 1 << 16 | 1 << 8);
    assert_eq!(status(&bench.wait(&mut pair)), Status::SUCCESS, "the queue goes on");
    // Strange accesses of doorbells do nothing.
    for length in [1, 2, 3, 16, 64] {
        bench.device.write(0, 0x1008, &vec![0xFF; length]);
        bench.device.write(0, 0x1009, &vec![0xFF; length]);
    }
    assert_eq!(bench.status(&mut pair, read(0, 1)), Status::SUCCESS);
}

#[test]
fn events_are_told_as_the_host_wants_them() {
    let mut bench = Bench::new();
    let mut admin = std::mem::replace(&mut bench.admin, Pair::new(0, 32));
    let feature = |value| command(admin::SET_FEATURES, 0).word(10, 0x0B).word(11, value);
    let hot = command(admin::SET_FEATURES, 0).word(10, 4).word(11, 300);
    // Four requests, and not five.
    for _ in 0..4 {
        bench.submit(&mut admin, command(admin::ASYNC_EVENT_REQUEST, 0));
    }
    let fifth = bench.status(&mut admin, command(admin::ASYNC_EVENT_REQUEST, 0));
    assert_eq!(fifth.code(), Status::ASYNC_EVENT_LIMIT_EXCEEDED.code());
    // The temperature: not wanted, and then wanted.
    assert_eq!(bench.status(&mut admin, hot), Status::SUCCESS);
    assert_eq!(bench.status(&mut admin, feature(0x102)), Status::SUCCESS);
    assert!(bench.poll(&mut admin).is_none());
    assert_eq!(bench.status(&mut admin, hot), Status::SUCCESS);
    let event = admin.early.pop().unwrap_or_else(|| bench.wait(&mut admin));
    assert_eq!(event.result.get(), 2 << 16 | 1 << 8 | 1);
    // Namespaces change.
    let format = command(admin::FORMAT_NVM, 1).word(10, 1);
    assert_eq!(bench.status(&mut admin, format), Status::SUCCESS);
    let event = admin.early.pop().unwrap_or_else(|| bench.wait(&mut admin));
    assert_eq!(event.result.get(), 4 << 16 | 2);
    let log = command(admin::GET_LOG_PAGE, ALL).word(10, 4 | 1 << 16).data(DATA, 0);
    assert_eq!(bench.status(&mut admin, log), Status::SUCCESS);
    assert_eq!(bench.memory.get(DATA, 8), [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bench.status(&mut admin, log), Status::SUCCESS);
    assert_eq!(bench.memory.get(DATA, 8), [0; 8], "it was read");
    // A request is aborted.
    let abort = command(admin::ABORT, 0).word(10, u32::from(3u16) << 16);
    let answer = bench.run(&mut admin, abort);
    assert_eq!((status(&answer), answer.result.get()), (Status::SUCCESS, 0));
    let aborted = bench.wait_for(&mut admin, 3);
    assert_eq!(status(&aborted).code(), Status::ABORT_REQUESTED.code());
}

#[test]
fn a_sanitize_operation_erases_all_and_says_when() {
    let image = Image::new("sanitize");
    for namespace in [in_memory(8 << 20, 9), image.namespace(8 << 20, 9)] {
        let mut bench = Bench::of(&[namespace]);
        let mut pair = bench.pair(1, 16);
        bench.memory.set(DATA, &[0xEE; 4096]);
        assert_eq!(bench.status(&mut pair, write(8000, 8)), Status::SUCCESS);
        assert_eq!(
            bench.status(&mut pair, Command { opcode: nvm::WRITE_UNCORRECTABLE, ..write(1, 1) }),
            Status::SUCCESS
        );
        let mut admin = std::mem::replace(&mut bench.admin, Pair::new(0, 32));
        bench.submit(&mut admin, command(admin::ASYNC_EVENT_REQUEST, 0));
        // Twice, inverted: so the pattern is what was inverted.
        let overwrite = command(admin::SANITIZE, 0).word(10, 3 | 2 << 4 | 1 << 8).word(11, 0x0102_0304);
        assert_eq!(bench.status(&mut admin, overwrite), Status::SUCCESS);
        let event = admin.early.pop().unwrap_or_else(|| bench.wait(&mut admin));
        assert_eq!(event.result.get(), 0x81 << 16 | 1 << 8 | 6);
        let log = command(admin::GET_LOG_PAGE, ALL).word(10, 0x81 | 1 << 16).data(DATA, 0);
        assert_eq!(bench.status(&mut admin, log), Status::SUCCESS);
        assert_eq!(bench.memory.get(DATA, 4), [0xFF, 0xFF, 1, 0]);
        for first in [0, 1, 8000, 16383] {
            assert_eq!(bench.status(&mut pair, read(first, 1)), Status::SUCCESS);
            assert_eq!(bench.memory.get(DATA, 4), [0xFB, 0xFC, 0xFD, 0xFE]);
        }
        assert_eq!(bench.status(&mut admin, command(admin::SANITIZE, 0).word(10, 2)), Status::SUCCESS);
        wait_until("the blocks are erased", || bench.status(&mut pair, read(0, 1)) == Status::SUCCESS);
        assert_eq!(bench.memory.get(DATA, 4), [0; 4]);
    }
}

#[test]
fn two_fused_commands_are_one() {
    let image = Image::new("fused");
    for namespace in [in_memory(1 << 20, 9), image.namespace(1 << 20, 9)] {
        let mut bench = Bench::of(&[namespace]);
        let mut pair = bench.pair(1, 16);
        let (old, new) = (vec![0; 512], pattern(512, 9));
        bench.memory.set(DATA, &old);
        bench.memory.set(DATA + PAGE, &new);
        let compare = |first| Command { opcode: nvm::COMPARE, flags: 1, ..read(first, 1) };
        let exchange = |first| Command { opcode: nvm::WRITE, flags: 2, ..read(first, 1).data(DATA + PAGE, 0) };
        let run = |bench: &mut Bench, pair: &mut Pair, one: Command, two: Command| {
            let (one, two) = (bench.submit(pair, one), bench.submit(pair, two));
            [one, two].map(|id| status(&bench.wait_for(pair, id)).code())
        };
        let codes = |statuses: [Status; 2]| statuses.map(Status::code);
        assert_eq!(run(&mut bench, &mut pair, compare(3), exchange(3)), [0, 0]);
        // Now it is another.
        let failed = codes([Status::COMPARE_FAILURE, Status::ABORTED_FUSED_FAILED]);
        bench.memory.set(DATA + PAGE, &[1; 512]);
        assert_eq!(run(&mut bench, &mut pair, compare(3), exchange(3)), failed);
        assert_eq!(bench.status(&mut pair, read(3, 1)), Status::SUCCESS);
        assert_eq!(bench.memory.get(DATA, 512), new);
        let invalid = codes([Status::INVALID_FIELD; 2]);
        assert_eq!(run(&mut bench, &mut pair, compare(3), exchange(4)), invalid, "other blocks");
        let second = Command { opcode: nvm::READ, ..exchange(3) };
        let not_a_write = codes([Status::ABORTED_FUSED_FAILED, Status::INVALID_FIELD]);
        assert_eq!(run(&mut bench, &mut pair, compare(3), second), not_a_write);
        // A first without its second.
        let one = bench.submit(&mut pair, compare(3));
        assert_eq!(bench.status(&mut pair, read(0, 1)), Status::SUCCESS);
        assert_eq!(status(&bench.wait_for(&mut pair, one)).code(), Status::ABORTED_FUSED_MISSING.code());
        let beyond = codes([Status::LBA_OUT_OF_RANGE, Status::ABORTED_FUSED_FAILED]);
        assert_eq!(run(&mut bench, &mut pair, compare(2048), exchange(2048)), beyond);
        let nowhere = codes([Status::DATA_TRANSFER_ERROR, Status::ABORTED_FUSED_FAILED]);
        assert_eq!(run(&mut bench, &mut pair, compare(3).data(NOWHERE, 0), exchange(3)), nowhere);
        // A first that waits can be aborted.
        let id = bench.submit(&mut pair, compare(3));
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(bench.done(command(admin::ABORT, 0).word(10, u32::from(id) << 16 | 1)), 0);
        assert_eq!(status(&bench.wait_for(&mut pair, id)).code(), Status::ABORT_REQUESTED.code());
    }
}

#[test]
fn an_identifier_is_one_commands_at_a_time() {
    let image = Image::new("conflict");
    let mut bench = Bench::of(&[image.namespace(1 << 20, 9)]);
    let mut pair = bench.pair(1, 64);
    // Both at once, so that the first is under way when the second is looked at.
    for _ in 0..2 {
        bench.put(&mut pair, read(0, 1).id(7));
    }
    bench.ring_tail(&pair);
    let mut codes = [(); 2].map(|()| status(&bench.wait(&mut pair)).code());
    codes.sort_unstable();
    assert_eq!(codes, [0, Status::COMMAND_ID_CONFLICT.code()]);
    bench.submit_as(&mut pair, read(0, 1).id(7));
    assert_eq!(status(&bench.wait(&mut pair)), Status::SUCCESS);
}

#[test]
fn doorbells_in_the_hosts_memory_are_seen() {
    let mut bench = Bench::new();
    let (doorbells, events) = (LISTS, LISTS + PAGE);
    let mut before = bench.pair(1, 16);
    for _ in 0..3 {
        assert_eq!(bench.status(&mut before, read(0, 1)), Status::SUCCESS);
    }
    bench.done(command(admin::DOORBELL_BUFFER_CONFIG, 0).data(doorbells, events));
    assert_eq!(bench.memory.get_u32(doorbells + 8), 3, "it goes on from where it is");
    before.shadow = Some((doorbells, events));
    let mut after = bench.pair(2, 16);
    after.shadow = Some((doorbells, events));
    for round in 0..300 {
        for pair in [&mut before, &mut after] {
            for _ in 0..round % 7 + 1 {
                bench.submit(pair, read(0, 1));
            }
            for _ in 0..round % 7 + 1 {
                assert_eq!(status(&bench.wait(pair)), Status::SUCCESS);
            }
        }
        if round % 50 == 0 {
            // It sleeps by now: the event index says what it wants to be told.
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    // Doorbells that cannot be read any more.
    bench.done(command(admin::DELETE_SUBMISSION_QUEUE, 0).word(10, 1));
    bench.done(command(admin::DELETE_SUBMISSION_QUEUE, 0).word(10, 2));
    bench.disable();
    bench.enable(CONFIGURATION);
    let mut pair = bench.pair(1, 16);
    assert_eq!(bench.status(&mut pair, read(0, 1)), Status::SUCCESS, "they are registers again");
}

#[test]
fn doorbells_can_be_memory() {
    let mut bench = Bench::with(&NvmeOptions { doorbells_in_memory: true, ..options() });
    let pages = bench.device.memory();
    assert_eq!((pages[0].bar, pages[0].offset, pages[0].memory.length()), (0, 0x1000, 4096));
    let memory = pages[0].memory.clone();
    bench.start(CONFIGURATION);
    wait_until("it is ready", || bench.csts() & csts::RDY != 0);
    let ring = |offset: u64, value: u32| memory.write(offset, &value.to_le_bytes());
    let mut admin = Pair::new(0, 32);
    for round in 1..100 {
        bench.put(&mut admin, command(admin::KEEP_ALIVE, 0));
        ring(0, admin.tail);
        wait_until("it is done", || bench.look(&admin).is_some());
        bench.take(&mut admin);
        ring(4, admin.head);
        if round % 25 == 0 {
            std::thread::sleep(Duration::from_millis(40));
        }
    }
    // Beyond the queue.
    ring(0, 99);
    std::thread::sleep(Duration::from_millis(20));
    ring(0, admin.tail);
    bench.put(&mut admin, command(admin::KEEP_ALIVE, 0));
    ring(0, admin.tail);
    wait_until("it is done", || bench.look(&admin).is_some());
}

/// Four submission queues with one completion queue that is full, and what comes of them as it is emptied: by queue.
fn in_order(configuration: u32, arbitration: u32, priorities: [u32; 4]) -> Vec<u16> {
    let mut bench = Bench::with(&options());
    bench.enable(configuration);
    bench.set_feature(1, arbitration);
    // Room for two.
    let mut all = bench.pair(1, 3);
    bench.done(command(admin::DELETE_SUBMISSION_QUEUE, 0).word(10, 1));
    let mut pairs: Vec<Pair> = (1..=4).map(|id| Pair::new(id, 64)).collect();
    for (pair, priority) in pairs.iter().zip(priorities) {
        let create = command(admin::CREATE_SUBMISSION_QUEUE, 0).word(10, 63 << 16 | u32::from(pair.id));
        bench.done(create.word(11, 1 << 16 | priority << 1 | 1).data(pair.submissions, 0));
    }
    for _ in 0..2 {
        bench.submit(&mut pairs[0], read(0, 1));
    }
    wait_until("the completion queue is full", || bench.memory.get(all.completions + 30, 1)[0] & 1 == 1);
    for pair in &mut pairs {
        for _ in 0..24 {
            bench.put(pair, read(0, 1));
        }
        bench.ring_tail(pair);
    }
    // A round that has begun may have missed the last doorbells.
    std::thread::sleep(Duration::from_millis(50));
    bench.wait(&mut all);
    bench.wait(&mut all);
    (0..96).map(|_| bench.wait(&mut all).queue.get()).collect()
}

#[test]
fn queues_are_served_in_turn() {
    // Four commands of a queue at once.
    let order = in_order(CONFIGURATION, 2, [0; 4]);
    let counts = |part: &[u16]| [1, 2, 3, 4].map(|id| part.iter().filter(|queue| **queue == id).count());
    for round in order.chunks(16) {
        assert!(counts(round).iter().all(|count| (3..=5).contains(count)), "{order:?}");
    }
    assert!(order.chunks(4).filter(|part| part.iter().all(|id| *id == part[0])).count() > 12, "{order:?}");
}

#[test]
fn urgent_queues_come_first_and_the_others_by_weight() {
    // Low 1, medium 2, high 4.
    let order = in_order(CONFIGURATION | 1 << 11, 3 << 24 | 1 << 16 | 7, [3, 2, 1, 0]);
    assert!(order[..24].iter().all(|queue| *queue == 4), "{order:?}");
    let first: Vec<u16> = order[24..24 + 28].to_vec();
    let counts = [1, 2, 3].map(|id| first.iter().filter(|queue| **queue == id).count());
    assert!(
        (3..=5).contains(&counts[0]) && (7..=9).contains(&counts[1]) && (15..=17).contains(&counts[2]),
        "{counts:?}"
    );
}

#[test]
fn keep_alive_is_kept() {
    let mut bench = Bench::new();
    bench.set_feature(0x0F, 100);
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(bench.admin_status(command(admin::KEEP_ALIVE, 0)), Status::SUCCESS);
    }
    wait_until("it has failed", || bench.csts() & csts::CFS != 0);
    bench.disable();
    bench.enable(CONFIGURATION);
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!(bench.admin_status(command(admin::KEEP_ALIVE, 0)), Status::SUCCESS, "there is none by default");
}

/// Whether the thread of a controller does not run for a tenth of a second: of the only one in this process,
/// as [`alone`] sees to.
fn sleeps() -> bool {
    let of = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let stat = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
        tasks.filter(|task| of(task.join("comm")).trim() == "nvme").map(|task| of(task.join("schedstat"))).collect()
    };
    let before: Vec<String> = stat();
    std::thread::sleep(Duration::from_millis(100));
    !before.is_empty() && before == stat()
}

/// Runs a test of this file again, in a process where it is the only one.
fn alone(name: &str, test: impl FnOnce()) {
    if std::env::var_os("IOASID_NVME_ALONE").is_some() {
        return test();
    }
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    let again = again.args(["--exact", &format!("behavior::{name}")]).env("IOASID_NVME_ALONE", "1").output().unwrap();
    let text = String::from_utf8_lossy(&again.stdout);
    assert!(again.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn an_idle_controller_uses_no_processor() {
    alone("an_idle_controller_uses_no_processor", || {
        let mut bench = Bench::new();
        let mut pair = bench.pair(1, 16);
        assert_eq!(bench.status(&mut pair, read(0, 1)), Status::SUCCESS);
        wait_until("it sleeps", sleeps);
        assert_eq!(bench.status(&mut pair, read(0, 1)), Status::SUCCESS, "it wakes");
        // No worker serves the doorbells of a controller that is shut down, or of one that is disabled.
        bench.set(Register::Configuration, (CONFIGURATION | 1 << 14).into());
        wait_until("it is shut down", || bench.csts() & csts::SHUTDOWN == csts::SHUTDOWN_DONE);
        bench.submit(&mut pair, read(0, 1));
        bench.w32(0x1000 + 9 * 8, 1);
        wait_until("it sleeps when it is shut down", sleeps);
        bench.disable();
        bench.w32(0x1008, 3);
        wait_until("it sleeps when it is disabled", sleeps);
        bench.enable(CONFIGURATION);
        let mut pair = bench.pair(1, 16);
        assert_eq!(bench.status(&mut pair, read(0, 1)), Status::SUCCESS);
    });
}

#[test]
fn deleting_a_queue_ends_what_is_under_way() {
    let image = Image::new("deleting");
    let mut bench = Bench::of(&[image.namespace(16 << 20, 9)]);
    for _ in 0..20 {
        let mut pair = bench.pair(1, 64);
        for index in 0..60 {
            bench.put(&mut pair, write(index * 8, 8));
        }
        bench.ring_tail(&pair);
        bench.done(command(admin::DELETE_SUBMISSION_QUEUE, 0).word(10, 1));
        let mut done = 0;
        while bench.poll(&mut pair).is_some() {
            done += 1;
        }
        std::thread::sleep(Duration::from_millis(2));
        assert!(bench.poll(&mut pair).is_none(), "nothing comes after {done}");
        bench.done(command(admin::DELETE_COMPLETION_QUEUE, 0).word(10, 1));
    }
}

#[test]
fn fused_commands_wait_for_a_sanitize_operation_as_others_do() {
    let mut bench = Bench::of(&[in_memory(1 << 30, 9)]);
    let mut pair = bench.pair(1, 16);
    assert_eq!(bench.admin_status(command(admin::SANITIZE, 0).word(10, 3 | 15 << 4)), Status::SUCCESS);
    let compare = Command { opcode: nvm::COMPARE, flags: 1, ..read(3, 1) };
    let write = Command { opcode: nvm::WRITE, flags: 2, ..read(3, 1) };
    let ids = [compare, write].map(|command| bench.submit(&mut pair, command));
    let codes = ids.map(|id| status(&bench.wait_for(&mut pair, id)).code());
    assert_eq!(codes, [Status::SANITIZE_IN_PROGRESS.code(); 2]);
}

#[test]
fn a_first_command_is_completed_when_the_second_is_a_conflict() {
    let mut bench = Bench::new();
    let mut pair = bench.pair(1, 16);
    bench.submit_as(&mut pair, Command { opcode: nvm::COMPARE, flags: 1, ..read(3, 1) }.id(5));
    bench.submit_as(&mut pair, Command { opcode: nvm::WRITE, flags: 2, ..read(3, 1) }.id(5));
    let mut codes = [(); 2].map(|()| status(&bench.wait(&mut pair)).code());
    codes.sort_unstable();
    let mut wanted = [Status::ABORTED_FUSED_MISSING, Status::COMMAND_ID_CONFLICT].map(Status::code);
    wanted.sort_unstable();
    assert_eq!(codes, wanted);
}

#[test]
fn there_are_as_many_namespaces_as_there_are_identifiers() {
    let mut bench = Bench::of(&[in_memory(1 << 20, 9)]);
    bench.done(command(admin::NAMESPACE_MANAGEMENT, 1).word(10, 1));
    let mut wanted = vec![0; 4096];
    (wanted[0], wanted[8]) = (8, 8);
    bench.memory.set(DATA, &wanted);
    let create = command(admin::NAMESPACE_MANAGEMENT, 0).data(DATA, 0);
    for id in 1..=32 {
        assert_eq!(bench.done(create), id);
    }
    assert_eq!(bench.admin_status(create).code(), Status::NAMESPACE_IDENTIFIER_UNAVAILABLE.code());
    bench.done(command(admin::NAMESPACE_MANAGEMENT, 7).word(10, 1));
    assert_eq!(bench.done(create), 7);
}

#[test]
fn so_many_hosts_can_register_and_no_more() {
    let mut bench = Bench::new();
    let mut pair = bench.pair(1, 16);
    for host in 0..=64u8 {
        bench.memory.set(DATA, &[host; 16]);
        bench.done(command(admin::SET_FEATURES, 0).word(10, 0x81).word(11, 1).data(DATA, 0));
        bench.memory.set(DATA, &[0; 16]);
        let register = command(nvm::RESERVATION_REGISTER, 1).data(DATA, 0);
        let expected = if host == 64 { Status::INTERNAL_ERROR.code() } else { 0 };
        assert_eq!(bench.status(&mut pair, register).code(), expected, "{host}");
    }
    // All of them are in the report, as far as it is asked for.
    let report = command(nvm::RESERVATION_REPORT, 1).word(10, 31).word(11, 1).data(DATA, 0);
    assert_eq!(bench.status(&mut pair, report), Status::SUCCESS);
    assert_eq!(bench.memory.get(DATA + 5, 2), [64, 0]);
}
