//! The status of a command (base specification, 3.3.3.2).
//!
//! ```text
//!   14   13  12 11 10  8 7         0
//!  │DNR │ M │ CRD │ SCT │ SC        │       this, above the phase in the completion
//! ```

/// The status field without the phase: bits 0 to 14.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u16);

/// Do Not Retry.
const DNR: u16 = 1 << 14;
/// More: there is an entry in the error log.
const MORE: u16 = 1 << 13;

macro_rules! statuses {
    ($($(#[$about:meta])* $NAME:ident = $code:literal, $retry:ident;)*) => {
        impl Status {
            $($(#[$about])* pub const $NAME: Self = Self($code | statuses!(@$retry));)*

            /// Its name, if this controller gives it by itself.
            #[must_use]
            pub fn name(self) -> Option<&'static str> {
                match self.code() {
                    $($code => Some(stringify!($NAME)),)*
                    _ => None,
                }
            }
        }
    };
    (@retry) => { 0 };
    (@final) => { DNR };
}

statuses! {
    /// It was done.
    SUCCESS = 0x000, retry;
    /// The controller has no such command.
    INVALID_OPCODE = 0x001, final;
    /// A field has a value that is none, or not this command's.
    INVALID_FIELD = 0x002, final;
    /// Another command of the queue has the identifier.
    COMMAND_ID_CONFLICT = 0x003, final;
    /// Memory refused the data, or metadata, or a list.
    DATA_TRANSFER_ERROR = 0x004, retry;
    /// The controller failed.
    INTERNAL_ERROR = 0x006, retry;
    /// An Abort command stopped it.
    ABORT_REQUESTED = 0x007, retry;
    /// The other of two fused commands failed.
    ABORTED_FUSED_FAILED = 0x009, retry;
    /// The other of two fused commands is not there.
    ABORTED_FUSED_MISSING = 0x00A, retry;
    /// There is no such namespace, or it is not attached.
    INVALID_NAMESPACE = 0x00B, final;
    /// It comes in the wrong order.
    COMMAND_SEQUENCE_ERROR = 0x00C, final;
    /// A segment of an SGL is wrong.
    INVALID_SGL_SEGMENT = 0x00D, final;
    /// An SGL has more descriptors than fit, or fewer than it must have.
    INVALID_SGL_COUNT = 0x00E, final;
    /// An SGL is shorter than the data.
    DATA_SGL_LENGTH_INVALID = 0x00F, final;
    /// An SGL is not as long as the metadata.
    METADATA_SGL_LENGTH_INVALID = 0x010, final;
    /// An SGL descriptor is of a type that there is not, or not here.
    SGL_TYPE_INVALID = 0x011, final;
    /// The controller memory buffer may not be used so.
    INVALID_USE_OF_CMB = 0x012, final;
    /// A PRP has an offset where it may have none.
    PRP_OFFSET_INVALID = 0x013, final;
    /// A reservation key, or a host identifier, is not this host's.
    HOST_IDENTIFIER_INCONSISTENT = 0x018, final;
    /// Sanitize failed, and nothing else happens before it succeeds.
    SANITIZE_FAILED = 0x01C, final;
    /// Sanitize is under way.
    SANITIZE_IN_PROGRESS = 0x01D, retry;
    /// The namespace is write protected.
    NAMESPACE_WRITE_PROTECTED = 0x020, final;
    /// Blocks beyond the end of the namespace.
    LBA_OUT_OF_RANGE = 0x080, final;
    /// The namespace cannot hold more.
    CAPACITY_EXCEEDED = 0x081, final;
    /// Another host has reserved it.
    RESERVATION_CONFLICT = 0x083, final;
    /// There is no such completion queue.
    COMPLETION_QUEUE_INVALID = 0x100, final;
    /// The queue identifier is taken, or none.
    INVALID_QUEUE_IDENTIFIER = 0x101, final;
    /// No possible number of entries.
    INVALID_QUEUE_SIZE = 0x102, final;
    /// Too many event requests at once.
    ASYNC_EVENT_LIMIT_EXCEEDED = 0x105, retry;
    /// There is no such interrupt vector.
    INVALID_INTERRUPT_VECTOR = 0x108, final;
    /// There is no such log page.
    INVALID_LOG_PAGE = 0x109, final;
    /// There is no such format.
    INVALID_FORMAT = 0x10A, final;
    /// A completion queue has submission queues.
    INVALID_QUEUE_DELETION = 0x10C, final;
    /// The feature is not saved.
    FEATURE_NOT_SAVEABLE = 0x10D, final;
    /// The feature cannot be changed.
    FEATURE_NOT_CHANGEABLE = 0x10E, final;
    /// The feature is not of a namespace.
    FEATURE_NOT_NAMESPACE_SPECIFIC = 0x10F, final;
    /// There is no such room.
    NAMESPACE_INSUFFICIENT_CAPACITY = 0x115, final;
    /// There are as many namespaces as there can be.
    NAMESPACE_IDENTIFIER_UNAVAILABLE = 0x116, final;
    /// It is attached already.
    NAMESPACE_ALREADY_ATTACHED = 0x118, final;
    /// It is not attached.
    NAMESPACE_NOT_ATTACHED = 0x11A, final;
    /// There is no thin provisioning.
    THIN_PROVISIONING_NOT_SUPPORTED = 0x11B, final;
    /// The list of controllers is none.
    CONTROLLER_LIST_INVALID = 0x11C, final;
    /// Protection information is asked for that there is not.
    INVALID_PROTECTION_INFORMATION = 0x181, final;
    /// More, or longer, ranges than a command may have.
    COMMAND_SIZE_LIMIT_EXCEEDED = 0x183, final;
    /// The media could not be written.
    WRITE_FAULT = 0x280, retry;
    /// The media could not be read.
    UNRECOVERED_READ_ERROR = 0x281, retry;
    /// The guard does not match.
    GUARD_CHECK_ERROR = 0x282, final;
    /// The application tag does not match.
    APPLICATION_TAG_CHECK_ERROR = 0x283, final;
    /// The reference tag does not match.
    REFERENCE_TAG_CHECK_ERROR = 0x284, final;
    /// What was compared differs.
    COMPARE_FAILURE = 0x285, final;
}

impl Status {
    /// Status code type and status code.
    #[must_use]
    pub fn code(self) -> u16 {
        self.0 & 0x7FF
    }

    /// Whether the command was done.
    #[must_use]
    pub fn is_success(self) -> bool {
        self.code() == 0
    }

    /// Whether a host shall not try the command again.
    #[must_use]
    pub fn is_final(self) -> bool {
        self.0 & DNR != 0
    }

    /// With an entry in the error log.
    #[must_use]
    pub fn with_more(self) -> Self {
        Self(self.0 | MORE)
    }
}

impl std::fmt::Debug for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "{:#05x}", self.code()),
        }
    }
}
