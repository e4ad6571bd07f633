//! The transport parameter: the engine has its own, on the wire is that of
//! draft-seemann-quic-nat-traversal-02, section 4.5.

use anyreach_wire::{
    transport_parameters::{
        ConcurrencyLimit, NAT_TRAVERSAL, NatTraversal, ParameterError, Parameters, Sender,
    },
    varint::VarInt,
};
use noq_proto::Side;

use super::MAX_CANDIDATES;

/// The engine's own: one byte, the number of addresses it takes.
pub(super) const ENGINE_PARAMETER: VarInt = match VarInt::from_u64(0x3d7f_9112_0401) {
    Some(id) => id,
    None => unreachable!(),
};

/// Makes of what the engine is about to send what the draft has. Whether NAT traversal is offered.
///
/// # Errors
/// [`ParameterError`], which would be a fault of the engine.
pub(super) fn outgoing(side: Side, encoded: &mut Vec<u8>) -> Result<bool, ParameterError> {
    let copy = encoded.clone();
    let mut parameters = Parameters::parse(&copy)?;
    let Some(&[addresses]) = parameters.get(ENGINE_PARAMETER) else {
        return Ok(false);
    };
    let ours = match (
        side,
        ConcurrencyLimit::new(VarInt::from_u32(addresses.into())),
    ) {
        (Side::Client, _) => NatTraversal::Client,
        (Side::Server, Some(limit)) => NatTraversal::Server { limit },
        (Side::Server, None) => return Err(ParameterError::IllegalValue(ENGINE_PARAMETER.get())),
    };
    parameters.rewrite(ENGINE_PARAMETER, NAT_TRAVERSAL, ours.encode())?;
    *encoded = parameters.encode();
    Ok(true)
}

/// initial_max_path_id: the peer does multipath (draft-ietf-quic-multipath).
const INITIAL_MAX_PATH_ID: VarInt = VarInt::from_u32(0x3e);

/// What a peer offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offer {
    /// NAT traversal.
    pub(super) traversal: bool,
    /// Multipath, without which the engine does no NAT traversal.
    pub(super) multipath: bool,
}

/// Makes of what a peer has sent what the engine understands; what it offers.
///
/// # Errors
/// [`ParameterError`], for which the connection ends with TRANSPORT_PARAMETER_ERROR.
pub(super) fn incoming(side: Side, encoded: &mut Vec<u8>) -> Result<Offer, ParameterError> {
    let sender = match side {
        Side::Client => Sender::Server,
        Side::Server => Sender::Client,
    };
    let copy = encoded.clone();
    let mut parameters = Parameters::parse(&copy)?;
    // Who speaks the engine's dialect is not understood, as the draft has it.
    let dialect = parameters.remove(ENGINE_PARAMETER).is_some();
    let theirs = parameters.nat_traversal(sender)?;
    if let Some(theirs) = theirs {
        let addresses = match theirs {
            // A client has no way to say how many it takes.
            NatTraversal::Client => MAX_CANDIDATES as u8,
            NatTraversal::Server { limit } => limit.get().get().min(MAX_CANDIDATES as u64) as u8,
        };
        parameters.rewrite(NAT_TRAVERSAL, ENGINE_PARAMETER, vec![addresses])?;
    }
    if dialect || theirs.is_some() {
        *encoded = parameters.encode();
    }
    Ok(Offer {
        traversal: theirs.is_some(),
        multipath: parameters.get(INITIAL_MAX_PATH_ID).is_some(),
    })
}

/// Takes the offer of a peer out, as if it had not made it.
pub(super) fn withhold(encoded: &mut Vec<u8>) {
    let copy = encoded.clone();
    // What cannot be read the engine refuses.
    if let Ok(mut parameters) = Parameters::parse(&copy) {
        parameters.remove(ENGINE_PARAMETER);
        *encoded = parameters.encode();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(id: VarInt, value: &[u8]) -> Vec<u8> {
        let mut parameters = Parameters::default();
        parameters.insert(VarInt::from_u32(1), vec![30]).unwrap();
        parameters.insert(id, value.to_vec()).unwrap();
        parameters.encode()
    }

    fn read(side: Side, mut encoded: Vec<u8>) -> Result<Option<Vec<u8>>, ParameterError> {
        incoming(side, &mut encoded)?;
        let parameters = Parameters::parse(&encoded)?;
        assert_eq!(parameters.get(NAT_TRAVERSAL), None);
        Ok(parameters.get(ENGINE_PARAMETER).map(<[u8]>::to_vec))
    }

    #[test]
    fn each_role_says_its_own() {
        for (side, said) in [(Side::Client, vec![]), (Side::Server, vec![8])] {
            let mut encoded = block(ENGINE_PARAMETER, &[8]);
            assert_eq!(outgoing(side, &mut encoded), Ok(true));
            assert_eq!(encoded, block(NAT_TRAVERSAL, &said));
        }
        let mut encoded = block(VarInt::from_u32(2), &[8]);
        assert_eq!(outgoing(Side::Client, &mut encoded), Ok(false));
        assert_eq!(encoded, block(VarInt::from_u32(2), &[8]));
    }

    #[test]
    fn illegal_values_are_refused() {
        let theirs = |value: &[u8]| block(NAT_TRAVERSAL, value);
        let all = Ok(Some(vec![MAX_CANDIDATES as u8]));
        assert_eq!(read(Side::Server, theirs(&[])), all);
        assert_eq!(read(Side::Client, theirs(&[8])), Ok(Some(vec![8])));
        assert_eq!(read(Side::Client, theirs(&[0x7f, 0xff])), all);
        for (side, value) in [
            (Side::Server, &[8][..]),
            (Side::Server, &[0]),
            (Side::Client, &[]),
            (Side::Client, &[0]),
            (Side::Client, &[8, 8]),
            (Side::Client, &[0x40]),
        ] {
            let refused = Err(ParameterError::IllegalValue(NAT_TRAVERSAL.get()));
            assert_eq!(read(side, theirs(value)), refused, "{side:?} {value:?}");
        }
        let twice = [theirs(&[8]), theirs(&[8])].concat();
        assert!(read(Side::Client, twice).is_err());
    }

    #[test]
    fn the_dialect_of_the_engine_is_not_understood() {
        assert_eq!(read(Side::Client, block(ENGINE_PARAMETER, &[8])), Ok(None));
    }
}
