//! The model by name: its options, and a controller made of them.

use std::path::PathBuf;

use super::options::{MAX_CMB, MAX_QUEUES};
use super::spec::registers::Register;
use super::{Backing, NamespaceOptions, Nvme, NvmeOptions, spec};
use crate::registry::{BuildError, Built, Context, ModelInfo, OptionInfo, OptionKind, OptionValue, Options, Site, one};

const IMAGE: &str = "image";
const MEMORY: &str = "memory";
const SIZE: &str = "size";
const LBA: &str = "lba";
const READONLY: &str = "readonly";
const PI: &str = "pi";
const SERIAL: &str = "serial";
const QUEUES: &str = "queues";
const CMB: &str = "cmb";
const DOORBELLS: &str = "doorbells";
const FAIL: &str = "fail";

/// Largest namespace.
const MOST: u64 = 1 << 50;

/// The model.
pub const MODEL: ModelInfo = ModelInfo {
    name: "nvme",
    about: "NVMe controller 2.0 with namespaces in files or memory (1234:4e56)",
    options: &[
        OptionInfo::new(IMAGE, "a namespace: a raw file, or a block device", OptionKind::Text("FILE")).repeating(),
        OptionInfo::new(MEMORY, "a namespace in memory", OptionKind::Size { least: 4096, most: MOST }).repeating(),
        OptionInfo::new(
            SIZE,
            "after image=: make a file if there is none",
            OptionKind::Size { least: 4096, most: MOST },
        )
        .repeating(),
        OptionInfo::new(LBA, "after a namespace: bytes of a block (512)", OptionKind::Choice(&["512", "4096"]))
            .repeating(),
        OptionInfo::new(READONLY, "after a namespace: it cannot be written", OptionKind::Flag).repeating(),
        OptionInfo::new(PI, "after a namespace: protection information", OptionKind::Choice(&["1", "2", "3"]))
            .repeating(),
        OptionInfo::new(SERIAL, "serial number (made of the place)", OptionKind::Text("TEXT")),
        OptionInfo::new(QUEUES, "queue pairs for I/O (64)", OptionKind::Number { least: 1, most: MAX_QUEUES as u64 }),
        OptionInfo::new(
            CMB,
            "controller memory buffer, a power of two",
            OptionKind::Size { least: 4096, most: MAX_CMB },
        ),
        OptionInfo::new(DOORBELLS, "as registers, or memory to look at", OptionKind::Choice(&["registers", "memory"])),
        OptionInfo::new(FAIL, "the Nth of a kind fails, as read:3:0x281", OptionKind::Text("KIND:N:WHAT")).repeating(),
    ],
    registers: &[Register::TABLE],
    functions: one,
    check: |options| parse(options).map(drop),
    build,
    offer: None,
};

/// What the options come to. There is no serial number yet if none is given.
fn parse(options: &Options) -> Result<NvmeOptions, BuildError> {
    let mut wanted = NvmeOptions { serial: String::new(), ..NvmeOptions::default() };
    let begin = |backing| NamespaceOptions { backing, block_shift: 9, readonly: false, protection: 0 };
    for (name, value) in options.iter() {
        match (name, value) {
            (IMAGE, OptionValue::Text(path)) => {
                wanted.namespaces.push(begin(Backing::Image { path: PathBuf::from(path), size: None }));
            }
            (MEMORY, OptionValue::Number(bytes)) => wanted.namespaces.push(begin(Backing::Memory(*bytes))),
            (SIZE, OptionValue::Number(bytes)) => match &mut last(&mut wanted, name)?.backing {
                Backing::Image { size, .. } => *size = Some(*bytes),
                Backing::Memory(_) => return Err(BuildError::NoNamespace(SIZE)),
            },
            (LBA, OptionValue::Text(bytes)) => {
                last(&mut wanted, name)?.block_shift = if bytes == "4096" { 12 } else { 9 }
            }
            (READONLY, _) => last(&mut wanted, name)?.readonly = true,
            (PI, OptionValue::Text(kind)) => {
                last(&mut wanted, name)?.protection = kind.parse().unwrap_or_default();
            }
            (SERIAL, OptionValue::Text(text)) => wanted.serial.clone_from(text),
            (QUEUES, OptionValue::Number(number)) => wanted.queues = *number as u16,
            (CMB, OptionValue::Number(bytes)) => wanted.cmb = *bytes,
            (DOORBELLS, OptionValue::Text(what)) => wanted.doorbells_in_memory = what == "memory",
            (FAIL, OptionValue::Text(text)) => wanted.failures.push(text.parse()?),
            _ => {}
        }
    }
    Ok(wanted)
}

/// The namespace that an option is for.
fn last<'a>(wanted: &'a mut NvmeOptions, name: &'static str) -> Result<&'a mut NamespaceOptions, BuildError> {
    wanted.namespaces.last_mut().ok_or(BuildError::NoNamespace(name))
}

fn build(options: &Options, sites: &[Site], context: Context<'_>) -> Result<Vec<Built>, BuildError> {
    let mut wanted = parse(options)?;
    let site = sites[0];
    if wanted.serial.is_empty() {
        // Hosts tell subsystems by it.
        wanted.serial = format!("ioasid {}", site.rid);
    }
    context.plain(site, spec(&wanted), |endpoint, interrupts| {
        let made = Nvme::new(&wanted, Box::new(endpoint.port()), interrupts);
        made.map_err(|error| BuildError::Nvme(site.rid, error))
    })
}
