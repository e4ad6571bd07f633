//! [`Reach`], [`Find`], [`Found`] and [`Sought`] as CBOR.
//!
//! Addresses are byte strings of 6 or 18 bytes in network order, port last; other lengths are left
//! to later versions and skipped. A direct address is an array of address and kind, a relay one of
//! PeerId and addresses; what follows in such an array is skipped.

use minicbor::data::Type;
use minicbor::decode::Decoder;
use minicbor::encode::Encoder;

use super::{ControlError, Field, Written, array, boolean, key, once, put_kind, skip, uint};
use crate::address::{Address, Family};
use crate::control::notices::{
    AddressKind, BoundAt, DirectAddress, Find, FindStatus, Found, MAX_BOUND_ADDRESSES,
    MAX_DIRECT_ADDRESSES, MAX_OBSERVED_ADDRESSES, MAX_RELAYS, PeerIdBytes, Reach, Sought,
};

pub(super) const KIND_REACH: u64 = 3;
pub(super) const KIND_FIND: u64 = 4;
pub(super) const KIND_FOUND: u64 = 5;
pub(super) const KIND_SOUGHT: u64 = 6;

const V4_LEN: usize = 6;
const V6_LEN: usize = 18;

pub(super) type Out = Encoder<Vec<u8>>;

pub(super) fn put_reach(out: &mut Out, reach: &Reach) -> Written {
    put_kind(out, 4 + u64::from(reach.load.is_some()), KIND_REACH)?;
    put_direct(out, &reach.direct)?;
    put_bound(out, &reach.bound)?;
    out.u8(Field::Findable as u8)?.bool(reach.findable)?;
    match reach.load {
        Some(load) => out.u8(Field::Load as u8)?.u8(load.min(100))?.ok(),
        None => Ok(()),
    }
}

pub(super) fn put_find(out: &mut Out, find: &Find) -> Written {
    put_kind(out, 3, KIND_FIND)?;
    out.u8(Field::Request as u8)?
        .u64(find.request)?
        .u8(Field::Peer as u8)?
        .bytes(&find.peer)?
        .ok()
}

pub(super) fn put_found(out: &mut Out, found: &Found) -> Written {
    put_kind(out, 6, KIND_FOUND)?;
    out.u8(Field::Request as u8)?
        .u64(found.request)?
        .u8(Field::Status as u8)?
        .u64(found.status.number())?;
    put_direct(out, &found.direct)?;
    put_bound(out, &found.bound)?;
    put_observed(out, &found.observed)
}

pub(super) fn put_sought(out: &mut Out, sought: &Sought) -> Written {
    put_kind(out, 3, KIND_SOUGHT)?;
    out.u8(Field::Peer as u8)?.bytes(&sought.peer)?;
    put_observed(out, &sought.observed)
}

fn put_direct(out: &mut Out, direct: &[DirectAddress]) -> Written {
    let direct = &direct[..direct.len().min(MAX_DIRECT_ADDRESSES)];
    out.u8(Field::Direct as u8)?.array(direct.len() as u64)?;
    for DirectAddress { address, kind } in direct {
        out.array(2)?;
        put_address(out, *address)?;
        out.u64(kind.number())?;
    }
    Ok(())
}

fn put_bound(out: &mut Out, bound: &[BoundAt]) -> Written {
    let bound = &bound[..bound.len().min(MAX_RELAYS)];
    out.u8(Field::Bound as u8)?.array(bound.len() as u64)?;
    for BoundAt { relay, addresses } in bound {
        out.array(2)?.bytes(relay)?;
        put_addresses(out, addresses, MAX_BOUND_ADDRESSES)?;
    }
    Ok(())
}

fn put_observed(out: &mut Out, observed: &[Address]) -> Written {
    out.u8(Field::Observed as u8)?;
    put_addresses(out, observed, MAX_OBSERVED_ADDRESSES)
}

pub(super) fn put_addresses(out: &mut Out, addresses: &[Address], limit: usize) -> Written {
    let addresses = &addresses[..addresses.len().min(limit)];
    out.array(addresses.len() as u64)?;
    for address in addresses {
        put_address(out, *address)?;
    }
    Ok(())
}

fn put_address(out: &mut Out, address: Address) -> Written {
    let mut bytes = Vec::with_capacity(V6_LEN);
    address.encode(&mut bytes);
    out.bytes(&bytes)?.ok()
}

/// The fields of all four messages, as far as they have come.
#[derive(Default)]
struct Fields {
    direct: Option<Vec<DirectAddress>>,
    bound: Option<Vec<BoundAt>>,
    findable: Option<bool>,
    request: Option<u64>,
    peer: Option<PeerIdBytes>,
    status: Option<FindStatus>,
    observed: Option<Vec<Address>>,
    load: Option<u64>,
}

impl Fields {
    /// Reads `count` fields, of which those in `known` have a meaning.
    fn read(
        decoder: &mut Decoder<'_>,
        count: u64,
        known: &'static [Field],
    ) -> Result<Self, ControlError> {
        let mut fields = Self::default();
        for _ in 0..count {
            let key = key(decoder)?;
            if key == Some(Field::Kind as u64) {
                return Err(ControlError::Duplicate(Field::Kind));
            }
            match known.iter().find(|field| key == Some(**field as u64)) {
                Some(field) => fields.read_one(decoder, *field)?,
                None => skip(decoder)?,
            }
        }
        Ok(fields)
    }

    fn read_one(&mut self, decoder: &mut Decoder<'_>, field: Field) -> Result<(), ControlError> {
        match field {
            Field::Direct => once(&mut self.direct, direct(decoder)?, field),
            Field::Bound => once(&mut self.bound, bound(decoder)?, field),
            Field::Findable => once(&mut self.findable, boolean(decoder, field)?, field),
            Field::Request => once(&mut self.request, uint(decoder, field)?, field),
            Field::Peer => once(&mut self.peer, peer_id(decoder, field)?, field),
            Field::Status => {
                let status = FindStatus::from_number(uint(decoder, field)?);
                once(&mut self.status, status, field)
            }
            Field::Observed => {
                let observed = addresses(decoder, field, MAX_OBSERVED_ADDRESSES)?;
                once(&mut self.observed, observed, field)
            }
            Field::Load => once(&mut self.load, uint(decoder, field)?, field),
            // Fields of a hello, which no message here knows.
            _ => skip(decoder),
        }
    }
}

pub(super) fn reach(decoder: &mut Decoder<'_>, count: u64) -> Result<Reach, ControlError> {
    let known = &[Field::Direct, Field::Bound, Field::Findable, Field::Load];
    let fields = Fields::read(decoder, count, known)?;
    Ok(Reach {
        direct: fields.direct.unwrap_or_default(),
        bound: fields.bound.unwrap_or_default(),
        // Whoever does not say so does not want it.
        findable: fields.findable.unwrap_or_default(),
        load: fields.load.map(|load| load.min(100) as u8),
    })
}

pub(super) fn find(decoder: &mut Decoder<'_>, count: u64) -> Result<Find, ControlError> {
    let fields = Fields::read(decoder, count, &[Field::Request, Field::Peer])?;
    Ok(Find {
        request: required(fields.request, Field::Request)?,
        peer: required(fields.peer, Field::Peer)?,
    })
}

pub(super) fn found(decoder: &mut Decoder<'_>, count: u64) -> Result<Found, ControlError> {
    let known = &[
        Field::Request,
        Field::Status,
        Field::Direct,
        Field::Bound,
        Field::Observed,
    ];
    let fields = Fields::read(decoder, count, known)?;
    Ok(Found {
        request: required(fields.request, Field::Request)?,
        status: required(fields.status, Field::Status)?,
        direct: fields.direct.unwrap_or_default(),
        bound: fields.bound.unwrap_or_default(),
        observed: fields.observed.unwrap_or_default(),
    })
}

pub(super) fn sought(decoder: &mut Decoder<'_>, count: u64) -> Result<Sought, ControlError> {
    let fields = Fields::read(decoder, count, &[Field::Peer, Field::Observed])?;
    Ok(Sought {
        peer: required(fields.peer, Field::Peer)?,
        observed: fields.observed.unwrap_or_default(),
    })
}

pub(super) fn required<T>(value: Option<T>, field: Field) -> Result<T, ControlError> {
    value.ok_or(ControlError::Missing(field))
}

fn direct(decoder: &mut Decoder<'_>) -> Result<Vec<DirectAddress>, ControlError> {
    let field = Field::Direct;
    let mut direct = Vec::new();
    for _ in 0..array(decoder, field, MAX_DIRECT_ADDRESSES)? {
        let items = tuple(decoder, field)?;
        let address = address(decoder, field)?;
        let kind = AddressKind::from_number(uint(decoder, field)?);
        skip_rest(decoder, items)?;
        direct.extend(address.map(|address| DirectAddress { address, kind }));
    }
    Ok(direct)
}

fn bound(decoder: &mut Decoder<'_>) -> Result<Vec<BoundAt>, ControlError> {
    let field = Field::Bound;
    let mut bound = Vec::new();
    for _ in 0..array(decoder, field, MAX_RELAYS)? {
        let items = tuple(decoder, field)?;
        let relay = peer_id(decoder, field)?;
        let addresses = addresses(decoder, field, MAX_BOUND_ADDRESSES)?;
        skip_rest(decoder, items)?;
        bound.push(BoundAt { relay, addresses });
    }
    Ok(bound)
}

/// The head of an array whose first two elements have a meaning.
fn tuple(decoder: &mut Decoder<'_>, field: Field) -> Result<u64, ControlError> {
    let items = array(decoder, field, usize::MAX)?;
    if items < 2 {
        return Err(ControlError::Missing(field));
    }
    Ok(items)
}

fn skip_rest(decoder: &mut Decoder<'_>, items: u64) -> Result<(), ControlError> {
    (2..items).try_for_each(|_| skip(decoder))
}

pub(super) fn addresses(
    decoder: &mut Decoder<'_>,
    field: Field,
    limit: usize,
) -> Result<Vec<Address>, ControlError> {
    let mut addresses = Vec::new();
    for _ in 0..array(decoder, field, limit)? {
        addresses.extend(address(decoder, field)?);
    }
    Ok(addresses)
}

/// `None` for an address of another length, of which only later versions know what it is.
fn address(decoder: &mut Decoder<'_>, field: Field) -> Result<Option<Address>, ControlError> {
    let mut bytes = bytes(decoder, field)?;
    let family = match bytes.len() {
        V4_LEN => Family::V4,
        V6_LEN => Family::V6,
        _ => return Ok(None),
    };
    Ok(Address::decode(&mut bytes, family).ok())
}

fn peer_id(decoder: &mut Decoder<'_>, field: Field) -> Result<PeerIdBytes, ControlError> {
    bytes(decoder, field)?
        .try_into()
        .map_err(|_| ControlError::OutOfLimits(field))
}

fn bytes<'b>(decoder: &mut Decoder<'b>, field: Field) -> Result<&'b [u8], ControlError> {
    match decoder.datatype().map_err(super::broken)? {
        Type::Bytes => decoder.bytes().map_err(super::broken),
        Type::BytesIndef => Err(ControlError::Malformed),
        _ => Err(ControlError::WrongType(field)),
    }
}
