"""HTTP proxies: URLs, the variables of the environment, and the exceptions from them."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyreach.errors import ConfigError
from anyreach.proxies import NoProxy, ProxySettings, ProxyUrl

PROXY = "http://proxy.example:3128"


class TestUrls:
    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            (PROXY, ("http", "proxy.example", 3128)),
            ("proxy.example:3128", ("http", "proxy.example", 3128)),
            ("HTTP://Proxy.Example/", ("http", "proxy.example", 80)),
            ("https://proxy.example", ("https", "proxy.example", 443)),
            (" http://10.0.0.1:8080 ", ("http", "10.0.0.1", 8080)),
            ("http://10.0.0.1:", ("http", "10.0.0.1", 80)),
            ("http://[2001:db8::1]:8080", ("http", "2001:db8::1", 8080)),
            ("[2001:DB8::1]", ("http", "2001:db8::1", 80)),
        ],
    )
    def test_places(self, text: str, parts: tuple[str, str, int]) -> None:
        url = ProxyUrl.parse(text)
        assert (url.scheme, url.host, url.port) == parts
        assert url.authorization is None
        assert ProxyUrl.parse(url.url) == url
        assert str(url) == url.url

    @pytest.mark.parametrize(
        ("userinfo", "user", "password"),
        [
            ("me:secret", "me", "secret"),
            ("me", "me", ""),
            ("me:", "me", ""),
            ("m%40e:p%3Aa%2Fs%25s", "m@e", "p:a/s%s"),
            ("me:a:b", "me", "a:b"),
            ("me:p@ss", "me", "p@ss"),
            ("DOMAIN%5Cme:x", "DOMAIN\\me", "x"),
            ("j%C3%BCrgen:%E2%82%AC", "jürgen", "€"),
        ],
    )
    def test_users(self, userinfo: str, user: str, password: str) -> None:
        url = ProxyUrl.parse(f"http://{userinfo}@proxy.example:3128")
        assert (url.username, url.password) == (user, password)
        assert (url.host, url.port) == ("proxy.example", 3128)
        assert url.authorization is not None
        scheme, _, credentials = url.authorization.partition(" ")
        assert scheme == "Basic"
        assert base64.b64decode(credentials).decode() == f"{user}:{password}"
        assert ProxyUrl.parse(url.url) == url

    @pytest.mark.parametrize(
        ("text", "remedy"),
        [
            ("", "http://"),
            ("http://", "http://"),
            ("http://me:pw@", "http://"),
            ("socks5://127.0.0.1:1080", "SOCKS proxies are not supported"),
            ("socks4a://127.0.0.1:1080", "SOCKS proxies are not supported"),
            ("ftp://proxy.example", "'ftp' is not known"),
            ("http://proxy.example/path", "no path"),
            ("http://proxy.example:0", "port 0"),
            ("http://proxy.example:99999", "up to 65535"),
            ("http://proxy.example:port", "up to 65535"),
            ("http://2001:db8::1:8080", "brackets"),
            ("http://[2001:db8::1", "in brackets"),
            ("http://exa mple", "not a host name"),
            ("http://proxy.example?x", "http://"),
            ("http://me%0d%0aX:pw@proxy.example", "control character"),
            ("http://a%3Ab:pw@proxy.example", "no colon in a user"),
            ("http://%ff:pw@proxy.example", "UTF-8"),
            ("http://proxy\x00.example", "http://"),
        ],
    )
    def test_bad_ones(self, text: str, remedy: str) -> None:
        with pytest.raises(ConfigError) as caught:
            ProxyUrl.parse(text)
        assert caught.value.field == "proxy"
        assert remedy in caught.value.remedy

    @pytest.mark.parametrize(
        "text",
        [
            "socks5://me:hunter2@proxy.example",
            "http://me:hunter2@proxy.example/path",
            "http://me:hunter2@",
            "http://me:hun/hunter2@proxy.example:1",
            "http://me:hunter2@x@proxy example",
            "me:hunter2@proxy.example:99999",
            "http://me:%ffhunter2@proxy.example",
            "http:/me:hunter2@proxy.example",
        ],
    )
    def test_no_error_shows_a_password(self, text: str) -> None:
        with pytest.raises(ConfigError) as caught:
            ProxyUrl.parse(text)
        assert "hunter2" not in str(caught.value)
        assert "hunter2" not in repr(caught.value.__dict__)
        assert caught.value.__cause__ is None

    def test_no_form_but_the_url_shows_a_password(self) -> None:
        url = ProxyUrl.parse("http://me:hunter2@proxy.example:3128")
        assert str(url) == "http://me:***@proxy.example:3128"
        for text in (repr(url), f"{url}", repr(ProxySettings(url)), repr([url])):
            assert "hunter2" not in text
        assert "hunter2" in url.url

    @given(st.text(max_size=60))
    def test_any_text(self, text: str) -> None:
        try:
            url = ProxyUrl.parse(text)
        except ConfigError:
            return
        assert ProxyUrl.parse(url.url) == url

    @given(
        st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=20).filter(
            lambda user: ":" not in user
        ),
        st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=20),
    )
    def test_any_credentials_survive(self, user: str, password: str) -> None:
        url = ProxyUrl("http", "::1", 8080, user, password)
        assert ProxyUrl.parse(url.url) == url


class TestExceptions:
    @pytest.mark.parametrize(
        ("text", "host", "port", "matches"),
        [
            ("", "a.example", 443, False),
            ("*", "a.example", 443, True),
            ("x *", "2001:db8::1", 443, True),
            ("example.org", "example.org", 443, True),
            ("example.org", "www.Example.ORG.", 443, True),
            ("example.org", "badexample.org", 443, False),
            ("Example.Org.", "example.org", 443, True),
            (".example.org", "example.org", 443, True),
            (".example.org", "a.b.example.org", 443, True),
            ("*.example.org", "a.example.org", 443, True),
            ("example.org:443", "a.example.org", 443, True),
            ("example.org:443", "a.example.org", 9000, False),
            ("a.example,b.example", "b.example", 1, True),
            (" a.example , b.example ", "a.example", 1, True),
            ("10.0.0.1", "10.0.0.1", 1, True),
            ("10.0.0.1", "10.0.0.10", 1, False),
            ("10.0.0.1:80", "10.0.0.1", 80, True),
            ("10.0.0.1:80", "10.0.0.1", 81, False),
            ("10.0.0.0/8", "10.200.0.1", 1, True),
            ("10.0.0.1/8", "10.200.0.1", 1, True),
            ("10.0.0.0/8", "11.0.0.1", 1, False),
            ("10.0.0.0/8", "ten.example", 1, False),
            ("0.1", "10.0.0.1", 1, False),
            ("::1", "::1", 1, True),
            ("[::1]", "0:0::1", 1, True),
            ("[::1]:443", "::1", 443, True),
            ("[::1]:443", "::1", 444, False),
            ("2001:db8::/32", "2001:db8:7::1", 1, True),
            ("[2001:db8::]/32", "2001:db8:7::1", 1, True),
            ("2001:db8::/32", "2001:db9::1", 1, False),
            ("fe80::/10", "fe80::1%eth0", 1, True),
            ("10.0.0.1", "::ffff:10.0.0.1", 1, True),
            ("10.0.0.0/8", "::1", 1, False),
            ("localhost", "127.0.0.1", 1, False),
            ("10.0.0.0/99, :80, [::1, a:b:c, a.*.b, http://x", "a.example", 80, False),
        ],
    )
    def test_matching(self, text: str, host: str, port: int, matches: bool) -> None:
        assert NoProxy.parse(text).matches(host, port) is matches

    @given(st.text(max_size=60), st.text(max_size=20), st.integers(0, 65535))
    def test_any_text(self, text: str, host: str, port: int) -> None:
        NoProxy.parse(text).matches(host, port)


class TestEnvironment:
    @pytest.mark.parametrize(
        ("environ", "source"),
        [
            ({}, ""),
            ({"HTTPS_PROXY": PROXY}, "HTTPS_PROXY"),
            ({"https_proxy": PROXY, "HTTPS_PROXY": "http://other:1"}, "https_proxy"),
            ({"ALL_PROXY": PROXY}, "ALL_PROXY"),
            ({"all_proxy": PROXY, "ALL_PROXY": "http://other:1"}, "all_proxy"),
            ({"HTTPS_PROXY": PROXY, "all_proxy": "http://other:1"}, "HTTPS_PROXY"),
            ({"https_proxy": "", "HTTPS_PROXY": PROXY}, "HTTPS_PROXY"),
            ({"http_proxy": PROXY, "HTTP_PROXY": PROXY}, ""),
        ],
    )
    def test_precedence(self, environ: dict[str, str], source: str) -> None:
        settings = ProxySettings.of(None, environ)
        assert settings.source == source
        assert settings.proxy == (ProxyUrl.parse(PROXY) if source else None)
        assert settings.ignored == ()

    def test_what_the_user_says_counts_first(self) -> None:
        environ = {"https_proxy": "http://other:1", "no_proxy": "example.org"}
        settings = ProxySettings.of(PROXY, environ)
        assert (settings.proxy, settings.source) == (ProxyUrl.parse(PROXY), "proxy")
        assert settings.for_host("example.org", 443) is None
        assert settings.for_host("example.com", 443) == settings.proxy
        assert ProxySettings.of(ProxyUrl.parse(PROXY), None).for_host("example.org", 1)

    def test_lower_case_exceptions_win(self) -> None:
        environ = {"HTTPS_PROXY": PROXY, "no_proxy": "a.example", "NO_PROXY": "b.example"}
        settings = ProxySettings.of(None, environ)
        assert settings.for_host("a.example", 1) is None
        assert settings.for_host("b.example", 1) is not None

    def test_without_the_environment(self) -> None:
        assert ProxySettings.of(None) == ProxySettings()
        assert ProxySettings().for_host("example.org", 443) is None

    def test_what_others_can_use_is_no_error(self) -> None:
        environ = {"HTTPS_PROXY": "socks5h://me:hunter2@127.0.0.1:1080", "ALL_PROXY": PROXY}
        settings = ProxySettings.of(None, environ)
        assert (settings.proxy, settings.source) == (ProxyUrl.parse(PROXY), "ALL_PROXY")
        (note,) = settings.ignored
        assert note.startswith("HTTPS_PROXY=")
        assert "SOCKS" in note
        assert "hunter2" not in note
        with pytest.raises(ConfigError, match="SOCKS"):
            ProxySettings.of(environ["HTTPS_PROXY"], environ)
