//! Structures that a request's argument points to.

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
}

impl<'a> Argument<'a> {
    /// # Errors
    /// `EFAULT`.
    pub(super) fn new(caller: &'a dyn Caller, address: u64) -> Result<Self, Errno> {
        let mut size = [0; 4];
        caller.read(address, &mut size)?;
        Ok(Self { caller, address, size: u32::from_ne_bytes(size) })
    }

    /// # Errors
    /// `EINVAL` if the caller's form is shorter than `minimum`, `E2BIG` if it is longer than ours and not zero there,
    /// `EFAULT`.
    pub(super) fn get<T: FromBytes + IntoBytes>(&self, minimum: usize) -> Result<T, Errno> {
        let size = self.size as usize;
        if size < minimum {
            return Err(Errno::INVAL);
        }
        let mut value = T::new_zeroed();
        let known = size_of::<T>().min(size);
        self.caller.read(self.address, &mut value.as_mut_bytes()[..known])?;
        let mut at = known;
        while at < size {
            let mut rest = [0; 4096];
            let rest = &mut rest[..(size - at).min(4096)];
            self.caller.read(self.address.wrapping_add(at as u64), rest)?;
            if rest.iter().any(|&byte| byte != 0) {
                return Err(Errno::TOOBIG);
            }
            at += rest.len();
        }
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

/// The first `length` bytes of a structure in the caller's memory, and zeros for the rest.
///
/// # Errors
/// `EFAULT`.
pub(super) fn get_part<T: FromBytes + IntoBytes>(caller: &dyn Caller, address: u64, length: usize) -> Result<T, Errno> {
    let mut value = T::new_zeroed();
    caller.read(address, &mut value.as_mut_bytes()[..length])?;
    Ok(value)
}
