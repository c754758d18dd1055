//! Prints what requests on VFIO's files return, a row each: the same program runs on Linux and under `ioasid run`, and
//! `tests/linux/run` compares the rows.
//!
//!     ioasid-linux-rows BDF
//!
//! The device has to be bound to vfio-pci, and its group be viable.

#![allow(unsafe_code, reason = "requests whose arguments may be wrong")]

mod cdev;
mod client;
mod container;
mod device;
mod iommufd;
mod sys;
mod sysfs;

use sys::Rows;

fn main() {
    let Some(name) = std::env::args().nth(1) else {
        eprintln!("usage: ioasid-linux-rows BDF");
        std::process::exit(2);
    };
    let mut rows = Rows::default();
    container::rows(&name, &mut rows);
    device::rows(&name, &mut rows);
    cdev::rows(&name, &mut rows);
    iommufd::rows(&name, &mut rows);
    client::rows(&name, &mut rows);
    sysfs::rows(&name, &mut rows);
    println!("rows {}", rows.count());
}
