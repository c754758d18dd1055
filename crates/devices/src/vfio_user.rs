//! A device that another process has, by the protocol vfio-user.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ioasid_remote::vfio_user::{ClientOptions, ConnectError, MemoryBy, Remote};
use ioasid_vfio::Interrupts;

use crate::registry::{BuildError, Built, Context, ModelInfo, OptionInfo, OptionKind, Options, Site, one};

const SOCKET: &str = "socket";
const TIMEOUT: &str = "timeout";
const UNTRUSTED: &str = "untrusted";
const NO_TABLES: &str = "no-tables";

/// Seconds that a server has to answer, unless something else is said.
const SECONDS: u64 = 5;

/// The model, for the registry.
pub(crate) const MODEL: ModelInfo = ModelInfo {
    name: "vfio-user",
    about: "a device of another process, whatever it is",
    options: &[
        OptionInfo::new(SOCKET, "where its server listens", OptionKind::Text("PATH")),
        OptionInfo::new(TIMEOUT, "seconds that it has to answer (5)", OptionKind::Number { least: 1, most: 3600 }),
        OptionInfo::new(UNTRUSTED, "it is passed no memory: each access is a message", OptionKind::Flag),
        OptionInfo::new(NO_TABLES, "it is told of each mapping, and shares no page tables", OptionKind::Flag),
    ],
    registers: &[],
    functions: one,
    check: |options| if options.text(SOCKET).is_some() { Ok(()) } else { Err(BuildError::NoSocket) },
    build,
    offer: None,
};

fn memory_by(options: &Options) -> MemoryBy {
    match (options.has(UNTRUSTED), options.has(NO_TABLES)) {
        (true, _) => MemoryBy::Messages,
        (false, true) => MemoryBy::Files,
        (false, false) => MemoryBy::Tables,
    }
}

fn build(options: &Options, sites: &[Site], context: Context<'_>) -> Result<Vec<Built>, BuildError> {
    let site = sites[0];
    let options = ClientOptions {
        socket: PathBuf::from(options.text(SOCKET).ok_or(BuildError::NoSocket)?),
        patience: Duration::from_secs(options.number(TIMEOUT).unwrap_or(SECONDS)),
        memory: memory_by(options),
    };
    let failed = |error: ConnectError| BuildError::Remote(site.rid, error.to_string());
    let remote = Remote::connect(options).map_err(failed)?;
    let endpoint = context.mirrored(site, remote.clone())?;
    let (spec, notice) = (remote.spec().clone(), context.notice.clone());
    let interrupts = Interrupts::new(&spec);
    let told = move |ended: &ioasid_remote::Ended| notice(site.rid, &format!("the device has gone: {ended}"));
    let attended = Arc::new(remote.start(&endpoint, interrupts.clone(), told).map_err(failed)?);
    Ok(vec![Built { endpoint, spec, interrupts, model: attended.clone(), bus_master: attended }])
}
