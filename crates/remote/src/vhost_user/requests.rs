//! Requests to the other side, one at a time: a reply has no number, and is to what was asked last.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;
use zerocopy::FromBytes;
use zerocopy::native_endian::U64;

use crate::Ended;
use crate::socket::{Channel, Message, Passed};
use crate::vhost_user::wire::{Header, MessageError, RequestId};

impl From<MessageError> for Ended {
    fn from(error: MessageError) -> Self {
        Self::protocol(error.to_string())
    }
}

/// Why a request was not carried out.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The other side refuses it.
    #[error("the other side refuses {0}")]
    Refused(&'static str),
    /// There is no other side any more.
    #[error(transparent)]
    Ended(#[from] Ended),
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Nothing.
    Sent,
    /// That it was carried out.
    Acknowledged,
    /// What it asks for.
    Replied,
}

/// A socket by which requests go, and replies come.
#[derive(Debug)]
pub(super) struct Requests {
    channel: Channel<Header>,
    patience: Duration,
    /// Held by the thread that asks.
    turn: Mutex<()>,
    /// Held by the thread that sends.
    sends: Mutex<()>,
    ended: Mutex<Option<Ended>>,
}

impl Requests {
    /// To a peer that has so long to answer.
    pub(super) fn new(socket: OwnedFd, patience: Duration) -> Self {
        let channel = Channel::new(socket, patience);
        channel.take_descriptors(false);
        Self { channel, patience, turn: Mutex::default(), sends: Mutex::default(), ended: Mutex::default() }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    pub(super) fn ended(&self) -> Option<Ended> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it, also for a thread that waits for a reply. The first reason stays.
    pub(super) fn end(&self, why: Ended) -> Ended {
        let first = self.ended.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why).clone();
        self.channel.close();
        first
    }

    /// When an answer to what is asked now has to be there.
    pub(super) fn limit(&self) -> Instant {
        Instant::now() + self.patience
    }

    /// Asks for something, and returns what came with the reply, if it waits for one.
    pub(super) fn ask(
        &self,
        id: RequestId,
        parts: &[&[u8]],
        descriptors: &[BorrowedFd<'_>],
        wait: Wait,
    ) -> Result<Vec<u8>, RequestError> {
        self.ask_until(None, id, parts, descriptors, wait)
    }

    /// As [`Requests::ask`]; what it waits for has to be there by this limit, which several requests may have together.
    pub(super) fn ask_until(
        &self,
        limit: Option<Instant>,
        id: RequestId,
        parts: &[&[u8]],
        descriptors: &[BorrowedFd<'_>],
        wait: Wait,
    ) -> Result<Vec<u8>, RequestError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.exchange(limit, id, parts, descriptors, wait).map(|(payload, _)| payload)
    }

    /// As [`Requests::ask`], for what is replied with descriptors beside it.
    pub(super) fn ask_for_files(&self, id: RequestId, parts: &[&[u8]]) -> Result<(Vec<u8>, Passed), RequestError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.channel.take_descriptors(true);
        let replied = self.exchange(None, id, parts, &[], Wait::Replied);
        self.channel.take_descriptors(false);
        replied
    }

    /// The caller has the turn.
    fn exchange(
        &self,
        limit: Option<Instant>,
        id: RequestId,
        parts: &[&[u8]],
        descriptors: &[BorrowedFd<'_>],
        wait: Wait,
    ) -> Result<(Vec<u8>, Passed), RequestError> {
        let name = id.name();
        if limit.is_some_and(|limit| limit <= Instant::now()) {
            return Err(self.end(Ended::Silent(name, self.patience)).into());
        }
        let limit = limit.unwrap_or_else(|| self.limit());
        let header = self.send(limit, id, parts, descriptors, wait == Wait::Acknowledged)?;
        if wait == Wait::Sent {
            return Ok(Default::default());
        }
        let reply = self.channel.receive(Some(limit), || limit);
        let reply = reply.and_then(|message| message.ok_or(Ended::Silent(name, self.patience)));
        let Message { header: reply, payload, descriptors } = reply.map_err(|ended| self.end(ended))?;
        if !reply.is_reply() || reply.request != header.request {
            return Err(self.end(Ended::Unasked).into());
        }
        match wait {
            Wait::Acknowledged => match U64::read_from_bytes(&payload) {
                Ok(number) if number.get() == 0 => Ok(Default::default()),
                Ok(_) => Err(RequestError::Refused(name)),
                Err(_) => {
                    Err(self.end(Ended::protocol(format!("{} bytes that acknowledge {id}", payload.len()))).into())
                }
            },
            _ => Ok((payload, descriptors)),
        }
    }

    /// Says something that is not answered, also while another thread waits for an answer.
    pub(super) fn say(&self, id: RequestId, parts: &[&[u8]]) -> Result<(), RequestError> {
        self.send(self.limit(), id, parts, &[], false).map(drop)
    }

    fn send(
        &self,
        limit: Instant,
        id: RequestId,
        parts: &[&[u8]],
        descriptors: &[BorrowedFd<'_>],
        needs_reply: bool,
    ) -> Result<Header, RequestError> {
        if let Some(ended) = self.ended() {
            return Err(ended.into());
        }
        let length = parts.iter().map(|part| part.len()).sum();
        let header = Header::request(id as u32, length, needs_reply);
        let _sends = self.sends.lock().unwrap_or_else(PoisonError::into_inner);
        self.channel.send(&header, parts, descriptors, limit).map_err(|ended| self.end(ended))?;
        Ok(header)
    }
}
