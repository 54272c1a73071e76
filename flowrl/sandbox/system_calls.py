"""The system calls a sandboxed program may not make, as a seccomp filter in classic BPF.

Refused with ``EPERM``: memory that no limit counts (System V and POSIX messages, System V shared memory and semaphores,
``memfd``), sockets of other families than Unix and IPv4/6 (so no vsock, netlink, packet or crypto socket), namespaces,
mounts, keys, tracing and reading other processes, BPF, performance counters, ``io_uring`` (its calls pass no filter),
modules, clocks and names of the machine. ``ENOSYS``: ``clone3``, whose flags a filter cannot read (the C library falls
back to ``clone``), and every call newer than this list. A call of another architecture (32-bit code) kills the
process.

Numbers: Linux ``arch/x86/entry/syscalls/syscall_64.tbl`` and ``include/uapi/asm-generic/unistd.h`` (6.17). The format
is ``struct sock_filter`` of ``linux/filter.h`` over ``struct seccomp_data`` of ``linux/seccomp.h``.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Sequence

DENIED: dict[str, tuple[int | None, int | None]] = {
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "msgget": (68, 186),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "mq_open": (240, 180),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "chroot": (161, 51),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "clock_settime": (227, 112),
    "settimeofday": (164, 170),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
    "fanotify_init": (300, 262),
}
"""Numbers on x86_64 and on aarch64."""
NEWEST = 450
"""The last number known to do nothing that is refused here; `NEWER` are the harmless later ones."""
NEWER = (451, 452, 453, 454, 455, 456, 462)
"""``cachestat, fchmodat2, map_shadow_stack, futex_wake, futex_wait, futex_requeue, mseal``."""
FAMILIES = (1, 2, 10)
"""``AF_UNIX, AF_INET, AF_INET6``: the network namespace holds nothing but a loopback of its own."""
CLONE, CLONE3, SOCKET, SOCKETPAIR = (56, 220), (435, 435), (41, 198), (53, 199)
NAMESPACES = 0x7E02_0000
"""``CLONE_NEW*`` among the flags of ``clone``."""
ARCHITECTURES = {"x86_64": (0, 0xC000_003E), "aarch64": (1, 0xC000_00B7)}
"""Column of the tables, and the kernel's ``AUDIT_ARCH_*``."""

_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16  # offsets in seccomp_data; the low half of the first argument
_ALLOW, _KILL, _ERROR = 0x7FFF_0000, 0x8000_0000, 0x0005_0000


def compile_filter(machine: str | None = None) -> bytes | None:
    """The filter's instructions for ``bwrap --seccomp``; None on a machine whose numbers are not known here.

    machine: as ``platform.machine()``, which is the default.
    """
    if (found := ARCHITECTURES.get(machine or platform.machine())) is None:
        return None
    column, audit = found
    refuse, unknown = _ERROR | errno.EPERM, _ERROR | errno.ENOSYS
    code = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, audit), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    for numbers in DENIED.values():
        if (number := numbers[column]) is not None:
            code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, refuse)]
    code += [(_EQUAL, 0, 1, CLONE3[column]), (_RETURN, 0, 0, unknown)]
    families = [(_EQUAL, len(FAMILIES) - i, 0, family) for i, family in enumerate(FAMILIES)]
    code += _on(SOCKET[column], [*families, (_RETURN, 0, 0, refuse)])
    code += _on(SOCKETPAIR[column], [*families, (_RETURN, 0, 0, refuse)])
    code += _on(CLONE[column], [(_ANY_BIT, 0, 1, NAMESPACES), (_RETURN, 0, 0, refuse)])
    code += [(_EQUAL, len(NEWER) - i + 1, 0, number) for i, number in enumerate(NEWER)]  # to the last instruction
    code += [(_GREATER, 0, 1, NEWEST), (_RETURN, 0, 0, unknown), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _on(number: int, body: Sequence[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Look at the first argument of one call with ``body``, which falls through or returns, then allow it."""
    body = [(_LOAD, 0, 0, _ARGUMENT), *body, (_RETURN, 0, 0, _ALLOW)]
    return [(_EQUAL, 0, len(body), number), *body]
