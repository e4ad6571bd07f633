"""Files from peers, for ``receive`` and ``node --receive``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyreach.errors import AnyreachError
from anyreach.transfer import Receiver, TransferError, TransferErrorCode
from anyreach.transfer.names import printable

from .progress import ProgressBar

if TYPE_CHECKING:
    from anyreach import Connection, Stream
    from anyreach.peer import PeerId
    from anyreach.transfer import Inbox
    from anyreach.transfer.messages import Offer

    from .output import Output

__all__ = ["Mailroom"]


class Mailroom:
    """Receives files and tells about them.

    Args:
        inbox: where they go.
        senders: who may send; everybody if empty.
        progress: show a bar; with several transfers at once, for the one that moved last.
    """

    def __init__(
        self, inbox: Inbox, output: Output, senders: frozenset[PeerId], *, progress: bool
    ) -> None:
        self._receiver = Receiver(inbox)
        self._output = output
        self._senders = senders
        self._bar = ProgressBar(forced=progress)
        self._shown: Offer | None = None
        output.before_note = self._bar.clear

    def check(self, peer: PeerId) -> None:
        """Raises :class:`TransferError` if this peer may not send."""
        if self._senders and peer not in self._senders:
            raise TransferError(
                TransferErrorCode.REFUSED, "this peer takes no files from your PeerId"
            )

    async def take(self, stream: Stream, connection: Connection) -> None:
        """Receives the file of a stream.

        Raises:
            ConnectionError, EOFError: the transfer broke; it can be resumed.
        """
        peer = connection.peer_id
        current: Offer | None = None
        present = 0

        def progress(offer: Offer, done: int) -> None:
            nonlocal current, present
            current, present = offer, done
            if self._shown is not offer:
                self._shown = offer
                self._bar.start(offer.name, done, offer.size)
            self._bar.update(done)

        try:
            received = await self._receiver.receive(stream, peer, progress)
        except TransferError as error:
            self._tell_failure(peer, current, present, str(error), str(error.code))
            return
        except (AnyreachError, OSError, EOFError) as error:
            self._tell_failure(peer, current, present, str(error), "connection")
            raise
        else:
            if self._shown is current:
                self._bar.finish()
        finally:
            if self._shown is current:
                self._bar.clear()
        carried = received.size - received.resumed_at
        path = connection.path
        self._output.event(
            {
                "event": "received",
                "peer_id": str(peer),
                "name": received.name,
                "file": str(self._receiver.inbox.directory / received.name),
                "bytes": received.size,
                "sha256": received.sha256,
                "resumed_at": received.resumed_at,
                "existing": received.existing,
                "mb_per_s": carried / 1e6 / max(received.seconds, 1e-6),
                "method": path.method if path else None,
                "relay": path.relay if path else None,
            }
        )

    def _tell_failure(
        self, peer: PeerId, offer: Offer | None, done: int, reason: str, code: str
    ) -> None:
        self._output.event(
            {
                "event": "interrupted",
                "peer_id": str(peer),
                "name": None if offer is None else printable(offer.name, 255),
                "bytes": done,
                "reason": reason,
                "code": code,
            }
        )
