//! The turn to receive the next call. One thread at a time has it, and answers the call, too.
//!
//! The kernel wakes every thread that waits on the listener for every call. A thread that it wakes alone, on the
//! caller's own processor, answers fastest. So only one thread receives. An answer may wait, for memory of a program or
//! for a device, and must not keep other calls waiting: a second thread watches, and takes the turn from an answer that
//! takes too long. After that has happened, each thread gives its turn away before it answers, for the next few calls.
//!
//! ```text
//!   receive ──► begin ──► answer ──► end ──► receive          the thread with the turn
//!                  ▲                  │
//!   watch ─────────┘ too long         └──► wait               the others: one watches, a few wait
//! ```

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often the watching thread looks while calls arrive: what an answer may take before others are answered, too.
const LOOK: Duration = Duration::from_micros(500);
/// Looks at nothing new after which it looks half as often; and again after each, until it looks as seldom as this. To
/// wake it instead, when a call arrives, would cost each call that comes alone more than these looks cost together.
const LOOKS: u32 = 40;
const SELDOM: Duration = Duration::from_millis(64);
/// Looks at nothing new, some second of them, after which it looks no more: then the next call wakes it after all.
const LAST_LOOK: u32 = 64;
/// Calls for which each thread gives its turn away at once when one of them has taken too long.
const EAGER: u32 = 8;
/// Threads without the turn that stay.
const KEPT: usize = 2;

/// The turns of all threads of a listener.
#[derive(Default)]
pub(super) struct Turns {
    /// Counts calls; odd while the thread with the turn answers one.
    progress: AtomicU64,
    /// Calls for which the turn is still to be given away.
    eager: AtomicU32,
    /// Whether the watching thread sleeps until a call arrives.
    sleeps: AtomicBool,
    others: Mutex<Others>,
    /// For the watching thread: the turn is to be had, or a call has arrived while it sleeps.
    watched: Condvar,
    /// For the others that wait: none of them watches, or the turn is to be had.
    changed: Condvar,
}

/// The threads without the turn.
#[derive(Default)]
struct Others {
    /// How many wait, with the one that watches.
    waiting: usize,
    watching: bool,
    /// Turns that were given away and that no thread has taken yet.
    offered: usize,
    /// No call will arrive any more.
    ended: bool,
}

/// What the watching thread has seen.
#[derive(Clone, Copy)]
struct Seen {
    progress: u64,
    /// Looks since that was news.
    looks: u32,
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, Others> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread with the turn has received a call. Returns the number of its answer; and whether there has to be
    /// another thread, or the next call waits for this answer.
    pub(super) fn begin(&self) -> (u64, bool) {
        let number = self.progress.fetch_add(1, SeqCst) + 1;
        if self.eager.load(SeqCst) > 0 && self.take(number) {
            self.eager.fetch_sub(1, SeqCst);
            let mut others = self.lock();
            others.offered += 1;
            if others.waiting > 1 { &self.changed } else { &self.watched }.notify_one();
            return (number, others.waiting < others.offered);
        }
        if self.sleeps.load(SeqCst) {
            let _others = self.lock();
            self.watched.notify_one();
        }
        (number, false)
    }

    /// The thread has given the answer of this number. Whether it still has the turn.
    pub(super) fn end(&self, number: u64) -> bool {
        self.take(number)
    }

    /// Waits until this thread has the turn. False if it is not needed any more.
    pub(super) fn wait(&self) -> bool {
        let mut others = self.lock();
        if others.offered == 0 && others.waiting >= KEPT {
            return false;
        }
        others.waiting += 1;
        let mut seen = Seen { progress: self.progress.load(SeqCst), looks: 0 };
        let has_turn = loop {
            if others.ended {
                break false;
            } else if others.offered > 0 {
                others.offered -= 1;
                break true;
            } else if others.watching {
                others = self.changed.wait(others).unwrap_or_else(PoisonError::into_inner);
            } else {
                others.watching = true;
                others = self.sleep(others, seen);
                others.watching = false;
                let now = self.progress.load(SeqCst);
                if now != seen.progress {
                    seen = Seen { progress: now, looks: 0 };
                } else if now % 2 == 1 && self.take(now) {
                    self.eager.store(EAGER, SeqCst);
                    break true;
                } else {
                    seen.looks += 1;
                }
            }
        };
        others.waiting -= 1;
        // Now another thread has to watch. If a turn is offered still, the watching thread may be the only one to take
        // it.
        self.changed.notify_one();
        if others.offered > 0 {
            self.watched.notify_one();
        }
        has_turn
    }

    /// Sleeps until it is time for the next look, or the turn is to be had.
    fn sleep<'a>(&'a self, others: MutexGuard<'a, Others>, seen: Seen) -> MutexGuard<'a, Others> {
        if seen.looks >= LAST_LOOK {
            self.sleeps.store(true, SeqCst);
            // A call that arrived before this store sends no notice.
            let is_quiet = self.progress.load(SeqCst) == seen.progress && seen.progress.is_multiple_of(2);
            let others =
                if is_quiet { self.watched.wait(others).unwrap_or_else(PoisonError::into_inner) } else { others };
            self.sleeps.store(false, SeqCst);
            return others;
        }
        let seldom = LOOK.saturating_mul(1 << seen.looks.saturating_sub(LOOKS).min(10));
        self.watched.wait_timeout(others, seldom.min(SELDOM)).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Whether no thread waits, so that one has to be started to watch.
    pub(super) fn is_alone(&self) -> bool {
        self.lock().waiting == 0
    }

    /// No call will arrive any more.
    pub(super) fn finish(&self) {
        self.lock().ended = true;
        self.watched.notify_one();
        self.changed.notify_all();
    }

    /// Ends the answer of this number, as far as turns go; false if another thread has.
    fn take(&self, number: u64) -> bool {
        self.progress.compare_exchange(number, number + 1, SeqCst, SeqCst).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    fn wait_until(what: impl Fn() -> bool) {
        while !what() {
            thread::yield_now();
        }
    }

    #[test]
    fn a_thread_that_answers_soon_keeps_its_turn() {
        let turns = Turns::default();
        for _ in 0..1000 {
            let (number, needs_another) = turns.begin();
            assert!(!needs_another);
            assert!(turns.end(number));
        }
    }

    #[test]
    fn a_turn_is_taken_from_an_answer_that_waits() {
        let turns = Arc::new(Turns::default());
        let other = thread::spawn({
            let turns = turns.clone();
            move || turns.wait()
        });
        wait_until(|| turns.lock().watching);
        let (number, _) = turns.begin();
        assert!(other.join().unwrap(), "the other has the turn");
        assert!(!turns.end(number));
        // From now on each gives it away, here to a thread that has to be started.
        let (number, needs_another) = turns.begin();
        assert!(needs_another);
        assert!(turns.wait(), "it is to be had");
        assert!(!turns.end(number));
    }

    #[test]
    fn a_watching_thread_that_sleeps_is_woken_by_a_call() {
        let turns = Arc::new(Turns::default());
        let other = thread::spawn({
            let turns = turns.clone();
            move || turns.wait()
        });
        wait_until(|| turns.sleeps.load(SeqCst));
        let (number, _) = turns.begin();
        assert!(other.join().unwrap(), "the other has the turn");
        assert!(!turns.end(number));
    }

    #[test]
    fn turns_go_round_and_end() {
        let turns = Arc::new(Turns::default());
        let others: Vec<_> = (0..2 * KEPT)
            .map(|_| {
                let turns = turns.clone();
                thread::spawn(move || turns.wait())
            })
            .collect();
        wait_until(|| turns.lock().waiting == KEPT);
        turns.eager.store(2, SeqCst);
        turns.begin();
        turns.begin();
        wait_until(|| turns.lock().offered == 0);
        turns.finish();
        let had = others.into_iter().filter_map(|other| other.join().ok()).filter(|had| *had).count();
        assert_eq!(had, 2);
        assert!(!turns.wait(), "it has ended");
    }
}
