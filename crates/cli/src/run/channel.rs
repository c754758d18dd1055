//! What the runner and its child say to each other while the child prepares.
//!
//! ```text
//!   child                                   runner
//!   mounts, and sends /dev/fuse ──────────► serves the tree
//!                                ◄───go────
//!   binds the tree into /dev and /sys
//!   sends the tree's root ────────────────► learns its device number
//!   sends a note, perhaps empty ──────────► prints it
//!   sends the filter's listener ──────────► starts to answer
//!                                ◄───go────
//!   becomes the program: end of file ─────► done
//!   or tells why not ─────────────────────► prints it
//! ```
//! Instead of any of its messages the child may send an error, and end.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Result, anyhow, bail};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

const DESCRIPTOR: u8 = b'd';
const NOTE: u8 = b'n';
const GO: u8 = b'g';
const ERROR: u8 = b'e';
/// The program could not be executed; the exit status is the next byte.
const PROGRAM: u8 = b'p';

const LONGEST: usize = 4096;

/// One end.
pub struct Channel(OwnedFd);

impl Channel {
    /// Both ends; they close when the child becomes the program.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(one), Self(other)))
    }

    /// This end's descriptor.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn send(&self, kind: u8, text: &[u8], descriptor: Option<&OwnedFd>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = descriptor.map(|descriptor| [descriptor.as_fd()]);
        if let Some(descriptors) = &descriptors {
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let text = &text[..text.len().min(LONGEST - 1)];
        sendmsg(&self.0, &[IoSlice::new(&[kind]), IoSlice::new(text)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    fn receive(&self) -> Result<(u8, Vec<u8>, Option<OwnedFd>)> {
        let mut bytes = [0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let message = loop {
            match recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other?,
            }
        };
        let descriptor = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        match bytes[..message.bytes] {
            [] => Err(anyhow!("the child ended before it was ready")),
            [ERROR, ref text @ ..] => Err(anyhow!("{}", String::from_utf8_lossy(text))),
            [kind, ref text @ ..] => Ok((kind, text.to_vec(), descriptor)),
        }
    }

    pub fn send_descriptor(&self, descriptor: &OwnedFd) -> io::Result<()> {
        self.send(DESCRIPTOR, &[], Some(descriptor))
    }

    pub fn receive_descriptor(&self) -> Result<OwnedFd> {
        match self.receive()? {
            (DESCRIPTOR, _, Some(descriptor)) => Ok(descriptor),
            _ => bail!("a descriptor was expected from the child"),
        }
    }

    pub fn send_note(&self, note: Option<&str>) -> io::Result<()> {
        self.send(NOTE, note.unwrap_or_default().as_bytes(), None)
    }

    pub fn receive_note(&self) -> Result<Option<String>> {
        match self.receive()? {
            (NOTE, text, _) => Ok(String::from_utf8(text).ok().filter(|text| !text.is_empty())),
            _ => bail!("a note was expected from the child"),
        }
    }

    pub fn go(&self) -> io::Result<()> {
        self.send(GO, &[], None)
    }

    pub fn wait_for_go(&self) -> Result<()> {
        match self.receive()? {
            (GO, ..) => Ok(()),
            _ => bail!("the runner said something else than to go on"),
        }
    }

    pub fn send_error(&self, error: &str) {
        // If the runner is gone there is nobody to tell.
        let _ = self.send(ERROR, error.as_bytes(), None);
    }

    pub fn send_program_failure(&self, status: u8, why: &str) {
        let mut text = vec![status];
        text.extend(why.as_bytes());
        let _ = self.send(PROGRAM, &text, None);
    }

    /// Waits until the child has become the program, or returns why it could not: exit status and reason.
    pub fn program_failure(&self) -> Option<(u8, String)> {
        match self.receive() {
            Ok((PROGRAM, text, _)) => {
                let (&status, why) = text.split_first()?;
                Some((status, String::from_utf8_lossy(why).into_owned()))
            }
            _ => None,
        }
    }
}
