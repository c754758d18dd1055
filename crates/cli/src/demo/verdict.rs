//! Whether everything that the demo promises has happened.

use anyhow::{Result, bail, ensure};

use super::watch::Seen;
use crate::report::{Ending, Finding, Seconds};
use crate::run::Outcome;

/// The forbidden DMA, stopped.
#[derive(Debug, PartialEq)]
pub struct Stopped {
    /// The device that tried.
    pub device: String,
    /// Where.
    pub iova: u64,
    /// How often.
    pub count: u64,
    /// When first.
    pub first: Seconds,
}

/// Judges a run that was to copy `bytes` bytes. The program itself says by its exit status whether the copies were
/// equal, the forbidden DMA was refused and memory stayed untouched; the rest is what the IOMMU has seen.
///
/// # Errors
/// The first thing that is not as promised.
pub fn judge(outcome: &Outcome, seen: &Seen, bytes: u64) -> Result<Stopped> {
    match outcome.ending {
        Ending::Status(0) => {}
        Ending::Status(status) => bail!("the program exited with status {status}"),
        Ending::Signal(signal) => bail!("the program was ended by signal {signal}"),
    }
    let written: u64 = outcome.report.traffic.iter().map(|device| device.bytes_written).sum();
    ensure!(written >= bytes, "{bytes} bytes were to be copied by DMA, and the device wrote {written}");
    ensure!(seen.attached, "the device was not seen attached while it worked");
    ensure!(seen.rate > 0.0, "the program gave no throughput");
    let Some(tried) = seen.forbidden else { bail!("the program did not say where it tried the forbidden DMA") };
    match &outcome.report.findings[..] {
        [Finding::DmaFault { device, iova, access: "write", reason: "not-mapped", count, first, .. }]
            if iova.0 == tried =>
        {
            Ok(Stopped { device: device.clone(), iova: tried, count: *count, first: *first })
        }
        [] => bail!("the forbidden DMA was not reported"),
        _ => bail!("one finding was to be expected, a write at IOVA {tried:#x}, where nothing is mapped"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Hex, Report, Traffic};

    fn fault(iova: u64, access: &'static str) -> Finding {
        Finding::DmaFault {
            device: "0001:00:01.0".into(),
            pasid: None,
            iova: Hex(iova),
            access,
            reason: "not-mapped",
            count: 1,
            first: Seconds(0.5),
            command: None,
        }
    }

    fn outcome(ending: Ending, bytes_written: u64, findings: Vec<Finding>) -> Outcome {
        let traffic = vec![Traffic { device: "0001:00:01.0".into(), bytes_read: 0, bytes_written }];
        Outcome {
            ending,
            report: Report { format: 1, program: vec![], ending, seconds: Seconds(1.0), findings, traffic },
        }
    }

    fn seen() -> Seen {
        Seen { attached: true, rate: 5.0, forbidden: Some(0x5000) }
    }

    const GOOD: Ending = Ending::Status(0);

    #[test]
    fn a_run_as_promised_is_good() {
        let stopped = judge(&outcome(GOOD, 1000, vec![fault(0x5000, "write")]), &seen(), 1000).unwrap();
        assert_eq!(stopped, Stopped { device: "0001:00:01.0".into(), iova: 0x5000, count: 1, first: Seconds(0.5) });
    }

    #[test]
    fn each_broken_promise_is_named() {
        let expected = || vec![fault(0x5000, "write")];
        for (outcome, seen, part) in [
            (outcome(Ending::Status(1), 1000, expected()), seen(), "status 1"),
            (outcome(Ending::Signal(9), 1000, expected()), seen(), "signal 9"),
            (outcome(GOOD, 999, expected()), seen(), "the device wrote 999"),
            (outcome(GOOD, 1000, vec![]), seen(), "not reported"),
            (outcome(GOOD, 1000, vec![fault(0x6000, "write")]), seen(), "0x5000"),
            (outcome(GOOD, 1000, vec![fault(0x5000, "read")]), seen(), "a write"),
            (outcome(GOOD, 1000, vec![fault(0x5000, "write"), fault(0x6000, "read")]), seen(), "one finding"),
            (outcome(GOOD, 1000, expected()), Seen { attached: false, ..seen() }, "attached"),
            (outcome(GOOD, 1000, expected()), Seen { rate: 0.0, ..seen() }, "throughput"),
            (outcome(GOOD, 1000, expected()), Seen { forbidden: None, ..seen() }, "where"),
        ] {
            let error = judge(&outcome, &seen, 1000).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
