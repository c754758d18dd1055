//! Requests on a device that came out of its group, as far as every PCI device answers them alike.

use ioasid_uapi::vfio::{self, Ioeventfd, IrqInfo, IrqSet, RegionInfo, container, feature};

use crate::container::{device, with_iommu};
use crate::sys::{File, Rows, ask, map, number, open, read};

/// The regions and interrupts that a PCI device has at least.
const REGIONS: u32 = 9;
const IRQS: u32 = 5;
/// Where configuration space is in the file.
const CONFIG: u64 = 7 << 40;

#[repr(C)]
struct WithEventfd {
    head: IrqSet,
    file: i32,
}

pub(crate) fn rows(name: &str, rows: &mut Rows) {
    let (group, _container) = with_iommu(name, container::TYPE1V2_IOMMU);
    let device = device(&group, name).expect("the device");
    for argsz in [0, 15, 16, 19, 20, 24, 4096] {
        let mut info = [0u32; 1024];
        info[0] = argsz;
        // Not every device can be reset.
        let answer = ask(&device, vfio::DEVICE_GET_INFO, &mut info).map(|_| i64::from(info[1] & 2) << 8);
        rows.row(&format!("device info, argsz {argsz}"), answer.map(|flags| flags | i64::from(info[2] >= REGIONS)));
    }
    let region = |argsz, index| {
        let mut info = [0u64; 512];
        // SAFETY: as many bytes as the structure has, of plain numbers.
        let head = unsafe { &mut *info.as_mut_ptr().cast::<RegionInfo>() };
        (head.argsz, head.index) = (argsz, index);
        let answer = ask(&device, vfio::DEVICE_GET_REGION_INFO, head);
        answer.map(|_| (head.offset >> 40) as i64)
    };
    for index in (0..REGIONS).chain([u32::MAX]) {
        rows.row(&format!("region {index:#x}"), region(4096, index));
    }
    for argsz in [0, 31] {
        rows.row(&format!("region, argsz {argsz}"), region(argsz, 0));
    }
    let irq = |argsz, index| {
        let mut info = IrqInfo { argsz, index, ..Default::default() };
        ask(&device, vfio::DEVICE_GET_IRQ_INFO, &mut info).map(|_| 0)
    };
    for index in (0..3).chain([IRQS, 100, u32::MAX]) {
        rows.row(&format!("irq {index:#x}"), irq(16, index));
    }
    rows.row("irq, argsz", irq(15, 0));
    interrupts(&device, rows);
    for request in [vfio::DEVICE_BIND_IOMMUFD, vfio::DEVICE_ATTACH_IOMMUFD_PT, 0x3b64, 0x3b7f, 0x5401] {
        rows.row(&format!("device request {request:#x}"), number(&device, request, 0));
    }
    for request in [vfio::DEVICE_GET_INFO, vfio::DEVICE_GET_REGION_INFO, vfio::DEVICE_SET_IRQS] {
        rows.row(&format!("device request {request:#x}, nowhere"), number(&device, request, 0));
    }
    features(&device, rows);
    ioeventfds(&device, rows);
    let reads = [
        ("the first word of configuration space", CONFIG, 4),
        ("an odd byte of it", CONFIG + 3, 1),
        ("more than a word", CONFIG, 64),
        ("nothing", CONFIG, 0),
        ("the VGA region", 8 << 40, 4),
        ("a region that is not there", 100 << 40, 4),
        ("the ROM", 6 << 40, 4),
    ];
    for (what, offset, length) in reads {
        rows.row(&format!("read {what}"), read(&device, length, offset));
    }
    rows.row("map configuration space", map(&device, 4096, CONFIG, libc::MAP_SHARED));
    rows.row("map a region that is not there", map(&device, 4096, 100 << 40, libc::MAP_SHARED));
    rows.row("map beyond BAR 0", map(&device, 4096, 1 << 39, libc::MAP_SHARED));
}

fn ioeventfds(device: &File, rows: &mut Rows) {
    // SAFETY: takes numbers.
    let event = File(unsafe { libc::eventfd(0, 0) });
    let null = open("/dev/null").expect("/dev/null");
    let set = |argsz, flags, offset, data, fd| {
        let mut request = Ioeventfd { argsz, flags, offset, data, fd, reserved: 0 };
        ask(device, vfio::DEVICE_IOEVENTFD, &mut request)
    };
    let rows_of = [
        ("argsz", 27, 4, 0, 1, event.0),
        ("no width", 32, 0, 0, 1, event.0),
        ("two widths", 32, 6, 0, 1, event.0),
        ("another flag", 32, 1 << 4 | 4, 0, 1, event.0),
        ("-2", 32, 4, 0, 1, -2),
        ("none to take away", 32, 4, 0, 1, -1),
        ("a file that is no eventfd", 32, 4, 0, 1, null.0),
        ("a file that is not there", 32, 4, 0, 1, 900),
        ("configuration space", 32, 4, CONFIG, 1, event.0),
        ("the ROM", 32, 4, 6 << 40, 1, event.0),
        ("beyond the end", 32, 4, 1 << 39, 1, event.0),
        ("a BAR that is not there", 32, 4, 5 << 40, 1, event.0),
        ("it", 28, 4, 0, 1, event.0),
        ("it again", 32, 4, 0, 1, event.0),
        ("other data", 32, 4, 0, 2, event.0),
        ("another width", 32, 2, 0, 1, event.0),
        ("take it away", 32, 4, 0, 1, -1),
        ("take it away again", 32, 4, 0, 1, -1),
    ];
    for (what, argsz, flags, offset, data, fd) in rows_of {
        rows.row(&format!("ioeventfd: {what}"), set(argsz, flags, offset, data, fd));
    }
}

fn features(device: &File, rows: &mut Rows) {
    let ask_for = |argsz, flags, data: [u32; 8]| {
        let mut request = [0u32; 10];
        (request[0], request[1]) = (argsz, flags);
        request[2..].copy_from_slice(&data);
        let answer = ask(device, feature::DEVICE_FEATURE, &mut request);
        // A descriptor that is given is a number like others.
        answer.inspect(|file| drop((*file > 0).then(|| File(*file as i32)))).map(|answer| i64::from(answer > 0))
    };
    let (get, set, probe) = (feature::GET, feature::SET, feature::PROBE);
    for number in 0..14 {
        for (what, how) in [("get", get), ("set", set), ("get or set", get | set), ("anything", 0)] {
            rows.row(&format!("feature {number}, probe {what}"), ask_for(8, number | how | probe, [0; 8]));
        }
    }
    for (what, argsz, flags) in [
        ("argsz", 7, feature::LOW_POWER_ENTRY | set),
        ("an unknown flag", 40, feature::LOW_POWER_ENTRY | set | 1 << 20),
        ("get and set", 40, feature::LOW_POWER_ENTRY | get | set),
        ("neither", 40, feature::LOW_POWER_ENTRY),
        ("entry, get", 40, feature::LOW_POWER_ENTRY | get),
        ("entry", 8, feature::LOW_POWER_ENTRY | set),
        ("entry again", 8, feature::LOW_POWER_ENTRY | set),
        ("exit", 8, feature::LOW_POWER_EXIT | set),
        ("exit again", 8, feature::LOW_POWER_EXIT | set),
        ("entry with wakeup, argsz", 15, feature::LOW_POWER_ENTRY_WITH_WAKEUP | set),
        ("a buffer, argsz", 23, feature::DMA_BUF | get),
        ("a buffer, nothing", 40, feature::DMA_BUF | get),
        ("a buffer, set", 40, feature::DMA_BUF | set),
    ] {
        rows.row(&format!("feature: {what}"), ask_for(argsz, flags, [0; 8]));
    }
    let wakeup =
        |file, reserved| ask_for(16, feature::LOW_POWER_ENTRY_WITH_WAKEUP | set, [file, reserved, 0, 0, 0, 0, 0, 0]);
    let null = open("/dev/null").expect("/dev/null");
    for (what, file, reserved) in
        [("-1", u32::MAX, 0), ("no eventfd", null.0 as u32, 0), ("reserved", null.0 as u32, 1)]
    {
        rows.row(&format!("wakeup: {what}"), wakeup(file, reserved));
    }
    // BAR 0 has more than a page everywhere.
    let buffer = |index, flags, offset, length| {
        ask_for(40, feature::DMA_BUF | get, [index, 2 | 0o2_000_000, flags, 1, offset, 0, length, 0])
    };
    for (what, index, flags, offset, length) in [
        ("it", 0, 0, 0, 4096),
        ("flags", 0, 1, 0, 4096),
        ("no length", 0, 0, 0, 0),
        ("half a page", 0, 0, 0, 2048),
        ("an odd place", 0, 0, 16, 4096),
        ("beyond the end", 0, 0, 1 << 30, 4096),
        ("the ROM", 6, 0, 0, 4096),
        ("configuration space", 7, 0, 0, 4096),
        ("a BAR that is not there", 5, 0, 0, 4096),
    ] {
        rows.row(&format!("buffer: {what}"), buffer(index, flags, offset, length));
    }
}

fn interrupts(device: &File, rows: &mut Rows) {
    let set = |argsz, flags, index, start, count, file| {
        let head = IrqSet { argsz, flags, index, start, count };
        ask(device, vfio::DEVICE_SET_IRQS, &mut WithEventfd { head, file })
    };
    let null = open("/dev/null").expect("/dev/null");
    let (none, bools, eventfd, trigger, mask) = (1, 2, 4, 1 << 5, 1 << 3);
    let rows_of = [
        ("argsz", 19, none | trigger, 0, 0, 0, -1),
        ("no flags", 24, 0, 0, 0, 1, -1),
        ("two kinds of data", 24, none | bools | trigger, 0, 0, 1, -1),
        ("two actions", 24, none | trigger | mask, 0, 0, 1, -1),
        ("an unknown flag", 24, none | trigger | 1 << 6, 0, 0, 1, -1),
        ("an index that is not there", 24, none | trigger, 100, 0, 1, -1),
        ("a start beyond", 24, none | trigger, 0, 100, 1, -1),
        ("a count beyond", 24, none | trigger, 0, 0, 100, -1),
        ("a sum that overflows", 24, none | trigger, 0, u32::MAX, u32::MAX, -1),
        ("no room for data", 20, eventfd | trigger, 0, 0, 1, -1),
        ("no count, with data", 24, eventfd | trigger, 0, 0, 0, -1),
        ("a file that is no eventfd", 24, eventfd | trigger, 0, 0, 1, null.0),
        ("a file that is not there", 24, eventfd | trigger, 0, 0, 1, 900),
    ];
    for (what, argsz, flags, index, start, count, file) in rows_of {
        rows.row(&format!("set irqs: {what}"), set(argsz, flags, index, start, count, file));
    }
    // SAFETY: takes numbers.
    let [event, resample] = [0; 2].map(|_| File(unsafe { libc::eventfd(0, 0) }));
    let unmask = 1 << 4;
    let of_intx = [
        ("unmask by, disabled", eventfd | unmask, 1, resample.0),
        ("enable", eventfd | trigger, 1, event.0),
        ("mask by", eventfd | mask, 1, resample.0),
        ("unmask by no eventfd", eventfd | unmask, 1, null.0),
        ("unmask by nothing", eventfd | unmask, 1, 900),
        ("unmask by", eventfd | unmask, 1, resample.0),
        ("unmask by another", eventfd | unmask, 1, event.0),
        ("unmask by none", eventfd | unmask, 1, -1),
        ("unmask by another now", eventfd | unmask, 1, event.0),
        ("unmask", none | unmask, 1, -1),
        ("disable", none | trigger, 0, -1),
        ("enable anew", eventfd | trigger, 1, event.0),
        ("unmask by, anew", eventfd | unmask, 1, resample.0),
        ("disable anew", none | trigger, 0, -1),
    ];
    for (what, flags, count, file) in of_intx {
        rows.row(&format!("intx: {what}"), set(24, flags, 0, 0, count, file));
    }
}
