//! What the server of a connection has offered: the addresses its client may probe.
//!
//! Pure. Some of what is refused is kept: a peer offers its addresses at once, and that one is near
//! may be found out later; and it offers new ones before it takes back the old, so that there may be
//! too many for a moment. The engine is then told, or told the contrary, in
//! [corrections](Offers::corrections) that go with another packet.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::SocketAddr,
};

use anyreach_wire::{
    address::Address,
    frames::{AddAddress, Frame, RemoveAddress},
    varint::VarInt,
};

use super::{MAX_CANDIDATES, filter::Refusal, withdrawn::Withdrawn};

/// Offers kept, among them those the engine is not told of.
const MAX_KEPT: usize = 2 * MAX_CANDIDATES;

/// What is offered, by sequence number.
#[derive(Debug, Default)]
pub(super) struct Offers {
    offered: BTreeMap<VarInt, Offer>,
    withdrawn: Withdrawn,
}

#[derive(Debug)]
struct Offer {
    address: Address,
    /// Whether nothing speaks against the address.
    good: bool,
    /// Whether the engine should know of it.
    wanted: bool,
    /// Whether it does.
    known: bool,
}

/// What becomes of an ADD_ADDRESS frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The engine may have it. Whether it is news.
    Pass(bool),
    /// It may not, for a reason that is counted.
    Refuse(Refused),
    /// It says nothing new, or nothing true any more.
    Stale,
}

/// Why an offer is not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Address(Refusal),
    /// As many as may be.
    Limit,
}

impl Offers {
    /// The peer offers an address, of which this is thought.
    pub(super) fn add(&mut self, add: AddAddress, judged: Result<(), Refusal>) -> Verdict {
        let full = self.offered.len() >= MAX_KEPT;
        let room = self.wanted() < MAX_CANDIDATES;
        match (self.offered.entry(add.sequence), judged) {
            // A number stands for one address: another one is a new advertisement.
            (Entry::Occupied(known), _) if known.get().address != add.address => Verdict::Stale,
            (Entry::Occupied(known), _) if known.get().known => Verdict::Pass(false),
            (Entry::Occupied(_), _) => Verdict::Stale,
            (Entry::Vacant(_), _) if self.withdrawn.contains(add.sequence) => Verdict::Stale,
            (Entry::Vacant(_), Err(refusal @ (Refusal::Scope | Refusal::Port))) => {
                Verdict::Refuse(Refused::Address(refusal))
            }
            (Entry::Vacant(_), _) if full => Verdict::Refuse(Refused::Limit),
            (Entry::Vacant(new), judged) => {
                let good = judged.is_ok();
                let taken = good && room;
                new.insert(Offer {
                    address: add.address,
                    good,
                    wanted: taken,
                    known: taken,
                });
                match judged {
                    Ok(()) if room => Verdict::Pass(true),
                    Ok(()) => Verdict::Refuse(Refused::Limit),
                    Err(refusal) => Verdict::Refuse(Refused::Address(refusal)),
                }
            }
        }
    }

    /// The peer takes an offer back. Whether the engine knew of it.
    pub(super) fn remove(&mut self, sequence: VarInt) -> bool {
        self.withdrawn.insert(sequence);
        let removed = self.offered.remove(&sequence);
        self.choose();
        removed.is_some_and(|offer| offer.known)
    }

    /// What the engine has.
    pub(super) fn known(&self) -> impl Iterator<Item = (VarInt, Address)> {
        self.offered
            .iter()
            .filter(|(_, offer)| offer.known)
            .map(|(sequence, offer)| (*sequence, offer.address))
    }

    /// Judges everything anew.
    pub(super) fn judge(&mut self, judge: impl Fn(Address) -> Result<(), Refusal>) {
        for offer in self.offered.values_mut() {
            offer.good = judge(offer.address).is_ok();
        }
        self.choose();
    }

    fn wanted(&self) -> usize {
        let wanted = self.offered.values().filter(|offer| offer.wanted);
        wanted.count()
    }

    /// Chooses what the engine should know of: what it knows already, then the oldest.
    fn choose(&mut self) {
        for offer in self.offered.values_mut() {
            offer.wanted &= offer.good;
        }
        let room = MAX_CANDIDATES.saturating_sub(self.wanted());
        let waiting = self.offered.values_mut();
        let waiting = waiting.filter(|offer| offer.good && !offer.wanted);
        for offer in waiting.take(room) {
            offer.wanted = true;
        }
    }

    /// Whether the engine is to be told something.
    pub(super) fn is_correct(&self) -> bool {
        self.offered
            .values()
            .all(|offer| offer.wanted == offer.known)
    }

    /// What the engine is to be told.
    pub(super) fn corrections(&self) -> impl Iterator<Item = Frame> {
        self.offered
            .iter()
            .filter(|(_, offer)| offer.wanted != offer.known)
            .map(|(sequence, offer)| match offer.wanted {
                true => Frame::AddAddress(AddAddress {
                    sequence: *sequence,
                    address: offer.address,
                }),
                false => Frame::RemoveAddress(RemoveAddress {
                    sequence: *sequence,
                }),
            })
    }

    /// Takes in what the engine has. Whether something that was to be told has been.
    pub(super) fn confirm(&mut self, engine: &[SocketAddr]) -> bool {
        let mut told = false;
        for offer in self.offered.values_mut() {
            let known = engine.contains(&offer.address.into());
            // The frame that was translated in place may still be on its way through the engine.
            if offer.wanted != offer.known && known == offer.wanted {
                offer.known = known;
                told = true;
            }
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(sequence: u32, host: u8) -> AddAddress {
        AddAddress {
            sequence: VarInt::from_u32(sequence),
            address: Address::new([192, 168, 0, host].into(), 9000),
        }
    }

    fn known(offers: &Offers) -> Vec<u64> {
        offers.known().map(|(sequence, _)| sequence.get()).collect()
    }

    #[test]
    fn offers_come_go_and_stay_away() {
        let mut offers = Offers::default();
        assert_eq!(offers.add(add(1, 1), Ok(())), Verdict::Pass(true));
        assert_eq!(offers.add(add(1, 1), Ok(())), Verdict::Pass(false));
        assert_eq!(offers.add(add(1, 2), Ok(())), Verdict::Stale);
        assert_eq!(known(&offers), [1]);
        assert!(offers.remove(VarInt::from_u32(1)));
        assert!(!offers.remove(VarInt::from_u32(1)));
        assert_eq!(offers.add(add(1, 1), Ok(())), Verdict::Stale);
        // Taken back before it came.
        assert!(!offers.remove(VarInt::from_u32(7)));
        assert_eq!(offers.add(add(7, 7), Ok(())), Verdict::Stale);
        assert!(known(&offers).is_empty() && offers.is_correct());
    }

    #[test]
    fn there_are_not_too_many() {
        let mut offers = Offers::default();
        for number in 0..MAX_CANDIDATES as u32 {
            assert_eq!(offers.add(add(number, 1), Ok(())), Verdict::Pass(true));
        }
        let limit = Verdict::Refuse(Refused::Limit);
        for number in 100..100 + MAX_KEPT as u32 {
            assert_eq!(offers.add(add(number, 2), Ok(())), limit);
        }
        assert!(offers.is_correct() && offers.offered.len() == MAX_KEPT);
        // As soon as one of the old goes, a new one comes in.
        offers.remove(VarInt::from_u32(5));
        let corrections: Vec<Frame> = offers.corrections().collect();
        assert_eq!(corrections, [Frame::AddAddress(add(100, 2))]);
        assert!(offers.confirm(&[add(100, 2).address.into()]));
        assert!(offers.is_correct() && known(&offers).len() == MAX_CANDIDATES);
    }

    #[test]
    fn what_is_far_may_get_near() {
        let mut offers = Offers::default();
        let far = Verdict::Refuse(Refused::Address(Refusal::Far));
        let port = Verdict::Refuse(Refused::Address(Refusal::Port));
        assert_eq!(offers.add(add(1, 1), Err(Refusal::Far)), far);
        assert_eq!(offers.add(add(2, 2), Err(Refusal::Port)), port);
        assert_eq!(offers.add(add(3, 3), Ok(())), Verdict::Pass(true));
        assert!(known(&offers) == [3] && offers.is_correct());

        let near = add(1, 1).address;
        offers.judge(|address| match address == near {
            true => Ok(()),
            false => Err(Refusal::Far),
        });
        let corrections: Vec<Frame> = offers.corrections().collect();
        let sequence = VarInt::from_u32(3);
        let remove = Frame::RemoveAddress(RemoveAddress { sequence });
        assert_eq!(corrections, [Frame::AddAddress(add(1, 1)), remove]);
        assert!(!offers.confirm(&[add(3, 3).address.into()]), "not told yet");
        assert!(offers.confirm(&[near.into()]));
        assert!(known(&offers) == [1] && offers.is_correct());
    }
}
