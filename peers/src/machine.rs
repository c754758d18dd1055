//! What machine the figures hold for: facts as `/proc` states them, and no guesses.

use std::fmt;
use std::fs;

use serde::Serialize;

/// The machine, as far as it matters to the figures. What `/proc` does not say is `None`.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// `model name` of the first processor.
    cpu: Option<String>,
    /// Processors that are online.
    cores: usize,
    /// Whether the processor says that it is a hypervisor's.
    virtual_machine: bool,
    /// Release of the kernel.
    kernel: Option<String>,
    /// Memory in bytes.
    memory_bytes: Option<u64>,
    /// Whether this is root, for whom `ioasid run` has more ways to reach memory.
    root: Option<bool>,
    /// Load averages over 1, 5 and 15 minutes before the measurement.
    load: Option<[f64; 3]>,
}

impl Machine {
    /// Reads the facts. Call it before the measurement, which is a load itself.
    pub fn from_proc() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self::parse(
            &read("/proc/cpuinfo"),
            &read("/proc/meminfo"),
            &read("/proc/sys/kernel/osrelease"),
            &read("/proc/self/status"),
            &read("/proc/loadavg"),
        )
    }

    fn parse(cpuinfo: &str, meminfo: &str, osrelease: &str, status: &str, loadavg: &str) -> Self {
        let flags = field(cpuinfo, "flags").unwrap_or_default();
        let kib = field(meminfo, "MemTotal").and_then(|text| text.strip_suffix(" kB")?.parse::<u64>().ok());
        let load: Vec<f64> = loadavg.split(' ').take(3).filter_map(|text| text.parse().ok()).collect();
        Self {
            cpu: field(cpuinfo, "model name").map(str::to_owned),
            cores: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            virtual_machine: flags.split(' ').any(|flag| flag == "hypervisor"),
            kernel: Some(osrelease.trim().to_owned()).filter(|text| !text.is_empty()),
            memory_bytes: kib.map(|kib| kib << 10),
            root: field(status, "Uid").map(|ids| ids.split_whitespace().nth(1) == Some("0")),
            load: load.try_into().ok(),
        }
    }
}

/// The value of the first `name : value` line.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, value) = text.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == name)?;
    Some(value.trim())
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unknown = "unknown";
        writeln!(f, "CPU     {}", self.cpu.as_deref().unwrap_or(unknown))?;
        writeln!(f, "cores   {}{}", self.cores, if self.virtual_machine { ", of a virtual machine" } else { "" })?;
        writeln!(f, "kernel  {}", self.kernel.as_deref().unwrap_or(unknown))?;
        match self.memory_bytes {
            Some(bytes) => writeln!(f, "memory  {:.1} GiB", bytes as f64 / (1u64 << 30) as f64)?,
            None => writeln!(f, "memory  {unknown}")?,
        }
        let user = self.root.map_or(unknown, |root| if root { "root" } else { "not root" });
        writeln!(f, "user    {user}")?;
        match self.load {
            Some([one, five, fifteen]) => write!(f, "load    {one} {five} {fifteen} (1, 5, 15 minutes) at the start"),
            None => write!(f, "load    {unknown}"),
        }
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
        assert!(machine.to_string().contains("kernel  unknown"));
    }
}
