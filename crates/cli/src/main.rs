//! `ioasid`: runs unmodified programs behind a software IOMMU.
#![allow(unreachable_pub, reason = "in a binary, `pub` says that other modules use it")]

/// Prints lines to standard error.
macro_rules! say {
    ($($text:tt)*) => { $crate::terminal::say(&format!($($text)*)) };
}

mod demo;
mod device;
mod machine;
mod report;
mod run;
mod terminal;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use ioasid::IommuKind;
use ioasid_serve::Options;

use device::Protocol;
use ioasid_devices::registry::{MODELS, ModelInfo};
use machine::DeviceOption;
use run::{Plan, Reporting};

/// Runs unmodified programs behind a software IOMMU: /dev/iommu, /dev/vfio and PCI devices, with no IOMMU hardware and
/// no kernel module.
#[derive(Parser)]
#[command(name = "ioasid", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a program that finds /dev/iommu and the devices you ask for
    ///
    /// The exit status is the program's; 126 if it cannot be run, 127 if there is none, 125 if its surroundings
    /// cannot be made, 2 for a bad command line, 99 with --check if there is a finding.
    Run(RunArgs),
    /// Put a device on a socket, for a VMM or another `ioasid run`, by the protocol vfio-user or vhost-user
    ///
    /// Clients have it one after the other; for each it is as after power-on. A signal ends it. The exit status is 0;
    /// 125 if it cannot be served, 2 for a bad command line, 99 with --check if there is a finding.
    Device(DeviceArgs),
    /// Show it: a program copies memory with a DMA engine, and a forbidden DMA is stopped
    Demo,
    /// The program that the demo runs: examples/rust, built in
    #[command(name = demo::CLIENT, hide = true, disable_help_flag = true)]
    DemoClient {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// List the device models, or tell of one: its options and its registers
    Devices {
        /// Which, as in `ioasid devices nvme`
        #[arg(value_parser = model)]
        model: Option<&'static ModelInfo>,
    },
}

#[derive(Args)]
struct RunArgs {
    /// Put a device on the bus: MODEL[,bdf=0000:00:01.0|,bus=N][,group=N][,map=off][,…], with bus=N behind a bridge,
    /// with map=off without mapped registers; `ioasid devices` lists the models and their options
    #[arg(long = "device", value_name = "MODEL[,key=value…]")]
    devices: Vec<DeviceOption>,
    /// Put the devices behind this IOMMU: vtd, vtd5, amd, smmuv3 or riscv
    #[arg(long, value_name = "KIND", default_value_t = IommuKind::Vtd)]
    iommu: IommuKind,
    #[command(flatten)]
    reporting: Reporting,
    /// Let programs pin so many bytes for devices, or `unlimited`, in place of their RLIMIT_MEMLOCK (ulimit -l)
    #[arg(long, value_name = "BYTES", value_parser = memlock)]
    memlock: Option<u64>,
    /// Show the program the machine's own PCI devices, too
    #[arg(long)]
    host_devices: bool,
    /// Let the program make mock devices, as a kernel that is built for its own tests does
    #[arg(long)]
    selftest: bool,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

#[derive(Args)]
struct DeviceArgs {
    /// The device, as `ioasid run --device` has it; `ioasid devices` lists the models and their options
    #[arg(value_name = "MODEL[,key=value…]")]
    device: String,
    /// Where it is to be found
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// What clients speak: vfio-user, or vhost-user for the queues of a virtio device
    #[arg(long, value_name = "PROTOCOL", default_value = "vfio-user")]
    protocol: Protocol,
    /// How long a client has to answer
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// End when the first client goes
    #[arg(long)]
    once: bool,
    /// Put it behind this IOMMU: vtd, vtd5, amd, smmuv3 or riscv, which limits what clients can map
    #[arg(long, value_name = "KIND", default_value_t = IommuKind::VtdFiveLevels)]
    iommu: IommuKind,
    #[command(flatten)]
    reporting: Reporting,
}

/// A number of bytes, or `unlimited`.
fn memlock(text: &str) -> Result<u64, String> {
    match text {
        "unlimited" => Ok(u64::MAX),
        number => number.parse().map_err(|_| "a number of bytes, or `unlimited`, is wanted".to_owned()),
    }
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(args) => {
            let mut words = args.program.into_iter();
            let Some(program) = words.next() else { return ExitCode::from(run::EXIT_USAGE) };
            let plan = Plan {
                devices: args.devices,
                iommu: args.iommu,
                options: Options { selftest: args.selftest, memlock: args.memlock },
                host_devices: args.host_devices,
                program,
                arguments: words.collect(),
                output: None,
            };
            run::command(plan, &args.reporting)
        }
        Command::Device(args) => {
            let device = match args.device.parse() {
                Ok(device) => device,
                Err(error) => {
                    say!("error: {error}");
                    return ExitCode::from(run::EXIT_USAGE);
                }
            };
            let plan = device::Plan {
                device,
                text: args.device,
                iommu: args.iommu,
                socket: args.socket,
                protocol: args.protocol,
                patience: Duration::from_secs(args.timeout),
                once: args.once,
            };
            device::command(&plan, &args.reporting)
        }
        Command::Demo => demo::command(),
        Command::DemoClient { arguments } => ioasid_example_rust_client::main_with(arguments.into_iter()),
        Command::Devices { model } => match std::io::stdout().write_all(devices(model).as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            // As `head` ends what it reads.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            Err(error) => {
                say!("ioasid: cannot write the list: {error}");
                ExitCode::FAILURE
            }
        },
    }
}

/// A model by its name.
fn model(name: &str) -> Result<&'static ModelInfo, String> {
    ModelInfo::find(name).ok_or_else(|| machine::DeviceError::UnknownModel(name.to_owned()).to_string())
}

/// The models with their options, and the kinds of IOMMU; or one model, with its registers.
fn devices(only: Option<&ModelInfo>) -> String {
    let mut text = String::new();
    for model in MODELS.iter().filter(|model| only.is_none_or(|only| only.name == model.name)) {
        text += &format!("{:<8} {}\n", model.name, model.about);
        for option in model.options {
            text += &format!("{:<8}  {:<26} {}\n", "", option.form(), option.about);
        }
    }
    text.push('\n');
    if let Some(model) = only {
        for info in model.registers.iter().copied().flatten() {
            let place = info.bar.map_or_else(|| "config".into(), |bar| format!("BAR {bar}"));
            let several = if info.count > 1 { format!(" × {}", info.count) } else { String::new() };
            let (offset, width, access) = (info.offset, info.width, info.access.short());
            text += &format!("{place:<8}{offset:#06x}  {width} bytes{several:<6}  {access:<5}  {}\n", info.name);
        }
        return text;
    }
    for kind in IommuKind::ALL {
        text += &format!("--iommu {:<8} {}\n", kind.name(), kind.about());
    }
    text
}
