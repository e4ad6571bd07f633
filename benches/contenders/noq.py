"""noq, bare, in Rust: what our engine can do without us."""

from . import baseline
from .protocol import Contender, Setting


def contender(setting: Setting) -> Contender:
    return baseline.contender("noq", setting)
