//! What is wrong with a descriptor, and what a right one asks for.
//!
//! The checks are those of the specification, 5.4 and 5.5, in one order: the place of the completion record, the
//! operation, who may ask, the flags, reserved fields, the interrupt, sizes, alignment, overlaps. The first that fails
//! is the one that is told.

use super::operation::{
    Algorithm, ApplyDelta, Compare, Crc, CreateDelta, Dif, Dualcast, Fill, Kind, Move, Nothing, Run, With,
};
use super::spec::completion::{self, Status};
use super::spec::descriptor::{
    self, DELTA_MAX_TRANSFER, DELTA_MIN_RECORD, DELTA_SIZE, Descriptor, Flags, NO_READBACK_A, Operation,
};
use super::task::Context;

/// What a descriptor asks for.
pub(super) enum Plan {
    /// Something with memory.
    Run(Box<dyn Run>),
    /// `count` descriptors at `list`.
    Batch { list: u64, count: u32 },
    /// Waiting for what was submitted before.
    Drain,
}

/// Why a descriptor is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: Status,
    /// The flags that are wrong, if that is why.
    pub(super) flags: u32,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self { status, flags: 0 }
    }
}

/// What is allowed in the descriptor of an operation.
struct Rule {
    /// Flags, those apart that every descriptor may have.
    flags: Flags,
    /// Flags that must be set.
    required: Flags,
    /// Bytes that must be zero, as pairs of first and end.
    reserved: &'static [(usize, usize)],
}

const NONE: Flags = Flags::empty();
const COMMON: Flags = Flags::FENCE
    .union(Flags::RECORD_VALID)
    .union(Flags::REQUEST_RECORD)
    .union(Flags::REQUEST_INTERRUPT)
    .union(Flags::RECORD_CLASS);
const READS: Flags = Flags::BLOCK_ON_FAULT.union(Flags::ADDRESS_1_CLASS);
const WRITES: Flags = Flags::BLOCK_ON_FAULT
    .union(Flags::ADDRESS_2_CLASS)
    .union(Flags::CACHE_CONTROL)
    .union(Flags::STRICT_ORDERING)
    .union(Flags::READBACK);
const CRC: Flags =
    Flags::READ_SEED.union(Flags::BYPASS_INVERSION).union(Flags::BYPASS_REFLECTION).union(Flags::ADDRESS_3_CLASS);
/// A result needs a place.
const RESULT: Flags = Flags::RECORD_VALID.union(Flags::REQUEST_RECORD);

fn rule(operation: Operation) -> Rule {
    let copy = READS.union(WRITES);
    let compare = READS.union(Flags::CHECK_RESULT);
    let (flags, required, reserved): (_, _, &[_]) = match operation {
        Operation::NoOp => (NONE, NONE, &[(16, 36), (38, 64)]),
        Operation::Batch => (Flags::ADDRESS_1_CLASS, NONE, &[(24, 32), (38, 64)]),
        Operation::Drain => (NO_READBACK_A.union(Flags::NO_READBACK_B), NONE, &[(16, 36), (38, 64)]),
        Operation::Move => (copy, NONE, &[(38, 64)]),
        Operation::Fill => (WRITES, NONE, &[(38, 64)]),
        Operation::Compare => (compare.union(Flags::ADDRESS_2_CLASS), RESULT, &[(38, 40), (41, 64)]),
        Operation::ComparePattern => (compare, RESULT, &[(38, 40), (41, 64)]),
        Operation::CreateDelta => {
            (compare.union(WRITES).union(Flags::ADDRESS_3_CLASS), RESULT, &[(38, 40), (52, 56), (57, 64)])
        }
        Operation::ApplyDelta => (copy, NONE, &[(38, 40), (44, 64)]),
        Operation::Dualcast => (copy.union(Flags::ADDRESS_3_CLASS), NONE, &[(38, 40), (48, 64)]),
        Operation::Crc => (READS.union(CRC), RESULT, &[(24, 32), (38, 40), (44, 48), (56, 64)]),
        Operation::CopyCrc => (copy.union(CRC), RESULT, &[(38, 40), (44, 48), (56, 64)]),
        Operation::DifCheck => (READS, RESULT, &[(24, 32), (38, 40), (41, 42), (43, 48), (56, 64)]),
        Operation::DifInsert => (copy, NONE, &[(38, 41), (43, 56)]),
        Operation::DifStrip => (copy, NONE, &[(38, 40), (41, 42), (43, 48), (56, 64)]),
        Operation::DifUpdate => (copy, NONE, &[(38, 40), (43, 48)]),
        Operation::CacheFlush => (WRITES.difference(Flags::CACHE_CONTROL), NONE, &[(16, 24), (38, 64)]),
    };
    Rule { flags, required, reserved }
}

/// Checks a descriptor that was submitted in `context`, by itself or in a batch.
///
/// # Errors
/// The first thing that is wrong with it.
pub(super) fn check(descriptor: &Descriptor, context: &Context, in_batch: bool) -> Result<Plan, Refusal> {
    let flags = descriptor.flags();
    let record = descriptor.completion.get();
    if flags.contains(Flags::RECORD_VALID) && !record.is_multiple_of(completion::SIZE as u64) {
        return Err(Status::RecordAlignment.into());
    }
    let operation = Operation::of(descriptor.code()).ok_or(Status::Operation)?;
    if in_batch && matches!(operation, Operation::Batch | Operation::Drain) {
        return Err(Status::Operation.into());
    }
    if context.forbidden_privilege {
        return Err(Status::Privilege.into());
    }
    let rule = rule(operation);
    check_flags(operation, flags, &rule, context, in_batch)?;
    check_reserved(operation, descriptor, &rule)?;
    if flags.contains(Flags::REQUEST_INTERRUPT) && !context.may_raise(descriptor.interrupt.get()) {
        return Err(Status::InterruptHandle.into());
    }
    plan(operation, descriptor, context)
}

fn check_flags(
    operation: Operation,
    flags: Flags,
    rule: &Rule,
    context: &Context,
    in_batch: bool,
) -> Result<(), Refusal> {
    let mut allowed = COMMON.union(rule.flags);
    if !in_batch {
        allowed.remove(Flags::FENCE);
    }
    if !context.block_on_fault {
        allowed.remove(Flags::BLOCK_ON_FAULT);
    }
    if !flags.contains(Flags::RECORD_VALID) {
        allowed.remove(Flags::REQUEST_RECORD | Flags::RECORD_CLASS);
    }
    if !context.may_interrupt {
        allowed.remove(Flags::REQUEST_INTERRUPT);
    }
    if !flags.contains(Flags::READ_SEED) && matches!(operation, Operation::Crc | Operation::CopyCrc) {
        allowed.remove(Flags::ADDRESS_3_CLASS);
    }
    let mut wrong = flags.difference(allowed).union(rule.required.difference(flags));
    let reports = Flags::REQUEST_RECORD | Flags::REQUEST_INTERRUPT;
    if operation == Operation::Drain && !flags.intersects(reports) {
        wrong |= reports;
    }
    if wrong.is_empty() { Ok(()) } else { Err(Refusal { status: Status::Flags, flags: wrong.bits() }) }
}

fn check_reserved(operation: Operation, descriptor: &Descriptor, rule: &Rule) -> Result<(), Refusal> {
    let flags = descriptor.flags();
    let is_zero = |&(from, end): &(usize, usize)| (from..end).all(|at| descriptor.byte(at) == 0);
    let crc = matches!(operation, Operation::Crc | Operation::CopyCrc);
    let seeds = flags.contains(Flags::READ_SEED);
    let conditional = [
        (!flags.contains(Flags::REQUEST_INTERRUPT), (36, 38)),
        (!flags.contains(Flags::RECORD_VALID), (8, 16)),
        (crc && seeds, (40, 44)),
        (crc && !seeds, (48, 56)),
    ];
    let conditional = conditional.iter().filter(|(applies, _)| *applies).map(|(_, range)| range);
    if rule.reserved.iter().chain(conditional).all(is_zero) { Ok(()) } else { Err(Status::Reserved.into()) }
}

/// Sizes, alignment, overlaps; and then the operation itself.
fn plan(operation: Operation, descriptor: &Descriptor, context: &Context) -> Result<Plan, Refusal> {
    let (size, flags) = (descriptor.size.get(), descriptor.flags());
    let (from, to) = (descriptor.source.get(), descriptor.destination.get());
    match operation {
        Operation::NoOp => return Ok(Plan::Run(Box::new(Nothing))),
        Operation::Drain => return Ok(Plan::Drain),
        Operation::Batch => {
            if !(2..=context.max_batch).contains(&size) {
                return Err(Status::BatchSize.into());
            }
            if !from.is_multiple_of(descriptor::SIZE as u64) {
                return Err(Status::BatchAlignment.into());
            }
            return Ok(Plan::Batch { list: from, count: size });
        }
        _ => {}
    }
    if size == 0 || u64::from(size) > context.max_transfer {
        return Err(Status::TransferSize.into());
    }
    let wide = u64::from(size);
    let checks = flags.contains(Flags::CHECK_RESULT);
    let run: Box<dyn Run> = match operation {
        Operation::Move => Box::new(Move { from, to, size: wide, done: 0 }),
        Operation::Fill => Box::new(Fill { pattern: from, to, size: wide, done: 0 }),
        Operation::Compare | Operation::ComparePattern => {
            let with = if operation == Operation::Compare { With::Memory(to) } else { With::Pattern(to.to_le_bytes()) };
            let expected = checks.then(|| descriptor.byte(40) & 1);
            Box::new(Compare { from, with, size: wide, expected, done: 0 })
        }
        Operation::CreateDelta => Box::new(create_delta(descriptor, context, checks)?),
        Operation::ApplyDelta => Box::new(apply_delta(descriptor, context)?),
        Operation::Dualcast => {
            let second = descriptor.specific[0].get();
            if (to ^ second) & 0xFFF != 0 {
                return Err(Status::DualcastAlignment.into());
            }
            apart(&[(from, wide), (to, wide)])?;
            apart(&[(from, wide), (second, wide)])?;
            apart(&[(to, wide), (second, wide)])?;
            Box::new(Dualcast { from, to: [to, second], size: wide, done: 0 })
        }
        Operation::Crc | Operation::CopyCrc => {
            let to = (operation == Operation::CopyCrc).then_some(to);
            let seed_at = descriptor.specific[1].get();
            let seed = if flags.contains(Flags::READ_SEED) { Err(seed_at) } else { Ok(descriptor.word(40)) };
            if !seed_at.is_multiple_of(4) {
                return Err(Status::Alignment.into());
            }
            if let Some(to) = to {
                apart(&[(from, wide), (to, wide)])?;
            }
            let algorithm = Algorithm {
                bypass_inversion: flags.contains(Flags::BYPASS_INVERSION),
                bypass_reflection: flags.contains(Flags::BYPASS_REFLECTION),
            };
            Box::new(Crc::new(from, to, wide, algorithm, seed))
        }
        Operation::DifCheck => dif(Kind::Check, descriptor)?,
        Operation::DifInsert => dif(Kind::Insert, descriptor)?,
        Operation::DifStrip => dif(Kind::Strip, descriptor)?,
        Operation::DifUpdate => dif(Kind::Update, descriptor)?,
        Operation::CacheFlush | Operation::NoOp | Operation::Drain | Operation::Batch => Box::new(Nothing),
    };
    Ok(Plan::Run(run))
}

fn create_delta(descriptor: &Descriptor, context: &Context, checks: bool) -> Result<CreateDelta, Refusal> {
    let (size, room) = (descriptor.size.get(), descriptor.word(48));
    let sources = [descriptor.source.get(), descriptor.destination.get()];
    let record = descriptor.specific[0].get();
    if size > DELTA_MAX_TRANSFER {
        return Err(Status::TransferSize.into());
    }
    if room < DELTA_MIN_RECORD || u64::from(room) > context.max_transfer {
        return Err(Status::DeltaSize.into());
    }
    if !(sources[0] | sources[1] | u64::from(size)).is_multiple_of(8) {
        return Err(Status::Alignment.into());
    }
    for source in sources {
        apart(&[(source, size.into()), (record, room.into())])?;
    }
    let expected = checks.then(|| descriptor.byte(56));
    Ok(CreateDelta { sources, size: size.into(), record, room: room.into(), expected, done: 0, written: 0 })
}

fn apply_delta(descriptor: &Descriptor, context: &Context) -> Result<ApplyDelta, Refusal> {
    let (size, length) = (descriptor.size.get(), descriptor.word(40));
    let (record, to) = (descriptor.source.get(), descriptor.destination.get());
    if size > DELTA_MAX_TRANSFER {
        return Err(Status::TransferSize.into());
    }
    if length < DELTA_SIZE as u32 || u64::from(length) > context.max_transfer {
        return Err(Status::DeltaSize.into());
    }
    if !(to | u64::from(size)).is_multiple_of(8) {
        return Err(Status::Alignment.into());
    }
    apart(&[(record, length.into()), (to, size.into())])?;
    Ok(ApplyDelta { record, length: length.into(), to, size: size.into(), done: 0, last: None })
}

fn dif(kind: Kind, descriptor: &Descriptor) -> Result<Box<dyn Run>, Refusal> {
    let dif = Dif::new(kind, descriptor);
    if !dif.is_whole() {
        return Err(Status::TransferSize.into());
    }
    let reserved = descriptor.byte(42) & 0xF0 != 0 || kind != Kind::Check && descriptor.byte(41) & 0x07 != 0;
    if reserved {
        return Err(Status::Reserved.into());
    }
    if kind != Kind::Check {
        let source = (descriptor.source.get(), descriptor.size.get().into());
        apart(&[source, (descriptor.destination.get(), dif.destination_size())])?;
    }
    Ok(Box::new(dif))
}

/// That two buffers, each with address and length, have no byte in common.
fn apart(&[(a, a_length), (b, b_length)]: &[(u64, u64); 2]) -> Result<(), Refusal> {
    let overlap = a < b.saturating_add(b_length) && b < a.saturating_add(a_length);
    if overlap { Err(Status::Overlap.into()) } else { Ok(()) }
}
