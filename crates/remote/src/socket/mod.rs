//! A socket to another process: messages with descriptors beside them, and why a connection is over.

mod channel;
mod descriptors;
mod files;
pub(crate) mod peer;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use thiserror::Error;

pub(crate) use channel::{Channel, Head, MAX_DESCRIPTORS, Message};
pub(crate) use descriptors::Passed;
pub(crate) use files::Files;

/// Why a connection is over.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum Ended {
    /// The peer closed it, or is gone.
    #[error("the peer has closed the connection")]
    Closed,
    /// A reply that no command is for.
    #[error("the peer broke the protocol: a reply to no command")]
    Unasked,
    /// A command on a socket for replies.
    #[error("the peer broke the protocol: a command where it sends replies only")]
    Command,
    /// What it sent has other bytes than it has to have.
    #[error("the peer broke the protocol: {0}")]
    Protocol(Arc<str>),
    /// It sends commands and does not take replies.
    #[error("the peer sends commands faster than they can be carried out, and waits for none")]
    Flood,
    /// A message begins and does not end, or is not taken.
    #[error("the peer stopped in the middle of a message")]
    Stalled,
    /// It did not answer in time.
    #[error("the peer did not answer {0} within {1:?}")]
    Silent(&'static str, Duration),
    /// This side has closed it.
    #[error("the connection was closed here")]
    Here,
    /// The socket.
    #[error("the connection failed: {0}")]
    Socket(Arc<io::Error>),
}

impl Ended {
    pub(crate) fn of(error: Errno) -> Self {
        match error {
            Errno::CONNRESET | Errno::PIPE => Self::Closed,
            other => Self::Socket(Arc::new(other.into())),
        }
    }

    /// The peer sent something else than it has to.
    pub(crate) fn protocol(what: impl Into<Arc<str>>) -> Self {
        Self::Protocol(what.into())
    }
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Socket(Arc::new(error))
    }
}

/// How long a peer has to answer: as was asked for, but not less than a millisecond, nor more than an hour.
pub(crate) fn bounded(patience: Duration) -> Duration {
    patience.clamp(Duration::from_millis(1), Duration::from_secs(3600))
}

/// Waits until a descriptor is ready; false if it is not by the deadline. Signals do not end it.
fn ready(descriptor: BorrowedFd<'_>, what: PollFlags, deadline: Option<Instant>) -> Result<bool, Errno> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut [PollFd::from_borrowed_fd(descriptor, what)], left.as_ref()) {
            Err(Errno::INTR) => {}
            ready => return ready.map(|ready| ready > 0),
        }
    }
}

/// A socket to who listens at `path`; one whose queue of clients is full has some time.
pub(crate) fn connect(path: &Path, patience: Duration) -> Result<OwnedFd, Errno> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let end = Instant::now() + patience;
    loop {
        match rustix::net::connect(&socket, &address) {
            Err(Errno::AGAIN) if Instant::now() < end => std::thread::sleep(Duration::from_millis(10)),
            Err(Errno::INTR) => {}
            other => return other.map(|()| socket),
        }
    }
}
