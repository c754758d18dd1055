//! Registers, and what enabling, resets and shutdowns do.

use ioasid_devices::nvme::spec::command::{admin, nvm};
use ioasid_devices::nvme::spec::registers::{Register, SUBSYSTEM_RESET, VERSION, cc, cmb, csts};
use ioasid_devices::nvme::spec::status::Status;
use ioasid_devices::nvme::{Backing, ImageError, NamespaceOptions, Nvme, NvmeError, NvmeOptions};
use ioasid_vfio::Model;

use crate::bench::{
    Bench, CONFIGURATION, DATA, Image, Memory, NOWHERE, Pair, READ_ONLY, Sink, With, command, in_memory, read, status,
    wait_until, write,
};

fn off() -> Bench {
    Bench::with(&NvmeOptions { namespaces: vec![in_memory(1 << 20, 9)], ..NvmeOptions::default() })
}

#[test]
fn at_power_on_registers_have_their_values() {
    let bench = off();
    let cap = bench.reg(Register::Capabilities);
    assert_eq!(cap & 0xFFFF, 4095, "MQES");
    assert_eq!(cap >> 16 & 1, 0, "CQR: queues need not be contiguous");
    assert_eq!(cap >> 17 & 3, 1, "AMS: weighted round robin");
    assert_eq!(cap >> 32 & 15, 0, "DSTRD");
    assert_eq!(cap >> 37 & 0xFF, 1, "CSS: NVM");
    assert_eq!((cap >> 48 & 15, cap >> 52 & 15), (0, 4), "MPSMIN and MPSMAX: 4 to 64 KiB");
    assert_eq!(bench.reg(Register::Version), u64::from(VERSION));
    for register in Register::ALL {
        let info = register.info();
        if info.name != "CAP" {
            assert_eq!(bench.reg(*register), info.reset, "{}", info.name);
        }
    }
    // In halves, and byte by byte.
    assert_eq!(u64::from(bench.r32(0)) | u64::from(bench.r32(4)) << 32, cap);
    for at in 0..8 {
        let mut byte = [0];
        bench.device.read(0, at, &mut byte);
        assert_eq!(u64::from(byte[0]), cap >> (8 * at) & 0xFF);
    }
    for at in (0x6C..0x1000).step_by(4) {
        bench.w32(at, 0xFFFF_FFFF);
        assert_eq!(bench.r32(at), 0, "{at:#x} is reserved");
    }
}

#[test]
fn what_can_be_written_is_kept() {
    let bench = off();
    for (register, mask) in [
        (Register::AdminQueueAttributes, 0x0FFF_0FFF),
        (Register::AdminSubmissionQueue, !0xFFF),
        (Register::AdminCompletionQueue, !0xFFF),
        (Register::Capabilities, 0),
        (Register::Version, 0),
        (Register::CmbLocation, 0),
        (Register::CmbSize, 0),
        (Register::CmbSpace, 0),
        (Register::SubsystemReset, 0),
        (Register::Status, 0),
    ] {
        let before = bench.reg(register);
        bench.set(register, u64::MAX);
        let expected = if mask == 0 { before } else { mask };
        assert_eq!(bench.reg(register), expected, "{}", register.info().name);
    }
    bench.set(Register::MaskSet, 0x0F);
    bench.set(Register::MaskSet, 0x30);
    bench.set(Register::MaskClear, 0x11);
    assert_eq!((bench.reg(Register::MaskSet), bench.reg(Register::MaskClear)), (0x2E, 0x2E));
    // A half of a register; parts of a word are none.
    bench.w32(0x2C, 0x1234_5678);
    assert_eq!(bench.reg(Register::AdminSubmissionQueue), 0x1234_5678_FFFF_F000);
    bench.device.write(0, 0x28, &[0; 2]);
    bench.device.write(0, 0x29, &[0; 4]);
    bench.device.write(0, 0x28, &[0]);
    assert_eq!(bench.reg(Register::AdminSubmissionQueue), 0x1234_5678_FFFF_F000);
}

#[test]
fn the_admin_queues_stay_while_they_are_in_use() {
    let mut bench = Bench::new();
    let before = bench.reg(Register::AdminSubmissionQueue);
    bench.set(Register::AdminSubmissionQueue, 0x5000);
    bench.set(Register::AdminCompletionQueue, 0x5000);
    bench.set(Register::AdminQueueAttributes, 0);
    assert_eq!(bench.reg(Register::AdminSubmissionQueue), before);
    assert_eq!(bench.admin_status(command(admin::KEEP_ALIVE, 0)), Status::SUCCESS);
}

#[test]
fn what_cannot_be_enabled_is_a_fatal_status_until_it_is_disabled() {
    for configuration in [
        // A command set that is none; pages of 128 KiB; arbitration of a vendor.
        CONFIGURATION | 1 << 4,
        CONFIGURATION | 6 << 4,
        CONFIGURATION | 5 << 7,
        CONFIGURATION | 15 << 7,
        CONFIGURATION | 2 << 11,
        CONFIGURATION | 7 << 11,
    ] {
        let mut bench = off();
        bench.start(configuration);
        wait_until("it has failed", || bench.csts() & csts::CFS != 0);
        assert_eq!(bench.csts() & csts::RDY, 0);
        bench.set(Register::Configuration, 0);
        wait_until("the failure is over", || bench.csts() == 0);
        bench.enable(CONFIGURATION);
        assert_eq!(bench.admin_status(command(admin::KEEP_ALIVE, 0)), Status::SUCCESS);
    }
    // Queues of one entry.
    let mut bench = off();
    bench.admin.entries = 1;
    bench.start(CONFIGURATION);
    wait_until("it has failed", || bench.csts() & csts::CFS != 0);
}

#[test]
fn queues_that_cannot_be_reached_are_a_fatal_status() {
    for (submissions, completions) in [(NOWHERE, crate::bench::QUEUES), (crate::bench::QUEUES, READ_ONLY)] {
        let mut bench = off();
        bench.start(0);
        bench.set(Register::AdminSubmissionQueue, submissions);
        bench.set(Register::AdminCompletionQueue, completions);
        bench.set(Register::Configuration, CONFIGURATION.into());
        wait_until("it is ready", || bench.csts() & csts::RDY != 0);
        bench.w32(0x1000, 1);
        wait_until("it has failed", || bench.csts() & csts::CFS != 0);
        bench.disable();
        bench.enable(CONFIGURATION);
        assert_eq!(bench.admin_status(command(admin::KEEP_ALIVE, 0)), Status::SUCCESS);
    }
}

#[test]
fn pages_have_each_size() {
    for mps in 0..=4u32 {
        let page = 4096u64 << mps;
        let mut bench = off();
        bench.enable(CONFIGURATION | mps << 7);
        let mut pair = bench.pair(1, 16);
        let data = crate::bench::pattern(2 * page as usize, mps as u8);
        bench.memory.set(DATA, &data);
        let count = (2 * page / 512) as u32;
        let write = command(nvm::WRITE, 1).word(12, count - 1).data(DATA, DATA + page);
        assert_eq!(bench.status(&mut pair, write), Status::SUCCESS);
        bench.memory.set(DATA, &vec![0; data.len()]);
        let read = command(nvm::READ, 1).word(12, count - 1).data(DATA + page, DATA);
        assert_eq!(bench.status(&mut pair, read), Status::SUCCESS);
        assert_eq!(bench.memory.get(DATA + page, page as usize), data[..page as usize]);
        assert_eq!(bench.memory.get(DATA, page as usize), data[page as usize..]);
    }
}

#[test]
fn a_reset_forgets_queues_and_features_and_keeps_data() {
    let mut bench = Bench::new();
    let mut pair = bench.pair(1, 16);
    bench.memory.set(DATA, &[5; 512]);
    assert_eq!(bench.status(&mut pair, write(3, 1)), Status::SUCCESS);
    bench.done(command(admin::SET_FEATURES, 0).word(10, 8).word(11, 0x0505));
    bench.done(command(admin::SET_FEATURES, 0).word(10, 0x8000_0001).word(11, 2));
    bench.set(Register::MaskSet, 1);
    bench.disable();
    assert_eq!(bench.reg(Register::MaskSet), 0);
    assert_ne!(bench.reg(Register::AdminSubmissionQueue), 0);
    // A doorbell while it is off does nothing.
    bench.w32(0x1008, 5);
    bench.enable(CONFIGURATION);
    assert_eq!(bench.done(command(admin::GET_FEATURES, 0).word(10, 8)), 0);
    assert_eq!(bench.done(command(admin::GET_FEATURES, 0).word(10, 1)), 2, "it was saved");
    let deleted = bench.admin_status(command(admin::DELETE_SUBMISSION_QUEUE, 0).word(10, 1));
    assert_eq!(deleted.code(), Status::INVALID_QUEUE_IDENTIFIER.code());
    let mut pair = bench.pair(1, 16);
    bench.memory.set(DATA, &[0; 512]);
    assert_eq!(bench.status(&mut pair, read(3, 1)), Status::SUCCESS);
    assert_eq!(bench.memory.get(DATA, 512), [5; 512]);
}

#[test]
fn a_shutdown_is_done_and_takes_no_more_commands() {
    for notification in [1, 2] {
        let mut bench = Bench::new();
        bench.set(Register::Configuration, (CONFIGURATION | notification << 14).into());
        wait_until("it is shut down", || bench.csts() & csts::SHUTDOWN == csts::SHUTDOWN_DONE);
        let mut admin = std::mem::replace(&mut bench.admin, Pair::new(0, 2));
        bench.submit(&mut admin, command(admin::KEEP_ALIVE, 0));
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(bench.poll(&mut admin).is_none());
        bench.admin = Pair::new(0, 32);
        bench.disable();
        assert_eq!(bench.csts() & csts::SHUTDOWN, 0);
        bench.enable(CONFIGURATION);
        assert_eq!(bench.admin_status(command(admin::KEEP_ALIVE, 0)), Status::SUCCESS);
    }
}

#[test]
fn a_reset_of_the_subsystem_is_no_loss_of_power() {
    let mut bench = Bench::new();
    bench.done(command(admin::SET_FEATURES, 1).word(10, 0x84).word(11, 2));
    let mut pair = bench.pair(1, 16);
    let protected = Status::NAMESPACE_WRITE_PROTECTED.code();
    assert_eq!(bench.status(&mut pair, write(0, 1)).code(), protected);
    assert_eq!(bench.admin_status(command(admin::NAMESPACE_MANAGEMENT, 1).word(10, 1)).code(), protected, "deleted");
    bench.set(Register::SubsystemReset, 0x1234);
    assert_eq!(bench.csts() & (csts::NSSRO | csts::RDY), csts::RDY);
    bench.set(Register::SubsystemReset, SUBSYSTEM_RESET.into());
    wait_until("it is reset", || bench.csts() & csts::RDY == 0);
    assert_eq!((bench.csts(), bench.reg(Register::Configuration)), (csts::NSSRO, 0));
    bench.set(Register::Status, csts::NSSRO.into());
    assert_eq!(bench.csts(), 0);
    bench.enable(CONFIGURATION);
    let mut pair = bench.pair(1, 16);
    assert_eq!(bench.status(&mut pair, write(0, 1)).code(), protected, "the power was not cycled");
}

#[test]
fn after_a_reset_of_the_function_all_is_as_at_power_on() {
    let mut bench = Bench::new();
    let mut pair = bench.pair(1, 64);
    for _ in 0..20 {
        bench.submit(&mut pair, write(0, 8));
    }
    bench.device.reset();
    let seen = bench.memory.get(pair.completions, 1024);
    for register in Register::ALL.iter().filter(|register| **register != Register::Capabilities) {
        assert_eq!(bench.reg(*register), register.info().reset, "{}", register.info().name);
    }
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(bench.memory.get(pair.completions, 1024), seen, "nothing goes on");
    bench.enable(CONFIGURATION);
    assert_eq!(bench.admin_status(command(admin::KEEP_ALIVE, 0)), Status::SUCCESS);
}

#[test]
fn the_buffer_is_memory_for_queues_lists_and_data() {
    let options = NvmeOptions { namespaces: vec![in_memory(1 << 20, 9)], cmb: 1 << 20, ..NvmeOptions::default() };
    let mut bench = Bench::with(&options);
    assert_eq!((bench.reg(Register::CmbLocation), bench.reg(Register::CmbSize)), (0, 0));
    bench.set(Register::CmbSpace, cmb::REGISTERS_ENABLE);
    assert_eq!((bench.reg(Register::CmbLocation), bench.reg(Register::CmbSize)), (2, 1 << 20 | 0x1F));
    // Where nothing can be, and then above all memory.
    bench.set(Register::CmbSpace, !0xFFF | cmb::SPACE_ENABLE | cmb::REGISTERS_ENABLE);
    assert_eq!(bench.reg(Register::CmbStatus), 1);
    let base = 0x40_0000_0000;
    bench.set(Register::CmbSpace, base | cmb::SPACE_ENABLE | cmb::REGISTERS_ENABLE);
    assert_eq!(bench.reg(Register::CmbStatus), 0);
    bench.enable(CONFIGURATION);
    let buffer = bench.device.memory().iter().find(|pages| pages.bar == 2).unwrap().memory.clone();
    let pair = bench.pair(1, 16);
    buffer.write(0x8000, &[0x3C; 512]);
    buffer.write(0x9000, &[0; 4096]);
    let (submissions, completions) = (base, base + 0x4000);
    let entries = 15 << 16 | 2;
    bench.done(command(admin::CREATE_COMPLETION_QUEUE, 0).word(10, entries).word(11, 1).data(completions, 0));
    bench.done(command(admin::CREATE_SUBMISSION_QUEUE, 0).word(10, entries).word(11, 2 << 16 | 1).data(submissions, 0));
    let write = command(nvm::WRITE, 1).long(9).data(base + 0x8000, 0).id(0x77);
    let read = command(nvm::READ, 1).long(9).data(base + 0x9000, 0).id(0x78);
    let both = [write, read].map(|command| zerocopy::IntoBytes::as_bytes(&command).to_vec()).concat();
    buffer.write(0, &both);
    bench.w32(0x1010, 2);
    let mut completion = [0; 32];
    wait_until("the read is done", || {
        buffer.read(0x4000, &mut completion);
        completion[14] & completion[16 + 14] & 1 != 0
    });
    assert_eq!((completion[12], completion[14] | completion[15], completion[30] >> 1 | completion[31]), (0x77, 1, 0));
    let mut data = [0; 512];
    buffer.read(0x9000, &mut data);
    assert_eq!(data, [0x3C; 512]);
    // What begins in the buffer and ends after it is wrong.
    let mut pair = pair;
    let over = command(nvm::READ, 1).word(12, 7).data(base + (1 << 20) - 512, base + (2 << 20));
    assert_eq!(bench.status(&mut pair, over).code(), Status::DATA_TRANSFER_ERROR.code());
    let flat = command(nvm::READ, 1).flags(0x40).data(base + (1 << 20) - 100, 512);
    assert_eq!(bench.status(&mut pair, flat).code(), Status::INVALID_USE_OF_CMB.code());
    assert_eq!(status(&bench.run(&mut pair, crate::bench::read(0, 1))), Status::SUCCESS);
}

#[test]
fn what_is_no_controller_is_said() {
    let image = Image::new("errors");
    std::fs::write(&image.0, vec![0; 1000]).unwrap();
    let other = Image::new("errors-other");
    std::fs::write(&other.0, vec![0; 8192]).unwrap();
    let _holder = Nvme::new(
        &NvmeOptions { namespaces: vec![other.namespace(8192, 9)], ..NvmeOptions::default() },
        Box::new(Memory::default()),
        std::sync::Arc::new(Sink::default()),
    )
    .unwrap();
    let missing = Image::new("errors-missing");
    let at = |path: &std::path::Path, size| NamespaceOptions {
        backing: Backing::Image { path: path.into(), size },
        block_shift: 9,
        readonly: false,
        protection: 0,
    };
    let of = |namespace| NvmeOptions { namespaces: vec![namespace], ..NvmeOptions::default() };
    let default = NvmeOptions::default();
    let pipe = Image::new("errors-pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe.0).status().is_ok_and(|status| status.success()));
    let directory = std::env::temp_dir();
    for (options, part) in [
        (of(at(&image.0, None)), "1000 bytes, which are no whole blocks of 512"),
        (of(at(&missing.0, None)), "give it a size="),
        (of(at(&other.0, None)), "in use by another program"),
        (of(at(&other.0, Some(4096))), "in use by another program"),
        (of(at(&directory, None)), "could not be opened"),
        (of(at(&pipe.0, None)), "no file and no block device"),
        (of(NamespaceOptions { readonly: true, ..at(&pipe.0, None) }), "no file and no block device"),
        (of(at("/dev/full".as_ref(), None)), "no file and no block device"),
        (of(in_memory(1 << 20, 64)), "512 or 4096"),
        (of(in_memory(1 << 20, 10)), "512 or 4096"),
        (of(NamespaceOptions { protection: 4, ..in_memory(1 << 20, 9) }), "type 1, 2 or 3"),
        (of(in_memory(1000, 9)), "no whole blocks"),
        (of(in_memory(1 << 62, 12)), "no memory for 4611686018427387904 bytes"),
        (NvmeOptions { queues: 0, ..default.clone() }, "1 to 64 queue pairs"),
        (NvmeOptions { queues: 65, ..default.clone() }, "1 to 64 queue pairs"),
        (NvmeOptions { cmb: 5000, ..default.clone() }, "power of two"),
        (NvmeOptions { cmb: 16 << 20, ..default.clone() }, "power of two"),
        (NvmeOptions { serial: "é".into(), ..default.clone() }, "printable"),
        (NvmeOptions { serial: "123456789012345678901".into(), ..default.clone() }, "20"),
        (NvmeOptions { namespaces: vec![in_memory(4096, 9); 33], ..default }, "32 namespaces"),
    ] {
        let made = Nvme::new(&options, Box::new(Memory::default()), std::sync::Arc::new(Sink::default()));
        let error = made.map(drop).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let error = NvmeError::from(ImageError::Missing(missing.0.clone())).to_string();
    assert!(!missing.0.exists() && error.contains("ioasid-nvme-errors-missing"));
}

#[test]
fn configuration_bits_are_those_of_the_specification() {
    let word = 1 | 2 << 4 | 3 << 7 | 1 << 11 | 2 << 14 | 6 << 16 | 4 << 20;
    let parts = (cc::command_set(word), cc::page_shift(word), cc::arbitration(word), cc::shutdown(word));
    assert_eq!(parts, (2, 3, 1, 2));
    assert_eq!((cc::submission_shift(word), cc::completion_shift(word)), (6, 4));
}
