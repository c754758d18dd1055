//! A device in a process of its own, which walks page tables that this process shares with it.
//!
//! ```text
//!   this process                       the device's (this binary again, `peers device SOCKET CPU`)
//!   Ioas ── shared tables ───────────► DmaPort
//!   "watch", "dma" on its standard input ──►   what it sees: in memory; samples: on its standard output
//! ```
#![allow(unsafe_code, reason = "process_vm_readv")]

use std::io::{BufRead, BufReader, Write, stdin};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ioasid::memory::{Pages, Segment};
use ioasid::{
    Access, Device, DmaPort, Endpoint, EndpointOptions, GroupId, Ioas, Iova, IovaRange, Machine, Placement, Recovery,
    Silent,
};
use ioasid_remote::vfio_user::{Attended, ClientOptions, MemoryBy, Remote, Server};
use ioasid_vfio::{BusMaster, Function, Interrupts, Model, VfioDevice};

use super::remote::{Constant, spec};
use crate::memory::Shared;
use crate::process::pin;
use crate::statistics::{Pairs, Side, interleave};

const PAGE: u64 = 4096;
/// Bytes of the memory that the device moves.
const LENGTH: u64 = 256 << 10;
/// Where the device tells what it sees, where it looks, and where there is data.
const ECHO: Iova = Iova(0x1000);
const WATCHED: Iova = Iova(0x10_0000);
const DATA: Iova = Iova(0x4000_0000);
/// Long enough for a machine that does something else besides.
const PATIENCE: Duration = Duration::from_secs(10);

/// The device's process, and what this one has of it.
pub struct Apart {
    child: Child,
    says: ChildStdin,
    answers: BufReader<ChildStdout>,
    socket: PathBuf,
    ioas: Arc<Ioas>,
    /// The memory, as it is mapped for the device and here.
    pages: Arc<Pages>,
    data: Shared,
    /// The page in which it tells what it sees.
    echo: Shared,
    _keeps: (Device, Attended, Arc<Machine>),
}

impl Apart {
    /// Starts it on processor `cpu`, with data mapped that it can move.
    ///
    /// # Errors
    /// If there can be no process or socket, or the device does not walk tables.
    pub fn start(cpu: usize) -> Result<Self> {
        let socket = std::env::temp_dir().join(format!("peers-apart-{}", std::process::id()));
        let mut child = Command::new(std::env::current_exe()?)
            .arg("device")
            .args([socket.as_os_str(), cpu.to_string().as_ref()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the device's process")?;
        let (says, answers) = child.stdin.take().zip(child.stdout.take()).context("it has no pipes")?;
        let mut answers = BufReader::new(answers);
        ensure!(line(&mut answers)? == "ready", "the device's process does not start");
        let options = ClientOptions { socket: socket.clone(), patience: PATIENCE, memory: MemoryBy::Tables };
        let remote = Remote::connect(options)?;
        ensure!(remote.memory_by() == MemoryBy::Tables, "the device does not walk tables");
        let machine = Machine::new(Arc::new(Silent));
        let options = EndpointOptions::default().pasid_bits(0).dirty_tracking(false).recovery(Recovery::None);
        let endpoint =
            machine.add_endpoint_with("0000:00:01.0".parse()?, GroupId(0), options.mirrored(remote.clone()))?;
        let attended = remote.start(&endpoint, Interrupts::new(remote.spec()), |_| {})?;
        attended.reset();
        attended.set_bus_master(true);
        let context = machine.context();
        let ioas = context.ioas_alloc().context("no ids")?;
        let device = context.bind(&endpoint)?;
        device.attach(None, &ioas)?;
        let (echoed, echo) = Segment::memfd(PAGE)?;
        let (_, file) = Segment::memfd(LENGTH)?;
        let pages = Pages::of_file(file.clone(), 0, LENGTH, true);
        ioas.map(Placement::Fixed(ECHO), PAGE, Access::all(), || Ok(vec![echoed]))?;
        ioas.map_pages(Some(DATA), &pages, 0, LENGTH, Access::all())?;
        let data = Shared::of_file(&file, 0, LENGTH as usize)?;
        let echo = Shared::of_file(&echo, 0, PAGE as usize)?;
        let _keeps = (device, attended, machine);
        Ok(Self { child, says, answers, socket, ioas, pages, data, echo, _keeps })
    }

    /// Has the device look at the watched page from now on, again and again.
    ///
    /// # Errors
    /// If its process has ended.
    pub fn watch(&mut self) -> Result<()> {
        self.ask("watch")?;
        ensure!(line(&mut self.answers)? == "watching", "the device's process does something else");
        Ok(())
    }

    /// Ends [`Apart::watch`], which keeps a processor busy.
    ///
    /// # Errors
    /// If its process has ended.
    pub fn stop(&mut self) -> Result<()> {
        self.ask("stop")?;
        ensure!(line(&mut self.answers)? == "stopped", "the device's process does something else");
        Ok(())
    }

    /// Maps a page with a number in it, waits until the device has seen that, and unmaps it.
    ///
    /// # Errors
    /// If one of them fails.
    pub fn map_and_unmap(&self, number: u64) -> Result<()> {
        let at = number % (LENGTH / PAGE) * PAGE;
        self.data.word(at as usize).store(number, Ordering::Release);
        self.ioas.map_pages(Some(WATCHED), &self.pages, at, PAGE, Access::all())?;
        while self.echo.word(0).load(Ordering::Acquire) != number {
            std::hint::spin_loop();
        }
        ensure!(self.ioas.unmap(IovaRange::new(WATCHED.0, PAGE).context("a range")?)? == PAGE);
        Ok(())
    }

    /// Has the device's process read `bytes` at a time: the device by DMA, and by process_vm_readv from where this
    /// process has the same bytes.
    ///
    /// # Errors
    /// If one of them fails, or reads something else.
    pub fn reads(&mut self, bytes: u64) -> Result<Pairs> {
        (0..LENGTH).step_by(8).for_each(|at| self.data.word(at as usize).store(at, Ordering::Relaxed));
        let address = self.data.start().addr();
        self.ask(&format!("dma {bytes} {} {address}", std::process::id()))?;
        Ok(serde_json::from_str(&line(&mut self.answers)?)?)
    }

    /// Nanoseconds of a map, one of `count` of 4 KiB, by the last of them.
    ///
    /// # Errors
    /// If one cannot be mapped.
    pub fn growth(&self, count: u64, last: u64) -> Result<f64> {
        const FIRST: u64 = 0x100_0000_0000;
        let map = |n: u64| {
            let at = Some(Iova(FIRST + 2 * n * PAGE));
            self.ioas.map_pages(at, &self.pages, n * PAGE % LENGTH, PAGE, Access::all())?;
            anyhow::Ok(())
        };
        (0..count - last).try_for_each(map)?;
        let taken = crate::run::time(|| (count - last..count).try_for_each(map))?;
        let range = IovaRange::new(FIRST, 2 * count * PAGE).context("a range")?;
        ensure!(self.ioas.unmap(range)? == count * PAGE);
        Ok(taken / last as f64)
    }

    fn ask(&mut self, what: &str) -> Result<()> {
        writeln!(self.says, "{what}").context("the device's process has ended")
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn line(from: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

/// Lets its DMA be turned on.
struct Master(Arc<Endpoint>);

impl BusMaster for Master {
    fn set_bus_master(&self, enabled: bool) {
        let _ = self.0.set_bus_master(enabled);
    }
}

/// What the device's process does: it serves one client on processor `cpu`, and does as it is told, until it is killed.
///
/// # Errors
/// If there can be no socket.
pub fn serve(socket: &Path, cpu: usize) -> Result<()> {
    let listener = UnixListener::bind(socket).context("ioasid-remote: no socket")?;
    let machine = Machine::new(Arc::new(Silent));
    let endpoint = machine.add_endpoint("0000:00:01.0".parse()?, GroupId(0))?;
    let master = Arc::new(Master(endpoint.clone()));
    let function = Function::new(spec(), 0xC000_0000, Interrupts::new(&spec()), Arc::new(Constant), master)?;
    let server = Server::new(&machine, endpoint.clone(), VfioDevice::new(Arc::new(function)), PATIENCE);
    let (stop, mut watching) = (Arc::new(AtomicBool::new(false)), None);
    println!("ready");
    thread::spawn(move || -> Result<()> {
        let (client, _) = listener.accept()?;
        server.serve(client.into())?;
        // Nobody is there to tell it anything.
        std::process::exit(0);
    });
    for said in stdin().lines() {
        let said = said?;
        let port = endpoint.port();
        match said.split(' ').collect::<Vec<_>>().as_slice() {
            ["watch"] => {
                let stop = stop.clone();
                stop.store(false, Ordering::Relaxed);
                watching = Some(thread::spawn(move || pin(cpu).and_then(|()| watch(port, &stop))));
                println!("watching");
            }
            ["stop"] => {
                stop.store(true, Ordering::Relaxed);
                let ended = watching.take().map(thread::JoinHandle::join);
                ended.and_then(Result::ok).context("it was not watching")??;
                println!("stopped");
            }
            ["dma", bytes, process, address] => {
                let samples = reads(port, cpu, bytes.parse()?, process.parse()?, address.parse()?)?;
                println!("{}", serde_json::to_string(&samples)?);
            }
            other => bail!("{other:?} is nothing to do"),
        }
    }
    Ok(())
}

/// Tells each number that is in the watched page.
fn watch(mut port: DmaPort, stop: &AtomicBool) -> Result<()> {
    let (mut number, mut told) = ([0; 8], [0; 8]);
    while !stop.load(Ordering::Relaxed) {
        if port.read(WATCHED, &mut number).is_ok() && number != told {
            port.write(ECHO, &number)?;
            told = number;
        }
    }
    Ok(())
}

/// Reads by DMA and from the other process.
fn reads(mut port: DmaPort, cpu: usize, bytes: u64, process: i32, address: usize) -> Result<Pairs> {
    pin(cpu)?;
    let mut data = vec![0; bytes as usize];
    let rounds = (64 << 20) / bytes;
    interleave(31, |side| {
        let taken = crate::run::time(|| {
            for round in 0..rounds {
                let at = round * bytes % LENGTH;
                match side {
                    Side::Ours => port.read(Iova(DATA.0 + at), &mut data)?,
                    Side::Theirs => read_from(process, address + at as usize, &mut data)?,
                }
                ensure!(data[..8] == at.to_ne_bytes(), "{at:#x} was read as {:x?}", &data[..8]);
            }
            Ok(())
        })?;
        Ok(taken / rounds as f64)
    })
}

fn read_from(process: i32, address: usize, data: &mut [u8]) -> Result<()> {
    let here = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    let there = libc::iovec { iov_base: std::ptr::without_provenance_mut(address), iov_len: data.len() };
    // SAFETY: the bytes are written to `data`, which is as long.
    let done = unsafe { libc::process_vm_readv(process, &here, 1, &there, 1, 0) };
    ensure!(done == data.len() as isize, "process_vm_readv: {}", std::io::Error::last_os_error());
    Ok(())
}
