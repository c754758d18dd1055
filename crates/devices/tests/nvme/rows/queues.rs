//! Create and delete queues, doorbell buffers, abort.

use ioasid_devices::nvme::spec::command::{Command, admin as opcode};
use ioasid_devices::nvme::spec::status::Status;

use super::{Group, admin};
use crate::bench::{DATA, LISTS, NOWHERE, PAGE, Pair, With, command};

fn completions(id: u16, entries: u32, flags: u32, at: u64) -> Command {
    command(opcode::CREATE_COMPLETION_QUEUE, 0)
        .word(10, (entries - 1) << 16 | u32::from(id))
        .word(11, flags)
        .data(at, 0)
}

fn submissions(id: u16, entries: u32, completions: u32, flags: u32, at: u64) -> Command {
    command(opcode::CREATE_SUBMISSION_QUEUE, 0)
        .word(10, (entries - 1) << 16 | u32::from(id))
        .word(11, completions << 16 | flags)
        .data(at, 0)
}

fn delete(opcode: u8, id: u32) -> Command {
    command(opcode, 0).word(10, id)
}

fn abort(queue: u32, id: u32) -> Command {
    command(opcode::ABORT, 0).word(10, id << 16 | queue)
}

pub(super) fn groups() -> Vec<Group> {
    let two = Pair::new(2, 64);
    let (cq, sq) = (two.completions, two.submissions);
    let pages: Vec<u64> = (0..64).map(|page| DATA + page * PAGE).collect();
    let mut askew = pages.clone();
    askew[3] += 8;
    let rows = vec![
        admin("CQ 0", completions(0, 64, 1, cq), Status::INVALID_QUEUE_IDENTIFIER),
        admin("CQ that there is", completions(1, 64, 1, cq), Status::INVALID_QUEUE_IDENTIFIER),
        admin("CQ 65", completions(65, 64, 1, cq), Status::INVALID_QUEUE_IDENTIFIER),
        admin("CQ 65535", completions(65535, 64, 1, cq), Status::INVALID_QUEUE_IDENTIFIER),
        admin("CQ of one entry", completions(2, 1, 1, cq), Status::INVALID_QUEUE_SIZE),
        admin("CQ of 4097 entries", completions(2, 4097, 1, cq), Status::INVALID_QUEUE_SIZE),
        admin("CQ of 65536 entries", completions(2, 65536, 1, cq), Status::INVALID_QUEUE_SIZE),
        admin("CQ with vector 65", completions(2, 64, 65 << 16 | 3, cq), Status::INVALID_INTERRUPT_VECTOR),
        admin("CQ with vector 65535", completions(2, 64, 65535 << 16 | 3, cq), Status::INVALID_INTERRUPT_VECTOR),
        admin("CQ with an offset", completions(2, 64, 1, cq + 8), Status::PRP_OFFSET_INVALID),
        admin("CQ by a list with an offset", completions(2, 4096, 0, LISTS + 8), Status::PRP_OFFSET_INVALID),
        admin("CQ by a list that is nowhere", completions(2, 4096, 0, NOWHERE), Status::DATA_TRANSFER_ERROR),
        admin("CQ by a list of an odd page", completions(2, 4096, 0, LISTS), Status::PRP_OFFSET_INVALID)
            .with_u64s(LISTS, &askew),
        admin("SQ without a CQ", submissions(2, 64, 2, 1, sq), Status::COMPLETION_QUEUE_INVALID),
        admin("SQ with CQ 0", submissions(2, 64, 0, 1, sq), Status::INVALID_QUEUE_IDENTIFIER),
        admin("SQ with CQ 65", submissions(2, 64, 65, 1, sq), Status::INVALID_QUEUE_IDENTIFIER),
        admin("CQ", completions(2, 64, 2 << 16 | 3, cq), Status::SUCCESS),
        admin("SQ 0", submissions(0, 64, 2, 1, sq), Status::INVALID_QUEUE_IDENTIFIER),
        admin("SQ that there is", submissions(1, 64, 2, 1, sq), Status::INVALID_QUEUE_IDENTIFIER),
        admin("SQ 65", submissions(65, 64, 2, 1, sq), Status::INVALID_QUEUE_IDENTIFIER),
        admin("SQ of one entry", submissions(2, 1, 2, 1, sq), Status::INVALID_QUEUE_SIZE),
        admin("SQ of 4097 entries", submissions(2, 4097, 2, 1, sq), Status::INVALID_QUEUE_SIZE),
        admin("SQ with an offset", submissions(2, 64, 2, 1, sq + 64), Status::PRP_OFFSET_INVALID),
        admin("SQ by a list that is nowhere", submissions(2, 4096, 2, 0, NOWHERE), Status::DATA_TRANSFER_ERROR),
        admin("SQ", submissions(2, 64, 2, 1, sq), Status::SUCCESS),
        admin("another SQ of the same CQ", submissions(3, 64, 2, 1, sq), Status::SUCCESS),
        admin("CQ deleted that is in use", delete(opcode::DELETE_COMPLETION_QUEUE, 2), Status::INVALID_QUEUE_DELETION),
        admin("SQ 0 deleted", delete(opcode::DELETE_SUBMISSION_QUEUE, 0), Status::INVALID_QUEUE_IDENTIFIER),
        admin(
            "SQ deleted that there is not",
            delete(opcode::DELETE_SUBMISSION_QUEUE, 9),
            Status::INVALID_QUEUE_IDENTIFIER,
        ),
        admin("SQ 65 deleted", delete(opcode::DELETE_SUBMISSION_QUEUE, 65), Status::INVALID_QUEUE_IDENTIFIER),
        admin("CQ 0 deleted", delete(opcode::DELETE_COMPLETION_QUEUE, 0), Status::INVALID_QUEUE_IDENTIFIER),
        admin(
            "CQ deleted that there is not",
            delete(opcode::DELETE_COMPLETION_QUEUE, 9),
            Status::INVALID_QUEUE_IDENTIFIER,
        ),
        admin("SQ deleted", delete(opcode::DELETE_SUBMISSION_QUEUE, 2), Status::SUCCESS),
        admin("SQ deleted twice", delete(opcode::DELETE_SUBMISSION_QUEUE, 2), Status::INVALID_QUEUE_IDENTIFIER),
        admin(
            "CQ deleted that is in use still",
            delete(opcode::DELETE_COMPLETION_QUEUE, 2),
            Status::INVALID_QUEUE_DELETION,
        ),
        admin("the other SQ deleted", delete(opcode::DELETE_SUBMISSION_QUEUE, 3), Status::SUCCESS),
        admin("CQ deleted", delete(opcode::DELETE_COMPLETION_QUEUE, 2), Status::SUCCESS),
        admin("CQ deleted twice", delete(opcode::DELETE_COMPLETION_QUEUE, 2), Status::INVALID_QUEUE_IDENTIFIER),
        admin("CQ by a list", completions(2, 4096, 0, LISTS), Status::SUCCESS).with_u64s(LISTS, &pages),
        admin("SQ by a list", submissions(2, 4096, 2, 0, LISTS), Status::SUCCESS).with_u64s(LISTS, &pages),
        admin("abort of what there is not", abort(1, 7), Status::SUCCESS).result(1),
        admin("abort in a queue that there is not", abort(99, 7), Status::SUCCESS).result(1),
        admin("keep alive", command(opcode::KEEP_ALIVE, 0), Status::SUCCESS),
    ];
    let buffers = |first, second| command(opcode::DOORBELL_BUFFER_CONFIG, 0).data(first, second);
    let doorbells = vec![
        admin("doorbells with an offset", buffers(DATA + 4, LISTS), Status::INVALID_FIELD),
        admin("event indexes with an offset", buffers(DATA, LISTS + 4), Status::INVALID_FIELD),
        admin("doorbells at 0", buffers(0, LISTS), Status::INVALID_FIELD),
        admin("event indexes at 0", buffers(DATA, 0), Status::INVALID_FIELD),
        admin("doorbells nowhere", buffers(NOWHERE, LISTS), Status::DATA_TRANSFER_ERROR),
    ];
    let one = Group::new(
        "one queue pair",
        vec![
            admin("CQ 2 of 1", completions(2, 64, 1, cq), Status::INVALID_QUEUE_IDENTIFIER),
            admin("SQ 2 of 1", submissions(2, 64, 1, 1, sq), Status::INVALID_QUEUE_IDENTIFIER),
        ],
    );
    vec![Group::new("queues", rows), Group::new("doorbell buffers", doorbells), one.with(|options| options.queues = 1)]
}
