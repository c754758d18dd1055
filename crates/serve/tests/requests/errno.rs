//! What is wrong with a request, and what Linux answers: a table over all 22 requests.
//!
//! Source: `include/uapi/linux/iommufd.h` and `Documentation/userspace-api/iommufd.rst` of Linux 7.3.

use ioasid_uapi::iommufd as uapi;
use ioasid_uapi::iommufd::selftest::data;
use rustix::io::Errno;
use zerocopy::{Immutable, IntoBytes};

use super::program::{MEMORY, NOWHERE, SIZE};
use super::setup::{ARGUMENT, DATA, IOVA, Objects, PAGE, Setup};

/// A request that would succeed, or fail only by what it is about, and what of it can be wrong.
pub struct Request {
    name: &'static str,
    number: u32,
    bytes: Vec<u8>,
    /// The shortest form that is accepted.
    minimum: usize,
    /// Offset of the flags, and those that are known.
    flags: Option<(usize, u32)>,
    /// Offsets of what has to be 0, each of so many bytes.
    reserved: &'static [(usize, usize)],
    pub ids: Vec<Id>,
}

/// The id of an object in a request.
pub struct Id {
    offset: usize,
    /// What there is no object for.
    pub missing: Errno,
    /// Which objects are right, or wrong in another way than by their kind.
    right: Vec<u32>,
    /// What others get.
    pub wrong: Errno,
}

pub fn request<T: IntoBytes + Immutable>(name: &'static str, number: u32, value: T, minimum: usize) -> Request {
    Request { name, number, bytes: value.as_bytes().to_vec(), minimum, flags: None, reserved: &[], ids: Vec::new() }
}

impl Request {
    pub fn flags(mut self, offset: usize, known: u32) -> Self {
        self.flags = Some((offset, known));
        self
    }

    pub fn reserved(mut self, reserved: &'static [(usize, usize)]) -> Self {
        self.reserved = reserved;
        self
    }

    pub fn id(mut self, offset: usize, errno: Errno, right: &[u32]) -> Self {
        self.ids.push(Id { offset, missing: errno, right: right.to_vec(), wrong: errno });
        self
    }

    fn with(&self, offset: usize, value: &[u8]) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes[offset..offset + value.len()].copy_from_slice(value);
        bytes
    }
}

/// All of them. What is named to be right is not tried.
fn requests(setup: &Setup) -> Vec<Request> {
    let objects = setup.objects;
    let Objects { ioas, device, tracked, nested, viommu, empty, .. } = objects;
    let spaces = [ioas, empty];
    let tables = [objects.automatic, objects.parent, tracked];
    let mut alloc_on_spaces = request("HWPT_ALLOC", uapi::HWPT_ALLOC, setup.hwpt_alloc(), 24)
        .flags(4, 0b1111)
        .reserved(&[(20, 4)])
        .id(8, Errno::NOENT, &[device]);
    // Page tables and a virtual IOMMU can be nested on, but not without data.
    let parents = [ioas, empty, objects.automatic, objects.parent, tracked, viommu];
    alloc_on_spaces = alloc_on_spaces.id(12, Errno::INVAL, &parents);
    let mut invalidate = request(
        "HWPT_INVALIDATE",
        uapi::HWPT_INVALIDATE,
        uapi::HwptInvalidate {
            size: 32,
            hwpt_id: nested,
            data_uptr: DATA,
            data_type: data::HWPT_INVALIDATE_DATA_SELFTEST,
            entry_len: 8,
            entry_num: 1,
            reserved: 0,
        },
        32,
    )
    .reserved(&[(28, 4)])
    .id(4, Errno::INVAL, &[nested, viommu]);
    invalidate.ids[0].missing = Errno::NOENT;
    let copy = uapi::IoasCopy {
        size: size_of::<uapi::IoasCopy>() as u32,
        flags: 7,
        dst_ioas_id: ioas,
        src_ioas_id: ioas,
        length: PAGE,
        dst_iova: IOVA + 0x20_0000,
        src_iova: IOVA,
    };
    let ranges =
        uapi::IoasIovaRanges { size: 32, ioas_id: ioas, num_iovas: 8, allowed_iovas: DATA, ..Default::default() };
    let allow = uapi::IoasAllowIovas { size: 24, ioas_id: ioas, ..Default::default() };
    let info = uapi::HwInfo { size: 40, dev_id: device, ..Default::default() };
    let set_dirty = uapi::HwptSetDirtyTracking { size: 16, hwpt_id: tracked, ..Default::default() };
    let get_dirty = uapi::HwptGetDirtyBitmap {
        size: 48,
        hwpt_id: tracked,
        iova: IOVA,
        length: 4 * PAGE,
        page_size: PAGE,
        data: DATA,
        ..Default::default()
    };
    let option = uapi::IommuOption {
        size: 24,
        option_id: uapi::OPTION_HUGE_PAGES,
        op: uapi::OPTION_OP_GET,
        object_id: ioas,
        ..Default::default()
    };
    let vfio = uapi::VfioIoas { size: 12, ioas_id: ioas, op: uapi::VFIO_IOAS_SET, reserved: 0 };
    let unmap = uapi::IoasUnmap { size: 24, ioas_id: ioas, iova: IOVA + 0x40_0000, length: PAGE };
    let physical = uapi::IoasNoiommuGetPa { size: 40, ioas_id: ioas, iova: IOVA, length: PAGE, ..Default::default() };
    let map = Setup::map(&objects, IOVA + 0x10_0000);
    vec![
        request("DESTROY", uapi::DESTROY, uapi::Destroy { size: 8, id: 999 }, 8),
        request("IOAS_ALLOC", uapi::IOAS_ALLOC, uapi::IoasAlloc { size: 12, ..Default::default() }, 12).flags(4, 0),
        request("IOAS_ALLOW_IOVAS", uapi::IOAS_ALLOW_IOVAS, allow, 24).reserved(&[(12, 4)]).id(
            4,
            Errno::NOENT,
            &spaces,
        ),
        request("IOAS_COPY", uapi::IOAS_COPY, copy, 40).flags(4, 7).id(8, Errno::NOENT, &spaces).id(
            12,
            Errno::NOENT,
            &spaces,
        ),
        request("IOAS_IOVA_RANGES", uapi::IOAS_IOVA_RANGES, ranges, 32).reserved(&[(12, 4)]).id(
            4,
            Errno::NOENT,
            &spaces,
        ),
        request("IOAS_MAP", uapi::IOAS_MAP, map, 40).flags(4, 7).reserved(&[(12, 4)]).id(8, Errno::NOENT, &spaces),
        request("IOAS_UNMAP", uapi::IOAS_UNMAP, unmap, 24).id(4, Errno::NOENT, &spaces),
        request("OPTION", uapi::OPTION, option, 24).reserved(&[(10, 2)]).id(12, Errno::NOENT, &spaces),
        request("VFIO_IOAS", uapi::VFIO_IOAS, vfio, 12).reserved(&[(10, 2)]).id(4, Errno::NOENT, &spaces),
        alloc_on_spaces,
        request("GET_HW_INFO", uapi::GET_HW_INFO, info, 32).flags(4, 1).reserved(&[(29, 1), (30, 1), (31, 1)]).id(
            8,
            Errno::NOENT,
            &[device],
        ),
        request("HWPT_SET_DIRTY_TRACKING", uapi::HWPT_SET_DIRTY_TRACKING, set_dirty, 16).flags(4, 1).id(
            8,
            Errno::NOENT,
            &tables,
        ),
        request("HWPT_GET_DIRTY_BITMAP", uapi::HWPT_GET_DIRTY_BITMAP, get_dirty, 48)
            .flags(8, 1)
            .reserved(&[(12, 4)])
            .id(4, Errno::NOENT, &tables),
        invalidate,
        request("FAULT_QUEUE_ALLOC", uapi::FAULT_QUEUE_ALLOC, uapi::FaultAlloc { size: 16, ..Default::default() }, 16)
            .flags(4, 0),
        request("IOAS_MAP_FILE", uapi::IOAS_MAP_FILE, setup.map_file(), 40).flags(4, 7).id(8, Errno::NOENT, &spaces),
        request("VIOMMU_ALLOC", uapi::VIOMMU_ALLOC, setup.viommu_alloc(), 24)
            .flags(4, 0)
            .reserved(&[(28, 4)])
            .id(12, Errno::NOENT, &[device])
            .id(16, Errno::NOENT, &tables),
        request("VDEVICE_ALLOC", uapi::VDEVICE_ALLOC, setup.vdevice_alloc(), 24).id(4, Errno::NOENT, &[viommu]).id(
            8,
            Errno::NOENT,
            &[device],
        ),
        request(
            "IOAS_CHANGE_PROCESS",
            uapi::IOAS_CHANGE_PROCESS,
            uapi::IoasChangeProcess { size: 8, ..Default::default() },
            8,
        )
        .reserved(&[(4, 4)]),
        request("VEVENTQ_ALLOC", uapi::VEVENTQ_ALLOC, setup.veventq_alloc(), 28).flags(4, 0).reserved(&[(28, 4)]).id(
            8,
            Errno::NOENT,
            &[viommu],
        ),
        request("HW_QUEUE_ALLOC", uapi::HW_QUEUE_ALLOC, setup.hw_queue_alloc(), 40).flags(4, 0).id(
            8,
            Errno::NOENT,
            &[viommu],
        ),
        request("IOAS_NOIOMMU_GET_PA", uapi::IOAS_NOIOMMU_GET_PA, physical, 40),
    ]
}

/// Asks, and sees to it that nothing is another than before.
pub struct Asker<'a> {
    pub setup: &'a Setup,
    pub rows: usize,
}

impl Asker<'_> {
    pub fn row(&mut self, what: &str, number: u32, bytes: &[u8], errno: Errno) {
        let before = self.setup.state();
        let got = self.setup.raw(number, bytes);
        assert_eq!(got, Err(errno), "{what}");
        assert_eq!(self.setup.state(), before, "{what} changed something");
        self.rows += 1;
    }
}

#[test]
fn what_is_wrong_with_a_request_gets_linuxs_errno_and_changes_nothing() {
    let setup = Setup::new();
    let mut asker = Asker { setup: &setup, rows: 0 };
    let requests = requests(&setup);
    assert_eq!(requests.len(), 22);
    for request in &requests {
        forms(&mut asker, request);
        fields(&mut asker, request);
    }
    values(&mut asker);
    busy(&mut asker);
    println!("{} rows over {} requests", asker.rows, requests.len());
    assert!(asker.rows >= 300);
}

/// Sizes, tails and addresses.
pub fn forms(asker: &mut Asker<'_>, request: &Request) {
    let Request { name, number, bytes, minimum, .. } = request;
    for size in [0, 4, minimum - 1] {
        let short = request.with(0, &(size as u32).to_ne_bytes());
        asker.row(&format!("{name} with {size} bytes"), *number, &short, Errno::INVAL);
    }
    for tail in [1, 4096 + 3] {
        let mut long = request.with(0, &((bytes.len() + tail) as u32).to_ne_bytes());
        long.resize(bytes.len() + tail, 0);
        *long.last_mut().unwrap() = 1;
        asker.row(&format!("{name} with a tail of {tail} bytes"), *number, &long, Errno::TOOBIG);
    }
    for address in [0, NOWHERE, MEMORY + SIZE - 2, u64::MAX - 1] {
        let before = asker.setup.state();
        let got = asker.setup.file.ioctl(*number, address, &asker.setup.program);
        assert_eq!(got, Err(Errno::FAULT), "{name} at {address:#x}");
        assert_eq!(asker.setup.state(), before, "{name}");
        asker.rows += 1;
    }
}

/// Flags, reserved fields and ids.
pub fn fields(asker: &mut Asker<'_>, request: &Request) {
    let Request { name, number, .. } = request;
    if let Some((offset, known)) = request.flags {
        for bit in [known.trailing_ones(), 16, 31] {
            let bytes = request.with(offset, &(1u32 << bit).to_ne_bytes());
            asker.row(&format!("{name} with flag {bit}"), *number, &bytes, Errno::OPNOTSUPP);
        }
    }
    for &(offset, length) in request.reserved {
        for place in [0, length - 1] {
            let bytes = request.with(offset + place, &[1]);
            asker.row(&format!("{name} with a reserved byte at {offset}"), *number, &bytes, Errno::OPNOTSUPP);
        }
    }
    for id in &request.ids {
        for missing in [0, 999, u32::MAX] {
            let bytes = request.with(id.offset, &missing.to_ne_bytes());
            asker.row(&format!("{name} of {missing} at {}", id.offset), *number, &bytes, id.missing);
        }
        for (kind, other) in asker.setup.objects.all() {
            if !id.right.contains(&other) {
                let bytes = request.with(id.offset, &other.to_ne_bytes());
                asker.row(&format!("{name} of {kind} at {}", id.offset), *number, &bytes, id.wrong);
            }
        }
    }
}

/// Values that only one request has.
fn values(asker: &mut Asker<'_>) {
    let setup = asker.setup;
    let objects = setup.objects;
    let map = Setup::map(&objects, IOVA + 0x10_0000);
    let aperture = data_end();
    for (what, map, errno) in [
        ("nothing", uapi::IoasMap { length: 0, ..map }, Errno::INVAL),
        ("everything", uapi::IoasMap { length: u64::MAX, ..map }, Errno::OVERFLOW),
        ("the last address", uapi::IoasMap { iova: u64::MAX, ..map }, Errno::OVERFLOW),
        ("what wraps", uapi::IoasMap { iova: !0 << 12, ..map }, Errno::OVERFLOW),
        ("memory that wraps", uapi::IoasMap { user_va: !0 << 12, ..map }, Errno::OVERFLOW),
        ("what nobody may touch", uapi::IoasMap { flags: 1, ..map }, Errno::INVAL),
        ("where something is", uapi::IoasMap { iova: IOVA, ..map }, Errno::EXIST),
        ("over the end of something", uapi::IoasMap { iova: IOVA + 3 * PAGE, ..map }, Errno::EXIST),
        ("below the aperture", uapi::IoasMap { iova: IOVA - PAGE, ..map }, Errno::INVAL),
        ("above the aperture", uapi::IoasMap { iova: aperture, ..map }, Errno::INVAL),
        ("half a page", uapi::IoasMap { length: 2048, ..map }, Errno::INVAL),
        ("between pages", uapi::IoasMap { iova: map.iova + 2048, ..map }, Errno::INVAL),
        ("memory between pages", uapi::IoasMap { user_va: map.user_va + 2048, ..map }, Errno::INVAL),
        ("memory that is not there", uapi::IoasMap { user_va: NOWHERE, ..map }, Errno::FAULT),
        ("memory that ends", uapi::IoasMap { user_va: MEMORY + SIZE - PAGE, ..map }, Errno::FAULT),
        ("too much, anywhere", uapi::IoasMap { flags: 6, length: 1 << 40, ..map }, Errno::NOSPC),
    ] {
        asker.row(&format!("mapping {what}"), uapi::IOAS_MAP, map.as_bytes(), errno);
    }
    let file = setup.map_file();
    for (what, file, errno) in [
        ("nothing", uapi::IoasMapFile { length: 0, ..file }, Errno::INVAL),
        ("everything", uapi::IoasMapFile { length: u64::MAX, ..file }, Errno::OVERFLOW),
        ("what wraps", uapi::IoasMapFile { start: !0 << 12, length: 2 * PAGE, ..file }, Errno::OVERFLOW),
        ("what nobody may touch", uapi::IoasMapFile { flags: 1, ..file }, Errno::INVAL),
        ("no descriptor", uapi::IoasMapFile { fd: -1, ..file }, Errno::BADF),
        ("a closed descriptor", uapi::IoasMapFile { fd: 77, ..file }, Errno::BADF),
        ("beyond its end", uapi::IoasMapFile { start: SIZE, ..file }, Errno::INVAL),
        ("over its end", uapi::IoasMapFile { start: SIZE - PAGE, length: 2 * PAGE, ..file }, Errno::INVAL),
        ("where something is", uapi::IoasMapFile { iova: IOVA, ..file }, Errno::EXIST),
    ] {
        asker.row(&format!("mapping of a file {what}"), uapi::IOAS_MAP_FILE, file.as_bytes(), errno);
    }
    let unmap = uapi::IoasUnmap { size: 24, ioas_id: objects.ioas, iova: IOVA, length: PAGE };
    for (what, unmap, errno) in [
        ("nothing", uapi::IoasUnmap { length: 0, ..unmap }, Errno::INVAL),
        ("the last address", uapi::IoasUnmap { iova: u64::MAX, ..unmap }, Errno::OVERFLOW),
        ("all but the first", uapi::IoasUnmap { iova: 1, length: u64::MAX, ..unmap }, Errno::OVERFLOW),
        ("what wraps", uapi::IoasUnmap { iova: !0 << 12, length: 2 * PAGE, ..unmap }, Errno::OVERFLOW),
        ("where nothing is", uapi::IoasUnmap { iova: IOVA + 0x80_0000, ..unmap }, Errno::NOENT),
        // A hardware queue needs it, whatever else is wrong.
        ("a part", unmap, Errno::BUSY),
        ("what is needed", uapi::IoasUnmap { length: 4 * PAGE, ..unmap }, Errno::BUSY),
        ("everything", uapi::IoasUnmap { iova: 0, length: u64::MAX, ..unmap }, Errno::BUSY),
    ] {
        asker.row(&format!("unmapping {what}"), uapi::IOAS_UNMAP, unmap.as_bytes(), errno);
    }
    let option = uapi::IommuOption {
        size: 24,
        option_id: uapi::OPTION_HUGE_PAGES,
        op: uapi::OPTION_OP_SET,
        object_id: objects.ioas,
        ..Default::default()
    };
    let limit = uapi::IommuOption { option_id: uapi::OPTION_RLIMIT_MODE, object_id: 0, ..option };
    for (what, option, errno) in [
        ("of no kind", uapi::IommuOption { option_id: 2, ..option }, Errno::OPNOTSUPP),
        ("neither set nor got", uapi::IommuOption { op: 2, ..option }, Errno::OPNOTSUPP),
        ("of no value", uapi::IommuOption { val64: 2, ..option }, Errno::INVAL),
        ("too late", option, Errno::INVAL),
        ("of an object", uapi::IommuOption { object_id: objects.ioas, ..limit }, Errno::OPNOTSUPP),
        ("of the limit, neither", uapi::IommuOption { op: 2, ..limit }, Errno::OPNOTSUPP),
        ("of the limit, too late", limit, Errno::BUSY),
    ] {
        asker.row(&format!("an option {what}"), uapi::OPTION, option.as_bytes(), errno);
    }
    let get = uapi::VfioIoas { size: 12, op: uapi::VFIO_IOAS_GET, ..Default::default() };
    asker.row("no address space for VFIO", uapi::VFIO_IOAS, get.as_bytes(), Errno::NODEV);
    let other = uapi::VfioIoas { op: 3, ..get };
    asker.row("another operation of VFIO", uapi::VFIO_IOAS, other.as_bytes(), Errno::OPNOTSUPP);
    let physical =
        uapi::IoasNoiommuGetPa { size: 40, ioas_id: objects.ioas, iova: IOVA, length: PAGE, ..Default::default() };
    asker.row("where memory is in a machine", uapi::IOAS_NOIOMMU_GET_PA, physical.as_bytes(), Errno::OPNOTSUPP);
    tables(asker);
    virtual_iommus(asker);
}

fn data_end() -> u64 {
    ioasid_uapi::iommufd::selftest::MOCK_APERTURE_LAST + 1
}

fn tables(asker: &mut Asker<'_>) {
    let setup = asker.setup;
    let objects = setup.objects;
    let alloc = setup.hwpt_alloc();
    let nested = uapi::HwptAlloc {
        pt_id: objects.parent,
        data_type: data::HWPT_DATA_SELFTEST,
        data_len: 8,
        data_uptr: DATA,
        ..alloc
    };
    for (what, alloc, errno) in [
        ("data of no type", uapi::HwptAlloc { data_len: 8, ..alloc }, Errno::INVAL),
        ("a type without data", uapi::HwptAlloc { data_type: 1, ..alloc }, Errno::INVAL),
        (
            "data of another type",
            uapi::HwptAlloc { data_type: 1, data_len: 8, data_uptr: DATA, ..alloc },
            Errno::OPNOTSUPP,
        ),
        ("a faulting parent", uapi::HwptAlloc { flags: 5, ..alloc }, Errno::OPNOTSUPP),
        ("no fault queue", uapi::HwptAlloc { flags: 4, fault_id: 999, ..alloc }, Errno::NOENT),
        ("another fault queue", uapi::HwptAlloc { flags: 4, fault_id: objects.ioas, ..alloc }, Errno::NOENT),
        ("nothing to nest", uapi::HwptAlloc { data_type: 0, data_len: 0, ..nested }, Errno::OPNOTSUPP),
        ("a nested parent", uapi::HwptAlloc { flags: 1, ..nested }, Errno::OPNOTSUPP),
        ("nested on no parent", uapi::HwptAlloc { pt_id: objects.automatic, ..nested }, Errno::INVAL),
        // The queue is looked for last.
        (
            "nested on no parent, and no fault queue",
            uapi::HwptAlloc { pt_id: objects.automatic, flags: 4, fault_id: 999, ..nested },
            Errno::INVAL,
        ),
        ("nested on nested", uapi::HwptAlloc { pt_id: objects.nested, ..nested }, Errno::INVAL),
        ("short data", uapi::HwptAlloc { data_len: 3, ..nested }, Errno::INVAL),
        ("long data", uapi::HwptAlloc { data_len: 9, ..nested }, Errno::INVAL),
        ("data nowhere", uapi::HwptAlloc { data_uptr: NOWHERE, ..nested }, Errno::FAULT),
        ("nested data of another type", uapi::HwptAlloc { data_type: 1, ..nested }, Errno::OPNOTSUPP),
    ] {
        asker.row(&format!("HWPT_ALLOC with {what}"), uapi::HWPT_ALLOC, alloc.as_bytes(), errno);
    }
    let dirty = uapi::HwptGetDirtyBitmap {
        size: 48,
        hwpt_id: objects.tracked,
        iova: IOVA,
        length: 4 * PAGE,
        page_size: PAGE,
        data: DATA,
        ..Default::default()
    };
    for (what, dirty, errno) in [
        ("nothing", uapi::HwptGetDirtyBitmap { length: 0, ..dirty }, Errno::INVAL),
        ("what wraps", uapi::HwptGetDirtyBitmap { iova: !0 << 12, length: 2 * PAGE, ..dirty }, Errno::OVERFLOW),
        ("no page size", uapi::HwptGetDirtyBitmap { page_size: 0, ..dirty }, Errno::INVAL),
        (
            "an odd page size",
            uapi::HwptGetDirtyBitmap { page_size: 3 * PAGE, length: 12 * PAGE, ..dirty },
            Errno::INVAL,
        ),
        ("half a page", uapi::HwptGetDirtyBitmap { length: PAGE / 2, ..dirty }, Errno::INVAL),
        ("between pages", uapi::HwptGetDirtyBitmap { iova: IOVA + PAGE / 2, ..dirty }, Errno::INVAL),
        (
            "a table that is not tracked",
            uapi::HwptGetDirtyBitmap { hwpt_id: objects.parent, ..dirty },
            Errno::OPNOTSUPP,
        ),
        ("a bitmap nowhere", uapi::HwptGetDirtyBitmap { data: NOWHERE, ..dirty }, Errno::FAULT),
        ("what was not begun", dirty, Errno::INVAL),
    ] {
        asker.row(&format!("a bitmap of {what}"), uapi::HWPT_GET_DIRTY_BITMAP, dirty.as_bytes(), errno);
    }
    let track = uapi::HwptSetDirtyTracking { size: 16, flags: 1, hwpt_id: objects.parent, reserved: 0 };
    asker.row(
        "tracking of what was not made for it",
        uapi::HWPT_SET_DIRTY_TRACKING,
        track.as_bytes(),
        Errno::OPNOTSUPP,
    );
    let info = uapi::HwInfo { size: 40, flags: 1, dev_id: objects.device, data_type: 1, ..Default::default() };
    asker.row("information of another type", uapi::GET_HW_INFO, info.as_bytes(), Errno::OPNOTSUPP);
    let info = uapi::HwInfo { flags: 0, data_type: 0, data_len: 8, data_uptr: NOWHERE, ..info };
    asker.row("information nowhere", uapi::GET_HW_INFO, info.as_bytes(), Errno::FAULT);
    invalidations(asker);
}

/// Of those that fail, the number of entries comes back as how many were done: none.
fn invalidations(asker: &mut Asker<'_>) {
    let invalidate = uapi::HwptInvalidate {
        size: 32,
        hwpt_id: asker.setup.objects.nested,
        data_uptr: DATA,
        data_type: data::HWPT_INVALIDATE_DATA_SELFTEST,
        entry_len: 8,
        entry_num: 1,
        reserved: 0,
    };
    for (what, invalidate, errno) in [
        ("no entries", uapi::HwptInvalidate { data_uptr: 0, ..invalidate }, Errno::INVAL),
        ("entries of nothing", uapi::HwptInvalidate { entry_len: 0, ..invalidate }, Errno::INVAL),
        ("entries of more than a page", uapi::HwptInvalidate { entry_len: 4097, ..invalidate }, Errno::INVAL),
        ("too many entries", uapi::HwptInvalidate { entry_num: (1 << 19) + 1, ..invalidate }, Errno::INVAL),
        ("entries of another type", uapi::HwptInvalidate { data_type: 7, ..invalidate }, Errno::INVAL),
        ("short entries", uapi::HwptInvalidate { entry_len: 4, ..invalidate }, Errno::INVAL),
        ("long entries", uapi::HwptInvalidate { entry_len: 9, ..invalidate }, Errno::INVAL),
        ("entries nowhere", uapi::HwptInvalidate { data_uptr: NOWHERE, ..invalidate }, Errno::FAULT),
    ] {
        asker.row(&format!("invalidation with {what}"), uapi::HWPT_INVALIDATE, invalidate.as_bytes(), errno);
        assert_eq!(asker.setup.program.get(ARGUMENT + 24, 4), [0; 4], "{what}");
    }
}

fn virtual_iommus(asker: &mut Asker<'_>) {
    let setup = asker.setup;
    let objects = setup.objects;
    let viommu = setup.viommu_alloc();
    for (what, viommu, errno) in [
        ("of no type", uapi::ViommuAlloc { kind: 0, ..viommu }, Errno::OPNOTSUPP),
        ("of another type", uapi::ViommuAlloc { kind: 1, ..viommu }, Errno::OPNOTSUPP),
        ("over no parent", uapi::ViommuAlloc { hwpt_id: objects.tracked, ..viommu }, Errno::INVAL),
        ("with short data", uapi::ViommuAlloc { data_len: 7, ..viommu }, Errno::INVAL),
        ("with long data", uapi::ViommuAlloc { data_len: 25, ..viommu }, Errno::INVAL),
        ("with data nowhere", uapi::ViommuAlloc { data_uptr: NOWHERE, ..viommu }, Errno::FAULT),
    ] {
        asker.row(&format!("a virtual IOMMU {what}"), uapi::VIOMMU_ALLOC, viommu.as_bytes(), errno);
    }
    let device = setup.vdevice_alloc();
    asker.row("a second virtual device", uapi::VDEVICE_ALLOC, device.as_bytes(), Errno::EXIST);
    let events = setup.veventq_alloc();
    for (what, events, errno) in [
        ("of no type", uapi::VeventqAlloc { kind: 0, ..events }, Errno::OPNOTSUPP),
        ("without room", uapi::VeventqAlloc { veventq_depth: 0, ..events }, Errno::INVAL),
        ("with too much room", uapi::VeventqAlloc { veventq_depth: (1 << 19) + 1, ..events }, Errno::INVAL),
        ("twice", events, Errno::EXIST),
    ] {
        asker.row(&format!("an event queue {what}"), uapi::VEVENTQ_ALLOC, events.as_bytes(), errno);
    }
    let queue = setup.hw_queue_alloc();
    for (what, queue, errno) in [
        ("of no type", uapi::HwQueueAlloc { kind: 0, ..queue }, Errno::OPNOTSUPP),
        ("of another type", uapi::HwQueueAlloc { kind: 1, ..queue }, Errno::OPNOTSUPP),
        ("of no length", uapi::HwQueueAlloc { length: 0, ..queue }, Errno::INVAL),
        ("that wraps", uapi::HwQueueAlloc { nesting_parent_iova: !0, length: 2, ..queue }, Errno::OVERFLOW),
        (
            "where nothing is",
            uapi::HwQueueAlloc { index: 1, nesting_parent_iova: IOVA + (1 << 24), ..queue },
            Errno::NOENT,
        ),
        ("of too high an index", uapi::HwQueueAlloc { index: 2, ..queue }, Errno::INVAL),
        ("twice", queue, Errno::EXIST),
    ] {
        asker.row(&format!("a hardware queue {what}"), uapi::HW_QUEUE_ALLOC, queue.as_bytes(), errno);
    }
}

/// What is needed is not destroyed.
fn busy(asker: &mut Asker<'_>) {
    let objects = asker.setup.objects;
    let needed = [
        objects.ioas,
        objects.device,
        objects.automatic,
        objects.parent,
        objects.fault_queue,
        objects.viommu,
        objects.event_queue,
        objects.access,
    ];
    for (kind, id) in objects.all() {
        if needed.contains(&id) {
            let destroy = uapi::Destroy { size: 8, id };
            asker.row(&format!("destroying {kind}"), uapi::DESTROY, destroy.as_bytes(), Errno::BUSY);
        }
    }
}
