"""Independent implementations of ML-KEM-768 agree with ours, and with each other through ours."""

import itertools
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .implementations import Anyreach, Cryptography, Kem, KyberPy, Liboqs, liboqs_missing
from .vectors import records

NAMES = ["anyreach", "cryptography", "kyber-py", "liboqs"]


def _name(name: str) -> object:
    if name != "liboqs":
        return name
    missing = liboqs_missing()
    marks = [pytest.mark.liboqs, pytest.mark.skipif(missing is not None, reason=missing or "")]
    return pytest.param(name, marks=marks)


def _pair(first: str, second: str) -> object:
    marks = list(getattr(_name("liboqs"), "marks", ())) if "liboqs" in (first, second) else []
    return pytest.param(first, second, marks=marks)


EACH = [_name(name) for name in NAMES]
PAIRS = [_pair(*pair) for pair in itertools.product(NAMES, repeat=2)]


@cache
def implementation(name: str) -> Kem:
    kems: dict[str, type[Kem]] = {
        "anyreach": Anyreach,
        "cryptography": Cryptography,
        "kyber-py": KyberPy,
        "liboqs": Liboqs,
    }
    return kems[name]()


@pytest.mark.parametrize(("receiver", "sender"), PAIRS)
def test_fresh_secrets_agree(receiver: str, sender: str) -> None:
    for _ in range(5):
        private, public = implementation(receiver).generate()
        ciphertext, secret = implementation(sender).encapsulate(public)
        assert len(ciphertext) == 1088
        assert implementation(receiver).decapsulate(private, ciphertext) == secret


@pytest.mark.parametrize(("receiver", "sender"), PAIRS)
def test_a_flipped_ciphertext_is_rejected_in_silence(receiver: str, sender: str) -> None:
    private, public = implementation(receiver).generate()
    ciphertext, secret = implementation(sender).encapsulate(public)
    for bit in (0, 4351, 8703):
        flipped = bytearray(ciphertext)
        flipped[bit // 8] ^= 1 << bit % 8
        rejected = implementation(receiver).decapsulate(private, bytes(flipped))
        assert rejected != secret
        assert rejected == implementation(receiver).decapsulate(private, bytes(flipped))


@pytest.mark.parametrize("name", EACH)
def test_one_key_loaded_everywhere(name: str) -> None:
    other = implementation(name)
    for record in records()[::100]:
        private = other.load(record)
        assert other.decapsulate(private, record.ct) == record.ss
        assert other.decapsulate(private, record.ct_n) == record.ss_n
        ciphertext, secret = implementation("anyreach").encapsulate(record.pk)
        assert other.decapsulate(private, ciphertext) == secret


@given(number=st.integers(0, 999), bit=st.integers(0, 1088 * 8 - 1))
def test_rejection_secrets_are_the_same_for_any_flip(number: int, bit: int) -> None:
    record = records()[number]
    flipped = bytearray(record.ct)
    flipped[bit // 8] ^= 1 << bit % 8
    ours, openssl = Anyreach(), Cryptography()
    rejected = ours.decapsulate(record.sk, bytes(flipped))
    assert rejected == openssl.decapsulate(openssl.load(record), bytes(flipped))
    assert rejected != record.ss
