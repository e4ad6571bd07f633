//! A baseline of the benchmarks, compiled once on each engine: the program's root names the
//! engine `quic` and what differs between them `engine`.
//!
//! `server` answers; `client` takes one command per line on standard input and prints one JSON
//! line per command. Commands, and what the first byte of a stream asks of the server, are those
//! of `benches/contenders/protocol.py`.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
    str::SplitWhitespace,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use peers::{
    Failure,
    args::Args,
    describe,
    line::Line,
    socket,
    tls::{Auth, Group, Tls},
};
use tokio::{runtime, sync::mpsc};

use crate::{
    engine,
    quic::{
        self, ClientConfig, Connection, Endpoint, EndpointConfig, RecvStream, SendStream,
        ServerConfig, TokioRuntime, TransportConfig, VarInt,
    },
};

const NAMES: [&str; 5] = ["auth", "certificate", "key", "connect", "threads"];
const ALPN: &str = "bench";

/// Windows of every contender; see `benches/contenders/protocol.py`.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
const DATAGRAM_BUFFER: usize = 1 << 20;

const WRITE_BYTES: usize = 64 * 1024;
const ECHO_BYTES: usize = 64 * 1024;

/// Silence after which no more datagrams are expected.
const QUIET: Duration = Duration::from_millis(100);

/// What a stream is for: its first byte.
mod ask {
    pub(super) const UPLOAD: u8 = b'U';
    pub(super) const DOWNLOAD: u8 = b'D';
    pub(super) const ECHO: u8 = b'E';
    pub(super) const COUNT: u8 = b'C';
}

fn transport() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(u64::from(CONNECTION_WINDOW))
        .datagram_send_buffer_size(DATAGRAM_BUFFER)
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER));
    Arc::new(config)
}

/// Runs the program: on a current-thread runtime, or with `--threads` on one with so many workers.
pub(crate) fn main() -> ExitCode {
    let outcome = Args::from_env(&NAMES).and_then(|args| {
        let mut runtime = match args.get("threads", 1)? {
            1 => runtime::Builder::new_current_thread(),
            threads => {
                let mut runtime = runtime::Builder::new_multi_thread();
                runtime.worker_threads(threads);
                runtime
            }
        };
        runtime.enable_all().build()?.block_on(run(&args))
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            Line::event("error").text("error", describe(&error)).print();
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> Result<(), Failure> {
    let auth = match args.text("auth") {
        None | Some("x509") => Auth::X509 {
            certificate: args.text("certificate").map(Into::into),
            key: args.text("key").map(Into::into),
        },
        Some("raw") => Auth::Raw,
        Some(other) => return Err(format!("unknown --auth {other}").into()),
    };
    let tls = Tls::new(&auth, Group::X25519MlKem768, ALPN)?;
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut commands = stdin_lines();
    if args.role == "server" {
        let crypto = quic::crypto::rustls::QuicServerConfig::try_from(
            tls.server.ok_or("a server needs --certificate and --key")?,
        )?;
        let mut config = ServerConfig::with_crypto(Arc::new(crypto));
        config.transport_config(transport());
        let endpoint = endpoint(anywhere, Some(config))?;
        Line::event("ready")
            .text("target", endpoint.local_addr()?)
            .print();
        tokio::select! {
            () = serve(&endpoint) => {}
            _ = commands.recv() => {}
        }
        return Ok(());
    }
    let crypto = quic::crypto::rustls::QuicClientConfig::try_from(tls.client)?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport());
    let endpoint = endpoint(anywhere, None)?;
    let mut client = Client {
        connection: dial(&endpoint, &config, args.require("connect")?).await?,
        endpoint,
        config,
        idle: Vec::new(),
    };
    Line::event("ready").print();
    while let Some(command) = commands.recv().await {
        match client.run(&command).await {
            Ok(line) => line.print(),
            Err(error) => Line::event("error").text("error", describe(&error)).print(),
        }
    }
    Ok(())
}

fn endpoint(address: SocketAddr, server: Option<ServerConfig>) -> Result<Endpoint, Failure> {
    Ok(Endpoint::new(
        EndpointConfig::default(),
        server,
        socket::bind(address)?,
        Arc::new(TokioRuntime),
    )?)
}

async fn dial(
    endpoint: &Endpoint,
    config: &ClientConfig,
    remote: SocketAddr,
) -> Result<Connection, Failure> {
    Ok(endpoint
        .connect_with(config.clone(), remote, "localhost")?
        .await?)
}

/// The lines of standard input; closed at its end. Read by a thread of its own, since a read of
/// the runtime's cannot be given up and would keep the program from ending.
fn stdin_lines() -> mpsc::UnboundedReceiver<String> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

// The server.

async fn serve(endpoint: &Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            if let Ok(connection) = incoming.await {
                answer(connection).await;
            }
        });
    }
}

/// Datagrams of a connection since the last question for them.
#[derive(Default)]
struct Arrivals {
    count: AtomicU64,
    /// Nanoseconds since the start of the connection of the first and the last one.
    first: AtomicU64,
    last: AtomicU64,
}

async fn answer(connection: Connection) {
    let arrivals = Arc::new(Arrivals::default());
    let start = Instant::now();
    loop {
        tokio::select! {
            datagram = connection.read_datagram() => {
                if datagram.is_err() {
                    return;
                }
                let now = start.elapsed().as_nanos() as u64;
                if arrivals.count.fetch_add(1, Ordering::Relaxed) == 0 {
                    arrivals.first.store(now, Ordering::Relaxed);
                }
                arrivals.last.store(now, Ordering::Relaxed);
            }
            stream = connection.accept_bi() => {
                let Ok((send, recv)) = stream else { return };
                // A stream that fails ends with its connection, which the client notices.
                tokio::spawn(oblige(send, recv, arrivals.clone()));
            }
        }
    }
}

async fn oblige(
    mut send: SendStream,
    mut recv: RecvStream,
    arrivals: Arc<Arrivals>,
) -> Result<(), Failure> {
    let mut ask = [0];
    recv.read_exact(&mut ask).await?;
    match ask[0] {
        ask::UPLOAD => {
            let count = drain(&mut recv).await?;
            send.write_all(&count.to_be_bytes()).await?;
        }
        ask::DOWNLOAD => {
            let mut count = [0; 8];
            recv.read_exact(&mut count).await?;
            fill(&mut send, u64::from_be_bytes(count)).await?;
        }
        ask::ECHO => {
            let mut buffer = vec![0; ECHO_BYTES];
            while let Some(count) = recv.read(&mut buffer).await? {
                send.write_all(&buffer[..count]).await?;
            }
        }
        ask::COUNT => {
            let mut seen = u64::MAX;
            while seen != arrivals.count.load(Ordering::Relaxed) {
                seen = arrivals.count.load(Ordering::Relaxed);
                tokio::time::sleep(QUIET).await;
            }
            let span =
                arrivals.last.load(Ordering::Relaxed) - arrivals.first.load(Ordering::Relaxed);
            arrivals.count.store(0, Ordering::Relaxed);
            send.write_all(&seen.to_be_bytes()).await?;
            send.write_all(&span.to_be_bytes()).await?;
        }
        other => return Err(format!("asked for {other}").into()),
    }
    send.finish()?;
    Ok(())
}

async fn drain(recv: &mut RecvStream) -> Result<u64, Failure> {
    let mut count = 0;
    while let Some(chunk) = engine::next_chunk(recv).await? {
        count += chunk.len() as u64;
    }
    Ok(count)
}

async fn fill(send: &mut SendStream, mut count: u64) -> Result<(), Failure> {
    static BLOCK: [u8; WRITE_BYTES] = [0x5a; WRITE_BYTES];
    let block = Bytes::from_static(&BLOCK);
    while count > 0 {
        let size = count.min(WRITE_BYTES as u64);
        send.write_chunk(block.slice(..size as usize)).await?;
        count -= size;
    }
    Ok(())
}

// The client.

struct Client {
    endpoint: Endpoint,
    config: ClientConfig,
    connection: Connection,
    /// Connections that are only held.
    idle: Vec<Connection>,
}

impl Client {
    async fn run(&mut self, command: &str) -> Result<Line, Failure> {
        let mut words = command.split_whitespace();
        let result = Line::event("result");
        match words.next().unwrap_or_default() {
            "bulk" => {
                let up = words.next() == Some("up");
                let (streams, bytes) = (number(&mut words)?, number(&mut words)?);
                self.bulk(result, up, streams, bytes).await
            }
            "datagrams" => {
                let size = number(&mut words)?;
                self.datagrams(result, size, seconds(&mut words)?).await
            }
            "echo" => {
                let size = number(&mut words)?;
                self.echo(result, size, seconds(&mut words)?).await
            }
            "handshakes" => {
                let parallel = number(&mut words)?;
                self.handshakes(result, parallel, seconds(&mut words)?)
                    .await
            }
            "idle" => {
                for _ in 0..number(&mut words)? {
                    let remote = self.remote();
                    let connection = dial(&self.endpoint, &self.config, remote).await?;
                    self.idle.push(connection);
                }
                Ok(result.value("count", self.idle.len()))
            }
            other => Err(format!("unknown command {other:?}").into()),
        }
    }

    fn remote(&self) -> SocketAddr {
        engine::remote(&self.connection)
    }

    async fn bulk(
        &self,
        result: Line,
        up: bool,
        streams: u64,
        bytes: u64,
    ) -> Result<Line, Failure> {
        let start = Instant::now();
        let tasks: Vec<_> = (0..streams)
            .map(|_| {
                let connection = self.connection.clone();
                tokio::spawn(transfer(connection, up, bytes / streams))
            })
            .collect();
        let mut count = 0;
        for task in tasks {
            count += task.await??;
        }
        Ok(result
            .value("bytes", count)
            .value("seconds", start.elapsed().as_secs_f64()))
    }

    async fn datagrams(
        &self,
        result: Line,
        size: u64,
        duration: Duration,
    ) -> Result<Line, Failure> {
        let payload = Bytes::from(vec![0x5a; size as usize]);
        let start = Instant::now();
        let mut sent = 0u64;
        while start.elapsed() < duration {
            self.connection.send_datagram_wait(payload.clone()).await?;
            sent += 1;
        }
        let (mut send, mut recv) = self.connection.open_bi().await?;
        send.write_all(&[ask::COUNT]).await?;
        send.finish()?;
        let (mut count, mut span) = ([0; 8], [0; 8]);
        recv.read_exact(&mut count).await?;
        recv.read_exact(&mut span).await?;
        Ok(result
            .value("sent", sent)
            .value("received", u64::from_be_bytes(count))
            .value(
                "seconds",
                Duration::from_nanos(u64::from_be_bytes(span)).as_secs_f64(),
            ))
    }

    async fn echo(&self, result: Line, size: u64, duration: Duration) -> Result<Line, Failure> {
        let (mut send, mut recv) = self.connection.open_bi().await?;
        send.write_all(&[ask::ECHO]).await?;
        let message = vec![0x5a; size as usize];
        let mut answer = vec![0; size as usize];
        let mut times = Vec::new();
        let start = Instant::now();
        while start.elapsed() < duration {
            let begun = Instant::now();
            send.write_all(&message).await?;
            recv.read_exact(&mut answer).await?;
            times.push(begun.elapsed());
        }
        send.finish()?;
        Ok(result
            .value("count", times.len())
            .value("p50", quantile(&mut times, 50))
            .value("p99", quantile(&mut times, 99)))
    }

    async fn handshakes(
        &self,
        result: Line,
        parallel: u64,
        duration: Duration,
    ) -> Result<Line, Failure> {
        let remote = self.remote();
        let start = Instant::now();
        let tasks: Vec<_> = (0..parallel)
            .map(|_| {
                let (endpoint, config) = (self.endpoint.clone(), self.config.clone());
                tokio::spawn(async move {
                    let mut times = Vec::new();
                    while start.elapsed() < duration {
                        let begun = Instant::now();
                        let connection = dial(&endpoint, &config, remote).await?;
                        times.push(begun.elapsed());
                        connection.close(VarInt::from_u32(0), b"");
                    }
                    Ok::<_, Failure>(times)
                })
            })
            .collect();
        let mut times = Vec::new();
        for task in tasks {
            times.extend(task.await??);
        }
        Ok(result
            .value("count", times.len())
            .value("seconds", start.elapsed().as_secs_f64())
            .value("p50", quantile(&mut times, 50)))
    }
}

async fn transfer(connection: Connection, up: bool, bytes: u64) -> Result<u64, Failure> {
    let (mut send, mut recv) = connection.open_bi().await?;
    if up {
        send.write_all(&[ask::UPLOAD]).await?;
        fill(&mut send, bytes).await?;
        send.finish()?;
        let mut count = [0; 8];
        recv.read_exact(&mut count).await?;
        return Ok(u64::from_be_bytes(count));
    }
    send.write_all(&[ask::DOWNLOAD]).await?;
    send.write_all(&bytes.to_be_bytes()).await?;
    send.finish()?;
    drain(&mut recv).await
}

fn number(words: &mut SplitWhitespace<'_>) -> Result<u64, Failure> {
    Ok(words.next().ok_or("a number is missing")?.parse()?)
}

fn seconds(words: &mut SplitWhitespace<'_>) -> Result<Duration, Failure> {
    let text = words.next().ok_or("a duration is missing")?;
    Ok(Duration::try_from_secs_f64(text.parse()?)?)
}

/// In seconds; 0 of nothing.
fn quantile(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    let index = times.len() * percent / 100;
    times
        .get(index.min(times.len().saturating_sub(1)))
        .map_or(0.0, Duration::as_secs_f64)
}
