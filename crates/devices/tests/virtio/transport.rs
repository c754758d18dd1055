//! Features, status, queues, interrupts, resets.

use std::time::Duration;

use ioasid::IovaRange;
use ioasid_devices::virtio::registers::Register;

use crate::bench::{ACCESS_PLATFORM, Bench, EVENT_INDEX, ISR, MEMORY, NOTIFY, VERSION_1, wait_until};

#[test]
fn registers_are_as_after_power_on_and_again_after_a_reset() {
    let bench = Bench::new("virtio-blk", &["memory=1M", "queues=3"]);
    for _ in 0..2 {
        for register in Register::ALL {
            let info = register.info();
            let expected = match register {
                Register::NumQueues => 3,
                Register::QueueSize => 256,
                Register::DeviceFeature => bench.offered() & 0xffff_ffff,
                _ => info.reset,
            };
            bench.set(Register::DeviceFeatureSelect, 0);
            assert_eq!(bench.get(*register), expected, "{}", info.name);
        }
        bench.begin(VERSION_1, 3);
        bench.set(Register::QueueSelect, 2);
        assert_eq!((bench.get(Register::QueueEnable), bench.get(Register::QueueNotifyOff)), (1, 2));
        assert_eq!(bench.get(Register::QueueDevice), MEMORY + 0x2_2000);
        bench.built.model.reset();
    }
}

#[test]
fn features_are_agreed_on_or_the_device_does_not_begin() {
    let bench = Bench::new("virtio-blk", &["memory=1M"]);
    let offered = bench.offered();
    assert_eq!(offered & (VERSION_1 | ACCESS_PLATFORM | EVENT_INDEX), VERSION_1 | ACCESS_PLATFORM | EVENT_INDEX);
    for (features, accepted) in [
        (VERSION_1, true),
        (offered, true),
        (0, false),
        (ACCESS_PLATFORM, false),
        (VERSION_1 | 1 << 40, false),
        (VERSION_1 | 1 << 31, false),
    ] {
        bench.set(Register::DeviceStatus, 0);
        bench.set(Register::DeviceStatus, 3);
        for half in 0..2 {
            bench.set(Register::DriverFeatureSelect, half);
            bench.set(Register::DriverFeature, features >> (32 * half) & 0xffff_ffff);
        }
        bench.set(Register::DeviceStatus, 11);
        assert_eq!(bench.get(Register::DeviceStatus), if accepted { 11 } else { 3 }, "{features:#x}");
        // Without them there is no start, and with them no other choice.
        bench.set(Register::DeviceStatus, if accepted { 15 } else { 7 });
        assert_eq!(bench.get(Register::DeviceStatus), if accepted { 15 } else { 3 }, "{features:#x}");
        bench.set(Register::DriverFeature, 0xffff_ffff);
        assert_eq!(bench.get(Register::DriverFeature) == 0xffff_ffff, !accepted);
    }
}

#[test]
fn wrong_accesses_are_ignored() {
    let bench = Bench::new("virtio-blk", &["memory=1M"]);
    bench.begin(VERSION_1, 1);
    for offset in (0..0x40).chain([0x40, 0xfff, ISR + 1, NOTIFY, NOTIFY + 2, NOTIFY + 4000, 0x3fff]) {
        for length in [1usize, 2, 4, 8] {
            if Register::at(offset).is_some_and(|(register, _)| {
                let info = register.info();
                info.offset == offset && (length == usize::from(info.width) || length == 4 && info.width == 8)
            }) {
                continue;
            }
            bench.store(offset, length, !0);
            bench.load(offset, length);
        }
    }
    // Queues that there are none of, sizes that are none, vectors that there are none of.
    bench.set(Register::QueueSelect, 5);
    assert_eq!((bench.get(Register::QueueSize), bench.get(Register::QueueDesc)), (0, 0));
    bench.set(Register::QueueDesc, 0x1000);
    bench.set(Register::DeviceStatus, 0);
    bench.set(Register::QueueSelect, 0);
    for size in [0, 3, 512, 0xffff] {
        bench.set(Register::QueueSize, size);
        assert_eq!(bench.get(Register::QueueSize), 256);
    }
    bench.set(Register::QueueMsixVector, 7);
    assert_eq!(bench.get(Register::QueueMsixVector), 0xffff);
    bench.set(Register::QueueMsixVector, 1);
    assert_eq!(bench.get(Register::QueueMsixVector), 1);
}

#[test]
fn the_line_goes_with_the_interrupt_status() {
    let bench = Bench::new("virtio-blk", &["memory=1M"]);
    let mut ring = bench.begin(VERSION_1, 1).remove(0);
    let request = MEMORY + 0x8_0000;
    bench.write(request, &[0; 16]);
    assert_eq!(bench.load(ISR, 1), 0);
    for _ in 0..10 {
        bench.offer(&mut ring, &[(request, 16, false), (request + 0x200, 512, true), (request + 0x100, 1, true)]);
        bench.notify(&ring);
        assert_eq!(bench.wait(&mut ring).1, 513);
        let mut isr = 0;
        wait_until("the interrupt has come", || {
            isr |= bench.load(ISR, 1);
            isr == 1
        });
        assert_eq!(bench.load(ISR, 1), 0, "it is read once");
    }
}

#[test]
fn queues_that_cannot_be_reached_need_a_reset_and_work_after_it() {
    let bench = Bench::new("virtio-blk", &["memory=1M"]);
    for what in 0..4 {
        let mut ring = bench.begin(VERSION_1, 1).remove(0);
        match what {
            // Nowhere, or not aligned.
            0 | 1 => {
                bench.set(Register::DeviceStatus, 0);
                bench.set(Register::DeviceStatus, 3);
                bench.set(Register::DriverFeatureSelect, 1);
                bench.set(Register::DriverFeature, 1);
                bench.set(Register::DeviceStatus, 11);
                ring = bench.ring(0);
                bench.set(Register::QueueEnable, 0);
                assert_eq!(bench.get(Register::QueueEnable), 1, "what is in use stays");
                bench.set(Register::DeviceStatus, 0);
                bench.set(Register::DeviceStatus, 11);
                bench.set(Register::QueueDesc, if what == 0 { 0xdead_0000 } else { MEMORY + 1 });
                bench.set(Register::QueueDriver, if what == 0 { 0xdead_0000 } else { MEMORY + 1 });
                bench.set(Register::DriverFeatureSelect, 1);
                bench.set(Register::DriverFeature, 1);
                bench.set(Register::DeviceStatus, 11);
                bench.set(Register::QueueEnable, 1);
                bench.set(Register::DeviceStatus, 15);
            }
            // More than there is room for in the ring.
            2 => bench.write(ring.at + 0x1002, &0x4000u16.to_le_bytes()),
            // Memory that goes away.
            _ => {
                bench.ioas.unmap(IovaRange::ALL).unwrap();
            }
        }
        bench.notify(&ring);
        wait_until("it needs a reset", || bench.needs_reset());
        // It does nothing more, and can be notified all the same.
        bench.notify(&ring);
        bench.set(Register::DeviceStatus, 0);
        assert_eq!(bench.get(Register::DeviceStatus), 0);
    }
}

#[test]
fn a_reset_ends_what_is_under_way() {
    let bench = Bench::new("virtio-blk", &["memory=1M"]);
    let request = MEMORY + 0x8_0000;
    bench.write(request, &[0; 16]);
    for round in 0..200u64 {
        let mut ring = bench.begin(VERSION_1, 1).remove(0);
        for _ in 0..20 {
            bench.offer(
                &mut ring,
                &[(request, 16, false), (request + 0x1_0000, 1 << 19, true), (request + 0x100, 1, true)],
            );
        }
        bench.notify(&ring);
        if round % 2 == 0 {
            std::thread::sleep(Duration::from_micros(round));
        }
        bench.set(Register::DeviceStatus, 0);
        bench.write(request + 0x1_0000, &[0x5a; 1 << 19]);
        assert_eq!(bench.read(request + 0x1_0000, 1 << 19), vec![0x5a; 1 << 19], "round {round}");
    }
}

/// Two threads of a driver, of which one begins anew while the other's reset waits for the device.
#[test]
fn a_reset_returns_whoever_begins_meanwhile() {
    let bench = Bench::new("virtio-blk", &["memory=4M"]);
    let request = MEMORY + 0x8_0000;
    bench.write(request, &[0; 16]);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for status in [3, 11, 15] {
                    bench.set(Register::DriverFeatureSelect, 1);
                    bench.set(Register::DriverFeature, 1);
                    bench.set(Register::DeviceStatus, status);
                }
            }
        });
        for _ in 0..300 {
            let mut ring = bench.ring(0);
            bench.offer(
                &mut ring,
                &[(request, 16, false), (MEMORY + 0x10_0000, 2 << 20, true), (request + 16, 1, true)],
            );
            bench.notify(&ring);
            bench.set(Register::DeviceStatus, 0);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    bench.built.model.reset();
    assert_eq!(bench.get(Register::DeviceStatus), 0);
}
