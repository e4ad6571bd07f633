//! The UDP socket of an anyreach node.
//!
//! One dual-stack socket ([`bind`](mod@bind)) carries everything a node says, and [`NodeSocket`]
//! lends it to the QUIC engine: offloads kept, errors of single datagrams counted instead of
//! propagated, datagrams that cannot be QUIC dropped, relay tunnels and extra punching sockets
//! multiplexed in ([`mux`]), openers told apart and sent ([`opener`], [`raw`]). It is not a protocol
//! implementation: it knows neither QUIC packets beyond their first byte nor who its peers are, and
//! it holds no policy.
//!
//! # Which form addresses have
//!
//! - *Canonical* (IPv4 is IPv4): everywhere in anyreach, [`canonical`] makes it.
//! - *Engine form* (IPv4 is `::ffff:a.b.c.d`): only between this socket and the engine, in both
//!   directions. The engine wants all remote addresses of an endpoint in one family and maps IPv4
//!   itself whenever its socket speaks IPv6; a mixture makes it drop packets as "from an
//!   unrecognized peer". [`NodeSocket`] therefore always presents itself as IPv6, also when its
//!   socket is IPv4-only, so that synthetic tunnel addresses are dialable there, too. Whoever reads
//!   an address out of the engine passes it through [`canonical`].
//! - *Socket form*: what the kernel wants for the bound family, made at the system call.
//!
//! Local addresses (`RecvMeta::dst_ip`) are canonical in the engine already, because it only
//! compares and echoes them.

pub mod addr;
pub mod bind;
pub mod counters;
mod extra;
pub mod hold;
pub mod inherit;
pub mod interfaces;
mod junk;
pub mod mux;
pub mod opener;
mod port;
pub mod port_mapping;
pub mod ports;
pub mod prefix;
pub mod raw;
mod receive;
mod routes;
mod sender;
mod socket;
pub mod synthetic;
mod tunnel;
mod udp;
mod unreachable;
pub mod watch;

pub use addr::{canonical, canonical_ip, engine_form};
pub use bind::{
    BindError, BindOptions, BoundSocket, BufferSizes, DEFAULT_BUFFER_BYTES, IpMode, bind,
};
pub use counters::{CounterSnapshot, Counters};
pub use interfaces::{InterfaceAddress, interface_addresses};
pub use mux::{
    ExtraOptions, ExtraSocket, Injector, MuxError, MuxHandle, Tunnel, TunnelSend, TunnelSendError,
};
pub use opener::{Arrival, ArrivedBy, OpenerSink};
pub use port_mapping::{MappingProtocol, MappingState, PortMapping};
pub use prefix::{ParsePrefixError, Prefix};
pub use raw::{Hops, SpareSocket};
pub use sender::is_possible_peer;
pub use socket::NodeSocket;
pub use synthetic::{SyntheticAddr, is_synthetic};
pub use udp::UdpPort;
pub use unreachable::Unreachable;
pub use watch::{NetworkState, NetworkWatch};
