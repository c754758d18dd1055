//! Structures that a request's argument points to.

use ioasid::memory::PAGE_SIZE;
use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Caller;

/// A structure in the caller's memory that begins with its own size.
///
/// The caller may know an older, shorter form of it: what is missing counts as zero. Or a newer, longer one: then the
/// rest must be zero, as this code could not obey it.
pub(super) struct Argument<'a> {
    caller: &'a dyn Caller,
    address: u64,
    /// As the caller says.
    size: u32,
    /// Its first bytes, of which the first `copied` are there.
    head: [u8; HEAD],
    copied: usize,
}

/// As long as most structures are: a copy from another process costs much more than its bytes.
const HEAD: usize = 64;

impl<'a> Argument<'a> {
    /// # Errors
    /// `EFAULT`.
    pub(super) fn new(caller: &'a dyn Caller, address: u64) -> Result<Self, Errno> {
        const SIZE: usize = size_of::<u32>();
        let mut head = [0; HEAD];
        // What follows the structure in its page can be read, too.
        let in_page = (PAGE_SIZE - address % PAGE_SIZE) as usize;
        let copied = in_page.clamp(SIZE, HEAD);
        caller.read(address, &mut head[..copied])?;
        let size = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]);
        Ok(Self { caller, address, size, head, copied })
    }

    /// # Errors
    /// `EINVAL` if the caller's form is shorter than `minimum`, `E2BIG` if it is longer than ours and not zero there,
    /// `EFAULT`.
    pub(super) fn get<T: FromBytes + IntoBytes>(&self, minimum: usize) -> Result<T, Errno> {
        let size = self.size as usize;
        if size < minimum {
            return Err(Errno::INVAL);
        }
        if size > self.copied || size > size_of::<T>() {
            return get_sized(self.caller, self.address, size);
        }
        let mut value = T::new_zeroed();
        value.as_mut_bytes()[..size].copy_from_slice(&self.head[..size]);
        Ok(value)
    }

    /// Writes the structure back, as much of it as the caller knows.
    ///
    /// # Errors
    /// `EFAULT`.
    pub(super) fn put<T: IntoBytes + Immutable>(&self, value: &T) -> Result<(), Errno> {
        let bytes = value.as_bytes();
        self.caller.write(self.address, &bytes[..bytes.len().min(self.size as usize)])
    }
}

/// A structure of which the caller has `size` bytes: what is missing counts as zero, and what is beyond has to be zero.
fn get_sized<T: FromBytes + IntoBytes>(caller: &dyn Caller, address: u64, size: usize) -> Result<T, Errno> {
    let mut value = T::new_zeroed();
    let known = size_of::<T>().min(size);
    caller.read(address, &mut value.as_mut_bytes()[..known])?;
    let mut at = known;
    while at < size {
        let mut rest = [0; 4096];
        let rest = &mut rest[..(size - at).min(4096)];
        caller.read(address.wrapping_add(at as u64), rest)?;
        if *rest != [0; 4096][..rest.len()] {
            return Err(Errno::TOOBIG);
        }
        at += rest.len();
    }
    Ok(value)
}

/// What a request carries for the IOMMU that it is about, in a form that the IOMMU's kind says.
pub(super) struct Data<'a> {
    pub(super) caller: &'a dyn Caller,
    /// Which structure it is.
    pub(super) kind: u32,
    pub(super) address: u64,
    pub(super) length: u32,
}

impl Data<'_> {
    /// The structure, of which the caller may know a shorter form of `minimum` bytes.
    ///
    /// # Errors
    /// `EINVAL` if it is shorter than that or longer than ours, `EFAULT`.
    pub(super) fn get<T: FromBytes + IntoBytes>(&self, minimum: usize) -> Result<T, Errno> {
        let length = self.length as usize;
        if length < minimum || length > size_of::<T>() {
            return Err(Errno::INVAL);
        }
        get_sized(self.caller, self.address, length)
    }

    /// The structure, of which the caller may know as much as it likes.
    ///
    /// # Errors
    /// `E2BIG` if it is longer than ours and not zero there, `EFAULT`.
    pub(super) fn get_any<T: FromBytes + IntoBytes>(&self) -> Result<T, Errno> {
        get_sized(self.caller, self.address, self.length as usize)
    }

    /// Writes the structure back, as much of it as the caller knows.
    ///
    /// # Errors
    /// `EFAULT`.
    pub(super) fn put<T: IntoBytes + Immutable>(&self, value: &T) -> Result<(), Errno> {
        let bytes = value.as_bytes();
        self.caller.write(self.address, &bytes[..bytes.len().min(self.length as usize)])
    }
}

/// An array of such structures, all of the same length.
pub(super) struct Entries<'a> {
    pub(super) caller: &'a dyn Caller,
    pub(super) kind: u32,
    pub(super) address: u64,
    pub(super) length: u32,
    pub(super) count: u32,
}

impl Entries<'_> {
    /// Entry `n`.
    pub(super) fn at(&self, n: u32) -> Data<'_> {
        let address = self.address.wrapping_add(u64::from(self.length) * u64::from(n));
        Data { caller: self.caller, kind: self.kind, address, length: self.length }
    }
}

/// The first `length` bytes of a structure in the caller's memory, and zeros for the rest.
///
/// # Errors
/// `EFAULT`.
pub(super) fn get_part<T: FromBytes + IntoBytes>(caller: &dyn Caller, address: u64, length: usize) -> Result<T, Errno> {
    let mut value = T::new_zeroed();
    caller.read(address, &mut value.as_mut_bytes()[..length])?;
    Ok(value)
}
