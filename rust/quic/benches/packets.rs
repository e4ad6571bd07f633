//! What it costs that 1-RTT packets are seen in clear: sealing and opening one with the bare key of
//! the TLS library, with the key of our sessions, and with that of a session that has been asked to
//! punch, which looks at every packet it sends from then on.

use std::{hint::black_box, io::Cursor, net::Ipv4Addr};

use anyreach_quic::{Identity, SessionConfig, tls};
use anyreach_wire::{
    address::Address,
    frames::{Frame, PunchMeNow},
    varint::VarInt,
};
use bytes::BytesMut;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use noq_proto::{
    PathId, Side,
    crypto::{ClientConfig, Keys, PacketKey, ServerConfig, Session},
    transport_parameters::TransportParameters,
};
use rustls::quic::Version;

const HEADER: usize = 20;
const PAYLOAD: usize = 1400;
const PATH: PathId = PathId::ZERO;

/// What an endpoint says of itself: multipath, and NAT traversal in the engine's words.
const PARAMETERS: &[u8] = &[
    0x3e, 1, 7, // initial_max_path_id
    0xc0, 0, 0x3d, 0x7f, 0x91, 0x12, 0x04, 0x01, 1, 32,
];

/// An acknowledgement, and a stream that fills the packet.
fn bulk() -> Vec<u8> {
    let mut payload = vec![
        0x02, 0x44, 0x00, 0x19, 0x01, 0x05, 0x02, 0x03, 0x0c, 0x04, 0x80, 1, 0, 0,
    ];
    payload.resize(PAYLOAD, 0xaa);
    payload
}

/// Most of what a receiver sends: an acknowledgement, alone.
fn ack() -> Vec<u8> {
    vec![0x02, 0x44, 0x00, 0x19, 0x01, 0x05, 0x02, 0x03]
}

/// The 1-RTT keys of both ends.
struct Pair {
    client: Box<dyn PacketKey>,
    opens_of_client: Box<dyn PacketKey>,
    server: Box<dyn PacketKey>,
    // They own what the keys write to.
    _sessions: [Box<dyn Session>; 2],
}

impl Pair {
    fn new(config: &SessionConfig, server_name: &str) -> Self {
        let parameters = |side| {
            TransportParameters::read(side, &mut Cursor::new(PARAMETERS)).expect("they are legal")
        };
        let mut client =
            ClientConfig::start_session(config, 1, server_name, &parameters(Side::Client))
                .expect("the name is one");
        let mut server = ServerConfig::start_session(config, 1, &parameters(Side::Server));
        let (mut ours, mut theirs) = (None, None);
        while client.is_handshaking() || server.is_handshaking() {
            flight(&mut *client, &mut *server, &mut ours);
            flight(&mut *server, &mut *client, &mut theirs);
        }
        for session in [&client, &server] {
            let told = session.transport_parameters().expect("they are legal");
            assert!(told.is_some(), "NAT traversal is negotiated");
        }
        let (ours, theirs) = (ours.expect("it is over"), theirs.expect("it is over"));
        Self {
            client: ours.packet.local,
            opens_of_client: theirs.packet.remote,
            server: theirs.packet.local,
            _sessions: [client, server],
        }
    }

    /// Has the client ask the server to punch.
    fn ask_to_punch(&self) {
        let mut payload = Vec::new();
        let punch = PunchMeNow {
            round: VarInt::from_u32(1),
            paired_with: VarInt::from_u32(0),
            address: Address::new(Ipv4Addr::new(203, 0, 113, 7).into(), 9000),
        };
        Frame::PunchMeNow(punch).encode(&mut payload);
        payload.resize(PAYLOAD, 0);
        let mut sealed = packet(&*self.client, &payload);
        self.client.encrypt(PATH, 1, &mut sealed, HEADER);
        open(&*self.opens_of_client, BytesMut::from(&sealed[..]));
    }
}

/// Hands over what one side has to say, and keeps the latest keys it got.
fn flight(from: &mut dyn Session, to: &mut dyn Session, keys: &mut Option<Keys>) {
    loop {
        let mut said = Vec::new();
        let new = from.write_handshake(&mut said);
        if new.is_none() && said.is_empty() {
            return;
        }
        if !said.is_empty() {
            to.read_handshake(&said)
                .expect("they understand each other");
        }
        *keys = new.or(keys.take());
    }
}

/// The keys of the TLS library alone, of the suite our sessions choose.
fn bare() -> (Box<dyn PacketKey>, Box<dyn PacketKey>) {
    let suite = tls::crypto_provider().cipher_suites[0]
        .tls13()
        .and_then(|suite| suite.quic_suite())
        .expect("the best suite is one of TLS 1.3");
    let [ours, theirs] = [rustls::Side::Client, rustls::Side::Server]
        .map(|side| suite.keys(&[7; 8], side, Version::V1));
    (Box::new(ours.local.packet), Box::new(theirs.remote.packet))
}

fn packet(key: &dyn PacketKey, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x41; HEADER];
    packet.extend_from_slice(payload);
    packet.resize(HEADER + payload.len() + key.tag_len(), 0);
    packet
}

fn open(key: &dyn PacketKey, mut sealed: BytesMut) -> BytesMut {
    let header = sealed.split_to(HEADER);
    key.decrypt(PATH, 1, &header, &mut sealed)
        .expect("it was sealed for this key");
    sealed
}

fn packets(criterion: &mut Criterion) {
    let identity = Identity::generate().expect("there is randomness");
    let config = tls::session_config(&identity, false, false, None).expect("it is ours");
    let name = identity.peer_id().to_string();
    let quiet = Pair::new(&config, &name);
    let punching = Pair::new(&config, &name);
    punching.ask_to_punch();
    let (bare_seals, bare_opens) = bare();

    for (kind, payload) in [("bulk", bulk()), ("ack", ack())] {
        let mut group = criterion.benchmark_group("seal");
        group.throughput(Throughput::Bytes(payload.len() as u64));
        for (who, key) in [
            ("bare", &bare_seals),
            ("session", &quiet.server),
            ("punching", &punching.server),
        ] {
            let sealed = packet(&**key, &payload);
            group.bench_function(BenchmarkId::new(who, kind), |bencher| {
                bencher.iter_batched_ref(
                    || sealed.clone(),
                    |packet| key.encrypt(PATH, black_box(1), packet, HEADER),
                    BatchSize::SmallInput,
                );
            });
        }
        group.finish();
        let mut group = criterion.benchmark_group("open");
        group.throughput(Throughput::Bytes(payload.len() as u64));
        for (who, seals, opens) in [
            ("bare", &bare_seals, &bare_opens),
            ("session", &quiet.client, &quiet.opens_of_client),
            ("punching", &punching.client, &punching.opens_of_client),
        ] {
            let mut sealed = packet(&**seals, &payload);
            seals.encrypt(PATH, 1, &mut sealed, HEADER);
            group.bench_function(BenchmarkId::new(who, kind), |bencher| {
                bencher.iter_batched(
                    || BytesMut::from(&sealed[..]),
                    |packet| open(&**opens, packet),
                    BatchSize::SmallInput,
                );
            });
        }
        group.finish();
    }
}

criterion_group!(benches, packets);
criterion_main!(benches);
