//! The commands of reservations.

use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

use super::super::controller::{Controller, Executed, Outcome};
use super::super::spec::command::Command;
use super::super::spec::status::Status;

/// CDW10: the key that the command brings is not compared.
const IGNORES_KEY: u32 = 1 << 3;
/// CDW11 of Reservation Report: with identifiers of 16 bytes.
const EXTENDED: u32 = 1;

impl Controller {
    fn keys(&mut self, command: &Command) -> Result<[u64; 2], Status> {
        let mut keys = [U64::ZERO; 2];
        self.receive(command, keys.as_mut_bytes())?;
        Ok(keys.map(u64::from))
    }

    pub(super) fn register_reservation(&mut self, command: &Command) -> Executed {
        let (id, word, host) = (command.namespace.get(), command.word(10), self.host());
        self.subsystem.attached(id)?;
        let keys = self.keys(command)?;
        let reservation = &mut self.subsystem.attached(id)?.reservation;
        // CPTPL: 0 no change, 2 lost with the power, 3 kept.
        let persists = match word >> 30 {
            0 => reservation.persists,
            2 => false,
            3 => true,
            _ => return Err(Status::INVALID_FIELD),
        };
        reservation.register(&host, word & 7, word & IGNORES_KEY != 0, keys)?;
        reservation.persists = persists;
        Ok(Outcome::Done(0))
    }

    pub(super) fn acquire_reservation(&mut self, command: &Command) -> Executed {
        let (id, word, host) = (command.namespace.get(), command.word(10), self.host());
        self.subsystem.attached(id)?;
        let keys = self.keys(command)?;
        if word & IGNORES_KEY != 0 {
            return Err(Status::INVALID_FIELD);
        }
        self.subsystem.attached(id)?.reservation.acquire(&host, word & 7, word >> 8 & 0xFF, keys)?;
        Ok(Outcome::Done(0))
    }

    pub(super) fn release_reservation(&mut self, command: &Command) -> Executed {
        let (id, word, host) = (command.namespace.get(), command.word(10), self.host());
        self.subsystem.attached(id)?;
        let mut key = U64::ZERO;
        self.receive(command, key.as_mut_bytes())?;
        if word & IGNORES_KEY != 0 {
            return Err(Status::INVALID_FIELD);
        }
        self.subsystem.attached(id)?.reservation.release(&host, word & 7, word >> 8 & 0xFF, key.get())?;
        Ok(Outcome::Done(0))
    }

    pub(super) fn report_reservation(&mut self, command: &Command) -> Executed {
        let is_extended = command.word(11) & EXTENDED != 0;
        let has_long_identifier = self.session.as_ref().is_some_and(|session| session.features.has_long_identifier);
        if has_long_identifier != is_extended {
            return Err(Status::HOST_IDENTIFIER_INCONSISTENT);
        }
        let bytes = (u64::from(command.word(10)) + 1) * 4;
        if bytes > super::MAX_TRANSFER {
            return Err(Status::INVALID_FIELD);
        }
        let reservation = &self.subsystem.attached(command.namespace.get())?.reservation;
        // There are few registrants, so this is short.
        let mut data = vec![0; if is_extended { 64 } else { 24 }];
        data[..4].copy_from_slice(&reservation.generation.to_le_bytes());
        data[4] = reservation.kind().map_or(0, |kind| kind as u8);
        data[5..7].copy_from_slice(&(reservation.registrants.len() as u16).to_le_bytes());
        data[9] = reservation.persists.into();
        for registrant in &reservation.registrants {
            let mut entry = vec![0; if is_extended { 64 } else { 24 }];
            entry[2] = reservation.is_held_by(&registrant.host).into();
            if is_extended {
                entry[8..16].copy_from_slice(&registrant.key.to_le_bytes());
                entry[16..32].copy_from_slice(&registrant.host);
            } else {
                entry[8..16].copy_from_slice(&registrant.host[..8]);
                entry[16..24].copy_from_slice(&registrant.key.to_le_bytes());
            }
            data.extend(entry);
        }
        data.resize(bytes as usize, 0);
        self.send(command, &data)?;
        Ok(Outcome::Done(0))
    }
}
