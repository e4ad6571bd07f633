//! The hello of a node, written and read byte by byte.
//!
//! On the first bidirectional stream of the dialing side: a QUIC variable-length integer, then as
//! many bytes of CBOR. The dialer sends kind 1, the other answers with kind 2.

use crate::Failure;

/// Kind of the first message of the dialer.
pub const HELLO: u64 = 1;
/// Kind of the answer.
pub const ACCEPT: u64 = 2;

/// Longest message the protocol allows.
const MAX_BYTES: u64 = 64 * 1024;

const UNSIGNED: u8 = 0;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const TAG: u8 = 6;

/// What a hello says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// Kind: [`HELLO`] or [`ACCEPT`].
    pub kind: u64,
    /// Protocol version.
    pub version: u64,
    /// Random, fresh per start.
    pub instance: u64,
    /// Grows with each hello of an instance.
    pub serial: u64,
    /// Software of the sender.
    pub agent: String,
}

impl Hello {
    /// The message with its length prefix. A key of the future is included, which every node
    /// must step over.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        head(&mut body, MAP, 7);
        for (key, value) in [
            (0, self.kind),
            (1, self.version),
            (2, self.instance),
            (3, self.serial),
        ] {
            head(&mut body, UNSIGNED, key);
            head(&mut body, UNSIGNED, value);
        }
        head(&mut body, UNSIGNED, 4);
        head(&mut body, ARRAY, 0);
        head(&mut body, UNSIGNED, 5);
        head(&mut body, TEXT, self.agent.len() as u64);
        body.extend_from_slice(self.agent.as_bytes());
        head(&mut body, UNSIGNED, 1000);
        head(&mut body, ARRAY, 1);
        head(&mut body, TEXT, 6);
        body.extend_from_slice(b"future");

        // A two-byte variable-length integer (RFC 9000, section 16); our bodies are short.
        let mut message = (0x4000 | body.len() as u16).to_be_bytes().to_vec();
        message.extend_from_slice(&body);
        message
    }

    /// Reads a complete body.
    ///
    /// # Errors
    /// Anything but a map with the fields of a hello.
    pub fn decode(body: &[u8]) -> Result<Self, Failure> {
        let mut reader = Reader(body);
        let mut hello = Self::default();
        for _ in 0..reader.expect(MAP)? {
            match reader.expect(UNSIGNED)? {
                0 => hello.kind = reader.expect(UNSIGNED)?,
                1 => hello.version = reader.expect(UNSIGNED)?,
                2 => hello.instance = reader.expect(UNSIGNED)?,
                3 => hello.serial = reader.expect(UNSIGNED)?,
                4 => {
                    for _ in 0..reader.expect(ARRAY)? {
                        reader.text()?;
                    }
                }
                5 => hello.agent = reader.text()?,
                _ => reader.skip()?,
            }
        }
        if !reader.0.is_empty() {
            return Err("bytes after the hello".into());
        }
        Ok(hello)
    }
}

/// How many bytes follow the first byte of a length prefix, and the bits the first byte carries.
pub fn length_start(first: u8) -> (usize, u64) {
    ((1 << (first >> 6)) - 1, u64::from(first & 0x3f))
}

/// The length of which [`length_start`] gave the first bits.
///
/// # Errors
/// It is beyond the limit of the protocol.
pub fn length(start: u64, rest: &[u8]) -> Result<usize, Failure> {
    let length = rest
        .iter()
        .fold(start, |length, &byte| length << 8 | u64::from(byte));
    if length > MAX_BYTES {
        return Err(format!("a control message of {length} bytes").into());
    }
    Ok(length as usize)
}

/// The head of a data item (RFC 8949, section 3), in its shortest form.
fn head(out: &mut Vec<u8>, major: u8, value: u64) {
    let major = major << 5;
    match value {
        0..24 => out.push(major | value as u8),
        24..0x100 => out.extend([major | 24, value as u8]),
        0x100..0x1_0000 => {
            out.push(major | 25);
            out.extend((value as u16).to_be_bytes());
        }
        0x1_0000..0x1_0000_0000 => {
            out.push(major | 26);
            out.extend((value as u32).to_be_bytes());
        }
        _ => {
            out.push(major | 27);
            out.extend(value.to_be_bytes());
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: u64) -> Result<&'a [u8], Failure> {
        let count = usize::try_from(count)?;
        let (taken, rest) = self.0.split_at_checked(count).ok_or("hello is cut short")?;
        self.0 = rest;
        Ok(taken)
    }

    /// The argument of the next head, which must be of the given major type.
    fn expect(&mut self, major: u8) -> Result<u64, Failure> {
        let first = self.take(1)?[0];
        if first >> 5 != major {
            return Err(format!("major type {} where {major} belongs", first >> 5).into());
        }
        match first & 31 {
            value @ 0..24 => Ok(u64::from(value)),
            width @ 24..28 => Ok(self
                .take(1 << (width - 24))?
                .iter()
                .fold(0, |value, &byte| value << 8 | u64::from(byte))),
            _ => Err("indefinite or reserved length".into()),
        }
    }

    /// Steps over one item and what is inside it.
    fn skip(&mut self) -> Result<(), Failure> {
        let mut items: u64 = 1;
        while items > 0 {
            items -= 1;
            let major = self.0.first().ok_or("hello is cut short")? >> 5;
            let argument = self.expect(major)?;
            match major {
                BYTES | TEXT => {
                    self.take(argument)?;
                }
                ARRAY => items = items.saturating_add(argument),
                MAP => items = items.saturating_add(argument.saturating_mul(2)),
                TAG => items += 1,
                _ => {}
            }
            if items > self.0.len() as u64 {
                return Err("hello is cut short".into());
            }
        }
        Ok(())
    }

    fn text(&mut self) -> Result<String, Failure> {
        let length = self.expect(TEXT)?;
        Ok(std::str::from_utf8(self.take(length)?)?.to_owned())
    }
}
