//! Messages, as any peer sends and takes them.

use std::io::{IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ioasid_remote::vhost_user::wire::{HEADER_SIZE, Header, RequestId};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use zerocopy::native_endian::U64;
use zerocopy::{FromBytes, IntoBytes};

/// How long either side waits for the other.
pub const PATIENCE: Duration = Duration::from_millis(400);

/// A message that came.
pub struct Message {
    pub header: Header,
    pub payload: Vec<u8>,
    pub files: Vec<OwnedFd>,
}

impl Message {
    pub fn is(&self, id: RequestId) -> bool {
        self.header.request.get() == id as u32
    }

    pub fn number(&self) -> u64 {
        U64::read_from_bytes(&self.payload).unwrap().get()
    }
}

/// The next message, if there is one.
pub fn receive(mut socket: &UnixStream) -> Option<Message> {
    let mut header = [0; HEADER_SIZE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut header)], &mut ancillary, flags).ok()?;
    let files = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => rights.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let files = files.collect();
    if received.bytes < HEADER_SIZE {
        return None;
    }
    let header = Header::read_from_bytes(&header).unwrap();
    let mut payload = vec![0; header.size.get() as usize];
    socket.read_exact(&mut payload).ok()?;
    Some(Message { header, payload, files })
}

/// Sends a message, if there is somebody to take it.
pub fn send(socket: &UnixStream, header: Header, payload: &[u8], files: &[BorrowedFd<'_>]) -> bool {
    let message = [header.as_bytes(), payload].concat();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(files)));
    }
    sendmsg(socket.as_fd(), &[IoSlice::new(&message)], &mut ancillary, SendFlags::NOSIGNAL)
        .is_ok_and(|sent| sent == message.len())
}

pub fn reply(socket: &UnixStream, to: &Message, payload: &[u8]) -> bool {
    send(socket, to.header.reply(payload.len()), payload, &[])
}

pub fn reply_number(socket: &UnixStream, to: &Message, number: u64) -> bool {
    reply(socket, to, &number.to_ne_bytes())
}

/// Who listens at a socket, until this is dropped.
pub struct Listening {
    pub path: PathBuf,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listening {
    pub fn with(serve: impl Fn(UnixStream) + Send + 'static) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("ioasid-vhost-{}-{number}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let ends = Arc::new(AtomicBool::new(false));
        let is_over = ends.clone();
        let thread = Some(std::thread::spawn(move || {
            while let Ok((socket, _)) = listener.accept() {
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                serve(socket);
            }
        }));
        Self { path, ends, thread }
    }

    /// Ends it, and waits until it has: whoever it has served is gone.
    pub fn end(mut self) {
        let thread = self.thread.take();
        drop(self);
        thread.map(JoinHandle::join).unwrap().unwrap();
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Its thread sees that when the next client comes.
        self.ends.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.path);
        let _ = std::fs::remove_file(&self.path);
    }
}

pub fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < Duration::from_secs(20), "it never came to be that {what}");
        std::thread::yield_now();
    }
}
