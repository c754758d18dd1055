//! Get Log Page.

use super::super::controller::{Controller, Executed, MAX_TRANSFER, Outcome};
use super::super::features::{TEMPERATURE, id};
use super::super::namespace::WriteProtection;
use super::super::spec::command::{ALL_NAMESPACES, Command, admin, nvm};
use super::super::spec::log::page;
use super::super::spec::status::Status;
use super::super::subsystem::Sanitize;

/// CDW10: the page's events are not to be told again yet.
const RETAIN: u32 = 1 << 15;
/// Units of data in SMART: 1000 blocks of 512 bytes.
const UNIT: u64 = 1000;

/// Effects of a command: it is supported.
const SUPPORTED: u32 = 1;
/// It changes content.
const CHANGES_CONTENT: u32 = 1 << 1;
/// It changes what Identify says of namespaces.
const CHANGES_NAMESPACE: u32 = 1 << 2;
/// It changes which namespaces there are.
const CHANGES_INVENTORY: u32 = 1 << 3;
/// Nothing else may go on with the namespace.
const ALONE: u32 = 1 << 16;
/// Nothing else may go on with any.
const ALL_ALONE: u32 = 2 << 16;

const ADMIN_EFFECTS: &[(u8, u32)] = &[
    (admin::DELETE_SUBMISSION_QUEUE, 0),
    (admin::CREATE_SUBMISSION_QUEUE, 0),
    (admin::GET_LOG_PAGE, 0),
    (admin::DELETE_COMPLETION_QUEUE, 0),
    (admin::CREATE_COMPLETION_QUEUE, 0),
    (admin::IDENTIFY, 0),
    (admin::ABORT, 0),
    (admin::SET_FEATURES, 0),
    (admin::GET_FEATURES, 0),
    (admin::ASYNC_EVENT_REQUEST, 0),
    (admin::NAMESPACE_MANAGEMENT, CHANGES_INVENTORY),
    (admin::NAMESPACE_ATTACHMENT, CHANGES_INVENTORY),
    (admin::KEEP_ALIVE, 0),
    (admin::DOORBELL_BUFFER_CONFIG, 0),
    (admin::FORMAT_NVM, CHANGES_CONTENT | CHANGES_NAMESPACE | ALONE),
    (admin::SANITIZE, CHANGES_CONTENT | ALL_ALONE),
];

const IO_EFFECTS: &[(u8, u32)] = &[
    (nvm::FLUSH, 0),
    (nvm::WRITE, CHANGES_CONTENT),
    (nvm::READ, 0),
    (nvm::WRITE_UNCORRECTABLE, CHANGES_CONTENT),
    (nvm::COMPARE, 0),
    (nvm::WRITE_ZEROES, CHANGES_CONTENT),
    (nvm::DATASET_MANAGEMENT, CHANGES_CONTENT),
    (nvm::VERIFY, 0),
    (nvm::RESERVATION_REGISTER, 0),
    (nvm::RESERVATION_REPORT, 0),
    (nvm::RESERVATION_ACQUIRE, 0),
    (nvm::RESERVATION_RELEASE, 0),
    (nvm::COPY, CHANGES_CONTENT),
];

/// A page that is being filled.
struct Page(Vec<u8>);

impl Page {
    fn new(length: usize) -> Self {
        Self(vec![0; length])
    }

    fn put(&mut self, offset: usize, bytes: impl AsRef<[u8]>) -> &mut Self {
        let bytes = bytes.as_ref();
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
        self
    }
}

impl Controller {
    pub(super) fn get_log_page(&mut self, command: &Command) -> Executed {
        let number = (command.word(10) & 0xFF) as u8;
        let dwords = u64::from(command.word(10) >> 16) | u64::from(command.word(11) & 0xFFFF) << 16;
        let length = (dwords + 1) * 4;
        let offset = u64::from(command.word(13)) << 32 | u64::from(command.word(12));
        if length > MAX_TRANSFER || !offset.is_multiple_of(4) {
            return Err(Status::INVALID_FIELD);
        }
        let Page(page) = self.log_page(number, command)?;
        let rest = usize::try_from(offset).ok().and_then(|offset| page.get(offset..)).ok_or(Status::INVALID_FIELD)?;
        let mut data = vec![0; length as usize];
        let there = rest.len().min(data.len());
        data[..there].copy_from_slice(&rest[..there]);
        self.send(command, &data)?;
        if command.word(10) & RETAIN == 0 {
            if number == page::CHANGED_NAMESPACES {
                self.subsystem.changed.clear();
            }
            if let Some(session) = &mut self.session {
                session.events.unmask(number);
            }
        }
        Ok(Outcome::Done(0))
    }

    fn log_page(&self, number: u8, command: &Command) -> Result<Page, Status> {
        let id = command.namespace.get();
        Ok(match number {
            page::SUPPORTED => {
                let mut it = Page::new(1024);
                for known in page::ALL {
                    // It is there, and takes offsets.
                    it.put(4 * usize::from(known), [1]);
                }
                it
            }
            page::ERRORS => self.error_log(),
            // There is none of a namespace.
            page::HEALTH if id != 0 && id != ALL_NAMESPACES => return Err(Status::INVALID_FIELD),
            page::HEALTH => self.health_log(),
            page::FIRMWARE => {
                let mut it = Page::new(512);
                it.put(0, [1]).put(8, format!("{:<8}", env!("CARGO_PKG_VERSION")));
                it
            }
            page::CHANGED_NAMESPACES => {
                let mut it = Page::new(4096);
                for (index, id) in self.subsystem.changed.iter().enumerate() {
                    it.put(4 * index, id.to_le_bytes());
                }
                it
            }
            page::COMMAND_EFFECTS => {
                let mut it = Page::new(4096);
                for (start, effects) in [(0, ADMIN_EFFECTS), (1024, IO_EFFECTS)] {
                    for (opcode, effect) in effects {
                        it.put(start + 4 * usize::from(*opcode), (effect | SUPPORTED).to_le_bytes());
                    }
                }
                it
            }
            page::TELEMETRY_HOST | page::TELEMETRY_CONTROLLER => {
                // A header, and no data after it.
                let mut it = Page::new(512);
                it.put(0, [number]);
                it
            }
            page::RESERVATION => Page::new(64),
            page::SANITIZE => self.sanitize_log(),
            _ => return Err(Status::INVALID_LOG_PAGE),
        })
    }

    fn error_log(&self) -> Page {
        let mut it = Page::new(64 * super::super::subsystem::ERRORS);
        for (index, (number, entry)) in self.subsystem.errors.iter().enumerate() {
            let at = 64 * index;
            it.put(at, number.to_le_bytes())
                .put(at + 8, entry.queue.to_le_bytes())
                .put(at + 10, entry.identifier.to_le_bytes())
                .put(at + 12, (entry.status.0 << 1).to_le_bytes())
                // Which parameter it was is not said.
                .put(at + 14, [0xFF; 2])
                .put(at + 24, entry.namespace.to_le_bytes());
        }
        it
    }

    fn health_log(&self) -> Page {
        let subsystem = &self.subsystem;
        let health = &subsystem.health;
        let features = self.session.as_ref().map(|session| &session.features);
        let (over, under) = features.map_or((u32::MAX, 0), |features| {
            (features.get(id::TEMPERATURE_THRESHOLD), u32::from(features.under_temperature))
        });
        let is_beyond = u32::from(TEMPERATURE) >= over || u32::from(TEMPERATURE) <= under;
        let mut namespaces = subsystem.namespaces.values();
        let is_protected = namespaces.any(|namespace| namespace.protection != WriteProtection::None);
        let mut it = Page::new(512);
        it.put(0, [u8::from(is_beyond) << 1 | u8::from(is_protected) << 3])
            .put(1, TEMPERATURE.to_le_bytes())
            // Spare blocks in per cent, and the threshold of that.
            .put(3, [100, 10])
            .put(32, health.read.div_ceil(UNIT).to_le_bytes())
            .put(48, health.written.div_ceil(UNIT).to_le_bytes())
            .put(64, health.reads.to_le_bytes())
            .put(80, health.writes.to_le_bytes())
            .put(112, health.power_cycles.to_le_bytes())
            .put(128, (subsystem.since.elapsed().as_secs() / 3600).to_le_bytes())
            .put(144, health.unsafe_shutdowns.to_le_bytes())
            .put(160, health.media_errors.to_le_bytes())
            .put(176, health.errors.to_le_bytes());
        it
    }

    fn sanitize_log(&self) -> Page {
        let (progress, state, word) = match self.subsystem.sanitize {
            // Never, and nothing was written since it was made.
            Sanitize::Never => (0xFFFF, 0, 0),
            Sanitize::UnderWay(word) => (self.erasure.as_ref().map_or(0, |erasure| erasure.progress()), 2, word),
            Sanitize::Done(word) => (0xFFFF, 1, word),
            Sanitize::Failed(word) => (0xFFFF, 3, word),
        };
        let mut it = Page::new(512);
        it.put(0, u16::to_le_bytes(progress))
            .put(2, u16::to_le_bytes(state))
            .put(4, u32::to_le_bytes(word))
            // How long it takes is not known.
            .put(8, [0xFF; 24]);
        it
    }
}
