//! [`Nat`], [`Prepare`], [`Prepared`] and filler as CBOR. Addresses are written as in the other notices.

use minicbor::data::Type;
use minicbor::decode::Decoder;

use super::notices::{Out, addresses, put_addresses, required};
use super::{ControlError, Field, Written, boolean, key, once, put_kind, skip, uint};
use crate::address::Address;
use crate::control::punching::{
    MAX_PORT_STEP, MAX_STEP_ADDRESSES, Nat, NatBehaviour, PortAllocation, Prepare, PrepareMethod,
    Prepared,
};

pub(super) const KIND_NAT: u64 = 7;
pub(super) const KIND_PREPARE: u64 = 8;
pub(super) const KIND_PREPARED: u64 = 9;
pub(super) const KIND_FILLER: u64 = 10;

pub(super) fn put_nat(out: &mut Out, nat: &Nat) -> Written {
    put_kind(out, 5, KIND_NAT)?;
    out.u8(Field::Mapping as u8)?
        .u64(nat.mapping.number())?
        .u8(Field::Filtering as u8)?
        .u64(nat.filtering.number())?
        .u8(Field::Ports as u8)?
        .u64(nat.ports.number())?
        .u8(Field::Step as u8)?
        .i32(nat.step.clamp(-MAX_PORT_STEP, MAX_PORT_STEP))?
        .ok()
}

pub(super) fn put_prepare(out: &mut Out, prepare: &Prepare) -> Written {
    put_kind(out, 5, KIND_PREPARE)?;
    out.u8(Field::Request as u8)?
        .u64(prepare.request)?
        .u8(Field::Method as u8)?
        .u64(prepare.method.number())?
        .u8(Field::Addresses as u8)?;
    put_addresses(out, &prepare.addresses, MAX_STEP_ADDRESSES)?;
    out.u8(Field::Count as u8)?.u16(prepare.count)?.ok()
}

pub(super) fn put_prepared(out: &mut Out, prepared: &Prepared) -> Written {
    put_kind(out, 4, KIND_PREPARED)?;
    out.u8(Field::Request as u8)?
        .u64(prepared.request)?
        .u8(Field::Done as u8)?
        .bool(prepared.done)?
        .u8(Field::Addresses as u8)?;
    put_addresses(out, &prepared.addresses, MAX_STEP_ADDRESSES)
}

pub(super) fn put_filler(out: &mut Out, bytes: u16) -> Written {
    put_kind(out, 2, KIND_FILLER)?;
    out.u8(Field::Filler as u8)?
        .bytes(&vec![0; usize::from(bytes)])?
        .ok()
}

/// The fields of the messages, as far as they have come.
#[derive(Default)]
struct Fields {
    mapping: Option<NatBehaviour>,
    filtering: Option<NatBehaviour>,
    ports: Option<PortAllocation>,
    step: Option<i32>,
    request: Option<u64>,
    method: Option<PrepareMethod>,
    addresses: Option<Vec<Address>>,
    count: Option<u16>,
    done: Option<bool>,
    filler: Option<u16>,
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
            Field::Mapping => {
                let mapping = NatBehaviour::from_number(uint(decoder, field)?);
                once(&mut self.mapping, mapping, field)
            }
            Field::Filtering => {
                let filtering = NatBehaviour::from_number(uint(decoder, field)?);
                once(&mut self.filtering, filtering, field)
            }
            Field::Ports => {
                let ports = PortAllocation::from_number(uint(decoder, field)?);
                once(&mut self.ports, ports, field)
            }
            Field::Step => once(&mut self.step, step(decoder)?, field),
            Field::Request => once(&mut self.request, uint(decoder, field)?, field),
            Field::Method => {
                let method = PrepareMethod::from_number(uint(decoder, field)?);
                once(&mut self.method, method, field)
            }
            Field::Addresses => {
                let addresses = addresses(decoder, field, MAX_STEP_ADDRESSES)?;
                once(&mut self.addresses, addresses, field)
            }
            Field::Count => {
                let count = u16::try_from(uint(decoder, field)?)
                    .map_err(|_| ControlError::OutOfLimits(field))?;
                once(&mut self.count, count, field)
            }
            Field::Done => once(&mut self.done, boolean(decoder, field)?, field),
            Field::Filler => once(&mut self.filler, length(decoder, field)?, field),
            // Fields of other messages, which none of these knows.
            _ => skip(decoder),
        }
    }
}

/// How long a byte string is.
fn length(decoder: &mut Decoder<'_>, field: Field) -> Result<u16, ControlError> {
    match decoder.datatype().map_err(super::broken)? {
        Type::Bytes => {
            let bytes = decoder.bytes().map_err(super::broken)?;
            u16::try_from(bytes.len()).map_err(|_| ControlError::OutOfLimits(field))
        }
        Type::BytesIndef => Err(ControlError::Malformed),
        _ => Err(ControlError::WrongType(field)),
    }
}

fn step(decoder: &mut Decoder<'_>) -> Result<i32, ControlError> {
    let field = Field::Step;
    match decoder.datatype().map_err(super::broken)? {
        Type::U8
        | Type::U16
        | Type::U32
        | Type::U64
        | Type::I8
        | Type::I16
        | Type::I32
        | Type::I64
        | Type::Int => {
            let number = i128::from(decoder.int().map_err(super::broken)?);
            i32::try_from(number)
                .ok()
                .filter(|step| step.abs() <= MAX_PORT_STEP)
                .ok_or(ControlError::OutOfLimits(field))
        }
        _ => Err(ControlError::WrongType(field)),
    }
}

pub(super) fn nat(decoder: &mut Decoder<'_>, count: u64) -> Result<Nat, ControlError> {
    let known = &[Field::Mapping, Field::Filtering, Field::Ports, Field::Step];
    let fields = Fields::read(decoder, count, known)?;
    Ok(Nat {
        mapping: fields.mapping.unwrap_or_default(),
        filtering: fields.filtering.unwrap_or_default(),
        ports: fields.ports.unwrap_or_default(),
        step: fields.step.unwrap_or_default(),
    })
}

pub(super) fn prepare(decoder: &mut Decoder<'_>, count: u64) -> Result<Prepare, ControlError> {
    let known = &[
        Field::Request,
        Field::Method,
        Field::Addresses,
        Field::Count,
    ];
    let fields = Fields::read(decoder, count, known)?;
    Ok(Prepare {
        request: required(fields.request, Field::Request)?,
        method: required(fields.method, Field::Method)?,
        addresses: fields.addresses.unwrap_or_default(),
        count: fields.count.unwrap_or_default(),
    })
}

pub(super) fn prepared(decoder: &mut Decoder<'_>, count: u64) -> Result<Prepared, ControlError> {
    let known = &[Field::Request, Field::Done, Field::Addresses];
    let fields = Fields::read(decoder, count, known)?;
    Ok(Prepared {
        request: required(fields.request, Field::Request)?,
        // Who does not say that it was done has not done it.
        done: fields.done.unwrap_or_default(),
        addresses: fields.addresses.unwrap_or_default(),
    })
}

pub(super) fn filler(decoder: &mut Decoder<'_>, count: u64) -> Result<u16, ControlError> {
    let fields = Fields::read(decoder, count, &[Field::Filler])?;
    Ok(fields.filler.unwrap_or_default())
}
