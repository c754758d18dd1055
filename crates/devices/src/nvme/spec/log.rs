//! Log pages, and the events that point to them.

/// Log page identifiers.
pub mod page {
    /// Supported log pages.
    pub const SUPPORTED: u8 = 0x00;
    /// Errors.
    pub const ERRORS: u8 = 0x01;
    /// SMART: health.
    pub const HEALTH: u8 = 0x02;
    /// Firmware slots.
    pub const FIRMWARE: u8 = 0x03;
    /// Namespaces that have changed.
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    /// Commands that there are, and their effects.
    pub const COMMAND_EFFECTS: u8 = 0x05;
    /// Telemetry that the host asks for.
    pub const TELEMETRY_HOST: u8 = 0x07;
    /// Telemetry that the controller offers.
    pub const TELEMETRY_CONTROLLER: u8 = 0x08;
    /// What has become of reservations.
    pub const RESERVATION: u8 = 0x80;
    /// How far a sanitize operation is.
    pub const SANITIZE: u8 = 0x81;

    /// All that there are.
    pub const ALL: [u8; 10] = [
        SUPPORTED,
        ERRORS,
        HEALTH,
        FIRMWARE,
        CHANGED_NAMESPACES,
        COMMAND_EFFECTS,
        TELEMETRY_HOST,
        TELEMETRY_CONTROLLER,
        RESERVATION,
        SANITIZE,
    ];
}

/// An event that a host is told of: type, information, and the log page that has more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Of which type: events of one type are told once, until the page is read.
    pub kind: u8,
    /// What it is.
    pub information: u8,
    /// Where there is more.
    pub page: u8,
}

impl Event {
    /// A doorbell of a queue that there is not.
    pub const INVALID_DOORBELL: Self = Self { kind: 0, information: 0, page: page::ERRORS };
    /// A doorbell has a value that is no place in the queue.
    pub const INVALID_DOORBELL_VALUE: Self = Self { kind: 0, information: 1, page: page::ERRORS };
    /// The temperature has passed a threshold.
    pub const TEMPERATURE: Self = Self { kind: 1, information: 1, page: page::HEALTH };
    /// Namespaces have come, gone or changed.
    pub const NAMESPACE_CHANGED: Self = Self { kind: 2, information: 0, page: page::CHANGED_NAMESPACES };
    /// A sanitize operation has ended.
    pub const SANITIZE_DONE: Self = Self { kind: 6, information: 1, page: page::SANITIZE };

    /// The result of the command that tells it.
    #[must_use]
    pub fn result(self) -> u64 {
        u64::from(self.kind) | u64::from(self.information) << 8 | u64::from(self.page) << 16
    }
}
