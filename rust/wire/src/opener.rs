//! Openers: 24-byte authenticated datagrams that open NATs, beside QUIC on the same port.
//!
//! An opener makes the NATs on its way expect datagrams from where it is sent to, and tells the
//! receiver under which address its sender is seen there. It carries nothing else. This is the
//! layout alone: keys and what an opener means are the business of whoever holds the secrets.
//!
//! ```text
//!  0      1      2                 10            14                  24
//! +------+------+--//--------------+-------------+--//----------------+
//! | 0x0d | kind | tag (8)          | number (4)  | mac (10)           |
//! +------+------+--//--------------+-------------+--//----------------+
//! ```
//!
//! `tag` names the secret and is all that an observer can link openers by; `number` counts the
//! openers sent under it; `mac` is HMAC-SHA-256 over everything before it and one byte for the role
//! of the sender, truncated to its first 80 bits (RFC 2104, section 5, sets 80 bits as the least).
//! Guessing one takes 2^79 datagrams on average, at one secret.

/// Length of every opener, in bytes.
pub const OPENER_LEN: usize = 24;

/// The first byte of every opener.
///
/// QUIC has the bit 0x40 set (RFC 9000, section 17), and 4 to 15 are the values RFC 7983, section 7,
/// gives to no protocol that shares ports with it. A middlebox that looks closer finds neither.
pub const OPENER_FIRST_BYTE: u8 = 0x0d;

/// Length of the name of a secret.
pub const TAG_LEN: usize = 8;

/// Length of the truncated HMAC.
pub const MAC_LEN: usize = 10;

/// Length of what the HMAC is computed over: all that precedes it, and the role.
pub const SIGNED_LEN: usize = OPENER_LEN - MAC_LEN + 1;

/// What an opener wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OpenerKind {
    /// Open the way, and answer if this gets through.
    Open,
    /// An [`Open`](Self::Open) with this number got through.
    Answer,
    /// Sent by a node to one of its own addresses, to see what becomes of it on the way.
    Reflection,
}

impl OpenerKind {
    const fn to_byte(self) -> u8 {
        match self {
            Self::Open => 0,
            Self::Answer => 1,
            Self::Reflection => 2,
        }
    }

    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Open),
            1 => Some(Self::Answer),
            2 => Some(Self::Reflection),
            _ => None,
        }
    }
}

/// Who says it. Part of what is authenticated and not of what is sent, so that nobody's openers
/// can be thrown back at them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OpenerRole {
    /// The side that dialed the connection.
    Client,
    /// The side that accepted it.
    Server,
    /// A node talking to itself.
    Myself,
}

impl OpenerRole {
    const fn to_byte(self) -> u8 {
        match self {
            Self::Client => b'c',
            Self::Server => b's',
            Self::Myself => b'm',
        }
    }
}

/// An opener without its proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Opener {
    /// What it wants.
    pub kind: OpenerKind,
    /// Names the secret it is authenticated with.
    pub tag: [u8; TAG_LEN],
    /// Which of the openers of its sender under that secret it is; in an answer, the number of the
    /// opener answered.
    pub number: u32,
}

/// The truncated HMAC of an opener, as received: compare it in constant time.
pub type Mac = [u8; MAC_LEN];

impl Opener {
    /// What the HMAC is computed over, for an opener said by `role`.
    pub fn signed(&self, role: OpenerRole) -> [u8; SIGNED_LEN] {
        let mut signed = [0; SIGNED_LEN];
        signed[0] = OPENER_FIRST_BYTE;
        signed[1] = self.kind.to_byte();
        signed[2..10].copy_from_slice(&self.tag);
        signed[10..14].copy_from_slice(&self.number.to_be_bytes());
        signed[14] = role.to_byte();
        signed
    }

    /// The datagram.
    pub fn to_datagram(&self, mac: &Mac) -> [u8; OPENER_LEN] {
        let mut datagram = [0; OPENER_LEN];
        let before = OPENER_LEN - MAC_LEN;
        // Everything signed but the role, which is last.
        datagram[..before].copy_from_slice(&self.signed(OpenerRole::Myself)[..before]);
        datagram[before..].copy_from_slice(mac);
        datagram
    }

    /// Reads a datagram; `None` if it is none of ours, or of a kind this version does not know.
    pub fn parse(datagram: &[u8]) -> Option<(Self, Mac)> {
        let datagram: &[u8; OPENER_LEN] = datagram.try_into().ok()?;
        let [first, kind, rest @ ..] = datagram;
        if *first != OPENER_FIRST_BYTE {
            return None;
        }
        let (tag, rest) = rest.split_first_chunk::<TAG_LEN>()?;
        let (number, mac) = rest.split_first_chunk::<4>()?;
        let opener = Self {
            kind: OpenerKind::from_byte(*kind)?,
            tag: *tag,
            number: u32::from_be_bytes(*number),
        };
        Some((opener, mac.try_into().ok()?))
    }
}

/// Whether a datagram has the shape of an opener, for whoever sorts datagrams.
#[inline]
pub fn is_opener(datagram: &[u8]) -> bool {
    datagram.len() == OPENER_LEN && datagram[0] == OPENER_FIRST_BYTE
}
