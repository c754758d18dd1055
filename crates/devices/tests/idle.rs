//! What an idle device costs. Alone in its binary, as it counts the process's threads.

mod common;

use common::*;
use ioasid_devices::ioat::spec::descriptor::Control;
use ioasid_devices::ioat::spec::registers::State;

/// The scheduler states of the workers of this process.
fn workers() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten();
    tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok())
        .filter_map(|stat| stat.split_once("(ioat) ").map(|(_, rest)| rest[..1].to_owned()))
        .collect()
}

#[test]
fn the_worker_starts_with_the_first_doorbell_sleeps_when_idle_and_ends_with_the_device() {
    let bench = Bench::armed(RAM);
    bench.put(RAM, copy(RAM, RAM + 4096, 64, Control::empty(), RAM));
    assert!(workers().is_empty());
    bench.w16(DMACOUNT, 0);
    assert!(workers().is_empty(), "nothing to do");
    bench.w16(DMACOUNT, 1);
    bench.wait_for(State::Done);
    wait_until("the worker sleeps", || workers() == ["S"]);
    drop(bench);
    wait_until("the worker is gone", || workers().is_empty());
}
