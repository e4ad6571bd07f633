//! The body of one control message: CBOR to and from [`Message`].

mod notices;
mod punching;

use std::convert::Infallible;

use minicbor::data::Type;
use minicbor::decode::{Decoder, Error as DecodeError};
use minicbor::encode::{Encoder, Error as EncodeError};

use super::{
    ControlError, Field, Hello, MAX_AGENT_BYTES, MAX_CAPABILITIES, MAX_CAPABILITY_BYTES, Message,
};

const KIND_HELLO: u64 = 1;
const KIND_ACCEPT: u64 = 2;

/// Room for an ordinary hello without growing.
const USUAL_BYTES: usize = 128;

pub(super) fn encode(message: &Message) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::with_capacity(USUAL_BYTES));
    match message {
        Message::Hello(hello) => put_hello(&mut encoder, KIND_HELLO, hello),
        Message::Accept(hello) => put_hello(&mut encoder, KIND_ACCEPT, hello),
        Message::Reach(reach) => notices::put_reach(&mut encoder, reach),
        Message::Find(find) => notices::put_find(&mut encoder, find),
        Message::Found(found) => notices::put_found(&mut encoder, found),
        Message::Sought(sought) => notices::put_sought(&mut encoder, sought),
        Message::Nat(nat) => punching::put_nat(&mut encoder, nat),
        Message::Prepare(prepare) => punching::put_prepare(&mut encoder, prepare),
        Message::Prepared(prepared) => punching::put_prepared(&mut encoder, prepared),
        Message::Filler(bytes) => punching::put_filler(&mut encoder, *bytes),
        Message::Unknown(kind) => put_kind(&mut encoder, 1, *kind),
    }
    .expect("writing to a vector does not fail");
    encoder.into_writer()
}

pub(super) fn decode(body: &[u8]) -> Result<Message, ControlError> {
    let mut decoder = Decoder::new(body);
    let fields = match decoder.datatype().map_err(broken)? {
        Type::Map => decoder
            .map()
            .map_err(broken)?
            .ok_or(ControlError::Malformed)?,
        _ => return Err(ControlError::Malformed),
    };
    if fields == 0 || key(&mut decoder)? != Some(Field::Kind as u64) {
        return Err(ControlError::Missing(Field::Kind));
    }
    let kind = uint(&mut decoder, Field::Kind)?;
    let message = match kind {
        KIND_HELLO => Message::Hello(hello(&mut decoder, fields - 1)?),
        KIND_ACCEPT => Message::Accept(hello(&mut decoder, fields - 1)?),
        notices::KIND_REACH => Message::Reach(notices::reach(&mut decoder, fields - 1)?),
        notices::KIND_FIND => Message::Find(notices::find(&mut decoder, fields - 1)?),
        notices::KIND_FOUND => Message::Found(notices::found(&mut decoder, fields - 1)?),
        notices::KIND_SOUGHT => Message::Sought(notices::sought(&mut decoder, fields - 1)?),
        punching::KIND_NAT => Message::Nat(punching::nat(&mut decoder, fields - 1)?),
        punching::KIND_PREPARE => Message::Prepare(punching::prepare(&mut decoder, fields - 1)?),
        punching::KIND_PREPARED => Message::Prepared(punching::prepared(&mut decoder, fields - 1)?),
        punching::KIND_FILLER => Message::Filler(punching::filler(&mut decoder, fields - 1)?),
        unknown => {
            for _ in 1..fields {
                skip(&mut decoder)?;
                skip(&mut decoder)?;
            }
            Message::Unknown(unknown)
        }
    };
    if decoder.position() < body.len() {
        return Err(ControlError::TrailingBytes);
    }
    Ok(message)
}

type Written = Result<(), EncodeError<Infallible>>;

fn put_kind(encoder: &mut Encoder<Vec<u8>>, fields: u64, kind: u64) -> Written {
    encoder.map(fields)?.u8(Field::Kind as u8)?.u64(kind)?.ok()
}

fn put_hello(encoder: &mut Encoder<Vec<u8>>, kind: u64, hello: &Hello) -> Written {
    let capabilities: Vec<&str> = hello
        .capabilities
        .iter()
        .map(String::as_str)
        .filter(|capability| acceptable(capability, MAX_CAPABILITY_BYTES))
        .take(MAX_CAPABILITIES)
        .collect();
    put_kind(encoder, 6, kind)?;
    encoder
        .u8(Field::Version as u8)?
        .u16(hello.version)?
        .u8(Field::Instance as u8)?
        .u64(hello.instance)?
        .u8(Field::Serial as u8)?
        .u64(hello.serial)?
        .u8(Field::Capabilities as u8)?
        .array(capabilities.len() as u64)?;
    for capability in capabilities {
        encoder.str(capability)?;
    }
    encoder
        .u8(Field::Agent as u8)?
        .str(acceptable_start(&hello.agent, MAX_AGENT_BYTES))?
        .ok()
}

fn hello(decoder: &mut Decoder<'_>, fields: u64) -> Result<Hello, ControlError> {
    let mut version = None;
    let mut instance = None;
    let mut serial = None;
    let mut capabilities = None;
    let mut agent = None;
    for _ in 0..fields {
        match key(decoder)? {
            Some(0) => return Err(ControlError::Duplicate(Field::Kind)),
            Some(1) => {
                let number = uint(decoder, Field::Version)?;
                let number =
                    u16::try_from(number).map_err(|_| ControlError::OutOfLimits(Field::Version))?;
                once(&mut version, number, Field::Version)?;
            }
            Some(2) => once(
                &mut instance,
                uint(decoder, Field::Instance)?,
                Field::Instance,
            )?,
            Some(3) => once(&mut serial, uint(decoder, Field::Serial)?, Field::Serial)?,
            Some(4) => once(&mut capabilities, tokens(decoder)?, Field::Capabilities)?,
            Some(5) => {
                let text = text(decoder, Field::Agent, MAX_AGENT_BYTES)?;
                once(&mut agent, text, Field::Agent)?;
            }
            _ => skip(decoder)?,
        }
    }
    Ok(Hello {
        version: version.ok_or(ControlError::Missing(Field::Version))?,
        instance: instance.ok_or(ControlError::Missing(Field::Instance))?,
        serial: serial.ok_or(ControlError::Missing(Field::Serial))?,
        capabilities: capabilities.unwrap_or_default(),
        agent: agent.unwrap_or_default(),
    })
}

fn once<T>(slot: &mut Option<T>, value: T, field: Field) -> Result<(), ControlError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(ControlError::Duplicate(field)),
    }
}

/// A map key: `None` for one that is no unsigned integer, and so none of ours.
fn key(decoder: &mut Decoder<'_>) -> Result<Option<u64>, ControlError> {
    match decoder.datatype().map_err(broken)? {
        Type::U8 | Type::U16 | Type::U32 | Type::U64 => Ok(Some(decoder.u64().map_err(broken)?)),
        _ => skip(decoder).map(|()| None),
    }
}

fn uint(decoder: &mut Decoder<'_>, field: Field) -> Result<u64, ControlError> {
    match decoder.datatype().map_err(broken)? {
        Type::U8 | Type::U16 | Type::U32 | Type::U64 => decoder.u64().map_err(broken),
        _ => Err(ControlError::WrongType(field)),
    }
}

fn text(decoder: &mut Decoder<'_>, field: Field, limit: usize) -> Result<String, ControlError> {
    match decoder.datatype().map_err(broken)? {
        Type::String => {
            let text = decoder.str().map_err(broken)?;
            if !acceptable(text, limit) {
                return Err(ControlError::OutOfLimits(field));
            }
            Ok(text.to_owned())
        }
        Type::StringIndef => Err(ControlError::Malformed),
        _ => Err(ControlError::WrongType(field)),
    }
}

fn boolean(decoder: &mut Decoder<'_>, field: Field) -> Result<bool, ControlError> {
    match decoder.datatype().map_err(broken)? {
        Type::Bool => decoder.bool().map_err(broken),
        _ => Err(ControlError::WrongType(field)),
    }
}

/// The head of an array of at most `limit` elements.
fn array(decoder: &mut Decoder<'_>, field: Field, limit: usize) -> Result<u64, ControlError> {
    let count = match decoder.datatype().map_err(broken)? {
        Type::Array => decoder
            .array()
            .map_err(broken)?
            .ok_or(ControlError::Malformed)?,
        Type::ArrayIndef => return Err(ControlError::Malformed),
        _ => return Err(ControlError::WrongType(field)),
    };
    if count > limit as u64 {
        return Err(ControlError::OutOfLimits(field));
    }
    Ok(count)
}

fn tokens(decoder: &mut Decoder<'_>) -> Result<Vec<String>, ControlError> {
    (0..array(decoder, Field::Capabilities, MAX_CAPABILITIES)?)
        .map(|_| text(decoder, Field::Capabilities, MAX_CAPABILITY_BYTES))
        .collect()
}

/// Text from a peer ends up in logs and on terminals, where control characters are commands.
fn acceptable(text: &str, limit: usize) -> bool {
    text.len() <= limit && !text.contains(char::is_control)
}

fn acceptable_start(text: &str, limit: usize) -> &str {
    let end = text
        .char_indices()
        .find(|(start, c)| start + c.len_utf8() > limit || c.is_control())
        .map_or(text.len(), |(start, _)| start);
    &text[..end]
}

/// Steps over one item with all it contains, without recursion: nesting is the peer's choice.
fn skip(decoder: &mut Decoder<'_>) -> Result<(), ControlError> {
    let mut items: u64 = 1;
    while items > 0 {
        items -= 1;
        let inside = match decoder.datatype().map_err(broken)? {
            Type::Array => decoder
                .array()
                .map_err(broken)?
                .ok_or(ControlError::Malformed)?,
            Type::Map => {
                let pairs = decoder
                    .map()
                    .map_err(broken)?
                    .ok_or(ControlError::Malformed)?;
                pairs.checked_mul(2).ok_or(ControlError::Truncated)?
            }
            Type::Tag => {
                decoder.tag().map_err(broken)?;
                1
            }
            Type::ArrayIndef
            | Type::MapIndef
            | Type::BytesIndef
            | Type::StringIndef
            | Type::Break
            | Type::Unknown(_) => return Err(ControlError::Malformed),
            _ => {
                decoder.skip().map_err(broken)?;
                0
            }
        };
        // An item takes a byte at least, so a larger count is a lie: no need to walk to its end.
        items = items.checked_add(inside).ok_or(ControlError::Truncated)?;
        if items > (decoder.input().len() - decoder.position()) as u64 {
            return Err(ControlError::Truncated);
        }
    }
    Ok(())
}

fn broken(error: DecodeError) -> ControlError {
    if error.is_end_of_input() {
        ControlError::Truncated
    } else {
        ControlError::Malformed
    }
}
