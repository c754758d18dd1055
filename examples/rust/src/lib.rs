// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Copies memory with an Intel I/OAT DMA engine and proves it by checksum, on the crates `vfio-ioctls` and
//! `iommufd-ioctls` as they come.
//!
//! ```text
//! ioasid run --device ioat -- target/release/ioasid-example-rust-client --size 256M --rounds 4
//! ```
//!
//! A library only so that `ioasid demo` can bring the program along: [`main_with`] is all of it. `host` is what a
//! program needs from the host: memory in an I/O address space, mapped registers, an interrupt. `ioat` is the driver.
//! Everything is undone by `Drop`, in the opposite order: the channel is stopped, its interrupt consumed and disabled,
//! the registers unmapped, the device detached and closed, the memory unmapped, and the address space destroyed.

mod host;
mod ioat;

use std::error::Error;
use std::fmt::Display;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use host::{Interrupt, Mapping, Memory, PciDevice, Registers};
use ioat::{Halted, Ioat};
use iommufd_ioctls::IommuFd;
use sha2::{Digest, Sha256};
use vfio_bindings::bindings::vfio::VFIO_PCI_MSIX_IRQ_INDEX;
use vfio_ioctls::{VfioDevice, VfioIommufd};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const MIB: usize = 1 << 20;
const TIMEOUT: Duration = Duration::from_secs(10);
const USAGE: &str = "\
usage: ioasid-example-rust-client [--size N[K|M|G]] [--rounds N] [--forbidden] [--device BDF]

  --size       bytes to copy (64M)
  --rounds     how many times to copy them (1)
  --forbidden  also try a DMA that must be refused
  --device     PCI address, as 0000:00:01.0 (the first engine found)

Exit status: 0 all is as it should be; 1 a checksum differs, a forbidden DMA was not refused, or a call failed; 2 a bad
command line.";

/// The command line.
struct Options {
    /// Bytes to copy, at least one.
    size: usize,
    /// How many times, at least once.
    rounds: usize,
    /// Whether to try a DMA that must be refused.
    forbidden: bool,
    /// The PCI address of the engine, or none for the first that is found.
    device: Option<String>,
}

impl Options {
    /// Reads the arguments, without the program's name. `Err` is what to tell the user, `Ok(None)` a call for help.
    fn parse(mut arguments: impl Iterator<Item = String>) -> std::result::Result<Option<Self>, String> {
        let mut options = Self { size: 64 * MIB, rounds: 1, forbidden: false, device: None };
        while let Some(name) = arguments.next() {
            if name == "--help" || name == "-h" {
                return Ok(None);
            }
            if name == "--forbidden" {
                options.forbidden = true;
                continue;
            }
            if !["--size", "--rounds", "--device"].contains(&name.as_str()) {
                return Err(format!("{name:?} is not an option"));
            }
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--size" => {
                    options.size = parse_size(&value)
                        .ok_or_else(|| format!("{value:?} is not a size: write 4096, 64K, 256M or 1G"))?;
                }
                "--rounds" => {
                    options.rounds =
                        parse_size(&value).ok_or_else(|| format!("{value:?} is not a number of 1 or more"))?;
                }
                _ => options.device = Some(value),
            }
        }
        Ok(Some(options))
    }
}

/// A number of at least one with a unit of K, M, G or none.
fn parse_size(text: &str) -> Option<usize> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<usize>().ok()?.checked_mul(1 << shift).filter(|&n| n > 0)
}

/// The program. `arguments` are those of its command line, without its name.
pub fn main_with(arguments: impl Iterator<Item = String>) -> ExitCode {
    let options = match Options::parse(arguments) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("ioasid-example-rust-client: {message}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ioasid-example-rust-client: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Does the work and prints the report. `Ok(false)` if a checksum differed or a forbidden DMA was not refused.
fn run(options: &Options) -> Result<bool> {
    let engine = PciDevice::find(ioat::VENDOR, ioat::DEVICE, options.device.as_deref())?;

    // The locals below drop from the last to the first, which is the order in which things are to be undone.
    let iommufd = Arc::new(IommuFd::new().map_err(explain("open the context", host::RUN_ME))?);
    let vfio = Arc::new(
        VfioIommufd::new(Arc::clone(&iommufd), None, None)
            .map_err(explain("allocate an I/O address space", host::RUN_ME))?,
    );

    // Filled and summed up before it is mapped: afterwards, memory is shared with the device.
    let source = Memory::new(options.size)?;
    fill(&source)?;
    let wanted = checksum(&source, options.size);

    let mut space = host::IovaAllocator::new(&vfio)?;
    let ring = Mapping::new(&vfio, &mut space, Memory::new(Ioat::MEMORY)?)?;
    let source = Mapping::new(&vfio, &mut space, source)?;
    let destination = Mapping::new(&vfio, &mut space, Memory::new(options.size)?)?;

    let device = VfioDevice::new(&engine.sysfs, Arc::<VfioIommufd>::clone(&vfio), true)
        .map_err(explain("open, bind and attach the device", "is another program using it or its group?"))?;
    host::enable(&device)?;
    let registers = Registers::map(&device, 0)?;
    let interrupt = Interrupt::enable(&device)?;
    let mut ioat = Ioat::new(&device, &registers, &interrupt, &ring, TIMEOUT)?;

    let (mut equal, mut elapsed) = (true, Duration::ZERO);
    for _ in 0..options.rounds {
        destination.memory().clear();
        let begin = Instant::now();
        ioat.copy(source.iova(), destination.iova(), options.size)?;
        elapsed += begin.elapsed();
        equal &= checksum(destination.memory(), options.size) == wanted;
    }

    let copied = options.size * options.rounds;
    let vectors = device.get_irq_info(VFIO_PCI_MSIX_IRQ_INDEX).map_or(0, |irq| irq.count);
    let version = ioat.version();
    line(
        "device",
        format_args!(
            "{}  {:04x}:{:04x}  I/OAT {}.{}  {}",
            engine.bdf,
            ioat::VENDOR,
            ioat::DEVICE,
            version >> 4,
            version & 0xf,
            engine.sysfs.display()
        ),
    );
    line("group", &engine.group);
    line("registers", format_args!("BAR 0, {} bytes, mapped; {}", registers.len(), plural(vectors, "MSI-X vector")));
    for (number, range) in space.ranges().iter().enumerate() {
        line(if number == 0 { "IOVA ranges" } else { "" }, format_args!("{:#x} - {:#x}", range.start, range.last));
    }
    for (number, (what, mapping)) in
        [("source", &source), ("destination", &destination), ("descriptors", &ring)].iter().enumerate()
    {
        let (bytes, iova) = (mapping.memory().len(), mapping.iova());
        line(
            if number == 0 { "mappings" } else { "" },
            format_args!("{what:<11}  {bytes:>11} bytes at IOVA {iova:#x}  shared  read, write"),
        );
    }
    line(
        "copied",
        format_args!(
            "{}, {}, {}",
            plural(copied, "byte"),
            plural(options.rounds, "round"),
            plural(ioat.descriptors(), "descriptor")
        ),
    );
    let seconds = elapsed.as_secs_f64();
    line("time", format_args!("{seconds:.4} s, {}", plural(interrupt.received(), "interrupt")));
    line("rate", format_args!("{:.2} GB/s", copied as f64 / seconds / 1e9));
    let start: String = wanted.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    line("sha256", format_args!("{}  {start}…", equality(equal)));
    if options.forbidden {
        let address = space.never_mapped(&vfio)?;
        equal &= forbidden(&mut ioat, &source, &destination, options.size, address, &wanted)?;
    }
    Ok(equal)
}

/// Makes the engine write to `address`, where nothing is mapped, then resets it and copies once more. Both buffers hold
/// `wanted` before. Returns whether the write was refused, memory stayed as it was, and the copy was good.
fn forbidden(
    ioat: &mut Ioat<'_>,
    source: &Mapping,
    destination: &Mapping,
    length: usize,
    address: u64,
    wanted: &[u8; 32],
) -> Result<bool> {
    line("forbidden", format_args!("write to IOVA {address:#x}, never mapped"));
    let error = match ioat.copy(source.iova(), address, length.min(MIB)) {
        Ok(()) => 0,
        Err(error) => error.downcast::<Halted>()?.0,
    };
    let refused = error & ioat::CHANERR_WRITE_DATA != 0;
    let state = if refused { "refused, channel halted" } else { "NOT REFUSED" };
    line("", format_args!("{state}: CHANERR {error:#x}{}", if refused { " (write data)" } else { "" }));

    let untouched = [source, destination].iter().all(|mapping| checksum(mapping.memory(), length) == *wanted);
    line("", format_args!("memory {}", if untouched { "untouched" } else { "CHANGED" }));

    ioat.reset()?;
    destination.memory().clear();
    ioat.copy(source.iova(), destination.iova(), length)?;
    let recovered = checksum(destination.memory(), length) == *wanted;
    line("", format_args!("after a reset, copied again: {}", equality(recovered)));
    Ok(refused && untouched && recovered)
}

/// How a checksum compares.
fn equality(equal: bool) -> &'static str {
    if equal { "equal" } else { "DIFFERENT" }
}

/// One line of the report.
fn line(label: &str, text: impl Display) {
    println!("{label:<12} {text}");
}

/// "1 byte", "2 bytes".
fn plural(number: impl Display, thing: &str) -> String {
    let number = number.to_string();
    let ending = if number == "1" { "" } else { "s" };
    format!("{number} {thing}{ending}")
}

/// Says what was being done when an error came, with its causes, and what to do about it.
fn explain<E: Error + 'static>(doing: &str, advice: &str) -> impl FnOnce(E) -> Box<dyn Error> {
    move |error| {
        let mut text = format!("{doing}: {error}");
        let mut cause = error.source();
        while let Some(error) = cause {
            // Some of these errors print their cause themselves.
            let more = error.to_string();
            if !text.contains(&more) {
                text = format!("{text}: {more}");
            }
            cause = error.source();
        }
        format!("{text}: {advice}").into()
    }
}

/// Random bytes, each MiB another rotation of one block, so that no two MiB can be taken for each other.
fn fill(memory: &Memory) -> Result<()> {
    let mut block = vec![0; MIB];
    let mut random =
        std::fs::File::open(Path::new("/dev/urandom")).map_err(explain("open /dev/urandom", "is it there?"))?;
    random.read_exact(&mut block)?;
    for start in (0..memory.len()).step_by(MIB) {
        block.rotate_left(4099);
        let length = MIB.min(memory.len() - start);
        memory.write(start, &block[..length]);
    }
    Ok(())
}

/// SHA-256 of the first `length` bytes.
fn checksum(memory: &Memory, length: usize) -> [u8; 32] {
    let mut sum = Sha256::new();
    let mut piece = vec![0; 64 << 10];
    for start in (0..length).step_by(piece.len()) {
        let piece = &mut piece[..(64 << 10).min(length - start)];
        memory.read(start, piece);
        sum.update(piece);
    }
    sum.finalize().into()
}
