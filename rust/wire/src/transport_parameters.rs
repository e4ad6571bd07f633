//! QUIC transport parameters as TLS carries them (RFC 9000, section 18), and the two our
//! extensions negotiate with.
//!
//! A [`Parameters`] is the whole block, of any parameters, in its order: it can be read, changed
//! and written again without understanding the rest of it. The engine, not this module, judges
//! the parameters of QUIC itself.

use std::borrow::Cow;

use thiserror::Error;

use crate::varint::VarInt;

/// Identifier of `nat_traversal` (draft-seemann-quic-nat-traversal-02, section 4.5).
pub const NAT_TRAVERSAL: VarInt = known(0x3d7e_9f0b_ca12_fea6);
/// Identifier of `address_discovery` (draft-ietf-quic-address-discovery-00, section 3).
pub const ADDRESS_DISCOVERY: VarInt = known(0x9f81_a176);

/// Which end of a connection wrote a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// The end that started the connection.
    Client,
    /// The end that accepted it.
    Server,
}

/// A block of transport parameters: no identifier appears twice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parameters<'a> {
    list: Vec<(VarInt, Cow<'a, [u8]>)>,
}

/// Why a block, or one of the parameters of our extensions, is refused. All of them are a
/// connection error of type TRANSPORT_PARAMETER_ERROR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ParameterError {
    /// The block ends inside a parameter.
    #[error("transport parameters are cut short")]
    Truncated,
    /// An identifier appears twice, or would after an insertion.
    #[error("transport parameter {0:#x} appears twice")]
    Duplicate(u64),
    /// The value is not what the parameter allows this sender to say.
    #[error("transport parameter {0:#x} has a value that is not allowed")]
    IllegalValue(u64),
}

impl<'a> Parameters<'a> {
    /// Reads a whole block.
    ///
    /// # Errors
    /// [`Truncated`](ParameterError::Truncated) and [`Duplicate`](ParameterError::Duplicate).
    pub fn parse(mut block: &'a [u8]) -> Result<Self, ParameterError> {
        let mut list = Vec::new();
        while !block.is_empty() {
            let id = VarInt::decode(&mut block).map_err(|_| ParameterError::Truncated)?;
            let length = VarInt::decode(&mut block).map_err(|_| ParameterError::Truncated)?;
            let (value, rest) = usize::try_from(length.get())
                .ok()
                .and_then(|length| block.split_at_checked(length))
                .ok_or(ParameterError::Truncated)?;
            list.push((id, Cow::Borrowed(value)));
            block = rest;
        }
        // Sorted, not compared pairwise: a block of 64 KiB holds ten thousands of parameters.
        let mut ids: Vec<_> = list.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        match ids.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(ParameterError::Duplicate(pair[0].get())),
            None => Ok(Self { list }),
        }
    }

    /// The parameters in their order.
    pub fn iter(&self) -> impl Iterator<Item = (VarInt, &[u8])> {
        self.list.iter().map(|(id, value)| (*id, value.as_ref()))
    }

    /// The value of a parameter, if it is there.
    pub fn get(&self, id: VarInt) -> Option<&[u8]> {
        self.iter()
            .find(|(other, _)| *other == id)
            .map(|(_, value)| value)
    }

    /// Takes a parameter out and returns its value; the order of the others stays.
    pub fn remove(&mut self, id: VarInt) -> Option<Cow<'a, [u8]>> {
        let at = self.list.iter().position(|(other, _)| *other == id)?;
        Some(self.list.remove(at).1)
    }

    /// Appends a parameter.
    ///
    /// # Errors
    /// [`Duplicate`](ParameterError::Duplicate) if it is there already; the block is unchanged.
    pub fn insert(
        &mut self,
        id: VarInt,
        value: impl Into<Cow<'a, [u8]>>,
    ) -> Result<(), ParameterError> {
        if self.get(id).is_some() {
            return Err(ParameterError::Duplicate(id.get()));
        }
        self.list.push((id, value.into()));
        Ok(())
    }

    /// Puts another parameter in the place of one, and returns whether there was one to replace.
    ///
    /// # Errors
    /// [`Duplicate`](ParameterError::Duplicate) if `new` is there elsewhere; the block is
    /// unchanged.
    pub fn rewrite(
        &mut self,
        old: VarInt,
        new: VarInt,
        value: impl Into<Cow<'a, [u8]>>,
    ) -> Result<bool, ParameterError> {
        if new != old && self.get(new).is_some() {
            return Err(ParameterError::Duplicate(new.get()));
        }
        let Some(parameter) = self.list.iter_mut().find(|(id, _)| *id == old) else {
            return Ok(false);
        };
        *parameter = (new, value.into());
        Ok(true)
    }

    /// The block as TLS carries it.
    pub fn encode(&self) -> Vec<u8> {
        let values: usize = self.list.iter().map(|(_, value)| value.len()).sum();
        let mut out = Vec::with_capacity(values + self.list.len() * 2 * VarInt::MAX_LEN);
        for (id, value) in &self.list {
            id.encode(&mut out);
            length(value).encode(&mut out);
            out.extend_from_slice(value);
        }
        out
    }

    /// The `nat_traversal` parameter, if `sender` supports NAT traversal.
    ///
    /// # Errors
    /// [`IllegalValue`](ParameterError::IllegalValue): not empty from a client, or from a server
    /// not exactly one variable-length integer of at least 1.
    pub fn nat_traversal(&self, sender: Sender) -> Result<Option<NatTraversal>, ParameterError> {
        let Some(value) = self.get(NAT_TRAVERSAL) else {
            return Ok(None);
        };
        let parameter = match sender {
            Sender::Client => value.is_empty().then_some(NatTraversal::Client),
            Sender::Server => integer(value)
                .and_then(ConcurrencyLimit::new)
                .map(|limit| NatTraversal::Server { limit }),
        };
        parameter
            .map(Some)
            .ok_or(ParameterError::IllegalValue(NAT_TRAVERSAL.get()))
    }

    /// The `address_discovery` parameter, if the sender supports address discovery.
    ///
    /// # Errors
    /// [`IllegalValue`](ParameterError::IllegalValue) for anything but 0, 1 and 2.
    pub fn address_discovery(&self) -> Result<Option<AddressDiscovery>, ParameterError> {
        let Some(value) = self.get(ADDRESS_DISCOVERY) else {
            return Ok(None);
        };
        match integer(value).map(VarInt::get) {
            Some(0) => Ok(Some(AddressDiscovery::Provide)),
            Some(1) => Ok(Some(AddressDiscovery::Receive)),
            Some(2) => Ok(Some(AddressDiscovery::Both)),
            _ => Err(ParameterError::IllegalValue(ADDRESS_DISCOVERY.get())),
        }
    }
}

/// What `nat_traversal` says; the roles of the draft are those of the QUIC connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NatTraversal {
    /// A client supports the extension; it has no more to say.
    Client,
    /// A server supports the extension.
    Server {
        /// How many PUNCH_ME_NOW frames the client may send in one round.
        limit: ConcurrencyLimit,
    },
}

impl NatTraversal {
    /// The value of the parameter.
    pub fn encode(self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Self::Server { limit } = self {
            limit.get().encode(&mut out);
        }
        out
    }
}

/// How many attempts of NAT traversal a server runs at once: at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConcurrencyLimit(VarInt);

impl ConcurrencyLimit {
    /// A limit, or `None` for 0.
    pub fn new(limit: VarInt) -> Option<Self> {
        (limit.get() > 0).then_some(Self(limit))
    }

    /// The number.
    pub const fn get(self) -> VarInt {
        self.0
    }
}

/// What `address_discovery` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum AddressDiscovery {
    /// The sender reports addresses it sees, and wants none reported.
    Provide = 0,
    /// The sender wants reports, and gives none.
    Receive = 1,
    /// Both.
    Both = 2,
}

impl AddressDiscovery {
    /// Whether the sender reports addresses.
    pub const fn provides(self) -> bool {
        matches!(self, Self::Provide | Self::Both)
    }

    /// Whether the sender wants reports.
    pub const fn receives(self) -> bool {
        matches!(self, Self::Receive | Self::Both)
    }

    /// The value of the parameter.
    pub fn encode(self) -> Vec<u8> {
        vec![self as u8]
    }
}

/// A value that is exactly one integer.
fn integer(mut value: &[u8]) -> Option<VarInt> {
    let integer = VarInt::decode(&mut value).ok()?;
    value.is_empty().then_some(integer)
}

fn length(value: &[u8]) -> VarInt {
    VarInt::try_from(value.len() as u64).expect("no slice is longer than 2^62 - 1 bytes")
}

const fn known(id: u64) -> VarInt {
    match VarInt::from_u64(id) {
        Some(id) => id,
        None => panic!("identifiers are below 2^62"),
    }
}
