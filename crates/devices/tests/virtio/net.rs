//! Packets.

use crate::bench::{Bench, CONFIGURATION, MEMORY, VERSION_1};

const SENT: u64 = MEMORY + 0x8_0000;
const RECEIVED: u64 = MEMORY + 0x10_0000;

#[test]
fn what_goes_comes_back_in_order() {
    let bench = Bench::new("virtio-net", &["mac=52:54:00:aa:bb:cc"]);
    let mac: Vec<u8> = (0..6).map(|at| bench.load(CONFIGURATION + at, 1) as u8).collect();
    assert_eq!((mac, bench.load(CONFIGURATION + 6, 2)), (vec![0x52, 0x54, 0, 0xaa, 0xbb, 0xcc], 1));
    let [mut receive, mut transmit] = bench.begin(VERSION_1 | 1 << 5 | 1 << 16, 2).try_into().ok().unwrap();
    let mut random = fastrand::Rng::with_seed(9);
    for _ in 0..200 {
        let mut packets = Vec::new();
        for slot in 0..random.u64(1..5) {
            let length = random.usize(1..1515);
            let packet: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
            bench.write(SENT + slot * 0x1000, &[&[0; 12][..], &packet].concat());
            let length = packet.len() as u32 + 12;
            // The header by itself, or with the rest.
            let at = SENT + slot * 0x1000;
            match random.bool() {
                true => bench.offer(&mut transmit, &[(at, 12, false), (at + 12, length - 12, false)]),
                false => bench.offer(&mut transmit, &[(at, length, false)]),
            };
            let at = RECEIVED + slot * 0x1000;
            match random.bool() {
                true => bench.offer(&mut receive, &[(at, 100, true), (at + 100, 1500, true)]),
                false => bench.offer(&mut receive, &[(at, 1600, true)]),
            };
            packets.push(packet);
        }
        bench.notify(&receive);
        bench.notify(&transmit);
        for (slot, packet) in (0..).zip(&packets) {
            bench.wait(&mut transmit);
            let (_, written) = bench.wait(&mut receive);
            assert_eq!(written as usize, packet.len() + 12);
            let found = bench.read(RECEIVED + slot * 0x1000, packet.len() + 12);
            assert_eq!((&found[..12], &found[12..]), (&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0][..], &packet[..]));
        }
    }
}

#[test]
fn packets_that_are_none_are_lost_and_the_next_one_comes() {
    let bench = Bench::new("virtio-net", &[]);
    let [mut receive, mut transmit] = bench.begin(VERSION_1, 2).try_into().ok().unwrap();
    // Without anything behind the header, longer than any, from nowhere, of what the device would write.
    for chain in [
        &[(SENT, 12, false)][..],
        &[(SENT, 5, false)],
        &[(SENT, u32::MAX, false)],
        &[(SENT, 70_000, false)],
        &[(0xdead_0000, 100, false)],
        &[(SENT, 100, true)],
    ] {
        bench.offer(&mut transmit, chain);
    }
    bench.notify(&transmit);
    (0..6).for_each(|_| assert_eq!(bench.wait(&mut transmit).1, 0));
    // A buffer that is too small, or nowhere, costs the packet that it was for.
    bench.offer(&mut receive, &[(RECEIVED, 20, true)]);
    bench.offer(&mut receive, &[(0xdead_0000, 2000, true)]);
    bench.offer(&mut receive, &[(RECEIVED, 2000, true)]);
    bench.notify(&receive);
    for number in 1..4u8 {
        bench.write(SENT, &[[0; 12].as_slice(), &[number; 60]].concat());
        bench.offer(&mut transmit, &[(SENT, 72, false)]);
        bench.notify(&transmit);
        bench.wait(&mut transmit);
        let (_, written) = bench.wait(&mut receive);
        assert_eq!(written, if number < 3 { 0 } else { 72 });
    }
    assert_eq!(bench.read(RECEIVED + 12, 60), [3; 60]);
    assert!(!bench.needs_reset());
}
