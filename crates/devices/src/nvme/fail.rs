//! Failures to order: the nth command of a kind fails, so that a driver's error paths are taken in the same order each
//! time.
//!
//! ```text
//!   read:3:0x281     the third read fails with this status
//!   write:2:timeout  the second write is never completed
//!   flush:1:late     the first flush is completed when the next command is
//!   any:9:twice      the ninth command is completed twice
//!   any:20:remove    with the twentieth command, the controller is gone
//! ```

use std::num::NonZeroU64;
use std::str::FromStr;

use thiserror::Error;

use super::spec::command::{admin, nvm};
use super::spec::status::Status;

/// Which commands are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandKind {
    /// All of them but event requests.
    Any,
    /// Those for the admin queue, but event requests.
    Admin,
    /// Those of an opcode, for the admin queue.
    AdminOpcode(u8),
    /// Those of an opcode, for I/O queues.
    IoOpcode(u8),
}

/// What becomes of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfortune {
    /// It is not carried out, and completed with this status.
    Status(Status),
    /// It is not carried out, and never completed.
    Timeout,
    /// It is carried out, and completed after the next command of its queue.
    Late,
    /// It is carried out, and completed twice.
    Twice,
    /// It is not carried out, and the device is gone: registers read as ones, and there is no DMA and no interrupt.
    Remove,
}

/// A failure to order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Of which commands.
    pub kind: CommandKind,
    /// Of these, which: 1 is the first after power-on.
    pub number: NonZeroU64,
    /// What becomes of it.
    pub misfortune: Misfortune,
}

/// Why a text is no [`Failure`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "`{0}` is no failure: write KIND:N:WHAT, as in read:3:0x281; KIND is {kinds}; \
     WHAT is a status, timeout, late, twice or remove",
    kinds = kinds()
)]
pub struct ParseFailureError(String);

const KINDS: &[(&str, CommandKind)] = &[
    ("any", CommandKind::Any),
    ("admin", CommandKind::Admin),
    ("read", CommandKind::IoOpcode(nvm::READ)),
    ("write", CommandKind::IoOpcode(nvm::WRITE)),
    ("flush", CommandKind::IoOpcode(nvm::FLUSH)),
    ("compare", CommandKind::IoOpcode(nvm::COMPARE)),
    ("write-zeroes", CommandKind::IoOpcode(nvm::WRITE_ZEROES)),
    ("dsm", CommandKind::IoOpcode(nvm::DATASET_MANAGEMENT)),
    ("copy", CommandKind::IoOpcode(nvm::COPY)),
    ("verify", CommandKind::IoOpcode(nvm::VERIFY)),
    ("identify", CommandKind::AdminOpcode(admin::IDENTIFY)),
    ("get-log", CommandKind::AdminOpcode(admin::GET_LOG_PAGE)),
    ("set-features", CommandKind::AdminOpcode(admin::SET_FEATURES)),
    ("get-features", CommandKind::AdminOpcode(admin::GET_FEATURES)),
    ("create-cq", CommandKind::AdminOpcode(admin::CREATE_COMPLETION_QUEUE)),
    ("create-sq", CommandKind::AdminOpcode(admin::CREATE_SUBMISSION_QUEUE)),
    ("delete-cq", CommandKind::AdminOpcode(admin::DELETE_COMPLETION_QUEUE)),
    ("delete-sq", CommandKind::AdminOpcode(admin::DELETE_SUBMISSION_QUEUE)),
    ("abort", CommandKind::AdminOpcode(admin::ABORT)),
    ("format", CommandKind::AdminOpcode(admin::FORMAT_NVM)),
];

fn kinds() -> String {
    KINDS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

impl FromStr for Failure {
    type Err = ParseFailureError;

    fn from_str(text: &str) -> Result<Self, ParseFailureError> {
        let parse = || {
            let mut parts = text.split(':');
            let (name, number, what) = (parts.next()?, parts.next()?, parts.next()?);
            if parts.next().is_some() {
                return None;
            }
            let kind = KINDS.iter().find(|(known, _)| *known == name)?.1;
            let number = number.parse().ok()?;
            let misfortune = match what {
                "timeout" => Misfortune::Timeout,
                "late" => Misfortune::Late,
                "twice" => Misfortune::Twice,
                "remove" => Misfortune::Remove,
                _ => {
                    let code = what.strip_prefix("0x").map(|digits| u16::from_str_radix(digits, 16));
                    let code = code.unwrap_or_else(|| what.parse()).ok()?;
                    Misfortune::Status(Status(code)).reported()?
                }
            };
            Some(Self { kind, number, misfortune })
        };
        parse().ok_or_else(|| ParseFailureError(text.to_owned()))
    }
}

impl Misfortune {
    /// A status of success is no misfortune, and one has 15 bits.
    fn reported(self) -> Option<Self> {
        let Self::Status(status) = self else { return Some(self) };
        (!status.is_success() && status.0 >> 15 == 0).then_some(self)
    }
}

/// The failures that have not happened yet, with how many commands are left until they do.
#[derive(Debug)]
pub(super) struct Plan(Vec<(Failure, u64)>);

impl Plan {
    pub(super) fn new(failures: &[Failure]) -> Self {
        Self(failures.iter().map(|failure| (*failure, failure.number.get())).collect())
    }

    /// What becomes of a command that is about to be carried out.
    pub(super) fn next(&mut self, is_admin: bool, opcode: u8) -> Option<Misfortune> {
        if self.0.is_empty() || is_admin && opcode == admin::ASYNC_EVENT_REQUEST {
            return None;
        }
        let mut found = None;
        self.0.retain_mut(|(failure, left)| {
            let counts = match failure.kind {
                CommandKind::Any => true,
                CommandKind::Admin => is_admin,
                CommandKind::AdminOpcode(code) => is_admin && code == opcode,
                CommandKind::IoOpcode(code) => !is_admin && code == opcode,
            };
            *left -= u64::from(counts);
            let happens = *left == 0 && found.is_none();
            if happens {
                found = Some(failure.misfortune);
            }
            *left > 0
        });
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_of_a_kind_fails_once() {
        let mut plan = Plan::new(&["read:2:0x281".parse().unwrap(), "any:5:twice".parse().unwrap()]);
        let read = Some(Misfortune::Status(Status(0x281)));
        assert_eq!([(); 4].map(|()| plan.next(false, nvm::READ)), [None, read, None, None]);
        assert_eq!([(); 2].map(|()| plan.next(true, nvm::READ)), [Some(Misfortune::Twice), None]);
    }

    #[test]
    fn what_is_no_failure_is_said_with_what_would_be_one() {
        for text in ["", "read", "read:1", "read:0:late", "read:1:0", "read:1:0x8000", "reed:1:late", "read:1:late:2"] {
            let error = text.parse::<Failure>().unwrap_err().to_string();
            assert!(error.contains("KIND:N:WHAT") && error.contains("write-zeroes"), "{error}");
        }
    }
}
