//! The registers of the transport, and the model.
//!
//! What the driver sets up is one [`Setup`]; with DRIVER_OK the worker takes it, and a reset begins the next. A reset
//! returns when the worker is out of the one before.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use ioasid_vfio::{EventFd, Model};

use super::registers::{BAR, COMMON, CONFIGURATION, ISR, NO_VECTOR, NOTIFY, NOTIFY_MULTIPLIER, PART, Register, status};
use super::service::Service;
use super::worker::Worker;
use super::{Identity, QUEUE_SIZE, feature};
use crate::Interrupts;
use crate::bell::Bell;
use crate::registry::{BuildError, Site};
use crate::thread::LazyThread;

/// A queue, as the driver has described it.
#[derive(Clone, Debug)]
pub(super) struct QueueSetup {
    /// How many were taken before, where it was served before.
    pub(super) base: Option<u16>,
    /// What notifies of it, beside the registers.
    pub(super) kick: Option<Arc<EventFd>>,
    pub(super) size: u16,
    pub(super) vector: u16,
    pub(super) is_enabled: bool,
    pub(super) descriptors: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
}

impl QueueSetup {
    pub(super) const NONE: Self = Self {
        base: None,
        kick: None,
        size: QUEUE_SIZE,
        vector: NO_VECTOR,
        is_enabled: false,
        descriptors: 0,
        driver: 0,
        device: 0,
    };
}

/// What the driver has written since the last reset.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    device_select: u32,
    driver_select: u32,
    pub(super) features: u64,
    config_vector: u16,
    pub(super) status: u8,
    queue_select: u16,
    pub(super) queues: Vec<QueueSetup>,
}

impl Setup {
    fn new(identity: &Identity) -> Self {
        Self {
            device_select: 0,
            driver_select: 0,
            features: 0,
            config_vector: NO_VECTOR,
            status: 0,
            queue_select: 0,
            queues: vec![QueueSetup::NONE; identity.queues.into()],
        }
    }

    /// Whether the device is at work.
    pub(super) fn is_live(&self) -> bool {
        self.status & status::DRIVER_OK != 0 && self.status & status::NEEDS_RESET == 0
    }

    fn queue(&self) -> Option<&QueueSetup> {
        self.queues.get(usize::from(self.queue_select))
    }
}

/// The registers, what the worker is at, and how many resets wait for it.
pub(super) struct State {
    pub(super) setup: Setup,
    /// How many resets there had been when the worker began what it is at.
    pub(super) busy: Option<u64>,
    /// Resets that wait for the worker. What the driver writes meanwhile is lost.
    resetting: usize,
    /// The device's own, and how often it has changed.
    configuration: Vec<u8>,
    generation: u8,
    /// How far the queues were that the last session left: which, and how many were taken.
    pub(super) bases: Vec<(u16, u16)>,
    pub(super) quits: bool,
}

/// What model and worker have together.
pub(super) struct Shared {
    identity: Identity,
    state: Mutex<State>,
    pub(super) changed: Condvar,
    /// How many resets there were: the worker looks at it without the lock.
    resets: AtomicU64,
    /// Queues that were notified, a bit each.
    pub(super) kicks: AtomicU64,
    pub(super) bell: Bell,
    /// The interrupt status, and the line, which goes with it.
    isr: Mutex<u8>,
    interrupts: Arc<dyn Interrupts>,
    /// Ends what the worker waits for.
    give_up: Box<dyn Fn() + Send + Sync>,
}

/// In the interrupt status (4.1.4.5).
const QUEUE: u8 = 1;
const CONFIG: u8 = 2;

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn resets(&self) -> u64 {
        self.resets.load(Ordering::SeqCst)
    }

    /// Interrupts for a queue, as the driver wants it now, if there was no reset since.
    pub(super) fn interrupt(&self, queue: usize, resets: u64) {
        let vector = {
            let state = self.lock();
            let is_still = self.resets() == resets;
            state.setup.queues.get(queue).filter(|_| is_still).map(|queue| queue.vector)
        };
        if let Some(vector) = vector {
            self.send(vector, QUEUE);
        }
    }

    fn send(&self, vector: u16, reason: u8) {
        if self.interrupts.sends_messages() {
            // A change of the configuration is seen there, however it is told (4.1.4.5.1).
            *self.isr.lock().unwrap_or_else(PoisonError::into_inner) |= reason & CONFIG;
            if vector != NO_VECTOR {
                self.interrupts.raise(vector);
            }
            return;
        }
        let mut isr = self.isr.lock().unwrap_or_else(PoisonError::into_inner);
        *isr |= reason;
        self.interrupts.set_intx(true);
    }

    fn take_isr(&self) -> u8 {
        let mut isr = self.isr.lock().unwrap_or_else(PoisonError::into_inner);
        self.interrupts.set_intx(false);
        std::mem::take(&mut *isr)
    }

    /// The device cannot go on as it was set up.
    pub(super) fn need_reset(&self, resets: u64) {
        let vector = {
            let mut state = self.lock();
            if self.resets() != resets {
                return;
            }
            state.setup.status |= status::NEEDS_RESET;
            state.setup.config_vector
        };
        self.send(vector, CONFIG);
    }

    /// The device's configuration is another from now on.
    pub(super) fn reconfigure(&self, configuration: Vec<u8>) {
        let vector = {
            let mut state = self.lock();
            if state.configuration == configuration {
                return;
            }
            state.configuration = configuration;
            state.generation = state.generation.wrapping_add(1);
            state.setup.is_live().then_some(state.setup.config_vector)
        };
        if let Some(vector) = vector {
            self.send(vector, CONFIG);
        }
    }

    /// Makes the device as after power-on. When this returns, the worker is out of what was before, and interrupts for
    /// that no more.
    fn reset(&self) {
        self.stop(&|| {});
    }

    /// As a reset, which calls `between` when the worker has been asked to come out. Returns how far it was.
    pub(super) fn stop(&self, between: &dyn Fn()) -> Vec<(u16, u16)> {
        let mut state = self.lock();
        let resets = self.resets.fetch_add(1, Ordering::SeqCst) + 1;
        state.setup = Setup::new(&self.identity);
        state.resetting += 1;
        drop(state);
        self.bell.ring();
        between();
        let mut state = self.lock();
        while state.busy.is_some_and(|of| of < resets) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        self.kicks.store(0, Ordering::SeqCst);
        let bases = std::mem::take(&mut state.bases);
        drop(state);
        // Nothing begins before that is done.
        self.take_isr();
        self.lock().resetting -= 1;
        bases
    }

    /// What it offers.
    pub(super) fn offered(&self) -> u64 {
        self.identity.features
    }

    fn read(&self, register: Register) -> u64 {
        let state = self.lock();
        let setup = &state.setup;
        let half = |features: u64, select: u32| if select < 2 { features >> (32 * select) & 0xffff_ffff } else { 0 };
        let queue = setup.queue();
        match register {
            Register::DeviceFeatureSelect => setup.device_select.into(),
            Register::DeviceFeature => half(self.offered(), setup.device_select),
            Register::DriverFeatureSelect => setup.driver_select.into(),
            Register::DriverFeature => half(setup.features, setup.driver_select),
            Register::ConfigMsixVector => setup.config_vector.into(),
            Register::NumQueues => self.identity.queues.into(),
            Register::DeviceStatus => setup.status.into(),
            Register::ConfigGeneration => state.generation.into(),
            Register::QueueSelect => setup.queue_select.into(),
            Register::QueueSize => queue.map_or(0, |queue| queue.size.into()),
            Register::QueueMsixVector => queue.map_or(NO_VECTOR, |queue| queue.vector).into(),
            Register::QueueEnable => queue.map_or(0, |queue| queue.is_enabled.into()),
            Register::QueueNotifyOff => queue.map_or(0, |_| setup.queue_select.into()),
            Register::QueueDesc => queue.map_or(0, |queue| queue.descriptors),
            Register::QueueDriver => queue.map_or(0, |queue| queue.driver),
            Register::QueueDevice => queue.map_or(0, |queue| queue.device),
        }
    }

    /// Returns whether the device is to begin.
    fn write(&self, register: Register, value: u64, mask: u64) -> bool {
        if register == Register::DeviceStatus && value == 0 {
            self.reset();
            return false;
        }
        let mut state = self.lock();
        if state.resetting > 0 {
            return false;
        }
        let was_live = state.setup.is_live();
        let setup = &mut state.setup;
        // A vector that there is not reads as none (4.1.5.1.2).
        let vector = |value: u64| if value <= self.identity.queues.into() { value as u16 } else { NO_VECTOR };
        let is_settled = setup.status & status::FEATURES_OK != 0;
        match register {
            Register::DeviceFeatureSelect => setup.device_select = value as u32,
            Register::DriverFeatureSelect => setup.driver_select = value as u32,
            Register::DriverFeature if !is_settled && setup.driver_select < 2 => {
                let shift = 32 * setup.driver_select;
                setup.features = setup.features & !(0xffff_ffff << shift) | (value & 0xffff_ffff) << shift;
            }
            Register::ConfigMsixVector => setup.config_vector = vector(value),
            Register::DeviceStatus => {
                let mut new = value as u8 | setup.status & status::NEEDS_RESET;
                let fits = setup.features & !self.offered() == 0 && setup.features & feature::VERSION_1 != 0;
                if !is_settled && !fits {
                    new &= !status::FEATURES_OK;
                }
                if new & status::FEATURES_OK == 0 {
                    new &= !status::DRIVER_OK;
                }
                setup.status = new;
            }
            Register::QueueSelect => setup.queue_select = value as u16,
            _ => {
                let (select, has_begun) = (usize::from(setup.queue_select), setup.status & status::DRIVER_OK != 0);
                let Some(queue) = setup.queues.get_mut(select) else { return false };
                let put = |place: &mut u64| *place = *place & !mask | value & mask;
                match register {
                    Register::QueueMsixVector => queue.vector = vector(value),
                    // What is in use is not changed.
                    _ if queue.is_enabled || has_begun => {}
                    Register::QueueSize => {
                        let size = value as u16;
                        if size.is_power_of_two() && size <= QUEUE_SIZE {
                            queue.size = size;
                        }
                    }
                    Register::QueueEnable => queue.is_enabled = value == 1,
                    Register::QueueDesc => put(&mut queue.descriptors),
                    Register::QueueDriver => put(&mut queue.driver),
                    Register::QueueDevice => put(&mut queue.device),
                    _ => {}
                }
            }
        }
        let begins = !was_live && state.setup.is_live();
        if begins {
            self.changed.notify_all();
        }
        begins
    }

    fn notify(&self, queue: u64) {
        if queue < self.identity.queues.into() {
            self.kicks.fetch_or(1 << queue, Ordering::SeqCst);
            self.bell.ring();
        }
    }
}

/// A virtio device.
///
/// Every method may be called from any thread at any time, but not from within [`Dma`](crate::Dma) or [`Interrupts`] on the
/// device's own thread. Dropping it ends that thread: no DMA happens afterwards.
pub struct Virtio {
    shared: Arc<Shared>,
    thread: LazyThread<Worker>,
}

impl std::fmt::Debug for Virtio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Virtio").field("identity", &self.shared.identity).finish_non_exhaustive()
    }
}

impl Virtio {
    pub(super) fn new(
        identity: Identity,
        service: Box<dyn Service>,
        interrupts: Arc<dyn Interrupts>,
        site: Site,
    ) -> Result<Arc<Self>, BuildError> {
        let (setup, configuration) = (Setup::new(&identity), identity.configuration.clone());
        let state =
            State { setup, busy: None, resetting: 0, configuration, generation: 0, bases: Vec::new(), quits: false };
        let shared = Arc::new(Shared {
            identity,
            state: Mutex::new(state),
            changed: Condvar::new(),
            resets: AtomicU64::new(0),
            kicks: AtomicU64::new(0),
            bell: Bell::new().map_err(|error| BuildError::NoMemory(site.rid, error.to_string()))?,
            isr: Mutex::new(0),
            interrupts,
            give_up: service.give_up(),
        });
        let worker = Worker::new(shared.clone(), service);
        Ok(Arc::new(Self { shared, thread: LazyThread::new(worker) }))
    }
}

impl Virtio {
    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Begins as when a driver has set it up, with this vector for changes of the configuration.
    pub(super) fn begin(&self, features: u64, queues: Vec<QueueSetup>, config_vector: u16) {
        {
            let mut state = self.shared.lock();
            state.setup.features = features;
            state.setup.queues = queues;
            state.setup.config_vector = config_vector;
            state.setup.status = status::FEATURES_OK | status::DRIVER_OK;
            self.shared.changed.notify_all();
        }
        self.ensure_running();
    }

    /// Has the worker look at what it goes by.
    pub(super) fn wake(&self) {
        self.shared.bell.ring();
    }

    fn ensure_running(&self) {
        if !self.thread.ensure_running("virtio", Worker::run) {
            self.shared.need_reset(self.shared.resets());
        }
    }
}

/// The register that an access means, and the bits of it: all, or half of one of 8 bytes.
fn register(offset: u64, length: usize) -> Option<(Register, u32)> {
    let (register, _) = Register::at(offset)?;
    let info = register.info();
    let within = offset - info.offset;
    let whole = within == 0 && length == usize::from(info.width);
    let half = info.width == 8 && length == 4 && within.is_multiple_of(4);
    (whole || half).then_some((register, 8 * within as u32))
}

impl Model for Virtio {
    /// What is no register reads as zeroes.
    fn read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if bar != BAR {
            return;
        }
        match offset / PART * PART {
            COMMON => {
                if let Some((register, shift)) = register(offset, data.len()) {
                    let value = self.shared.read(register) >> shift;
                    data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
                }
            }
            ISR if offset == ISR => data[0] = self.shared.take_isr(),
            CONFIGURATION => {
                let state = self.shared.lock();
                let there = state.configuration.get((offset - CONFIGURATION) as usize..).unwrap_or_default();
                data.iter_mut().zip(there).for_each(|(byte, there)| *byte = *there);
            }
            _ => {}
        }
    }

    fn write(&self, bar: u8, offset: u64, data: &[u8]) {
        if bar != BAR {
            return;
        }
        match offset / PART * PART {
            COMMON => {
                let Some((register, shift)) = register(offset, data.len()) else { return };
                let (mut value, mut mask) = ([0; 8], [0; 8]);
                value[..data.len()].copy_from_slice(data);
                mask[..data.len()].fill(0xff);
                let [value, mask] = [value, mask].map(|bytes| u64::from_le_bytes(bytes) << shift);
                if self.shared.write(register, value, mask) {
                    self.ensure_running();
                }
            }
            NOTIFY => self.shared.notify((offset - NOTIFY) / u64::from(NOTIFY_MULTIPLIER)),
            _ => {}
        }
    }

    fn reset(&self) {
        self.shared.reset();
    }
}

impl Drop for Virtio {
    fn drop(&mut self) {
        self.shared.lock().quits = true;
        self.shared.resets.fetch_add(1, Ordering::SeqCst);
        self.shared.changed.notify_all();
        self.shared.bell.ring();
        (self.shared.give_up)();
        self.thread.join();
    }
}
