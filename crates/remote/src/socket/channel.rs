//! A stream socket as messages with descriptors beside them.

use std::io::{IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, Shutdown, recvmsg, sendmsg, shutdown,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::descriptors::Passed;
use super::{Ended, ready};

/// The most descriptors beside one message: as many as Linux passes at once (`SCM_MAX_FD`).
pub(crate) const MAX_DESCRIPTORS: usize = 253;

/// What each message of a protocol begins with.
pub(crate) trait Head: FromBytes + IntoBytes + Immutable {
    /// How many bytes follow.
    fn follows(&self) -> Result<usize, Ended>;
}

/// A message as it came.
#[derive(Debug)]
pub(crate) struct Message<H> {
    pub(crate) header: H,
    pub(crate) payload: Vec<u8>,
    pub(crate) descriptors: Passed,
}

/// One end of a connection. One thread at a time sends, and one receives.
#[derive(Debug)]
pub(crate) struct Channel<H> {
    socket: OwnedFd,
    takes_descriptors: AtomicBool,
    /// What was read beyond a message. The thread that receives holds it.
    rest: Mutex<Vec<u8>>,
    head: PhantomData<fn(H) -> H>,
}

/// How much is read at once of messages that have no descriptors.
const AHEAD: usize = 1024;

impl<H: Head> Channel<H> {
    const HEAD: usize = size_of::<H>();

    /// Over `socket`, with a peer that is waited for so long at once.
    pub(crate) fn new(socket: OwnedFd, patience: Duration) -> Self {
        // Every socket has both.
        let _ = ioctl_fionbio(&socket, false);
        let _ = set_socket_timeout(&socket, Timeout::Recv, Some(patience));
        Self { socket, takes_descriptors: AtomicBool::new(true), rest: Mutex::default(), head: PhantomData }
    }

    /// Whether descriptors beside messages are taken from now on. If not, the kernel lets go of them, without asking
    /// those that made the files.
    pub(crate) fn take_descriptors(&self, takes: bool) {
        self.takes_descriptors.store(takes, Ordering::SeqCst);
    }

    /// Whether the peer has sent something that was not received, or has closed. What was read ahead does not make the
    /// socket readable, so a thread asks this before it waits for the socket.
    pub(crate) fn has_something(&self) -> bool {
        // A thread that receives sees to it.
        let is_ahead = self.rest.try_lock().is_ok_and(|rest| !rest.is_empty());
        is_ahead || self.wait(PollFlags::IN, Some(Instant::now())).unwrap_or(true)
    }

    /// Whatever waits for it waits no more, here and at the other end.
    pub(crate) fn close(&self) {
        // One that is closed already is what is wanted.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }

    /// Sends a message; `parts` are what follows its header. A peer that takes nothing until `deadline` is given up.
    pub(crate) fn send(
        &self,
        header: &H,
        parts: &[&[u8]],
        descriptors: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<(), Ended> {
        let mut left: Vec<&[u8]> = std::iter::once(header.as_bytes()).chain(parts.iter().copied()).collect();
        // They go with the first byte.
        let mut descriptors = Some(descriptors).filter(|descriptors| !descriptors.is_empty());
        loop {
            left.retain(|part| !part.is_empty());
            if left.is_empty() {
                return Ok(());
            }
            let slices: Vec<_> = left.iter().map(|part| IoSlice::new(part)).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut ancillary = SendAncillaryBuffer::new(if descriptors.is_some() { &mut space } else { &mut [] });
            if let Some(descriptors) = descriptors
                && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors))
            {
                return Err(Ended::of(Errno::TOOMANYREFS));
            }
            match sendmsg(&self.socket, &slices, &mut ancillary, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(mut sent) => {
                    descriptors = None;
                    for part in &mut left {
                        let now = sent.min(part.len());
                        *part = &part[now..];
                        sent -= now;
                    }
                }
                Err(Errno::AGAIN) => {
                    if !self.wait(PollFlags::OUT, Some(deadline))? {
                        return Err(Ended::Stalled);
                    }
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(Ended::of(error)),
            }
        }
    }

    /// Receives a message: `None` if none has begun by `start`, or as long after it as the peer is waited for. One that
    /// has begun has to be whole by what `end` then gives.
    pub(crate) fn receive(
        &self,
        start: Option<Instant>,
        end: impl FnOnce() -> Instant,
    ) -> Result<Option<Message<H>>, Ended> {
        let mut end = Deadline(Some(end), None);
        let mut descriptors = Passed::default();
        // What is read beyond a message is of the next, and whose a descriptor is could not be told then.
        let ahead = if self.takes_descriptors.load(Ordering::SeqCst) { Self::HEAD } else { AHEAD };
        let mut space = [0; AHEAD];
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        let mut has = rest.len();
        space[..has].copy_from_slice(&rest);
        rest.clear();
        while has == 0 {
            // It waits for as long as the socket lets it: a look before would be one system call more for each message.
            match self.read(&mut space[..ahead], &mut descriptors, RecvFlags::empty()) {
                Ok(0) => return Err(Ended::Closed),
                Ok(bytes) => has = bytes,
                Err(Errno::AGAIN) if start.is_some_and(|start| start <= Instant::now()) => return Ok(None),
                Err(Errno::AGAIN) => {}
                Err(error) => return Err(Ended::of(error)),
            }
        }
        if has < Self::HEAD {
            self.fill(&mut space[has..Self::HEAD], &mut descriptors, &mut end)?;
            has = Self::HEAD;
        }
        let header = H::read_from_bytes(&space[..Self::HEAD]).map_err(|_| Ended::Closed)?;
        let mut payload = vec![0; header.follows()?];
        let here = payload.len().min(has - Self::HEAD);
        payload[..here].copy_from_slice(&space[Self::HEAD..Self::HEAD + here]);
        rest.extend_from_slice(&space[Self::HEAD + here..has]);
        self.fill(&mut payload[here..], &mut descriptors, &mut end)?;
        Ok(Some(Message { header, payload, descriptors }))
    }

    fn fill<F: FnOnce() -> Instant>(
        &self,
        mut data: &mut [u8],
        descriptors: &mut Passed,
        end: &mut Deadline<F>,
    ) -> Result<(), Ended> {
        while !data.is_empty() {
            match self.read(data, descriptors, RecvFlags::DONTWAIT) {
                Ok(0) => return Err(Ended::Closed),
                Ok(bytes) => data = &mut data[bytes..],
                Err(Errno::AGAIN) => {
                    if !self.wait(PollFlags::IN, Some(end.get()))? {
                        return Err(Ended::Stalled);
                    }
                }
                Err(error) => return Err(Ended::of(error)),
            }
        }
        Ok(())
    }

    /// Reads what there is, and takes the descriptors beside it.
    fn read(&self, data: &mut [u8], descriptors: &mut Passed, how: RecvFlags) -> Result<usize, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let takes_descriptors = self.takes_descriptors.load(Ordering::SeqCst);
        let mut ancillary = RecvAncillaryBuffer::new(if takes_descriptors { &mut space } else { &mut [] });
        let flags = RecvFlags::CMSG_CLOEXEC | how;
        let message = loop {
            match recvmsg(&self.socket, &mut [IoSliceMut::new(data)], &mut ancillary, flags) {
                Err(Errno::INTR) => {}
                other => break other?,
            }
        };
        for rights in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = rights {
                descriptors.extend(rights);
            }
        }
        // Some were dropped on the way: by this process's limit, as there are no more beside a message.
        let are_lost = takes_descriptors && message.flags.contains(ReturnFlags::CTRUNC);
        if are_lost || descriptors.len() > MAX_DESCRIPTORS {
            return Err(Errno::MFILE);
        }
        Ok(message.bytes)
    }

    /// Waits until the socket is ready; false if it is not by the deadline.
    fn wait(&self, what: PollFlags, deadline: Option<Instant>) -> Result<bool, Ended> {
        ready(self.socket.as_fd(), what, deadline).map_err(Ended::of)
    }
}

impl<H> AsFd for Channel<H> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A moment that is only asked for when it is needed.
struct Deadline<F>(Option<F>, Option<Instant>);

impl<F: FnOnce() -> Instant> Deadline<F> {
    fn get(&mut self) -> Instant {
        if let Some(ask) = self.0.take() {
            self.1 = Some(ask());
        }
        self.1.unwrap_or_else(Instant::now)
    }
}
