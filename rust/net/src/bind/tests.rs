//! The decision table of binding, and hosts that lack a family.

use std::{cell::RefCell, io};

use super::*;

fn options(addr: &str, ip_mode: IpMode, allow_ipv4_mapped: bool) -> BindOptions {
    BindOptions {
        ip_mode,
        allow_ipv4_mapped,
        ..BindOptions::new(addr.parse().expect("literal"))
    }
}

fn planned(addr: &str, ip_mode: IpMode, mapped: bool) -> (SocketFamily, String, bool) {
    let plan = plan(&options(addr, ip_mode, mapped)).expect("consistent options");
    (plan.family, plan.addr.to_string(), plan.may_degrade)
}

#[test]
fn consistent_options_are_planned() {
    use IpMode::{Dual, V4, V6};
    use SocketFamily as F;
    let table = [
        (("[::]:9", Dual, true), (F::Dual, "[::]:9", true)),
        (("[::]:9", Dual, false), (F::V6Only, "[::]:9", false)),
        (("[::]:9", V6, true), (F::V6Only, "[::]:9", false)),
        (("[::]:9", V4, true), (F::V4, "0.0.0.0:9", false)),
        (("[::1]:9", Dual, true), (F::V6Only, "[::1]:9", false)),
        (("[::1]:9", V6, true), (F::V6Only, "[::1]:9", false)),
        (("0.0.0.0:9", Dual, true), (F::V4, "0.0.0.0:9", false)),
        (("0.0.0.0:9", V4, false), (F::V4, "0.0.0.0:9", false)),
        (("127.0.0.1:9", Dual, true), (F::V4, "127.0.0.1:9", false)),
        (
            ("[::ffff:127.0.0.1]:9", Dual, true),
            (F::V4, "127.0.0.1:9", false),
        ),
    ];
    for ((addr, mode, mapped), (family, bound, degrade)) in table {
        assert_eq!(
            planned(addr, mode, mapped),
            (family, bound.to_owned(), degrade),
            "{addr} {mode} mapped={mapped}"
        );
    }
}

#[test]
fn contradictions_are_refused_with_a_remedy() {
    for (addr, mode) in [
        ("127.0.0.1:9", IpMode::V6),
        ("0.0.0.0:9", IpMode::V6),
        ("[::ffff:127.0.0.1]:9", IpMode::V6),
        ("[::1]:9", IpMode::V4),
        ("[2001:db8::1]:9", IpMode::V4),
    ] {
        let error = plan(&options(addr, mode, true)).expect_err("contradictory");
        assert!(matches!(error, BindError::Contradiction { .. }), "{error}");
        assert!(error.to_string().contains("bind "), "{error}");
    }
}

/// A host whose IPv6 fails in a chosen way; IPv4 sockets are real ones on loopback.
struct Crippled {
    /// Error number of opening an IPv6 socket; `None` opens a real one.
    v6_errno: Option<i32>,
    families: Option<(bool, bool)>,
    opened: RefCell<Vec<(SocketFamily, SocketAddr)>>,
}

impl Crippled {
    fn new(v6_errno: Option<i32>, families: Option<(bool, bool)>) -> Self {
        Self {
            v6_errno,
            families,
            opened: RefCell::default(),
        }
    }
}

impl Host for Crippled {
    fn open(&self, family: SocketFamily, addr: SocketAddr) -> io::Result<Socket> {
        self.opened.borrow_mut().push((family, addr));
        match (family, self.v6_errno) {
            (SocketFamily::V4, _) | (_, None) => System.open(family, addr),
            (_, Some(errno)) => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    fn families(&self) -> Option<(bool, bool)> {
        self.families
    }
}

#[cfg(unix)]
#[test]
fn a_kernel_without_ipv6_degrades_to_ipv4() {
    for errno in [libc::EAFNOSUPPORT, libc::EADDRNOTAVAIL] {
        let host = Crippled::new(Some(errno), None);
        let bound = bind_on(&host, &options("[::]:0", IpMode::Dual, true)).expect("degrades");
        assert_eq!(bound.mode(), IpMode::V4);
        assert_eq!(bound.local_addr().ip(), IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        assert_ne!(bound.local_addr().port(), 0);
        assert_eq!(
            *host.opened.borrow(),
            [
                (SocketFamily::Dual, "[::]:0".parse().expect("literal")),
                (SocketFamily::V4, any_v4(0)),
            ]
        );
    }
}

#[test]
fn ipv6_switched_off_binds_ipv4_although_the_dual_socket_would_open() {
    let host = Crippled::new(None, Some((true, false)));
    let bound = bind_on(&host, &options("[::]:0", IpMode::Dual, true)).expect("degrades");
    assert_eq!(bound.mode(), IpMode::V4);
    assert!(bound.local_addr().is_ipv4());
}

#[cfg(unix)]
#[test]
fn ipv6_that_was_required_is_never_replaced() {
    for (addr, mode) in [("[::]:0", IpMode::V6), ("[::1]:0", IpMode::Dual)] {
        let host = Crippled::new(Some(libc::EAFNOSUPPORT), None);
        let error = bind_on(&host, &options(addr, mode, true)).expect_err("no IPv6");
        assert!(
            matches!(error, BindError::Ipv6Unavailable { .. }),
            "{error}"
        );
    }
    let host = Crippled::new(None, Some((true, false)));
    let error = bind_on(&host, &options("[::]:0", IpMode::V6, true)).expect_err("no IPv6");
    assert!(
        matches!(error, BindError::Ipv6Unavailable { .. }),
        "{error}"
    );
}

#[cfg(unix)]
#[test]
fn errors_that_are_not_about_ipv6_do_not_degrade() {
    for (errno, expected) in [
        (libc::EADDRINUSE, "already in use"),
        (libc::EACCES, "not permitted"),
        (libc::EMFILE, "cannot bind"),
    ] {
        let host = Crippled::new(Some(errno), None);
        let error = bind_on(&host, &options("[::]:9", IpMode::Dual, true)).expect_err("fails");
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(host.opened.borrow().len(), 1);
    }
}

#[test]
fn a_host_with_ipv6_alone_reports_v6() {
    let host = Crippled::new(None, Some((false, true)));
    let bound = bind_on(&host, &options("[::]:0", IpMode::Dual, true)).expect("binds");
    assert_eq!(bound.mode(), IpMode::V6);
}

#[test]
fn unknown_families_are_not_taken_for_missing_ones() {
    let host = Crippled::new(None, None);
    let bound = bind_on(&host, &options("[::]:0", IpMode::Dual, true)).expect("binds");
    assert_eq!(bound.mode(), IpMode::Dual);
}

#[test]
fn a_port_in_use_is_named() {
    let first = bind(&options("[::]:0", IpMode::Dual, true)).expect("free port");
    let port = first.local_addr().port();
    for addr in [format!("[::]:{port}"), format!("0.0.0.0:{port}")] {
        let error = bind(&options(&addr, IpMode::Dual, true)).expect_err("taken");
        assert!(matches!(error, BindError::PortInUse { .. }), "{error}");
        assert!(error.to_string().contains(&port.to_string()), "{error}");
    }
}

#[test]
fn an_address_of_another_host_is_named() {
    for addr in ["192.0.2.200:0", "[2001:db8::200]:0"] {
        let error = bind(&options(addr, IpMode::Dual, true)).expect_err("not ours");
        assert!(
            matches!(error, BindError::AddressNotAvailable { .. }),
            "{error}"
        );
    }
}

#[test]
fn buffers_are_raised_and_reported() {
    let small = bind(&BindOptions {
        buffer_bytes: 64 * 1024,
        ..options("127.0.0.1:0", IpMode::Dual, true)
    })
    .expect("binds");
    let large = bind(&options("127.0.0.1:0", IpMode::Dual, true)).expect("binds");
    assert!(small.buffers().receive >= 64 * 1024);
    assert!(large.buffers().receive > small.buffers().receive);
    assert!(large.buffers().send > small.buffers().send);
}

#[test]
fn modes_have_names() {
    for mode in [IpMode::Dual, IpMode::V4, IpMode::V6] {
        assert_eq!(mode.as_str().parse(), Ok(mode));
    }
    assert!("both".parse::<IpMode>().is_err());
}
