"""HTTP proxies: which one, if any, stands between this node and a relay.

Pure: the environment is an argument. The variables and their precedence are curl's, because that
is what administrators test with. Only the CONNECT method (RFC 9110 9.3.6) is used, so that a proxy
never sees more than ciphertext; ``http_proxy`` is therefore ignored: it is for plain ``http://``
requests, which a node never makes, and proxies named there often refuse CONNECT.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import quote, unquote_to_bytes

from anyreach.addresses import HostPort, IpAddress, parse_ip
from anyreach.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["NoProxy", "ProxySettings", "ProxyUrl"]

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_VARIABLES: Final = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
_NO_VARIABLES: Final = ("no_proxy", "NO_PROXY")

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_FORM: Final = "write http://[USER:PASSWORD@]HOST:PORT"


@dataclass(frozen=True, slots=True)
class ProxyUrl:
    """Where an HTTP proxy is, and how to log in.

    Text forms never show the password, except :attr:`url`.

    Attributes:
        scheme: ``"http"``, or ``"https"`` for a proxy that speaks TLS itself.
        host: IP literal without brackets, or a lower-case name.
        port: TCP port.
        username: user name; ``None`` without authentication.
        password: password, possibly empty; ``None`` without authentication.
    """

    scheme: str
    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str, *, name: str = "proxy") -> ProxyUrl:
        """From ``[http[s]://][USER[:PASSWORD]@]HOST[:PORT]``.

        User and password are percent-decoded; ``http`` is the default scheme, the port that of the
        scheme (80 or 443).

        Args:
            text: what the user wrote.
            name: what an error blames; the error never contains the password.

        Raises:
            ConfigError: another scheme, a path, or no host.
        """
        shown = _redacted(text)
        stripped = text.strip()
        match = _SCHEME.match(stripped)
        scheme = match[1].lower() if match else "http"
        if scheme.startswith("socks"):
            raise ConfigError(
                name, shown, "SOCKS proxies are not supported; use an HTTP proxy with CONNECT"
            )
        if scheme not in _DEFAULT_PORTS:
            raise ConfigError(name, shown, f"the scheme {scheme!r} is not known; {_FORM}")
        rest = stripped[match.end() :] if match else stripped
        authority, slash, path = rest.partition("/")
        if slash and path:
            raise ConfigError(name, shown, f"a proxy has no path; {_FORM}")
        userinfo, at, place = authority.rpartition("@")
        if not place or _CONTROL.search(stripped) or {"?", "#"} & set(place):
            raise ConfigError(name, shown, _FORM)
        host, port = _place(place, _DEFAULT_PORTS[scheme], name, shown)
        username, password = _userinfo(userinfo, name, shown) if at else (None, None)
        return cls(scheme, host, port, username, password)

    @property
    def authorization(self) -> str | None:
        """The value of ``Proxy-Authorization`` (RFC 7617, in UTF-8); a secret."""
        if self.username is None:
            return None
        credentials = f"{self.username}:{self.password or ''}".encode()
        return "Basic " + base64.b64encode(credentials).decode("ascii")

    @property
    def url(self) -> str:
        """The URL with the password, as :meth:`parse` takes it; a secret."""
        return self._url(quote(self.password or "", safe=""))

    def __str__(self) -> str:
        """The URL, with ``***`` for the password."""
        return self._url("***")

    def _url(self, password: str) -> str:
        login = "" if self.username is None else f"{quote(self.username, safe='')}:{password}@"
        return f"{self.scheme}://{login}{HostPort(self.host, self.port)}"


_Rule: TypeAlias = "tuple[str | IPv4Network | IPv6Network, int | None]"


@dataclass(frozen=True, slots=True)
class NoProxy:
    """The hosts that are reached without a proxy, from the text of ``NO_PROXY``.

    Entries, separated by commas or spaces: ``*`` for all; a domain, which stands for itself and
    everything below it (a leading ``.`` or ``*.`` changes nothing, as in curl); an IP address,
    IPv6 with or without brackets; a prefix such as ``10.0.0.0/8`` or ``fd00::/8``. Names,
    IPv4 addresses and bracketed IPv6 addresses may end in ``:PORT`` to mean that port only.
    Entries that make no sense are ignored. Names are compared as they are written: nothing is
    resolved, so that no address matches a name, or the other way round.

    Attributes:
        everything: an entry is ``*``.
        rules: the other entries: a name or network, and a port or ``None``.
    """

    everything: bool = False
    rules: tuple[_Rule, ...] = ()

    @classmethod
    def parse(cls, text: str) -> NoProxy:
        """From the value of the variable; never fails."""
        entries = text.replace(",", " ").split()
        rules = (rule for rule in map(_rule, entries) if rule is not None)
        return cls("*" in entries, tuple(dict.fromkeys(rules)))

    def matches(self, host: str, port: int) -> bool:
        """Whether ``host``, a name or an IP literal without brackets, needs no proxy."""
        if self.everything:
            return True
        name = host.lower().removesuffix(".")
        ip = parse_ip(name.partition("%")[0])
        return any(
            _covers(rule, name, ip) for rule, only in self.rules if only is None or only == port
        )


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """The proxy of a node and the exceptions from it.

    Attributes:
        proxy: the proxy, or ``None``.
        exceptions: hosts reached without it, also if it was not set by the environment (as in
            curl).
        source: where the proxy comes from, for people: ``"proxy"`` or the name of a variable.
        ignored: variables that were not usable and why, for a warning; without passwords.
    """

    proxy: ProxyUrl | None = None
    exceptions: NoProxy = NoProxy()
    source: str = ""
    ignored: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, proxy: ProxyUrl | str | None, environ: Mapping[str, str] | None = None
    ) -> ProxySettings:
        """From what the user set, else from the environment.

        Of ``https_proxy``, ``HTTPS_PROXY``, ``all_proxy`` and ``ALL_PROXY`` the first that is set
        and usable counts. One that is not usable, as for a SOCKS proxy, is no error: the user
        may have set it for other programs, and most networks need no proxy.

        Args:
            proxy: what the user set; ``None`` to look at the environment.
            environ: the variables; ``None`` to use none of them, ``NO_PROXY`` included.

        Raises:
            ConfigError: ``proxy`` is not the URL of an HTTP proxy.
        """
        variables = environ or {}
        exceptions = NoProxy.parse(next((v for n in _NO_VARIABLES if (v := variables.get(n))), ""))
        if proxy is not None:
            chosen = ProxyUrl.parse(proxy) if isinstance(proxy, str) else proxy
            return cls(chosen, exceptions, "proxy")
        ignored: list[str] = []
        for name in _VARIABLES:
            if not (text := variables.get(name, "").strip()):
                continue
            try:
                return cls(ProxyUrl.parse(text, name=name), exceptions, name, tuple(ignored))
            except ConfigError as error:
                ignored.append(str(error))
        return cls(None, exceptions, "", tuple(ignored))

    def for_host(self, host: str, port: int) -> ProxyUrl | None:
        """The proxy to use for ``host`` (a name, or an IP literal without brackets), if any."""
        if self.proxy is None or self.exceptions.matches(host, port):
            return None
        return self.proxy


def _place(place: str, default_port: int, name: str, shown: str) -> tuple[str, int]:
    bare = place.removesuffix(":")
    has_port = ":" in bare.rpartition("]")[2]
    try:
        parsed = HostPort.parse(bare if has_port else f"{bare}:{default_port}", field=name)
    except ConfigError as error:
        raise ConfigError(name, shown, error.remedy) from None
    return parsed.host, parsed.port


def _userinfo(text: str, name: str, shown: str) -> tuple[str, str]:
    user, _, password = text.partition(":")
    try:
        decoded = [unquote_to_bytes(part).decode("utf-8") for part in (user, password)]
    except UnicodeDecodeError:
        raise ConfigError(
            name, shown, "user and password must be UTF-8 when percent-decoded"
        ) from None
    if any(_CONTROL.search(part) for part in decoded) or ":" in decoded[0]:
        raise ConfigError(
            name, shown, "basic authentication allows no control character, and no colon in a user"
        )
    return decoded[0], decoded[1]


def _redacted(text: str) -> str:
    """``text`` without what may be a password: everything between the first ``:`` and last ``@``
    of what follows the scheme."""
    match = _SCHEME.match(text.strip())
    scheme, rest = (match[0], text.strip()[match.end() :]) if match else ("", text.strip())
    userinfo, at, place = rest.rpartition("@")
    if not at:
        return scheme + rest
    user, colon, _ = userinfo.partition(":")
    return f"{scheme}{user}{':***' if colon else ''}@{place}"


def _rule(entry: str) -> _Rule | None:
    text = entry.lower()
    if "/" in text:
        try:
            return ip_network(text.replace("[", "").replace("]", ""), strict=False), None
        except ValueError:
            return None
    if (ip := parse_ip(text.removeprefix("[").removesuffix("]"))) is not None:
        return _single(ip), None
    host, colon, digits = text.rpartition(":")
    port: int | None = None
    if colon:
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 5):
            return None
        text, port = host, int(digits)
        if (ip := parse_ip(text.removeprefix("[").removesuffix("]"))) is not None:
            return _single(ip), port
    name = text.removeprefix("*").strip(".")
    return (name, port) if name and ":" not in name and "*" not in name else None


def _single(ip: IpAddress) -> IPv4Network | IPv6Network:
    return ip_network((ip.packed, ip.max_prefixlen))


def _covers(rule: str | IPv4Network | IPv6Network, name: str, ip: IpAddress | None) -> bool:
    if isinstance(rule, str):
        return ip is None and (name == rule or name.endswith("." + rule))
    return ip is not None and ip.version == rule.version and ip in rule
