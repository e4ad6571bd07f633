//! Accepting HTTP/2 connections: bounded in number, per source and during the handshake.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyreach_net::canonical;
use anyreach_quic::PeerId;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{HANDSHAKE_TIMEOUT, serve};
use crate::{
    carrier::{CarrierKind, Client, Service},
    https::tcp,
    relay::Prefix,
};

/// Tells from a finished handshake who the client proved to be, if anybody:
/// [`anyreach_quic::https::peer_id`] between nodes, `|_| None` with X.509.
pub type Authenticate = fn(&rustls::CommonState) -> Option<PeerId>;

/// Pause after an error of `accept` that is the system's and not the connection's, such as no more
/// file descriptors: others may be closed meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How many connections are taken. Beyond, they are closed at once, which costs the least and
/// tells clients to go elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// In all.
    pub connections: usize,
    /// Of one source prefix (/24, /56); this machine is not one.
    pub per_prefix: usize,
    /// That have not finished TLS. Each costs a key exchange and two signatures.
    pub handshakes: usize,
}

impl Default for Limits {
    /// As for QUIC: 1,024 connections, 64 of one site; and as many handshakes as come in a
    /// handshake's time on slow lines before anybody notices.
    fn default() -> Self {
        Self {
            connections: 1024,
            per_prefix: 64,
            handshakes: 128,
        }
    }
}

/// Accepts connections and serves them until the future is dropped, which closes them all.
pub async fn serve_listener(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    authenticate: Authenticate,
    service: Arc<dyn Service>,
    limits: Limits,
) {
    let acceptor = TlsAcceptor::from(tls);
    let places = Arc::new(Places {
        limits,
        taken: Mutex::default(),
    });
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, remote)) => {
                let Some(place) = places.take(remote.ip()) else {
                    tracing::debug!(%remote, "TCP connection refused: too many");
                    continue;
                };
                let (acceptor, service) = (acceptor.clone(), service.clone());
                connections.spawn(async move {
                    connection(stream, acceptor, authenticate, service, place).await;
                });
            }
            Err(error) if concerns_connection(&error) => {
                tracing::debug!(%error, "TCP connection lost before it was accepted");
            }
            Err(error) => {
                tracing::warn!(%error, "TCP connections cannot be accepted now");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Errors of `accept` that are about the one connection (accept(2)).
fn concerns_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::HostUnreachable
    )
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    authenticate: Authenticate,
    service: Arc<dyn Service>,
    mut place: Place,
) {
    let (Ok(remote), local) = (stream.peer_addr(), stream.local_addr()) else {
        return;
    };
    tcp::configure(&stream);
    let stream = match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%remote, %error, "TLS handshake failed");
            return;
        }
        Err(_) => {
            tracing::debug!(%remote, "TLS handshake not finished in time");
            return;
        }
    };
    place.handshake_done();
    let client = Client {
        peer_id: authenticate(stream.get_ref().1),
        remote: canonical(remote),
        local: local.ok().map(canonical),
        carrier: CarrierKind::H2,
    };
    serve(stream, client, service).await;
}

/// Counts connections.
#[derive(Debug)]
struct Places {
    limits: Limits,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    connections: usize,
    handshakes: usize,
    by_prefix: HashMap<Prefix, usize>,
}

/// The place of one connection, in handshake at first; free again when dropped.
#[derive(Debug)]
struct Place {
    places: Arc<Places>,
    /// `None` for this machine.
    prefix: Option<Prefix>,
    in_handshake: bool,
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        // Nothing panics while holding the lock.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Self>, source: IpAddr) -> Option<Place> {
        let loopback = source.to_canonical().is_loopback();
        let prefix = (!loopback).then(|| Prefix::source(source));
        let mut taken = self.lock();
        if taken.connections >= self.limits.connections
            || taken.handshakes >= self.limits.handshakes
        {
            return None;
        }
        if let Some(prefix) = prefix {
            let of_prefix = taken.by_prefix.entry(prefix).or_default();
            if *of_prefix >= self.limits.per_prefix {
                return None;
            }
            *of_prefix += 1;
        }
        taken.connections += 1;
        taken.handshakes += 1;
        Some(Place {
            places: self.clone(),
            prefix,
            in_handshake: true,
        })
    }
}

impl Place {
    fn handshake_done(&mut self) {
        if std::mem::take(&mut self.in_handshake) {
            self.places.lock().handshakes -= 1;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.connections -= 1;
        taken.handshakes -= usize::from(self.in_handshake);
        if let Some(prefix) = self.prefix
            && let Some(count) = taken.by_prefix.get_mut(&prefix)
        {
            *count -= 1;
            if *count == 0 {
                taken.by_prefix.remove(&prefix);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(connections: usize, per_prefix: usize, handshakes: usize) -> Arc<Places> {
        Arc::new(Places {
            limits: Limits {
                connections,
                per_prefix,
                handshakes,
            },
            taken: Mutex::default(),
        })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_site_has_its_share_and_this_machine_is_no_site() {
        let places = places(100, 2, 100);
        let held = [
            places.take(ip("192.0.2.1")).unwrap(),
            places.take(ip("::ffff:192.0.2.2")).unwrap(),
        ];
        assert!(places.take(ip("192.0.2.3")).is_none());
        let _other = places.take(ip("198.51.100.1")).unwrap();
        let _v6 = [
            places.take(ip("2001:db8:0:100::1")).unwrap(),
            places.take(ip("2001:db8:0:1ff::1")).unwrap(),
        ];
        assert!(places.take(ip("2001:db8:0:180::1")).is_none());
        let _local: Vec<Place> = (0..10)
            .map(|_| places.take(ip("127.0.0.1")).unwrap())
            .collect();
        drop(held);
        drop(places.take(ip("192.0.2.3")).unwrap());
        assert_eq!(places.lock().by_prefix.len(), 2);
    }

    #[test]
    fn handshakes_and_connections_are_hard_limits() {
        let places = places(3, 100, 2);
        let local = ip("::1");
        let mut first = places.take(local).unwrap();
        let second = places.take(local).unwrap();
        assert!(places.take(local).is_none(), "two handshakes");
        first.handshake_done();
        first.handshake_done();
        let third = places.take(local).unwrap();
        drop(second);
        let _fourth = places.take(local).unwrap();
        assert!(places.take(local).is_none(), "three connections");
        drop(third);
        drop(first);
        let taken = places.lock();
        assert_eq!((taken.connections, taken.handshakes), (1, 1));
    }
}
