//! Carriers in memory: a dialer that does as it is told, and the relay's end of every request.
#![allow(
    unreachable_pub,
    dead_code,
    reason = "test helpers, of which each test uses some"
)]

use std::{
    collections::VecDeque,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyreach_masque::{
    carrier::{
        BoxFuture, CapsuleError, CarrierError, CarrierKind, ClientCarrier, Close, DatagramError,
        TunnelIn, TunnelOut,
    },
    client::{Attempt, CarrierDialer, Dialed, RelayTarget},
};
use anyreach_quic::PeerId;
use anyreach_wire::{
    capsule::{Capsule, Decoder, Item},
    uri_template::Host,
};
use bytes::Bytes;
use http::{Request, Response};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};

pub const RELAY: PeerId = PeerId([7; 32]);

/// Where the fake relay would be.
pub fn relay_address() -> SocketAddr {
    ([203, 0, 113, 1], 443).into()
}

pub fn target() -> RelayTarget {
    let host = Host::parse("203.0.113.1").unwrap();
    RelayTarget::node(Some(RELAY), host, 443, &[relay_address()])
}

/// What becomes of one dial.
#[derive(Debug, Clone)]
pub struct Way {
    pub connect_after: Duration,
    pub connects: Result<(), &'static str>,
    pub answer_after: Duration,
    pub answers: Result<Vec<(&'static str, String)>, &'static str>,
}

impl Way {
    /// Everything works, at once.
    pub fn good() -> Self {
        Self {
            connect_after: Duration::ZERO,
            connects: Ok(()),
            answer_after: Duration::ZERO,
            answers: Ok(bound("\"192.0.2.1:5000\"")),
        }
    }

    pub fn after(connect_ms: u64, answer_ms: u64) -> Self {
        Self {
            connect_after: Duration::from_millis(connect_ms),
            answer_after: Duration::from_millis(answer_ms),
            ..Self::good()
        }
    }

    pub fn dead(after_ms: u64) -> Self {
        Self {
            connects: Err("refused"),
            ..Self::after(after_ms, 0)
        }
    }

    pub fn refusing(connect_ms: u64, answer_ms: u64) -> Self {
        Self {
            answers: Err("refused"),
            ..Self::after(connect_ms, answer_ms)
        }
    }

    pub fn with_addresses(addresses: &str) -> Self {
        Self {
            answers: Ok(bound(addresses)),
            ..Self::good()
        }
    }
}

pub fn bound(addresses: &str) -> Vec<(&'static str, String)> {
    vec![
        ("connect-udp-bind", "?1".into()),
        ("proxy-public-address", addresses.into()),
    ]
}

type Script = Box<dyn FnMut(CarrierKind, &RelayTarget) -> Way + Send>;

/// Dials as its script says, and tells what happened and when.
pub struct FakeDialer {
    script: Mutex<Script>,
    log: Log,
    open: mpsc::UnboundedSender<RelayEnd>,
}

/// What happened, with the milliseconds since the beginning.
#[derive(Clone)]
pub struct Log(Arc<Mutex<Vec<(u128, String)>>>, Instant);

impl Log {
    fn note(&self, what: impl Into<String>) {
        let at = self.1.elapsed().as_millis();
        self.0.lock().unwrap().push((at, what.into()));
    }

    /// Waits until this has happened.
    pub async fn until(&self, what: &str) {
        while !self.0.lock().unwrap().iter().any(|(_, one)| one == what) {
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Milliseconds since the beginning.
    pub fn now(&self) -> u128 {
        self.1.elapsed().as_millis()
    }

    pub fn take(&self) -> Vec<(u128, String)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl FakeDialer {
    pub fn new(
        script: impl FnMut(CarrierKind, &RelayTarget) -> Way + Send + 'static,
    ) -> (Arc<Self>, Log, mpsc::UnboundedReceiver<RelayEnd>) {
        let (open, opened) = mpsc::unbounded_channel();
        let log = Log(Arc::default(), Instant::now());
        let dialer = Self {
            script: Mutex::new(Box::new(script)),
            log: log.clone(),
            open,
        };
        (Arc::new(dialer), log, opened)
    }

    /// Does for each dial what is next in the list, and the last for all that follow.
    pub fn in_turn(
        ways: impl IntoIterator<Item = Way>,
    ) -> (Arc<Self>, Log, mpsc::UnboundedReceiver<RelayEnd>) {
        let mut ways: VecDeque<Way> = ways.into_iter().collect();
        Self::new(move |_, _| match ways.len() {
            1 => ways[0].clone(),
            _ => ways.pop_front().unwrap(),
        })
    }
}

impl CarrierDialer for FakeDialer {
    fn dial<'a>(
        &'a self,
        kind: CarrierKind,
        target: &'a RelayTarget,
    ) -> BoxFuture<'a, Result<Dialed, Vec<Attempt>>> {
        let way = (self.script.lock().unwrap())(kind, target);
        self.log.note(format!("{kind} dial"));
        Box::pin(async move {
            let begun = Instant::now();
            sleep(way.connect_after).await;
            let address = Some(relay_address());
            if let Err(reason) = way.connects {
                return Err(vec![Attempt {
                    carrier: kind,
                    address,
                    reason,
                    detail: "as told".into(),
                    actual: None,
                    elapsed: begun.elapsed(),
                }]);
            }
            let carrier = Arc::new(FakeCarrier {
                kind,
                way,
                log: self.log.clone(),
                open: self.open.clone(),
                line: Line::default(),
            });
            Ok(Dialed { carrier, address })
        })
    }
}

/// The state of a connection, shared by its two ends.
#[derive(Clone)]
pub struct Line {
    ended: Arc<watch::Sender<Option<String>>>,
    max_datagram: Arc<AtomicUsize>,
    takes_capsules: Arc<AtomicBool>,
    probes: Arc<AtomicUsize>,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            ended: Arc::new(watch::Sender::new(None)),
            max_datagram: Arc::new(AtomicUsize::new(1_400)),
            takes_capsules: Arc::new(AtomicBool::new(true)),
            probes: Arc::default(),
        }
    }
}

impl Line {
    pub fn cut(&self, reason: &str) {
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert_with(|| reason.into());
            first
        });
    }

    pub fn is_cut(&self) -> bool {
        self.ended.borrow().is_some()
    }

    pub async fn ended(&self) -> String {
        let mut ended = self.ended.subscribe();
        ended
            .wait_for(Option::is_some)
            .await
            .unwrap()
            .clone()
            .unwrap()
    }

    pub fn set_max_datagram(&self, bytes: usize) {
        self.max_datagram.store(bytes, Ordering::Relaxed);
    }

    pub fn stop_taking_capsules(&self) {
        self.takes_capsules.store(false, Ordering::Relaxed);
    }

    pub fn probes(&self) -> usize {
        self.probes.load(Ordering::Relaxed)
    }
}

struct FakeCarrier {
    kind: CarrierKind,
    way: Way,
    log: Log,
    open: mpsc::UnboundedSender<RelayEnd>,
    line: Line,
}

impl fmt::Debug for FakeCarrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FakeCarrier({})", self.kind)
    }
}

impl Drop for FakeCarrier {
    fn drop(&mut self) {
        self.log.note(format!("{} closed", self.kind));
        self.line.cut("closed by the client");
    }
}

impl ClientCarrier for FakeCarrier {
    fn kind(&self) -> CarrierKind {
        self.kind
    }

    fn peer_id(&self) -> Option<PeerId> {
        Some(RELAY)
    }

    fn open<'a>(
        &'a self,
        request: Request<()>,
        input: Arc<dyn TunnelIn>,
    ) -> BoxFuture<'a, Result<(Response<()>, Arc<dyn TunnelOut>), CarrierError>> {
        self.log.note(format!("{} request", self.kind));
        Box::pin(async move {
            sleep(self.way.answer_after).await;
            let fields = match &self.way.answers {
                Ok(fields) => fields,
                Err(reason) => return Err(CarrierError::new(reason, "as told")),
            };
            let mut response = Response::builder().status(200);
            for (name, value) in fields {
                response = response.header(*name, value);
            }
            let (send, sent) = mpsc::unbounded_channel();
            let out = Arc::new(FakeOut {
                send,
                line: self.line.clone(),
            });
            let _ = self.open.send(RelayEnd {
                kind: self.kind,
                request,
                input,
                sent,
                line: self.line.clone(),
            });
            Ok((response.body(()).unwrap(), out as Arc<dyn TunnelOut>))
        })
    }

    fn closed(&self) -> BoxFuture<'_, String> {
        Box::pin(self.line.ended())
    }

    fn rtt(&self) -> Option<Duration> {
        Some(Duration::from_millis(10))
    }

    fn probe(&self) {
        self.line.probes.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a client has sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    Datagram(Bytes),
    Capsule(Capsule),
    End(Close),
}

struct FakeOut {
    send: mpsc::UnboundedSender<Sent>,
    line: Line,
}

impl fmt::Debug for FakeOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeOut")
    }
}

impl TunnelOut for FakeOut {
    fn send_datagram(&self, head: &[u8], payload: &[u8]) -> Result<(), DatagramError> {
        if self.line.is_cut() {
            return Err(DatagramError::Closed);
        }
        if head.len() + payload.len() > self.max_datagram() {
            return Err(DatagramError::TooLarge);
        }
        let datagram = [head, payload].concat().into();
        let _ = self.send.send(Sent::Datagram(datagram));
        Ok(())
    }

    fn max_datagram(&self) -> usize {
        self.line.max_datagram.load(Ordering::Relaxed)
    }

    fn send_capsule(&self, mut capsule: Bytes) -> Result<(), CapsuleError> {
        if self.line.is_cut() {
            return Err(CapsuleError::Closed);
        }
        if !self.line.takes_capsules.load(Ordering::Relaxed) {
            return Err(CapsuleError::QueueFull);
        }
        let Ok(Some(Item::Capsule(capsule))) = Decoder::new().next(&mut capsule) else {
            panic!("not one whole capsule");
        };
        let _ = self.send.send(Sent::Capsule(capsule));
        Ok(())
    }

    fn close(&self, end: Close) {
        let _ = self.send.send(Sent::End(end));
    }

    fn rtt(&self) -> Option<Duration> {
        None
    }

    fn dropped(&self) -> u64 {
        0
    }
}

/// The relay's end of one request.
pub struct RelayEnd {
    pub kind: CarrierKind,
    pub request: Request<()>,
    pub input: Arc<dyn TunnelIn>,
    pub sent: mpsc::UnboundedReceiver<Sent>,
    pub line: Line,
}

impl RelayEnd {
    /// The next capsule the client has sent; datagrams before it are passed over.
    pub async fn capsule(&mut self) -> Capsule {
        loop {
            match self.sent.recv().await.expect("the client is there") {
                Sent::Capsule(capsule) => return capsule,
                Sent::Datagram(_) => {}
                Sent::End(end) => panic!("ended: {end:?}"),
            }
        }
    }

    /// What the client has sent so far.
    pub fn drain(&mut self) -> Vec<Sent> {
        std::iter::from_fn(|| self.sent.try_recv().ok()).collect()
    }

    /// A request field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.request.headers().get(name)?.to_str().ok()
    }
}
