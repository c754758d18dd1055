//! Get Log Page.

use ioasid_devices::nvme::spec::command::{Command, admin as opcode};
use ioasid_devices::nvme::spec::log::page;
use ioasid_devices::nvme::spec::status::Status;

use super::{Group, admin, io};
use crate::bench::{DATA, LISTS, NOWHERE, With, command, read};

fn log(page: u8, bytes: u32) -> Command {
    let dwords = bytes / 4 - 1;
    command(opcode::GET_LOG_PAGE, 0xFFFF_FFFF)
        .word(10, u32::from(page) | dwords << 16)
        .word(11, dwords >> 16)
        .data(DATA, LISTS)
}

pub(super) fn groups() -> Vec<Group> {
    let mut rows = Vec::new();
    for page in page::ALL {
        rows.push(admin(format!("page {page:#x}"), log(page, 64), Status::SUCCESS));
        rows.push(admin(format!("page {page:#x} beyond its end"), log(page, 64).word(12, 8192), Status::INVALID_FIELD));
        rows.push(admin(format!("page {page:#x} from an odd byte"), log(page, 64).word(12, 2), Status::INVALID_FIELD));
    }
    for page in [0x06, 0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x0E, 0x70, 0x82, 0xBF, 0xC0, 0xFF] {
        rows.push(admin(format!("page {page:#x}"), log(page, 64), Status::INVALID_LOG_PAGE));
    }
    rows.extend([
        admin("health", log(page::HEALTH, 512), Status::SUCCESS).finds(DATA + 1, [0x36, 0x01, 100]),
        admin(
            "health of a namespace",
            Command { namespace: 1.into(), ..log(page::HEALTH, 512) },
            Status::INVALID_FIELD,
        ),
        admin("health from byte 176", log(page::HEALTH, 16).word(12, 176), Status::SUCCESS),
        admin("health, 4 GiB from its start", log(page::HEALTH, 16).word(13, 1), Status::INVALID_FIELD),
        admin("firmware", log(page::FIRMWARE, 512), Status::SUCCESS).finds(DATA, [1]).finds(DATA + 8, *b"0.1.0   "),
        admin("effects of Read", log(page::COMMAND_EFFECTS, 4).word(12, 1024 + 8), Status::SUCCESS)
            .finds(DATA, [1, 0, 0, 0]),
        admin("effects of Write", log(page::COMMAND_EFFECTS, 4).word(12, 1024 + 4), Status::SUCCESS)
            .finds(DATA, [3, 0, 0, 0]),
        admin("effects of Format", log(page::COMMAND_EFFECTS, 4).word(12, 0x80 * 4), Status::SUCCESS)
            .finds(DATA, [7, 0, 1, 0]),
        admin("telemetry", log(page::TELEMETRY_HOST, 16), Status::SUCCESS).finds(DATA, [7, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        admin("sanitize", log(page::SANITIZE, 8), Status::SUCCESS).finds(DATA, [0xFF, 0xFF, 0, 0]),
        admin("more than a transfer may be", log(page::HEALTH, 512 * 1024 + 4), Status::INVALID_FIELD),
        admin("to where nothing is", log(page::HEALTH, 512).data(NOWHERE, 0), Status::DATA_TRANSFER_ERROR),
        admin("at an odd address", log(page::HEALTH, 512).data(DATA + 2, 0), Status::PRP_OFFSET_INVALID),
        io("a read beyond the end", read(2048, 1).id(0), Status::LBA_OUT_OF_RANGE),
        admin("the last error", log(page::ERRORS, 64), Status::SUCCESS)
            .finds(DATA + 8, [1, 0])
            .finds(DATA + 12, (Status::LBA_OUT_OF_RANGE.with_more().0 << 1).to_le_bytes())
            .finds(DATA + 24, [1, 0, 0, 0]),
    ]);
    vec![Group::new("logs", rows)]
}
