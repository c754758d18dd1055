//! Reservations (base specification, 8.19): which hosts may write, or read, a namespace.
//!
//! Hosts are known by their identifiers. A host that changes its own is another host.

use super::spec::status::Status;

/// Hosts that can register.
pub(super) const MOST_REGISTRANTS: usize = 64;

/// A host's identifier, of 8 bytes or 16.
pub(super) type HostId = [u8; 16];

/// What a reservation lets other hosts do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    WriteExclusive = 1,
    ExclusiveAccess = 2,
    WriteExclusiveRegistrants = 3,
    ExclusiveAccessRegistrants = 4,
    WriteExclusiveAll = 5,
    ExclusiveAccessAll = 6,
}

impl Kind {
    pub(super) fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::WriteExclusive,
            2 => Self::ExclusiveAccess,
            3 => Self::WriteExclusiveRegistrants,
            4 => Self::ExclusiveAccessRegistrants,
            5 => Self::WriteExclusiveAll,
            6 => Self::ExclusiveAccessAll,
            _ => return None,
        })
    }

    /// Every registrant holds it.
    fn is_of_all(self) -> bool {
        matches!(self, Self::WriteExclusiveAll | Self::ExclusiveAccessAll)
    }

    fn allows_registrants(self) -> bool {
        !matches!(self, Self::WriteExclusive | Self::ExclusiveAccess)
    }

    fn allows_reads(self) -> bool {
        matches!(self, Self::WriteExclusive | Self::WriteExclusiveRegistrants | Self::WriteExclusiveAll)
    }
}

/// A host that has registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Registrant {
    pub(super) host: HostId,
    pub(super) key: u64,
}

/// What is registered, and reserved.
#[derive(Debug, Default)]
pub(super) struct Reservation {
    pub(super) registrants: Vec<Registrant>,
    /// What kind, and by whom; of all registrants, by the first that asked.
    held: Option<(Kind, HostId)>,
    /// Counts changes of registrants and of reservations by force.
    pub(super) generation: u32,
    /// Of which of its changes the host is not told.
    pub(super) masked: u32,
    /// It is kept over a loss of power, as the host wants it: there is none while the controller is there.
    pub(super) persists: bool,
}

const CONFLICT: Status = Status::RESERVATION_CONFLICT;
const INVALID: Status = Status::INVALID_FIELD;

impl Reservation {
    fn find(&self, host: &HostId) -> Option<usize> {
        self.registrants.iter().position(|registrant| registrant.host == *host)
    }

    fn key_of(&self, host: &HostId) -> Option<u64> {
        self.find(host).map(|index| self.registrants[index].key)
    }

    pub(super) fn kind(&self) -> Option<Kind> {
        self.held.map(|(kind, _)| kind)
    }

    /// Whether a host holds the reservation.
    pub(super) fn is_held_by(&self, host: &HostId) -> bool {
        self.held
            .is_some_and(|(kind, holder)| if kind.is_of_all() { self.find(host).is_some() } else { holder == *host })
    }

    /// Checks that a host may read, or write.
    pub(super) fn check(&self, host: &HostId, writes: bool) -> Result<(), Status> {
        let Some((kind, _)) = self.held else { return Ok(()) };
        let may = self.is_held_by(host)
            || !writes && kind.allows_reads()
            || kind.allows_registrants() && self.find(host).is_some();
        if may { Ok(()) } else { Err(CONFLICT) }
    }

    /// Reservation Register. `action` 0 registers, 1 unregisters, 2 replaces the key.
    pub(super) fn register(
        &mut self,
        host: &HostId,
        action: u32,
        ignores_key: bool,
        [current, new]: [u64; 2],
    ) -> Result<(), Status> {
        let known = self.key_of(host);
        match action {
            0 if known.is_some_and(|key| key != new) => return Err(CONFLICT),
            0 if known.is_some() => return Ok(()),
            0 => self.add(host, new)?,
            1 | 2 => {
                let index = match (self.find(host), action) {
                    (Some(index), _) if ignores_key || self.registrants[index].key == current => index,
                    (None, 2) if ignores_key => {
                        self.add(host, new)?;
                        self.registrants.len() - 1
                    }
                    _ => return Err(CONFLICT),
                };
                if action == 2 {
                    self.registrants[index].key = new;
                } else {
                    self.unregister(index);
                }
            }
            _ => return Err(INVALID),
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    fn add(&mut self, host: &HostId, key: u64) -> Result<(), Status> {
        if self.registrants.len() == MOST_REGISTRANTS {
            return Err(Status::INTERNAL_ERROR);
        }
        self.registrants.push(Registrant { host: *host, key });
        Ok(())
    }

    /// Forgets a registrant, and what it held.
    fn unregister(&mut self, index: usize) {
        let gone = self.registrants.remove(index);
        if let Some((kind, holder)) = &mut self.held {
            if kind.is_of_all() {
                match self.registrants.first() {
                    Some(first) if *holder == gone.host => *holder = first.host,
                    Some(_) => {}
                    None => self.held = None,
                }
            } else if *holder == gone.host {
                self.held = None;
            }
        }
    }

    /// Reservation Acquire. `action` 0 acquires, 1 preempts, 2 preempts and aborts.
    pub(super) fn acquire(
        &mut self,
        host: &HostId,
        action: u32,
        kind: u32,
        [current, preempted]: [u64; 2],
    ) -> Result<(), Status> {
        let kind = Kind::from_number(kind).ok_or(INVALID)?;
        if self.key_of(host) != Some(current) {
            return Err(CONFLICT);
        }
        match action {
            0 => match self.held {
                Some((held, _)) if self.is_held_by(host) && held == kind => Ok(()),
                Some(_) => Err(CONFLICT),
                None => {
                    self.held = Some((kind, *host));
                    Ok(())
                }
            },
            1 | 2 => self.preempt(host, kind, preempted),
            _ => Err(INVALID),
        }
    }

    fn preempt(&mut self, host: &HostId, kind: Kind, preempted: u64) -> Result<(), Status> {
        let holder_key =
            self.held.and_then(|(held, holder)| if held.is_of_all() { Some(0) } else { self.key_of(&holder) });
        let is_known = self.registrants.iter().any(|registrant| registrant.key == preempted);
        if holder_key == Some(preempted) {
            // A key of zero stands for all registrants, where they hold the reservation together.
            let of_all = preempted == 0;
            self.registrants.retain(|other| other.host == *host || !(of_all || other.key == preempted));
            self.held = Some((kind, *host));
        } else {
            if !is_known || preempted == 0 {
                return Err(if preempted == 0 { INVALID } else { CONFLICT });
            }
            while let Some(index) = self.registrants.iter().position(|other| other.key == preempted) {
                self.unregister(index);
            }
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    /// Reservation Release. `action` 0 releases, 1 clears.
    pub(super) fn release(&mut self, host: &HostId, action: u32, kind: u32, current: u64) -> Result<(), Status> {
        if self.key_of(host) != Some(current) {
            return Err(CONFLICT);
        }
        match action {
            0 => {
                if self.is_held_by(host) {
                    if self.kind().map(|held| held as u32) != Some(kind) {
                        return Err(INVALID);
                    }
                    self.held = None;
                }
                Ok(())
            }
            1 => {
                self.registrants.clear();
                self.held = None;
                self.generation = self.generation.wrapping_add(1);
                Ok(())
            }
            _ => Err(INVALID),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: HostId = [1; 16];
    const B: HostId = [2; 16];
    const C: HostId = [3; 16];

    fn two() -> Reservation {
        let mut reservation = Reservation::default();
        reservation.register(&A, 0, false, [0, 0xA]).unwrap();
        reservation.register(&B, 0, false, [0, 0xB]).unwrap();
        reservation
    }

    #[test]
    fn each_kind_lets_in_whom_the_table_says() {
        // Holder, registrant, stranger: (may read, may write).
        let all = (true, true);
        for (kind, registrant, stranger) in [
            (1, (true, false), (true, false)),
            (2, (false, false), (false, false)),
            (3, all, (true, false)),
            (4, all, (false, false)),
            (5, all, (true, false)),
            (6, all, (false, false)),
        ] {
            let mut reservation = two();
            reservation.acquire(&A, 0, kind, [0xA, 0]).unwrap();
            let may = |host| (reservation.check(host, false).is_ok(), reservation.check(host, true).is_ok());
            assert_eq!([may(&A), may(&B), may(&C)], [all, registrant, stranger], "kind {kind}");
            assert_eq!(reservation.is_held_by(&B), kind >= 5);
        }
    }

    #[test]
    fn a_reservation_is_taken_by_its_key() {
        let mut reservation = two();
        reservation.acquire(&A, 0, 1, [0xA, 0]).unwrap();
        assert_eq!(reservation.acquire(&B, 0, 1, [0xB, 0]), Err(CONFLICT));
        assert_eq!(reservation.acquire(&B, 1, 1, [0xB, 0xC]), Err(CONFLICT));
        assert_eq!(reservation.acquire(&B, 1, 1, [0xB, 0]), Err(INVALID));
        assert_eq!(reservation.acquire(&B, 1, 9, [0xB, 0xA]), Err(INVALID));
        assert_eq!(reservation.acquire(&B, 1, 2, [0xA, 0xA]), Err(CONFLICT));
        reservation.acquire(&B, 1, 2, [0xB, 0xA]).unwrap();
        assert!(reservation.is_held_by(&B) && !reservation.is_held_by(&A));
        assert_eq!(reservation.registrants, [Registrant { host: B, key: 0xB }]);
        assert_eq!(reservation.release(&B, 0, 1, 0xB), Err(INVALID));
        reservation.release(&B, 0, 2, 0xB).unwrap();
        assert_eq!(reservation.kind(), None);
    }

    #[test]
    fn a_registrant_that_goes_takes_its_reservation_with_it() {
        let mut reservation = two();
        reservation.acquire(&A, 0, 3, [0xA, 0]).unwrap();
        assert_eq!(reservation.register(&A, 1, false, [0xB, 0]), Err(CONFLICT));
        reservation.register(&A, 1, false, [0xA, 0]).unwrap();
        assert_eq!(reservation.kind(), None);
        // One that all hold stays until the last has gone.
        let mut reservation = two();
        reservation.acquire(&A, 0, 5, [0xA, 0]).unwrap();
        reservation.register(&A, 1, true, [0, 0]).unwrap();
        assert!(reservation.is_held_by(&B));
        reservation.register(&B, 1, true, [0, 0]).unwrap();
        assert_eq!(reservation.kind(), None);
        assert_eq!(reservation.generation, 4);
    }

    #[test]
    fn clearing_forgets_all_and_there_is_room_for_so_many() {
        let mut reservation = two();
        reservation.acquire(&A, 0, 1, [0xA, 0]).unwrap();
        reservation.release(&B, 1, 0, 0xB).unwrap();
        assert!(reservation.registrants.is_empty() && reservation.kind().is_none());
        for number in 0..MOST_REGISTRANTS as u8 {
            reservation.register(&[number; 16], 0, false, [0, 1]).unwrap();
        }
        let refused = reservation.register(&[255; 16], 0, false, [0, 1]);
        assert_eq!(refused, Err(Status::INTERNAL_ERROR));
        assert_eq!(reservation.register(&[255; 16], 2, true, [0, 1]), Err(Status::INTERNAL_ERROR));
        reservation.register(&[0; 16], 1, false, [1, 0]).unwrap();
        reservation.register(&[255; 16], 0, false, [0, 1]).unwrap();
    }
}
