//! Header fields: what RFC 9297, RFC 9209 and the bind draft say, and fields nobody should send.

use std::net::{IpAddr, SocketAddr};

use anyreach_wire::proxy_fields::{
    MAX_ADDRESSES, MAX_DETAILS, MAX_FIELD_BYTES, ProxyError, ProxyStatus, TRUE, read_addresses,
    read_boolean, write_addresses, write_proxy_status,
};
use proptest::prelude::*;

fn boolean(lines: &[&str]) -> bool {
    read_boolean(lines.iter().map(|line| line.as_bytes()))
}

fn addresses(lines: &[&str]) -> Vec<String> {
    let addresses = read_addresses(lines.iter().map(|line| line.as_bytes()));
    addresses.iter().map(SocketAddr::to_string).collect()
}

fn status(lines: &[&str]) -> Option<ProxyStatus> {
    ProxyStatus::read(lines.iter().map(|line| line.as_bytes()))
}

mod booleans {
    use super::*;

    #[test]
    fn true_is_true() {
        assert!(boolean(&[TRUE]));
        assert!(boolean(&["  ?1 "]));
    }

    /// RFC 9297, section 3.4: false has the semantics of a field that is not there.
    #[test]
    fn false_is_as_absent() {
        assert!(!boolean(&["?0"]));
        assert!(!boolean(&[]));
    }

    /// RFC 9297, section 3.4, and the bind draft, section 5: receivers MUST ignore unknown
    /// parameters.
    #[test]
    fn parameters_are_ignored() {
        assert!(boolean(&["?1;a=1;b=\"c\";d"]));
        assert!(!boolean(&["?0;a"]));
    }

    /// The same: any other type MUST be handled as if the field were not present.
    #[test]
    fn other_types_are_as_absent() {
        for value in [
            "1", "true", "\"?1\"", ":AQ==:", "(?1)", "?2", "", "?1 ?1", "1.0", "@1",
        ] {
            assert!(!boolean(&[value]), "{value}");
        }
    }

    /// The same: a field included multiple times is a List, and is ignored.
    #[test]
    fn a_repeated_field_is_as_absent() {
        assert!(!boolean(&[TRUE, TRUE]));
        assert!(!boolean(&["?1, ?1"]));
        assert!(!boolean(&[TRUE, ""]));
    }

    #[test]
    fn too_much_is_as_absent() {
        let long = format!("?1;a=\"{}\"", "x".repeat(MAX_FIELD_BYTES));
        assert!(!boolean(&[&long]));
        let many = vec![TRUE; 10_000];
        assert!(!boolean(&many));
    }
}

mod public_addresses {
    use super::*;

    /// The bind draft, section 6 and its example.
    #[test]
    fn of_the_bind_draft() {
        let both = ["192.0.2.45:54321", "[2001:db8::1234]:54321"];
        assert_eq!(
            addresses(&[r#""192.0.2.45:54321", "[2001:db8::1234]:54321""#]),
            both
        );
        assert_eq!(
            addresses(&[r#""192.0.2.45:54321""#, r#""[2001:db8::1234]:54321";x=1"#]),
            both
        );
        let both = both.map(|address| address.parse().expect("an address"));
        assert_eq!(
            write_addresses(&both),
            r#""192.0.2.45:54321", "[2001:db8::1234]:54321""#
        );
        assert_eq!(write_addresses(&[]), "");
    }

    #[test]
    fn what_nobody_could_send_to_is_left_out() {
        for member in [
            "\"192.0.2.1\"",
            "\"192.0.2.1:\"",
            "\"192.0.2.1:0\"",
            "\"192.0.2.1:65536\"",
            "\"192.0.2.1:+80\"",
            "\"192.0.2.1:8 0\"",
            "\"192.0.2.01:80\"",
            "\"0.0.0.0:80\"",
            "\"[::]:80\"",
            "\"[::ffff:0.0.0.0]:80\"",
            "\"2001:db8::1:80\"",
            "\"[2001:db8::1]\"",
            "\"[2001:db8::1]80\"",
            "\"[2001:db8::1:80\"",
            "\"[fe80::1%251]:80\"",
            "\"[fe80::1%1]:80\"",
            "\"[v7.host]:80\"",
            "\"example.org:80\"",
            "\"\"",
            "192.0.2.1",
            "token",
            "?1",
            "(\"192.0.2.1:80\")",
            ":AQ==:",
        ] {
            // The address after it is read, or none if that makes it no list.
            let found = addresses(&[member, "\"192.0.2.9:9\""]);
            let list = member != "192.0.2.1";
            assert_eq!(found, ["192.0.2.9:9"][..usize::from(list)], "{member}");
        }
    }

    #[test]
    fn no_list_is_no_address() {
        for value in [
            "\"192.0.2.1:80\",",
            "\"192.0.2.1:80",
            "\"1\" \"2\"",
            "\u{fc}",
            "",
        ] {
            assert!(addresses(&[value]).is_empty(), "{value}");
        }
        assert!(addresses(&[]).is_empty());
    }

    #[test]
    fn mapped_addresses_are_ipv4_and_repetitions_one() {
        assert_eq!(
            addresses(&["\"[::ffff:192.0.2.1]:80\", \"192.0.2.1:80\", \"192.0.2.1:81\""]),
            ["192.0.2.1:80", "192.0.2.1:81"]
        );
    }

    #[test]
    fn addresses_are_limited() {
        let line = |n: usize| format!("\"192.0.2.1:{}\"", 1000 + n);
        let most: Vec<String> = (0..100).map(line).collect();
        assert_eq!(addresses(&[&most.join(", ")]).len(), MAX_ADDRESSES);
        let too_long: Vec<String> = (0..1000).map(line).collect();
        assert!(addresses(&[&too_long.join(", ")]).is_empty());
    }
}

mod proxy_status {
    use super::*;

    /// RFC 9209, section 2: a list of proxies, each with its parameters.
    #[test]
    fn is_written_as_rfc_9209_says() {
        assert_eq!(
            write_proxy_status(
                "anyreach",
                ProxyError::DestinationIpProhibited,
                "127.0.0.1 is a \"loopback\" address"
            ),
            r#""anyreach";error=destination_ip_prohibited;details="127.0.0.1 is a \"loopback\" address""#
        );
        assert_eq!(
            write_proxy_status("r", ProxyError::DnsError, ""),
            r#""r";error=dns_error"#
        );
    }

    #[test]
    fn details_are_printable_and_limited() {
        let written = write_proxy_status("r\n", ProxyError::DnsError, &"ü\r\n".repeat(1000));
        let read = status(&[&written]).expect("an error");
        assert_eq!(read.details.len(), MAX_DETAILS);
        assert!(read.details.bytes().all(|byte| byte == b'?'));
        assert!(written.starts_with("\"r?\";"));
    }

    #[test]
    fn the_proxy_nearest_to_us_is_the_last_one() {
        let read = status(&[
            "origin; error=dns_timeout; details=\"far\"",
            "\"middle\";error=http_request_denied;details=\"near\", cache; received-status=200",
        ]);
        let expected = ProxyStatus {
            error: "http_request_denied".into(),
            known: Some(ProxyError::HttpRequestDenied),
            details: "near".into(),
        };
        assert_eq!(read, Some(expected));
    }

    #[test]
    fn unknown_errors_are_kept_as_text() {
        let read = status(&["p; error=a_later_type; details=no-string"]).expect("an error");
        assert_eq!((read.error.as_str(), read.known), ("a_later_type", None));
        assert_eq!(read.details, "");
    }

    #[test]
    fn no_error_is_none() {
        for value in [
            "p",
            "",
            "p; error=\"text\"",
            "p; error",
            "p;;",
            "(p);error=dns_error",
        ] {
            assert_eq!(status(&[value]), None, "{value}");
        }
    }

    /// RFC 9209, section 2.3: the recommended status codes.
    #[test]
    fn status_codes() {
        for (error, code) in [
            (ProxyError::DnsTimeout, 504),
            (ProxyError::DnsError, 502),
            (ProxyError::DestinationNotFound, 500),
            (ProxyError::DestinationUnavailable, 503),
            (ProxyError::DestinationIpProhibited, 502),
            (ProxyError::DestinationIpUnroutable, 502),
            (ProxyError::ConnectionLimitReached, 503),
            (ProxyError::HttpRequestError, 400),
            (ProxyError::HttpRequestDenied, 403),
            (ProxyError::ProxyInternalError, 500),
            (ProxyError::ProxyConfigurationError, 500),
            (ProxyError::ProxyLoopDetected, 502),
        ] {
            assert_eq!(error.recommended_status(), code, "{}", error.as_str());
            let written = write_proxy_status("p", error, "d");
            assert_eq!(status(&[&written]).expect("an error").known, Some(error));
        }
    }
}

proptest! {
    #[test]
    fn addresses_round_trip(
        list in prop::collection::hash_set((any::<IpAddr>(), 1_u16..), 0..=MAX_ADDRESSES),
    ) {
        let list: Vec<SocketAddr> = list
            .into_iter()
            .map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
            .filter(|address| !address.ip().is_unspecified())
            .collect();
        prop_assert_eq!(read_addresses([write_addresses(&list).as_bytes()]), list);
    }

    #[test]
    fn statuses_round_trip(proxy: String, details in "[ -~]{0,256}") {
        let written = write_proxy_status(&proxy, ProxyError::ProxyInternalError, &details);
        let read = ProxyStatus::read([written.as_bytes()]).expect("an error");
        prop_assert_eq!(read.known, Some(ProxyError::ProxyInternalError));
        prop_assert_eq!(read.details, details);
    }

    #[test]
    fn arbitrary_fields_never_panic(
        lines in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..4),
        text in "[]\\[\"0-9a-f:.,;=?()* ]{0,80}",
    ) {
        let noise = || lines.iter().map(Vec::as_slice);
        for found in [read_addresses(noise()), read_addresses([text.as_bytes()])] {
            prop_assert!(found.len() <= MAX_ADDRESSES);
        }
        let _ = (read_boolean(noise()), read_boolean([text.as_bytes()]));
        let _ = (ProxyStatus::read(noise()), ProxyStatus::read([text.as_bytes()]));
    }
}
