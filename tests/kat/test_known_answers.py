"""The 1000 known answers of ML-KEM-768, and what must be refused."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyreach import _core

from .implementations import Cryptography, KyberPy
from .vectors import Record, records

Q = 3329  # the modulus, FIPS 203 section 2.4
COEFFICIENTS = 3 * 256  # of an encapsulation key: k polynomials, twelve bits each
DK_PKE = slice(0, 1152)  # parts of an expanded decapsulation key, FIPS 203 algorithm 16
DK_EK = slice(1152, 2336)
DK_HASH = slice(2336, 2368)
DK_Z = slice(2368, 2400)

# Pure Python takes about 15 ms per record: a spread sample every time, all of them when asked.
SAMPLE = slice(None, None, 40)


def with_coefficient(key: bytes, index: int, value: int) -> bytes:
    """The encapsulation key with one twelve-bit coefficient replaced (ByteEncode_12)."""
    offset, odd = divmod(index * 12, 8)
    pair = int.from_bytes(key[offset : offset + 2], "little")
    shift = 4 if odd else 0
    pair = (pair & ~(0xFFF << shift)) | (value << shift)
    return key[:offset] + pair.to_bytes(2, "little") + key[offset + 2 :]


def check_oracle(record: Record) -> None:
    oracle = KyberPy()
    assert oracle.keygen_from(record.d, record.z) == (record.pk, record.sk)
    assert oracle.encapsulate_from(record.pk, record.msg) == (record.ct, record.ss)
    assert oracle.decapsulate(record.sk, record.ct_n) == record.ss_n


def test_the_file_is_complete() -> None:
    assert len(records()) == 1000


def test_decapsulation_of_every_record() -> None:
    for number, record in enumerate(records()):
        assert _core.mlkem768_decapsulate(record.sk, record.ct) == record.ss, number


def test_implicit_rejection_of_every_record() -> None:
    for number, record in enumerate(records()):
        assert _core.mlkem768_decapsulate(record.sk, record.ct_n) == record.ss_n, number


def test_encapsulation_to_every_recorded_key() -> None:
    for number, record in enumerate(records()):
        ciphertext, secret = _core.mlkem768_encapsulate(record.pk)
        assert _core.mlkem768_decapsulate(record.sk, ciphertext) == secret, number


def test_records_agree_with_the_seeds() -> None:
    """Ties the records to FIPS 203 key generation by a library that takes the seed itself."""
    openssl = Cryptography()
    for number, record in enumerate(records()):
        private = openssl.load(record)
        assert private.public_key().public_bytes_raw() == record.pk, number
        assert openssl.decapsulate(private, record.ct) == record.ss, number


@pytest.mark.parametrize("record", records()[SAMPLE], ids=lambda record: record.d.hex()[:8])
def test_deterministic_oracle_on_a_sample(record: Record) -> None:
    check_oracle(record)


@pytest.mark.slow
def test_deterministic_oracle_on_every_record() -> None:
    for record in records():
        check_oracle(record)


def test_layout_of_a_fresh_key() -> None:
    private, public = _core.mlkem768_generate()
    assert (len(private), len(public)) == (2400, 1184)
    assert private[DK_EK] == public
    assert private[DK_HASH] == hashlib.sha3_256(public).digest()
    ciphertext, secret = _core.mlkem768_encapsulate(public)
    assert (len(ciphertext), len(secret)) == (1088, 32)


def test_keys_and_secrets_are_fresh() -> None:
    pairs = [_core.mlkem768_generate() for _ in range(16)]
    assert len({private[DK_Z] for private, _ in pairs}) == 16
    assert len({private[DK_PKE] for private, _ in pairs}) == 16
    public = pairs[0][1]
    results = [_core.mlkem768_encapsulate(public) for _ in range(16)]
    assert len({ciphertext for ciphertext, _ in results}) == 16
    assert len({secret for _, secret in results}) == 16


@pytest.mark.parametrize("length", [0, 1, 32, 800, 1183, 1185, 1568, 2400, 65536])
def test_encapsulation_key_of_the_wrong_length(length: int) -> None:
    with pytest.raises(ValueError, match=f"must be 1184 bytes, not {length}"):
        _core.mlkem768_encapsulate(bytes(length))


@pytest.mark.parametrize("length", [0, 1, 64, 1632, 2399, 2401, 3168])
def test_decapsulation_key_of_the_wrong_length(length: int) -> None:
    with pytest.raises(ValueError, match=f"must be 2400 bytes, not {length}"):
        _core.mlkem768_decapsulate(bytes(length), records()[0].ct)


@pytest.mark.parametrize("length", [0, 1, 768, 1087, 1089, 1568])
def test_ciphertext_of_the_wrong_length(length: int) -> None:
    with pytest.raises(ValueError, match=f"must be 1088 bytes, not {length}"):
        _core.mlkem768_decapsulate(records()[0].sk, bytes(length))


@pytest.mark.parametrize("value", ["text", None, 7, [1, 2]])
def test_arguments_that_are_not_bytes(value: object) -> None:
    with pytest.raises(TypeError):
        _core.mlkem768_encapsulate(value)  # type: ignore[arg-type]


@given(index=st.integers(0, COEFFICIENTS - 1), value=st.integers(Q, 0xFFF))
def test_modulus_check(index: int, value: int) -> None:
    """FIPS 203 section 7.2: a coefficient that is not reduced makes the key invalid."""
    with pytest.raises(ValueError, match="not a valid"):
        _core.mlkem768_encapsulate(with_coefficient(records()[0].pk, index, value))


@given(index=st.integers(0, COEFFICIENTS - 1), value=st.integers(0, Q - 1))
def test_reduced_keys_pass_the_modulus_check(index: int, value: int) -> None:
    _core.mlkem768_encapsulate(with_coefficient(records()[0].pk, index, value))


@given(bit=st.integers(0, 1184 * 8 - 1))
def test_hash_check(bit: int) -> None:
    """FIPS 203 section 7.3: a key that does not hash to its own record is refused."""
    damaged = bytearray(records()[0].sk)
    damaged[DK_EK.start + bit // 8] ^= 1 << bit % 8
    with pytest.raises(ValueError, match="not a valid"):
        _core.mlkem768_decapsulate(bytes(damaged), records()[0].ct)
