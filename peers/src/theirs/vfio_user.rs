//! A device behind vfio-user, by the crate `vfio_user`: a server on a thread and processor of its own, with one region
//! of registers, and a client.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result, ensure};
use vfio_bindings::bindings::vfio::{VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE, vfio_region_info};
use vfio_user::{Client, DmaMapFlags, DmaUnmapFlags, Server, ServerBackend, ServerRegion};

use crate::process::pin;

/// What its register holds.
const VALUE: u32 = 0x1234_5678;
/// Bytes of the region.
const SIZE: u64 = 4096;

/// One register that is always the same.
struct Constant;

impl ServerBackend for Constant {
    fn region_read(&mut self, _region: u32, _offset: u64, data: &mut [u8]) -> io::Result<()> {
        data.iter_mut().zip(VALUE.to_le_bytes()).for_each(|(byte, value)| *byte = value);
        Ok(())
    }

    fn region_write(&mut self, _region: u32, _offset: u64, _data: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn dma_map(
        &mut self,
        _flags: DmaMapFlags,
        _offset: u64,
        _address: u64,
        _size: u64,
        _fd: Option<File>,
    ) -> io::Result<()> {
        Ok(())
    }

    fn dma_unmap(&mut self, _flags: DmaUnmapFlags, _address: u64, _size: u64) -> io::Result<()> {
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn set_irqs(&mut self, _index: u32, _flags: u32, _start: u32, _count: u32, _fds: Vec<File>) -> io::Result<()> {
        Ok(())
    }
}

/// A client of such a device.
pub struct Device {
    client: Client,
    socket: PathBuf,
}

impl Device {
    /// Starts a server on processor `cpu` and connects to it.
    ///
    /// # Errors
    /// If there can be no socket, or no connection.
    pub fn start(cpu: usize) -> Result<Self> {
        let socket = std::env::temp_dir().join(format!("peers-vfio-user-{}", std::process::id()));
        let region_info = vfio_region_info {
            argsz: size_of::<vfio_region_info>() as u32,
            flags: VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE,
            index: 0,
            cap_offset: 0,
            size: SIZE,
            offset: 0,
        };
        let region = ServerRegion { region_info, sparse_areas: Vec::new(), mmap_fd: None };
        let server = Server::new(&socket, true, Vec::new(), vec![region]).context("vfio_user: no server")?;
        thread::spawn(move || -> Result<()> {
            pin(cpu)?;
            // It ends with an error when the client has gone.
            Ok(server.run(&mut Constant)?)
        });
        let client = Client::new(&socket).context("vfio_user: no connection")?;
        Ok(Self { client, socket })
    }

    /// Maps a page of a file, which the server is passed, and unmaps it; its back end has seen both then.
    ///
    /// # Errors
    /// Of the requests.
    pub fn map_and_unmap(&mut self, file: &File, offset: u64) -> Result<()> {
        self.client.dma_map(offset, 0x10_0000, 4096, file.as_raw_fd())?;
        self.client.dma_unmap(0x10_0000, 4096)?;
        Ok(())
    }

    /// Reads the register, of 4 bytes.
    ///
    /// # Errors
    /// Of the request, or if it holds something else.
    pub fn read(&mut self) -> Result<()> {
        let mut value = [0; 4];
        self.client.region_read(0, 0, &mut value)?;
        ensure!(value == VALUE.to_le_bytes(), "the register holds {value:x?}");
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.client.shutdown();
        let _ = fs::remove_file(&self.socket);
    }
}
