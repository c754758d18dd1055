//! A disk of ours behind a socket, by vhost-user: one end of the protocol at the other.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use ioasid::{GroupId, IommuKind, Machine, Silent};
use ioasid_devices::registry::{self, ModelInfo, Options, Shared, Site};
use ioasid_devices::virtio::Offer;
use ioasid_remote::vhost_user::BackEnd;

/// A device on a socket, for as many clients as are said.
pub struct Served {
    pub path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    pub fn new(name: &str, options: &[&str], clients: usize) -> Self {
        let machine = Machine::new(Arc::new(Silent));
        let iommu = machine.iommu(IommuKind::VtdFiveLevels);
        let info = ModelInfo::find("virtio-blk").unwrap();
        let mut parsed = Options::default();
        options.iter().for_each(|option| info.parse(option, &mut parsed).unwrap());
        let site = Site { rid: "0000:00:01.0".parse().unwrap(), group: GroupId(0) };
        let context = registry::Context {
            machine: &machine,
            iommu: &iommu,
            number: 0,
            shared: &mut Shared::default(),
            notice: Arc::new(|_, _| {}),
        };
        let Offer { endpoint, misses, device } = info.offer(&parsed, site, context).unwrap().unwrap();
        let back_end = BackEnd::new(&machine, endpoint, device, misses, Duration::from_secs(5));
        let path = std::env::temp_dir().join(format!("ioasid-ends-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let serve = move || {
            for _ in 0..clients {
                let (socket, _) = listener.accept().unwrap();
                back_end.serve(OwnedFd::from(socket)).unwrap();
            }
        };
        Self { path, thread: Some(std::thread::spawn(serve)) }
    }

    pub fn option(&self) -> String {
        format!("vhost-user={}", self.path.display())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // One that waits for a client has one that goes at once.
        drop(UnixStream::connect(&self.path));
        std::fs::remove_file(&self.path).unwrap();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}
