//! Ports at which no peer is: what listens there could be used against others.

/// Whether nothing is to be sent to this port at somebody else's wish.
pub fn is_denied(port: u16) -> bool {
    // Sorted, which a test holds it to.
    let found = DENIED_PORTS.binary_search_by_key(&port, |(denied, _)| *denied);
    found.is_ok()
}

/// Ports nothing is sent to because somebody else asks for it, with what listens there: services that
/// answer without a handshake, mostly with more than they were sent, or that configure a network. None of them is in the range
/// systems choose ports from (32768 and up), so an honest peer behind a NAT is hit with a
/// probability below one in two thousand, and has other candidates.
pub const DENIED_PORTS: [(u16, &str); 30] = [
    (7, "echo: loops"),
    (13, "daytime: answers anybody"),
    (17, "quote of the day: amplifies"),
    (19, "chargen: amplifies, loops"),
    (37, "time: answers anybody"),
    (53, "DNS: amplifies"),
    (67, "DHCP: configures a network"),
    (68, "DHCP: configures a host"),
    (69, "TFTP: amplifies, no authentication"),
    (111, "portmapper: amplifies"),
    (123, "NTP: amplifies"),
    (137, "NetBIOS names: amplifies"),
    (138, "NetBIOS datagrams: local"),
    (161, "SNMP: amplifies"),
    (162, "SNMP traps: management"),
    (389, "CLDAP: amplifies"),
    (427, "SLP: amplifies"),
    (514, "syslog: writes to logs"),
    (520, "RIP: routes, amplifies"),
    (623, "IPMI: management"),
    (1434, "SQL Server browser: amplifies"),
    (1900, "SSDP: amplifies"),
    (3702, "WS-Discovery: amplifies"),
    (5093, "Sentinel: amplifies"),
    (5351, "NAT-PMP and PCP: configures a NAT"),
    (5353, "mDNS: amplifies, local"),
    (5355, "LLMNR: local"),
    (5683, "CoAP: amplifies"),
    (10001, "Ubiquiti discovery: amplifies"),
    (11211, "memcached: amplifies"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denied_ports_are_found() {
        assert!(DENIED_PORTS.is_sorted_by(|a, b| a.0 < b.0), "no port twice");
        assert!(DENIED_PORTS.iter().all(|(port, _)| is_denied(*port)));
        assert!(!is_denied(9000) && !is_denied(443) && !is_denied(u16::MAX));
    }
}
