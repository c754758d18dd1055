//! What machine the figures hold for: facts as the kernel states them or as they were measured, and no guesses.

use std::fmt;
use std::fs;
use std::hint;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use rustix::thread::{MembarrierCommand, membarrier};
use serde::Serialize;

use crate::pair::Pair;
use crate::process;
use crate::statistics::Spread;

/// How often a barrier is measured.
const BARRIERS: usize = 501;

/// The machine, as far as it matters to the figures. What nobody says is `None`.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// `model name` of the first processor.
    cpu: Option<String>,
    /// Processors that are online.
    cores: usize,
    /// Whether the processor says that it is a hypervisor's.
    virtual_machine: bool,
    /// Whose, in the hypervisor's own word.
    hypervisor: Option<String>,
    /// Caches of data that the first processor has, or has a part in.
    caches: Vec<Cache>,
    /// Release of the kernel.
    kernel: Option<String>,
    /// Memory in bytes.
    memory_bytes: Option<u64>,
    /// Which memory gets huge pages without asking: `always`, `madvise` or `never`.
    huge_pages: Option<String>,
    /// What `membarrier` costs a thread.
    barrier: Option<Barrier>,
    /// What there is to know of two processors together.
    pair: Option<Pair>,
    /// Whether this is root, for whom `ioasid run` has more ways to reach memory.
    root: Option<bool>,
    /// Load averages over 1, 5 and 15 minutes before the measurement.
    load: Option<[f64; 3]>,
}

/// A cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Cache {
    level: String,
    size: String,
}

/// What an expedited barrier for the threads of this process takes, in nanoseconds: what an unmap waits for.
#[derive(Debug, Clone, Copy, Serialize)]
struct Barrier {
    /// Of a process with one thread.
    alone_ns: f64,
    /// Beside a thread that runs on another processor; `None` if there is none.
    beside_one_ns: Option<f64>,
}

impl Machine {
    /// Finds it out. Call it before the measurement, which is a load itself.
    pub fn find() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let machine = Self::parse(
            &read("/proc/cpuinfo"),
            &read("/proc/meminfo"),
            &read("/proc/sys/kernel/osrelease"),
            &read("/proc/self/status"),
            &read("/proc/loadavg"),
        );
        let caches = (0..8).filter_map(|index| {
            let cache = |file| read(&format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{file}"));
            Cache::parse(&cache("level"), &cache("type"), &cache("size"))
        });
        Self {
            hypervisor: if machine.virtual_machine { hypervisor() } else { None },
            caches: caches.collect(),
            huge_pages: chosen(&read("/sys/kernel/mm/transparent_hugepage/enabled")),
            barrier: Barrier::measure(),
            pair: Pair::measure(),
            ..machine
        }
    }

    fn parse(cpuinfo: &str, meminfo: &str, osrelease: &str, status: &str, loadavg: &str) -> Self {
        let flags = field(cpuinfo, "flags").unwrap_or_default();
        let kib = field(meminfo, "MemTotal").and_then(|text| text.strip_suffix(" kB")?.parse::<u64>().ok());
        let load: Vec<f64> = loadavg.split(' ').take(3).filter_map(|text| text.parse().ok()).collect();
        Self {
            cpu: field(cpuinfo, "model name").map(str::to_owned),
            cores: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            virtual_machine: flags.split(' ').any(|flag| flag == "hypervisor"),
            hypervisor: None,
            caches: Vec::new(),
            huge_pages: None,
            barrier: None,
            pair: None,
            kernel: Some(osrelease.trim().to_owned()).filter(|text| !text.is_empty()),
            memory_bytes: kib.map(|kib| kib << 10),
            root: field(status, "Uid").map(|ids| ids.split_whitespace().nth(1) == Some("0")),
            load: load.try_into().ok(),
        }
    }
}

impl Cache {
    /// As files in `/sys` describe it; `None` if it has instructions only, or there is none.
    fn parse(level: &str, kind: &str, size: &str) -> Option<Self> {
        let kind = match kind.trim() {
            "Data" => "d",
            "Unified" => "",
            _ => return None,
        };
        Some(Self { level: format!("L{}{kind}", level.trim()), size: size.trim().to_owned() })
    }
}

impl fmt::Display for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = self.size.strip_suffix('K').and_then(|size| size.parse::<u64>().ok());
        match kib {
            Some(kib) if kib >= 1024 && kib % 1024 == 0 => write!(f, "{} {} MiB", self.level, kib / 1024),
            Some(kib) => write!(f, "{} {kib} KiB", self.level),
            None => write!(f, "{} {}", self.level, self.size),
        }
    }
}

impl Barrier {
    /// `None` if the kernel has none.
    fn measure() -> Option<Self> {
        membarrier(MembarrierCommand::RegisterPrivateExpedited).ok()?;
        let alone_ns = Self::cost()?;
        let processors = process::processors().unwrap_or_default();
        let [first, second, ..] = processors[..] else { return Some(Self { alone_ns, beside_one_ns: None }) };
        let (runs, done) = (AtomicBool::new(false), AtomicBool::new(false));
        let beside_one_ns = thread::scope(|scope| {
            scope.spawn(|| {
                let pinned = process::pin(second);
                runs.store(true, Ordering::Release);
                while pinned.is_ok() && !done.load(Ordering::Relaxed) {
                    hint::spin_loop();
                }
            });
            // In a thread of its own, as this one keeps its processors.
            let cost = scope.spawn(|| {
                process::pin(first).ok()?;
                while !runs.load(Ordering::Acquire) {
                    hint::spin_loop();
                }
                Self::cost()
            });
            let cost = cost.join().ok().flatten();
            done.store(true, Ordering::Relaxed);
            cost
        });
        Some(Self { alone_ns, beside_one_ns })
    }

    fn cost() -> Option<f64> {
        let once = |_| {
            let start = Instant::now();
            membarrier(MembarrierCommand::PrivateExpedited).ok()?;
            Some(start.elapsed().as_secs_f64() * 1e9)
        };
        Some(Spread::of((0..BARRIERS).map(once).collect::<Option<Vec<_>>>()?)?.median)
    }
}

/// What the hypervisor calls itself.
#[cfg(target_arch = "x86_64")]
fn hypervisor() -> Option<String> {
    let leaf = std::arch::x86_64::__cpuid(0x4000_0000);
    let bytes = [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes).concat();
    let name: String = bytes.iter().map(|&byte| char::from(byte)).filter(char::is_ascii_graphic).collect();
    (!name.is_empty()).then_some(name)
}

/// What the hypervisor calls itself.
#[cfg(not(target_arch = "x86_64"))]
fn hypervisor() -> Option<String> {
    None
}

/// The word in brackets.
fn chosen(choices: &str) -> Option<String> {
    Some(choices.split_once('[')?.1.split_once(']')?.0.to_owned())
}

/// The value of the first `name : value` line.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, value) = text.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == name)?;
    Some(value.trim())
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unknown = "unknown";
        let or_unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| unknown.to_owned());
        let virtual_machine = match &self.hypervisor {
            Some(name) => format!(", of a virtual machine ({name})"),
            None if self.virtual_machine => ", of a virtual machine".to_owned(),
            None => String::new(),
        };
        let caches: Vec<_> = self.caches.iter().map(Cache::to_string).collect();
        let memory = self.memory_bytes.map(|bytes| format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64));
        let barrier = match self.barrier {
            Some(Barrier { alone_ns, beside_one_ns: Some(beside) }) => {
                format!("{alone_ns:.0} ns alone, {beside:.0} ns beside a thread that runs")
            }
            Some(Barrier { alone_ns, beside_one_ns: None }) => format!("{alone_ns:.0} ns alone"),
            None => "none".to_owned(),
        };
        let load = self.load.map(|[one, five, fifteen]| format!("{one} {five} {fifteen} (1, 5, 15 minutes)"));
        writeln!(f, "CPU         {}", or_unknown(&self.cpu))?;
        writeln!(f, "cores       {}{virtual_machine}", self.cores)?;
        writeln!(f, "caches      {}", if caches.is_empty() { unknown.to_owned() } else { caches.join(", ") })?;
        writeln!(f, "kernel      {}", or_unknown(&self.kernel))?;
        writeln!(f, "memory      {}", or_unknown(&memory))?;
        writeln!(f, "huge pages  {}", or_unknown(&self.huge_pages))?;
        writeln!(f, "membarrier  {barrier}")?;
        let pair = self.pair.map(|Pair { round_trip_ns, throughput }| {
            format!("a word there and back {round_trip_ns:.0} ns; both do {throughput:.2} × one")
        });
        writeln!(f, "two cores   {}", or_unknown(&pair))?;
        writeln!(f, "user        {}", self.root.map_or(unknown, |root| if root { "root" } else { "not root" }))?;
        write!(f, "load        {}", or_unknown(&load))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_what_proc_says() {
        let cpuinfo = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu hypervisor\n\nprocessor\t: 1\n";
        let machine = Machine::parse(
            cpuinfo,
            "MemTotal:  2048 kB\n",
            "6.18.5\n",
            "Uid:\t7\t0\t0\t0\n",
            "0.10 0.20 0.30 1/99 1234\n",
        );
        assert_eq!(machine.cpu.as_deref(), Some("Some CPU"));
        assert_eq!((machine.cores, machine.virtual_machine), (2, true));
        assert_eq!(machine.kernel.as_deref(), Some("6.18.5"));
        assert_eq!(machine.memory_bytes, Some(2 << 20));
        assert_eq!(machine.root, Some(true));
        assert_eq!(machine.load, Some([0.1, 0.2, 0.3]));
    }

    #[test]
    fn what_is_missing_is_unknown() {
        let machine = Machine::parse("", "", "", "", "");
        assert!(machine.cpu.is_none() && machine.kernel.is_none() && machine.load.is_none());
        assert!(machine.to_string().contains("kernel      unknown"));
    }

    #[test]
    fn caches_are_what_sys_says() {
        let cache = |level, kind, size| Cache::parse(level, kind, size).map(|cache| cache.to_string());
        assert_eq!(cache("1\n", "Data\n", "48K\n").as_deref(), Some("L1d 48 KiB"));
        assert_eq!(cache("1\n", "Instruction\n", "32K\n"), None);
        assert_eq!(cache("3\n", "Unified\n", "32768K\n").as_deref(), Some("L3 32 MiB"));
        assert_eq!(cache("", "", ""), None);
    }

    #[test]
    fn the_choice_is_in_brackets() {
        assert_eq!(chosen("always [madvise] never\n").as_deref(), Some("madvise"));
        assert_eq!(chosen(""), None);
    }

    #[test]
    fn it_fits_in_a_terminal() {
        assert!(Machine::find().to_string().lines().all(|line| line.chars().count() <= 80));
    }
}
