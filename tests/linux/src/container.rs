//! Requests on containers and groups.

use ioasid_uapi::vfio::container::{
    self, Bitmap, DMA_MAP_FLAG_READ, DMA_MAP_FLAG_VADDR, DMA_MAP_FLAG_WRITE, DMA_UNMAP_FLAG_ALL,
    DMA_UNMAP_FLAG_GET_DIRTY_BITMAP, DMA_UNMAP_FLAG_VADDR, DirtyBitmap, DirtyBitmapGet, Type1DmaMap, Type1DmaUnmap,
};
use ioasid_uapi::vfio::group;

use crate::sys::{File, Memory, Outcome, Rows, ask, map, number, open, read};

const PAGE: u64 = 4096;
const CONTAINER: &str = "/dev/vfio/vfio";

/// The file of the group that a device is in.
pub(crate) fn group_of(name: &str) -> String {
    let link = std::fs::read_link(format!("/sys/bus/pci/devices/{name}/iommu_group")).expect("the device has a group");
    format!("/dev/vfio/{}", link.file_name().expect("a group has a number").to_string_lossy())
}

pub(crate) fn set_container(group: &File, container: i32) -> Outcome {
    ask(group, group::SET_CONTAINER, &mut { container })
}

/// The device out of a group, by its name and what is written behind it.
pub(crate) fn device(group: &File, name: &str) -> Result<File, i32> {
    let name = std::ffi::CString::new(name).map_err(|_| libc::EINVAL)?;
    number(group, group::GET_DEVICE_FD, name.as_ptr() as u64).map(|file| File(file as i32))
}

fn status(group: &File, argsz: u32) -> Outcome {
    let mut status = group::GroupStatus { argsz, flags: 0xff };
    ask(group, group::GET_STATUS, &mut status).map(|_| status.flags.into())
}

/// The ways to an address space by way of a group: how it is called, the file that is the container, and the version.
pub(crate) const MODES: [(&str, &str, u32); 4] = [
    ("type1", CONTAINER, container::TYPE1_IOMMU),
    ("type1v2", CONTAINER, container::TYPE1V2_IOMMU),
    ("compat-type1", "/dev/iommu", container::TYPE1_IOMMU),
    ("compat-type1v2", "/dev/iommu", container::TYPE1V2_IOMMU),
];

/// A container with a group in it, and an IOMMU of this version.
pub(crate) fn with_iommu(name: &str, kind: u32) -> (File, File) {
    in_container(name, CONTAINER, kind)
}

/// The same, with this file as the container.
pub(crate) fn in_container(name: &str, container: &str, kind: u32) -> (File, File) {
    let (group, container) = (open(&group_of(name)).expect("the group"), open(container).expect("the container"));
    set_container(&group, container.0).expect("SET_CONTAINER");
    number(&container, container::SET_IOMMU, kind.into()).expect("SET_IOMMU");
    (group, container)
}

pub(crate) fn rows(name: &str, rows: &mut Rows) {
    life(name, rows);
    for (version, file, kind) in MODES {
        let (group, container) = in_container(name, file, kind);
        requests(version, &group, &container, rows);
        mappings(version, &container, rows);
        addresses(version, &container, rows);
        written(version, &container, rows);
    }
}

fn life(name: &str, rows: &mut Rows) {
    let container = open(CONTAINER).expect("the container");
    let path = group_of(name);
    let extensions = |when: &str, container: &File, rows: &mut Rows| {
        for extension in (0..14).chain([u64::MAX, 1 << 32 | 1]) {
            let answer = number(container, container::CHECK_EXTENSION, extension);
            rows.row(&format!("extension {extension:#x}, {when}"), answer);
        }
    };
    rows.row("api version", number(&container, container::GET_API_VERSION, 0));
    extensions("no group", &container, rows);
    for kind in 0..12 {
        rows.row(&format!("set iommu {kind}, no group"), number(&container, container::SET_IOMMU, kind));
    }
    for request in [container::IOMMU_GET_INFO, container::IOMMU_MAP_DMA, container::IOMMU_UNMAP_DMA, 0x3b7f] {
        rows.row(&format!("request {request:#x}, no iommu"), number(&container, request, 0));
    }
    rows.row("read a container", read(&container, 8, 0));
    rows.row("map a container", map(&container, 4096, 0, libc::MAP_SHARED));
    let group = open(&path).expect("the group");
    drop(rows.file("open a group again", open(&path)));
    rows.row("status", status(&group, 8));
    rows.row("status, short", status(&group, 7));
    rows.row("status, nowhere", number(&group, group::GET_STATUS, 0));
    drop(rows.file("device, no container", device(&group, name)));
    rows.row("unset, no container", number(&group, group::UNSET_CONTAINER, 0));
    for (what, file) in [("-1", -1), ("none", 900), ("itself", group.0), ("input", 0)] {
        rows.row(&format!("set container: {what}"), set_container(&group, file));
    }
    rows.row("set container, nowhere", number(&group, group::SET_CONTAINER, 0));
    for request in [container::GET_API_VERSION, container::SET_IOMMU, 0x3b6b, 0x3b7f] {
        rows.row(&format!("request {request:#x} on a group"), number(&group, request, 0));
    }
    rows.row("read a group", read(&group, 8, 0));
    rows.row("map a group", map(&group, 4096, 0, libc::MAP_SHARED));
    rows.row("set container", set_container(&group, container.0));
    rows.row("set container again", set_container(&group, container.0));
    rows.row("status, container", status(&group, 8));
    drop(rows.file("device, no iommu", device(&group, name)));
    for kind in (0..14).filter(|kind| ![1, 3].contains(kind)).chain([u64::MAX]) {
        rows.row(&format!("set iommu {kind:#x}"), number(&container, container::SET_IOMMU, kind));
    }
    rows.row("unset", number(&group, group::UNSET_CONTAINER, 0));
    rows.row("set container once more", set_container(&group, container.0));
    rows.row("set iommu", number(&container, container::SET_IOMMU, container::TYPE1V2_IOMMU.into()));
    rows.row("set iommu again", number(&container, container::SET_IOMMU, container::TYPE1V2_IOMMU.into()));
    extensions("an iommu", &container, rows);
    for request in [0x3b7f, group::GET_STATUS, 0x3b80, 0x5401] {
        rows.row(&format!("request {request:#x}, an iommu"), number(&container, request, 0));
    }
    let token = "vf_token=01234567-89ab-cdef-0123-456789abcdef";
    let names = [
        ("empty", String::new()),
        ("cut short", name[..name.len() - 1].to_owned()),
        ("longer", format!("{name}0")),
        ("a blank", format!("{name} ")),
        ("a token", format!("{name} {token}")),
        ("a bad token", format!("{name} vf_token=1")),
        ("an option", format!("{name} x=1")),
        ("a long name", " ".repeat(5000)),
        ("upper case", name.to_uppercase().replace('0', "O")),
    ];
    for (what, name) in names {
        drop(rows.file(&format!("device: {what}"), device(&group, &name)));
    }
    rows.row("device, nowhere", number(&group, group::GET_DEVICE_FD, 0));
    let (one, two) = (rows.file("device", device(&group, name)), rows.file("device again", device(&group, name)));
    rows.row("unset, devices", number(&group, group::UNSET_CONTAINER, 0));
    drop(one);
    rows.row("unset, a device", number(&group, group::UNSET_CONTAINER, 0));
    drop(group);
    drop(rows.file("open a group with a device", open(&path)));
    drop(two);
    let group = rows.file("open a group that is closed", open(&path));
    rows.row("map, the last group gone", number(&container, container::IOMMU_MAP_DMA, 0));
    drop(group);
}

fn requests(version: &str, group: &File, container: &File, rows: &mut Rows) {
    let info = |argsz| {
        let mut info = [0u32; 64];
        info[0] = argsz;
        ask(container, container::IOMMU_GET_INFO, &mut info).map(|_| i64::from(info[1]))
    };
    for argsz in [0, 15, 16, 23, 24, 256] {
        rows.row(&format!("{version} info, argsz {argsz}"), info(argsz));
    }
    for request in [container::IOMMU_GET_INFO, container::IOMMU_MAP_DMA, container::IOMMU_UNMAP_DMA, 0x3b75] {
        rows.row(&format!("{version} {request:#x}, nowhere"), number(container, request, 0));
    }
    rows.row(&format!("{version} status"), status(group, 8));
}

pub(crate) fn do_map(container: &File, flags: u32, vaddr: u64, iova: u64, size: u64) -> Outcome {
    ask(container, container::IOMMU_MAP_DMA, &mut Type1DmaMap { argsz: 32, flags, vaddr, iova, size })
}

/// How many bytes were unmapped.
pub(crate) fn do_unmap(container: &File, flags: u32, iova: u64, size: u64) -> Outcome {
    let mut request = Type1DmaUnmap { argsz: 24, flags, iova, size };
    ask(container, container::IOMMU_UNMAP_DMA, &mut request).map(|_| request.size as i64)
}

fn mappings(version: &str, container: &File, rows: &mut Rows) {
    let memory = Memory::new(16 * PAGE as usize);
    let (at, both) = (memory.address, DMA_MAP_FLAG_READ | DMA_MAP_FLAG_WRITE);
    let mut row = |what: &str, outcome| rows.row(&format!("{version} {what}"), outcome);
    row("map", do_map(container, both, at, 0x1_0000, 4 * PAGE));
    let maps = [
        ("an unknown flag", 1 << 3, at, 0x10_0000, PAGE),
        ("no access", 0, at, 0x18_0000, PAGE),
        ("access and address", DMA_MAP_FLAG_READ | DMA_MAP_FLAG_VADDR, at, 0x10_0000, PAGE),
        ("nothing", both, at, 0x10_0000, 0),
        ("half a page", both, at, 0x10_0000, PAGE / 2),
        ("an odd IOVA", both, at, 0x10_0010, PAGE),
        ("an odd address", both, at + 8, 0x10_0000, PAGE),
        ("IOVA beyond the end", both, at, u64::MAX - PAGE + 1, 2 * PAGE),
        ("address beyond the end", both, u64::MAX - PAGE + 1, 0x10_0000, 2 * PAGE),
        ("both, and an unknown flag", 1 << 3, u64::MAX - PAGE + 1, u64::MAX - PAGE + 1, 2 * PAGE),
        ("beyond the end, and odd", both, at + 8, u64::MAX - PAGE + 1, 2 * PAGE),
        ("the last byte", both, at, u64::MAX - PAGE + 1, PAGE),
        ("mapped already", both, at, 0x1_0000, 4 * PAGE),
        ("a part, mapped already", both, at, 0x1_3000, PAGE),
        ("over the end of a mapping", both, at, 0x1_3000, 2 * PAGE),
        ("mapped already, no memory", both, PAGE, 0x1_0000, PAGE),
        ("for interrupts", both, at, 0xfee0_0000, PAGE),
        ("for interrupts, no memory", both, PAGE, 0xfee0_0000, PAGE),
        ("beyond the page tables", both, at, 1 << 60, PAGE),
        ("no memory", both, PAGE, 0x10_0000, PAGE),
        ("no memory, to read", DMA_MAP_FLAG_READ, PAGE, 0x10_0000, PAGE),
        ("memory with an end", both, at + 12 * PAGE, 0x10_0000, 1 << 40),
        ("a new address of nothing", DMA_MAP_FLAG_VADDR, at, 0x10_0000, PAGE),
        ("a new address of what has one", DMA_MAP_FLAG_VADDR, at, 0x1_0000, 4 * PAGE),
        ("to read", DMA_MAP_FLAG_READ, at, 0x20_0000, PAGE),
        ("to write", DMA_MAP_FLAG_WRITE, at, 0x20_1000, PAGE),
    ];
    for (what, flags, vaddr, iova, size) in maps {
        row(&format!("map {what}"), do_map(container, flags, vaddr, iova, size));
    }
    // There is one only where one was made.
    let _ = do_unmap(container, 0, 0x18_0000, PAGE);
    let short = &mut Type1DmaMap { argsz: 31, flags: both, vaddr: at, iova: 0x10_0000, size: PAGE };
    row("map argsz", ask(container, container::IOMMU_MAP_DMA, short));
    let unmaps = [
        ("an unknown flag", 1 << 3, 0x1_0000, 4 * PAGE),
        ("a bitmap of all", DMA_UNMAP_FLAG_GET_DIRTY_BITMAP | DMA_UNMAP_FLAG_ALL, 0x1_0000, 4 * PAGE),
        ("a bitmap without room", DMA_UNMAP_FLAG_GET_DIRTY_BITMAP, 0x1_0000, 4 * PAGE),
        ("all, and a range", DMA_UNMAP_FLAG_ALL, 0x1_0000, 4 * PAGE),
        ("all, and a length", DMA_UNMAP_FLAG_ALL, 0, PAGE),
        ("nothing", 0, 0x1_0000, 0),
        ("half a page", 0, 0x1_0000, PAGE / 2),
        ("an odd IOVA", 0, 0x1_0008, PAGE),
        ("beyond the end", 0, u64::MAX - PAGE + 1, 2 * PAGE),
        ("the last page", 0, u64::MAX - PAGE + 1, PAGE),
        ("where nothing is", 0, 0x80_0000, PAGE),
        ("the middle", 0, 0x1_1000, PAGE),
        ("the second half", 0, 0x1_2000, 2 * PAGE),
        ("from before into it", 0, 0xf000, 2 * PAGE),
        ("what is left of it", 0, 0xf000, 8 * PAGE),
    ];
    for (what, flags, iova, size) in unmaps {
        row(&format!("unmap {what}"), do_unmap(container, flags, iova, size));
    }
    let short = &mut Type1DmaUnmap { argsz: 23, flags: 0, iova: 0x20_0000, size: PAGE };
    row("unmap argsz", ask(container, container::IOMMU_UNMAP_DMA, short));
    for iova in [0x1_0000, 0x1_4000, 0x2_0000] {
        row("map again", do_map(container, both, at, iova, 4 * PAGE));
    }
    row("unmap the first half", do_unmap(container, 0, 0x1_0000, 2 * PAGE));
    row("unmap into the second", do_unmap(container, 0, 0x1_4000, 2 * PAGE));
    row("unmap across a hole", do_unmap(container, 0, 0x1_0000, 0x1_4000));
    row("unmap all", do_unmap(container, DMA_UNMAP_FLAG_ALL, 0, 0));
    row("unmap all again", do_unmap(container, DMA_UNMAP_FLAG_ALL, 0, 0));
}

fn addresses(version: &str, container: &File, rows: &mut Rows) {
    let memory = Memory::new(4 * PAGE as usize);
    let (at, both, size) = (memory.address, DMA_MAP_FLAG_READ | DMA_MAP_FLAG_WRITE, 4 * PAGE);
    let mut row = |what: &str, outcome| rows.row(&format!("{version} {what}"), outcome);
    row("map to lose its address", do_map(container, both, at, 0x1_0000, size));
    row("take the address of nothing", do_unmap(container, DMA_UNMAP_FLAG_VADDR, 0x80_0000, PAGE));
    row("take the address", do_unmap(container, DMA_UNMAP_FLAG_VADDR, 0x1_0000, size));
    row("take it again", do_unmap(container, DMA_UNMAP_FLAG_VADDR, 0x1_0000, size));
    row("take all", do_unmap(container, DMA_UNMAP_FLAG_VADDR | DMA_UNMAP_FLAG_ALL, 0, 0));
    row("give half an address", do_map(container, DMA_MAP_FLAG_VADDR, at, 0x1_0000, size / 2));
    row("give the other half", do_map(container, DMA_MAP_FLAG_VADDR, at, 0x1_2000, size / 2));
    row("give an address", do_map(container, DMA_MAP_FLAG_VADDR, at, 0x1_0000, size));
    row("give it again", do_map(container, DMA_MAP_FLAG_VADDR, at, 0x1_0000, size));
    row("take all of one", do_unmap(container, DMA_UNMAP_FLAG_VADDR | DMA_UNMAP_FLAG_ALL, 0, 0));
    row("unmap without an address", do_unmap(container, 0, 0x1_0000, size));
}

/// DIRTY_PAGES with its GET_BITMAP, or UNMAP_DMA with its bitmap.
#[repr(C)]
struct With<T, U> {
    head: T,
    more: U,
}

fn written(version: &str, container: &File, rows: &mut Rows) {
    let memory = Memory::new(16 * PAGE as usize);
    let (at, both, size) = (memory.address, DMA_MAP_FLAG_READ | DMA_MAP_FLAG_WRITE, 4 * PAGE);
    let mut row = |what: &str, outcome| rows.row(&format!("{version} {what}"), outcome);
    row("map to be written", do_map(container, both, at, 0x1_0000, size));
    let flags = |flags| ask(container, container::IOMMU_DIRTY_PAGES, &mut DirtyBitmap { argsz: 8, flags });
    let get_with = |argsz, flags, bitmap, iova, size| {
        let (head, more) = (DirtyBitmap { argsz, flags }, DirtyBitmapGet { iova, size, bitmap });
        ask(container, container::IOMMU_DIRTY_PAGES, &mut With { head, more })
    };
    let good = Bitmap { pgsize: PAGE, size: 8, data: at };
    let get = |bitmap, iova, size| get_with(48, container::DIRTY_PAGES_FLAG_GET_BITMAP, bitmap, iova, size);
    row("dirty, off", get(good, 0x1_0000, size));
    row("dirty stop, off", flags(container::DIRTY_PAGES_FLAG_STOP));
    row("dirty start", flags(container::DIRTY_PAGES_FLAG_START));
    row("dirty start again", flags(container::DIRTY_PAGES_FLAG_START));
    for odd in [0, 3, 5, 8, 12] {
        row(&format!("dirty flags {odd}"), flags(odd));
    }
    row("dirty argsz", get_with(47, 4, good, 0x1_0000, size));
    row("dirty argsz, barely", get_with(8, 4, good, 0x1_0000, size));
    let gets = [
        ("nothing", good, 0x1_0000, 0),
        ("half a page", good, 0x1_0000, PAGE / 2),
        ("an odd IOVA", good, 0x1_0008, PAGE),
        ("half a mapping", good, 0x1_0000, size / 2),
        ("the other half", good, 0x1_2000, size / 2),
        ("where nothing is", good, 0x80_0000, size),
        ("more than there is", good, 0xf000, 6 * PAGE),
        ("large pages", Bitmap { pgsize: 2 << 20, ..good }, 0, 2 << 20),
        ("a short bitmap", good, 0, 65 * PAGE),
        ("an empty bitmap", Bitmap { size: 0, ..good }, 0x1_0000, size),
        ("a large bitmap", Bitmap { size: 1 << 29, ..good }, 0x1_0000, size),
        ("a bitmap of the kernel's", Bitmap { data: 1 << 63, ..good }, 0x1_0000, size),
        ("a bitmap nowhere", Bitmap { data: PAGE, ..good }, 0x1_0000, size),
        ("beyond the end", good, u64::MAX - PAGE + 1, 2 * PAGE),
        ("it", good, 0x1_0000, size),
    ];
    for (what, bitmap, iova, size) in gets {
        row(&format!("dirty {what}"), get(bitmap, iova, size));
    }
    let unmap = |bitmap, iova, size| {
        let head = Type1DmaUnmap { argsz: 48, flags: DMA_UNMAP_FLAG_GET_DIRTY_BITMAP, iova, size };
        let mut request = With { head, more: bitmap };
        ask(container, container::IOMMU_UNMAP_DMA, &mut request).map(|_| request.head.size as i64)
    };
    row("unmap with large pages", unmap(Bitmap { pgsize: 2 << 20, ..good }, 0x1_0000, size));
    row("unmap with a short bitmap", unmap(Bitmap { size: 0, ..good }, 0x1_0000, size));
    row("unmap with a bitmap of the kernel's", unmap(Bitmap { data: 1 << 63, ..good }, 0x1_0000, size));
    row("unmap with a bitmap", unmap(good, 0x1_0000, size));
    row("dirty stop", flags(container::DIRTY_PAGES_FLAG_STOP));
    row("unmap with a bitmap, off", unmap(good, 0x1_0000, size));
}
