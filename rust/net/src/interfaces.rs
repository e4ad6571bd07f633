//! The addresses of this host's interfaces that are up.
//!
//! A snapshot, not a watch. Loopback and link-local addresses are included: what they are worth as
//! candidates is policy and decided elsewhere.

use std::{io, net::IpAddr};

use if_addrs::IfAddr;

use crate::synthetic::is_synthetic;

/// One address of one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The interface's name as the system shows it, such as `eth0`.
    pub name: String,
    /// The address, canonical.
    pub addr: IpAddr,
    /// Length of the on-link prefix in bits.
    pub prefix_len: u8,
}

/// All addresses of interfaces that are up, in the system's order. One in the synthetic prefix, if
/// somebody has configured such a thing, is left out: it could not be told from a tunnel.
///
/// # Errors
///
/// What the system reports if it cannot list its interfaces.
pub fn interface_addresses() -> io::Result<Vec<InterfaceAddress>> {
    let interfaces = if_addrs::get_if_addrs()?;
    Ok(interfaces
        .into_iter()
        .filter(if_addrs::Interface::is_oper_up)
        .map(|interface| {
            let (addr, prefix_len) = match &interface.addr {
                IfAddr::V4(v4) => (IpAddr::V4(v4.ip), v4.prefixlen),
                IfAddr::V6(v6) => (IpAddr::V6(v6.ip), v6.prefixlen),
            };
            InterfaceAddress {
                name: interface.name,
                addr: addr.to_canonical(),
                prefix_len,
            }
        })
        .filter(|entry| !is_synthetic(entry.addr))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_listed_with_its_prefix() {
        let all = interface_addresses().expect("interfaces can be listed");
        let loopback = all
            .iter()
            .find(|entry| entry.addr == IpAddr::from([127, 0, 0, 1]))
            .expect("tests run with loopback up");
        assert_eq!(loopback.prefix_len, 8);
        assert!(!loopback.name.is_empty());
    }
}
