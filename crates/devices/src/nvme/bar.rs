//! What the driver sees in BAR 0: registers and doorbells. The worker does what they ask for.
//!
//! ```text
//!   driver ── CC, NSSR ──▶ State ── orders ──▶ worker        driver ── doorbells ──▶ worker
//!          ◀── CSTS ──────   ▲                   │                  ◀── interrupts ────┘
//!                            └── answers ────────┘
//! ```
//! An order is a change of `State::orders`: the worker compares one number before each round. Locks: `state` and `line`
//! are leaves, and neither is held while interrupts are sent.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use ioasid_vfio::BarMemory;

use super::spec::registers::{
    BAR0_SIZE, CMB_BAR, DOORBELLS, DOORBELLS_OF_ONE, READY_TIMEOUT, Register, SUBSYSTEM_RESET, VERSION, capabilities,
    cc, cmb, csts,
};
use crate::Interrupts;
use crate::bell::Bell;
use crate::registers::overlaps;

/// Queue pairs with doorbells: the admin queues, and those for I/O.
pub(super) const PAIRS: usize = super::options::MAX_QUEUES as usize + 1;

/// Where doorbells are.
pub(super) enum Doorbells {
    /// Each a register: a store is told.
    Registers(Box<[AtomicU32; 2 * PAIRS]>),
    /// A page of memory, to look at.
    Memory(Arc<BarMemory>),
}

/// Which doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doorbell {
    Tail(u16),
    Head(u16),
}

impl Doorbell {
    /// In units of 4 bytes.
    pub(super) fn index(self) -> usize {
        match self {
            Self::Tail(queue) => 2 * usize::from(queue),
            Self::Head(queue) => 2 * usize::from(queue) + 1,
        }
    }
}

/// What a reset of the function puts back.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Registers {
    pub(super) configuration: u32,
    pub(super) status: u32,
    pub(super) masked: u32,
    pub(super) admin_sizes: u32,
    pub(super) admin_submissions: u64,
    pub(super) admin_completions: u64,
    pub(super) buffer_space: u64,
}

/// Whether there is a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Life {
    #[default]
    NotYet,
    /// A reset waits for it.
    Runs,
    /// There will be no other.
    Ended,
}

/// The registers, and what the worker has to know of them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct State {
    pub(super) registers: Registers,
    /// Counts resets of any kind: a controller of before one takes no part any more.
    pub(super) resets: u64,
    /// The device is gone.
    pub(super) is_gone: bool,
    pub(super) quits: bool,
    /// The worker has seen so many resets: nothing of before them goes on.
    settled: u64,
    worker: Life,
}

/// What an interrupt is about.
#[derive(Debug)]
struct Posted {
    /// By queue: the vector that it interrupts by.
    vectors: [u16; PAIRS],
    /// By queue: whether it has completions that the host has not taken, and interrupts: what the line is about.
    waiting: [bool; PAIRS],
    /// Counts changes.
    change: u64,
    /// By queue: how often the host has moved the head by a register.
    moves: [u64; PAIRS],
}

/// BAR 0.
pub(super) struct Bar {
    state: Mutex<State>,
    settled: Condvar,
    /// Counts what the worker has to look at in `state`.
    orders: AtomicU64,
    doorbells: Doorbells,
    /// Queues that exist, submissions in the first and completions in the second.
    exists: [[AtomicU64; 2]; 2],
    /// A doorbell was written of a queue that there is not.
    stray: AtomicBool,
    posted: Mutex<Posted>,
    interrupts: Arc<dyn Interrupts>,
    buffer: Option<Arc<BarMemory>>,
    pub(super) bell: Bell,
}

impl Bar {
    pub(super) fn new(
        doorbells: Doorbells,
        buffer: Option<Arc<BarMemory>>,
        interrupts: Arc<dyn Interrupts>,
        bell: Bell,
    ) -> Self {
        Self {
            state: Mutex::default(),
            settled: Condvar::new(),
            orders: AtomicU64::new(0),
            doorbells,
            exists: Default::default(),
            stray: AtomicBool::new(false),
            posted: Mutex::new(Posted { vectors: [0; PAIRS], waiting: [false; PAIRS], change: 0, moves: [0; PAIRS] }),
            interrupts,
            buffer,
            bell,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and has the worker look at it.
    pub(super) fn order<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        self.orders.fetch_add(1, Ordering::SeqCst);
        drop(state);
        self.bell.ring();
        result
    }

    pub(super) fn is_gone(&self) -> bool {
        self.lock().is_gone
    }

    /// Whether there was a reset after so many, or the end.
    pub(super) fn is_reset_since(&self, resets: u64) -> bool {
        let state = self.lock();
        state.quits || state.resets != resets
    }

    /// What the worker compares.
    pub(super) fn orders(&self) -> u64 {
        self.orders.load(Ordering::SeqCst)
    }

    pub(super) fn doorbell_memory(&self) -> Option<&Arc<BarMemory>> {
        match &self.doorbells {
            Doorbells::Registers(_) => None,
            Doorbells::Memory(memory) => Some(memory),
        }
    }

    pub(super) fn buffer(&self) -> Option<&Arc<BarMemory>> {
        self.buffer.as_ref()
    }

    /// What a doorbell holds.
    #[inline]
    pub(super) fn doorbell(&self, doorbell: Doorbell) -> u32 {
        match &self.doorbells {
            Doorbells::Registers(values) => values[doorbell.index()].load(Ordering::SeqCst),
            Doorbells::Memory(memory) => {
                let mut value = [0; 4];
                memory.read(4 * doorbell.index() as u64, &mut value);
                u32::from_le_bytes(value)
            }
        }
    }

    /// A queue begins to exist, or ends: its doorbell is zero.
    pub(super) fn set_exists(&self, doorbell: Doorbell, exists: bool) {
        match &self.doorbells {
            Doorbells::Registers(values) => values[doorbell.index()].store(0, Ordering::SeqCst),
            Doorbells::Memory(memory) => memory.write(4 * doorbell.index() as u64, &[0; 4]),
        }
        let (word, bit) = self.existence(doorbell);
        if exists {
            word.fetch_or(bit, Ordering::SeqCst);
        } else {
            word.fetch_and(!bit, Ordering::SeqCst);
        }
    }

    fn existence(&self, doorbell: Doorbell) -> (&AtomicU64, u64) {
        let (kind, queue) = match doorbell {
            Doorbell::Tail(queue) => (0, queue),
            Doorbell::Head(queue) => (1, queue),
        };
        (&self.exists[kind][usize::from(queue / 64)], 1 << (queue % 64))
    }

    /// Whether a doorbell was written of a queue that there is not, since the last look.
    pub(super) fn take_stray(&self) -> bool {
        self.stray.load(Ordering::Relaxed) && self.stray.swap(false, Ordering::SeqCst)
    }

    /// Whether [`Bar::take_stray`] would find something.
    pub(super) fn has_stray(&self) -> bool {
        self.stray.load(Ordering::SeqCst)
    }

    fn write_doorbell(&self, offset: u64, data: &[u8]) {
        let (Doorbells::Registers(values), Ok(value)) = (&self.doorbells, <[u8; 4]>::try_from(data)) else { return };
        if !offset.is_multiple_of(4) || self.lock().is_gone {
            return;
        }
        let (queue, kind) = (offset / DOORBELLS_OF_ONE, offset / 4 % 2);
        let doorbell = if kind == 0 { Doorbell::Tail(queue as u16) } else { Doorbell::Head(queue as u16) };
        let exists = queue < PAIRS as u64 && {
            let (word, bit) = self.existence(doorbell);
            word.load(Ordering::SeqCst) & bit != 0
        };
        if exists {
            // The upper half is reserved.
            let value = u32::from_le_bytes(value) & 0xFFFF;
            let before = values[doorbell.index()].swap(value, Ordering::SeqCst);
            if let Doorbell::Head(queue) = doorbell
                && before != value
            {
                self.acknowledge(queue);
            }
        } else {
            self.stray.store(true, Ordering::SeqCst);
        }
        fence(Ordering::SeqCst);
        self.bell.ring();
    }

    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let state = *self.lock();
        data.fill(if state.is_gone { 0xFF } else { 0 });
        if state.is_gone {
            return;
        }
        for access in overlaps(Register::ALL, Register::TABLE, offset, data.len()) {
            let value = self.register(access.register, &state).to_le_bytes();
            data[access.data].copy_from_slice(&value[access.bytes]);
        }
    }

    fn register(&self, register: Register, state: &State) -> u64 {
        let buffer = self.buffer.as_ref().filter(|_| state.registers.buffer_space & cmb::REGISTERS_ENABLE != 0);
        match register {
            Register::Capabilities => capabilities(self.buffer.is_some()),
            Register::Version => VERSION.into(),
            Register::MaskSet | Register::MaskClear => state.registers.masked.into(),
            Register::Configuration => state.registers.configuration.into(),
            Register::Status => state.registers.status.into(),
            Register::AdminQueueAttributes => state.registers.admin_sizes.into(),
            Register::AdminSubmissionQueue => state.registers.admin_submissions,
            Register::AdminCompletionQueue => state.registers.admin_completions,
            Register::CmbLocation => buffer.map_or(0, |_| CMB_BAR.into()),
            Register::CmbSize => buffer.map_or(0, |buffer| cmb::size(buffer.length()).into()),
            Register::CmbSpace => state.registers.buffer_space,
            Register::CmbStatus => self.buffer_status(state).into(),
            Register::ReadyTimeouts => READY_TIMEOUT,
            Register::SubsystemReset | Register::CmbElasticity | Register::CmbThroughput => 0,
        }
    }

    fn buffer_status(&self, state: &State) -> u32 {
        let length = self.buffer.as_ref().map_or(0, |buffer| buffer.length());
        let base = state.registers.buffer_space & cmb::BASE;
        let is_enabled = state.registers.buffer_space & cmb::SPACE_ENABLE != 0;
        if is_enabled && base.checked_add(length).is_none() { cmb::BASE_INVALID } else { 0 }
    }

    /// Where the host sees the controller memory buffer.
    pub(super) fn buffer_base(&self, state: &State) -> Option<u64> {
        let is_enabled = state.registers.buffer_space & cmb::SPACE_ENABLE != 0;
        (self.buffer.is_some() && is_enabled && self.buffer_status(state) == 0)
            .then_some(state.registers.buffer_space & cmb::BASE)
    }

    /// A store: of 4 bytes, or of 8, which is two. Others are ignored. Returns whether the worker is needed.
    pub(super) fn write(&self, offset: u64, data: &[u8]) -> bool {
        if offset >= DOORBELLS {
            let end = DOORBELLS + DOORBELLS_OF_ONE * PAIRS as u64;
            match data.len() {
                8 if offset + 4 < end => {
                    self.write_doorbell(offset - DOORBELLS, &data[..4]);
                    self.write_doorbell(offset + 4 - DOORBELLS, &data[4..]);
                }
                _ if offset < BAR0_SIZE / 2 => self.write_doorbell(offset - DOORBELLS, data),
                _ => {}
            }
            return false;
        }
        let mut wants_worker = false;
        if offset.is_multiple_of(4) && data.len().is_multiple_of(4) {
            for (at, word) in (offset..).step_by(4).zip(data.chunks_exact(4)) {
                let word = u32::from_le_bytes(word.try_into().unwrap_or_default());
                wants_worker |= self.write_word(at, word);
            }
        }
        wants_worker
    }

    fn write_word(&self, offset: u64, word: u32) -> bool {
        let Some((register, _)) = Register::at(offset) else { return false };
        let info = register.info();
        let is_upper = offset != info.offset;
        let part = |value: u64| {
            let shift = if is_upper { 32 } else { 0 };
            value & !(0xFFFF_FFFF << shift) | u64::from(word) << shift
        };
        let mut state = self.lock();
        if state.is_gone {
            return false;
        }
        let is_enabled = state.registers.configuration & cc::EN != 0;
        match register {
            Register::MaskSet => state.registers.masked |= word,
            Register::MaskClear => state.registers.masked &= !word,
            Register::Configuration => {
                drop(state);
                return self.configure(word & cc::WRITABLE);
            }
            Register::Status => state.registers.status &= !(word & csts::NSSRO),
            Register::SubsystemReset if word == SUBSYSTEM_RESET => {
                drop(state);
                self.reset_subsystem();
                return false;
            }
            // The admin queues cannot be changed while they are in use.
            Register::AdminQueueAttributes if !is_enabled => state.registers.admin_sizes = word & 0x0FFF_0FFF,
            Register::AdminSubmissionQueue if !is_enabled => {
                state.registers.admin_submissions = part(state.registers.admin_submissions) & !0xFFF;
            }
            Register::AdminCompletionQueue if !is_enabled => {
                state.registers.admin_completions = part(state.registers.admin_completions) & !0xFFF;
            }
            Register::CmbSpace if self.buffer.is_some() => {
                let all = cmb::BASE | cmb::SPACE_ENABLE | cmb::REGISTERS_ENABLE;
                state.registers.buffer_space = part(state.registers.buffer_space) & all;
                drop(state);
                self.order(|_| ());
                return false;
            }
            _ => {}
        }
        if matches!(register, Register::MaskSet | Register::MaskClear) {
            drop(state);
            self.drive();
        }
        if register == Register::MaskClear {
            self.send_masked(word);
        }
        false
    }

    fn configure(&self, word: u32) -> bool {
        let mut state = self.lock();
        let (was, is) = (state.registers.configuration & cc::EN != 0, word & cc::EN != 0);
        let shuts_down = cc::shutdown(word) != 0 && cc::shutdown(state.registers.configuration) != cc::shutdown(word);
        state.registers.configuration = word;
        if was && !is {
            state.resets += 1;
            // All but the admin queues' registers and the buffer's (base specification, 3.7.2).
            state.registers.masked = 0;
            state.registers.configuration = word & !cc::EN;
        }
        if is && shuts_down {
            state.registers.status = state.registers.status & !csts::SHUTDOWN | csts::SHUTDOWN_BEGUN;
        }
        drop(state);
        if was != is || shuts_down {
            self.order(|_| ());
        }
        is
    }

    fn reset_subsystem(&self) {
        self.order(|state| {
            state.resets += 1;
            (state.registers.configuration, state.registers.masked, state.registers.buffer_space) = (0, 0, 0);
            // It is ready until the worker has seen this, and touches no memory any more.
            state.registers.status = state.registers.status & csts::RDY | csts::NSSRO;
        });
    }

    /// Back to power-on. Waits until nothing of before goes on.
    pub(super) fn reset(&self) {
        self.order_and_wait(|state| state.registers = Registers::default());
        self.forget_posted();
    }

    /// The device is gone. Waits until nothing goes on.
    pub(super) fn remove(&self) {
        self.order_and_wait(|state| state.is_gone = true);
    }

    /// Ends the session, and waits until the worker has seen it.
    fn order_and_wait(&self, change: impl FnOnce(&mut State)) {
        let wanted = self.order(|state| {
            change(state);
            state.resets += 1;
            state.resets
        });
        let mut state = self.lock();
        while state.worker == Life::Runs && state.settled < wanted {
            state = self.settled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The worker has seen `resets`.
    pub(super) fn settle(&self, resets: u64) {
        self.lock().settled = resets;
        self.settled.notify_all();
    }

    /// The worker is about to run, if it does not. Returns whether there can be one.
    pub(super) fn begin(&self) -> bool {
        let mut state = self.lock();
        if state.worker == Life::NotYet {
            state.worker = Life::Runs;
        }
        state.worker == Life::Runs
    }

    /// There is no worker, and will be none.
    pub(super) fn fail(&self) {
        self.lock().registers.status |= csts::CFS;
    }

    /// The worker has ended.
    pub(super) fn end(&self) {
        self.lock().worker = Life::Ended;
        self.settled.notify_all();
    }

    /// Sets and clears bits of CSTS, unless there was a reset since.
    pub(super) fn answer(&self, resets: u64, clear: u32, set: u32) {
        let mut state = self.lock();
        if state.resets == resets {
            state.registers.status = state.registers.status & !clear | set;
        }
    }
}

/// Interrupts.
impl Bar {
    /// Whether messages are sent rather than the line driven.
    pub(super) fn sends_messages(&self) -> bool {
        self.interrupts.sends_messages()
    }

    fn posted(&self) -> MutexGuard<'_, Posted> {
        self.posted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the message of a queue that has completions for the host, unless its vector is masked.
    pub(super) fn send(&self, queue: u16, vector: u16) {
        self.set_waiting(queue, vector, true, None);
        if vector >= 32 || self.lock().registers.masked & 1 << vector == 0 {
            self.interrupts.raise(vector);
        }
    }

    /// Vectors are not masked any more: what was not sent meanwhile is sent.
    fn send_masked(&self, unmasked: u32) {
        let vectors = {
            let posted = self.posted();
            let waiting = posted.waiting.iter().zip(posted.vectors).filter(|(waits, _)| **waits);
            let vectors =
                waiting.map(|(_, vector)| vector).filter(|vector| *vector < 32 && unmasked >> vector & 1 != 0);
            vectors.collect::<std::collections::BTreeSet<_>>()
        };
        for vector in vectors {
            self.interrupts.raise(vector);
        }
    }

    /// How often the host has moved the head of a queue by a register.
    pub(super) fn moves(&self, queue: u16) -> u64 {
        self.posted().moves[usize::from(queue)]
    }

    /// The host has moved a head: the line goes down, and the worker says whether it comes up again.
    fn acknowledge(&self, queue: u16) {
        self.posted().moves[usize::from(queue)] += 1;
        self.forget_waiting(queue);
    }

    /// There are completions of a queue that the host has not taken, or none. Returns whether that is so: not if the
    /// head was moved since there were so many `moves`.
    pub(super) fn set_waiting(&self, queue: u16, vector: u16, waits: bool, moves: Option<u64>) -> bool {
        let mut posted = self.posted();
        if moves.is_some_and(|moves| moves != posted.moves[usize::from(queue)]) {
            return false;
        }
        posted.vectors[usize::from(queue)] = vector;
        if std::mem::replace(&mut posted.waiting[usize::from(queue)], waits) != waits {
            posted.change += 1;
            drop(posted);
            self.drive();
        }
        true
    }

    /// There is nothing more to interrupt for by a queue.
    pub(super) fn forget_waiting(&self, queue: u16) {
        self.set_waiting(queue, 0, false, None);
    }

    pub(super) fn forget_posted(&self) {
        let mut posted = self.posted();
        posted.waiting = [false; PAIRS];
        posted.change += 1;
        drop(posted);
        self.drive();
    }

    /// Drives the line as queues and masks have it. A thread that was overtaken between its look and its call looks
    /// again.
    fn drive(&self) {
        loop {
            let masked = self.lock().registers.masked;
            let (asserted, change) = {
                let posted = self.posted();
                let mut waiting = posted.waiting.iter().zip(posted.vectors);
                let asserted = waiting.any(|(waits, vector)| *waits && (vector >= 32 || masked & 1 << vector == 0));
                (asserted, posted.change)
            };
            self.interrupts.set_intx(asserted);
            if self.posted().change == change && self.lock().registers.masked == masked {
                return;
            }
        }
    }
}
