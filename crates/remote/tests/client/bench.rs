//! A device that a server in this process has, and a machine in which it is one.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ioasid::memory::{Pages, Segment};
use ioasid::{
    Access, Context, Device, EndpointOptions, GroupId, Ioas, IommuKind, Iova, IovaRange, Machine, Recovery, Silent,
};
use ioasid_devices::registry::{Built, Context as Place, ModelInfo, Options, Shared, Site};
use ioasid_remote::vfio_user::{ClientOptions, MemoryBy, Remote, Server};
use ioasid_vfio::device::irq::{IrqActions, IrqData, IrqSet};
use ioasid_vfio::device::region::file_offset;
use ioasid_vfio::{Function, Interrupts, Session, SpecError, VfioDevice};
use rustix::event::{EventfdFlags, eventfd};

/// How long either side waits for the other.
pub const PATIENCE: Duration = Duration::from_millis(400);

/// A path for a socket that no other test has.
pub fn socket_path() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("ioasid-remote-{}-{number}", std::process::id()))
}

/// A server that listens, until it is dropped.
pub struct Listening {
    pub path: PathBuf,
    pub served: Arc<AtomicU32>,
    ends: Arc<AtomicBool>,
}

impl Listening {
    /// Serves a model's device.
    pub fn to(model: &str) -> Self {
        Self::behind(model, IommuKind::VtdFiveLevels)
    }

    /// Serves a model's device that is behind such an IOMMU.
    pub fn behind(model: &str, kind: IommuKind) -> Self {
        let machine = Machine::new(Arc::new(Silent));
        let iommu = machine.iommu(kind);
        let site = Site { rid: "0000:00:01.0".parse().unwrap(), group: GroupId(0) };
        let (shared, notice) = (&mut Shared::default(), Arc::new(|_, _: &str| {}) as _);
        let place = Place { machine: &machine, iommu: &iommu, number: 0, shared, notice };
        let built = ModelInfo::find(model).unwrap().build(&Options::default(), &[site], place).unwrap().remove(0);
        let Built { endpoint, spec, interrupts, model, bus_master } = built;
        let function = Arc::new(Function::new(spec, 0xC000_0000, interrupts, model, bus_master).unwrap());
        let server = Server::new(&machine, endpoint, VfioDevice::new(function), PATIENCE);
        Self::with(move |socket| drop(server.serve(socket)))
    }

    /// Does as it likes with each client.
    pub fn with(serve: impl Fn(OwnedFd) + Send + 'static) -> Self {
        let (path, served) = (socket_path(), Arc::new(AtomicU32::new(0)));
        let listener = UnixListener::bind(&path).unwrap();
        let (count, ends) = (served.clone(), Arc::new(AtomicBool::new(false)));
        let is_over = ends.clone();
        std::thread::spawn(move || {
            while let Ok((socket, _)) = listener.accept() {
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                count.fetch_add(1, Ordering::SeqCst);
                serve(socket.into());
            }
        });
        Self { path, served, ends }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Its thread sees that when the next client comes.
        self.ends.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.path);
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The device here, opened and attached.
pub struct Bench {
    _keeps: (Arc<Machine>, Arc<Context>),
    pub remote: Arc<Remote>,
    pub ioas: Arc<Ioas>,
    pub device: Device,
    pub session: Option<Session>,
    pub vfio: Arc<VfioDevice>,
    /// Why the server went.
    pub ended: Arc<Mutex<Vec<String>>>,
}

pub fn options(server: &Listening, memory: MemoryBy) -> ClientOptions {
    ClientOptions { socket: server.path.clone(), patience: PATIENCE, memory }
}

impl Bench {
    pub fn new(options: ClientOptions) -> Self {
        Self::of(Remote::connect(options).unwrap()).unwrap()
    }

    /// A device of a server, if there can be such a function.
    pub fn of(remote: Arc<Remote>) -> Result<Self, SpecError> {
        let machine = Machine::new(Arc::new(Silent));
        let iommu = machine.iommu(IommuKind::Vtd);
        let behind = EndpointOptions::behind(&iommu).pasid_bits(0).dirty_tracking(false).recovery(Recovery::None);
        let behind = behind.mirrored(remote.clone());
        let endpoint = machine.add_endpoint_with("0000:00:01.0".parse().unwrap(), GroupId(0), behind).unwrap();
        let (spec, ended) = (remote.spec().clone(), Arc::<Mutex<Vec<String>>>::default());
        let (interrupts, ends) = (Interrupts::new(&spec), ended.clone());
        let told = move |why: &ioasid_remote::Ended| ends.lock().unwrap().push(why.to_string());
        let attended = Arc::new(remote.start(&endpoint, interrupts.clone(), told).unwrap());
        let function = Function::new(spec, 0xC000_0000, interrupts, attended.clone(), attended)?;
        let vfio = VfioDevice::new(Arc::new(function));
        let session = Some(vfio.open().unwrap());
        let context = machine.context();
        let ioas = context.ioas_alloc().unwrap();
        let device = context.bind(&endpoint).unwrap();
        device.attach(None, &ioas).unwrap();
        let bench = Self { _keeps: (machine, context), remote, ioas, device, session, vfio, ended };
        bench.enable();
        Ok(bench)
    }

    pub fn session(&self) -> &Session {
        self.session.as_ref().unwrap()
    }

    /// Memory and Bus Master.
    pub fn enable(&self) {
        self.session().write(file_offset(7) + 4, &[6, 0]).unwrap();
    }

    /// Reads a register; those below 0x80 have 32 bits.
    pub fn read(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        let width = width(offset);
        self.session().mapped_read(file_offset(0) + offset, &mut data[..width]).unwrap();
        u64::from_le_bytes(data)
    }

    pub fn write(&self, offset: u64, value: u64) {
        let data = &value.to_le_bytes()[..width(offset)];
        self.session().mapped_write(file_offset(0) + offset, data).unwrap();
    }

    /// Whether the device answers nothing any more.
    pub fn is_gone(&self) -> bool {
        let mut id = [0; 4];
        self.session().read(file_offset(7), &mut id).unwrap();
        id == [0xff; 4]
    }

    /// Maps a file in memory.
    pub fn map_file(&self, iova: u64, file: &Arc<std::fs::File>, access: Access) -> Result<Iova, ioasid::MapError> {
        let length = file.metadata().unwrap().len();
        let pages = Pages::of_file(file.clone(), 0, length, access.contains(Access::WRITE));
        self.ioas.map_pages(Some(Iova(iova)), &pages, 0, length, access)
    }

    pub fn unmap(&self, iova: u64, length: u64) -> Result<u64, ioasid::UnmapError> {
        self.ioas.unmap(IovaRange::new(iova, length).unwrap())
    }

    /// Has edu move bytes, and waits until it has.
    pub fn dma(&self, iova: u64, count: u64, to_memory: bool) {
        self.start_dma(iova, count, to_memory);
        wait_until("the transfer has ended", || self.read(0x98) & 1 == 0 || self.is_gone());
    }

    pub fn start_dma(&self, iova: u64, count: u64, to_memory: bool) {
        let (source, destination) = if to_memory { (0x4_0000, iova) } else { (iova, 0x4_0000) };
        for (register, value) in [(0x80, source), (0x88, destination), (0x90, count)] {
            self.write(register, value);
        }
        self.write(0x98, 1 | u64::from(to_memory) << 1);
    }

    pub fn set_irqs(&self, index: u32, actions: IrqActions, fd: Option<&OwnedFd>) {
        let data = if fd.is_some() { IrqData::Eventfds(&[0]) } else { IrqData::None };
        let set = IrqSet { index, start: 0, count: 1, actions, data };
        self.session().set_irqs(&set, &mut |_| fd.unwrap().try_clone()).unwrap();
    }
}

fn width(offset: u64) -> usize {
    if offset < 0x80 { 4 } else { 8 }
}

pub fn memory(bytes: u64, fill: u8) -> Arc<std::fs::File> {
    let file = Segment::memfd(bytes).unwrap().1;
    std::os::unix::fs::FileExt::write_all_at(&*file, &vec![fill; bytes as usize], 0).unwrap();
    file
}

pub fn bytes(file: &std::fs::File, at: u64, count: usize) -> Vec<u8> {
    let mut data = vec![0; count];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut data, at).unwrap();
    data
}

pub fn counter() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

pub fn signals(eventfd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    rustix::io::read(eventfd, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
}

pub fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < Duration::from_secs(20), "it never came to be that {what}");
        std::thread::yield_now();
    }
}
