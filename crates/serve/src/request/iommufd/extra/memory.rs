//! Memory that makes devices fault, and software's way to what they reach.

use ioasid::{Iova, IovaRange, Reach};
use ioasid_uapi::ioasid as uapi;
use rustix::io::Errno;

use super::{Call, ToErrno, check, pasid_of};
use crate::request::object;

/// The most bytes of one copy, and how many are under way at a time.
const LONGEST: u64 = 1 << 20;
const PIECE: u64 = 64 << 10;

pub(super) fn presence(call: &Call<'_>) -> Result<(), Errno> {
    let mut request: uapi::IoasPresence = call.get()?;
    check(0, 0, request.reserved)?;
    let ioas = object::ioas(call.context(), request.ioas_id)?;
    if request.length == 0 {
        return Err(Errno::INVAL);
    }
    let range = IovaRange::new(request.iova, request.length).ok_or(Errno::OVERFLOW)?;
    match request.op {
        uapi::PRESENCE_FAULT => ioas.make_fault(range).map_err(|error| error.errno()),
        uapi::PRESENCE_POPULATE => {
            // It is told before, as nothing is undone for one that cannot be told.
            let (said, expected) = (request.out_length, ioas.absent_bytes(range));
            request.out_length = expected;
            call.put(&request)?;
            let populated = ioas.populate(range).map_err(|error| error.errno());
            match populated {
                Ok(bytes) if bytes == expected => Ok(()),
                // A device needed some of it meanwhile, or somebody else made more of it fault.
                Ok(bytes) => call.put(&uapi::IoasPresence { out_length: bytes, ..request }),
                Err(errno) => {
                    // It was told a moment ago; whoever took the memory away since does not look at it.
                    let _ = call.put(&uapi::IoasPresence { out_length: said, ..request });
                    Err(errno)
                }
            }
        }
        _ => Err(Errno::OPNOTSUPP),
    }
}

pub(super) fn copy(call: &Call<'_>) -> Result<(), Errno> {
    let request: uapi::Copy = call.get()?;
    let has = |flag| request.flags & flag != 0;
    check(request.flags, uapi::COPY_TO | uapi::COPY_DEVICE | uapi::COPY_PASID, 0)?;
    let by_pasid = has(uapi::COPY_PASID);
    if (by_pasid && !has(uapi::COPY_DEVICE)) || (!by_pasid && request.pasid != 0) || request.length == 0 {
        return Err(Errno::INVAL);
    }
    if request.length > LONGEST {
        return Err(Errno::MSGSIZE);
    }
    IovaRange::new(request.iova, request.length).ok_or(Errno::OVERFLOW)?;
    let reach = if has(uapi::COPY_DEVICE) {
        let pasid = by_pasid.then(|| pasid_of(request.pasid)).transpose()?;
        Reach::of_device(&object::endpoint(call.context(), request.id)?, pasid)
    } else {
        call.context().reach(request.id).ok_or(Errno::NOENT)?
    };
    let mut done = 0;
    let mut buffer = vec![0; request.length.min(PIECE) as usize];
    while done < request.length {
        let piece = &mut buffer[..(request.length - done).min(PIECE) as usize];
        let (iova, address) = (Iova(request.iova + done), request.user_va.wrapping_add(done));
        if has(uapi::COPY_TO) {
            call.caller.read(address, piece)?;
            call.context().copy_to(&reach, iova, piece).map_err(|error| error.errno())?;
        } else {
            call.context().copy_from(&reach, iova, piece).map_err(|error| error.errno())?;
            call.caller.write(address, piece)?;
        }
        done += piece.len() as u64;
    }
    Ok(())
}
