//! What the server of a connection has offered: the addresses its client may probe.
//!
//! Pure. An address that is refused because it is far is kept: a peer offers its addresses at once,
//! and that it is in the same network may be found out later. The engine is then told, or told the
//! contrary, in [corrections](Offers::corrections) that go with another packet.

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

/// What is offered, by sequence number.
#[derive(Debug, Default)]
pub(super) struct Offers {
    offered: BTreeMap<VarInt, Offer>,
    withdrawn: Withdrawn,
}

#[derive(Debug)]
struct Offer {
    address: Address,
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
        let full = self.offered.len() >= MAX_CANDIDATES;
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
                let taken = judged.is_ok();
                new.insert(Offer {
                    address: add.address,
                    wanted: taken,
                    known: taken,
                });
                match judged {
                    Ok(()) => Verdict::Pass(true),
                    Err(refusal) => Verdict::Refuse(Refused::Address(refusal)),
                }
            }
        }
    }

    /// The peer takes an offer back. Whether the engine knew of it.
    pub(super) fn remove(&mut self, sequence: VarInt) -> bool {
        self.withdrawn.insert(sequence);
        let removed = self.offered.remove(&sequence);
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
            offer.wanted = judge(offer.address).is_ok();
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
        let one_more = offers.add(add(99, 1), Ok(()));
        assert_eq!(one_more, Verdict::Refuse(Refused::Limit));
        offers.remove(VarInt::from_u32(5));
        assert_eq!(offers.add(add(99, 1), Ok(())), Verdict::Pass(true));
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
