//! Prints what requests on VFIO's files return, a row each: the same program runs on Linux and under `ioasid run`, and
//! `tests/linux/run` compares the rows.
//!
//!     ioasid-linux-rows BDF BDF BDF
//!
//! The devices are QEMU's `edu`, bound to vfio-pci, in viable groups: one alone behind its bridge, and two that are
//! behind another together, and in one group.

#![allow(unsafe_code, reason = "requests whose arguments may be wrong")]

mod cdev;
mod client;
mod container;
mod device;
mod files;
mod hot_reset;
mod iommufd;
mod sys;
mod sysfs;

use sys::Rows;

fn main() {
    let names: Vec<String> = std::env::args().skip(1).collect();
    let [name, one, two] = &names[..] else {
        eprintln!("usage: ioasid-linux-rows BDF BDF BDF");
        std::process::exit(2);
    };
    let mut rows = Rows::default();
    files::rows(name, &mut rows);
    container::rows(name, &mut rows);
    device::rows(name, &mut rows);
    cdev::rows(name, &mut rows);
    iommufd::rows(name, &mut rows);
    client::rows(name, &mut rows);
    hot_reset::rows(name, [one, two], &mut rows);
    sysfs::rows(name, &mut rows);
    println!("rows {}", rows.count());
}
