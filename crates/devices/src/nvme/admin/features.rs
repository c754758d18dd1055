//! Get and Set Features.

use std::time::Instant;

use super::super::controller::{Controller, Executed, Outcome};
use super::super::features::{self, Feature, Features, TEMPERATURE, id};
use super::super::namespace::WriteProtection;
use super::super::spec::command::{ALL_NAMESPACES, Command};
use super::super::spec::log::Event;
use super::super::spec::status::Status;

/// CDW10 of Set Features: the value is saved, too.
const SAVE: u32 = 1 << 31;
/// Host Behavior Support: its bytes.
const BEHAVIOR_SIZE: usize = 512;
/// Temperature Threshold: below it, rather than above.
const UNDER: u32 = 1 << 20;

/// SEL: which value of a feature is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Select {
    Current,
    Default,
    Saved,
    Capabilities,
}

impl Controller {
    /// The feature that a command names, if the namespace that it names goes with it.
    fn feature(&mut self, command: &Command) -> Result<&'static Feature, Status> {
        let feature = features::find((command.word(10) & 0xFF) as u8).ok_or(Status::INVALID_FIELD)?;
        let id = command.namespace.get();
        let is_of_one = id != 0 && id != ALL_NAMESPACES;
        if is_of_one {
            self.subsystem.attached(id)?;
        }
        match (feature.per_namespace, is_of_one) {
            (false, true) => Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC),
            _ => Ok(feature),
        }
    }

    pub(super) fn get_features(&mut self, command: &Command) -> Executed {
        let feature = self.feature(command)?;
        let select = match command.word(10) >> 8 & 7 {
            0 => Select::Current,
            1 => Select::Default,
            2 => Select::Saved,
            3 => Select::Capabilities,
            _ => return Err(Status::INVALID_FIELD),
        };
        if select == Select::Capabilities {
            let Feature { saveable, per_namespace, changeable, .. } = *feature;
            let bits = u32::from(saveable) | u32::from(per_namespace) << 1 | u32::from(changeable) << 2;
            return Ok(Outcome::Done(bits.into()));
        }
        let value = match feature.per_namespace {
            true => self.namespace_feature(feature, command, select)?,
            false => self.controller_feature(feature, command, select)?,
        };
        Ok(Outcome::Done(value.into()))
    }

    fn namespace_feature(&mut self, feature: &Feature, command: &Command, select: Select) -> Result<u32, Status> {
        // Nothing of a namespace is for all of them.
        let namespace = self.subsystem.attached(command.namespace.get())?;
        if select != Select::Current {
            return Ok(feature.default);
        }
        Ok(match feature.id {
            id::ERROR_RECOVERY => namespace.error_recovery,
            id::RESERVATION_NOTIFICATION => namespace.reservation.masked,
            id::RESERVATION_PERSISTENCE => namespace.reservation.persists.into(),
            _ => namespace.protection as u32,
        })
    }

    fn controller_feature(&mut self, feature: &Feature, command: &Command, select: Select) -> Result<u32, Status> {
        let values = match select {
            Select::Saved => self.subsystem.saved.clone(),
            Select::Default => Features::default(),
            _ => self.session.as_ref().map(|session| session.features.clone()).unwrap_or_default(),
        };
        match feature.id {
            id::NUMBER_OF_QUEUES => Ok(self.granted_queues()),
            id::INTERRUPT_VECTOR => Ok(values.vector(self.vector(command)?)),
            id::TEMPERATURE_THRESHOLD => match command.word(11) >> 16 & 0x3F {
                0 => Ok(values.get(feature.id)),
                0x10 => Ok(values.under_temperature.into()),
                _ => Err(Status::INVALID_FIELD),
            },
            id::TIMESTAMP => {
                let time = values.timestamp.map(|(time, since)| time + since.elapsed().as_millis() as u64);
                // Bits 47 to 0, and from 49 on, that the host has set it.
                let value = time.unwrap_or(0) & ((1 << 48) - 1) | u64::from(time.is_some()) << 49;
                self.send(command, &value.to_le_bytes())?;
                Ok(0)
            }
            id::HOST_BEHAVIOR => {
                let mut data = [0; BEHAVIOR_SIZE];
                data[..values.behavior.len()].copy_from_slice(&values.behavior);
                self.send(command, &data)?;
                Ok(0)
            }
            id::HOST_IDENTIFIER => {
                let is_long = command.word(11) & 1 != 0;
                self.send(command, &values.host[..if is_long { 16 } else { 8 }])?;
                Ok(0)
            }
            _ => Ok(values.get(feature.id)),
        }
    }

    /// Submission queues in the lower half, and completion queues, each less one.
    fn granted_queues(&self) -> u32 {
        let most = u32::from(self.queues) - 1;
        most | most << 16
    }

    /// CDW11 of Interrupt Vector Configuration.
    fn vector(&self, command: &Command) -> Result<u16, Status> {
        let vector = (command.word(11) & 0xFFFF) as u16;
        if vector < self.vectors() { Ok(vector) } else { Err(Status::INVALID_FIELD) }
    }

    pub(super) fn set_features(&mut self, command: &Command) -> Executed {
        let feature = self.feature(command)?;
        let saves = command.word(10) & SAVE != 0;
        if saves && !feature.saveable {
            return Err(Status::FEATURE_NOT_SAVEABLE);
        }
        if !feature.changeable {
            return Err(Status::FEATURE_NOT_CHANGEABLE);
        }
        if feature.per_namespace {
            self.set_namespace_feature(feature, command)?;
            return Ok(Outcome::Done(0));
        }
        let result = self.set_controller_feature(feature, command)?;
        if saves && let Some(session) = &self.session {
            // Of those that can be saved, this one is.
            let value = session.features.get(feature.id);
            let under = session.features.under_temperature;
            self.subsystem.saved.set(feature.id, value);
            if feature.id == id::TEMPERATURE_THRESHOLD {
                self.subsystem.saved.under_temperature = under;
            }
        }
        Ok(Outcome::Done(result.into()))
    }

    fn set_namespace_feature(&mut self, feature: &Feature, command: &Command) -> Result<(), Status> {
        let value = command.word(11) & feature.mask;
        let ids = match command.namespace.get() {
            ALL_NAMESPACES => self.subsystem.active().collect(),
            id => {
                self.subsystem.attached(id)?;
                vec![id]
            }
        };
        if feature.id == id::WRITE_PROTECTION {
            let wanted = WriteProtection::from_number(value).ok_or(Status::INVALID_FIELD)?;
            // Until the power is cycled, or for good, it stays.
            for id in &ids {
                let now = self.subsystem.attached(*id)?.protection;
                if matches!(now, WriteProtection::UntilPowerCycle | WriteProtection::ForGood) && now != wanted {
                    return Err(Status::FEATURE_NOT_CHANGEABLE);
                }
            }
            // What was written before is not lost by it.
            self.flush_all()?;
        }
        // An error for deallocated blocks: there is none, and no saying that there is.
        if feature.id == id::ERROR_RECOVERY && value >> 16 != 0 {
            return Err(Status::INVALID_FIELD);
        }
        for id in ids {
            let namespace = self.subsystem.attached(id)?;
            match feature.id {
                id::ERROR_RECOVERY => namespace.error_recovery = value,
                id::RESERVATION_NOTIFICATION => namespace.reservation.masked = value,
                id::RESERVATION_PERSISTENCE => namespace.reservation.persists = value != 0,
                _ => namespace.protection = WriteProtection::from_number(value).unwrap_or_default(),
            }
        }
        Ok(())
    }

    fn set_controller_feature(&mut self, feature: &Feature, command: &Command) -> Result<u32, Status> {
        let value = command.word(11);
        match feature.id {
            id::POWER_MANAGEMENT if value & 0x1F != 0 => return Err(Status::INVALID_FIELD),
            id::NUMBER_OF_QUEUES => {
                if value & 0xFFFF == 0xFFFF || value >> 16 == 0xFFFF {
                    return Err(Status::INVALID_FIELD);
                }
                let session = self.session.as_ref();
                let has_some = session.is_some_and(|session| session.completions[1..].iter().any(Option::is_some));
                return if has_some { Err(Status::COMMAND_SEQUENCE_ERROR) } else { Ok(self.granted_queues()) };
            }
            id::VOLATILE_WRITE_CACHE if value & 1 == 0 => self.flush_all()?,
            id::TEMPERATURE_THRESHOLD => return self.set_temperature(value),
            id::INTERRUPT_VECTOR => {
                let vector = self.vector(command)?;
                if let Some(session) = &mut self.session {
                    session.features.set_vector(vector, value & 1 << 16 != 0);
                }
                return Ok(0);
            }
            id::TIMESTAMP => {
                let mut data = [0; 8];
                self.receive(command, &mut data)?;
                let time = u64::from_le_bytes(data) & ((1 << 48) - 1);
                if let Some(session) = &mut self.session {
                    session.features.timestamp = Some((time, Instant::now()));
                }
                return Ok(0);
            }
            id::HOST_BEHAVIOR => {
                let mut data = [0; BEHAVIOR_SIZE];
                self.receive(command, &mut data)?;
                if let Some(session) = &mut self.session {
                    session.features.behavior.copy_from_slice(&data[..8]);
                }
                return Ok(0);
            }
            id::HOST_IDENTIFIER => {
                let is_long = value & 1 != 0;
                let mut data = [0; 16];
                self.receive(command, &mut data[..if is_long { 16 } else { 8 }])?;
                if let Some(session) = &mut self.session {
                    (session.features.host, session.features.has_long_identifier) = (data, is_long);
                }
                return Ok(0);
            }
            _ => {}
        }
        if let Some(session) = &mut self.session {
            session.features.set(feature.id, value);
        }
        if feature.id == id::KEEP_ALIVE {
            self.keep_alive();
        }
        Ok(0)
    }

    fn set_temperature(&mut self, value: u32) -> Result<u32, Status> {
        // There is one sensor, of the whole: 0, or 15 for all there are.
        if !matches!(value >> 16 & 0xF, 0 | 0xF) || value >> 20 & 3 > 1 {
            return Err(Status::INVALID_FIELD);
        }
        let threshold = (value & 0xFFFF) as u16;
        let Some(session) = &mut self.session else { return Err(Status::INTERNAL_ERROR) };
        let is_beyond = if value & UNDER != 0 {
            session.features.under_temperature = threshold;
            TEMPERATURE <= threshold
        } else {
            session.features.set(id::TEMPERATURE_THRESHOLD, threshold.into());
            TEMPERATURE >= threshold
        };
        if is_beyond {
            session.happen(Event::TEMPERATURE);
        }
        Ok(0)
    }
}
