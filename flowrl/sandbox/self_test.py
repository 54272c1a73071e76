"""A sandbox that has proven itself: programs that try to leave it run first, each saying ``contained`` if it fails."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from flowrl.errors import UserError
from flowrl.sandbox.bubblewrap import INTERPRETER_SECONDS, Sandbox, SandboxLimits
from flowrl.sandbox.system_calls import ARCHITECTURES

SECRET = "flowrl-self-test"
"""What the marker file holds that no program may read."""
ESCAPES = {
    "host files": """
import os
found = []
for path in ({marker!r}, "/etc/shadow", "/etc/passwd", "/root", "/home", {home!r}, {here!r}):
    try:
        found += [path] if os.path.isdir(path) and os.listdir(path) or open(path).read() else []
    except OSError:
        pass
for path in ("/x", "/usr/x", "/dev/x", "/dev/shm/x", "/program.py"):
    try:
        open(path, "w").write("x")
        found.append(path)
    except OSError:
        pass
print("reached", *found) if found else print("contained")
""",
    "network": """
import socket
try:
    socket.create_connection(("127.0.0.1", {port}), timeout=1)
    print("reached")
except OSError:
    names = [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line]
    print("contained" if names == ["lo"] else "reached an interface")
""",
    "other sockets": """
import socket
made = []
for family in (16, 17, 38, 40, 44):
    try:
        socket.socket(family, socket.SOCK_DGRAM)
        made.append(family)
    except OSError:
        pass
print("made", *made) if made else print("contained")
""",
    "memory that is not counted": """
import ctypes, os
c = ctypes.CDLL(None)
made = [name for name, got in (("shmget", c.shmget(0, 4096, 0o1600)), ("memfd", c.memfd_create(b"x", 0)),
    ("msgget", c.msgget(0, 0o1600)), ("semget", c.semget(0, 1, 0o1600))) if got >= 0]
print("made", *made) if made else print("contained")
""",
    "fork bombs": """
import os, time
for count in range({processes} + 5):
    try:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
    except OSError:
        print("contained", flush=True)
        break
else:
    print("forked", count)
""",
    "memory hogs": """
try:
    bytearray({memory} * 2)
    print("got it")
except MemoryError:
    print("contained")
""",
    "large files": """
import os
try:
    for index in range(4):
        with open(f"/tmp/{{index}}", "wb") as file:
            file.write(bytes({disk} // 2))
    print("wrote it")
except OSError:
    print("contained")
""",
}
STOPPED_BY_FILTER = ("other sockets", "memory that is not counted")
"""Those that are stopped by the filter of system calls alone."""


@lru_cache(maxsize=8)
def open_sandbox(limits: SandboxLimits) -> Sandbox:
    """A sandbox that has proven itself here; the self-test takes about a second and runs once per process.

    The interpreter is this one where the sandbox can see it, else the system's. Raises `UserError` where bubblewrap is
    missing, cannot make its namespaces, or does not contain one of the escapes.
    """
    if not sys.platform.startswith("linux") or shutil.which("bwrap") is None or shutil.which("prlimit") is None:
        raise UserError(
            "code_tests runs programs in bubblewrap only, and 'bwrap' (with 'prlimit') was not found: "
            "apt install bubblewrap util-linux"
        )
    own = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    complaint = ""
    for python in dict.fromkeys([own, Path("/usr/bin/python3")]):
        if python.exists():
            sandbox = Sandbox(limits, python)
            first = sandbox.run("print('works')", seconds=INTERPRETER_SECONDS)
            if first.output == b"works\n":
                prove(sandbox)
                sandbox.start_harness("program").close()
                return sandbox
            lines = first.errors.decode(errors="replace").strip().splitlines()
            complaint = lines[-1] if lines else f"exit code {first.code}"
    raise UserError(
        f"code_tests: bubblewrap cannot start Python here ({complaint or 'no interpreter'}); it needs "
        "version 0.8 or later (apt install bubblewrap), /usr/bin/python3 and unprivileged user namespaces (sysctl "
        "kernel.unprivileged_userns_clone=1, on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0, in docker "
        "--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined)"
    )


def prove(sandbox: Sandbox) -> None:
    """Raise `UserError` unless every escape fails: the same ones wherever flowrl runs."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        marker = Path(folder, "marker")
        marker.write_text(SECRET)
        for path in (marker, Path(folder)):
            path.chmod(0o755)  # so that it is the sandbox that hides it
        facts = {"marker": str(marker), "home": str(Path.home()), "here": os.getcwd(), "port": server.getsockname()[1]}
        limits = sandbox.limits
        facts |= {"processes": limits.processes, "memory": limits.memory, "disk": limits.disk}
        checks: dict[str, Callable[[], bytes]] = {
            name: lambda text=text: sandbox.run(text.format(**facts), seconds=INTERPRETER_SECONDS).output
            for name, text in ESCAPES.items()
            if platform.machine() in ARCHITECTURES or name not in STOPPED_BY_FILTER
        }
        quick = Sandbox(replace(limits, seconds=1.0), sandbox.python)
        checks["endless loops"] = lambda: (
            b"contained" if quick.run("while True: pass").status == "timeout" else b"ended"
        )
        with ThreadPoolExecutor(2) as threads:
            results = dict(zip(checks, threads.map(lambda check: check(), checks.values()), strict=True))
    for name, output in results.items():
        if output.strip() != b"contained":
            raise UserError(
                f"code_tests refuses to run: the sandbox does not contain {name} on this machine "
                f"({json.dumps(output.decode(errors='replace').strip()[:200])}); "
                "update bubblewrap (apt install bubblewrap) or score on a machine with user namespaces"
            )
