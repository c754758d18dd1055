//! DMA buffers of a test: memory that whoever exports it can take back.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use ioasid::memory::{PAGE_SIZE, Pages, RemoteMemory, Segment};
use ioasid_uapi::iommufd::selftest::command;
use rustix::io::Errno;

use super::Test;
use crate::request::file::Given;
use crate::request::given::{GivenFile, given, of_kind};

/// The longest buffer, in bytes.
const LONGEST: u64 = 512 * PAGE_SIZE;

struct State {
    bytes: Vec<u8>,
    revoked: bool,
    /// How often it was revoked: what was mapped before stays without it.
    revocations: u64,
}

/// A buffer, which lives as long as a descriptor of it or a mapping.
pub(super) struct TestBuffer(Arc<RwLock<State>>);

/// The buffer as somebody has mapped it, until it is revoked.
struct Mapped {
    state: Arc<RwLock<State>>,
    revocations: u64,
}

impl RemoteMemory for Mapped {
    fn read(&self, address: u64, data: &mut [u8]) -> io::Result<()> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        if state.revocations != self.revocations {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let bytes = state.bytes.get(address as usize..).and_then(|bytes| bytes.get(..data.len()));
        data.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, address: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.revocations != self.revocations {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let bytes = state.bytes.get_mut(address as usize..).and_then(|bytes| bytes.get_mut(..data.len()));
        bytes.ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(data);
        Ok(())
    }
}

impl GivenFile for TestBuffer {
    fn pages(&self, start: u64, length: u64) -> Option<Result<Arc<Pages>, Errno>> {
        Some(self.part(start, length))
    }
}

impl TestBuffer {
    /// `length` of its bytes from `start` on, both multiples of the page size, to be mapped.
    ///
    /// # Errors
    /// `EINVAL` if there are not so many, `ENODEV` if it is revoked.
    fn part(&self, start: u64, length: u64) -> Result<Arc<Pages>, Errno> {
        let state = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if start.checked_add(length).is_none_or(|end| end > state.bytes.len() as u64) {
            return Err(Errno::INVAL);
        }
        if state.revoked {
            return Err(Errno::NODEV);
        }
        let memory = Arc::new(Mapped { state: self.0.clone(), revocations: state.revocations });
        Ok(Pages::new(start, length, true, move |offset, length| {
            Ok(vec![Segment::remote(memory.clone(), start + offset, length)])
        }))
    }
}

pub(super) fn make(test: &Test<'_>) -> Result<i64, Errno> {
    let body: command::DmabufGet = test.body()?;
    let length = u64::from(body.length).next_multiple_of(PAGE_SIZE);
    if length == 0 || length > LONGEST {
        return Err(Errno::INVAL);
    }
    let state = State { bytes: vec![0; length as usize], revoked: false, revocations: 0 };
    let buffer = Arc::new(TestBuffer(Arc::new(RwLock::new(state))));
    let number = test.call.caller.reserve()?;
    test.call.caller.install(number, Arc::new(Given(buffer)))?;
    Ok(number.into())
}

pub(super) fn revoke(test: &Test<'_>) -> Result<(), Errno> {
    let body: command::DmabufRevoke = test.body()?;
    let given = given(test.call.caller, body.dmabuf_fd).ok_or(Errno::INVAL)?;
    let buffer = of_kind::<TestBuffer>(given).ok_or(Errno::OPNOTSUPP)?;
    // Who is moving bytes is waited for.
    let mut state = buffer.0.write().unwrap_or_else(PoisonError::into_inner);
    state.revoked = body.revoked != 0;
    state.revocations += 1;
    Ok(())
}
