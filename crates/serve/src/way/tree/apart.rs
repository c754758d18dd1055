//! The connection to the kernel, apart from this process's other descriptors.
//!
//! A thread that asks the tree for something waits for an answer that another thread of its own process gives; and such
//! questions cannot be avoided, as a program may pass memory, files and directories of the tree wherever it passes any.
//! If the process is killed, no answer comes, and the wait, which no signal ends, ends when the kernel closes the
//! connection: with the last descriptor of it. So the threads that serve the tree have a table of descriptors of their
//! own, with the connection and little else, and no other thread has it: it closes when these threads end, which wait
//! for nothing, and with it all waits end, of whatever kind.
//!
//! ```text
//!   this process's table                       the table apart
//!     listeners, devices, workers, …  ──────►    tree, tell: /dev/fuse
//!            wait for the tree                   wait for no other thread
//! ```
//! Where the kernel waits for an answer that a worker finds, the second of these threads gives it when the worker
//! knows.
//!
//! A number of the other table would mean another file to these threads, or none. So they read and write no other
//! files, and have workers let go of whatever may hold descriptors ([`Server::with_file`]).
#![allow(unsafe_code, reason = "a descriptor changes its table")]

use std::collections::HashMap;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuser::{Config, Filesystem, PollNotifier, Session, SessionACL};
use rustix::io::Errno;

use crate::descriptors::close_others;
use crate::request::given::Wake;
use crate::server::Server;

/// Serves a file system on `connection`, and returns when the kernel has accepted it. `ended` is called when no
/// process has it mounted any more.
///
/// # Errors
/// If the kernel's FUSE lacks something, or there can be no thread.
pub(super) fn serve<F>(system: F, connection: OwnedFd, ended: impl FnOnce() + Send + 'static) -> io::Result<()>
where
    F: Filesystem + Send + Sync + 'static,
{
    let number = connection.into_raw_fd();
    let (tell, told) = mpsc::channel();
    let started = std::thread::Builder::new().name("tree".to_owned()).spawn(move || {
        let session = keep_only(number)
            .and_then(|connection| Session::from_fd(system, connection, SessionACL::All, Config::default()));
        match session {
            Ok(session) => {
                let _ = tell.send(Ok(()));
                let _ = session.run();
                ended();
            }
            Err(error) => drop(tell.send(Err(error))),
        }
    });
    let answer = started.and_then(|_| told.recv().map_err(|_| io::ErrorKind::BrokenPipe)?);
    // SAFETY: the number is this table's, which the descriptor was taken from above; the thread has a table of its own
    // by now, or has closed nothing.
    drop(unsafe { OwnedFd::from_raw_fd(number) });
    answer
}

/// Gives the calling thread a table of its own, with standard input and output and the descriptor `number`.
fn keep_only(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: this thread's table is its own then, and nothing that it has uses a descriptor that is closed in it.
    unsafe { close_others(&mut [number], 3, true) }?;
    // SAFETY: it is open in this thread's table, where nothing else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

type Reply = Box<dyn FnOnce() + Send>;

/// What a thread apart is told by the others.
enum News {
    /// A file has become ready.
    Ready(u64),
    /// What a reply waited for is done.
    Done(u64),
}

/// A thread apart that tells the kernel what becomes known elsewhere: of files that have become ready, and of requests
/// whose answer had to be waited for. What it tells by never leaves the threads apart.
pub(super) struct Teller {
    known: Arc<Known>,
    /// To the thread, from the first news on.
    news: Mutex<Option<Sender<News>>>,
}

#[derive(Default)]
struct Known {
    /// How to tell of each file that a program has waited for, by inode.
    notifiers: Mutex<HashMap<u64, PollNotifier>>,
    /// The replies to requests that are not answered yet, by number.
    replies: Mutex<HashMap<u64, Reply>>,
    next: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Teller {
    pub(super) fn new() -> Self {
        Self { known: Arc::default(), news: Mutex::new(None) }
    }

    /// How to tell of a file. To be called by a thread apart.
    pub(super) fn wake(&self, inode: u64, notifier: PollNotifier) -> Wake {
        lock(&self.known.notifiers).insert(inode, notifier);
        let news = self.sender();
        Arc::new(move || {
            let _ = news.send(News::Ready(inode));
        })
    }

    /// A file is closed.
    pub(super) fn forget(&self, inode: u64) {
        lock(&self.known.notifiers).remove(&inode);
    }

    /// Has `work` done by another thread, which may wait, and then `reply` by a thread apart. To be called by one.
    pub(super) fn answer_later<T: Send + 'static>(
        &self,
        server: &Arc<Server>,
        work: impl FnOnce(&Server) -> Result<T, Errno> + Send + 'static,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        let number = self.known.next.fetch_add(1, Ordering::Relaxed);
        let (tell, outcome) = mpsc::channel();
        // Also if the work panics, the reply is made.
        let reply = move || reply(outcome.try_recv().unwrap_or(Err(Errno::IO)));
        lock(&self.known.replies).insert(number, Box::new(reply));
        let pending = Pending { number, news: self.sender() };
        let served = server.clone();
        server.elsewhere(move || {
            let _ = tell.send(work(&served));
            drop(pending);
        });
    }

    fn sender(&self) -> Sender<News> {
        let start = || {
            let (sender, news) = mpsc::channel();
            let known = self.known.clone();
            // It has the table of the calling thread. Without it programs are told of nothing.
            let _ = std::thread::Builder::new().name("tell".to_owned()).spawn(move || tell(&news, &known));
            sender
        };
        lock(&self.news).get_or_insert_with(start).clone()
    }
}

impl Drop for Teller {
    /// The thread keeps nothing that it could tell by when the connection is gone.
    fn drop(&mut self) {
        lock(&self.known.notifiers).clear();
        lock(&self.known.replies).clear();
    }
}

/// Work that a reply waits for.
struct Pending {
    number: u64,
    news: Sender<News>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        let _ = self.news.send(News::Done(self.number));
    }
}

fn tell(news: &Receiver<News>, known: &Known) {
    for news in news {
        match news {
            News::Ready(inode) => {
                let notifier = lock(&known.notifiers).get(&inode).cloned();
                // What is closed meanwhile is waited for by no program.
                let _ = notifier.map(PollNotifier::notify);
            }
            News::Done(number) => {
                let reply = lock(&known.replies).remove(&number);
                reply.into_iter().for_each(|reply| reply());
            }
        }
    }
}
