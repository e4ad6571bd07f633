"""Run a program for which ``socket(AF_INET6)`` fails with EAFNOSUPPORT.

That is what a kernel built without IPv6 (or booted with ``ipv6.disable=1``) answers. A seccomp
filter makes this kernel answer the same, for real: the system call returns the error, whoever
makes it. Usage: ``python no_af_inet6.py PROGRAM [ARGUMENT...]``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
import sys

_AUDIT_ARCH_AND_SOCKET_NR = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}

_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_RET_ALLOW = 0x7FFF0000
_RET_ERRNO = 0x00050000

# Classic BPF: load the 32-bit word at an offset of seccomp_data, jump if equal, return.
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_OFFSET_NR, _OFFSET_ARCH, _OFFSET_ARG0 = 0, 4, 16  # little-endian: low half of the argument


def supported() -> bool:
    """Whether this machine's architecture is known to the filter."""
    return platform.machine() in _AUDIT_ARCH_AND_SOCKET_NR


def refuse_af_inet6() -> None:
    """Install the filter for this process and all it will execute. Cannot be undone.

    Raises:
        OSError: the kernel has no seccomp filters.
        KeyError: unknown architecture, see :func:`supported`.
    """
    arch, socket_nr = _AUDIT_ARCH_AND_SOCKET_NR[platform.machine()]
    program = [
        (_LOAD, 0, 0, _OFFSET_ARCH),
        (_JUMP_EQUAL, 0, 5, arch),
        (_LOAD, 0, 0, _OFFSET_NR),
        (_JUMP_EQUAL, 0, 3, socket_nr),
        (_LOAD, 0, 0, _OFFSET_ARG0),
        (_JUMP_EQUAL, 0, 1, int(socket.AF_INET6)),
        (_RETURN, 0, 0, _RET_ERRNO | errno.EAFNOSUPPORT),
        (_RETURN, 0, 0, _RET_ALLOW),
    ]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    filters = ctypes.create_string_buffer(code)
    fprog = struct.pack("@HP", len(program), ctypes.addressof(filters))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_char_p(fprog), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP)")


if __name__ == "__main__":
    refuse_af_inet6()
    os.execvp(sys.argv[1], sys.argv[1:])
