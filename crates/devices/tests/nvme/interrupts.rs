//! Interrupts: messages and the line, masks, coalescing.
#![allow(clippy::unwrap_used, reason = "only tests use it")]

use std::time::{Duration, Instant};

use ioasid_devices::nvme::spec::command::admin;
use ioasid_devices::nvme::spec::registers::Register;
use ioasid_devices::nvme::spec::status::Status;

use crate::bench::{
    Bench, CONFIGURATION, LISTS, PAGE, Pair, QUEUES, With, command, in_memory, options, read, status, wait_until,
};

#[test]
fn each_completion_interrupts_by_its_vector() {
    let mut bench = Bench::new();
    let mut pair = bench.pair(3, 16);
    // The two that made the pair: a completion can be seen before its interrupt.
    bench.sink.wait_for_messages(0, 2);
    for count in 1..=5 {
        bench.submit(&mut pair, read(0, 1));
        bench.sink.wait_for_messages(3, count);
        assert!(bench.poll(&mut pair).is_some());
    }
    assert_eq!(bench.sink.messages(0), 2);
}

#[test]
fn a_masked_vector_does_not_interrupt_and_its_queue_goes_on() {
    let mut bench = Bench::new();
    let mut pair = bench.pair(3, 16);
    bench.set(Register::MaskSet, 1 << 3);
    assert_eq!(bench.status(&mut pair, read(0, 1)), Status::SUCCESS);
    assert_eq!(bench.sink.messages(3), 0);
    bench.set(Register::MaskClear, 1 << 3);
    assert_eq!(bench.status(&mut pair, read(0, 1)), Status::SUCCESS);
    bench.sink.wait_for_messages(3, 1);
}

#[test]
fn the_line_is_up_while_completions_wait() {
    let mut bench = Bench::with(&options());
    bench.sink.use_line();
    bench.enable(CONFIGURATION);
    let mut admin = std::mem::replace(&mut bench.admin, Pair::new(0, 2));
    for _ in 0..100 {
        bench.submit(&mut admin, command(admin::KEEP_ALIVE, 0));
        bench.submit(&mut admin, command(admin::KEEP_ALIVE, 0));
        bench.sink.wait_for_line(true);
        wait_until("the first is done", || bench.look(&admin).is_some());
        bench.take(&mut admin);
        wait_until("the second is done", || bench.look(&admin).is_some());
        bench.sink.wait_for_line(true);
        bench.set(Register::MaskSet, 1);
        bench.sink.wait_for_line(false);
        bench.set(Register::MaskClear, 1);
        bench.sink.wait_for_line(true);
        bench.take(&mut admin);
        bench.sink.wait_for_line(false);
    }
    // A vector that the line does not have.
    let with_vector = command(admin::CREATE_COMPLETION_QUEUE, 0).word(10, 15 << 16 | 1).word(11, 1 << 16 | 3);
    let answer = bench.run(&mut admin, with_vector.data(QUEUES + 0x2_0000, 0));
    assert_eq!(status(&answer).code(), Status::INVALID_INTERRUPT_VECTOR.code());
    bench.sink.wait_for_line(false);
    bench.submit(&mut admin, command(admin::KEEP_ALIVE, 0));
    bench.sink.wait_for_line(true);
    bench.disable();
    bench.sink.wait_for_line(false);
}

#[test]
fn coalesced_interrupts_come_together_and_in_time() {
    let mut bench = Bench::new();
    // Eight at a time, or after 100 ms.
    bench.set_feature(8, 1000 << 8 | 7);
    bench.set_feature(8, 250 << 8 | 7);
    let mut pair = bench.pair(2, 64);
    let start = Instant::now();
    for _ in 0..16 {
        bench.submit(&mut pair, read(0, 1));
    }
    for _ in 0..16 {
        bench.wait(&mut pair);
    }
    let took = start.elapsed();
    bench.sink.wait_for_messages(2, 1);
    // What is held back is due in 25 ms.
    std::thread::sleep(Duration::from_millis(100));
    let sent = bench.sink.messages(2);
    assert!(sent <= 2 + took.as_millis() as u64 / 25, "{sent} in {took:?}");
    let start = Instant::now();
    bench.submit(&mut pair, read(0, 1));
    bench.sink.wait_for_messages(2, sent + 1);
    assert_eq!(status(&bench.wait(&mut pair)), Status::SUCCESS);
    assert!(start.elapsed() >= Duration::from_millis(20), "{:?}", start.elapsed());
    // A vector that is left out.
    bench.set_feature(9, 1 << 16 | 2);
    for more in 2..10 {
        assert_eq!(bench.status(&mut pair, read(0, 1)), Status::SUCCESS);
        bench.sink.wait_for_messages(2, sent + more);
    }
}

#[test]
fn a_head_that_does_not_move_acknowledges_nothing() {
    let mut bench = Bench::with(&options());
    bench.sink.use_line();
    bench.enable(CONFIGURATION);
    let mut admin = std::mem::replace(&mut bench.admin, Pair::new(0, 32));
    bench.submit(&mut admin, command(admin::KEEP_ALIVE, 0));
    bench.sink.wait_for_line(true);
    bench.w32(0x1004, 0);
    std::thread::sleep(Duration::from_millis(5));
    assert!(bench.sink.line());
}

#[test]
fn coalesced_interrupts_come_in_time_beside_a_busy_queue() {
    let mut bench = Bench::of(&[in_memory(1 << 20, 9)]);
    // 256 at a time, or after 10 ms; the busy queue's vector is left out.
    bench.set_feature(8, 100 << 8 | 255);
    let (mut quiet, mut busy) = (bench.pair(1, 64), bench.pair(2, 64));
    bench.set_feature(9, 1 << 16 | 2);
    bench.submit(&mut quiet, read(0, 1));
    let start = Instant::now();
    while bench.sink.messages(1) == 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "it is never sent");
        bench.submit(&mut busy, read(0, 1));
        bench.wait(&mut busy);
    }
    // And not for what the host has taken by then, as it has unless this machine was busy with something else.
    bench.wait(&mut quiet);
    wait_until("the host is in time", || {
        let sent = bench.sink.messages(1);
        let start = Instant::now();
        assert_eq!(bench.status(&mut quiet, read(0, 1)), Status::SUCCESS);
        let is_in_time = start.elapsed() < Duration::from_millis(10);
        std::thread::sleep(Duration::from_millis(40));
        assert!(!is_in_time || bench.sink.messages(1) == sent);
        is_in_time
    });
}

#[test]
fn messages_that_were_masked_are_sent_when_they_are_not() {
    let mut bench = Bench::new();
    let mut pair = bench.pair(3, 16);
    bench.set(Register::MaskSet, 1 << 3);
    bench.submit(&mut pair, read(0, 1));
    wait_until("it is done", || bench.look(&pair).is_some());
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(bench.sink.messages(3), 0);
    bench.set(Register::MaskClear, 1 << 3);
    bench.sink.wait_for_messages(3, 1);
}

#[test]
fn while_the_line_is_up_the_host_is_asked_to_tell_of_heads_by_a_register() {
    let mut bench = Bench::with(&options());
    bench.sink.use_line();
    bench.enable(CONFIGURATION);
    let (doorbells, events) = (LISTS, LISTS + PAGE);
    let mut pair = Pair::new(1, 16);
    bench.clear(&pair);
    let entries = 15 << 16 | 1;
    bench.done(command(admin::CREATE_COMPLETION_QUEUE, 0).word(10, entries).word(11, 3).data(pair.completions, 0));
    bench.done(
        command(admin::CREATE_SUBMISSION_QUEUE, 0).word(10, entries).word(11, 1 << 16 | 1).data(pair.submissions, 0),
    );
    bench.done(command(admin::DOORBELL_BUFFER_CONFIG, 0).data(doorbells, events));
    pair.shadow = Some((doorbells, events));
    for round in 0..300 {
        for _ in 0..=round % 3 {
            bench.submit(&mut pair, read(0, 1));
        }
        for _ in 0..=round % 3 {
            wait_until("it is done", || bench.look(&pair).is_some());
            bench.sink.wait_for_line(true);
            // So this move of the head is told by a register, which takes the line down at once.
            assert_eq!(bench.memory.get_u32(events + 12), pair.head, "round {round}");
            bench.take(&mut pair);
        }
        bench.sink.wait_for_line(false);
    }
}
