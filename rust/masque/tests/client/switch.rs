//! A relay in memory: it lends addresses that exist only here, and brings what is sent to one of
//! them to whoever has it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyreach_masque::contexts::{Incoming, ProxyContexts};
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::fake::{Line, RelayEnd, Sent};

/// From where, and what.
type Packet = (SocketAddr, Bytes);

/// The addresses that are lent.
#[derive(Clone, Default)]
pub(crate) struct Switch(Arc<Mutex<HashMap<SocketAddr, mpsc::UnboundedSender<Packet>>>>);

impl Switch {
    fn send(&self, to: SocketAddr, packet: Packet) {
        if let Some(port) = self.0.lock().unwrap().get(&to) {
            let _ = port.send(packet);
        }
    }

    /// Serves one request, lending it `address`, until the line is cut or the request ends.
    pub(crate) fn serve(&self, address: SocketAddr, end: RelayEnd) -> Line {
        let (port, packets) = mpsc::unbounded_channel();
        self.0.lock().unwrap().insert(address, port);
        let line = end.line.clone();
        tokio::spawn(self.clone().session(address, end, packets));
        line
    }

    async fn session(
        self,
        address: SocketAddr,
        mut end: RelayEnd,
        mut packets: mpsc::UnboundedReceiver<Packet>,
    ) {
        let mut contexts = ProxyContexts::bound(None, Duration::from_secs(60));
        loop {
            tokio::select! {
                sent = end.sent.recv() => match sent {
                    Some(Sent::Datagram(datagram)) => {
                        let incoming = contexts.on_datagram(datagram, Instant::now()).unwrap();
                        if let Incoming::Remote { remote, payload, .. } = incoming {
                            self.send(remote, (address, payload));
                        }
                    }
                    Some(Sent::Capsule(capsule)) => {
                        let answers = contexts.on_capsule(capsule, Instant::now(), |_| true);
                        for answer in answers.unwrap() {
                            end.input.capsule(answer).unwrap();
                        }
                    }
                    Some(Sent::End(_)) | None => return end.input.closed("as asked".into()),
                },
                Some((from, payload)) = packets.recv() => {
                    let Some(routed) = contexts.route(from, Instant::now()) else { continue };
                    for capsule in routed.capsules {
                        end.input.capsule(capsule).unwrap();
                    }
                    let datagram = [&routed.head[..], &payload].concat();
                    end.input.datagram(datagram.into()).unwrap();
                    end.input.flush();
                }
                reason = end.line.ended() => return end.input.closed(reason),
            }
        }
    }
}
