//! Sans-I/O codecs of anyreach: what travels inside QUIC packets and streams, as types.
//!
//! Extension frames and transport parameters of draft-seemann-quic-nat-traversal-02 and
//! draft-ietf-quic-address-discovery-00, the control messages two nodes exchange on a stream, the
//! datagrams that open NATs beside QUIC, and what UDP proxying in HTTP puts on the wire: capsules and
//! datagrams (RFC 9297, RFC 9298 and draft-ietf-masque-connect-udp-listen), header fields and URI
//! Templates.
//! It is not a QUIC or HTTP implementation and holds no sockets, clocks, tasks or connection state:
//! bytes in, values out, and back. Everything here reads input of an untrusted peer, so no input
//! panics, and nothing is reserved on the word of a length field.

pub mod address;
pub mod bound;
pub mod capsule;
pub mod context;
pub mod control;
pub mod frames;
pub mod observed;
pub mod opener;
pub mod proxy_fields;
pub mod transport_parameters;
pub mod uri_template;
pub mod varint;
pub mod walk;
