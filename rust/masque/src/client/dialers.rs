//! The real carriers: HTTP/3 by the node's own QUIC endpoint, HTTP/2 over TCP, with or without a
//! proxy.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyreach_quic::{DialError, Endpoint, https::TcpTls};

use super::{
    stagger::{ATTEMPT_DELAY, first_success, interleaved},
    target::{Attempt, CarrierDialer, Dialed, RelayTarget, Trust},
};
use crate::{
    carrier::{BoxFuture, CarrierError, CarrierKind},
    h2::{self, Route, Security},
    h3::{self, H3Carrier},
    https::{ClientTrust, X509Error},
};

/// Time for one address to answer QUIC. Less than [`CARRIER_TIMEOUT`](super::CARRIER_TIMEOUT) by
/// what the last address of a list is behind the first, so that each is told of with its reason.
const QUIC_TIMEOUT: Duration = Duration::from_secs(8);

/// Connects to relays with the node's identity, on its own UDP socket where that is possible. Holds
/// the endpoint open.
#[derive(Debug, Clone)]
pub struct Dialers {
    endpoint: Endpoint,
    node: Arc<rustls::ClientConfig>,
    web: Option<Web>,
}

/// For relays and proxies with X.509 certificates.
#[derive(Debug, Clone)]
struct Web {
    quic: noq::ClientConfig,
    h2: Arc<rustls::ClientConfig>,
    proxy: Arc<rustls::ClientConfig>,
}

impl Dialers {
    /// For relays that are nodes, and proxies without TLS of their own.
    pub fn new(endpoint: Endpoint, tls: &TcpTls) -> Self {
        Self {
            endpoint,
            node: tls.client.clone(),
            web: None,
        }
    }

    /// And for [`Trust::Web`] and `https://` proxies, if their certificates convince `trust`. With
    /// `key_log`, secrets go to the file `SSLKEYLOGFILE` names.
    ///
    /// # Errors
    /// [`X509Error::Tls`], which would be a fault of ours.
    pub fn with_web(mut self, trust: &ClientTrust, key_log: bool) -> Result<Self, X509Error> {
        self.web = Some(Web {
            quic: trust.quic_config(key_log)?,
            h2: trust.h2_config(key_log)?,
            proxy: trust.proxy_config(key_log)?,
        });
        Ok(self)
    }

    fn web(&self) -> Result<&Web, CarrierError> {
        self.web.as_ref().ok_or_else(|| {
            let detail = "no root certificates were loaded to check an ordinary one against";
            CarrierError::new("tls", detail)
        })
    }

    async fn dial_h3(&self, target: &RelayTarget) -> Result<Dialed, Vec<Attempt>> {
        let order = interleaved(&target.udp);
        if order.is_empty() {
            return Err(vec![unreachable(CarrierKind::H3)]);
        }
        let lanes = order
            .iter()
            .zip(0..)
            .map(|(addr, place)| {
                let lane = async move {
                    let begun = Instant::now();
                    let reached = self.reach_h3(target, *addr).await;
                    reached.map_err(|error| {
                        Attempt::new(CarrierKind::H3, Some(*addr), error, begun.elapsed())
                    })
                };
                (ATTEMPT_DELAY * place, lane)
            })
            .collect();
        let outcome = first_success(lanes).await;
        match outcome.won {
            Some((place, carrier)) => Ok(Dialed {
                carrier: Arc::new(carrier),
                address: order.get(place).copied(),
            }),
            None => Err(outcome.failed.into_iter().map(|(_, tried)| tried).collect()),
        }
    }

    async fn reach_h3(
        &self,
        target: &RelayTarget,
        addr: SocketAddr,
    ) -> Result<H3Carrier, CarrierError> {
        match target.trust {
            Trust::Node => {
                let dial = self.endpoint.dial_http(addr, target.peer, QUIC_TIMEOUT);
                let connection = dial.await.map_err(carrier_error)?;
                h3::connect(connection.engine, Some(connection.peer_id)).await
            }
            Trust::Web | Trust::NodeOrWeb => {
                let config = self.web()?.quic.clone();
                let name = target.template.host().to_string();
                let dial = self
                    .endpoint
                    .connect_http(config, addr, &name, QUIC_TIMEOUT);
                h3::connect(dial.await.map_err(carrier_error)?, None).await
            }
        }
    }

    async fn dial_h2(&self, target: &RelayTarget, route: Route) -> Result<Dialed, Vec<Attempt>> {
        let security = match target.trust {
            Trust::Node => Security::Node {
                tls: self.node.clone(),
                expected: target.peer,
            },
            Trust::Web | Trust::NodeOrWeb => Security::X509 {
                tls: self
                    .web()
                    .map_err(|error| refused(&route, error))?
                    .h2
                    .clone(),
            },
        };
        let target = h2::Target {
            host: target.template.host().to_string(),
            port: target.template.port(),
            security,
        };
        h2::dial(&target, &route).await
    }

    fn proxied(&self, target: &RelayTarget) -> Result<Route, CarrierError> {
        let Some(proxy) = target.proxy.clone() else {
            return Err(CarrierError::new("unreachable", "no proxy is configured"));
        };
        let tls = match proxy.tls {
            true => Some(self.web()?.proxy.clone()),
            false => None,
        };
        Ok(Route::Proxy { proxy, tls })
    }

    async fn dial_kind(
        &self,
        kind: CarrierKind,
        target: &RelayTarget,
    ) -> Result<Dialed, Vec<Attempt>> {
        match kind {
            CarrierKind::H3 => self.dial_h3(target).await,
            CarrierKind::H2 if target.tcp.is_empty() => Err(vec![unreachable(kind)]),
            CarrierKind::H2 => {
                let route = Route::Direct(target.tcp.clone());
                self.dial_h2(target, route).await
            }
            CarrierKind::H2Proxy => {
                let route = self
                    .proxied(target)
                    .map_err(|error| vec![Attempt::new(kind, None, error, Duration::ZERO)])?;
                self.dial_h2(target, route).await
            }
        }
    }
}

impl CarrierDialer for Dialers {
    fn dial<'a>(
        &'a self,
        kind: CarrierKind,
        target: &'a RelayTarget,
    ) -> BoxFuture<'a, Result<Dialed, Vec<Attempt>>> {
        Box::pin(async move {
            if target.trust != Trust::NodeOrWeb {
                return self.dial_kind(kind, target).await;
            }
            let by = |trust| RelayTarget {
                trust,
                ..target.clone()
            };
            let mut tried = match self.dial_kind(kind, &by(Trust::Node)).await {
                Err(tried) if tried.iter().any(may_be_inspected) => tried,
                other => return other,
            };
            self.dial_kind(kind, &by(Trust::Web)).await.map_err(|more| {
                tried.extend(more);
                tried
            })
        })
    }
}

/// Whether something that ends TLS may have been in the way: somebody answered, but not as a node.
fn may_be_inspected(tried: &Attempt) -> bool {
    ![
        "unreachable",
        "handshake-timeout",
        "peer-id-mismatch",
        "proxy-auth",
        "proxy-refused",
    ]
    .contains(&tried.reason)
}

fn unreachable(kind: CarrierKind) -> Attempt {
    let error = CarrierError::new("unreachable", "no address of the relay is known");
    Attempt::new(kind, None, error, Duration::ZERO)
}

fn refused(route: &Route, error: CarrierError) -> Vec<Attempt> {
    let kind = match route {
        Route::Direct(_) => CarrierKind::H2,
        Route::Proxy { .. } => CarrierKind::H2Proxy,
    };
    vec![Attempt::new(kind, None, error, Duration::ZERO)]
}

fn carrier_error(error: DialError) -> CarrierError {
    let DialError {
        reason,
        detail,
        actual,
    } = error;
    CarrierError {
        reason,
        detail,
        actual,
    }
}
