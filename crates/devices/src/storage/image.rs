//! An image: a file, or a block device, that holds blocks.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, FlockOperation, OFlags, fallocate, flock};
use rustix::io::Errno;
use thiserror::Error;

/// Why there are no such blocks.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ImageError {
    #[error("there is no image {}: to make one, give it a size=, as in size=1G", .0.display())]
    Missing(PathBuf),
    #[error("image {} is no file and no block device", .0.display())]
    NoImage(PathBuf),
    #[error("image {} cannot be written: change its permissions, or write readonly", .0.display())]
    ReadOnly(PathBuf),
    #[error("image {} is in use by another program", .0.display())]
    InUse(PathBuf),
    #[error("image {} has {length} bytes, and not {size}: leave size= out, or remove the file", path.display())]
    OtherSize { path: PathBuf, length: u64, size: u64 },
    #[error("image {} has {length} bytes, which are no whole blocks of {block}", path.display())]
    NoBlocks { path: PathBuf, length: u64, block: u64 },
    #[error("image {} could not be {what}: {error}", path.display())]
    Io { path: PathBuf, what: &'static str, error: String },
    #[error("there is no memory for {0} bytes: {1}")]
    NoMemory(u64, String),
}

/// What everything has to be a multiple of where the page cache is passed by: no device wants more.
const DIRECT_ALIGNMENT: u64 = 4096;
/// How long another process may hold an image before opening it is an error.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// Zeroes that are written at once where a file system cannot make them.
pub(super) static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

/// An open image.
#[derive(Debug)]
pub(crate) struct Image {
    /// By way of the page cache.
    cached: File,
    /// Past it, where the file system can.
    direct: Option<File>,
    length: u64,
}

impl Image {
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// The file to use for an access: past the page cache if it is aligned.
    pub(super) fn file(&self, offset: u64, length: usize) -> BorrowedFd<'_> {
        let is_aligned = offset.is_multiple_of(DIRECT_ALIGNMENT) && (length as u64).is_multiple_of(DIRECT_ALIGNMENT);
        self.direct.as_ref().filter(|_| is_aligned).unwrap_or(&self.cached).as_fd()
    }

    pub(super) fn cached(&self) -> BorrowedFd<'_> {
        self.cached.as_fd()
    }

    /// Reads at once. What is not there any more is an error.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.cached.read_exact_at(data, offset)
    }

    /// Writes at once.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.cached.write_all_at(data, offset)
    }

    pub(crate) fn flush(&self) -> io::Result<()> {
        self.cached.sync_data()
    }

    /// Makes bytes zero: at once, or step by step as long as it `goes_on`.
    pub(crate) fn zero(
        &self,
        offset: u64,
        length: u64,
        deallocate: bool,
        goes_on: &dyn Fn() -> bool,
    ) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        match fallocate(&self.cached, zero_mode(deallocate), offset, length) {
            Ok(()) => Ok(()),
            // Nor can a device make parts of its blocks.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::INVAL) => {
                self.write_zeroes(offset, length, goes_on)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// For file systems that cannot make holes.
    fn write_zeroes(&self, offset: u64, length: u64, goes_on: &dyn Fn() -> bool) -> io::Result<()> {
        let end = offset + length;
        for at in (offset..end).step_by(ZEROES.len()) {
            if !goes_on() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            self.write(at, &ZEROES[..(end - at).min(ZEROES.len() as u64) as usize])?;
        }
        Ok(())
    }
}

/// How bytes of a file become zero.
pub(super) fn zero_mode(deallocate: bool) -> FallocateFlags {
    let how = if deallocate { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
    how | FallocateFlags::KEEP_SIZE
}

/// Opens the image at `path`. With a size, it is made if there is none.
///
/// # Errors
/// If there is no such file, it is in use or cannot be written, or it is not of this size or of whole blocks.
pub(crate) fn open(path: &Path, size: Option<u64>, block: u64, readonly: bool) -> Result<Arc<Image>, ImageError> {
    let failed = |what| move |error: io::Error| ImageError::Io { path: path.into(), what, error: error.to_string() };
    // Opening a pipe would wait for a process at its other end.
    let kind = fs::metadata(path).map(|metadata| metadata.file_type());
    if kind.is_ok_and(|kind| kind.is_fifo() || kind.is_char_device() || kind.is_socket()) {
        return Err(ImageError::NoImage(path.into()));
    }
    let mut options = OpenOptions::new();
    options.read(true).write(!readonly);
    let creates = size.is_some() && !readonly && !path.exists();
    let mut cached = match options.clone().create_new(creates).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ImageError::Missing(path.into())),
        Err(error)
            if !readonly
                && matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) =>
        {
            return Err(ImageError::ReadOnly(path.into()));
        }
        Err(error) => return Err(failed("opened")(error)),
    };
    let lock = if readonly { FlockOperation::NonBlockingLockShared } else { FlockOperation::NonBlockingLockExclusive };
    let start = Instant::now();
    // Of a program that was killed, the kernel may be busy with the file still.
    while let Err(Errno::WOULDBLOCK) = flock(&cached, lock) {
        if start.elapsed() > LOCK_PATIENCE {
            return Err(ImageError::InUse(path.into()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    if let Some(size) = size.filter(|_| creates) {
        cached.set_len(size).map_err(failed("made that long"))?;
    }
    let length = cached.seek(SeekFrom::End(0)).map_err(failed("measured"))?;
    if size.is_some_and(|size| size != length) {
        return Err(ImageError::OtherSize { path: path.into(), length, size: size.unwrap_or_default() });
    }
    if length == 0 || !length.is_multiple_of(block) {
        return Err(ImageError::NoBlocks { path: path.into(), length, block });
    }
    let direct = options.custom_flags(OFlags::DIRECT.bits().cast_signed()).open(path).ok();
    Ok(Arc::new(Image { cached, direct, length }))
}
