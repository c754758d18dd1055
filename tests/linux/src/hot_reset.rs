//! Hot reset: of a device that is alone behind its bridge, and of one that is there with another.

use ioasid_uapi::vfio::{self, PciDependentDevice, PciHotReset, PciHotResetInfo};

use crate::cdev::{bind, path_of};
use crate::container::{device, group_of, in_container, with_iommu};
use crate::sys::{File, Outcome, Rows, ask, number, open};
use crate::sysfs;

#[repr(C)]
struct Info {
    head: PciHotResetInfo,
    devices: [PciDependentDevice; 4],
}

#[repr(C)]
struct Reset {
    head: PciHotReset,
    files: [i32; 4],
}

/// What was answered, and what it is about: flags, count, and for each device its id, or 8 if that is `known`, and its
/// function.
fn info(device: &File, argsz: u32, known: &[u32]) -> (Outcome, Outcome) {
    let head = PciHotResetInfo { argsz, flags: 0x80, count: 0x70 };
    let mut request = Info { head, devices: [PciDependentDevice { id: 6, devfn: 6, ..Default::default() }; 4] };
    let answer = ask(device, vfio::DEVICE_GET_PCI_HOT_RESET_INFO, &mut request);
    let mut seen = i64::from(request.head.flags) << 8 | i64::from(request.head.count);
    for device in &request.devices[..2] {
        let id = if known.contains(&device.id) { 8 } else { device.id & 0xf };
        seen = seen << 8 | i64::from(id) << 4 | i64::from(device.devfn);
    }
    (answer, Ok(seen))
}

fn reset(device: &File, argsz: u32, flags: u32, files: &[i32]) -> Outcome {
    let mut request = Reset { head: PciHotReset { argsz, flags, count: files.len() as u32 }, files: [-1; 4] };
    request.files[..files.len()].copy_from_slice(files);
    ask(device, vfio::DEVICE_PCI_HOT_RESET, &mut request)
}

fn group_number(name: &str) -> u32 {
    group_of(name).rsplit('/').next().and_then(|number| number.parse().ok()).expect("a group has a number")
}

pub(crate) fn rows(alone: &str, pair: [&str; 2], rows: &mut Rows) {
    by_groups("alone", alone, "/dev/vfio/vfio", rows);
    by_groups("alone, compat", alone, "/dev/iommu", rows);
    by_groups("one of two", pair[0], "/dev/vfio/vfio", rows);
    by_files("alone", alone, rows);
    by_files("one of two", pair[0], rows);
    together(pair, rows);
    unbound(pair, rows);
}

fn by_groups(what: &str, name: &str, container: &str, rows: &mut Rows) {
    let (group, container) = in_container(name, container, 3);
    let device = device(&group, name).expect("the device");
    let mut row = |text: &str, outcome| rows.row(&format!("hot reset, {what}: {text}"), outcome);
    for argsz in [0, 11, 12, 19, 20, 27, 28, 44] {
        let (answer, seen) = info(&device, argsz, &[group_number(name)]);
        row(&format!("info, argsz {argsz}"), answer);
        row(&format!("info, argsz {argsz}, seen"), seen);
    }
    row("info nowhere", number(&device, vfio::DEVICE_GET_PCI_HOT_RESET_INFO, 0));
    row("nowhere", number(&device, vfio::DEVICE_PCI_HOT_RESET, 0));
    let null = open("/dev/null").expect("/dev/null");
    for (text, argsz, flags, files) in [
        ("argsz 11", 11, 0, &[group.0][..]),
        ("argsz 12", 12, 0, &[group.0]),
        ("a flag", 16, 1, &[group.0]),
        ("no group", 16, 0, &[]),
        ("-1", 16, 0, &[-1]),
        ("none", 16, 0, &[900]),
        ("another file", 16, 0, &[null.0]),
        ("the container", 16, 0, &[container.0]),
        ("the device", 16, 0, &[device.0]),
        ("too many", 28, 0, &[group.0, group.0, group.0]),
        ("it and none", 20, 0, &[group.0, 900]),
        ("it", 16, 0, &[group.0]),
        ("it twice", 20, 0, &[group.0, group.0]),
    ] {
        row(text, reset(&device, argsz, flags, files));
    }
}

fn by_files(what: &str, name: &str, rows: &mut Rows) {
    let (iommu, device) = (open("/dev/iommu").expect("/dev/iommu"), open(&path_of(name)).expect("the device"));
    let mut row = |text: &str, outcome| rows.row(&format!("hot reset, a file, {what}: {text}"), outcome);
    let (answer, seen) = info(&device, 44, &[]);
    row("info, not bound", answer);
    row("info, not bound, seen", seen);
    row("not bound", reset(&device, 12, 0, &[]));
    let id = bind(&device, iommu.0).expect("BIND");
    for argsz in [0, 12, 20, 44] {
        let (answer, seen) = info(&device, argsz, &[id]);
        row(&format!("info, argsz {argsz}"), answer);
        row(&format!("info, argsz {argsz}, seen"), seen);
    }
    row("argsz 11", reset(&device, 11, 0, &[]));
    row("a flag", reset(&device, 12, 1, &[]));
    row("a file", reset(&device, 16, 0, &[device.0]));
    row("it", reset(&device, 12, 0, &[]));
}

fn together([first, second]: [&str; 2], rows: &mut Rows) {
    let mut row = |text: &str, outcome| rows.row(&format!("hot reset, two: {text}"), outcome);
    let (iommu, other) = (open("/dev/iommu").expect("/dev/iommu"), open("/dev/iommu").expect("/dev/iommu"));
    let (one, two) = (open(&path_of(first)).expect("the device"), open(&path_of(second)).expect("the device"));
    let id = bind(&one, iommu.0).expect("BIND");
    row("the other to another", bind(&two, other.0).map(|_| 0));
    let second_id = bind(&two, iommu.0);
    row("the other to the same", second_id.map(|_| 0));
    let (answer, seen) = info(&one, 44, &[id, second_id.unwrap_or(id)]);
    row("info", answer);
    row("info, seen", seen);
    row("both", reset(&one, 12, 0, &[]));
    drop(one);
    let (answer, seen) = info(&two, 44, &[second_id.unwrap_or(id)]);
    row("info, one closed", answer);
    row("info, one closed, seen", seen);
    row("one closed", reset(&two, 12, 0, &[]));
}

fn unbound([first, second]: [&str; 2], rows: &mut Rows) {
    let driver = "/sys/bus/pci/drivers/vfio-pci";
    let mut row = |text: &str, outcome| rows.row(&format!("hot reset, the other unbound: {text}"), outcome);
    row("unbind", sysfs::write(&format!("{driver}/unbind"), second));
    let (group, _container) = with_iommu(first, 3);
    let device = device(&group, first).expect("the device");
    let (answer, seen) = info(&device, 44, &[group_number(first)]);
    row("info", answer);
    row("info, seen", seen);
    row("it", reset(&device, 16, 0, &[group.0]));
    drop((device, group));
    row("bind", sysfs::write(&format!("{driver}/bind"), second));
}
