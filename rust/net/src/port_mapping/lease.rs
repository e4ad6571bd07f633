//! One mapping, by whatever protocol.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    pin::pin,
    time::{Duration, Instant},
};

use crab_nat::{InternetProtocol, PortMappingOptions, PortMappingType, TimeoutConfig, natpmp, pcp};

use super::{
    MappingProtocol,
    place::Place,
    upnp::{self, Upnp},
};

/// What is asked for: long enough that renewals cost nothing, short enough that the port of a node
/// that was killed is free again before anybody wonders.
const LIFETIME_SECONDS: u32 = 3600;

/// How long a router is waited for: 250 ms, then 500, then 1000 (RFC 6886, section 3.1). It is the
/// nearest of all machines; the rest of the RFC's schedule is for those that were just switched on.
const TIMES: TimeoutConfig = TimeoutConfig {
    initial_timeout: Duration::from_millis(250),
    max_retries: 2,
    max_retry_timeout: None,
};

/// How long taking a mapping back may take, all attempts together.
const RELEASE_TIME: Duration = Duration::from_secs(2);

/// A mapping as it is now.
#[derive(Debug)]
pub(super) struct Lease {
    external: SocketAddr,
    made: Instant,
    lifetime: Duration,
    by: By,
}

#[derive(Debug)]
enum By {
    Pmp(crab_nat::PortMapping),
    Upnp(Upnp),
}

impl Lease {
    /// Asks by PCP, then NAT-PMP, and for UPnP at the same time; the first mapping is taken. UPnP only
    /// looks for routers meanwhile, so that there are never two mappings.
    pub(super) async fn acquire(place: Place) -> Result<Self, String> {
        let mut search = pin!(upnp::search(place));
        let mut asking = pin!(Self::by_pmp(place));
        let mut found = None;
        let refused = loop {
            tokio::select! {
                asked = &mut asking => match asked {
                    Ok(lease) => return Ok(lease),
                    Err(reason) => break reason,
                },
                gateway = &mut search, if found.is_none() => found = Some(gateway),
            }
        };
        let found = match found {
            Some(found) => found,
            None => search.await,
        };
        let mapped = match found {
            Ok(gateway) => Upnp::map(gateway, place, LIFETIME_SECONDS).await,
            Err(reason) => Err(reason),
        };
        match mapped {
            Ok(upnp) => Ok(Self::of_upnp(upnp)),
            Err(reason) => Err(format!("{refused}; UPnP: {reason}")),
        }
    }

    /// By PCP, or by NAT-PMP where the router does not do PCP. What silence means is not certain, so
    /// then both are asked.
    async fn by_pmp(place: Place) -> Result<Self, String> {
        let port = NonZeroU16::new(place.internal.1).ok_or("the socket has no port")?;
        let options = PortMappingOptions {
            external_port: Some(port),
            lifetime_seconds: Some(LIFETIME_SECONDS),
            timeout_config: Some(TIMES),
        };
        let gateway = place.gateway.into();
        let own = place.internal.0.into();
        let request = pcp::BaseMapRequest::new(gateway, own, InternetProtocol::Udp, port);
        let refused = match pcp::port_mapping(request, None, None, options).await {
            Ok(mapping) => return Self::of_pmp(mapping).await,
            Err(error) => error,
        };
        let reason = format!("PCP: {refused}");
        match refused {
            pcp::Failure::UnsupportedVersion(_)
            | pcp::Failure::Timeout
            | pcp::Failure::InvalidResponse(_) => {}
            // It has understood, or nobody listens there.
            _ => return Err(reason),
        }
        let asked = natpmp::port_mapping(gateway, InternetProtocol::Udp, port, options).await;
        match asked {
            Ok(mapping) => Self::of_pmp(mapping).await,
            Err(error) => Err(format!("{reason}; NAT-PMP: {error}")),
        }
    }

    async fn of_pmp(mapping: crab_nat::PortMapping) -> Result<Self, String> {
        let ip = match mapping.mapping_type() {
            PortMappingType::Pcp { external_ip, .. } => Ok(external_ip),
            PortMappingType::NatPmp => natpmp::external_address(mapping.gateway(), Some(TIMES))
                .await
                .map(IpAddr::from)
                .map_err(|error| error.to_string()),
        };
        let ip = ip.and_then(|ip| match ip.to_canonical() {
            ip if ip.is_unspecified() => Err("the router has no external address".to_owned()),
            ip => Ok(ip),
        });
        match ip {
            Ok(ip) => Ok(Self {
                external: SocketAddr::new(ip, mapping.external_port().get()),
                made: Instant::now(),
                lifetime: Duration::from_secs(mapping.lifetime().into()),
                by: By::Pmp(mapping),
            }),
            Err(reason) => {
                // Of no use without an address.
                let _ = tokio::time::timeout(RELEASE_TIME, mapping.try_drop()).await;
                Err(reason)
            }
        }
    }

    fn of_upnp(upnp: Upnp) -> Self {
        let seconds = match upnp.lease {
            // For ever, or until the router is restarted: looked after as if it were not.
            0 => LIFETIME_SECONDS,
            seconds => seconds,
        };
        Self {
            external: upnp.external,
            made: Instant::now(),
            lifetime: Duration::from_secs(seconds.into()),
            by: By::Upnp(upnp),
        }
    }

    /// The router's side of it.
    pub(super) fn external(&self) -> SocketAddr {
        self.external
    }

    pub(super) fn protocol(&self) -> MappingProtocol {
        match &self.by {
            By::Upnp(_) => MappingProtocol::Upnp,
            By::Pmp(mapping) => match mapping.mapping_type() {
                PortMappingType::Pcp { .. } => MappingProtocol::Pcp,
                PortMappingType::NatPmp => MappingProtocol::NatPmp,
            },
        }
    }

    /// Until when it lasts without being renewed.
    pub(super) fn expires(&self) -> Instant {
        self.made + self.lifetime
    }

    /// Has it last longer. The router may give out another port or address.
    pub(super) async fn renew(&mut self) -> Result<(), String> {
        let renewed = match &mut self.by {
            By::Upnp(upnp) => {
                upnp.renew().await?;
                self.external = upnp.external;
                self.made = Instant::now();
                return Ok(());
            }
            By::Pmp(mapping) => {
                let mut renewed = mapping.clone();
                renewed.renew().await.map_err(|error| error.to_string())?;
                renewed
            }
        };
        *self = Self::of_pmp(renewed).await?;
        Ok(())
    }

    /// Gives it back, as far as the router lets itself be told.
    pub(super) async fn release(self) {
        let external = self.external;
        let released = async {
            match self.by {
                By::Upnp(upnp) => upnp.release().await,
                By::Pmp(mapping) => mapping
                    .try_drop()
                    .await
                    .map_err(|(error, _)| error.to_string()),
            }
        };
        match tokio::time::timeout(RELEASE_TIME, released).await {
            Ok(Ok(())) => tracing::debug!(%external, "port mapping taken back"),
            Ok(Err(error)) => tracing::debug!(%external, error, "port mapping not taken back"),
            Err(_) => tracing::debug!(%external, "port mapping left to expire"),
        }
    }
}
