//! The structures of Linux's iommufd and VFIO interfaces, and of our own requests beside them, as plain data.
//!
//! Sizes and offsets are those of `include/uapi/linux/iommufd.h` and `include/uapi/linux/vfio.h` of Linux 7.3; they
//! are asserted beside each structure. Every field is an integer of fixed size, every bit pattern is a value, and there
//! is no padding, so that a structure can be read from and written to a program's memory as bytes.
//!
//! Which values make sense is not decided here.

pub mod description;
pub mod ioasid;
pub mod iommufd;
pub mod kvm;
pub mod vfio;

/// `_IO(type, nr)`: a request number without direction or size, as all of these are.
#[must_use]
pub const fn io(kind: u8, number: u8) -> u32 {
    (kind as u32) << 8 | number as u32
}

/// The type in the request numbers of both interfaces, `';'`.
pub const TYPE: u8 = b';';
