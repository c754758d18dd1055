//! A device's own file, `/dev/vfio/devices/vfioN`: bound, attached, moved, and closed.

use ioasid_uapi::iommufd;
use ioasid_uapi::iommufd::{HwptAlloc, IoasAlloc};
use ioasid_uapi::vfio::{self, AttachIommufdPt, BindIommufd, DetachIommufdPt};

use crate::container::{device, group_of, with_iommu};
use crate::sys::{File, Outcome, Rows, ask, map, number, open, read};

/// The file of a device, as programs find it.
pub(crate) fn path_of(name: &str) -> String {
    let home = format!("/sys/bus/pci/devices/{name}/vfio-dev");
    let mut entries = std::fs::read_dir(home).expect("the device has a file");
    let entry = entries.next().expect("the device has a file").expect("it has a name");
    format!("/dev/vfio/devices/{}", entry.file_name().to_string_lossy())
}

/// A new address space.
pub(crate) fn new_ioas(iommu: &File) -> u32 {
    let mut alloc = IoasAlloc { size: 12, ..Default::default() };
    ask(iommu, iommufd::IOAS_ALLOC, &mut alloc).expect("IOAS_ALLOC");
    alloc.out_ioas_id
}

/// The id of the device.
pub(crate) fn bind(device: &File, iommu: i32) -> Result<u32, i32> {
    let mut bind = BindIommufd { argsz: 16, iommufd: iommu, ..Default::default() };
    ask(device, vfio::DEVICE_BIND_IOMMUFD, &mut bind).map(|_| bind.out_devid)
}

pub(crate) fn attach(device: &File, pt_id: u32) -> Result<u32, i32> {
    let mut attach = AttachIommufdPt { argsz: 12, flags: 0, pt_id, ..Default::default() };
    ask(device, vfio::DEVICE_ATTACH_IOMMUFD_PT, &mut attach).map(|_| attach.pt_id)
}

fn detach(device: &File) -> Outcome {
    ask(device, vfio::DEVICE_DETACH_IOMMUFD_PT, &mut DetachIommufdPt { argsz: 8, ..Default::default() })
}

pub(crate) fn rows(name: &str, rows: &mut Rows) {
    let path = path_of(name);
    let (iommu, other) = (open("/dev/iommu").expect("/dev/iommu"), open("/dev/iommu").expect("/dev/iommu"));
    let device_file = open(&path).expect("the device's file");
    let again = rows.file("cdev: open again", open(&path));
    // Nothing but BIND before it is bound.
    for request in (0x3b64..=0x3b7b).filter(|request| *request != vfio::DEVICE_BIND_IOMMUFD).chain([0x3b80, 0x5401]) {
        rows.row(&format!("cdev: request {request:#x}, not bound"), number(&device_file, request, 0));
    }
    rows.row("cdev: read, not bound", read(&device_file, 4, 7 << 40));
    rows.row("cdev: map, not bound", map(&device_file, 4096, 0, libc::MAP_SHARED));
    let bind_with = |argsz, flags, iommufd| {
        let mut request = [0u64; 8];
        // SAFETY: as many bytes as the structure has, of plain numbers.
        let head = unsafe { &mut *request.as_mut_ptr().cast::<BindIommufd>() };
        *head = BindIommufd { argsz, flags, iommufd, ..Default::default() };
        ask(&device_file, vfio::DEVICE_BIND_IOMMUFD, &mut request)
    };
    let null = open("/dev/null").expect("/dev/null");
    for (what, argsz, flags, file) in [
        ("argsz 0", 0, 0, iommu.0),
        ("argsz 15", 15, 0, iommu.0),
        ("an unknown flag", 24, 1 << 1, iommu.0),
        ("a token, argsz", 16, 1, iommu.0),
        ("a token nowhere", 24, 1, iommu.0),
        ("-1", 16, 0, -1),
        ("none", 16, 0, 900),
        ("another file", 16, 0, null.0),
        ("itself", 16, 0, device_file.0),
    ] {
        rows.row(&format!("cdev: bind, {what}"), bind_with(argsz, flags, file));
    }
    rows.row("cdev: bind, nowhere", number(&device_file, vfio::DEVICE_BIND_IOMMUFD, 0));
    rows.row("cdev: bind", bind(&device_file, iommu.0).map(i64::from));
    rows.row("cdev: bind again", bind(&device_file, iommu.0).map(i64::from));
    rows.row("cdev: bind to another", bind(&device_file, other.0).map(i64::from));
    if let Some(again) = &again {
        rows.row("cdev: bind a second file", bind(again, iommu.0).map(i64::from));
        rows.row("cdev: bind a second file to another", bind(again, other.0).map(i64::from));
        rows.row("cdev: read by a second file", read(again, 4, 7 << 40));
    }
    drop(again);
    drop(rows.file("cdev: its group, bound", open(&group_of(name))));
    let ioas = new_ioas(&iommu);
    let second = new_ioas(&iommu);
    let foreign = new_ioas(&other);
    let attach_with = |argsz, flags, pt_id, pasid| {
        let mut request = AttachIommufdPt { argsz, flags, pt_id, pasid };
        ask(&device_file, vfio::DEVICE_ATTACH_IOMMUFD_PT, &mut request).map(|_| 0)
    };
    rows.row("cdev: detach, not attached", detach(&device_file));
    for (what, argsz, flags, pt, pasid) in [
        ("argsz 0", 0, 0, ioas, 0),
        ("argsz 11", 11, 0, ioas, 0),
        ("an unknown flag", 16, 1 << 1, ioas, 0),
        ("a PASID, argsz", 12, 1, ioas, 0),
        ("a PASID", 16, 1, ioas, 1),
        ("no id", 12, 0, 0, 0),
        ("another id", 12, 0, 1000, 0),
        ("all ones", 12, 0, u32::MAX, 0),
        ("the device", 12, 0, 1, 0),
        ("another file's", 12, 0, foreign + 100, 0),
    ] {
        rows.row(&format!("cdev: attach, {what}"), attach_with(argsz, flags, pt, pasid));
    }
    rows.row("cdev: attach, nowhere", number(&device_file, vfio::DEVICE_ATTACH_IOMMUFD_PT, 0));
    rows.row("cdev: attach", attach(&device_file, ioas).map(|_| 0));
    rows.row("cdev: attach again", attach(&device_file, ioas).map(|_| 0));
    rows.row("cdev: attach to another", attach(&device_file, second).map(|_| 0));
    let detach_with = |argsz, flags, pasid| {
        ask(&device_file, vfio::DEVICE_DETACH_IOMMUFD_PT, &mut DetachIommufdPt { argsz, flags, pasid })
    };
    for (what, argsz, flags, pasid) in [
        ("argsz 0", 0, 0, 0),
        ("argsz 7", 7, 0, 0),
        ("a flag", 12, 2, 0),
        ("a PASID, argsz", 8, 1, 0),
        ("a PASID", 12, 1, 1),
    ] {
        rows.row(&format!("cdev: detach, {what}"), detach_with(argsz, flags, pasid));
    }
    let destroy = |id| ask(&iommu, iommufd::DESTROY, &mut iommufd::Destroy { size: 8, id });
    rows.row("cdev: destroy what it is attached to", destroy(second));
    rows.row("cdev: destroy the device", destroy(1));
    rows.row("cdev: detach", detach(&device_file));
    rows.row("cdev: detach again", detach(&device_file));
    rows.row("cdev: destroy what it was attached to", destroy(second));
    let mut table = HwptAlloc { size: 48, dev_id: 1, pt_id: ioas, ..Default::default() };
    rows.row("cdev: a page table", ask(&iommu, iommufd::HWPT_ALLOC, &mut table));
    rows.row(
        "cdev: attach to it",
        attach(&device_file, table.out_hwpt_id).map(|id| i64::from(id == table.out_hwpt_id)),
    );
    rows.row("cdev: destroy it", destroy(table.out_hwpt_id));
    rows.row("cdev: detach from it", detach(&device_file));
    rows.row("cdev: destroy it then", destroy(table.out_hwpt_id));
    for (what, offset) in [("it", 7 << 40), ("the VGA region", 8 << 40), ("nothing", 100 << 40)] {
        rows.row(&format!("cdev: read {what}"), read(&device_file, 4, offset));
    }
    drop(device_file);
    // A container's and a file of its own exclude each other.
    let (group, _container) = with_iommu(name, 3);
    let of_group = device(&group, name).expect("the device");
    let file = rows.file("cdev: open, in a group", open(&path));
    if let Some(file) = &file {
        rows.row("cdev: bind, in a group", bind(file, iommu.0).map(i64::from));
    }
    rows.row("cdev: bind the group's", bind(&of_group, iommu.0).map(i64::from));
    rows.row("cdev: attach the group's", attach(&of_group, ioas).map(|_| 0));
    drop((of_group, group));
    if let Some(file) = &file {
        rows.row("cdev: bind, the group closed", bind(file, iommu.0).map(|_| 0));
    }
}
