//! Requests on `/dev/iommu`: what can be wrong with each, and what each does where nothing is wrong.

use ioasid_uapi::iommufd as uapi;
use ioasid_uapi::iommufd::{HwptAlloc, IoasCopy, IoasMap, IoasUnmap, IovaRange};

use crate::cdev::{attach, bind, new_ioas, path_of};
use crate::sys::{File, Memory, Outcome, Rows, ask, map, number, open, read};

const PAGE: u64 = 4096;
const BOTH: u32 = uapi::MAP_READABLE | uapi::MAP_WRITEABLE;

/// A request in words of 32 bits, and what of it can be wrong.
struct Request {
    name: &'static str,
    number: u32,
    words: Vec<u32>,
    /// The shortest form that is accepted, in bytes.
    minimum: u32,
    flags: Option<usize>,
    reserved: &'static [usize],
    ids: &'static [usize],
}

fn request(name: &'static str, number: u32, words: &[u32], minimum: u32) -> Request {
    Request { name, number, words: words.to_vec(), minimum, flags: None, reserved: &[], ids: &[] }
}

impl Request {
    fn flags(mut self, word: usize) -> Self {
        self.flags = Some(word);
        self
    }

    fn reserved(mut self, words: &'static [usize]) -> Self {
        self.reserved = words;
        self
    }

    fn ids(mut self, words: &'static [usize]) -> Self {
        self.ids = words;
        self
    }

    /// Makes the request, of so many bytes, with some words changed.
    fn make(&self, iommu: &File, size: u32, changes: &[(usize, u32)]) -> Outcome {
        let mut words = [0u32; 64];
        words[..self.words.len()].copy_from_slice(&self.words);
        words[0] = size;
        changes.iter().for_each(|(at, value)| words[*at] = *value);
        ask(iommu, self.number, &mut words)
    }
}

fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

fn words(parts: &[&[u32]]) -> Vec<u32> {
    parts.concat()
}

/// All requests. What they are about is there, or wrong in a way of its own.
fn requests(ioas: u32, device: u32, at: u64) -> Vec<Request> {
    let (address, page) = (halves(at), halves(PAGE));
    vec![
        request("destroy", uapi::DESTROY, &[8, u32::MAX], 8).ids(&[1]),
        request("ioas alloc", uapi::IOAS_ALLOC, &[12, 0, 0], 12).flags(1),
        request("allow iovas", uapi::IOAS_ALLOW_IOVAS, &words(&[&[24, ioas, 0, 0], &address]), 24)
            .reserved(&[3])
            .ids(&[1]),
        request(
            "copy",
            uapi::IOAS_COPY,
            &words(&[&[40, 7, ioas, ioas], &page, &halves(0x70_0000), &halves(0x1_0000)]),
            40,
        )
        .flags(1)
        .ids(&[2, 3]),
        request("iova ranges", uapi::IOAS_IOVA_RANGES, &words(&[&[32, ioas, 4, 0], &address, &[0, 0]]), 32)
            .reserved(&[3])
            .ids(&[1]),
        request("map", uapi::IOAS_MAP, &words(&[&[40, 7, ioas, 0], &address, &page, &halves(0x60_0000)]), 40)
            .flags(1)
            .reserved(&[3])
            .ids(&[2]),
        request("unmap", uapi::IOAS_UNMAP, &words(&[&[24, ioas], &halves(0x50_0000), &page]), 24).ids(&[1]),
        request("option", uapi::OPTION, &[24, 1, 1, 0, ioas, 0, 0, 0], 24).reserved(&[3]).ids(&[4]),
        request("vfio ioas", uapi::VFIO_IOAS, &[12, ioas, 0, 0], 12).reserved(&[3]),
        request("hwpt alloc", uapi::HWPT_ALLOC, &[48, 0, device, ioas, 0, 0, 0, 0, 0, 0, 0, 0], 24)
            .flags(1)
            .reserved(&[5, 11])
            .ids(&[2, 3]),
        request("hw info", uapi::GET_HW_INFO, &[48, 0, device, 0, 0, 0, 0, 0, 0, 0, 0, 0], 24).flags(1).ids(&[2]),
        request("set dirty tracking", uapi::HWPT_SET_DIRTY_TRACKING, &[16, 1, ioas, 0], 16)
            .flags(1)
            .reserved(&[3])
            .ids(&[2]),
        request(
            "get dirty bitmap",
            uapi::HWPT_GET_DIRTY_BITMAP,
            &words(&[&[48, ioas, 0, 0], &page, &page, &page, &address]),
            48,
        )
        .flags(2)
        .reserved(&[3])
        .ids(&[1]),
        request("invalidate", uapi::HWPT_INVALIDATE, &[32, ioas, 0, 0, 0, 0, 0, 0], 32).reserved(&[7]).ids(&[1]),
        request("fault queue", uapi::FAULT_QUEUE_ALLOC, &[16, 1, 0, 0], 16).flags(1),
        request("map file", uapi::IOAS_MAP_FILE, &words(&[&[40, 7, ioas, u32::MAX], &[0, 0], &page, &[0, 0]]), 40)
            .flags(1)
            .ids(&[2]),
        request("viommu", uapi::VIOMMU_ALLOC, &[32, 0, 1, device, ioas, 0, 0, 0, 0, 0], 24)
            .flags(1)
            .reserved(&[7])
            .ids(&[3, 4]),
        request("vdevice", uapi::VDEVICE_ALLOC, &[24, ioas, device, 0, 0, 0], 24).ids(&[1, 2]),
        request("change process", uapi::IOAS_CHANGE_PROCESS, &[8, 0], 8).reserved(&[1]),
        request("veventq", uapi::VEVENTQ_ALLOC, &[32, 1, ioas, 0, 0, 0, 0, 0], 32).flags(1).reserved(&[7]).ids(&[2]),
        request("hw queue", uapi::HW_QUEUE_ALLOC, &[40, 1, ioas, 1, 0, 0, 0, 0, 0, 0], 40).flags(1).ids(&[2]),
    ]
}

pub(crate) fn rows(name: &str, rows: &mut Rows) {
    let (iommu, file) = (open("/dev/iommu").expect("/dev/iommu"), open(&path_of(name)).expect("the device's file"));
    let device = bind(&file, iommu.0).expect("BIND");
    let ioas = new_ioas(&iommu);
    attach(&file, ioas).expect("ATTACH");
    let memory = Memory::new(16 * PAGE as usize);
    let at = memory.address;
    rows.row("iommufd: map, fixed", do_map(&iommu, ioas, 7, at, 0x1_0000, 4 * PAGE));
    for request in requests(ioas, device, at) {
        wrong(&iommu, &request, [ioas, device], rows);
    }
    for request in [0x3b7f, 0x3ba0, 0x5401] {
        rows.row(&format!("iommufd: request {request:#x}"), number(&iommu, request, 0));
    }
    rows.row("iommufd: read", read(&iommu, 8, 0));
    rows.row("iommufd: mmap", map(&iommu, 4096, 0, libc::MAP_SHARED));
    mappings(&iommu, ioas, at, rows);
    copies(&iommu, ioas, at, rows);
    ranges(&iommu, ioas, at, rows);
    tables(&iommu, ioas, device, rows);
    options(&iommu, ioas, rows);
}

/// What can be wrong with any request.
fn wrong(iommu: &File, request: &Request, objects: [u32; 2], rows: &mut Rows) {
    let size = request.words[0];
    let mut row = |what: &str, outcome| rows.row(&format!("iommufd {}: {what}", request.name), outcome);
    row("nowhere", number(iommu, request.number, 0));
    for size in [0, 3, request.minimum - 1, request.minimum - 4] {
        row(&format!("size {size}"), request.make(iommu, size, &[]));
    }
    let (end, tail) = (request.words.len().max(size as usize / 4), size + 8);
    row("longer, not zero", request.make(iommu, tail, &[(end + 1, 1)]));
    row("a page and more", request.make(iommu, 1 << 20, &[]));
    if let Some(flags) = request.flags {
        for bit in [4, 7, 16, 31] {
            let value = request.words[flags] | 1 << bit;
            row(&format!("flag {bit}"), request.make(iommu, size, &[(flags, value)]));
        }
    }
    for reserved in request.reserved {
        row(&format!("reserved word {reserved}"), request.make(iommu, size, &[(*reserved, 1)]));
    }
    for id in request.ids {
        for (what, value) in [("0", 0), ("missing", 1000), ("all ones", u32::MAX)] {
            row(&format!("id {id} {what}"), request.make(iommu, size, &[(*id, value)]));
        }
        if request.number != uapi::DESTROY {
            let [ioas, device] = objects;
            let other = if request.words[*id] == ioas { device } else { ioas };
            row(&format!("id {id} of another kind"), request.make(iommu, size, &[(*id, other)]));
        }
    }
}

fn do_map(iommu: &File, ioas_id: u32, flags: u32, user_va: u64, iova: u64, length: u64) -> Outcome {
    let mut map = IoasMap { size: 40, flags, ioas_id, reserved: 0, user_va, length, iova };
    // Where it was put says nothing.
    ask(iommu, uapi::IOAS_MAP, &mut map)
}

/// How many bytes were unmapped.
fn do_unmap(iommu: &File, ioas_id: u32, iova: u64, length: u64) -> Outcome {
    let mut unmap = IoasUnmap { size: 24, ioas_id, iova, length };
    ask(iommu, uapi::IOAS_UNMAP, &mut unmap).map(|_| unmap.length as i64)
}

fn mappings(iommu: &File, ioas: u32, at: u64, rows: &mut Rows) {
    let fixed = uapi::MAP_FIXED_IOVA | BOTH;
    for (what, flags, address, iova, length) in [
        ("no access", uapi::MAP_FIXED_IOVA, at, 0x10_0000, PAGE),
        ("an unknown flag", fixed | 8, at, 0x10_0000, PAGE),
        ("nothing", fixed, at, 0x10_0000, 0),
        ("half a page", fixed, at, 0x10_0000, PAGE / 2),
        ("an odd IOVA", fixed, at, 0x10_0010, PAGE),
        ("an odd address", fixed, at + 8, 0x11_0000, PAGE),
        ("an odd address, with an IOVA as odd", fixed, at + 8, 0x12_0008, PAGE),
        ("IOVA beyond the end", fixed, at, u64::MAX - PAGE + 1, 2 * PAGE),
        ("address beyond the end", fixed, u64::MAX - PAGE + 1, 0x10_0000, 2 * PAGE),
        ("a length that is all there is", fixed, at, 0x10_0000, u64::MAX),
        ("the last page", fixed, at, u64::MAX - PAGE + 1, PAGE),
        ("mapped already", fixed, at, 0x1_0000, PAGE),
        ("over the end of a mapping", fixed, at, 0x1_3000, 2 * PAGE),
        ("for interrupts", fixed, at, 0xfee0_0000, PAGE),
        ("over what is for interrupts", fixed, at, 0xfedf_f000, 2 * PAGE),
        ("beyond the page tables", fixed, at, 1 << 60, PAGE),
        ("no memory", fixed, PAGE, 0x10_0000, PAGE),
        ("memory with an end", fixed, at + 12 * PAGE, 0x10_0000, 1 << 40),
        ("to read", uapi::MAP_FIXED_IOVA | uapi::MAP_READABLE, at, 0x20_0000, PAGE),
        ("to write", uapi::MAP_FIXED_IOVA | uapi::MAP_WRITEABLE, at, 0x20_1000, PAGE),
        ("anywhere", BOTH, at, 0, PAGE),
        ("anywhere, nothing", BOTH, at, 0, 0),
        ("anywhere, no memory", BOTH, PAGE, 0, PAGE),
        ("four pages", fixed, at, 0x30_0000, 4 * PAGE),
    ] {
        rows.row(&format!("iommufd map {what}"), do_map(iommu, ioas, flags, address, iova, length));
    }
    for (what, iova, length) in [
        ("nothing", 0x30_0000, 0),
        ("half a page", 0x30_0000, PAGE / 2),
        ("an odd IOVA", 0x30_0008, PAGE),
        ("the first half", 0x30_0000, 2 * PAGE),
        ("the middle", 0x30_1000, PAGE),
        ("the end", 0x30_3000, PAGE),
        ("where nothing is", 0x80_0000, PAGE),
        ("more than it", 0x2f_f000, 6 * PAGE),
        ("it again", 0x30_0000, 4 * PAGE),
        ("beyond the end", u64::MAX - PAGE + 1, 2 * PAGE),
        ("the last page", u64::MAX - PAGE + 1, PAGE),
        ("a part of all", 0, u64::MAX - 1),
    ] {
        rows.row(&format!("iommufd unmap {what}"), do_unmap(iommu, ioas, iova, length));
    }
    // How many there were depends on where some were put.
    rows.row("iommufd unmap all", do_unmap(iommu, ioas, 0, u64::MAX).map(|bytes| i64::from(bytes > 0)));
    rows.row("iommufd unmap all again", do_unmap(iommu, ioas, 0, u64::MAX));
}

fn copies(iommu: &File, ioas: u32, at: u64, rows: &mut Rows) {
    let fixed = uapi::MAP_FIXED_IOVA | BOTH;
    rows.row("iommufd map to be copied", do_map(iommu, ioas, fixed, at, 0x1_0000, 4 * PAGE));
    let read_only = uapi::MAP_FIXED_IOVA | uapi::MAP_READABLE;
    rows.row("iommufd map to be read", do_map(iommu, ioas, read_only, at, 0x2_0000, PAGE));
    let second = new_ioas(iommu);
    for (what, flags, to, from_iova, to_iova, length) in [
        ("nothing", fixed, second, 0x1_0000, 0x1_0000, 0),
        ("no access", uapi::MAP_FIXED_IOVA, second, 0x1_0000, 0x1_0000, PAGE),
        ("to itself, over it", fixed, ioas, 0x1_0000, 0x1_0000, PAGE),
        ("to itself", fixed, ioas, 0x1_0000, 0x40_0000, PAGE),
        ("a part", fixed, second, 0x1_1000, 0x1_0000, 2 * PAGE),
        ("a part again", fixed, second, 0x1_1000, 0x1_0000, 2 * PAGE),
        ("more than there is", fixed, second, 0x1_0000, 0x50_0000, 5 * PAGE),
        ("where nothing is", fixed, second, 0x80_0000, 0x50_0000, PAGE),
        ("an odd source", fixed, second, 0x1_0008, 0x50_0000, PAGE),
        ("an odd target", fixed, second, 0x1_0000, 0x50_0008, PAGE),
        ("half a page", fixed, second, 0x1_0000, 0x51_0000, PAGE / 2),
        ("beyond the end", fixed, second, u64::MAX - PAGE + 1, 0x50_0000, 2 * PAGE),
        ("what may be read, to write", fixed, second, 0x2_0000, 0x60_0000, PAGE),
        ("what may be read, to read", read_only, second, 0x2_0000, 0x60_0000, PAGE),
        ("anywhere", BOTH, second, 0x1_0000, 0, PAGE),
    ] {
        let mut copy = IoasCopy {
            size: 40,
            flags,
            dst_ioas_id: to,
            src_ioas_id: ioas,
            length,
            dst_iova: to_iova,
            src_iova: from_iova,
        };
        rows.row(&format!("iommufd copy {what}"), ask(iommu, uapi::IOAS_COPY, &mut copy));
    }
    rows.row("iommufd unmap a copy's source", do_unmap(iommu, ioas, 0x1_0000, 4 * PAGE));
    rows.row("iommufd unmap a copy", do_unmap(iommu, second, 0x1_0000, 2 * PAGE));
    let destroy = |id| ask(iommu, uapi::DESTROY, &mut uapi::Destroy { size: 8, id });
    rows.row("iommufd destroy a space with mappings", destroy(second));
    rows.row("iommufd destroy it again", destroy(second));
}

fn ranges(iommu: &File, ioas: u32, at: u64, rows: &mut Rows) {
    let second = new_ioas(iommu);
    let ask_for = |ioas_id, num_iovas, allowed_iovas| {
        let mut request = uapi::IoasIovaRanges { size: 32, ioas_id, num_iovas, allowed_iovas, ..Default::default() };
        let answer = ask(iommu, uapi::IOAS_IOVA_RANGES, &mut request);
        (answer, i64::from(request.num_iovas) | (request.out_iova_alignment as i64) << 16)
    };
    for (what, of, count, address) in [
        ("of a new space", second, 4, at),
        ("of an attached space", ioas, 4, at),
        ("with no room", ioas, 0, at),
        ("with room for one", ioas, 1, at),
        ("nowhere", ioas, 4, PAGE),
        ("nowhere, with no room", ioas, 0, 0),
    ] {
        let (answer, counted) = ask_for(of, count, address);
        rows.row(&format!("iommufd ranges {what}"), answer);
        rows.row(&format!("iommufd ranges {what}, how many"), Ok(counted));
    }
    let allow = |ioas_id, ranges: &[IovaRange], count: u32| {
        let mut request = uapi::IoasAllowIovas {
            size: 24,
            ioas_id,
            num_iovas: count,
            reserved: 0,
            allowed_iovas: ranges.as_ptr() as u64,
        };
        ask(iommu, uapi::IOAS_ALLOW_IOVAS, &mut request)
    };
    let range = |start, last| IovaRange { start, last };
    let few = [range(0x10_0000, 0x1f_ffff), range(0x40_0000, 0x4f_ffff)];
    rows.row("iommufd allow", allow(second, &few, 2));
    rows.row("iommufd allow the wrong way", allow(second, &[range(2, 1)], 1));
    rows.row("iommufd allow twice the same", allow(second, &[few[0], few[0]], 2));
    rows.row("iommufd allow all but a byte", allow(second, &[range(1, u64::MAX)], 1));
    rows.row("iommufd allow a lot", allow(second, &few, u32::MAX));
    let fixed = uapi::MAP_FIXED_IOVA | BOTH;
    rows.row("iommufd map, allowed", do_map(iommu, second, fixed, at, 0x10_0000, PAGE));
    rows.row("iommufd map, fixed elsewhere", do_map(iommu, second, fixed, at, 0x80_0000, PAGE));
    rows.row("iommufd map, anywhere allowed", do_map(iommu, second, BOTH, at, 0, PAGE));
    rows.row("iommufd allow without what is mapped", allow(second, &few[1..], 1));
    rows.row("iommufd allow what is for interrupts", allow(ioas, &[range(0xfee0_0000, 0xfeef_ffff)], 1));
}

fn tables(iommu: &File, ioas: u32, device: u32, rows: &mut Rows) {
    let alloc = |flags, pt_id, data_type, data_len, data_uptr, fault_id| {
        let mut request = HwptAlloc {
            size: 48,
            flags,
            dev_id: device,
            pt_id,
            data_type,
            data_len,
            data_uptr,
            fault_id,
            ..Default::default()
        };
        ask(iommu, uapi::HWPT_ALLOC, &mut request).map(|_| request.out_hwpt_id)
    };
    let plain = alloc(0, ioas, 0, 0, 0, 0);
    rows.row("iommufd a table", plain.map(|_| 0));
    let table = plain.unwrap_or(0);
    for (what, flags, parent, kind, length, data, fault) in [
        ("of an unknown kind", 0, ioas, 77, 8, PAGE, 0),
        ("with data nowhere", 0, ioas, 1, 24, PAGE, 0),
        ("with data, and no kind", 0, ioas, 0, 24, PAGE, 0),
        ("of a kind, with no data", 0, ioas, 1, 0, 0, 0),
        ("nested in a plain one", 0, table, 1, 24, PAGE, 0),
        ("in a table, with no data", 0, table, 0, 0, 0, 0),
        ("to be a parent, in a table", uapi::HWPT_ALLOC_NEST_PARENT, table, 0, 0, 0, 0),
        ("with faults nowhere", 1 << 2, ioas, 0, 0, 0, 1000),
    ] {
        rows.row(&format!("iommufd a table {what}"), alloc(flags, parent, kind, length, data, fault).map(|_| 0));
    }
    let bitmap = |hwpt_id, flags, iova, length, page_size, data| {
        let mut request =
            uapi::HwptGetDirtyBitmap { size: 48, hwpt_id, flags, reserved: 0, iova, length, page_size, data };
        ask(iommu, uapi::HWPT_GET_DIRTY_BITMAP, &mut request)
    };
    rows.row("iommufd bitmap, no tracking", bitmap(table, 0, 0x1_0000, PAGE, PAGE, PAGE));
    let track = |hwpt_id, flags| {
        let mut request = uapi::HwptSetDirtyTracking { size: 16, hwpt_id, flags, reserved: 0 };
        ask(iommu, uapi::HWPT_SET_DIRTY_TRACKING, &mut request)
    };
    rows.row("iommufd tracking, a table without it", track(table, 1));
    rows.row("iommufd tracking off, a table without it", track(table, 0));
    let destroy = |id| ask(iommu, uapi::DESTROY, &mut uapi::Destroy { size: 8, id });
    rows.row("iommufd destroy a space in use", destroy(ioas));
    rows.row("iommufd destroy a table", destroy(table));
    rows.row("iommufd destroy a table again", destroy(table));
}

fn options(iommu: &File, ioas: u32, rows: &mut Rows) {
    for option_id in 0..3u32 {
        for op in 0..3u16 {
            for object_id in [0, ioas] {
                for value in [0u64, 1, 2] {
                    let mut request =
                        uapi::IommuOption { size: 24, option_id, op, object_id, val64: value, ..Default::default() };
                    let answer = ask(iommu, uapi::OPTION, &mut request).map(|_| request.val64 as i64);
                    let of = if object_id == 0 { "all" } else { "a space" };
                    rows.row(&format!("iommufd option {option_id}, op {op}, of {of}, {value}"), answer);
                }
            }
        }
    }
}
