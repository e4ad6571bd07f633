"""quinn, bare, in Rust: the baseline of the targets."""

from . import baseline
from .protocol import Contender, Setting


def contender(setting: Setting) -> Contender:
    return baseline.contender("quinn", setting)


def with_our_identities(setting: Setting) -> Contender:
    """The same handshake as a node's: ML-DSA-65 raw public keys in both directions."""
    return baseline.contender("quinn", setting, raw_keys=True)
