//! Follows the program while it runs: its DMA, and what it prints.
//!
//! Both are written to the screen by one thread, which gets the program's output through a pipe, so that a line of the
//! program never lands in the progress bar.

use std::fmt::{self, Display};
use std::io::{IsTerminal as _, PipeReader, Read as _, Write as _, stdout};

use ioasid::{EndpointView, Machine};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::picture::{picture, size};
use crate::report::Style;

/// How long to wait for output before looking at the DMA again.
const INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// Columns of the bar.
const BAR: u64 = 30;

/// Where the demo is shown. Whether it can be written to is no business of the demo's: nobody may be looking.
#[derive(Clone)]
pub struct Screen {
    style: Style,
    /// Whether a line can be drawn again.
    live: bool,
}

impl Screen {
    pub fn of_stdout() -> Self {
        // A bar that is broken over two lines could not be drawn again.
        let wide = rustix::termios::tcgetwinsize(stdout())
            .is_ok_and(|size| size.ws_col == 0 || u64::from(size.ws_col) > BAR + 30);
        Self { style: Style::of(&stdout()), live: stdout().is_terminal() && wide }
    }

    pub fn style(&self) -> Style {
        self.style
    }

    pub fn line(&self, text: impl Display) {
        let _ = writeln!(stdout(), "{text}");
    }

    pub fn heading(&self, text: &str) {
        self.line(format_args!("\n{}", self.style.bold(text)));
    }

    /// Draws the bar. The cursor stays before it, so that whatever is written next takes its place.
    fn draw(&self, progress: &Progress) {
        if self.live {
            let mut stdout = stdout().lock();
            let _ = write!(stdout, "{progress}\r");
            let _ = stdout.flush();
        }
    }
}

/// How much of the copying is done, always equally wide.
struct Progress {
    done: u64,
    total: u64,
}

impl Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = self.done.min(self.total);
        let full = (done * BAR / self.total) as usize;
        let (full, rest) = ("█".repeat(full), "░".repeat(BAR as usize - full));
        write!(f, "  {full}{rest}  {:>8} of {} copied", size(done >> 20 << 20), size(self.total))
    }
}

/// What came of watching.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Seen {
    /// Whether the device was seen at work, attached to an address space.
    pub attached: bool,
    /// GB/s of the copies, as the program says; 0 if it does not.
    pub rate: f64,
    /// Where the program tried the forbidden DMA, as it says.
    pub forbidden: Option<u64>,
}

impl Seen {
    /// Takes what the demo needs from one line of the program.
    fn hear(&mut self, line: &str) {
        if let Some(rate) = line.strip_prefix("rate ").and_then(|rest| rest.strip_suffix(" GB/s")) {
            self.rate = rate.trim().parse().unwrap_or(0.0);
        }
        if let Some((_, rest)) = line.strip_prefix("forbidden ").and_then(|rest| rest.split_once("IOVA 0x")) {
            let digits = rest.split(|c: char| !c.is_ascii_hexdigit()).next().unwrap_or_default();
            self.forbidden = u64::from_str_radix(digits, 16).ok();
        }
    }
}

/// Shows what happens until the program has closed its output. `total` is how many bytes it copies before it says
/// anything.
pub fn watch(machine: &Machine, mut output: PipeReader, screen: &Screen, total: u64) -> Seen {
    let mut seen = Seen::default();
    let mut spoken = false;
    let mut pending = Vec::new();
    loop {
        let ready = poll(&mut [PollFd::new(&output, PollFlags::IN)], Some(&INTERVAL));
        let view = machine.view();
        if !seen.attached && view.iter().any(at_work) {
            seen.attached = true;
            screen.heading("What the device can reach");
            screen.line(picture(&view));
        }
        let progress = Progress { done: view.iter().map(|endpoint| endpoint.traffic.1).sum(), total };
        if ready.is_ok_and(|ready| ready > 0) {
            let mut piece = [0; 4096];
            match output.read(&mut piece) {
                Ok(0) | Err(_) => break,
                Ok(length) => pending.extend_from_slice(&piece[..length]),
            }
            if !spoken {
                spoken = true;
                screen.line(&progress);
                screen.heading("What the program says");
            }
            while let Some(end) = pending.iter().position(|&byte| byte == b'\n') {
                let line = String::from_utf8_lossy(&pending[..end]).into_owned();
                pending.drain(..=end);
                seen.hear(&line);
                screen.line(format_args!("  {line}"));
            }
        } else if !spoken && seen.attached {
            screen.draw(&progress);
        }
    }
    seen
}

fn at_work(endpoint: &EndpointView) -> bool {
    endpoint.traffic != (0, 0) && !endpoint.attachments.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_is_always_equally_wide() {
        let bars: Vec<String> =
            [0, 1, 5 << 20, 1 << 29, 1 << 30, 1 << 40].map(|done| Progress { done, total: 1 << 30 }.to_string()).into();
        let widths: Vec<_> = bars.iter().map(|bar| bar.chars().count()).collect();
        assert!(widths.iter().all(|&width| width == widths[0]), "{bars:#?}");
        assert!(bars[3].contains("█░") && bars[3].contains("512 MiB of 1 GiB"), "{}", bars[3]);
        assert!(!bars[4].contains('░') && !bars[5].contains('░'), "{bars:#?}");
    }

    #[test]
    fn the_rate_and_the_forbidden_address_are_heard() {
        let mut seen = Seen::default();
        for line in [
            "device       0001:00:01.0  8086:2021",
            "rate         7.17 GB/s",
            "forbidden    write to IOVA 0x61100000, never mapped",
            "             refused, channel halted: CHANERR 0x200 (write data)",
        ] {
            seen.hear(line);
        }
        assert_eq!(seen, Seen { attached: false, rate: 7.17, forbidden: Some(0x6110_0000) });
    }
}
