//! What a process has mapped where.
//!
//! Asks `PROCMAP_QUERY` (Linux 6.11), which answers for one address; older kernels have `/proc/PID/maps` read through.
//! Source: Linux `Documentation/filesystems/proc.rst` and `include/uapi/linux/fs.h`.

use crate::base::lock::Mutex;
use crate::base::rank;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// One mapping of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vma {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
    /// Offset in the file of the first byte.
    pub offset: u64,
    /// Device number of the file, as in `stat`; 0 if there is no file.
    pub dev: u64,
    /// Inode number of the file; 0 if there is no file.
    pub inode: u64,
    /// Readable by the process.
    pub readable: bool,
    /// Writable by the process.
    pub writable: bool,
    /// Shared, as opposed to private.
    pub shared: bool,
}

/// Answers questions about one process's mappings; opened once, valid until the process execs or ends.
#[derive(Debug)]
pub struct VmaQuery {
    maps: File,
    by_ioctl: AtomicBool,
    /// The file has one offset.
    reading: Mutex<(), rank::Reading>,
}

const PROCMAP_QUERY: libc::Ioctl = 0xc068_6611u32 as libc::Ioctl;
const VMA_READABLE: u64 = 1 << 0;
const VMA_WRITABLE: u64 = 1 << 1;
const VMA_SHARED: u64 = 1 << 3;
const COVERING_OR_NEXT_VMA: u64 = 1 << 4;

/// `struct procmap_query`.
#[repr(C)]
#[derive(Default)]
struct ProcmapQuery {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

impl VmaQuery {
    /// Opens the mappings of process `pid`.
    ///
    /// # Errors
    /// Of opening `/proc/PID/maps`: no such process, or none that this one may look at.
    pub fn new(pid: u32) -> io::Result<Self> {
        Ok(Self {
            maps: File::open(format!("/proc/{pid}/maps"))?,
            by_ioctl: AtomicBool::new(true),
            reading: Mutex::new(()),
        })
    }

    /// The mapping that `address` lies in.
    ///
    /// # Errors
    /// Of the system call.
    pub fn at(&self, address: u64) -> io::Result<Option<Vma>> {
        Ok(self.at_or_after(address)?.filter(|vma| vma.start <= address))
    }

    /// The mapping that `address` lies in, or else the next above it.
    ///
    /// # Errors
    /// Of the system call.
    pub fn at_or_after(&self, address: u64) -> io::Result<Option<Vma>> {
        if self.by_ioctl.load(Ordering::Relaxed) {
            match self.query(address) {
                Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
                    self.by_ioctl.store(false, Ordering::Relaxed);
                }
                answer => return answer,
            }
        }
        let mut text = String::new();
        let _reading = self.reading.lock();
        let mut maps = &self.maps;
        maps.rewind()?;
        maps.read_to_string(&mut text)?;
        Ok(text.lines().filter_map(parse_line).find(|vma| vma.end > address))
    }

    #[allow(unsafe_code, reason = "an ioctl with a struct")]
    fn query(&self, address: u64) -> io::Result<Option<Vma>> {
        let mut query = ProcmapQuery {
            size: size_of::<ProcmapQuery>() as u64,
            query_flags: COVERING_OR_NEXT_VMA,
            query_addr: address,
            ..ProcmapQuery::default()
        };
        // SAFETY: the struct has the size that the request number and `size` say, and asks for no name.
        let result = unsafe { libc::ioctl(self.maps.as_raw_fd(), PROCMAP_QUERY, &mut query) };
        if result < 0 {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(libc::ENOENT) { Ok(None) } else { Err(error) };
        }
        Ok(Some(Vma {
            start: query.vma_start,
            end: query.vma_end,
            offset: query.vma_offset,
            dev: libc::makedev(query.dev_major, query.dev_minor),
            inode: query.inode,
            readable: query.vma_flags & VMA_READABLE != 0,
            writable: query.vma_flags & VMA_WRITABLE != 0,
            shared: query.vma_flags & VMA_SHARED != 0,
        }))
    }
}

/// `7f12a000-7f12b000 rw-s 00000000 00:01 1234   /name`
fn parse_line(line: &str) -> Option<Vma> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let perms = fields.next()?.as_bytes();
    let offset = fields.next()?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    Some(Vma {
        start: hex(start)?,
        end: hex(end)?,
        offset: hex(offset)?,
        dev: libc::makedev(hex(major)? as u32, hex(minor)? as u32),
        inode: fields.next()?.parse().ok()?,
        readable: perms.first() == Some(&b'r'),
        writable: perms.get(1) == Some(&b'w'),
        shared: perms.get(3) == Some(&b's'),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_asking_agree() {
        let query = VmaQuery::new(std::process::id()).unwrap();
        let text = std::fs::read_to_string("/proc/self/maps").unwrap();
        let here = &raw const query as u64;
        let by_ioctl = query.at(here).unwrap().unwrap();
        query.by_ioctl.store(false, Ordering::Relaxed);
        let by_text = query.at(here).unwrap().unwrap();
        assert!(by_ioctl.readable && by_ioctl.writable && !by_ioctl.shared);
        // The stack may grow between the two, downwards.
        assert_eq!((by_ioctl.end, by_ioctl.inode), (by_text.end, by_text.inode));
        assert!(text.lines().filter_map(parse_line).count() == text.lines().count());
    }

    #[test]
    fn nothing_is_mapped_at_the_top() {
        let query = VmaQuery::new(std::process::id()).unwrap();
        assert_eq!(query.at(0).unwrap(), None);
        assert_eq!(query.at(!0 << 12).unwrap().filter(|vma| vma.writable), None);
    }
}
