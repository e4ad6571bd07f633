//! The TLS session of a connection: `rustls::quic` behind the engine's `Session` trait.
//!
//! The engine's stock session encodes the transport parameters itself and hands out its keys
//! unwrapped; this one lets a [`PacketTap`] see both, and tells what was negotiated.

use std::{any::Any, io::Cursor, str, sync::Arc};

use noq_proto::{
    ConnectError, ConnectionId, Side, TransportError, TransportErrorCode,
    crypto::{
        self, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, UnsupportedVersion,
    },
    transport_parameters::TransportParameters,
};
use rustls::{
    pki_types::ServerName,
    quic::{
        ClientConnection, Connection, DirectionalKeys, KeyChange, Secrets, ServerConnection, Suite,
        Version,
    },
};

use super::{
    activity::Activity,
    finished::{self, Finished},
    last_words::OneRttHeader,
    parameters::fewer_connection_ids,
    retry,
    tap::{OneRttKey, PacketTap, TapFactory},
    tls,
};
use crate::{
    directory::DirectorySlot,
    openers::Secret,
    traversal::{Layer, Near},
};

/// QUIC version 1 (RFC 9000); nothing else is spoken.
const QUIC_V1: u32 = 1;

/// What was negotiated, as the engine's `handshake_data` of our sessions.
#[derive(Debug, Clone)]
pub(crate) struct HandshakeInfo {
    /// Name of the key-exchange group, e.g. `X25519MLKEM768`.
    pub(crate) group: Option<&'static str>,
    /// Whether HTTP/3 was chosen, and not anyreach.
    pub(crate) h3: bool,
    /// Told of packets of the connection.
    pub(crate) activity: Arc<Activity>,
    /// NAT traversal between nodes.
    pub(crate) layer: Option<Arc<Layer>>,
    /// What openers are authenticated with, once the handshake is over.
    pub(crate) opener: Option<Secret>,
}

/// Makes sessions in either role, for the engine's client and server configurations.
#[derive(Clone)]
pub struct SessionConfig {
    pub(crate) client: Arc<rustls::ClientConfig>,
    pub(crate) server: Arc<rustls::ServerConfig>,
    /// The engine's own server configuration: seals Retry packets and derives Initial keys.
    pub(crate) stock_server: Arc<noq_proto::crypto::rustls::QuicServerConfig>,
    /// TLS_AES_128_GCM_SHA256, which protects Initial packets (RFC 9001, section 5.2).
    pub(crate) initial_suite: Suite,
    pub(crate) tap: Option<TapFactory>,
    /// Whether connections are to other nodes, and not to relays by HTTP/3.
    pub(crate) traversal: bool,
    /// Networks in which addresses of peers are not refused.
    pub(crate) near: Near,
    /// What stands behind the addresses the engine reports to tunnelled peers.
    pub(crate) directory: DirectorySlot,
}

impl SessionConfig {
    /// The same, but the dialing side asks for HTTP/3. Such connections carry none of our frames.
    pub fn dialing_h3(&self) -> Self {
        let mut client = rustls::ClientConfig::clone(&self.client);
        client.alpn_protocols = vec![tls::ALPN_H3.to_vec()];
        Self {
            client: Arc::new(client),
            tap: None,
            traversal: false,
            ..self.clone()
        }
    }

    fn session(
        &self,
        side: Side,
        params: &TransportParameters,
        connect: impl FnOnce(Vec<u8>) -> Result<Connection, rustls::Error>,
    ) -> Result<Session, rustls::Error> {
        let tap = self.tap.as_ref().map(|make| make(side));
        let layer = self
            .traversal
            .then(|| Arc::new(Layer::new(side, self.near.clone())));
        let mut encoded = Vec::new();
        params.write(&mut encoded);
        let mut encoded = fewer_connection_ids(encoded);
        if let Some(layer) = &layer {
            layer.outgoing_parameters(&mut encoded);
        }
        if let Some(tap) = &tap {
            tap.outgoing_parameters(&mut encoded);
        }
        Ok(Session {
            tls: Tls::Handshake(Box::new(connect(encoded)?)),
            next_secrets: None,
            told_handshake_data: false,
            initial_suite: self.initial_suite,
            side,
            layer,
            tap,
            directory: self.directory.clone(),
            activity: Arc::default(),
        })
    }
}

impl crypto::ClientConfig for SessionConfig {
    fn start_session(
        &self,
        version: u32,
        server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn crypto::Session>, ConnectError> {
        if version != QUIC_V1 {
            return Err(ConnectError::UnsupportedVersion);
        }
        let invalid = || ConnectError::InvalidServerName(server_name.into());
        let name = ServerName::try_from(server_name)
            .map_err(|_| invalid())?
            .to_owned();
        let session = self
            .session(Side::Client, params, |encoded| {
                ClientConnection::new(self.client.clone(), Version::V1, name, encoded)
                    .map(Connection::Client)
            })
            .map_err(|_| invalid())?;
        Ok(Box::new(session))
    }
}

impl crypto::ServerConfig for SessionConfig {
    fn initial_keys(
        &self,
        version: u32,
        dst_cid: ConnectionId,
    ) -> Result<Keys, UnsupportedVersion> {
        if version != QUIC_V1 {
            return Err(UnsupportedVersion);
        }
        self.stock_server.initial_keys(version, dst_cid)
    }

    fn retry_tag(&self, version: u32, orig_dst_cid: ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.stock_server.retry_tag(version, orig_dst_cid, packet)
    }

    fn start_session(
        &self,
        _version: u32,
        params: &TransportParameters,
    ) -> Box<dyn crypto::Session> {
        let session = self
            .session(Side::Server, params, |encoded| {
                ServerConnection::new(self.server.clone(), Version::V1, encoded)
                    .map(Connection::Server)
            })
            .expect("our server configuration speaks TLS 1.3 over QUIC");
        Box::new(session)
    }
}

/// One TLS handshake and the keys it yields.
struct Session {
    tls: Tls,
    next_secrets: Option<Secrets>,
    told_handshake_data: bool,
    initial_suite: Suite,
    side: Side,
    layer: Option<Arc<Layer>>,
    tap: Option<Arc<dyn PacketTap>>,
    directory: DirectorySlot,
    activity: Arc<Activity>,
}

enum Tls {
    Handshake(Box<Connection>),
    Finished(Finished),
}

impl Session {
    /// Lets go of the TLS library's state once it has nothing left to say.
    fn finish(&mut self) {
        if let Tls::Handshake(inner) = &self.tls
            && !inner.is_handshaking()
            && self.next_secrets.is_some()
        {
            self.tls = Tls::Finished(Finished::new(inner, self.side));
        }
    }

    /// Whether HTTP/3 was chosen, and not anyreach.
    fn is_h3(&self) -> bool {
        let alpn = match &self.tls {
            Tls::Handshake(inner) => inner.alpn_protocol(),
            Tls::Finished(finished) => finished.alpn.as_deref(),
        };
        alpn == Some(tls::ALPN_H3)
    }

    /// NAT traversal, on connections between nodes. What a server has offered before it knew which
    /// protocol the client chose is not offered then.
    fn layer(&self) -> Option<&Arc<Layer>> {
        self.layer.as_ref().filter(|_| !self.is_h3())
    }

    fn one_rtt(&self, key: Box<dyn PacketKey>) -> Box<dyn PacketKey> {
        Box::new(OneRttKey {
            key,
            layer: self.layer().cloned(),
            tap: self.tap.clone(),
            directory: self.directory.clone(),
            activity: self.activity.clone(),
        })
    }
}

fn keys(local: DirectionalKeys, remote: DirectionalKeys) -> Keys {
    Keys {
        header: KeyPair {
            local: Box::new(local.header) as Box<dyn HeaderKey>,
            remote: Box::new(remote.header),
        },
        packet: KeyPair {
            local: Box::new(local.packet) as Box<dyn PacketKey>,
            remote: Box::new(remote.packet),
        },
    }
}

impl crypto::Session for Session {
    fn initial_keys(&self, dst_cid: ConnectionId, side: Side) -> Keys {
        let side = match side {
            Side::Client => rustls::Side::Client,
            Side::Server => rustls::Side::Server,
        };
        let initial = self.initial_suite.keys(&dst_cid, side, Version::V1);
        keys(initial.local, initial.remote)
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.told_handshake_data.then(|| {
            Box::new(HandshakeInfo {
                group: match &self.tls {
                    Tls::Handshake(inner) => finished::group(inner),
                    Tls::Finished(finished) => finished.group,
                },
                h3: self.is_h3(),
                activity: self.activity.clone(),
                layer: self.layer().cloned(),
                opener: match &self.tls {
                    Tls::Handshake(inner) => finished::opener_secret(inner),
                    Tls::Finished(finished) => finished.opener.clone(),
                },
            }) as Box<dyn Any>
        })
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        let key = match &self.tls {
            Tls::Handshake(inner) => finished::proved_key(inner),
            Tls::Finished(finished) => finished.key.clone(),
        };
        Some(Box::new(key?))
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        // Every handshake proves the peer's key anew: no resumption, hence no 0-RTT.
        None
    }

    fn early_data_accepted(&self) -> Option<bool> {
        match self.side {
            Side::Client => Some(false),
            Side::Server => None,
        }
    }

    fn is_handshaking(&self) -> bool {
        match &self.tls {
            Tls::Handshake(inner) => inner.is_handshaking(),
            Tls::Finished(_) => false,
        }
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        let inner = match &mut self.tls {
            Tls::Handshake(inner) => inner,
            Tls::Finished(finished) => return finished.read(buf).map(|()| false),
        };
        if let Err(error) = inner.read_hs(buf) {
            let mut reported = match inner.alert() {
                Some(alert) => {
                    TransportError::new(TransportErrorCode::crypto(alert.into()), error.to_string())
                }
                None => TransportError::new(
                    TransportErrorCode::PROTOCOL_VIOLATION,
                    format!("TLS error: {error}"),
                ),
            };
            reported.crypto = Some(Arc::new(error));
            return Err(reported);
        }
        let ready = inner.alpn_protocol().is_some() || !inner.is_handshaking();
        let first_time = ready && !self.told_handshake_data;
        self.told_handshake_data |= ready;
        Ok(first_time)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        let encoded = match &self.tls {
            Tls::Handshake(inner) => inner.quic_transport_parameters(),
            Tls::Finished(finished) => finished.parameters.as_deref(),
        };
        let Some(encoded) = encoded else {
            return Ok(None);
        };
        let mut encoded = encoded.to_vec();
        let illegal =
            |reason| TransportError::new(TransportErrorCode::TRANSPORT_PARAMETER_ERROR, reason);
        if let Some(tap) = &self.tap {
            tap.incoming_parameters(&mut encoded).map_err(illegal)?;
        }
        match self.layer() {
            Some(layer) => layer.incoming_parameters(&mut encoded).map_err(illegal)?,
            None => Layer::withhold_parameters(&mut encoded),
        }
        TransportParameters::read(self.side, &mut Cursor::new(encoded))
            .map(Some)
            .map_err(Into::into)
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        let Tls::Handshake(inner) = &mut self.tls else {
            return None;
        };
        let Some(change) = inner.write_hs(buf) else {
            if buf.is_empty() {
                self.finish();
            }
            return None;
        };
        match change {
            KeyChange::Handshake { keys: new } => Some(keys(new.local, new.remote)),
            KeyChange::OneRtt { keys: new, next } => {
                self.next_secrets = Some(next);
                let mut new = keys(new.local, new.remote);
                new.header.local = Box::new(OneRttHeader {
                    key: new.header.local,
                    activity: self.activity.clone(),
                });
                new.packet = KeyPair {
                    local: self.one_rtt(new.packet.local),
                    remote: self.one_rtt(new.packet.remote),
                };
                Some(new)
            }
        }
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let next = self.next_secrets.as_mut()?.next_packet_keys();
        Some(KeyPair {
            local: self.one_rtt(Box::new(next.local)),
            remote: self.one_rtt(Box::new(next.remote)),
        })
    }

    fn is_valid_retry(&self, orig_dst_cid: ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        retry::is_valid(orig_dst_cid, header, payload)
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        // Gone with the TLS library's state: nothing here binds anything to a connection but the
        // connection itself.
        let Tls::Handshake(inner) = &self.tls else {
            return Err(ExportKeyingMaterialError);
        };
        inner
            .export_keying_material(output, label, Some(context))
            .map(drop)
            .map_err(|_| ExportKeyingMaterialError)
    }
}
