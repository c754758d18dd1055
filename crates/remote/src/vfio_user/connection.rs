//! A connection: commands go out and come in, and replies find the thread that waits for them.
//!
//! Both sides may send commands, and several threads do. No thread is there to receive: whoever waits for something
//! receives, one at a time, and hands on what is for others. So a reply that is waited for comes to the thread that
//! waits, and costs no other a wake.
//!
//! ```text
//!   thread 1: call(REGION_READ) ─ send ─ receives ──┬─ its own reply: done, and another waiting thread receives
//!   thread 2: call(DMA_MAP) ───── send ─ waits ◄────┤ a reply for thread 2
//!   thread 3: next() ────────────────── waits ◄─────┘ a command
//! ```
//!
//! A peer that does not answer in time, breaks the protocol or goes ends the connection, for all threads and for good;
//! the first reason stays.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use thiserror::Error;

use crate::socket::{Channel, Ended, Head, Message};
use crate::vfio_user::wire::{CommandId, Header, Kind, MessageError};

impl From<MessageError> for Ended {
    fn from(error: MessageError) -> Self {
        Self::protocol(error.to_string())
    }
}

impl Head for Header {
    fn follows(&self) -> Result<usize, Ended> {
        Ok(self.payload()?)
    }
}

/// Why a command was not carried out.
#[derive(Clone, Debug, Error)]
pub(crate) enum CallError {
    /// The peer refuses it.
    #[error("the peer refuses {0}: {1}")]
    Refused(CommandId, Errno),
    /// There is no peer any more.
    #[error(transparent)]
    Ended(#[from] Ended),
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection {
    channel: Channel<Header>,
    /// How long the peer has to answer.
    patience: Duration,
    /// Whether the peer sends commands by it.
    takes_commands: AtomicBool,
    sending: Mutex<()>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// A thread receives.
    receiving: bool,
    last: u16,
    /// By the id of a command: its number, and the reply when it is there.
    calls: HashMap<u16, (CommandId, Option<Message<Header>>)>,
    commands: VecDeque<Message<Header>>,
    /// Bytes of these.
    waiting: usize,
    ended: Option<Ended>,
}

/// How long what has come in time may take to be received.
const GRACE: Duration = Duration::from_millis(200);

/// The most bytes of commands that wait to be carried out.
const MOST_WAITING: usize = 4 << 20;

/// What a command that waits counts for: its bytes, and a KiB for itself and for each descriptor.
fn cost(message: &Message<Header>) -> usize {
    message.payload.len() + (1 + message.descriptors.len()) * 1024
}

impl Connection {
    /// Over `socket`, with a peer that has so long to answer, which is [`bounded`].
    pub(crate) fn new(socket: OwnedFd, patience: Duration) -> Self {
        let (sending, state, changed) = (Mutex::default(), Mutex::default(), Condvar::new());
        let channel = Channel::new(socket, patience);
        Self { channel, patience, takes_commands: AtomicBool::new(true), sending, state, changed }
    }

    /// From now on, descriptors beside messages are not taken.
    pub(crate) fn refuse_descriptors(&self) {
        self.channel.take_descriptors(false);
    }

    /// From now on, the peer sends replies only.
    pub(crate) fn refuse_commands(&self) {
        self.takes_commands.store(false, Ordering::SeqCst);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The socket, to wait for.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// Why it is over, if it is.
    pub(crate) fn ended(&self) -> Option<Ended> {
        self.state().ended.clone()
    }

    /// By when several commands that begin now have to be done. A peer that takes its time for each has no more for
    /// all than for four.
    pub(crate) fn limit(&self) -> Instant {
        Instant::now() + 4 * self.patience
    }

    /// Gives the peer up, if that is past.
    pub(crate) fn keep_to(&self, limit: Instant, command: CommandId) -> Result<(), Ended> {
        if Instant::now() < limit { Ok(()) } else { Err(self.end(Ended::Silent(command.name(), self.patience))) }
    }

    /// Ends it.
    pub(crate) fn end(&self, why: Ended) -> Ended {
        let mut state = self.state();
        // What came and was not taken is let go of.
        let left = std::mem::take(&mut state.commands);
        let first = state.ended.get_or_insert(why).clone();
        drop(state);
        drop(left);
        self.channel.close();
        self.changed.notify_all();
        first
    }

    /// Sends a command that wants no reply.
    pub(crate) fn post(&self, command: CommandId, parts: &[&[u8]]) -> Result<(), CallError> {
        if let Some(ended) = self.ended() {
            return Err(ended.into());
        }
        let length = parts.iter().map(|part| part.len()).sum();
        Ok(self.send(&Header::command(0, command, length).without_reply(), parts, &[])?)
    }

    /// Sends a command, and waits for the reply to it: what is behind its header, and the descriptors beside it.
    pub(crate) fn call(
        &self,
        command: CommandId,
        parts: &[&[u8]],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Message<Header>, CallError> {
        let deadline = Instant::now() + self.patience;
        let id = {
            let mut state = self.state();
            if let Some(ended) = &state.ended {
                return Err(ended.clone().into());
            }
            while state.calls.contains_key(&state.last) {
                state.last = state.last.wrapping_add(1);
            }
            let id = state.last;
            state.calls.insert(id, (command, None));
            state.last = id.wrapping_add(1);
            id
        };
        let length = parts.iter().map(|part| part.len()).sum();
        let header = Header::command(id, command, length);
        let reply = self.send(&header, parts, descriptors).and_then(|()| {
            let wait = self.wait(Some(deadline), |state| state.calls.get_mut(&id).and_then(|call| call.1.take()));
            wait?.ok_or_else(|| self.end(Ended::Silent(command.name(), self.patience)))
        });
        self.state().calls.remove(&id);
        let reply = reply?;
        match reply.header.kind().map_err(|error| self.end(error.into()))? {
            Kind::Reply { error: Some(errno) } => {
                // 0 says nothing, and what is none has no name.
                let errno = i32::try_from(errno).ok().filter(|errno| (1..4096).contains(errno));
                Err(CallError::Refused(command, errno.map_or(Errno::IO, Errno::from_raw_os_error)))
            }
            _ => Ok(reply),
        }
    }

    /// The next command.
    pub(crate) fn next(&self) -> Result<Message<Header>, Ended> {
        loop {
            if let Some(message) = self.wait(None, State::take_command)? {
                return Ok(message);
            }
        }
    }

    /// The next command, if one comes in time.
    pub(crate) fn next_by(&self, patience: Duration) -> Result<Option<Message<Header>>, Ended> {
        self.wait(Some(Instant::now() + patience), State::take_command)
    }

    /// Answers a command, if that wants an answer.
    pub(crate) fn reply(&self, to: &Header, parts: &[&[u8]], descriptors: &[BorrowedFd<'_>]) -> Result<(), Ended> {
        self.answer(to, to.reply(parts.iter().map(|part| part.len()).sum()), parts, descriptors)
    }

    /// Refuses a command, if that wants an answer.
    pub(crate) fn refuse(&self, to: &Header, errno: Errno) -> Result<(), Ended> {
        self.answer(to, to.refusal(errno.raw_os_error() as u32), &[], &[])
    }

    fn answer(
        &self,
        to: &Header,
        header: Header,
        parts: &[&[u8]],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), Ended> {
        if to.kind() == Ok(Kind::Command { wants_reply: false }) {
            return Ok(());
        }
        self.send(&header, parts, descriptors)
    }

    fn send(&self, header: &Header, parts: &[&[u8]], descriptors: &[BorrowedFd<'_>]) -> Result<(), Ended> {
        let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = self.channel.send(header, parts, descriptors, Instant::now() + self.patience);
        sent.map_err(|ended| self.end(ended))
    }

    /// Waits until `look` finds something, and receives meanwhile if no other thread does. `None` after `deadline`.
    fn wait<T>(
        &self,
        mut deadline: Option<Instant>,
        mut look: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<Option<T>, Ended> {
        let mut is_late = false;
        let mut state = self.state();
        loop {
            if let Some(found) = look(&mut state) {
                return Ok(Some(found));
            }
            if let Some(ended) = &state.ended {
                return Err(ended.clone());
            }
            let now = Instant::now();
            if deadline.is_some_and(|deadline| deadline <= now) {
                // What has come in time may wait for the thread that receives, if both were stopped.
                if state.receiving && !is_late && self.channel.has_something() {
                    (is_late, deadline) = (true, Some(now + GRACE));
                    continue;
                }
                return Ok(None);
            }
            if state.receiving {
                state = match deadline {
                    Some(deadline) => {
                        let waited = self.changed.wait_timeout(state, deadline - now);
                        waited.unwrap_or_else(PoisonError::into_inner).0
                    }
                    None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                };
                continue;
            }
            state.receiving = true;
            drop(state);
            let received = self.channel.receive(deadline, || Instant::now() + self.patience);
            state = self.state();
            state.receiving = false;
            let takes_commands = self.takes_commands.load(Ordering::SeqCst);
            let sorted =
                received.and_then(|message| message.map_or(Ok(()), |message| state.sort(message, takes_commands)));
            if let Err(ended) = sorted {
                drop(state);
                self.end(ended);
                state = self.state();
            }
            // For one of them, or for one that receives from now on.
            self.changed.notify_all();
        }
    }
}

impl State {
    /// Puts a message where it is waited for.
    fn sort(&mut self, message: Message<Header>, takes_commands: bool) -> Result<(), Ended> {
        match message.header.kind()? {
            Kind::Command { .. } if !takes_commands => Err(Ended::Command),
            Kind::Command { .. } if self.ended.is_some() => Ok(()),
            Kind::Command { .. } => {
                self.waiting += cost(&message);
                if self.waiting > MOST_WAITING {
                    return Err(Ended::Flood);
                }
                self.commands.push_back(message);
                Ok(())
            }
            Kind::Reply { .. } => match self.calls.get_mut(&message.header.id.get()) {
                Some((command, place @ None)) if *command as u16 == message.header.command.get() => {
                    *place = Some(message);
                    Ok(())
                }
                _ => Err(Ended::Unasked),
            },
        }
    }

    fn take_command(&mut self) -> Option<Message<Header>> {
        let message = self.commands.pop_front()?;
        self.waiting -= cost(&message);
        Some(message)
    }
}
