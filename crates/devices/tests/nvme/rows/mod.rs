//! Each command, and each status that it can give: one row each, in groups that have a controller of their own.

use ioasid_devices::nvme::NvmeOptions;
use ioasid_devices::nvme::spec::command::{Command, admin};
use ioasid_devices::nvme::spec::status::Status;

use crate::bench::{Bench, CONFIGURATION, With, command, in_memory, status};

mod features;
mod identify;
mod io;
mod logs;
mod namespaces;
mod opcodes;
mod pointers;
mod queues;
mod reservations;

/// Which queue a command goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum On {
    Admin,
    Io,
}

/// A command, and what becomes of it. Rows of a group follow one another.
pub(super) struct Row {
    what: String,
    on: On,
    command: Command,
    /// Bytes that the host puts somewhere first.
    memory: Vec<(u64, Vec<u8>)>,
    status: Status,
    /// What the result is, if that matters.
    result: Option<u64>,
    /// What the host finds somewhere then.
    found: Vec<(u64, Vec<u8>)>,
}

pub(super) fn row(on: On, what: impl Into<String>, command: Command, status: Status) -> Row {
    Row { what: what.into(), on, command, memory: Vec::new(), status, result: None, found: Vec::new() }
}

pub(super) fn admin(what: impl Into<String>, command: Command, status: Status) -> Row {
    row(On::Admin, what, command, status)
}

pub(super) fn io(what: impl Into<String>, command: Command, status: Status) -> Row {
    row(On::Io, what, command, status)
}

impl Row {
    fn with(mut self, at: u64, bytes: impl Into<Vec<u8>>) -> Self {
        self.memory.push((at, bytes.into()));
        self
    }

    fn with_u64s(self, at: u64, values: &[u64]) -> Self {
        self.with(at, values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())
    }

    fn result(mut self, result: u64) -> Self {
        self.result = Some(result);
        self
    }

    fn finds(mut self, at: u64, bytes: impl Into<Vec<u8>>) -> Self {
        self.found.push((at, bytes.into()));
        self
    }
}

/// Rows with a controller.
pub(super) struct Group {
    name: &'static str,
    options: NvmeOptions,
    rows: Vec<Row>,
}

impl Group {
    /// With 1 MiB of blocks of 512 bytes in memory.
    fn new(name: &'static str, rows: Vec<Row>) -> Self {
        let options = NvmeOptions { namespaces: vec![in_memory(1 << 20, 9)], ..NvmeOptions::default() };
        Self { name, options, rows }
    }

    fn with(mut self, change: impl FnOnce(&mut NvmeOptions)) -> Self {
        change(&mut self.options);
        self
    }

    /// Runs the rows; adds what is not as it should be.
    fn run(&self, wrong: &mut Vec<String>) {
        let mut bench = Bench::with(&self.options);
        bench.enable(CONFIGURATION);
        let mut pair = bench.pair(1, 64);
        for row in &self.rows {
            for (at, bytes) in &row.memory {
                bench.memory.set(*at, bytes);
            }
            let completion = match row.on {
                On::Admin => bench.admin(row.command),
                On::Io => bench.run(&mut pair, row.command),
            };
            let (got, result) = (status(&completion), completion.result.get());
            let queue = u16::from(row.on == On::Io);
            let is_right = got.code() == row.status.code()
                && got.is_final() == row.status.is_final()
                && row.result.is_none_or(|wanted| wanted == result)
                && completion.queue.get() == queue
                && row.found.iter().all(|(at, bytes)| bench.memory.get(*at, bytes.len()) == *bytes);
            if !is_right {
                let found: Vec<_> = row.found.iter().map(|(at, bytes)| bench.memory.get(*at, bytes.len())).collect();
                let wanted: Vec<_> = row.found.iter().map(|(_, bytes)| bytes).collect();
                wrong.push(format!(
                    "{}: {}: {got:?} ({result:#x}), not {:?} ({:x?}); {found:x?}, not {wanted:x?}",
                    self.name, row.what, row.status, row.result
                ));
            }
        }
        // Whatever it was, the controller goes on.
        let flushed = bench.status(&mut pair, command(0, 0xFFFF_FFFF));
        assert!(flushed.is_success() || flushed.code() == Status::SANITIZE_IN_PROGRESS.code(), "{}", self.name);
    }
}

fn groups() -> Vec<Group> {
    [
        opcodes::groups(),
        queues::groups(),
        identify::groups(),
        features::groups(),
        logs::groups(),
        namespaces::groups(),
        io::groups(),
        pointers::groups(),
        reservations::groups(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[test]
fn every_command_gives_the_status_that_the_specification_gives() {
    let mut wrong = Vec::new();
    let groups = groups();
    groups.iter().for_each(|group| group.run(&mut wrong));
    let rows: usize = groups.iter().map(|group| group.rows.len()).sum();
    assert!(wrong.is_empty(), "{} of {rows} rows:\n{}", wrong.len(), wrong.join("\n"));
    assert!(rows >= 300, "{rows} rows");
    println!("{rows} rows");
}

/// Get or set features.
pub(super) fn feature(opcode: u8, word10: u32, word11: u32, namespace: u32) -> Command {
    command(opcode, namespace).word(10, word10).word(11, word11).data(crate::bench::DATA, 0)
}

pub(super) fn set(id: u32, value: u32) -> Command {
    feature(admin::SET_FEATURES, id, value, 0)
}

pub(super) fn get(id: u32) -> Command {
    feature(admin::GET_FEATURES, id, 0, 0)
}
