//! Registers behave through the mapping as they do through reads and writes of the file.

use std::arch::asm;
use std::fs::File;
use std::io::{IoSlice, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt as _;

use ioasid_uapi::vfio;

use super::{LENGTH, NOWHERE, RING, SOURCE, Setup, TARGET};

/// CHANCTRL: the register was read, and the reader has the channel.
const IN_USE: u16 = 1 << 8;
use crate::driver::{CBVER, CHAINADDR, CHANCMP, CHANCTRL, CHANERR, Engine, Memory, Space, ioctl, load, open, store};

pub fn exact() {
    let setup = Setup::new();
    let registers = &setup.engine.registers;
    let mut info = vfio::RegionInfo { argsz: 32, ..Default::default() };
    ioctl(&setup.engine.file, vfio::DEVICE_GET_REGION_INFO, &mut info).unwrap();
    let by_file = |offset: usize| {
        let mut word = [0; 8];
        // SAFETY: eight bytes of ours.
        let n = unsafe {
            libc::pread(
                setup.engine.file.as_raw_fd(),
                word.as_mut_ptr().cast(),
                8,
                (info.offset + offset as u64) as i64,
            )
        };
        assert_eq!(n, 8);
        u64::from_ne_bytes(word)
    };
    // Two halves, one whole, and the same by file.
    store(registers, CHANCMP, 0x1122_3340u32);
    store(registers, CHANCMP + 4, 0x55u32);
    assert_eq!(load::<u64>(registers, CHANCMP), 0x55_1122_3340);
    assert_eq!(by_file(CHANCMP), 0x55_1122_3340);
    written_by_file(&setup.engine.file.try_clone().unwrap().into(), info.offset, registers);
    // Read-only.
    store(registers, CBVER, 0xffu8);
    assert_eq!(load::<u8>(registers, CBVER), 0x32);
    // Write 1 to clear.
    setup.engine.copy(&setup.ring, RING, SOURCE, NOWHERE, 64).unwrap_err();
    assert_eq!(load::<u32>(registers, CHANERR), 1 << 9);
    store(registers, CHANERR, 0u32);
    assert_eq!(load::<u32>(registers, CHANERR), 1 << 9);
    store(registers, CHANERR, 1u32 << 9);
    assert_eq!(load::<u32>(registers, CHANERR), 0);
    // A read with a side effect: the first one takes the channel, the second finds it taken.
    store(registers, CHANCTRL, 0u16);
    assert_eq!(load::<u16>(registers, CHANCTRL) & IN_USE, 0);
    assert_eq!(load::<u16>(registers, CHANCTRL) & IN_USE, IN_USE);
    // The same value written again is a doorbell again: one descriptor each, of a chain that leads to itself.
    setup.source.fill(5);
    setup.engine.copy(&setup.ring, RING, SOURCE, TARGET, LENGTH).unwrap();
    assert!(setup.target.holds(5));
    setup.target.fill(6);
    setup.engine.copy(&setup.ring, RING, SOURCE, TARGET, LENGTH).unwrap();
    assert!(setup.target.holds(5));
    setup.finish();
}

/// Writes eight bytes, and returns how many it wrote.
type Way<'a> = &'a dyn Fn(&[u8]) -> usize;

/// Every way to write a file writes a register, and every way to read one, or the mapping, reads it.
fn written_by_file(file: &File, region: u64, registers: &Memory) {
    let at = region + CHANCMP as u64;
    let seek = |mut file: &File| assert_eq!(file.seek(SeekFrom::Start(at)).unwrap(), at);
    let ways: [Way; 3] = [
        &|bytes| file.write_at(bytes, at).unwrap(),
        &|bytes| {
            seek(file);
            (&*file).write(bytes).unwrap()
        },
        &|bytes| {
            seek(file);
            let (low, high) = bytes.split_at(4);
            (&*file).write_vectored(&[IoSlice::new(low), IoSlice::new(high)]).unwrap()
        },
    ];
    for (value, write) in (1u64..).zip(ways) {
        let value = value * 0x1_0000_0040;
        assert_eq!(write(&value.to_ne_bytes()), 8);
        assert_eq!(load::<u64>(registers, CHANCMP), value);
        let mut bytes = [0; 8];
        seek(file);
        (&*file).read_exact(&mut bytes).unwrap();
        assert_eq!(u64::from_ne_bytes(bytes), value);
    }
}

pub fn wide() {
    let setup = Setup::new();
    let at = setup.engine.registers.address + CHANCMP as u64;
    let (mut eax, mut low): (u32, u64);
    // SAFETY: loads and stores of mapped registers, of eight bytes or, where wider, of registers that take no harm.
    unsafe {
        // Immediate store, read-modify-write, exchange, string store and load.
        asm!("mov dword ptr [{0}], 0x40", "mov dword ptr [{0} + 4], 0", in(reg) at);
        assert_eq!(load::<u64>(&setup.engine.registers, CHANCMP), 0x40);
        asm!("or dword ptr [{0}], 0x80", "add qword ptr [{0}], 0x100", in(reg) at);
        assert_eq!(load::<u64>(&setup.engine.registers, CHANCMP), 0x1c0);
        asm!("mov {1:e}, 0x240", "xchg dword ptr [{0}], {1:e}", in(reg) at, out(reg) eax);
        assert_eq!((eax, load::<u64>(&setup.engine.registers, CHANCMP)), (0x1c0, 0x240));
        asm!("mov rdi, {0}", "mov eax, 0x2c0", "cld", "stosd", in(reg) at, out("rdi") _, out("eax") _);
        asm!("mov rsi, {0}", "lodsq", in(reg) at, out("rsi") _, out("rax") low);
        assert_eq!(low, 0x2c0);
        // 16 bytes by SSE; the register is 8 of them, its neighbour the other 8.
        asm!("movdqu xmm0, [{0}]", "movq {1}, xmm0", in(reg) at, out(reg) low, out("xmm0") _);
        assert_eq!(low, 0x2c0);
        asm!("movq xmm1, {1}", "movq qword ptr [{0}], xmm1", in(reg) at, in(reg) 0x340u64, out("xmm1") _);
        assert_eq!(load::<u64>(&setup.engine.registers, CHANCMP), 0x340);
        if is_x86_feature_detected!("avx") {
            asm!("vmovdqu ymm2, [{0}]", "vmovq {1}, xmm2", "vzeroupper", in(reg) at, out(reg) low, out("xmm2") _);
            assert_eq!(low, 0x340);
        }
        if is_x86_feature_detected!("avx512f") {
            asm!("vmovdqu64 zmm3, [{0}]", "vmovq {1}, xmm3", "vzeroupper", in(reg) at, out(reg) low, out("xmm3") _);
            assert_eq!(low, 0x340);
        }
    }
    setup.finish();
}

/// What a device tells of itself.
pub fn information() {
    let setup = Setup::new();
    for argsz in [16, 24, 100] {
        let mut info = vfio::DeviceInfo { argsz, cap_offset: 0xaaaa, ..Default::default() };
        ioctl(&setup.engine.file, vfio::DEVICE_GET_INFO, &mut info).unwrap();
        // Can be reset, is PCI; the regions and interrupts of a PCI device; and no more than there is room for.
        let cap_offset = if argsz < 24 { 0xaaaa } else { 0 };
        let expected =
            vfio::DeviceInfo { argsz, flags: 0b11, num_regions: 9, num_irqs: 5, cap_offset, ..Default::default() };
        assert_eq!(info, expected);
    }
    // INTx is masked when it is signalled; MSI-X can grow; requests to give the device back. There is no MSI.
    for (index, flags, count) in [(0, 0b0111, 1), (1, 0b1001, 0), (2, 0b0001, 1), (4, 0b1001, 1)] {
        let mut info = vfio::IrqInfo { argsz: 16, index, ..Default::default() };
        ioctl(&setup.engine.file, vfio::DEVICE_GET_IRQ_INFO, &mut info).unwrap();
        assert_eq!(info, vfio::IrqInfo { argsz: 16, flags, index, count });
    }
    setup.finish();
}

/// What a descriptor was opened for decides what it can do, as for any file.
pub fn open_modes() {
    let setup = Setup::new();
    let path = format!("/proc/self/fd/{}", setup.engine.file.as_raw_fd());
    drop(std::fs::OpenOptions::new().write(true).truncate(true).open("/dev/vfio/devices/vfio0").unwrap());
    let only_path = rustix::fs::open(&*path, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    assert_eq!(crate::driver::ioctl_at(only_path.as_raw_fd(), vfio::DEVICE_RESET, 0), Err(libc::EBADF));
    let read_only =
        rustix::fs::open("/dev/vfio/devices/vfio0", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
    let mut info = vfio::RegionInfo { argsz: 32, index: 7, ..Default::default() };
    ioctl(&setup.engine.file, vfio::DEVICE_GET_REGION_INFO, &mut info).unwrap();
    // SAFETY: two bytes of ours.
    let written = unsafe { libc::pwrite(read_only.as_raw_fd(), [0u8; 2].as_ptr().cast(), 2, info.offset as i64 + 4) };
    assert_eq!((written, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EBADF)));
    drop(read_only);
    setup.copy(3);
    setup.finish();
}

/// The processor makes no store to a mapping of registers that are only to be read, and the runner none that a program
/// asks for as the handler does.
pub fn forged_store() {
    const ASK: u64 = 0x3bfe;
    const BUS_ERROR: i64 = libc::SIGBUS as i64;
    let space = Space::new();
    let file = rustix::fs::open("/dev/vfio/devices/vfio0", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
    let file = file.unwrap();
    Engine::bind(&file, &space.iommu).unwrap();
    let mut info = vfio::RegionInfo { argsz: 32, ..Default::default() };
    ioctl(&file, vfio::DEVICE_GET_REGION_INFO, &mut info).unwrap();
    let (fd, offset) = (file.as_raw_fd(), info.offset as i64);
    // SAFETY: a new mapping.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_SHARED, fd, offset) };
    assert_ne!(at, libc::MAP_FAILED);
    let asked = |code: [u8; 2], register: u64| {
        let mut context = [0u64; 64];
        // rbx, rip; the vector registers are not looked at.
        (context[5 + 11], context[5 + 16]) = (register, code.as_ptr() as u64);
        let (low, high) = (register as u32, (register >> 32) as u32);
        let info: [u32; 6] = [libc::SIGBUS as u32, 0, 2, 0, low, high];
        let question = [libc::SIGBUS as u64, info.as_ptr() as u64, context.as_ptr() as u64, 0, 0, 0, 0, 0, 0];
        // SAFETY: reads what is above.
        let answer = unsafe { libc::syscall(libc::SYS_ioctl, -1, ASK, question.as_ptr()) };
        (answer, context[5 + 16].wrapping_sub(code.as_ptr() as u64))
    };
    // mov eax, [rbx]; mov [rbx], ecx
    assert_eq!(asked([0x8b, 0x03], at as u64 + CBVER as u64), (0, 2));
    assert_eq!(asked([0x89, 0x0b], at as u64 + CBVER as u64), (BUS_ERROR, 0));
    // SAFETY: what was just mapped.
    unsafe { libc::munmap(at, 4096) };
    drop(file);
    space.destroy();
}

/// Maps registers and gives them back, in several threads: each mapping has the tree asked about its file.
pub fn mapping_endlessly() {
    let space = Space::new();
    let engine = Engine::open(0, &space.iommu);
    let mut info = vfio::RegionInfo { argsz: 32, ..Default::default() };
    ioctl(&engine.file, vfio::DEVICE_GET_REGION_INFO, &mut info).unwrap();
    println!("mapping");
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    drop(Memory::map(info.size as usize, libc::MAP_SHARED, engine.file.as_raw_fd(), info.offset));
                }
            });
        }
    });
}

/// Of a device that cannot be mapped, registers are read and written, and everything else is as ever.
pub fn not_mapped() {
    let iommu = open("/dev/iommu").unwrap();
    let file = open("/dev/vfio/devices/vfio0").unwrap();
    Engine::bind(&file, &iommu).unwrap();
    for index in 0..6 {
        let mut info = vfio::RegionInfo { argsz: 32, index, ..Default::default() };
        ioctl(&file, vfio::DEVICE_GET_REGION_INFO, &mut info).unwrap();
        assert_eq!(info.flags, if info.size > 0 { 0b11 } else { 0 }, "region {index}");
        if info.size > 0 {
            let mapped = Memory::try_map(4096, libc::MAP_SHARED, file.as_raw_fd(), info.offset);
            assert_eq!(mapped.err().and_then(|error| error.raw_os_error()), Some(libc::EINVAL));
        }
    }
    let file = File::from(file);
    file.write_at(&6u16.to_ne_bytes(), (7 << 40) + 4).unwrap();
    let mut version = [0];
    file.read_at(&mut version, CBVER as u64).unwrap();
    assert_eq!(version, [0x32]);
    file.write_at(&0x1000u64.to_ne_bytes(), CHAINADDR as u64).unwrap();
    let mut chain = [0; 8];
    file.read_at(&mut chain, CHAINADDR as u64).unwrap();
    assert_eq!(u64::from_ne_bytes(chain), 0x1000);
}

/// `resource0` shows registers as long as the device answers, and no device reaches them by it.
pub fn resource() {
    let path = "/sys/bus/pci/devices/0001:00:01.0/resource0";
    let setup = Setup::new();
    let told = std::fs::metadata(path).unwrap();
    assert!(told.is_file() && told.len() == setup.engine.registers.length as u64);
    let file = open(path).unwrap();
    let map = |offset, flags| Memory::try_map(4096, flags, file.as_raw_fd(), offset);
    let registers = map(0, libc::MAP_SHARED).unwrap();
    assert_eq!(load::<u8>(&registers, CBVER), 0x32);
    store(&registers, CHAINADDR, 0x1234_5000u64);
    assert_eq!(load::<u64>(&setup.engine.registers, CHAINADDR), 0x1234_5000);
    let error = |mapped: std::io::Result<Memory>| mapped.err().and_then(|error| error.raw_os_error());
    assert_eq!(error(map(told.len(), libc::MAP_SHARED)), Some(libc::EINVAL));
    // As memory for DMA it is nothing.
    let mut map = ioasid_uapi::iommufd::IoasMap {
        size: 40,
        flags: 7,
        ioas_id: setup.space.ioas,
        reserved: 0,
        user_va: registers.address,
        length: 4096,
        iova: NOWHERE,
    };
    assert_eq!(ioctl(&setup.space.iommu, ioasid_uapi::iommufd::IOAS_MAP, &mut map), Err(libc::EFAULT));
    setup.finish();
    // A device that is not open does not answer.
    let closed = std::time::Instant::now();
    while load::<u8>(&registers, CBVER) != 0xff {
        assert!(closed.elapsed().as_secs() < 20, "a device that is closed answers");
    }
    store(&registers, CHAINADDR, 0u64);
}
