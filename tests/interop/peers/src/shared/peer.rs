//! The peer of the interop tests, compiled once on each engine: the program's root names the
//! engine `quic` and what differs between them `engine`.
//!
//! `server` echoes every stream and datagram; `client` dials, sends, and checks what comes back.
//! Both print JSON lines, and end when their standard input does; a client that is not told to
//! `--hold` its connection closes it when the echoes are checked.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use peers::{
    Failure, NODE_ALPN,
    args::Args,
    describe,
    hello::{self, Hello},
    identity::peer_id,
    line::Line,
    socket,
    tls::{Auth, Group, Tls},
};
use rustls::pki_types::CertificateDer;
use tokio::sync::oneshot;

use crate::{
    engine,
    quic::{
        self, ClientConfig, Connection, Endpoint, EndpointConfig, RecvStream, SendStream,
        ServerConfig, TokioRuntime, VarInt,
    },
};

const NAMES: [&str; 12] = [
    "bind",
    "group",
    "auth",
    "certificate",
    "key",
    "alpn",
    "connect",
    "bytes",
    "streams",
    "hello",
    "timeout",
    "hold",
];

/// One write of the client; not a divisor of anything, so that reads and writes do not align.
const WRITE_BYTES: usize = 10_007;

/// Echo buffer of one stream.
const ECHO_BYTES: usize = 64 * 1024;

/// How long a closing program waits for its connections to drain: many round trips of loopback.
const GOODBYE: Duration = Duration::from_millis(300);

struct Peer {
    endpoint: Endpoint,
    peer_id: String,
    says_hello: bool,
    agent: &'static str,
}

/// Runs the program. `agent` is what the hello says.
pub(crate) async fn main(agent: &'static str) -> Result<(), Failure> {
    let args = Args::from_env(&NAMES)?;
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let alpn = args.text("alpn").unwrap_or(NODE_ALPN);
    let auth = match args.text("auth") {
        None | Some("raw") => Auth::Raw,
        Some("x509") => Auth::X509 {
            certificate: args.text("certificate").map(Into::into),
            key: args.text("key").map(Into::into),
        },
        Some(other) => return Err(format!("unknown --auth {other}").into()),
    };
    let tls = Tls::new(&auth, args.get("group", Group::X25519MlKem768)?, alpn)?;
    let transport = Arc::new(engine::transport());
    let timeout = Duration::from_secs_f64(args.get("timeout", 10.0)?);

    let server_config = match tls.server {
        Some(tls) if args.role == "server" => {
            let crypto = quic::crypto::rustls::QuicServerConfig::try_from(tls)?;
            let mut config = ServerConfig::with_crypto(Arc::new(crypto));
            config.transport_config(transport.clone());
            Some(config)
        }
        _ => None,
    };
    let peer = Peer {
        endpoint: Endpoint::new(
            EndpointConfig::default(),
            server_config,
            socket::bind(args.get("bind", anywhere)?)?,
            Arc::new(TokioRuntime),
        )?,
        peer_id: tls.peer_id,
        says_hello: args.get("hello", true)?,
        agent,
    };
    let ended = stdin_ended();
    match args.role.as_str() {
        "server" => tokio::select! {
            () = peer.serve() => {}
            _ = ended => {}
        },
        "client" => {
            let crypto = quic::crypto::rustls::QuicClientConfig::try_from(tls.client)?;
            let mut config = ClientConfig::new(Arc::new(crypto));
            config.transport_config(transport);
            let work = Work {
                remote: args.require("connect")?,
                bytes: args.get("bytes", 300_000)?,
                streams: args.get("streams", 1)?,
            };
            let (connection, control) =
                tokio::time::timeout(timeout, peer.dial(config, work)).await??;
            if args.get("hold", false)? {
                // An error means that the thread is gone, and so is the input.
                let _ = ended.await;
            }
            connection.close(VarInt::from_u32(0), b"done");
            drop(control);
        }
        other => return Err(format!("unknown role {other}").into()),
    }
    peer.endpoint.close(VarInt::from_u32(0), b"bye");
    // Time to send the close; a peer that refused us would keep the endpoint for seconds.
    let _ = tokio::time::timeout(GOODBYE, peer.endpoint.wait_idle()).await;
    Ok(())
}

struct Work {
    remote: SocketAddr,
    bytes: usize,
    streams: usize,
}

/// Resolves when standard input ends. A thread of its own, since a read of the runtime's cannot be
/// given up and would keep the program from ending.
fn stdin_ended() -> oneshot::Receiver<()> {
    let (sender, receiver) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = sender.send(());
    });
    receiver
}

impl Peer {
    async fn serve(&self) {
        let address = self.endpoint.local_addr();
        let address = address.unwrap_or_else(|_| SocketAddr::from((IpAddr::from([0; 4]), 0)));
        Line::event("listening")
            .text("peer_id", &self.peer_id)
            .text("address", address)
            .value("port", address.port())
            .print();
        while let Some(incoming) = self.endpoint.accept().await {
            let remote = incoming.remote_address();
            let (says_hello, agent) = (self.says_hello, self.agent);
            tokio::spawn(async move {
                let outcome = async {
                    let connection = incoming.await?;
                    answer(connection, says_hello, agent).await
                };
                if let Err(error) = outcome.await {
                    Line::event("failed")
                        .text("remote", remote)
                        .text("error", describe(&error))
                        .print();
                }
            });
        }
    }

    /// Does the work; the connection, and its control stream, which ends it when dropped.
    async fn dial(
        &self,
        config: ClientConfig,
        work: Work,
    ) -> Result<(Connection, Option<(SendStream, RecvStream)>), Failure> {
        let start = Instant::now();
        let connection = self
            .endpoint
            .connect_with(config, work.remote, "localhost")?
            .await?;
        let handshake = start.elapsed();
        let mut control = None;
        let mut accept = Hello::default();
        if self.says_hello {
            let (mut send, mut recv) = connection.open_bi().await?;
            send.write_all(&greeting(hello::HELLO, self.agent).encode())
                .await?;
            accept = read_hello(&mut recv, hello::ACCEPT).await?;
            control = Some((send, recv));
        }
        connected(&connection, &accept, Some(handshake));
        engine::watch(&connection);
        let echoes: Vec<_> = (0..work.streams)
            .map(|number| tokio::spawn(echoed(connection.clone(), work.bytes, number as u8)))
            .collect();
        for echo in echoes {
            echo.await??;
        }
        Line::event("echoed")
            .value("bytes", work.bytes)
            .value("streams", work.streams)
            .print();
        Ok((connection, control))
    }
}

/// The accepting side of one connection, until it ends.
async fn answer(connection: Connection, says_hello: bool, agent: &str) -> Result<(), Failure> {
    let mut control = None;
    let mut said = Hello::default();
    if says_hello {
        let (mut send, mut recv) = connection.accept_bi().await?;
        said = read_hello(&mut recv, hello::HELLO).await?;
        send.write_all(&greeting(hello::ACCEPT, agent).encode())
            .await?;
        control = Some((send, recv));
    }
    connected(&connection, &said, None);
    engine::watch(&connection);
    let closed = loop {
        tokio::select! {
            accepted = connection.accept_bi() => match accepted {
                Ok((send, recv)) => drop(tokio::spawn(echo(send, recv))),
                Err(error) => break error,
            },
            accepted = connection.accept_uni() => match accepted {
                Ok(recv) => drop(tokio::spawn(echo_uni(connection.clone(), recv))),
                Err(error) => break error,
            },
            datagram = connection.read_datagram() => match datagram {
                // Datagrams may be dropped, and are where they do not fit.
                Ok(datagram) => drop(connection.send_datagram(datagram)),
                Err(error) => break error,
            },
        }
    };
    drop(control);
    Line::event("closed").text("reason", closed).print();
    Ok(())
}

fn connected(connection: &Connection, said: &Hello, handshake: Option<Duration>) {
    let key = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .and_then(|chain| Some(peer_id(chain.first()?)));
    let line = Line::event("connected")
        .text("peer_id", key.unwrap_or_default())
        .text("remote", engine::remote(connection))
        .text("agent", &said.agent)
        .value("version", said.version);
    match handshake {
        Some(time) => line.value("handshake_ms", time.as_secs_f64() * 1e3).print(),
        None => line.print(),
    }
}

fn greeting(kind: u64, agent: &str) -> Hello {
    Hello {
        kind,
        version: 1,
        instance: u64::from(std::process::id()) << 32 | 0x5eed,
        serial: 1,
        agent: agent.to_owned(),
    }
}

async fn read_hello(recv: &mut RecvStream, kind: u64) -> Result<Hello, Failure> {
    let mut first = [0];
    recv.read_exact(&mut first).await?;
    let (more, start) = hello::length_start(first[0]);
    let mut rest = vec![0; more];
    recv.read_exact(&mut rest).await?;
    let mut body = vec![0; hello::length(start, &rest)?];
    recv.read_exact(&mut body).await?;
    let hello = Hello::decode(&body)?;
    if hello.kind != kind {
        return Err(format!("message of kind {} where {kind} belongs", hello.kind).into());
    }
    Ok(hello)
}

async fn echo(mut send: SendStream, mut recv: RecvStream) -> Result<(), Failure> {
    let mut buffer = vec![0; ECHO_BYTES];
    while let Some(count) = recv.read(&mut buffer).await? {
        send.write_all(&buffer[..count]).await?;
    }
    send.finish()?;
    Ok(())
}

async fn echo_uni(connection: Connection, recv: RecvStream) -> Result<(), Failure> {
    echo(connection.open_uni().await?, recv).await
}

/// Sends `bytes` of a pattern on a stream of its own and checks the echo.
async fn echoed(connection: Connection, bytes: usize, number: u8) -> Result<(), Failure> {
    let pattern: Bytes = (0..bytes)
        .map(|position| ((position * 31) >> 3) as u8 ^ number)
        .collect();
    let (mut send, mut recv) = connection.open_bi().await?;
    let sent = pattern.clone();
    let writer = tokio::spawn(async move {
        for chunk in sent.chunks(WRITE_BYTES) {
            send.write_all(chunk).await?;
        }
        send.finish()?;
        Ok::<_, Failure>(())
    });
    let mut position = 0;
    let mut buffer = vec![0; ECHO_BYTES];
    while let Some(count) = recv.read(&mut buffer).await? {
        if pattern.get(position..position + count) != Some(&buffer[..count]) {
            return Err(format!("the echo differs after {position} bytes").into());
        }
        position += count;
    }
    writer.await??;
    if position != bytes {
        return Err(format!("{position} of {bytes} bytes came back").into());
    }
    Ok(())
}
