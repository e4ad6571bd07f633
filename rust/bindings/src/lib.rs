//! The Python extension module `anyreach._core`: types, errors and the bridge to asyncio.
//!
//! No logic: what a node does is in the other crates, what it decides is in Python. No call
//! blocks, no runtime thread takes the GIL, and whatever may wait for a lock of the engine does so
//! with the GIL released. `python/anyreach/_core.pyi` is the contract of this module.

mod attempt;
mod bell;
mod bridge;
mod buffers;
mod connection;
mod datagram;
mod dial;
mod endpoint;
mod errors;
mod find;
mod identity;
mod mlkem;
mod openers;
mod path;
mod port_mapping;
mod punching_notices;
mod recv;
mod runtime;
mod send;
mod traversal;
mod tunnel;
mod wake;

use noq::VarInt;
use pyo3::prelude::*;

use crate::errors::Failure;

#[pymodule(gil_used = false)]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::attempt::PathAttempt;
    #[pymodule_export]
    use super::bridge::Bridge;
    #[pymodule_export]
    use super::connection::Connection;
    #[pymodule_export]
    use super::datagram::DatagramSend;
    #[pymodule_export]
    use super::dial::Dial;
    #[pymodule_export]
    use super::endpoint::Endpoint;
    #[pymodule_export]
    use super::errors::DialFailed;
    #[pymodule_export]
    use super::find::Find;
    #[pymodule_export]
    use super::identity::Identity;
    #[pymodule_export]
    use super::interface_addresses;
    #[pymodule_export]
    use super::mlkem::{mlkem768_decapsulate, mlkem768_encapsulate, mlkem768_generate};
    #[pymodule_export]
    use super::openers::{Pool, Reflection, Spray};
    #[pymodule_export]
    use super::path::PathInfo;
    #[pymodule_export]
    use super::port_mapping::PortMapping;
    #[pymodule_export]
    use super::recv::RecvStream;
    #[pymodule_export]
    use super::send::SendStream;
    #[pymodule_export]
    use super::tunnel::Tunnel;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::runtime::watch_forks();
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}

/// Every address that is up: (interface, address, prefix length).
#[pyfunction]
fn interface_addresses(py: Python<'_>) -> Result<Vec<(String, String, u8)>, Failure> {
    let found = py
        .detach(anyreach_net::interface_addresses)
        .map_err(Failure::Runtime)?;
    Ok(found
        .into_iter()
        .map(|address| (address.name, address.addr.to_string(), address.prefix_len))
        .collect())
}

/// An application error code, which QUIC carries as a variable-length integer.
fn varint(code: u64) -> Result<VarInt, Failure> {
    VarInt::from_u64(code).map_err(|_| Failure::Value(format!("code {code} is not below 2**62")))
}
