"""The comparison: anyreach from Python, quinn and noq in Rust, aioquic and qh3, in one run.

    python benches/run.py --output docs/benchmarks.md     # about six minutes
    python benches/run.py --quick                         # about one

Needs the Rust programs (`cargo build --release -p anyreach-interop-peers`) and a release build of
the package; a debug build is measured too, and the report says so.
"""

import argparse
import datetime
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import environment
import report
import startup
from contenders import aioquic_peer, anyreach_py, noq, qh3_peer, quinn
from contenders.protocol import Contender, Setting
from measure import ContenderError, running
from workloads import FULL, QUICK, Scale, measure, weigh

ROOT = Path(__file__).parents[1]

CONTENDERS = {
    "anyreach": anyreach_py.contender,
    "quinn": quinn.contender,
    "quinn-ml-dsa": quinn.with_our_identities,
    "noq": noq.contender,
    "aioquic": aioquic_peer.contender,
    "qh3": qh3_peer.contender,
}

# A contender may lose a run to an accident of its own; more is a result.
RETRIES = 1


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        setting = _setting(options.programs, Path(folder))
        contenders = [CONTENDERS[name](setting) for name in options.contenders]
        scale = QUICK if options.quick else FULL
        load = environment.load()
        begun = time.monotonic()
        results, failures = compare(contenders, options.runs, scale)
        took = time.monotonic() - begun
        conditions = [
            (
                f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {options.runs} runs, "
                f"{took / 60:.1f} minutes{', shortened measurements' if options.quick else ''}"
            ),
            f"Load averages before: {load}; after: {environment.load()}",
            *(f"Failed: {failure}" for failure in failures),
        ]
        page = report.render(
            results,
            contenders,
            startup.measure(),
            environment.describe(setting.profile),
            conditions,
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    if options.output:
        options.output.write_text(page)
    print(page)
    return 1 if failures else 0


def compare(
    contenders: Sequence[Contender], runs: int, scale: Scale
) -> tuple[dict[str, dict[str, list[float]]], list[str]]:
    """The figures of all runs, and what failed for good."""
    results: dict[str, dict[str, list[float]]] = {}
    failures: list[str] = []
    for run in range(runs):
        for contender in _rotated(contenders, run):
            print(f"run {run + 1} of {runs}: {contender.name}", file=sys.stderr, flush=True)
            for attempt in range(RETRIES + 1):
                try:
                    values = _once(contender, scale, weighed=run == 0)
                except (ContenderError, ValueError, BrokenPipeError) as error:
                    print(f"  {error}", file=sys.stderr, flush=True)
                    if attempt == RETRIES:
                        failures.append(f"{contender.name} in run {run + 1}: {error}")
                    continue
                collected = results.setdefault(contender.name, defaultdict(list))
                for key, value in values:
                    collected[key].append(value)
                break
    return results, failures


def _once(contender: Contender, scale: Scale, *, weighed: bool) -> list[tuple[str, float]]:
    with running(contender) as pair:
        values = list(measure(pair, contender, scale))
    if weighed and not contender.handshakes_only:
        with running(contender) as pair:
            values += weigh(pair, scale)
    return values


def _rotated(contenders: Sequence[Contender], run: int) -> Iterator[Contender]:
    """Another contender goes first in each run, so that a drift of the machine meets all."""
    shift = run % len(contenders)
    yield from contenders[shift:]
    yield from contenders[:shift]


def _setting(programs: Path | None, folder: Path) -> Setting:
    if programs is None:
        built = [ROOT / "target" / profile for profile in ("release", "debug")]
        programs = next((path for path in built if (path / "quinn-bench").exists()), None)
        if programs is None:
            raise SystemExit("build them first: cargo build --release -p anyreach-interop-peers")
    certificate, key = _certificate(folder)
    return Setting(programs.resolve(), certificate, key, programs.name)


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for ``localhost`` and its key, in PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    files[1].write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    return files


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, help="default 5, or 2 with --quick")
    parser.add_argument("--quick", action="store_true", help="short measurements, two runs")
    parser.add_argument("--output", type=Path, help="write the report here as well")
    parser.add_argument("--json", type=Path, help="write all values here")
    parser.add_argument("--programs", type=Path, help="folder of the Rust programs")
    parser.add_argument(
        "--contenders",
        type=lambda text: text.split(","),
        default=list(CONTENDERS),
        help=f"some of {','.join(CONTENDERS)}",
    )
    options = parser.parse_args()
    options.runs = options.runs or (2 if options.quick else 5)
    unknown = set(options.contenders) - set(CONTENDERS)
    if unknown:
        parser.error(f"unknown contenders: {', '.join(sorted(unknown))}")
    return options


if __name__ == "__main__":
    sys.exit(main())
