//! Through an HTTP proxy: CONNECT in HTTP/1.1 (RFC 9110, section 9.3.6), which is what proxies of
//! companies speak. Not here: which proxy, if any (that is the environment's and policy), and TLS
//! to or through it.

use std::{
    fmt, io,
    pin::Pin,
    str::FromStr,
    task::{Context, Poll},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Buf, Bytes, BytesMut};
use http::{StatusCode, Uri, uri::Scheme};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::timeout,
};

use crate::carrier::CarrierError;

/// Most bytes of all response heads together: proxies add a few fields, login pages a few more.
const MAX_HEAD: usize = 16 * 1024;

/// Most fields in a response head.
const MAX_FIELDS: usize = 100;

/// How long the proxy may take to answer. It connects to the target meanwhile, and the usual time
/// it gives itself for that is 30 s and more, but by then every other way has been tried.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// An HTTP proxy, as environment variables and users name it.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Whether the way to the proxy itself is TLS (`https://`).
    pub tls: bool,
    /// Name or IP address, IPv6 without brackets.
    pub host: String,
    /// Port; 80 or 443 where the URL names none.
    pub port: u16,
    /// User and password, decoded.
    credentials: Option<(String, String)>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proxy(")?;
        fmt::Display::fmt(self, f)?;
        f.write_str(")")
    }
}

impl fmt::Display for Proxy {
    /// As a URL, without the credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", authority(&self.host, self.port))
    }
}

/// A proxy URL that cannot be used. It does not repeat the URL, which may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProxyUrlError {
    /// No URL with a host.
    #[error("not a proxy URL: write it as http://[USER:PASSWORD@]HOST:PORT")]
    Invalid,
    /// Another kind of proxy.
    #[error(
        "{0} proxies are not supported: give an HTTP proxy, http://HOST:PORT or https://HOST:PORT"
    )]
    Scheme(String),
    /// User or password with a `%` that starts no escape, or with control characters.
    #[error("user or password of the proxy cannot be read: write special characters as %XX")]
    Credentials,
}

impl FromStr for Proxy {
    type Err = ProxyUrlError;

    /// Reads `http://[user:password@]host[:port]` or the same with `https`; user and password are
    /// percent-decoded. Without a scheme `http` is meant, as everywhere else.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let with_scheme = match text.split_once("://") {
            Some(_) => text.to_owned(),
            None => format!("http://{text}"),
        };
        let uri: Uri = with_scheme.parse().map_err(|_| ProxyUrlError::Invalid)?;
        let tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(other) => return Err(ProxyUrlError::Scheme(other.to_string())),
            None => return Err(ProxyUrlError::Invalid),
        };
        let authority = uri.authority().ok_or(ProxyUrlError::Invalid)?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        if host.is_empty() {
            return Err(ProxyUrlError::Invalid);
        }
        let credentials = match authority.as_str().rsplit_once('@') {
            None => None,
            Some((user_info, _)) => {
                let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
                let decode = |part| percent_decode(part).ok_or(ProxyUrlError::Credentials);
                let (user, password) = (decode(user)?, decode(password)?);
                // RFC 7617, section 2: the colon separates.
                if user.contains(':') {
                    return Err(ProxyUrlError::Credentials);
                }
                Some((user, password))
            }
        };
        let after_host = authority.as_str().rsplit([']', '@']).next();
        let port = after_host.and_then(|text| text.rsplit_once(':'));
        let port = match port {
            Some((_, digits)) if !digits.is_empty() => {
                digits.parse().map_err(|_| ProxyUrlError::Invalid)?
            }
            _ if tls => 443,
            _ => 80,
        };
        Ok(Self {
            tls,
            host,
            port,
            credentials,
        })
    }
}

/// `None` for an escape that is none, and for what HTTP credentials cannot carry.
fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            (digit()? * 16 + digit()?) as u8
        } else {
            byte
        });
    }
    let text = String::from_utf8(out).ok()?;
    (!text.chars().any(char::is_control)).then_some(text)
}

/// `host:port`, IPv6 literals bracketed (RFC 3986, section 3.2.2).
pub(crate) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

impl Proxy {
    /// Asks the proxy at the other end of `stream` for a connection to `host:port`, and gives the
    /// stream back as that connection.
    ///
    /// # Errors
    /// `proxy-auth`, `proxy-refused`, or `closed` and `handshake-timeout` of the proxy itself.
    pub async fn connect<S>(
        &self,
        mut stream: S,
        host: &str,
        port: u16,
    ) -> Result<Rewound<S>, CarrierError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let target = authority(host, port);
        if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(CarrierError::new(
                "http",
                format!("{target:?} is no host name a proxy could be asked for"),
            ));
        }
        let answered = async {
            let request = self.request(&target);
            stream.write_all(request.as_bytes()).await?;
            stream.flush().await?;
            read_answer(&mut stream).await
        };
        let answer = timeout(ANSWER_TIMEOUT, answered)
            .await
            .map_err(|_| {
                CarrierError::new(
                    "handshake-timeout",
                    format!(
                        "the proxy {self} did not answer within {} s",
                        ANSWER_TIMEOUT.as_secs()
                    ),
                )
            })?
            .map_err(|error| {
                CarrierError::new("closed", format!("the proxy {self} went away: {error}"))
            })?;
        match answer {
            Answer::Response(response) if response.status.is_success() => {
                Ok(Rewound::new(stream, response.rest))
            }
            Answer::Response(response) => Err(self.refusal(&target, &response)),
            Answer::Closed => Err(CarrierError::new(
                "closed",
                format!("the proxy {self} closed the connection without an answer"),
            )),
            Answer::NotHttp => Err(CarrierError::new(
                "proxy-refused",
                format!("{self} is no HTTP proxy: its answer is not HTTP/1.1"),
            )),
            Answer::TooLong => Err(CarrierError::new(
                "proxy-refused",
                format!("the proxy {self} answered with a head of more than {MAX_HEAD} bytes"),
            )),
        }
    }

    fn request(&self, target: &str) -> String {
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
        if let Some((user, password)) = &self.credentials {
            let basic = STANDARD.encode(format!("{user}:{password}"));
            request.push_str(&format!("Proxy-Authorization: Basic {basic}\r\n"));
        }
        request.push_str("\r\n");
        request
    }

    fn refusal(&self, target: &str, response: &Response) -> CarrierError {
        let said = match response.reason.as_str() {
            "" => response.status.as_u16().to_string(),
            reason => format!("{} {reason}", response.status.as_u16()),
        };
        if response.status != StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            return CarrierError::new(
                "proxy-refused",
                format!("the proxy {self} refused CONNECT to {target}: {said}"),
            );
        }
        let offered = if response.schemes.is_empty() {
            "no scheme".to_owned()
        } else {
            response.schemes.join(", ")
        };
        let basic = response
            .schemes
            .iter()
            .any(|scheme| scheme.eq_ignore_ascii_case("basic"));
        let advice = match (&self.credentials, basic) {
            (Some(_), true) => "it did not accept the user and password given",
            (Some(_), false) => {
                "user and password were sent as Basic, which it does not take: use a proxy that \
                 does, or a local one that translates"
            }
            (None, true) => {
                "no credentials were given: put them into the proxy URL, \
                 http://USER:PASSWORD@HOST:PORT"
            }
            (None, false) => {
                "no credentials were given, and Basic, the only scheme supported, is not offered"
            }
        };
        CarrierError::new(
            "proxy-auth",
            format!(
                "the proxy {self} wants authentication ({said}; it offers {offered}): {advice}"
            ),
        )
    }
}

/// What came instead of, or as, the answer.
enum Answer {
    Response(Response),
    Closed,
    NotHttp,
    TooLong,
}

/// The final response to CONNECT.
struct Response {
    status: StatusCode,
    reason: String,
    /// Authentication schemes the proxy offers.
    schemes: Vec<String>,
    /// What came after the head.
    rest: Bytes,
}

async fn read_answer(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Answer> {
    const START: &[u8] = b"HTTP/1.";
    let mut received = BytesMut::with_capacity(1024);
    let mut heads = 0;
    loop {
        // Interim responses first (RFC 9110, section 15.2), then the one that counts.
        while let Some(length) = head_length(&received) {
            if heads + length > MAX_HEAD {
                return Ok(Answer::TooLong);
            }
            heads += length;
            let head = received.split_to(length);
            let Some(response) = parse_head(&head) else {
                return Ok(Answer::NotHttp);
            };
            if !response.status.is_informational() {
                let rest = received.freeze();
                return Ok(Answer::Response(Response { rest, ..response }));
            }
            if response.status == StatusCode::SWITCHING_PROTOCOLS {
                return Ok(Answer::NotHttp);
            }
        }
        let start = received.len().min(START.len());
        if received[..start] != START[..start] {
            return Ok(Answer::NotHttp);
        }
        if heads + received.len() > MAX_HEAD {
            return Ok(Answer::TooLong);
        }
        if stream.read_buf(&mut received).await? == 0 {
            return Ok(Answer::Closed);
        }
    }
}

/// Bytes of a whole head at the front, empty line included. Bare line feeds are taken for line
/// ends, as `httparse` does.
fn head_length(received: &[u8]) -> Option<usize> {
    let mut line_start = 0;
    for (position, byte) in received.iter().enumerate() {
        if *byte == b'\n' {
            if matches!(&received[line_start..position], b"" | b"\r") && line_start > 0 {
                return Some(position + 1);
            }
            line_start = position + 1;
        }
    }
    None
}

fn parse_head(head: &[u8]) -> Option<Response> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut fields);
    if !parsed.parse(head).ok()?.is_complete() {
        return None;
    }
    let schemes = parsed
        .headers
        .iter()
        .filter(|field| field.name.eq_ignore_ascii_case("proxy-authenticate"))
        .flat_map(|field| schemes(&String::from_utf8_lossy(field.value)))
        .collect();
    Some(Response {
        status: StatusCode::from_u16(parsed.code?).ok()?,
        reason: shown(parsed.reason.unwrap_or_default()),
        schemes,
        rest: Bytes::new(),
    })
}

/// Text of the proxy, safe to show.
fn shown(text: &str) -> String {
    const MOST: usize = 200;
    text.chars()
        .take(MOST)
        .filter(|c| !c.is_control())
        .collect()
}

/// The schemes in a list of challenges (RFC 9110, section 11.6.1): a scheme begins an element of
/// the list and is not followed by `=`, as a parameter is.
fn schemes(challenges: &str) -> Vec<String> {
    let mut quoted = false;
    let elements = challenges.split(|c: char| {
        quoted ^= c == '"';
        c == ',' && !quoted
    });
    elements
        .filter_map(|element| {
            let word = element.trim().split(' ').next()?;
            let token = !word.is_empty()
                && word
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            let parameter = element.trim()[word.len()..].trim_start().starts_with('=');
            (token && !parameter).then(|| shown(word))
        })
        .collect()
}

/// A stream of which some bytes were read already: they come first.
#[derive(Debug)]
pub struct Rewound<S> {
    stream: S,
    first: Bytes,
}

impl<S> Rewound<S> {
    fn new(stream: S, first: Bytes) -> Self {
        Self { stream, first }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let taken = self.first.len().min(buf.remaining());
        buf.put_slice(&self.first[..taken]);
        self.first.advance(taken);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
