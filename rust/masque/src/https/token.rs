//! Tokens that prove a PeerId in a request, where the TLS connection cannot: the relay has an
//! ordinary certificate, or something in between ends TLS.
//!
//! A token is a statement signed with the node's identity: *the holder of this key asks that relay,
//! until then*. It goes into `authorization: Anyreach-Token <base64url>`. It is good for one
//! request at one relay for at most [`MAX_LIFETIME`]; whoever ends TLS can use it once in place of
//! the request it takes it from, and for nothing else. The request itself is not signed.
//!
//! Layout, before base64url without padding: version (1), expiry in Unix seconds (8, big-endian),
//! nonce (16), length of the audience (1), audience, public key (1952), signature (3309) of
//! [`CONTEXT`] and everything from version to audience. About 7.1 kB as text, which stays below
//! the 8 KiB that common proxies allow for one field.

use std::{
    collections::{BTreeSet, HashSet},
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyreach_quic::{
    Identity, IdentityError, PUBLIC_KEY_LEN, PeerId, SIGNATURE_LEN, tls::crypto_provider,
    verify_signed,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::HeaderValue;

/// The authentication scheme (RFC 9110, section 11.1).
pub const SCHEME: &str = "Anyreach-Token";

/// What every signed statement starts with, so that it is no statement of another kind.
const CONTEXT: &[u8] = b"anyreach relay token\0";

const VERSION: u8 = 1;

/// Longest life a relay accepts. It must cover the way to the relay and clocks that differ.
pub const MAX_LIFETIME: Duration = Duration::from_secs(120);

/// What a token is given: half of what is accepted, so that the clocks of node and relay may
/// differ by a minute in either direction.
const LIFETIME: Duration = Duration::from_secs(60);

const NONCE_LEN: usize = 16;

/// Bytes before the audience.
const FIXED_LEN: usize = 1 + 8 + NONCE_LEN + 1;

/// Bytes of the longest token: an audience has at most 255.
const MAX_LEN: usize = FIXED_LEN + u8::MAX as usize + PUBLIC_KEY_LEN + SIGNATURE_LEN;

/// Tokens remembered until they expire: 1 MB at most, and 136 new sessions a second. Beyond, the
/// ones that expire first are forgotten, and nothing as old is accepted any more.
const MAX_REMEMBERED: usize = 16_384;

/// For whom a token is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Audience(String);

impl Audience {
    /// The relay with this PeerId; to be preferred where it is known.
    pub fn peer(id: PeerId) -> Self {
        Self(id.to_string())
    }

    /// The relay reached under this `host:port`, or `None` if that is too long for a DNS name.
    pub fn authority(authority: &str) -> Option<Self> {
        let authority = authority.to_ascii_lowercase();
        (!authority.is_empty() && authority.len() <= usize::from(u8::MAX))
            .then_some(Self(authority))
    }
}

impl fmt::Display for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a token is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not `Anyreach-Token` and base64url of a token.
    #[error("not an Anyreach-Token")]
    Malformed,
    /// A version this relay does not know.
    #[error("token of version {0}, this relay knows version 1")]
    Version(u8),
    /// Its time is over. Where that is unexpected, the clocks differ.
    #[error("the token has expired; the clocks of node and relay may differ by a minute at most")]
    Expired,
    /// It expires later than any token may.
    #[error(
        "the token would be good for too long; the clocks of node and relay may differ by a minute at most"
    )]
    TooFarAhead,
    /// For another relay.
    #[error("the token is for another relay")]
    Audience,
    /// Not signed by the key in it.
    #[error("the token's signature is wrong")]
    Signature,
    /// Used before.
    #[error("the token was used before")]
    Replayed,
}

/// Makes the value of an `authorization` field: `identity` asks the relay `audience`.
///
/// # Errors
/// [`IdentityError::Generation`] if the system gives no randomness.
pub fn issue(
    identity: &Identity,
    audience: &Audience,
    now: SystemTime,
) -> Result<HeaderValue, IdentityError> {
    let expiry = unix_seconds(now).saturating_add(LIFETIME.as_secs());
    let mut nonce = [0; NONCE_LEN];
    crypto_provider()
        .secure_random
        .fill(&mut nonce)
        .map_err(|_| IdentityError::Generation)?;
    let mut token = Vec::with_capacity(MAX_LEN);
    token.push(VERSION);
    token.extend_from_slice(&expiry.to_be_bytes());
    token.extend_from_slice(&nonce);
    token.push(audience.0.len() as u8);
    token.extend_from_slice(audience.0.as_bytes());
    let signature = identity.sign(&[CONTEXT, &token].concat())?;
    let spki = identity.public_key();
    token.extend_from_slice(&spki[spki.len() - PUBLIC_KEY_LEN..]);
    token.extend_from_slice(&signature);
    let text = format!("{SCHEME} {}", URL_SAFE_NO_PAD.encode(token));
    let mut value = HeaderValue::try_from(text).expect("base64url is visible ASCII");
    value.set_sensitive(true);
    Ok(value)
}

/// Whether an `authorization` field claims to hold a token.
pub fn is_token(value: &HeaderValue) -> bool {
    after_scheme(value.as_bytes()).is_some()
}

/// What follows the scheme, if that is ours.
fn after_scheme(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(SCHEME.len())?;
    scheme
        .eq_ignore_ascii_case(SCHEME.as_bytes())
        .then_some(rest)
}

/// Checks tokens for one relay, and remembers those used.
#[derive(Debug)]
pub struct Verifier {
    audiences: HashSet<Audience>,
    used: Mutex<Used>,
}

impl Verifier {
    /// For the relay with this PeerId, reached under these authorities besides. An authority must
    /// be the relay's alone: tokens for it are good for whoever serves it.
    pub fn new(relay: PeerId, authorities: impl IntoIterator<Item = Audience>) -> Self {
        let mut audiences: HashSet<Audience> = authorities.into_iter().collect();
        audiences.insert(Audience::peer(relay));
        Self {
            audiences,
            used: Mutex::new(Used::default()),
        }
    }

    /// Who made a request with this `authorization` field; takes the token out of use.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn verify(&self, value: &HeaderValue, now: SystemTime) -> Result<PeerId, TokenError> {
        let token = Token::parse(value)?;
        let (now, expiry) = (unix_seconds(now), token.expiry);
        if expiry <= now {
            return Err(TokenError::Expired);
        }
        if expiry > now.saturating_add(MAX_LIFETIME.as_secs()) {
            return Err(TokenError::TooFarAhead);
        }
        if !self.audiences.contains(&token.audience) {
            return Err(TokenError::Audience);
        }
        let message = [CONTEXT, token.signed()].concat();
        let peer = verify_signed(token.public_key(), &message, token.signature())
            .ok_or(TokenError::Signature)?;
        // Nothing panics while holding the lock.
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.take(expiry, token.nonce, peer, now)?;
        Ok(peer)
    }
}

/// A token's fields; its bytes are cut where they say.
struct Token {
    bytes: Vec<u8>,
    expiry: u64,
    nonce: [u8; NONCE_LEN],
    audience: Audience,
}

impl Token {
    fn parse(value: &HeaderValue) -> Result<Self, TokenError> {
        Self::read(value.as_bytes()).ok_or(TokenError::Malformed)?
    }

    /// `None` if it is no token at all.
    fn read(value: &[u8]) -> Option<Result<Self, TokenError>> {
        let encoded = after_scheme(value)?.strip_prefix(b" ")?.trim_ascii();
        if encoded.len() > MAX_LEN.div_ceil(3) * 4 {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(encoded).ok()?;
        let (version, rest) = bytes.split_first()?;
        if *version != VERSION {
            return Some(Err(TokenError::Version(*version)));
        }
        let (expiry, rest) = rest.split_first_chunk()?;
        let (nonce, rest) = rest.split_first_chunk()?;
        let (length, rest) = rest.split_first()?;
        let (audience, rest) = rest.split_at_checked(usize::from(*length))?;
        if rest.len() != PUBLIC_KEY_LEN + SIGNATURE_LEN {
            return None;
        }
        let audience = Audience(str::from_utf8(audience).ok()?.to_owned());
        let (expiry, nonce) = (u64::from_be_bytes(*expiry), *nonce);
        Some(Ok(Self {
            expiry,
            nonce,
            audience,
            bytes,
        }))
    }

    fn signed(&self) -> &[u8] {
        &self.bytes[..FIXED_LEN + self.audience.0.len()]
    }

    fn public_key(&self) -> &[u8] {
        &self.bytes[self.signed().len()..][..PUBLIC_KEY_LEN]
    }

    fn signature(&self) -> &[u8] {
        &self.bytes[self.signed().len() + PUBLIC_KEY_LEN..]
    }
}

/// Tokens used and not yet expired, those that expire first in front.
#[derive(Debug, Default)]
struct Used {
    tokens: BTreeSet<(u64, [u8; NONCE_LEN], PeerId)>,
    /// Tokens that expire up to here are no longer told apart, and refused.
    forgotten: u64,
}

impl Used {
    fn take(
        &mut self,
        expiry: u64,
        nonce: [u8; NONCE_LEN],
        peer: PeerId,
        now: u64,
    ) -> Result<(), TokenError> {
        // Those have expired: nobody gets in with them, remembered or not.
        self.tokens = self
            .tokens
            .split_off(&(now + 1, [0; NONCE_LEN], PeerId([0; 32])));
        if expiry <= self.forgotten {
            return Err(TokenError::Expired);
        }
        if !self.tokens.insert((expiry, nonce, peer)) {
            return Err(TokenError::Replayed);
        }
        if self.tokens.len() > MAX_REMEMBERED
            && let Some((oldest, ..)) = self.tokens.pop_first()
        {
            self.forgotten = oldest;
        }
        Ok(())
    }
}

fn unix_seconds(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests;
