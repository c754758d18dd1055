//! Interrupts: what is enabled here is enabled at the server, which signals eventfds that a thread waits for.
//!
//! The line of the server masks itself when it signals, and stays so until it is unmasked. Here it is up for a moment,
//! which is enough to signal the program; when that unmasks its line, the server's is unmasked, too, and signals again
//! if it is still up.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use ioasid_vfio::IrqIndex;
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno;
use zerocopy::IntoBytes;
use zerocopy::native_endian::U32;

use super::{Link, Remote, lock};
use crate::socket::Ended;
use crate::vfio_user::connection::CallError;
use crate::vfio_user::wire::{CommandId, IrqSet, IrqSetFlags};

/// What is enabled at the server.
#[derive(Debug, Default)]
pub(super) struct Wires {
    enabled: Option<IrqIndex>,
    eventfds: Vec<OwnedFd>,
    /// What the thread waits for.
    waits: Option<Arc<OwnedFd>>,
    /// How often the line has signalled since it was unmasked.
    line_signals: Arc<AtomicU32>,
}

impl Wires {
    /// Another connection: nothing is enabled there.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

/// For what happens at the socket itself; vectors have their numbers.
const SOCKET: u64 = u64::MAX;

/// Starts the thread that waits for interrupts, and for the end.
pub(super) fn attend(remote: &Arc<Remote>, link: &Arc<Link>) -> io::Result<()> {
    let waits = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
    let at_the_end = epoll::EventFlags::RDHUP;
    epoll::add(&*waits, link.connection.as_fd(), epoll::EventData::new_u64(SOCKET), at_the_end)?;
    let line = {
        let mut wires = lock(&remote.wires);
        wires.waits = Some(waits.clone());
        wires.line_signals.clone()
    };
    let (remote, link) = (Arc::downgrade(remote), link.clone());
    let thread = std::thread::Builder::new().name("remote-irq".to_owned());
    thread.spawn(move || {
        let ended = listen(&remote, &link, &waits, &line);
        let ended = link.connection.end(ended);
        link.peer.end(ended.clone());
        if let Some(remote) = remote.upgrade() {
            remote.lost(&ended);
        }
    })?;
    Ok(())
}

/// Passes interrupts on until the connection ends.
fn listen(remote: &Weak<Remote>, link: &Link, waits: &OwnedFd, line: &AtomicU32) -> Ended {
    let mut events = Vec::with_capacity(64);
    loop {
        events.clear();
        match epoll::wait(waits, spare_capacity(&mut events), None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return io::Error::from(error).into(),
        }
        let Some(remote) = remote.upgrade() else { return Ended::Here };
        for event in &events {
            match event.data.u64() {
                // What ended it is known better where it was met.
                SOCKET => return link.connection.ended().unwrap_or(Ended::Closed),
                vector => remote.pass_on(vector, line),
            }
        }
    }
}

/// What an eventfd is known by: its index and vector.
fn token(index: IrqIndex, vector: usize) -> u64 {
    (index as u64) << 32 | vector as u64
}

impl Remote {
    fn pass_on(&self, token: u64, line: &AtomicU32) {
        let Some(local) = self.local.get() else { return };
        match IrqIndex::from_number((token >> 32) as u32) {
            Some(IrqIndex::Intx) => {
                line.fetch_add(1, Ordering::SeqCst);
                local.interrupts.pulse_intx();
            }
            // One of an index that is not enabled any more is too late.
            Some(index) if local.interrupts.enabled() == Some(index) => local.interrupts.raise(token as u16),
            _ => {}
        }
    }

    /// Has the server interrupt as the program wants it now.
    pub(super) fn wire(&self) {
        let Some(local) = self.local.get() else { return };
        let mut wires = lock(&self.wires);
        let wanted = local.interrupts.enabled();
        let link = self.link();
        if wires.enabled != wanted {
            if let Err(CallError::Ended(ended)) = self.rewire(&link, &mut wires, wanted) {
                link.connection.end(ended);
            }
            return;
        }
        let signals = if wanted == Some(IrqIndex::Intx) { wires.line_signals.swap(0, Ordering::SeqCst) } else { 0 };
        drop(wires);
        match signals {
            1.. if link.masks_line => drop(unmask(&link)),
            // One that does not mask itself may have signalled while the program's was masked.
            2.. => local.interrupts.pulse_intx(),
            _ => {}
        }
    }

    fn rewire(&self, link: &Link, wires: &mut Wires, wanted: Option<IrqIndex>) -> Result<(), CallError> {
        if let Some(index) = wires.enabled.take() {
            for eventfd in wires.eventfds.drain(..) {
                // The server has it, too, so it would stay.
                let _ = wires.waits.as_ref().map(|waits| epoll::delete(&**waits, &eventfd));
            }
            wires.line_signals.store(0, Ordering::SeqCst);
            set(link, index, 0, 0, IrqSetFlags::NONE | IrqSetFlags::TRIGGER, &[])?;
        }
        let (Some(index), Some(local), Some(waits)) = (wanted, self.local.get(), wires.waits.clone()) else {
            return Ok(());
        };
        let made = (0..local.interrupts.count(index).into()).map(|vector| {
            let counter = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            // At each signal, whether or not it is read.
            let each = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&*waits, &counter, epoll::EventData::new_u64(token(index, vector)), each)?;
            Ok(counter)
        });
        let made: Result<Vec<OwnedFd>, Errno> = made.collect();
        wires.eventfds = made.map_err(|error| CallError::Ended(io::Error::from(error).into()))?;
        wires.enabled = Some(index);
        let flags = IrqSetFlags::EVENTFD | IrqSetFlags::TRIGGER;
        let most = link.descriptors.max(1);
        let limit = link.connection.limit();
        for (start, part) in (0..).step_by(most).zip(wires.eventfds.chunks(most)) {
            link.connection.keep_to(limit, CommandId::DeviceSetIrqs)?;
            set(link, index, start, part.len() as u32, flags, part)?;
        }
        Ok(())
    }
}

fn unmask(link: &Link) -> Result<(), CallError> {
    set(link, IrqIndex::Intx, 0, 1, IrqSetFlags::NONE | IrqSetFlags::UNMASK, &[])
}

fn set(
    link: &Link,
    index: IrqIndex,
    start: u32,
    count: u32,
    flags: IrqSetFlags,
    eventfds: &[OwnedFd],
) -> Result<(), CallError> {
    let [flags, index, start, count] = [flags.bits(), index as u32, start, count].map(U32::new);
    let set = IrqSet { argsz: U32::new(size_of::<IrqSet>() as u32), flags, index, start, count };
    let descriptors: Vec<_> = eventfds.iter().map(AsFd::as_fd).collect();
    link.connection.call(CommandId::DeviceSetIrqs, &[set.as_bytes()], &descriptors).map(drop)
}
