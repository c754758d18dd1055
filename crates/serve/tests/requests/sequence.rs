//! Requests in a row, from bytes that may mean anything: what a fuzzer makes up, and what is kept of it.
//!
//! ```text
//!  kind  length  length bytes      kind  length  …
//! ```
//! A kind is a request, or something else that a program may do meanwhile; all kinds that there are not, and lengths
//! that are not there, mean something, too.

use ioasid_serve::request::given::GivenFile;
use ioasid_uapi::ioasid as own;
use ioasid_uapi::iommufd as uapi;
use ioasid_uapi::vfio::container as vfio;
use rustix::io::Errno;

use super::setup::{ARGUMENT, DATA, Setup};

/// Linux's requests, which are the first kinds.
const REQUESTS: [u32; 29] = [
    uapi::DESTROY,
    uapi::IOAS_ALLOC,
    uapi::IOAS_ALLOW_IOVAS,
    uapi::IOAS_COPY,
    uapi::IOAS_IOVA_RANGES,
    uapi::IOAS_MAP,
    uapi::IOAS_UNMAP,
    uapi::OPTION,
    uapi::VFIO_IOAS,
    uapi::HWPT_ALLOC,
    uapi::GET_HW_INFO,
    uapi::HWPT_SET_DIRTY_TRACKING,
    uapi::HWPT_GET_DIRTY_BITMAP,
    uapi::HWPT_INVALIDATE,
    uapi::FAULT_QUEUE_ALLOC,
    uapi::IOAS_MAP_FILE,
    uapi::VIOMMU_ALLOC,
    uapi::VDEVICE_ALLOC,
    uapi::IOAS_CHANGE_PROCESS,
    uapi::VEVENTQ_ALLOC,
    uapi::HW_QUEUE_ALLOC,
    uapi::IOAS_NOIOMMU_GET_PA,
    uapi::selftest::TEST_CMD,
    vfio::GET_API_VERSION,
    vfio::CHECK_EXTENSION,
    vfio::SET_IOMMU,
    vfio::IOMMU_GET_INFO,
    vfio::IOMMU_MAP_DMA,
    vfio::IOMMU_UNMAP_DMA,
];

const FIRST_OTHER: u8 = REQUESTS.len() as u8;
/// Puts the bytes where arguments point.
const PUT: u8 = FIRST_OTHER;
/// Has the next request's n-th thing fail.
const FAIL: u8 = FIRST_OTHER + 1;
/// Reads, writes, polls or closes a file that a request gave.
const READ: u8 = FIRST_OTHER + 2;
const WRITE: u8 = FIRST_OTHER + 3;
const POLL: u8 = FIRST_OTHER + 4;
const CLOSE: u8 = FIRST_OTHER + 5;
/// Our own requests are the last kinds, so that what was found before means what it meant.
const FIRST_OWN: u8 = FIRST_OTHER + 6;
const OWN: [u32; 10] = [
    own::PASID_ALLOC,
    own::PASID_FREE,
    own::PARK,
    own::HWPT_ALLOC,
    own::HWPT_INVALIDATE,
    own::FAULT_QUEUE_ALLOC,
    own::FAULT_QUEUE_GET,
    own::IOAS_PRESENCE,
    own::COPY,
    own::ENQCMD,
];
const KINDS: u8 = FIRST_OWN + OWN.len() as u8;
/// Most steps, so that no input takes long.
const MOST_STEPS: usize = 200;

fn step(kind: u8, bytes: &[u8]) -> Vec<u8> {
    [&[kind, bytes.len() as u8], bytes].concat()
}

/// The bytes that mean a request with this argument.
pub fn request(number: u32, argument: &[u8]) -> Vec<u8> {
    let at = |requests: &[u32]| requests.iter().position(|&known| known == number);
    let kind = at(&REQUESTS).or_else(|| Some(usize::from(FIRST_OWN) + at(&OWN)?));
    step(kind.unwrap() as u8, argument)
}

/// The bytes that mean that these are put where arguments point.
pub fn data(bytes: &[u8]) -> Vec<u8> {
    step(PUT, bytes)
}

/// Does what `bytes` mean, and sees to it that what fails changes nothing, and that in the end nothing is left.
pub fn perform(mut bytes: &[u8]) {
    let setup = Setup::empty();
    let mut fail = 0;
    for _ in 0..MOST_STEPS {
        let [kind, length, rest @ ..] = bytes else { break };
        let (argument, rest) = rest.split_at((*length as usize).min(rest.len()));
        bytes = rest;
        let first = argument.first().copied().unwrap_or_default();
        match kind % KINDS {
            PUT => setup.program.put(DATA, argument),
            FAIL => fail = u32::from(first),
            READ => drop(given(&setup, first).map(|file| file.read(argument.len() * 16))),
            WRITE => drop(given(&setup, first).map(|file| file.write(argument.get(1..).unwrap_or_default()))),
            POLL => drop(given(&setup, first).map(|file| file.poll(Some(std::sync::Arc::new(|| {}))))),
            CLOSE => setup.program.close(first),
            kind => {
                let own = kind.checked_sub(FIRST_OWN).map(|own| OWN[usize::from(own)]);
                let number = own.unwrap_or_else(|| REQUESTS[usize::from(kind)]);
                ask(&setup, number, argument, std::mem::take(&mut fail));
            }
        }
    }
    setup.dispose("a sequence");
}

fn given(setup: &Setup, which: u8) -> Option<std::sync::Arc<dyn GivenFile>> {
    let descriptors = setup.program.descriptors();
    let number = descriptors.get(which as usize % descriptors.len().max(1))?;
    setup.program.given(*number)
}

fn ask(setup: &Setup, number: u32, argument: &[u8], fail: u32) {
    // These have a number where others have an address.
    let by_value = [vfio::CHECK_EXTENSION, vfio::SET_IOMMU].contains(&number);
    let address = if by_value { argument.first().copied().unwrap_or_default().into() } else { ARGUMENT };
    setup.program.put(ARGUMENT, &[0; 256]);
    setup.program.put(ARGUMENT, argument);
    let before = setup.state();
    let (result, _) = ioasid_inject::failing(fail, || setup.file.ioctl(number, address, &setup.program));
    setup.program.forget_reserved();
    // Tests do as they like; and what VFIO cuts stays cut if it cannot be unmapped, as on Linux.
    let may_change = [uapi::selftest::TEST_CMD, vfio::IOMMU_UNMAP_DMA].contains(&number);
    if let Err(error) = result
        && !may_change
    {
        assert_eq!(setup.state(), before, "request {number:#x} failed ({error}) and changed something");
        assert_ne!(error, Errno::NOTTY, "request {number:#x} is known");
    }
}
