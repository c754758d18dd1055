//! Memory with signatures: of address spaces, and of processes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ioasid::memory::{Process, Segment};
use ioasid::{Access, Context, GuestFormat, GuestTable, Held, Ioas, Iova, IovaRange, Pasid, Placement};

use crate::DONE;
use crate::history::History;

/// Where a signature is, to a device; and where devices write.
pub const AT: u64 = 0x1000;
pub const WRITTEN: u64 = 0x1800;

/// Bytes of an address space. A guest's page table in it leads from `AT` to another page.
const LENGTH: u64 = 0x1_0000;
const GUESTS: u64 = 0x2000;
const ROOT: u64 = 0x8000;
/// A present, writable entry of x86-64 that devices may use.
const PRESENT: u64 = 7;
/// What is put where devices wrote, once nothing is mapped there.
const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;

static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// A number that nothing else has.
pub fn number() -> u64 {
    NUMBERS.fetch_add(1, Ordering::Relaxed)
}

/// A signature that nothing else has: eight letters, the first of which says what it is of.
fn signature(what: char) -> u64 {
    u64::from_ne_bytes(format!("{what}{:07x}", number()).into_bytes().try_into().unwrap())
}

pub fn is_signature(word: u64) -> bool {
    let [what, number @ ..] = word.to_ne_bytes();
    b"sgp".contains(&what) && number.iter().all(u8::is_ascii_hexdigit)
}

/// What DMA is counted as that has read a signature.
pub fn kind(signature: u64) -> &'static str {
    match signature.to_ne_bytes()[0] {
        b's' => "done to an address space",
        b'g' => "done to a guest's memory",
        _ => "done to a process",
    }
}

/// What a device writes: who it is, and with which PASID.
pub fn tag(requester: usize, pasid: Option<Pasid>) -> u64 {
    0x7a67 << 48 | (requester as u64) << 32 | pasid.map_or(0, |pasid| u64::from(pasid.get()) + 1)
}

/// An address space, with two signatures: that of its memory, and that of its guest's.
pub struct Space {
    pub ioas: Arc<Ioas>,
    pub number: u64,
    pub signature: u64,
    pub guests: u64,
    file: Arc<File>,
    /// The tags of those who may write.
    writers: Mutex<BTreeSet<u64>>,
    /// So that its id means nothing else to who knows it.
    _held: Held,
}

impl Space {
    pub fn new(context: &Arc<Context>) -> Arc<Self> {
        DONE.add("address spaces made", 1);
        let (segment, file) = Segment::memfd(LENGTH).unwrap();
        let (own, guests) = (signature('s'), signature('g'));
        let put = |at: u64, word: u64| file.write_all_at(&word.to_ne_bytes(), at).unwrap();
        put(AT, own);
        put(GUESTS, guests);
        (0..3).for_each(|level| put(ROOT + 0x1000 * level, (ROOT + 0x1000 * (level + 1)) | PRESENT));
        put(ROOT + 0x3000 + 8 * (AT >> 12), GUESTS | PRESENT);
        let ioas = context.ioas_alloc().unwrap();
        ioas.map(Placement::Fixed(Iova(0)), LENGTH, Access::all(), || Ok(vec![segment])).unwrap();
        let _held = context.hold(ioas.id()).unwrap();
        Arc::new(Self { ioas, number: number(), signature: own, guests, file, writers: Mutex::default(), _held })
    }

    /// The guest's page table.
    pub fn guest_table() -> GuestTable {
        GuestTable { format: GuestFormat::X86_64, root: ROOT }
    }

    /// A requester may write, with this PASID on the bus.
    pub fn may_write(&self, requester: usize, pasid: Option<Pasid>) {
        self.writers.lock().unwrap().insert(tag(requester, pasid));
    }

    fn word(&self, at: u64) -> u64 {
        let mut word = [0; 8];
        self.file.read_exact_at(&mut word, at).unwrap();
        u64::from_ne_bytes(word)
    }

    /// Unmaps all, and looks who has written.
    pub fn unmap(&self, history: &History) {
        self.ioas.unmap(IovaRange::ALL).unwrap();
        for (at, signature) in [(AT, self.signature), (GUESTS, self.guests)] {
            let place = at + WRITTEN % 0x1000;
            let found = self.word(place);
            let requester = (found >> 32 & 0xf) as usize;
            let allowed = found == 0
                || history.is_being_attached(requester, signature)
                || self.writers.lock().unwrap().contains(&found);
            assert!(allowed, "who wrote {found:#x} was never attached to {}", self.number);
            self.file.write_all_at(&SECRET.to_ne_bytes(), place).unwrap();
        }
    }

    /// Long after [`Space::unmap`]: nobody has written since.
    pub fn check_untouched(&self) {
        for at in [AT, GUESTS] {
            assert_eq!(self.word(at + WRITTEN % 0x1000), SECRET, "a device wrote to memory that had been unmapped");
        }
    }
}

/// A process that only waits, with a signature in its environment. It ends with this one, too.
pub struct Waiter {
    pub signature: u64,
    /// Where the signature is.
    pub address: u64,
    /// None when it was ended.
    child: Mutex<Option<Child>>,
}

impl Waiter {
    fn new() -> Self {
        const NAME: &str = "IOASID_SIGNATURE=";
        let signature = signature('p');
        let text = String::from_utf8(signature.to_ne_bytes().to_vec()).unwrap();
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).env(NAME.trim_end_matches('='), text);
        let mut child = command.spawn().unwrap();
        // When it has answered, all of it is there.
        child.stdin.as_mut().unwrap().write_all(b".").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let process = format!("/proc/{}", child.id());
        // Field 50, `env_start` (Linux, Documentation/filesystems/proc.rst); the name in parentheses may have spaces.
        let stat = fs::read_to_string(format!("{process}/stat")).unwrap();
        let start: u64 = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(50 - 3).unwrap().parse().unwrap();
        let environment = fs::read(format!("{process}/environ")).unwrap();
        let offset = environment.windows(NAME.len()).position(|window| window == NAME.as_bytes()).unwrap();
        DONE.add("processes begun", 1);
        Self { signature, address: start + (offset + NAME.len()) as u64, child: Mutex::new(Some(child)) }
    }

    /// Its address space, unless it has ended.
    pub fn open(&self) -> Option<Process> {
        // Its number is not another's meanwhile.
        let child = self.child.lock().unwrap();
        child.as_ref().map(|child| Process::open_for_sva(child.id()).unwrap())
    }

    /// Returns when it has ended.
    pub fn end(&self) {
        if let Some(mut child) = self.child.lock().unwrap().take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

/// The processes that there are, or were a moment ago.
#[derive(Default)]
pub struct Children(Mutex<Vec<Arc<Waiter>>>);

impl Children {
    /// Most at a time.
    const MOST: usize = 4;

    pub fn all(&self) -> Vec<Arc<Waiter>> {
        self.0.lock().unwrap().clone()
    }

    /// Begins another, if there are not enough.
    pub fn begin(&self) {
        if self.0.lock().unwrap().len() < Self::MOST {
            let child = Arc::new(Waiter::new());
            self.0.lock().unwrap().push(child);
        }
    }

    /// Takes one out, for who ends it.
    pub fn take(&self, which: usize) -> Option<Arc<Waiter>> {
        let mut all = self.0.lock().unwrap();
        let which = which % all.len().max(1);
        (which < all.len()).then(|| all.swap_remove(which))
    }

    pub fn end_all(&self) {
        self.0.lock().unwrap().drain(..).for_each(|child| child.end());
    }
}
