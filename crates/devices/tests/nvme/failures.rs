//! Failures, to order and of images, and removal.
#![allow(clippy::unwrap_used, reason = "only tests use it")]

use std::time::Duration;

use ioasid_devices::nvme::spec::command::{Command, admin, nvm};
use ioasid_devices::nvme::spec::log::page;
use ioasid_devices::nvme::spec::registers::Register;
use ioasid_devices::nvme::spec::status::Status;
use ioasid_devices::nvme::{Backing, NamespaceOptions, NvmeOptions};
use ioasid_vfio::Model;

use crate::bench::{
    Bench, CONFIGURATION, DATA, Image, With, command, in_memory, options, read, status, wait_until, write,
};

fn failing(failures: &[&str]) -> Bench {
    let failures = failures.iter().map(|text| text.parse().expect("a failure")).collect();
    let mut bench = Bench::with(&NvmeOptions { failures, ..options() });
    bench.enable(CONFIGURATION);
    bench
}

#[test]
fn failures_happen_to_the_nth_of_a_kind() {
    let mut bench = failing(&["read:2:0x281", "write:1:0x280", "identify:2:6"]);
    let mut pair = bench.pair(1, 16);
    bench.memory.set(DATA, &[3; 512]);
    let codes =
        [read(0, 1), write(0, 1), read(0, 1), read(0, 1), write(0, 1)].map(|c| bench.status(&mut pair, c).code());
    assert_eq!(codes, [0, 0x280, 0x281, 0, 0]);
    let identify = command(admin::IDENTIFY, 0).word(10, 1).data(DATA, 0);
    assert_eq!([(); 3].map(|()| bench.admin_status(identify).code()), [0, 6, 0]);
    let log = bench.log(page::ERRORS, 64);
    assert_eq!(log[12..14], ((Status(6).with_more().0) << 1).to_le_bytes());
    assert_eq!(u64::from_le_bytes(bench.log(page::HEALTH, 512)[160..168].try_into().unwrap()), 2, "errors of media");
}

#[test]
fn a_command_that_times_out_is_aborted_or_reset() {
    let mut bench = failing(&["read:1:timeout", "write:2:timeout"]);
    let mut pair = bench.pair(1, 3);
    let lost = bench.submit(&mut pair, read(0, 1));
    std::thread::sleep(Duration::from_millis(10));
    assert!(bench.poll(&mut pair).is_none());
    // Others go on meanwhile.
    assert_eq!(bench.status(&mut pair, write(0, 1)), Status::SUCCESS);
    assert_eq!(bench.status(&mut pair, read(0, 1)), Status::SUCCESS);
    assert_eq!(bench.done(command(admin::ABORT, 0).word(10, u32::from(lost) << 16 | 1)), 0);
    assert_eq!(status(&bench.wait_for(&mut pair, lost)).code(), Status::ABORT_REQUESTED.code());
    bench.submit(&mut pair, write(0, 1));
    bench.disable();
    bench.enable(CONFIGURATION);
    let mut pair = bench.pair(1, 16);
    assert_eq!(bench.status(&mut pair, read(0, 1)), Status::SUCCESS);
}

#[test]
fn completions_come_late_or_twice() {
    let mut bench = failing(&["read:1:late", "read:3:twice"]);
    let mut pair = bench.pair(1, 16);
    let late = bench.submit(&mut pair, read(0, 1));
    std::thread::sleep(Duration::from_millis(10));
    assert!(bench.poll(&mut pair).is_none());
    let next = bench.submit(&mut pair, read(0, 1));
    assert_eq!([(); 2].map(|()| bench.wait(&mut pair).identifier.get()), [next, late]);
    let twice = bench.submit(&mut pair, read(0, 1));
    assert_eq!([(); 2].map(|()| bench.wait(&mut pair).identifier.get()), [twice, twice]);
}

#[test]
fn a_controller_that_is_removed_is_gone() {
    for how in ["by a command", "by hand"] {
        let failures = if how == "by a command" { &["read:5:remove"][..] } else { &[] };
        let mut bench = failing(failures);
        let mut pair = bench.pair(1, 16);
        for _ in 0..4 {
            assert_eq!(bench.status(&mut pair, read(0, 1)), Status::SUCCESS);
        }
        if how == "by hand" {
            bench.device.remove();
        }
        bench.submit(&mut pair, read(0, 1));
        wait_until("it is gone", || bench.csts() == 0xFFFF_FFFF);
        std::thread::sleep(Duration::from_millis(10));
        assert!(bench.poll(&mut pair).is_none(), "{how}");
        bench.set(Register::Configuration, 0);
        bench.set(Register::Configuration, CONFIGURATION.into());
        assert_eq!(bench.reg(Register::Capabilities), u64::MAX);
        bench.device.reset();
        assert_eq!(bench.csts(), 0xFFFF_FFFF);
    }
}

#[test]
fn an_image_that_is_cut_off_is_a_media_error_and_the_rest_goes_on() {
    let image = Image::new("cut");
    let mut bench = Bench::of(&[image.namespace(1 << 20, 9), in_memory(1 << 20, 9)]);
    let mut pair = bench.pair(1, 16);
    assert_eq!(bench.status(&mut pair, read(1024, 8)), Status::SUCCESS);
    std::fs::File::options().write(true).open(&image.0).unwrap().set_len(4096).unwrap();
    assert_eq!(bench.status(&mut pair, read(1024, 8)).code(), Status::UNRECOVERED_READ_ERROR.code());
    assert_eq!(bench.status(&mut pair, read(4, 8)).code(), Status::UNRECOVERED_READ_ERROR.code());
    assert_eq!(bench.status(&mut pair, read(0, 8)), Status::SUCCESS);
    let compare = Command { opcode: nvm::COMPARE, ..read(1024, 8) };
    assert_eq!(bench.status(&mut pair, compare).code(), Status::UNRECOVERED_READ_ERROR.code());
    let verify = Command { opcode: nvm::VERIFY, ..read(1024, 8) };
    assert_eq!(bench.status(&mut pair, verify).code(), Status::UNRECOVERED_READ_ERROR.code());
    assert_eq!(bench.status(&mut pair, Command { namespace: 2.into(), ..read(1024, 8) }), Status::SUCCESS);
    assert_eq!(bench.status(&mut pair, write(1024, 8)), Status::SUCCESS, "a file grows");
    assert_eq!(bench.status(&mut pair, read(1024, 8)), Status::SUCCESS);
}

#[test]
fn nothing_goes_on_after_a_removal() {
    let image = Image::new("removal");
    for namespace in [in_memory(1 << 20, 9), image.namespace(1 << 20, 9)] {
        for _ in 0..50 {
            let options = NvmeOptions { namespaces: vec![namespace.clone()], ..NvmeOptions::default() };
            let mut bench = Bench::with(&options);
            bench.enable(CONFIGURATION);
            let mut pair = bench.pair(1, 64);
            for _ in 0..60 {
                bench.put(&mut pair, read(0, 8));
            }
            bench.ring_tail(&pair);
            bench.device.remove();
            let seen = (bench.memory.get(pair.completions, 1024), bench.sink.all_messages());
            std::thread::sleep(Duration::from_millis(1));
            assert!(seen == (bench.memory.get(pair.completions, 1024), bench.sink.all_messages()));
            assert!(!bench.sink.line());
        }
    }
}

#[test]
fn only_so_many_blocks_are_uncorrectable_at_once() {
    let mut bench = Bench::of(&[in_memory(1 << 30, 9)]);
    let mut pair = bench.pair(1, 16);
    let mark = |first: u64| command(nvm::WRITE_UNCORRECTABLE, 1).long(first).word(12, 0xFFFF);
    assert_eq!(bench.status(&mut pair, mark(0)), Status::SUCCESS);
    assert_eq!(bench.status(&mut pair, mark(1 << 16)), Status::SUCCESS);
    assert_eq!(bench.status(&mut pair, mark(1 << 17)).code(), Status::CAPACITY_EXCEEDED.code());
    let zeroes = command(nvm::WRITE_ZEROES, 1).long(0).word(12, 0xFFFF);
    assert_eq!(bench.status(&mut pair, zeroes), Status::SUCCESS);
    assert_eq!(bench.status(&mut pair, mark(1 << 17)), Status::SUCCESS);
}

/// An image in memory that can be made unwritable while it is used.
fn sealable() -> (std::os::fd::OwnedFd, NamespaceOptions) {
    let file = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::ALLOW_SEALING).expect("a file");
    rustix::fs::ftruncate(&file, 1 << 20).expect("its length");
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let backing = Backing::Image { path: path.into(), size: None };
    (file, NamespaceOptions { backing, block_shift: 9, readonly: false, protection: 0 })
}

#[test]
fn no_lost_write_is_reported_as_done() {
    for protection in [0, 1] {
        let (file, namespace) = sealable();
        let mut bench = Bench::of(&[NamespaceOptions { protection, ..namespace }, in_memory(1 << 20, 9)]);
        let mut pair = bench.pair(1, 16);
        let info = if protection > 0 { 1 << 29 } else { 0 };
        let on = |code: u8| {
            let command = Command { opcode: code, ..write(0, 8) };
            command.word(12, 7 | info)
        };
        assert_eq!(bench.status(&mut pair, on(nvm::WRITE)), Status::SUCCESS);
        rustix::fs::fcntl_add_seals(&file, rustix::fs::SealFlags::WRITE).unwrap();
        let fault = Status::WRITE_FAULT.code();
        assert_eq!(bench.status(&mut pair, on(nvm::WRITE)).code(), fault);
        assert_eq!(bench.status(&mut pair, on(nvm::WRITE_ZEROES)).code(), fault);
        assert_eq!(bench.status(&mut pair, on(nvm::READ)), Status::SUCCESS);
        let mut source = vec![0; 32];
        source[8] = 3;
        bench.memory.set(DATA, &source);
        let copy = command(nvm::COPY, 1).long(100).data(DATA, 0);
        assert_eq!(bench.status(&mut pair, copy).code(), fault);
        bench.memory.set(DATA, &[[0; 4], 1u32.to_le_bytes(), [0; 4], [0; 4]].concat());
        let discard = command(nvm::DATASET_MANAGEMENT, 1).word(11, 4).data(DATA, 0);
        assert_eq!(bench.status(&mut pair, discard).code(), fault);
        let ids = [(nvm::COMPARE, 1), (nvm::WRITE, 2)].map(|(code, flags)| {
            bench.memory.set(DATA, &[0; 4096]);
            let command = Command { opcode: code, flags, ..write(900, 1).word(12, info) };
            bench.submit(&mut pair, command)
        });
        assert_eq!(ids.map(|id| status(&bench.wait_for(&mut pair, id)).code()), [0, fault]);
        assert_eq!(bench.admin_status(command(admin::FORMAT_NVM, 1).word(10, 2 * u32::from(protection))).code(), fault);
        assert_eq!(bench.status(&mut pair, Command { namespace: 2.into(), ..write(0, 8) }), Status::SUCCESS);
        let log = bench.log(page::HEALTH, 512);
        assert!(log[160] > 0, "errors of media");
    }
}

#[test]
fn after_a_sanitize_operation_that_failed_nothing_is_done_until_one_succeeds() {
    let (file, namespace) = sealable();
    let mut bench = Bench::of(&[namespace]);
    let mut pair = bench.pair(1, 16);
    rustix::fs::fcntl_add_seals(&file, rustix::fs::SealFlags::WRITE).unwrap();
    let failed = Status::SANITIZE_FAILED.code();
    for (flags, left) in [(0, failed), (1 << 3, 0)] {
        assert_eq!(bench.admin_status(command(admin::SANITIZE, 0).word(10, 2 | flags)), Status::SUCCESS);
        wait_until("it has failed", || bench.status(&mut pair, read(0, 1)).code() == failed);
        assert_eq!(bench.admin_status(command(admin::FORMAT_NVM, 1)).code(), failed);
        assert_eq!(bench.log(0x81, 8)[2], 3);
        // The failure may be left if that was allowed.
        assert_eq!(bench.admin_status(command(admin::SANITIZE, 0).word(10, 1)).code(), left);
    }
    assert_eq!(bench.status(&mut pair, read(0, 1)), Status::SUCCESS);
}
