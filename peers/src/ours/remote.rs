//! A device behind vfio-user, by the crate `ioasid-remote`: a server on a thread and processor of its own, with one BAR
//! of registers, and a client.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ioasid::{Endpoint, EndpointOptions, GroupId, Machine, Silent};
use ioasid_remote::vfio_user::{Attended, ClientOptions, MemoryBy, Remote, Server};
use ioasid_vfio::{BarKind, BarSpec, BusMaster, Function, Interrupts, Model, Spec, VfioDevice};

use crate::process::pin;

/// What its register holds.
const VALUE: u32 = 0x1234_5678;

/// One register that is always the same.
pub(super) struct Constant;

impl Model for Constant {
    fn read(&self, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.iter_mut().zip(VALUE.to_le_bytes()).for_each(|(byte, value)| *byte = value);
    }

    fn write(&self, _bar: u8, _offset: u64, _data: &[u8]) {}

    fn reset(&self) {}
}

struct NoDma;

impl BusMaster for NoDma {
    fn set_bus_master(&self, _enabled: bool) {}
}

pub(super) fn spec() -> Spec {
    Spec {
        bars: vec![BarSpec { index: 0, size: 4096, kind: BarKind::Memory32, prefetchable: false }],
        ..Spec::new(0x1234, 1, 0xff_0000)
    }
}

/// A client of such a device.
pub struct Device {
    client: Attended,
    socket: PathBuf,
    _endpoint: Arc<Endpoint>,
}

impl Device {
    /// Starts a server on processor `cpu` and connects to it.
    ///
    /// # Errors
    /// If there can be no socket, or no connection.
    pub fn start(cpu: usize) -> Result<Self> {
        let socket = std::env::temp_dir().join(format!("peers-remote-{}", std::process::id()));
        let patience = Duration::from_secs(5);
        let listener = UnixListener::bind(&socket).context("ioasid-remote: no socket")?;
        let served = Machine::new(Arc::new(Silent));
        let endpoint = served.add_endpoint("0000:00:01.0".parse()?, GroupId(0))?;
        let interrupts = Interrupts::new(&spec());
        let function = Function::new(spec(), 0xC000_0000, interrupts, Arc::new(Constant), Arc::new(NoDma))?;
        let server = Server::new(&served, endpoint, VfioDevice::new(Arc::new(function)), patience);
        thread::spawn(move || -> Result<()> {
            pin(cpu)?;
            let (client, _) = listener.accept()?;
            server.serve(client.into())?;
            Ok(())
        });
        let remote = Remote::connect(ClientOptions { socket: socket.clone(), patience, memory: MemoryBy::Tables })?;
        let machine = Machine::new(Arc::new(Silent));
        let options = EndpointOptions::default().mirrored(remote.clone());
        let endpoint = machine.add_endpoint_with("0000:00:01.0".parse()?, GroupId(0), options)?;
        let client = remote.start(&endpoint, Interrupts::new(remote.spec()), |_| {})?;
        client.reset();
        Ok(Self { client, socket, _endpoint: endpoint })
    }

    /// Reads the register, of 4 bytes.
    ///
    /// # Errors
    /// If it holds something else.
    pub fn read(&self) -> Result<()> {
        let mut value = [0; 4];
        self.client.read(0, 0, &mut value);
        ensure!(value == VALUE.to_le_bytes(), "the register holds {value:x?}");
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}
