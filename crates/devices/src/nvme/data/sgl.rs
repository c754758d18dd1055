//! SGLs: lists of lists of bytes (base specification, 4.1.2).
//!
//! ```text
//!   127   124 123    120 119        96 95        64 63                        0
//!  │ type    │ subtype   │ reserved    │ length     │ address                  │
//!
//!   0 data block      address and length of bytes
//!   1 bit bucket      bytes that the host does not want
//!   2 segment         more descriptors, of which the last is of type 2 or 3
//!   3 last segment    more descriptors, and no segment among them
//! ```

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::super::memory::Memory;
use super::super::spec::status::Status;
use super::{Direction, Layout};

/// Most descriptors of a command: a list that is a loop ends here.
const MOST: usize = 4096;
/// Descriptors that are read at once.
const AT_ONCE: usize = 32;

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Descriptor {
    address: U64,
    length: U32,
    reserved: [u8; 3],
    kind: u8,
}

const SIZE: u64 = size_of::<Descriptor>() as u64;

enum Kind {
    Block,
    Bucket,
    Segment { is_last: bool },
}

impl Descriptor {
    fn kind(&self) -> Result<Kind, Status> {
        // A subtype is an address, or it is of fabrics.
        match self.kind {
            0x00 => Ok(Kind::Block),
            0x10 => Ok(Kind::Bucket),
            0x20 => Ok(Kind::Segment { is_last: false }),
            0x30 => Ok(Kind::Segment { is_last: true }),
            _ => Err(Status::SGL_TYPE_INVALID),
        }
    }
}

/// The bytes of a list so far.
struct Gather<'a> {
    layout: &'a mut Layout,
    left: u64,
    direction: Direction,
}

impl Gather<'_> {
    fn take(&mut self, descriptor: &Descriptor, is_bucket: bool) -> Result<(), Status> {
        let (address, length) = (descriptor.address.get(), u64::from(descriptor.length.get()));
        // Of what the host sends, a bit bucket is no part.
        if is_bucket && self.direction == Direction::FromHost {
            return Ok(());
        }
        if !is_bucket && length != 0 && address.checked_add(length - 1).is_none() {
            return Err(Status::DATA_TRANSFER_ERROR);
        }
        let here = length.min(self.left);
        self.layout.push((!is_bucket).then_some(address), here);
        self.left -= here;
        Ok(())
    }
}

pub(super) fn follow(
    layout: &mut Layout,
    pointer: [u64; 2],
    length: u64,
    direction: Direction,
    memory: &mut Memory,
) -> Result<(), Status> {
    let mut gather = Gather { layout, left: length, direction };
    let first = Descriptor::read_from_bytes(pointer.map(U64::new).as_bytes()).map_err(|_| Status::INVALID_FIELD)?;
    let mut seen = 1;
    let mut segment = match first.kind()? {
        Kind::Segment { is_last } => Some((first, is_last)),
        kind => {
            gather.take(&first, matches!(kind, Kind::Bucket))?;
            None
        }
    };
    while let Some((descriptor, is_last)) = segment.take() {
        let bytes = u64::from(descriptor.length.get());
        if bytes == 0 || !bytes.is_multiple_of(SIZE) {
            return Err(Status::INVALID_SGL_SEGMENT);
        }
        let entries = (bytes / SIZE) as usize;
        seen += entries;
        if seen > MOST {
            return Err(Status::INVALID_SGL_COUNT);
        }
        let mut buffer = [Descriptor::new_zeroed(); AT_ONCE];
        for start in (0..entries).step_by(AT_ONCE) {
            let got = &mut buffer[..AT_ONCE.min(entries - start)];
            let at = descriptor.address.get().checked_add(start as u64 * SIZE).ok_or(Status::DATA_TRANSFER_ERROR)?;
            memory.read(at, got.as_mut_bytes())?;
            for (index, entry) in (start..).zip(&*got) {
                let ends = index == entries - 1;
                match entry.kind()? {
                    Kind::Segment { is_last: next } if ends && !is_last => segment = Some((*entry, next)),
                    Kind::Segment { .. } => return Err(Status::INVALID_SGL_SEGMENT),
                    _ if ends && !is_last => return Err(Status::INVALID_SGL_SEGMENT),
                    kind => gather.take(entry, matches!(kind, Kind::Bucket))?,
                }
            }
        }
    }
    if gather.left > 0 { Err(Status::DATA_SGL_LENGTH_INVALID) } else { Ok(()) }
}
