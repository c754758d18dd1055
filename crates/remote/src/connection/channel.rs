//! A stream socket as messages with descriptors beside them.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, Shutdown, recvmsg, sendmsg, shutdown,
};
use zerocopy::{FromBytes, IntoBytes};

use super::Ended;
use crate::wire::{HEADER_SIZE, Header, MAX_DESCRIPTORS};

/// A message as it came.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// One end of a connection. One thread at a time sends, and one receives.
#[derive(Debug)]
pub(super) struct Channel(OwnedFd);

impl Channel {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Whatever waits for it waits no more, here and at the other end.
    pub(super) fn close(&self) {
        // One that is closed already is what is wanted.
        let _ = shutdown(&self.0, Shutdown::Both);
    }

    /// Sends a message; `parts` are what follows its header. A peer that takes nothing until `deadline` is given up.
    pub(super) fn send(
        &self,
        header: &Header,
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
            match sendmsg(&self.0, &slices, &mut ancillary, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
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

    /// Receives a message: `None` if none has begun by `start`. One that has begun has to be whole by what `end` then
    /// gives.
    pub(super) fn receive(
        &self,
        start: Option<Instant>,
        end: impl FnOnce() -> Instant,
    ) -> Result<Option<Message>, Ended> {
        let mut first = [0; HEADER_SIZE];
        let mut descriptors = Vec::new();
        let begun = match self.read(&mut first, &mut descriptors) {
            Ok(0) => return Err(Ended::Closed),
            Ok(bytes) => bytes,
            Err(Errno::AGAIN) => {
                if !self.wait(PollFlags::IN, start)? {
                    return Ok(None);
                }
                match self.read(&mut first, &mut descriptors) {
                    Ok(0) => return Err(Ended::Closed),
                    Ok(bytes) => bytes,
                    Err(Errno::AGAIN) => return Ok(None),
                    Err(error) => return Err(Ended::of(error)),
                }
            }
            Err(error) => return Err(Ended::of(error)),
        };
        let mut end = Deadline(Some(end), None);
        self.fill(&mut first[begun..], &mut descriptors, &mut end)?;
        let header = Header::read_from_bytes(&first).map_err(|_| Ended::Closed)?;
        let mut payload = vec![0; header.payload()?];
        self.fill(&mut payload, &mut descriptors, &mut end)?;
        Ok(Some(Message { header, payload, descriptors }))
    }

    fn fill<F: FnOnce() -> Instant>(
        &self,
        mut data: &mut [u8],
        descriptors: &mut Vec<OwnedFd>,
        end: &mut Deadline<F>,
    ) -> Result<(), Ended> {
        while !data.is_empty() {
            match self.read(data, descriptors) {
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
    fn read(&self, data: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> Result<usize, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let message = loop {
            match recvmsg(&self.0, &mut [IoSliceMut::new(data)], &mut ancillary, flags) {
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
        if message.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > MAX_DESCRIPTORS {
            return Err(Errno::MFILE);
        }
        Ok(message.bytes)
    }

    /// Waits until the socket is ready; false if it is not by the deadline.
    fn wait(&self, what: PollFlags, deadline: Option<Instant>) -> Result<bool, Ended> {
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut [PollFd::new(&self.0, what)], left.as_ref()) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(error) => return Err(Ended::of(error)),
            }
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
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
