//! A submission queue and a completion queue, as the controller sees them.

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U64};

use super::memory::Memory;
use super::spec::command::{COMMAND_SIZE, COMPLETION_SIZE, Command, Completion};
use super::spec::status::Status;

/// Commands that are fetched at once.
pub(super) const BURST: usize = 32;

/// Where the entries of a queue are.
#[derive(Clone, Debug)]
pub(super) enum Place {
    Contiguous(u64),
    /// Pages of so many bytes, as log2.
    Pages(Vec<u64>, u32),
}

impl Place {
    /// The address of byte `offset`, and how many bytes follow there in one piece.
    fn at(&self, offset: u64) -> (u64, u64) {
        match self {
            Self::Contiguous(base) => (base.wrapping_add(offset), u64::MAX),
            Self::Pages(pages, shift) => {
                let within = offset & ((1 << shift) - 1);
                (pages[(offset >> shift) as usize] + within, (1 << shift) - within)
            }
        }
    }
}

/// Commands on their way to the controller.
#[derive(Debug)]
pub(super) struct SubmissionQueue {
    pub(super) completions: u16,
    place: Place,
    entries: u32,
    head: u32,
    tail: u32,
    /// What the doorbell held when it was looked at last.
    pub(super) doorbell: u32,
    /// 0 is urgent, 1 high, 2 medium, 3 low.
    pub(super) priority: u8,
    /// What the event index holds, with doorbell buffers.
    pub(super) event: u32,
    /// Commands that are its own before the next queue's.
    pub(super) credit: usize,
}

impl SubmissionQueue {
    pub(super) fn new(completions: u16, place: Place, entries: u32, priority: u8) -> Self {
        Self { completions, place, entries, head: 0, tail: 0, doorbell: 0, priority, event: 0, credit: 0 }
    }

    /// Takes what the doorbell holds. Returns whether that is a place in the queue.
    pub(super) fn ring(&mut self, value: u32) -> bool {
        self.doorbell = value;
        let is_one = value < self.entries;
        if is_one {
            self.tail = value;
        }
        is_one
    }

    /// What the event index should hold instead, while the controller looks at the doorbell anyway: a place that the
    /// tail has just left behind, where it would soon come around to the one that was asked for.
    pub(super) fn later_event(&self) -> Option<u32> {
        let ahead = (self.tail + self.entries - self.event) % self.entries;
        (ahead > self.entries / 2).then(|| (self.tail + self.entries - 1) % self.entries)
    }

    /// How many commands there are to fetch.
    pub(super) fn waiting(&self) -> usize {
        ((self.tail + self.entries - self.head) % self.entries) as usize
    }

    /// The next one to fetch.
    pub(super) fn head(&self) -> u16 {
        self.head as u16
    }

    /// Fetches the next commands: as many as `commands` has room for, as lie in one piece.
    pub(super) fn fetch<'a>(
        &mut self,
        memory: &mut Memory,
        commands: &'a mut [Command],
    ) -> Result<&'a [Command], Status> {
        let (address, there) = self.place.at(u64::from(self.head) * COMMAND_SIZE as u64);
        let until_wrap = (self.entries - self.head) as usize;
        let whole = (there / COMMAND_SIZE as u64).min(until_wrap as u64) as usize;
        let count = commands.len().min(self.waiting()).min(whole);
        let commands = &mut commands[..count];
        memory.read(address, commands.as_mut_bytes())?;
        Ok(commands)
    }

    /// A fetched command is being carried out.
    pub(super) fn advance(&mut self) {
        self.head = (self.head + 1) % self.entries;
    }
}

/// Completions on their way to the host.
#[derive(Debug)]
pub(super) struct CompletionQueue {
    place: Place,
    entries: u32,
    /// Where the host reads next.
    head: u32,
    /// Where the controller writes next.
    tail: u32,
    phase: bool,
    pub(super) vector: u16,
    pub(super) interrupts: bool,
    /// See [`SubmissionQueue::doorbell`].
    pub(super) doorbell: u32,
    /// See [`SubmissionQueue::event`].
    pub(super) event: u32,
    /// How often the host had moved the head by a register when the controller last looked, if the line is about that.
    pub(super) moves: u64,
    /// To be written.
    pending: Vec<Completion>,
    /// Commands that files are busy with, whose completions will come.
    pub(super) outstanding: usize,
    /// Submission queues that complete here.
    pub(super) users: usize,
    /// Where the controller wrote next when it last interrupted, or the host reads next if that is behind it.
    told: u32,
}

impl CompletionQueue {
    pub(super) fn new(place: Place, entries: u32, vector: u16, interrupts: bool) -> Self {
        Self {
            place,
            entries,
            head: 0,
            tail: 0,
            phase: true,
            vector,
            interrupts,
            doorbell: 0,
            event: 0,
            moves: 0,
            pending: Vec::new(),
            outstanding: 0,
            users: 0,
            told: 0,
        }
    }

    /// Takes what the doorbell holds. Returns whether that is between the old head and what was written.
    pub(super) fn ring(&mut self, value: u32) -> bool {
        self.doorbell = value;
        let is_one = value < self.entries && self.behind(self.head, value) <= self.unread();
        if is_one {
            self.head = value;
            if self.untold() > self.unread() {
                self.told = value;
            }
        }
        is_one
    }

    /// How many commands can begin that complete here.
    pub(super) fn room(&self) -> usize {
        ((self.entries - 1 - self.unread()) as usize).saturating_sub(self.pending.len() + self.outstanding)
    }

    /// How far one place is behind another.
    fn behind(&self, place: u32, other: u32) -> u32 {
        (other + self.entries - place) % self.entries
    }

    /// How many completions were written that the host has not taken.
    pub(super) fn unread(&self) -> u32 {
        self.behind(self.head, self.tail)
    }

    /// How many of them were written since the last interrupt.
    pub(super) fn untold(&self) -> u32 {
        self.behind(self.told, self.tail)
    }

    /// What was written is told by an interrupt.
    pub(super) fn tell(&mut self) {
        self.told = self.tail;
    }

    /// Whether there are completions that the host was told of by an interrupt and has not taken.
    pub(super) fn calls(&self) -> bool {
        self.interrupts && self.unread() > self.untold()
    }

    /// Whether there are completions to be written.
    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    pub(super) fn push(&mut self, queue: u16, head: u16, identifier: u16, status: Status, result: u64) {
        self.pending.push(Completion {
            result: U64::new(result),
            queue_head: U16::new(head),
            queue: U16::new(queue),
            identifier: U16::new(identifier),
            status: U16::new(status.0 << 1),
        });
    }

    /// Writes what there is to write, as far as there is room. The host looks at entries in their order, so the first
    /// of several comes last, and of that the half with the phase.
    pub(super) fn write_pending(&mut self, memory: &mut Memory) -> Result<usize, Status> {
        let mut written = 0;
        while written < self.pending.len() {
            let (address, there) = self.place.at(u64::from(self.tail) * COMPLETION_SIZE as u64);
            let whole = (there / COMPLETION_SIZE as u64).min(u64::from(self.entries - self.tail)) as usize;
            let count = (self.pending.len() - written).min(whole).min((self.entries - 1 - self.unread()) as usize);
            if count == 0 {
                break;
            }
            let batch = &mut self.pending[written..written + count];
            for completion in &mut *batch {
                completion.status.set(completion.status.get() | u16::from(self.phase));
            }
            let (first, rest) = batch.as_bytes().split_at(COMPLETION_SIZE);
            if !rest.is_empty() {
                memory.write(address.wrapping_add(COMPLETION_SIZE as u64), rest)?;
            }
            memory.write(address, &first[..8])?;
            memory.write(address.wrapping_add(8), &first[8..])?;
            self.tail += count as u32;
            if self.tail == self.entries {
                (self.tail, self.phase) = (0, !self.phase);
            }
            written += count;
        }
        self.pending.drain(..written);
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host rings by a register where its tail passes the event index: once, to wake the controller.
    #[test]
    fn a_controller_that_looks_is_not_rung() {
        for entries in [4u32, 16, 1024] {
            let mut queue = SubmissionQueue::new(1, Place::Contiguous(0), entries, 0);
            let (mut tail, mut rings) = (0, 0);
            for step in 0..20 * entries {
                let before = tail;
                tail = (before + 1 + step % (entries / 4)) % entries;
                let (beyond_event, beyond) = (tail + entries - 1 - queue.event, tail + entries - before);
                rings += u32::from(beyond_event % entries < beyond % entries);
                assert!(queue.ring(tail));
                queue.event = queue.later_event().unwrap_or(queue.event);
            }
            assert_eq!(rings, 1, "of {entries} entries");
        }
    }
}
