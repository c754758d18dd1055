//! Threads that do the same at the same time, each on a processor of its own.

use std::hint;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use anyhow::{Result, anyhow, bail, ensure};

use crate::process;

/// Where threads wait for each other. They spin, as being woken would take longer than some of what is measured.
pub struct Meeting {
    threads: usize,
    arrived: AtomicUsize,
    somebody_left: AtomicBool,
}

impl Meeting {
    fn of(threads: usize) -> Self {
        Self { threads, arrived: AtomicUsize::new(0), somebody_left: AtomicBool::new(false) }
    }

    /// Waits until all are here.
    ///
    /// # Errors
    /// If one of them will not come, as it failed.
    pub fn meet(&self) -> Result<()> {
        let before = self.arrived.fetch_add(1, Ordering::AcqRel);
        let all = (before / self.threads + 1) * self.threads;
        self.wait_for(|| Ok((self.arrived.load(Ordering::Acquire) >= all).then_some(())))
    }

    /// Waits until `look` finds what another thread does before it goes.
    ///
    /// # Errors
    /// Of `look`; or if the other thread will not do it, as it failed.
    #[inline]
    pub fn wait_for<T>(&self, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        loop {
            // Whoever left after it had done it is no loss, so this is looked at first.
            let somebody_left = self.somebody_left.load(Ordering::Acquire);
            if let Some(found) = look()? {
                return Ok(found);
            }
            if somebody_left {
                bail!("another thread failed");
            }
            hint::spin_loop();
        }
    }
}

struct Leave<'a>(&'a Meeting);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.somebody_left.store(true, Ordering::Release);
    }
}

/// Has one thread for each of `workers` do `work`, and returns what came of it, in the same order.
///
/// # Errors
/// The first of them; also if there are fewer processors than workers.
pub fn together<W: Send, T: Send>(
    workers: &mut [W],
    work: impl Fn(&mut W, &Meeting) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let processors = process::processors()?;
    ensure!(workers.len() <= processors.len(), "this needs {} processors", workers.len());
    let meeting = Meeting::of(workers.len());
    thread::scope(|scope| {
        let (meeting, work) = (&meeting, &work);
        let started: Vec<_> = workers
            .iter_mut()
            .zip(processors)
            .map(|(worker, processor)| {
                scope.spawn(move || {
                    let _leave = Leave(meeting);
                    process::pin(processor)?;
                    work(worker, meeting)
                })
            })
            .collect();
        started.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_goes_on_before_all_are_there() {
        let arrived = AtomicUsize::new(0);
        let seen = together(&mut [(), ()], |(), meeting| {
            arrived.fetch_add(1, Ordering::Relaxed);
            meeting.meet()?;
            let seen = arrived.load(Ordering::Relaxed);
            meeting.meet()?;
            Ok(seen)
        });
        assert_eq!(seen.unwrap(), [2, 2]);
    }

    #[test]
    fn a_failure_ends_the_wait_of_the_others() {
        let result = together(&mut [0, 1], |number, meeting| {
            ensure!(*number == 0, "no");
            meeting.meet()
        });
        assert!(result.is_err());
    }
}
