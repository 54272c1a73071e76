"""Programs that try to leave the sandbox: each prints ``contained`` where it holds."""

from __future__ import annotations

SECRET = "flowrl-self-test"
"""What the marker file holds that no program may read."""
PROBES = {
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
FILTERED = ("other sockets", "memory that is not counted")
"""Probes that hold by the filter of system calls alone."""
