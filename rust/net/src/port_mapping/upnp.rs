//! UPnP IGD: finding a router that has it, and a port there.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use igd_next::{
    AddAnyPortError, AddPortError, PortMappingProtocol, SearchError, SearchOptions,
    aio::{
        Gateway,
        tokio::{Tokio, search_gateway},
    },
};

use super::place::Place;

/// How long routers may take to answer a search: the second they are asked to spread their answers
/// over, and time to read two documents from a slow one.
const SEARCH_TIME: Duration = Duration::from_secs(4);

/// When to search once more.
const SEARCH_AGAIN: Duration = Duration::from_millis(500);

/// How long one request to the router may take.
const REQUEST_TIME: Duration = Duration::from_secs(4);

const TOO_LATE: &str = "the router answers too late";

/// Shown in the router's list of mappings.
const DESCRIPTION: &str = "anyreach";

/// A port of a router.
#[derive(Debug)]
pub(super) struct Upnp {
    gateway: Gateway<Tokio>,
    internal: SocketAddr,
    pub(super) external: SocketAddr,
    /// Seconds; 0 if the router knows only mappings that last for ever.
    pub(super) lease: u32,
}

/// Looks for a router on the host's own network, twice: nobody repeats datagrams that are lost.
pub(super) async fn search(place: Place) -> Result<Gateway<Tokio>, String> {
    let again = async {
        tokio::time::sleep(SEARCH_AGAIN).await;
        search_once(place).await
    };
    tokio::select! {
        Ok(gateway) = search_once(place) => Ok(gateway),
        Ok(gateway) = again => Ok(gateway),
        else => Err("no router answers".to_owned()),
    }
}

async fn search_once(place: Place) -> Result<Gateway<Tokio>, SearchError> {
    let mut options = SearchOptions::default();
    options.bind_addr = (place.internal.0, 0).into();
    options.timeout = Some(SEARCH_TIME);
    search_gateway(options).await
}

impl Upnp {
    /// Asks for the port the socket has, and takes another if that one is taken.
    pub(super) async fn map(
        gateway: Gateway<Tokio>,
        place: Place,
        lease: u32,
    ) -> Result<Self, String> {
        let internal = place.internal_addr();
        let ip = external_ip(&gateway).await?;
        let mut upnp = Self {
            gateway,
            internal,
            external: SocketAddr::new(ip, internal.port()),
            lease,
        };
        if upnp.add_as_allowed().await.is_ok() {
            return Ok(upnp);
        }
        // Routers have many ways to say that a port is not to be had.
        let port = upnp.add_any().await?;
        upnp.external.set_port(port);
        Ok(upnp)
    }

    /// With a lease, or without one if the router knows none.
    async fn add_as_allowed(&mut self) -> Result<(), AddPortError> {
        match self.add().await {
            Err(AddPortError::OnlyPermanentLeasesSupported) => {
                self.lease = 0;
                self.add().await
            }
            added => added,
        }
    }

    /// Another port, of the router's choice or by chance.
    async fn add_any(&mut self) -> Result<u16, String> {
        let (protocol, internal) = (PortMappingProtocol::UDP, self.internal);
        let any = |lease| {
            let adding = self
                .gateway
                .add_any_port(protocol, internal, lease, DESCRIPTION);
            tokio::time::timeout(REQUEST_TIME, adding)
        };
        let added = match any(self.lease).await {
            Ok(Err(AddAnyPortError::OnlyPermanentLeasesSupported)) => {
                let added = any(0).await;
                self.lease = 0;
                added
            }
            added => added,
        };
        match added {
            Ok(added) => added.map_err(|error| error.to_string()),
            Err(_) => Err(TOO_LATE.to_owned()),
        }
    }

    async fn add(&self) -> Result<(), AddPortError> {
        let (protocol, port) = (PortMappingProtocol::UDP, self.external.port());
        let adding = self
            .gateway
            .add_port(protocol, port, self.internal, self.lease, DESCRIPTION);
        // The request has a limit of its own.
        adding.await
    }

    /// The same port again; the router's address may be another one.
    pub(super) async fn renew(&mut self) -> Result<(), String> {
        let ip = external_ip(&self.gateway).await?;
        within(self.add()).await?;
        self.external.set_ip(ip);
        Ok(())
    }

    /// Takes the mapping back.
    pub(super) async fn release(self) -> Result<(), String> {
        let (protocol, port) = (PortMappingProtocol::UDP, self.external.port());
        within(self.gateway.remove_port(protocol, port)).await
    }
}

async fn external_ip(gateway: &Gateway<Tokio>) -> Result<IpAddr, String> {
    let ip = within(gateway.get_external_ip()).await?.to_canonical();
    match ip.is_unspecified() {
        true => Err("the router has no external address".to_owned()),
        false => Ok(ip),
    }
}

async fn within<T, E: std::fmt::Display>(
    request: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match tokio::time::timeout(REQUEST_TIME, request).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err(TOO_LATE.to_owned()),
    }
}
