//! `ioasid device`: one of the models on a socket, for a VMM or another `ioasid run`.

use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use ioasid::{Endpoint, IommuKind, Machine};
use ioasid_devices::virtio::Offer;
use ioasid_remote::{vfio_user, vhost_user};
use rustix::event::{PollFd, PollFlags, poll};

use crate::machine::{self, DeviceOption};
use crate::report::{Collector, Ending, Traffic};
use crate::run::{self, EXIT_SETUP, EXIT_USAGE, Outcome, Reporting};

/// What to serve, and where.
pub struct Plan {
    pub device: DeviceOption,
    /// As it was written.
    pub text: String,
    pub iommu: IommuKind,
    pub socket: PathBuf,
    pub protocol: Protocol,
    pub patience: Duration,
    /// Whether to end when the first client goes.
    pub once: bool,
}

/// What clients speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    VfioUser,
    VhostUser,
}

/// Who serves a client, until it goes.
enum Server {
    Vfio(vfio_user::Server),
    Vhost(vhost_user::BackEnd),
}

impl Server {
    /// Makes the device of a plan, and who serves it.
    fn of(plan: &Plan, machine: &Arc<Machine>) -> Result<(Self, Arc<Endpoint>), String> {
        let option = &plan.device;
        match plan.protocol {
            Protocol::VfioUser => {
                let devices = machine::build(machine, plan.iommu, std::slice::from_ref(option));
                let devices = devices.map_err(|error| error.to_string())?;
                let [device] = devices.as_slice() else {
                    return Err(format!("{} is {} devices, and a socket has one", plan.text, devices.len()));
                };
                let (endpoint, vfio) = (device.endpoint.clone(), device.vfio.clone());
                let server = vfio_user::Server::new(machine, endpoint.clone(), vfio, plan.patience);
                Ok((Self::Vfio(server), endpoint))
            }
            Protocol::VhostUser => {
                let none = || format!("{} is no virtio device, and vhost-user is for those", plan.text);
                let offer = machine::offer(machine, plan.iommu, option).ok_or_else(none)?;
                let Offer { endpoint, misses, device } = offer.map_err(|error| error.to_string())?;
                let server = vhost_user::BackEnd::new(machine, endpoint.clone(), device, misses, plan.patience);
                Ok((Self::Vhost(server), endpoint))
            }
        }
    }

    /// Serves one client. Tells people of it, and returns whether it had the device.
    fn serve(&self, socket: OwnedFd, number: u64, quiet: bool) -> bool {
        let served = match self {
            Self::Vfio(server) => match server.serve(socket) {
                Err(vfio_user::ServeError::Ended(ended)) => {
                    if !quiet {
                        say!("ioasid: client {number} did not begin: {ended}");
                    }
                    return false;
                }
                other => other.map_err(|error| error.to_string()),
            },
            Self::Vhost(server) => server.serve(socket).map_err(|error| error.to_string()),
        };
        match &served {
            Ok(ended) if !quiet => say!("ioasid: client {number} has gone: {ended}"),
            Err(error) => say!("ioasid: client {number} was refused: {error}"),
            Ok(_) => {}
        }
        served.is_ok()
    }
}

/// Serves clients, one at a time, until a signal comes. Gives the exit status.
pub fn command(plan: &Plan, reporting: &Reporting) -> ExitCode {
    let collector = Arc::new(Collector::new());
    let machine = Machine::new(collector.clone());
    let (server, endpoint) = match Server::of(plan, &machine) {
        Ok(both) => both,
        Err(error) => {
            say!("error: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match serve(plan, server, reporting.quiet) {
        Ok(()) => {
            let (bytes_read, bytes_written) = endpoint.traffic();
            let traffic = vec![Traffic { device: endpoint.rid().to_string(), bytes_read, bytes_written }];
            let program = vec!["device".to_owned(), plan.text.clone()];
            let ending = Ending::Status(0);
            run::finish(&Outcome { ending, report: collector.report(program, ending, traffic) }, reporting)
        }
        Err(error) => {
            say!("ioasid: {error:#}");
            ExitCode::from(EXIT_SETUP)
        }
    }
}

fn serve(plan: &Plan, server: Server, quiet: bool) -> Result<()> {
    let signals = run::block_ends().context("cannot take signals")?;
    run::raise_descriptor_limit();
    let listener = Listener::bind(&plan.socket)?;
    if !quiet {
        say!("ioasid: {} waits for a client at {}", plan.text, plan.socket.display());
    }
    // A thread serves, so that a signal ends this at any time.
    let (ours, theirs) = UnixStream::pair().context("no socket is to be had")?;
    let once = plan.once;
    let clients = listener.socket.try_clone().context("no descriptor is to be had")?;
    std::thread::Builder::new()
        .name("clients".to_owned())
        .spawn(move || {
            // Dropped as this ends, for whatever reason: that is seen at the other end.
            let mut end = theirs;
            if serve_clients(&clients, &server, once, quiet) {
                let _ = end.write_all(&[DONE]);
            }
        })
        .context("no thread is to be had")?;
    loop {
        let fds = &mut [PollFd::new(&ours, PollFlags::IN), PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
        match poll(fds, None) {
            Ok(_) if !fds[0].revents().is_empty() => {
                let mut said = Vec::new();
                let _ = (&ours).read_to_end(&mut said);
                return if said == [DONE] { Ok(()) } else { bail!("no more clients can be served") };
            }
            Ok(_) if signals.take() => return Ok(()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
}

/// What the thread that serves says when it has nothing more to do.
const DONE: u8 = b'd';

/// How long to wait until a client is taken after all, where there was no descriptor for it.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves clients; whether all was well, until the one for which this was, or for ever.
fn serve_clients(listener: &UnixListener, server: &Server, once: bool, quiet: bool) -> bool {
    for number in 1u64.. {
        let socket = match listener.accept() {
            Ok((socket, _)) => socket,
            Err(error) => {
                say!("ioasid: no client can be taken: {error}");
                if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EINTR)) {
                    std::thread::sleep(PAUSE);
                    continue;
                }
                return false;
            }
        };
        let had_it = server.serve(OwnedFd::from(socket), number, quiet);
        // A process that connects and closes, to see whether the server listens, is no client.
        if once && had_it {
            break;
        }
    }
    true
}

/// A socket in the file system, which goes with this.
struct Listener {
    socket: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Listener {
    fn bind(path: &Path) -> Result<Self> {
        let place = || format!("no socket can be made at {}", path.display());
        // One that a server left, which was killed, is in the way and no more.
        if path.symlink_metadata().is_ok_and(|there| there.file_type().is_socket()) {
            match UnixStream::connect(path) {
                Ok(_) => bail!("{}: a server listens there already", place()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).with_context(place)?;
                }
                Err(error) => return Err(error).with_context(place),
            }
        }
        let socket = UnixListener::bind(path).with_context(place)?;
        let inode = path.symlink_metadata().with_context(place)?.ino();
        Ok(Self { socket, path: path.to_owned(), inode })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Unless another has taken its place.
        if self.path.symlink_metadata().is_ok_and(|there| there.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
