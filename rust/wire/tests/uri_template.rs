//! URI Templates and targets: the rules of RFC 9298, RFC 6570 and the bind draft.

use std::net::{IpAddr, SocketAddr};

use anyreach_wire::uri_template::{Host, MAX_HOST, Target, TargetError, Template, TemplateError};
use proptest::prelude::*;

fn remote(host: &str, port: u16) -> Target {
    Target::Remote {
        host: Host::parse(host).expect("a host"),
        port,
    }
}

fn parse(path: &str) -> Result<Target, TargetError> {
    Target::from_well_known_path(path)
}

fn path(host: &str, port: &str) -> String {
    format!("/.well-known/masque/udp/{host}/{port}/")
}

mod well_known {
    use super::*;

    /// RFC 9298, section 3: its examples.
    #[test]
    fn targets_of_rfc_9298() {
        for (target, written) in [
            (remote("192.0.2.6", 443), path("192.0.2.6", "443")),
            (
                remote("2001:db8::42", 443),
                path("2001%3Adb8%3A%3A42", "443"),
            ),
            (remote("example.org", 1), path("example.org", "1")),
        ] {
            assert_eq!(target.well_known_path(), written);
            assert_eq!(parse(&written), Ok(target));
        }
    }

    /// The bind draft, section 2: `*` MUST be percent-encoded before sending.
    #[test]
    fn any_target_is_percent_encoded_asterisks() {
        assert_eq!(Target::Any.well_known_path(), path("%2A", "%2A"));
        for written in [path("%2A", "%2A"), path("%2a", "%2a"), path("*", "%2A")] {
            assert_eq!(parse(&written), Ok(Target::Any));
        }
    }

    /// The bind draft, section 2: only one `*` is malformed.
    #[test]
    fn only_one_asterisk_is_malformed() {
        for written in [path("%2A", "443"), path("192.0.2.6", "*"), path("*", "")] {
            assert_eq!(parse(&written), Err(TargetError::HalfAny));
        }
    }

    /// RFC 9298, section 3: the port MUST be an integer from 1 to 65535, and not empty.
    #[test]
    fn ports_are_1_to_65535() {
        for port in ["1", "65535", "00443"] {
            assert!(parse(&path("192.0.2.6", port)).is_ok(), "{port}");
        }
        for port in [
            "",
            "0",
            "65536",
            "%2B80",
            "+80",
            "-1",
            "8a",
            "%34%20",
            "99999999999",
        ] {
            let result = parse(&path("192.0.2.6", port));
            assert_eq!(result, Err(TargetError::Port), "{port}");
        }
    }

    /// RFC 9298, section 3: the host MUST NOT be empty, and is an IPv6 or IPv4 address or a name;
    /// zones are not supported.
    #[test]
    fn hosts_are_addresses_or_names() {
        for host in [
            "",
            ".",
            "a..b",
            ".a",
            "%00",
            "a%2Fb",
            "a%0D%0Ab",
            "%5B%3A%3A1%5D",
            "fe80%3A%3A1%25eth0",
            "fe80%3A%3A1%251",
            "1.2.3",
            "1.2.3.4.5",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0x7f.0.0.0x1",
            "01.2.3.4",
            "localhost.0",
            "1.2.3.4.",
            "a%20b",
            "%FF",
            "%C3%BC",
            "%252A",
        ] {
            let result = parse(&path(host, "443"));
            assert_eq!(result, Err(TargetError::Host), "{host}");
        }
        for host in [
            "a",
            "xn--bcher-kva.example",
            "_dns.example.",
            "4.example",
            "0x7f.example",
        ] {
            assert!(parse(&path(host, "443")).is_ok(), "{host}");
        }
        assert_eq!(
            parse(&path("EXAMPLE.org", "9")),
            Ok(remote("example.org", 9))
        );
    }

    #[test]
    fn hosts_are_limited() {
        let label = "a".repeat(63);
        let longest = [&label[..], &label, &label, &label[..61], ""].join(".");
        assert_eq!(longest.len(), MAX_HOST);
        assert!(Host::parse(&longest).is_ok());
        assert_eq!(Host::parse(&format!("a{longest}")), Err(TargetError::Host));
        assert_eq!(Host::parse(&format!("{label}a")), Err(TargetError::Host));
        let huge = path(&"a".repeat(1 << 20), "443");
        assert_eq!(parse(&huge), Err(TargetError::Host));
    }

    /// A rule about 127.0.0.1 sees it, however it was written.
    #[test]
    fn mapped_hosts_are_ipv4() {
        let target = parse(&path("%3A%3Affff%3A127.0.0.1", "53"));
        assert_eq!(target, Ok(remote("127.0.0.1", 53)));
        let mapped: SocketAddr = "[::ffff:127.0.0.1]:53".parse().expect("an address");
        assert_eq!(Target::address(mapped), remote("127.0.0.1", 53));
    }

    #[test]
    fn percent_encoding_is_checked_and_decoded_once() {
        for host in ["%", "%2", "%zz", "a%2", "%+1"] {
            let result = parse(&path(host, "443"));
            assert_eq!(result, Err(TargetError::PercentEncoding), "{host}");
        }
        // Decoded twice it would be `*`.
        assert_eq!(parse(&path("%252A", "%252A")), Err(TargetError::Host));
    }

    #[test]
    fn other_paths_are_not_ours() {
        for other in [
            "",
            "/",
            "*",
            "/.well-known/masque/udp",
            "/.well-known/masque/udp/",
            "/.well-known/masque/udp/192.0.2.6/443",
            "/.well-known/masque/udp/192.0.2.6/",
            "/.well-known/masque/udp/192.0.2.6/443/x/",
            "/.well-known/masque/udp/192.0.2.6/443/?x=/",
            "/.well-known/masque/udp/192.0.2.6?/443/",
            "/.well-known/masque/ip/192.0.2.6/443/",
            "//.well-known/masque/udp/192.0.2.6/443/",
            "/.Well-Known/masque/udp/192.0.2.6/443/",
        ] {
            assert_eq!(parse(other), Err(TargetError::OtherPath), "{other}");
        }
    }
}

mod templates {
    use super::*;

    fn expand(template: &str, target: &Target) -> String {
        Template::parse(template).expect("valid").expand(target)
    }

    /// RFC 9298, section 2: its examples.
    #[test]
    fn of_rfc_9298() {
        let v6 = remote("2001:db8::42", 443);
        for (template, authority, expanded) in [
            (
                "https://example.org/.well-known/masque/udp/{target_host}/{target_port}/",
                "example.org",
                "/.well-known/masque/udp/2001%3Adb8%3A%3A42/443/",
            ),
            (
                "https://proxy.example.org:4443/masque?h={target_host}&p={target_port}",
                "proxy.example.org:4443",
                "/masque?h=2001%3Adb8%3A%3A42&p=443",
            ),
            (
                "https://proxy.example.org:4443/masque{?target_host,target_port}",
                "proxy.example.org:4443",
                "/masque?target_host=2001%3Adb8%3A%3A42&target_port=443",
            ),
        ] {
            let parsed = Template::parse(template).expect("valid");
            assert_eq!(parsed.authority(), authority);
            assert_eq!(parsed.expand(&v6), expanded);
            assert_eq!(parsed.to_string(), template);
        }
    }

    /// RFC 6570, sections 3.2.2, 3.2.8 and 3.2.9, as far as RFC 9298 allows.
    #[test]
    fn operators_and_lists() {
        let target = remote("a-b.example", 9);
        for (template, expanded) in [
            ("/{target_host,target_port}", "/a-b.example,9"),
            ("/{target_port}{target_host}", "/9a-b.example"),
            (
                "/x?y=1{&target_host,target_port}",
                "/x?y=1&target_host=a-b.example&target_port=9",
            ),
            (
                "/x{?target_host}{&target_port}",
                "/x?target_host=a-b.example&target_port=9",
            ),
            // Undefined variables are left out, with what would separate them.
            (
                "/{user}/{target_host}/{target_port,user}",
                "//a-b.example/9",
            ),
            (
                "/{?a,target_host,b.c,target_port}",
                "/?target_host=a-b.example&target_port=9",
            ),
            ("/{?a}{target_host}:{target_port}", "/a-b.example:9"),
            ("/%41~{target_host}/{target_port}", "/%41~a-b.example/9"),
        ] {
            assert_eq!(expand(&format!("https://h{template}"), &target), expanded);
        }
    }

    /// The bind draft, section 2: `*` MUST be percent-encoded.
    #[test]
    fn any_target_is_percent_encoded() {
        assert_eq!(
            expand("https://h/{?target_host,target_port}", &Target::Any),
            "/?target_host=%2A&target_port=%2A"
        );
    }

    #[test]
    fn hosts_and_ports_of_proxies() {
        for (authority, host, port, written) in [
            ("example.org", "example.org", 443, "example.org"),
            ("EXAMPLE.org:443", "example.org", 443, "example.org"),
            ("192.0.2.1:8443", "192.0.2.1", 8443, "192.0.2.1:8443"),
            ("[2001:DB8::1]:9", "2001:db8::1", 9, "[2001:db8::1]:9"),
            ("[2001:db8::1]", "2001:db8::1", 443, "[2001:db8::1]"),
        ] {
            let text = format!("https://{authority}/{{target_host}}/{{target_port}}");
            let template: Template = text.parse().expect("valid");
            assert_eq!(template.host(), &Host::parse(host).expect("a host"));
            assert_eq!((template.port(), template.authority()), (port, written));
        }
    }

    #[test]
    fn the_default_template() {
        let host = Host::parse("2001:db8::1").expect("a host");
        let template = Template::well_known(host, 9000);
        assert_eq!(
            template.to_string(),
            "https://[2001:db8::1]:9000/.well-known/masque/udp/{target_host}/{target_port}/"
        );
        assert_eq!(template.to_string().parse(), Ok(template.clone()));
        for target in [Target::Any, remote("192.0.2.6", 443), remote("::1", 1)] {
            assert_eq!(template.expand(&target), target.well_known_path());
        }
    }

    fn refused(template: &str) -> TemplateError {
        Template::parse(template).expect_err(template)
    }

    /// RFC 9298, section 2: level 3 or lower.
    #[test]
    fn must_be_of_level_3_or_lower() {
        for (modifier, variable) in [(':', "target_host:3"), ('*', "target_host*")] {
            assert_eq!(
                refused(&format!("https://h/{{{variable}}}/{{target_port}}")),
                TemplateError::Operator(modifier)
            );
        }
    }

    /// RFC 9298, section 2: absolute form, with non-empty scheme, authority and path.
    #[test]
    fn must_be_absolute() {
        let variables = "{target_host}/{target_port}";
        for (start, error) in [
            ("/", TemplateError::Scheme),
            ("//h/", TemplateError::Scheme),
            ("://h/", TemplateError::Scheme),
            ("http://h/", TemplateError::Scheme),
            ("https:///", TemplateError::Authority),
            ("https://:443/", TemplateError::Authority),
            ("https://h:/", TemplateError::Authority),
            ("https://h:0/", TemplateError::Authority),
            ("https://h:65536/", TemplateError::Authority),
            ("https://u@h/", TemplateError::Authority),
            ("https://u:p@h/", TemplateError::Authority),
            ("https://[::1/", TemplateError::Authority),
            ("https://[::1]x/", TemplateError::Authority),
            ("https://[fe80::1%1]/", TemplateError::Authority),
            ("https://127.1/", TemplateError::Authority),
        ] {
            assert_eq!(refused(&format!("{start}{variables}")), error, "{start}");
        }
    }

    /// RFC 9298, section 2: the path MUST start with a slash.
    #[test]
    fn path_must_start_with_a_slash() {
        assert_eq!(
            refused("https://h?a={target_host}&b={target_port}"),
            TemplateError::Path
        );
        assert_eq!(refused("https://h"), TemplateError::Path);
    }

    /// RFC 9298, section 2: all variables MUST be within path or query.
    #[test]
    fn variables_must_be_in_path_or_query() {
        assert_eq!(
            refused("https://{target_host}/{target_host}/{target_port}"),
            TemplateError::Authority
        );
        assert_eq!(
            refused("https://h{?target_host,target_port}"),
            TemplateError::Authority
        );
        assert_eq!(
            refused("https://h/{target_host}#{target_port}"),
            TemplateError::Character('#')
        );
    }

    /// RFC 9298, section 2: both variables MUST be there.
    #[test]
    fn must_contain_both_variables() {
        for (template, missing) in [
            ("https://h/", "target_host"),
            ("https://h/{target_host}", "target_port"),
            ("https://h/{target_port}/target_host", "target_host"),
            ("https://h/{Target_Host}/{target_port}", "target_host"),
        ] {
            assert_eq!(refused(template), TemplateError::Missing(missing));
        }
    }

    /// RFC 9298, section 2: only characters from 0x21 to 0x7E.
    #[test]
    fn must_be_printable_ascii() {
        for character in ['ü', ' ', '\n', '\0', '\u{7f}'] {
            assert_eq!(
                refused(&format!(
                    "https://h/{character}{{target_host}}{{target_port}}"
                )),
                TemplateError::Character(character)
            );
        }
    }

    /// RFC 9298, section 2: MUST NOT use these operators.
    #[test]
    fn must_not_use_forbidden_operators() {
        for operator in ['+', '#', '.', '/', ';', '=', ',', '!', '@', '|'] {
            assert_eq!(
                refused(&format!(
                    "https://h/{{{operator}target_host}}/{{target_port}}"
                )),
                TemplateError::Operator(operator)
            );
        }
    }

    /// RFC 6570, section 2: literals and expressions.
    #[test]
    fn malformed_expressions_and_literals() {
        for expression in [
            "{",
            "{target_host",
            "{}",
            "{a b}",
            "{a,}",
            "{a..b}",
            "{.a}",
            "{%4}",
        ] {
            let template = format!("https://h/{{target_host}}{{target_port}}{expression}");
            assert!(Template::parse(&template).is_err(), "{expression}");
        }
        for literal in ["}", "\"", "'", "<", ">", "\\", "^", "`", "|"] {
            let template = format!("https://h/{literal}{{target_host}}{{target_port}}");
            let character = literal.chars().next().expect("one");
            assert_eq!(refused(&template), TemplateError::Character(character));
        }
        for literal in ["%", "%4", "%zz"] {
            let template = format!("https://h/{literal}{{target_host}}{{target_port}}");
            assert_eq!(refused(&template), TemplateError::PercentEncoding);
        }
        let long = format!(
            "https://h/{{target_host}}{{target_port}}{}",
            "a".repeat(4096)
        );
        assert_eq!(refused(&long), TemplateError::TooLong);
    }
}

fn any_target() -> impl Strategy<Value = Target> {
    let host = prop_oneof![
        any::<IpAddr>().prop_map(|ip| Host::Ip(ip.to_canonical())),
        "([a-z0-9_-]{1,20}\\.){0,3}[a-z_][a-z0-9_-]{0,10}\\.?"
            .prop_map(|name| Host::parse(&name).expect("a name")),
    ];
    prop_oneof![
        Just(Target::Any),
        (host, 1_u16..).prop_map(|(host, port)| Target::Remote { host, port }),
    ]
}

proptest! {
    #[test]
    fn targets_round_trip(target in any_target()) {
        let path = target.well_known_path();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"/%-._~".contains(&byte);
        prop_assert!(path.bytes().all(allowed), "{}", path);
        prop_assert_eq!(parse(&path)?, target);
    }

    #[test]
    fn arbitrary_texts_never_panic(text: String, host in "[0-9a-fx.:%*\\[\\]-]{0,30}") {
        let _ = (parse(&text), parse(&path(&text, &text)), parse(&path(&host, "9")));
        for template in [
            text.clone(),
            format!("https://{text}/{{target_host}}{{target_port}}"),
            format!("https://{host}/{{target_host}}{{target_port}}"),
            format!("https://h/{text}{{target_host}}{{target_port}}"),
            format!("https://h/{{target_host}}{{target_port}}{{{text}}}"),
        ] {
            if let Ok(parsed) = Template::parse(&template) {
                prop_assert_eq!(Template::parse(&parsed.to_string())?, parsed);
            }
        }
    }
}
