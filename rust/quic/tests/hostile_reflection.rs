//! What a peer with good keys and forged addresses can have a node send to somebody else.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyreach_quic::{EndpointConfig, PacketTap};
use bytes::BytesMut;
use common::{LONG, endpoint, endpoint_with, loopback, within};
use noq::PathId;

const CHALLENGES: usize = 400;

/// Challenges are sent in packets this small.
const SMALL: usize = 200;

/// Makes a PATH_CHALLENGE of every small packet.
#[derive(Default)]
struct Prober {
    at_it: AtomicBool,
}

impl PacketTap for Prober {
    fn sealing(&self, _: PathId, packet: u64, payload: &mut [u8]) {
        if self.at_it.load(Ordering::Relaxed) && (9..SMALL / 2).contains(&payload.len()) {
            payload.fill(0);
            payload[0] = 0x1a;
            payload[1..9].copy_from_slice(&packet.to_be_bytes());
        }
    }

    fn opened(&self, _: PathId, _: u64, _: &mut BytesMut) {}
}

/// Between a peer and a node; lets the small packets come from somebody else once told to.
struct Forger {
    address: SocketAddr,
    forging: AtomicBool,
    sent: AtomicUsize,
    forged: AtomicUsize,
}

impl Forger {
    fn start(node: SocketAddr, victim: &UdpSocket) -> Arc<Self> {
        let front = UdpSocket::bind(loopback()).unwrap();
        let back = UdpSocket::bind(loopback()).unwrap();
        let victim = victim.try_clone().unwrap();
        let forger = Arc::new(Self {
            address: front.local_addr().unwrap(),
            forging: AtomicBool::new(false),
            sent: AtomicUsize::new(0),
            forged: AtomicUsize::new(0),
        });
        let (there, here) = (front.try_clone().unwrap(), back.try_clone().unwrap());
        let (state, guest) = (forger.clone(), Arc::new(std::sync::Mutex::new(None)));
        let known = guest.clone();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Ok((length, from)) = front.recv_from(&mut buffer) {
                *known.lock().unwrap() = Some(from);
                state.sent.fetch_add(length, Ordering::Relaxed);
                let forges = state.forging.load(Ordering::Relaxed) && length < SMALL;
                state.forged.fetch_add(forges.into(), Ordering::Relaxed);
                let socket = if forges { &victim } else { &back };
                let _ = socket.send_to(&buffer[..length], node);
            }
        });
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Ok(length) = here.recv(&mut buffer) {
                if let Some(guest) = *guest.lock().unwrap() {
                    let _ = there.send_to(&buffer[..length], guest);
                }
            }
        });
        forger
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responses_to_forged_challenges_are_no_more_than_three_times_what_was_sent() {
    let node = endpoint();
    let tap = Arc::new(Prober::default());
    let peer = endpoint_with(|config: &mut EndpointConfig| {
        let tap = tap.clone();
        config.tap = Some(Arc::new(move |_| tap.clone()));
    });
    let victim = UdpSocket::bind(loopback()).unwrap();
    let somebody = victim.local_addr().unwrap();
    let forger = Forger::start(node.local_addr(), &victim);
    let dial = peer.dial(forger.address, Some(node.identity().peer_id()), LONG);
    let (out, inn) = within(async { tokio::join!(dial, node.accept()) }).await;
    let (out, inn) = (out.unwrap().connection, inn.unwrap());

    let done = Arc::new(AtomicBool::new(false));
    let counting = {
        let done = done.clone();
        // Until nothing has come for a while.
        victim
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        std::thread::spawn(move || {
            let (mut buffer, mut received) = (vec![0; 65_536], 0);
            loop {
                match victim.recv(&mut buffer) {
                    Ok(length) => received += length,
                    Err(_) if done.load(Ordering::Relaxed) => return received,
                    Err(_) => {}
                }
            }
        })
    };
    tap.at_it.store(true, Ordering::Relaxed);
    forger.forging.store(true, Ordering::Relaxed);
    within(async {
        while forger.forged.load(Ordering::Relaxed) < CHALLENGES {
            let _ = out.engine().send_datagram(vec![0; 20].into());
            // One packet each, and each response sent before the next challenge.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    tap.at_it.store(false, Ordering::Relaxed);
    forger.forging.store(false, Ordering::Relaxed);

    done.store(true, Ordering::Relaxed);
    let (received, sent) = (
        counting.join().unwrap(),
        forger.sent.load(Ordering::Relaxed),
    );
    assert!(received > 0, "nobody was challenged");
    assert!(received <= 3 * sent, "{received} bytes for {sent}");
    assert_eq!(inn.close_reason(), None);
    // Nor was it taken for a move.
    assert!(inn.paths().iter().all(|path| path.remote != somebody));
}
