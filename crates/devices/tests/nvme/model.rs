//! Random commands on several queues, with resets, against a naive disk.
#![allow(clippy::unwrap_used, reason = "only tests use it")]

use ioasid_devices::nvme::NamespaceOptions;
use ioasid_devices::nvme::spec::command::{Command, nvm};
use ioasid_devices::nvme::spec::registers::Register;
use ioasid_devices::nvme::spec::status::Status;
use proptest::prelude::*;

use crate::bench::{Bench, CONFIGURATION, DATA, Image, LISTS, PAGE, Pair, With, command, in_memory, status};

const BLOCK: usize = 512;
/// Blocks of the disk: few, so that commands meet.
const BLOCKS: u64 = 256;
const QUEUES: usize = 3;
/// Bytes of memory for a command's data.
const ROOM: u64 = 0x4000;

/// What is done with blocks.
#[derive(Clone, Copy, Debug)]
enum What {
    Read,
    Write(u8),
    /// With what is there, or not.
    Compare(bool),
    Zeroes,
    Discard,
    /// From another place.
    Copy(u64),
    Uncorrectable,
    Verify,
    Flush,
}

/// A command.
#[derive(Clone, Debug)]
struct Step {
    what: What,
    first: u64,
    count: u64,
    queue: usize,
    /// Its data is by an SGL, rather than by PRPs.
    sgl: bool,
    /// An offset of its data.
    offset: u64,
}

fn step() -> impl Strategy<Value = Step> {
    let what = prop_oneof![
        4 => Just(What::Read),
        6 => any::<u8>().prop_map(What::Write),
        2 => any::<bool>().prop_map(What::Compare),
        1 => Just(What::Zeroes),
        1 => Just(What::Discard),
        2 => (0..BLOCKS).prop_map(What::Copy),
        1 => Just(What::Uncorrectable),
        1 => Just(What::Verify),
        1 => Just(What::Flush),
    ];
    (what, 0..BLOCKS, 1..20u64, 0..QUEUES, any::<bool>(), (0..64u64).prop_map(|words| 4 * words))
        .prop_map(|(what, first, count, queue, sgl, offset)| Step { what, first, count, queue, sgl, offset })
}

/// A block as it may be: one of these, or, without any, one that cannot be read.
type Block = Vec<Option<Vec<u8>>>;

/// The disk as it should be.
struct Disk(Vec<Block>);

impl Disk {
    fn known(&self, range: std::ops::Range<u64>) -> Option<Vec<u8>> {
        let blocks = range.map(|at| self.0[at as usize][0].clone()).collect::<Option<Vec<_>>>()?;
        Some(blocks.concat())
    }
}

struct Rig {
    bench: Bench,
    pairs: Vec<Pair>,
    disk: Disk,
}

/// What a command is expected to do.
struct Expected {
    queue: usize,
    id: u16,
    status: Status,
    /// What the host finds then, and where.
    data: Option<(u64, Vec<u8>)>,
    /// What blocks are then.
    blocks: Vec<(u64, Option<Vec<u8>>)>,
}

impl Rig {
    fn new(namespace: NamespaceOptions) -> Self {
        let mut rig = Self {
            bench: Bench::of(&[namespace]),
            pairs: Vec::new(),
            disk: Disk(vec![vec![Some(vec![0; BLOCK])]; BLOCKS as usize]),
        };
        rig.connect();
        rig
    }

    fn connect(&mut self) {
        self.pairs = (1..=QUEUES as u16).map(|id| self.bench.pair(id, 64)).collect();
    }

    /// Where the data of the `slot`th command is.
    fn data(slot: u64) -> u64 {
        DATA + slot * ROOM
    }

    /// Points a command to its data, however that is to be done.
    fn point(&self, command: Command, step: &Step, slot: u64, bytes: u64) -> (Command, u64) {
        let at = Self::data(slot) + step.offset;
        if step.sgl {
            // Two parts, of which the first is odd.
            let list = LISTS + slot * PAGE;
            let cut = bytes / 2 + 1;
            let part = |address: u64, length: u64| [address.to_le_bytes(), length.to_le_bytes()].concat();
            self.bench.memory.set(list, &[part(at, cut), part(at + cut, bytes - cut)].concat());
            return (command.flags(0x40).data(list, 32 | 0x30 << 56), at);
        }
        let pages: Vec<u64> =
            (1..).map(|page| (at & !(PAGE - 1)) + page * PAGE).take_while(|page| *page < at + bytes).collect();
        if pages.len() <= 1 {
            return (command.data(at, pages.first().copied().unwrap_or(0)), at);
        }
        let list = LISTS + slot * PAGE;
        self.bench.memory.set(list, &pages.iter().flat_map(|page| page.to_le_bytes()).collect::<Vec<_>>());
        (command.data(at, list), at)
    }

    /// Begins a command. `None` if it would meet another one.
    fn begin(&mut self, step: &Step, slot: u64, busy: &mut [bool]) -> Option<Expected> {
        let (first, count) = (step.first, step.count.min(BLOCKS - step.first));
        let range = first..first + count;
        let source = match step.what {
            What::Copy(from) => from..from + count.min(BLOCKS - from),
            _ => 0..0,
        };
        let (range, count) = match step.what {
            What::Copy(_) => {
                (first..first + (source.end - source.start).min(count), (source.end - source.start).min(count))
            }
            _ => (range, count),
        };
        let source = source.start..source.start + if source.is_empty() { 0 } else { count };
        if range.clone().chain(source.clone()).any(|at| busy[at as usize]) {
            return None;
        }
        range.clone().chain(source.clone()).for_each(|at| busy[at as usize] = true);
        let bytes = count * BLOCK as u64;
        let known = self.disk.known(range.clone());
        let unreadable = Status::UNRECOVERED_READ_ERROR;
        let on = |code: u8| command(code, 1).long(first).word(12, count as u32 - 1);
        let set = |value: Option<Vec<u8>>| range.clone().map(|at| (at, value.clone())).collect::<Vec<_>>();
        let (command, status, data, blocks) = match step.what {
            What::Read => {
                let (command, at) = self.point(on(nvm::READ), step, slot, bytes);
                let status = if known.is_some() { Status::SUCCESS } else { unreadable };
                (command, status, known.map(|known| (at, known)), Vec::new())
            }
            What::Write(seed) => {
                let (command, at) = self.point(on(nvm::WRITE), step, slot, bytes);
                let data = crate::bench::pattern(bytes as usize, seed);
                self.bench.memory.set(at, &data);
                let blocks = range.clone().zip(data.chunks(BLOCK)).map(|(at, block)| (at, Some(block.to_vec())));
                (command, Status::SUCCESS, None, blocks.collect())
            }
            What::Compare(same) => {
                let (command, at) = self.point(on(nvm::COMPARE), step, slot, bytes);
                let mut data = known.clone().unwrap_or_else(|| vec![0; bytes as usize]);
                if !same {
                    *data.last_mut().unwrap() ^= 1;
                }
                self.bench.memory.set(at, &data);
                let status = match (known, same) {
                    (None, _) => unreadable,
                    (_, true) => Status::SUCCESS,
                    _ => Status::COMPARE_FAILURE,
                };
                (command, status, None, Vec::new())
            }
            What::Zeroes => (on(nvm::WRITE_ZEROES), Status::SUCCESS, None, set(Some(vec![0; BLOCK]))),
            What::Discard => {
                let at = Self::data(slot);
                let given = [&[0; 4][..], &(count as u32).to_le_bytes(), &first.to_le_bytes()].concat();
                self.bench.memory.set(at, &given);
                let discard = command(nvm::DATASET_MANAGEMENT, 1).word(11, 4).data(at, 0);
                (discard, Status::SUCCESS, None, set(Some(vec![0; BLOCK])))
            }
            What::Copy(_) => {
                let at = Self::data(slot);
                let mut given = vec![0; 32];
                given[8..16].copy_from_slice(&source.start.to_le_bytes());
                given[16..18].copy_from_slice(&(count as u16 - 1).to_le_bytes());
                self.bench.memory.set(at, &given);
                let copy = command(nvm::COPY, 1).long(first).data(at, 0);
                match self.disk.known(source) {
                    None => (copy, unreadable, None, Vec::new()),
                    Some(data) => {
                        let blocks =
                            range.clone().zip(data.chunks(BLOCK)).map(|(at, block)| (at, Some(block.to_vec())));
                        (copy, Status::SUCCESS, None, blocks.collect())
                    }
                }
            }
            What::Uncorrectable => (on(nvm::WRITE_UNCORRECTABLE), Status::SUCCESS, None, set(None)),
            What::Verify => {
                (on(nvm::VERIFY), if known.is_some() { Status::SUCCESS } else { unreadable }, None, Vec::new())
            }
            What::Flush => (command(nvm::FLUSH, 1), Status::SUCCESS, None, Vec::new()),
        };
        let id = self.bench.submit(&mut self.pairs[step.queue], command);
        Some(Expected { queue: step.queue, id, status, data, blocks })
    }

    fn end(&mut self, expected: Expected) {
        let completion = self.bench.wait_for(&mut self.pairs[expected.queue], expected.id);
        assert_eq!(status(&completion).code(), expected.status.code());
        if let Some((at, data)) = expected.data {
            assert!(self.bench.memory.get(at, data.len()) == data, "the host finds other data");
        }
        for (at, block) in expected.blocks {
            self.disk.0[at as usize] = vec![block];
        }
    }

    /// Commands at once, and perhaps a reset while they are under way.
    fn round(&mut self, steps: &[Step], resets: bool) {
        let mut busy = vec![false; BLOCKS as usize];
        let begun: Vec<_> = (0..).zip(steps).filter_map(|(slot, step)| self.begin(step, slot, &mut busy)).collect();
        if !resets {
            return begun.into_iter().for_each(|expected| self.end(expected));
        }
        self.bench.set(Register::Configuration, 0);
        self.bench.disable();
        self.bench.enable(CONFIGURATION);
        self.connect();
        // Each block is as it was, or as it should have become.
        for (at, block) in begun.into_iter().flat_map(|expected| expected.blocks) {
            self.disk.0[at as usize].push(block);
            self.settle(at);
        }
    }

    /// Finds out what a block is.
    fn settle(&mut self, at: u64) {
        let read = command(nvm::READ, 1).long(at).data(DATA, 0);
        let status = self.bench.status(&mut self.pairs[0], read);
        let found = status.is_success().then(|| self.bench.memory.get(DATA, BLOCK));
        assert!(self.disk.0[at as usize].contains(&found), "block {at} is neither old nor new");
        self.disk.0[at as usize] = vec![found];
    }

    fn check_all(&mut self) {
        for at in 0..BLOCKS {
            self.settle(at);
        }
    }
}

fn rounds() -> impl Strategy<Value = Vec<(Vec<Step>, bool)>> {
    prop::collection::vec((prop::collection::vec(step(), 1..20), prop::bool::weighted(0.1)), 1..20)
}

fn run(namespace: NamespaceOptions, rounds: &[(Vec<Step>, bool)]) {
    let mut rig = Rig::new(namespace);
    for (steps, resets) in rounds {
        rig.round(steps, *resets);
    }
    rig.check_all();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_namespace_in_memory_is_a_disk(rounds in rounds()) {
        run(in_memory(BLOCKS * BLOCK as u64, 9), &rounds);
    }

    #[test]
    fn an_image_is_a_disk(rounds in rounds()) {
        let image = Image::new("model");
        run(image.namespace(BLOCKS * BLOCK as u64, 9), &rounds);
    }
}
