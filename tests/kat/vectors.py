"""The known answers for ML-KEM-768 that ``cryptography_vectors`` ships."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache

import cryptography_vectors

_PATH = "asymmetric/MLKEM/kat_MLKEM_768.rsp"


@dataclass(frozen=True, slots=True)
class Record:
    """One record: the randomness that went in and everything FIPS 203 derives from it."""

    d: bytes  # keygen seed, first half
    z: bytes  # keygen seed, second half: the key of implicit rejection
    msg: bytes  # randomness of the encapsulation
    pk: bytes  # encapsulation key
    sk: bytes  # decapsulation key, expanded
    ct: bytes
    ss: bytes
    ct_n: bytes  # a ciphertext that does not belong to the key ...
    ss_n: bytes  # ... and the secret implicit rejection must give for it


@cache
def records() -> tuple[Record, ...]:
    """All records of the file, in its order."""
    wanted = {field.name for field in fields(Record)}
    return tuple(
        Record(**{name: bytes.fromhex(value) for name, value in entry.items() if name in wanted})
        for entry in _entries()
    )


def _entries() -> Iterator[dict[str, str]]:
    entry: dict[str, str] = {}
    with cryptography_vectors.open_vector_file(_PATH, "r") as lines:
        for line in lines:
            name, _, value = line.partition(" = ")
            if name == "count":
                if entry:
                    yield entry
                entry = {}
            elif value:
                entry[name] = value.strip()
    if entry:
        yield entry
