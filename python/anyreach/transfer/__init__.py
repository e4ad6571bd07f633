"""Sending files over a stream: resumable, verified by SHA-256, safe against hostile names.

Pure: :mod:`.names`, :mod:`.frames`, :mod:`.messages`, :mod:`.pacing`. Files: :mod:`.store`.
Both together on a stream: :mod:`.sender`, :mod:`.receiver`. The protocol is described in
``docs/protocol.md``.
"""

from .errors import FrameError, TransferError, TransferErrorCode
from .pacing import Pacer
from .receiver import Progress, Received, Receiver
from .sender import Outgoing, Sent, send_file
from .store import Inbox

__all__ = [
    "FrameError",
    "Inbox",
    "Outgoing",
    "Pacer",
    "Progress",
    "Received",
    "Receiver",
    "Sent",
    "TransferError",
    "TransferErrorCode",
    "send_file",
]
