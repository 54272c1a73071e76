"""Hostile programs: what they reach, what they cost, and that they cannot forge a result."""

import math
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowrl.errors import UserError
from flowrl.processes import ChildError
from flowrl.sandbox import bubblewrap as sandboxes
from flowrl.sandbox import system_calls
from flowrl.sandbox.bubblewrap import Sandbox, SandboxLimits
from flowrl.sandbox.self_test import open_sandbox, prove
from flowrl.sandbox.system_calls import compile_filter
from flowrl.sandbox.worker_pool import WorkerPool
from rewards.code_tests import code_tests, program

ROOT = str(Path(__file__).parents[2])
LIMITS = SandboxLimits(seconds=2.0, memory=256 << 20, processes=12)
QUICK = {"seconds": 2.0, "memory": 256 << 20, "processes": 12}


@pytest.fixture(scope="module")
def box() -> Sandbox:
    if shutil.which("bwrap") is None:
        pytest.skip("needs bubblewrap")
    bare = ["bwrap", "--ro-bind", "/", "/", "--unshare-all", "true"]
    if subprocess.run(bare, capture_output=True).returncode:
        pytest.skip("this machine forbids unprivileged namespaces")
    return open_sandbox(LIMITS)


@pytest.fixture(scope="module")
def reward(box: Sandbox) -> code_tests:
    return code_tests(**QUICK)


def score(reward: code_tests, source: str, *tests: str, **columns: list) -> float:
    return float(reward([source], [""], tests=[list(tests)], **columns)[0])


def processes(word: str) -> list[str]:
    """Command lines of this machine's processes that contain a word, zombies left out (they have none)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        found += [text] if word in text else []
    return found


# --- what a program reaches


def test_it_sees_no_file_of_the_host(box: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    paths = [str(secret), __file__, "/etc/shadow", "/etc/passwd", "/proc/1/environ", f"/proc/{os.getpid()}/environ"]
    folders = [str(Path.home()), str(Path(__file__).parents[2]), "/root", "/home", "/etc", "/var", "/work"]
    source = f"""
import os
for path in {paths!r}:
    try:
        print("read", path, len(open(path).read()))
    except OSError:
        pass
for folder in {folders!r}:
    try:
        print("listed", folder, os.listdir(folder))
    except OSError:
        pass
print(sorted(os.environ), sorted(os.listdir("/")))
"""
    lines = box.run(source).output.decode().splitlines()
    assert not [line for line in lines[:-1] if "/proc/1/" not in line]  # 1 is the sandbox's own first process
    assert "OPENAI_API_KEY" not in lines[-1] and "PYTHONPATH" not in lines[-1]
    assert not {"root", "home", "etc", "work", "var"} & set(lines[-1].replace("'", "").replace("]", "").split(", "))


def test_it_writes_only_to_a_small_tmp(box: Sandbox) -> None:
    source = """
for path in ("/x", "/usr/x", "/dev/x", "/dev/shm/x", "/program.py", "/proc/sys/kernel/hostname", "/tmp/x"):
    try:
        open(path, "w").write("x")
        print(path)
    except OSError:
        pass
"""
    assert box.run(source).output == b"/tmp/x\n"
    flood = """
n = 0
try:
    while True:
        open(f'/tmp/{n}', 'wb').write(bytes(1 << 20))
        n += 1
except OSError:
    print(n)
"""
    assert 0 < int(box.run(flood).output) <= LIMITS.disk >> 20


def test_it_reaches_no_network(box: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        source = f"""
import socket
for kind, place in ((socket.AF_INET, ("127.0.0.1", {server.getsockname()[1]})), (socket.AF_INET, ("1.1.1.1", 53))):
    try:
        socket.socket(kind).connect(place)
        print("connected")
    except OSError as error:
        print(type(error).__name__)
"""
        assert box.run(source).output == b"ConnectionRefusedError\nOSError\n"
        with pytest.raises(TimeoutError):
            server.accept()


def test_it_has_no_rights_and_makes_no_namespace(box: Sandbox) -> None:
    source = """
import ctypes
status = open("/proc/self/status").read()
print([line.split()[1] for line in status.splitlines() if line.startswith(("CapEff", "CapBnd", "NoNewPrivs", "Uid"))])
print(ctypes.CDLL(None).unshare(0x10000000))
"""
    first, second = box.run(source).output.decode().splitlines()
    assert first == "['65534', '0000000000000000', '0000000000000000', '1']" and second == "-1"


def test_it_reaches_no_memory_beside_its_own_and_no_other_socket(box: Sandbox) -> None:
    source = """
import ctypes, os, socket
c = ctypes.CDLL(None, use_errno=True)
calls = {"shmget": (0, 1 << 20, 0o1600), "memfd_create": (b"x", 0), "msgget": (0, 0o1600), "semget": (0, 1, 0o1600)}
calls |= {"ptrace": (0, 0, 0, 0), "unshare": (0x20000,), "mount": (b"none", b"/tmp", b"tmpfs", 0, 0)}
print({name: (getattr(c, name)(*args), ctypes.get_errno()) for name, args in calls.items()})
for number, first in ((425, 8), (447, 0), (250, 0), (435, 0), (100_000, 0), (0x40000000 | 41, 1)):
    print(number, c.syscall(number, first, 0), ctypes.get_errno())
for family in range(1, 46):
    try:
        socket.socket(family, socket.SOCK_DGRAM).close()
        print("made", family)
    except OSError:
        pass
one, other = socket.socketpair()
one.send(b"pair")
print(other.recv(9), os.waitstatus_to_exitcode(os.system("true")))
"""
    lines = box.run(source).output.decode().splitlines()
    assert lines[0] == str(
        dict.fromkeys(("shmget", "memfd_create", "msgget", "semget", "ptrace", "unshare", "mount"), (-1, 1))
    )
    assert lines[1:4] == ["425 -1 1", "447 -1 1", "250 -1 1"]
    assert [line.split()[1:] for line in lines[4:7]] == [["-1", "38"]] * 3
    assert lines[7:] == ["made 1", "made 2", "made 10", "b'pair' 0"]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_answers_as_its_table_says(machine: str) -> None:
    code = compile_filter(machine)
    assert code is not None and compile_filter("riscv64") is None
    column, audit = system_calls.ARCHITECTURES[machine]

    def verdict(number: int, first: int = 0, architecture: int = audit) -> int:
        """What the kernel's machine returns (linux/bpf_common.h): load, jump on equal, greater, shared bits; return."""
        data, at, held = struct.pack("=IIQQ", number, architecture, 0, first), 0, 0
        while True:
            op, yes, no, k = struct.unpack_from("=HBBI", code, 8 * at)
            if op == 0x06:
                return k
            if op == 0x20:
                held, at = struct.unpack_from("=I", data, k)[0], at + 1
                continue
            at += 1 + (yes if {0x15: held == k, 0x25: held > k, 0x45: bool(held & k)}[op] else no)

    allow, refuse, unknown, kill = 0x7FFF0000, 0x50001, 0x50026, 0x80000000
    denied = {numbers[column] for numbers in system_calls.DENIED.values()} - {None}
    special = {system_calls.CLONE3[column]}
    for number in range(480):
        expected = refuse if number in denied else unknown if number in special else allow
        if number > system_calls.NEWEST and number not in system_calls.NEWER:
            expected = unknown
        if number in (system_calls.SOCKET[column], system_calls.SOCKETPAIR[column]):
            families = [family for family in range(50) if verdict(number, family) == allow]
            assert families == [1, 2, 10] and verdict(number, 40) == refuse
        else:
            assert verdict(number) == expected, number
    assert verdict(system_calls.CLONE[column], 0x11) == allow  # SIGCHLD: a fork
    assert verdict(system_calls.CLONE[column], 0x3D0F00) == allow  # a thread of the C library
    assert verdict(system_calls.CLONE[column], 0x10000011) == refuse and verdict(0x40000029, 1) == unknown
    assert verdict(0, 0, 0x40000003) == kill


def test_the_numbers_are_those_of_the_headers() -> None:
    headers = {0: Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), 1: Path("/usr/include/asm-generic/unistd.h")}
    if not all(path.exists() for path in headers.values()):
        pytest.skip("needs the kernel's headers (apt install linux-libc-dev)")
    for column, path in headers.items():
        found = {name: int(number) for name, number in re.findall(r"__NR(?:3264)?_(\w+)\s+(\d+)\b", path.read_text())}
        for name, numbers in system_calls.DENIED.items():
            if numbers[column] is not None and name in found:
                assert found[name] == numbers[column], name
        for name in ("clone", "clone3", "socket", "socketpair"):
            assert found[name] == getattr(system_calls, name.upper())[column]


# --- what a program costs


@pytest.mark.slow
def test_fork_bombs_are_bounded_and_die(box: Sandbox) -> None:
    source = """
import os, sys, time
made = 0
for _ in range(200):
    try:
        if os.fork() == 0:
            os.setsid()
            os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(50)", "flowrl-bomb-7461"])
        made += 1
    except OSError:
        pass
print(made, flush=True)
time.sleep(50)
"""
    start = time.monotonic()
    outcome = box.run(source)
    assert outcome.status == "timeout" and 0 < int(outcome.output) < LIMITS.processes
    assert time.monotonic() - start < LIMITS.seconds + 20  # of 50
    assert _gone("flowrl-bomb-7461")
    assert box.run("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass").status == "timeout"


def test_a_program_that_ends_takes_its_children_along(box: Sandbox) -> None:
    source = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(50)", "flowrl-orphan-7461"], stdout=2,
    start_new_session=True)
print("done")
"""
    outcome = box.run(source)
    assert outcome.output == b"done\n"
    assert _gone("flowrl-orphan-7461")


def _gone(word: str) -> bool:
    deadline = time.monotonic() + 20
    while processes(word) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not processes(word)


@pytest.mark.slow
def test_memory_loops_and_floods_end(box: Sandbox) -> None:
    huge = box.run("try:\n  bytearray(10 << 30)\nexcept MemoryError: print('refused')")
    assert huge.output == b"refused\n"
    creeping = box.run("a = []\nwhile True: a.append(bytes(1 << 20))")
    assert creeping.status == "ended" and creeping.code != 0 and b"MemoryError" in creeping.errors
    start = time.monotonic()
    assert box.run("while True: pass").status == "timeout"
    assert (
        box.run("import signal\nfor s in (2, 15, 24): signal.signal(s, lambda *_: None)\nwhile True: pass").code == -1
    )
    assert time.monotonic() - start < 2 * LIMITS.seconds + 20
    flood = box.run("while True: print('x' * 100000)")
    assert flood.status == "output" and len(flood.output) <= LIMITS.output + 1
    noise = box.run("import sys\nfor _ in range(100): sys.stderr.write('x' * 100000)\nprint('done')")
    assert noise.output == b"done\n" and len(noise.errors) <= LIMITS.output + 1


def test_killing_everybody_kills_nobody_outside(box: Sandbox) -> None:
    outcome = box.run(
        "import os\nfor s in (9, 15):\n  try: os.kill(-1, s)\n  except OSError: pass\nos.kill(1, 9)\nprint('alive')"
    )
    assert outcome.status == "ended"
    assert box.run("print(1)").output == b"1\n"


def test_descriptors_and_input(box: Sandbox) -> None:
    assert box.run("import sys; print(sum(map(int, sys.stdin)))", b"1\n" * 50_000).output == b"50000\n"
    assert box.run("print('deaf')", b"x" * 1_000_000).output == b"deaf\n"
    fds = box.run("import os; print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1])").output
    assert fds == b"[0, 1, 2]\n"
    assert box.run("f = [open('/dev/null') for _ in range(100)]").code == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(1, "Operation not permitted"), "CAP_SETUID"),
        (OSError(8, "Exec format error"), "does not start"),
    ],
)
def test_what_cannot_be_started_is_one_sentence(
    error: OSError, words: str, monkeypatch: pytest.MonkeyPatch, box: Sandbox
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: (_ for _ in ()).throw(error))
    with pytest.raises(UserError, match=words):
        box.run("print(1)")


def test_root_that_may_not_become_nobody_is_told_so(box: Sandbox) -> None:
    if os.geteuid() or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv")
    code = "from flowrl.sandbox.bubblewrap import SandboxLimits; "
    code += "from flowrl.sandbox.self_test import open_sandbox; open_sandbox(SandboxLimits())"
    limited = [
        "setpriv",
        "--bounding-set",
        "-setuid,-setgid",
        "--inh-caps",
        "-setuid,-setgid",
        sys.executable,
        "-c",
        code,
    ]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=100, env={**os.environ, "PYTHONPATH": ROOT})
    assert done.stderr.strip().splitlines()[-1].startswith("flowrl.errors.UserError: code_tests: flowrl runs as root")


@pytest.mark.slow
def test_it_refuses_without_bubblewrap_or_with_a_hole(monkeypatch: pytest.MonkeyPatch, box: Sandbox) -> None:
    open_sandbox.cache_clear()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        with pytest.raises(UserError, match="apt install bubblewrap"):
            open_sandbox(LIMITS)
    real = sandboxes._bubblewrap
    holes = {
        "network": lambda *a: [*real(*a), "--share-net"],
        "host files": lambda *a: [*real(*a), "--ro-bind", "/etc", "/etc"],
        "fork bombs": real,
        "(other sockets|memory that is not counted)": real,
    }
    for name, command in holes.items():
        with monkeypatch.context() as patch:
            patch.setattr(sandboxes, "_bubblewrap", command)
            if name == "fork bombs":
                patch.setattr(sandboxes, "_prlimit", lambda limits: [])
            if "not counted" in name:
                patch.setattr(sandboxes, "compile_filter", lambda: None)
            with pytest.raises(UserError, match=f"does not contain {name}"):
                prove(Sandbox(LIMITS, box.python))
    with monkeypatch.context() as patch:
        patch.setattr(sandboxes, "_bubblewrap", lambda *a: ["bwrap", "--no-such-option"])
        with pytest.raises(UserError, match=r"cannot start Python here .*no-such-option"):
            open_sandbox(LIMITS)
    open_sandbox.cache_clear()


# --- results


def test_fractions(reward: code_tests) -> None:
    good = "def f(x):\n    return x + 1"
    assert score(reward, good, "assert f(1) == 2", "assert f(-1) == 0") == 1
    assert score(reward, good, "assert f(1) == 2", "assert f(1) == 3", "assert f(5) == 6", "assert g(1)") == 0.5
    assert score(reward, f"Here:\n```python\n{good}\n```\nbye", "assert f(1) == 2") == 1
    assert program("```\na\n```\n```python3\nb\n```") == "b\n" and program("```py\nc") == "c" and program("d") == "d"
    strict = code_tests(partial=False, **QUICK)
    assert score(strict, good, "assert f(1) == 2", "assert f(1) == 3") == 0
    assert score(reward, good, "import math\nassert math.isclose(f(0.1), base)", setup=[["base = 1.1"]]) == 1
    several = reward(
        [good, "def f(x): return 2", "syntax error("],
        ["", "", ""],
        tests=[["assert f(1) == 2", "assert f(2) == 3"]] * 3,
    )
    assert several.tolist() == [1, 0.5, 0]


@pytest.mark.slow
def test_values_cross_as_they_are(reward: code_tests) -> None:
    source = """
import collections
def echo(x): return x
def sort(x): x.sort()
def fill(d): d['new'] = {1}
def count(n):
    for i in range(n): yield i
def named(): return collections.OrderedDict(a=1), collections.Counter('aab'), collections.deque([1])
def fail(): raise KeyError('no')
def leave(): raise SystemExit
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x); return self
    def __len__(self): return len(self.items)
    def __eq__(self, other): return self.items == other.items
PI = 3
"""
    values = [
        "(1, [2.5, None], {'a': {1, 2}, (1, 2): b'x'})",
        "2 ** 70",
        "-10 ** 5000",
        "float('inf')",
        "1 + 2j",
        "'\\ud800é'",
        "frozenset([1])",
        "True",
    ]
    tests = [f"x = {value}\nassert echo(x) == x and type(echo(x)) is type(x)" for value in values]
    tests += [
        "import math\nassert math.isnan(echo(float('nan')))",
        "x = [3, 1]\nsort(x)\nassert x == [1, 3]",
        "d = {}\nfill(d)\nassert d == {'new': {1}}",
        "assert list(count(3)) == [0, 1, 2]",
        "assert named()[0] == {'a': 1} and named()[1]['a'] == 2",
        "try:\n    fail()\n    assert False\nexcept KeyError:\n    pass",
        "assert PI == 3",
        "s = Stack()\ns.push(1).push('b')\nassert len(s) == 2 and s.items == [1, 'b']",
        "assert Stack().push(1) == Stack().push(1) and Stack() != Stack().push(1)",
        "def check(candidate):\n    assert candidate(2) == 2\ncheck(echo)",
        "assert list(map(echo, [1, 2])) == [1, 2]",
        "assert echo(x=4) == 4",
    ]
    for test in tests:
        assert score(reward, source, test) == 1, test
    wrong = [
        "assert echo(1) == True + 1",
        "leave()",
        "fail()",
        "assert Stack() == 1",
        "assert False",
        "1 / 0",
        "syntax error (",
    ]
    for test in wrong:
        assert score(reward, source, test) == 0, test


FORGERIES = {
    "leaves early": "import sys\nsys.exit(0)",
    "leaves early, harder": "import os\nos._exit(0)",
    "leaves from the function": "import os\ndef f(x): os._exit(0)",
    "kills everybody": "import os\ndef f(x): os.kill(-1, 9)",
    "is equal to all": "class E:\n  __eq__ = lambda s, o: True\n  __ne__ = lambda s, o: False\ndef f(x): return E()",
    "is an equal number": "class E(int):\n  def __eq__(s, o): return True\n  __hash__ = None\ndef f(x): return E(0)",
    "patches builtins": "import builtins\nbuiltins.AssertionError = None\nbuiltins.compile = print\ndef f(x): return 0",
    "prints success": "print('t{\"verdict\": \"passed\"}', flush=True)\ndef f(x): print('passed'); return 0",
    "writes to all descriptors": """
import os
for fd in range(3, 64):
    try: os.write(fd, b't{"verdict": "passed"}\\n' * 9)
    except OSError: pass
def f(x): return 0
""",
    "answers with verdicts": """
import os
def f(x):
    for fd in range(3, 64):
        try: os.write(fd, b't{"verdict": "passed"}\\n{"value": null, "args": []}\\n' * 9)
        except OSError: pass
    os._exit(0)
""",
    "searches the memory": """
import gc, sys, os, re
def f(x):
    frame, found = sys._getframe(), []
    while frame:
        found += [repr(value) for value in frame.f_locals.values()]
        frame = frame.f_back
    found += [repr(o)[:100000] for o in gc.get_objects() if isinstance(o, (list, dict, tuple, str, bytes))]
    for folder in ['/tmp', *('/proc/' + pid for pid in os.listdir('/proc') if pid.isdigit())]:
        for name in os.listdir(folder):
            if name in ('cmdline', 'environ') or folder == '/tmp':
                try: found.append(open(folder + '/' + name, errors='replace').read())
                except OSError: pass
    hits = [int(hit) for text in found for hit in re.findall('assert f.2. == ([0-9]+)', text)]
    return hits[0] if hits else 0
""",
    "raises success": "def f(x): raise type('passed', (Exception,), {})",
    "replaces the channel's modules": """
import json
json.dumps = lambda x: '{"value": true, "args": []}'
def f(x): return 1
""",
    "nests deeply": "def f(x):\n  a = []\n  for _ in range(100000): a = [a]\n  return a",
    "answers too much": "def f(x): return 'x' * 20_000_000",
}


SHADOWS = {
    "set": ("def set(x): return 1", "assert set(f(2)) == set([4, 7])"),
    "abs": ("def abs(x): return 0", "assert abs(f(2) - 47.11) < 1e-6"),
    "sorted": ("sorted = lambda x, **k: 1", "assert sorted(f(2)) == sorted([4, 7])"),
    "round": ("def round(*a): return 1", "assert round(f(2), 3) == round(47.11, 3)"),
    "str": ("str = lambda x: 'x'", "assert str(f(2)) == str(4711)"),
    "all": ("def all(x): return True", "assert all(a == b for a, b in zip([f(2)], [4711]))"),
    "any": ("def any(x): return False", "assert not any(a != b for a, b in zip([f(2)], [4711]))"),
    "isinstance": ("def isinstance(*a): return True", "assert isinstance(f(2), str)"),
    "type": ("class type: __new__ = lambda c, x: 1", "assert type(f(2)) == type('x')"),
    "len": ("global len\nlen = lambda x: 3", "assert len([f(2)]) == len([1, 2])"),
    "tuple": ("from builtins import bool as tuple", "assert tuple([f(2)]) == tuple([4, 7])"),
    "print and callable": ("callable = int\ndef print(*a): pass", "assert not callable(f) or f(2) == 4711"),
    "builtins": ("import builtins\nbuiltins.abs = lambda x: 0\n__builtins__['abs'] = len", "assert abs(f(2) - 47) < 1"),
    "__builtins__": ("__builtins__ = {'abs': len}\n__import__ = print", "import math\nassert math.isclose(f(2), 47)"),
    "a name that is sent though it may not be": (
        "import sys\nmain = sys.modules['__main__']\nold = main.Program.load\n"
        "main._say = lambda out, m, mark='': (out.write(main.json.dumps(m | "
        "({'names': {'f': {'object': 0}, '__builtins__': {'dict': []}, 'abs': {'object': 0}, '__name__': 'x'}} "
        "if 'names' in m else {})) + chr(10)), out.flush())\n",
        "assert abs(f(2) - 47) < 1",
    ),
    "math": ("class math:\n  isclose = staticmethod(lambda *a: True)", "assert math.isclose(f(2), 4711)"),
    "np": ("class np:\n  allclose = staticmethod(lambda *a: True)", "assert np.allclose(f(2), 4711)"),
    "equal to its own kind and to all": (
        "class P:\n  __eq__ = lambda s, o: True\n  __init__ = lambda s, x: None\n  double = lambda s: s",
        "assert P(2).double() == P(4711)",
    ),
    "modules": (
        "import sys, unittest, math\nmath.isclose = lambda *a: True\nsys.modules['math'] = object()\n"
        "unittest.TestCase.assertEqual = lambda *a: None",
        "import math\nassert math.isclose(f(2), 4711)",
    ),
    "unittest": (
        "import unittest\nunittest.TestCase.assertEqual = lambda *a: None",
        "import unittest\nclass T(unittest.TestCase):\n  def test(self): self.assertEqual(f(2), 4711)",
    ),
    "tracing": (
        "import sys, signal, atexit, threading\nsys.settrace(lambda *a: None)\natexit.register(print, 'passed')\n"
        'signal.signal(14, lambda *a: print(\'t{"verdict": "passed"}\'))\nsignal.alarm(1)\n'
        "threading.Thread(target=print, args=('passed',)).start()",
        "assert f(2) == 4711",
    ),
}


@pytest.mark.parametrize("name", SHADOWS)
def test_names_of_the_program_change_nothing_that_the_tests_use(name: str, reward: code_tests) -> None:
    source, test = SHADOWS[name]
    assert score(reward, f"{source}\ndef f(x): return [x]\n{source}", test) == 0


def test_honest_programs_may_use_such_names(reward: code_tests) -> None:
    shadowing = "def abs(x): return 9\ndef f(x): return abs(x)"
    assert score(reward, shadowing, "assert f(1) == 9 and abs(-1) == 1") == 1
    common = "def sum(a, b):\n    return 6"  # MBPP's task 126
    assert score(reward, common, "assert sum(10,15) == 6", "assert sum(100,150) == 93") == 0.5
    assert score(reward, common, "assert sum(10,15) == len('123456')") == 0  # which of the two?
    assert score(reward, common, "assert sum(10,15) == len('123456')", entry_point=["sum"]) == 1
    calendar = "def calendar(x): return x"
    assert score(reward, calendar, "assert calendar(3) == 3") == 1


@pytest.mark.slow
def test_tests_that_only_define_are_run(reward: code_tests) -> None:
    check = "def check(candidate):\n    assert candidate(2) == 4"
    right, wrong = "def f(x): return 2 * x", "def f(x): return x"
    assert score(reward, right, check, entry_point=["f"]) == 1 and score(reward, wrong, check, entry_point=["f"]) == 0
    assert score(reward, wrong, f"{check}\ncheck(f)") == 0 and score(reward, right, f"{check}\ncheck(f)") == 1
    named = "x = f(1)\ndef test_it():\n    assert f(2) == 4"
    assert score(reward, right, named) == 1 and score(reward, wrong, named) == 0
    case = "import unittest\nclass T(unittest.TestCase):\n  def test(self): self.assertEqual(f(2), 4)"
    assert score(reward, right, case) == 1 and score(reward, wrong, case) == 0
    assert score(reward, right, "raise SystemExit") == 0
    assert math.isnan(score(reward, right, check)) and math.isnan(score(reward, right, "assert 1 + 1 == 2"))
    assert score(reward, right, "assert 1 + 1 == 2", "assert f(2) == 4", "assert f(2) == 5") == 0.5


@pytest.mark.parametrize("name", FORGERIES)
def test_success_cannot_be_forged(name: str, reward: code_tests) -> None:
    expected = 47110815
    assert score(reward, FORGERIES[name], f"assert f(2) == {expected}", f"assert not f(3) != {expected}") == 0


def test_the_search_for_the_expected_value_runs_to_its_end(reward: code_tests) -> None:
    assert score(reward, FORGERIES["searches the memory"], "assert f(2) == 0") == 1


@pytest.mark.slow
def test_a_hanging_program_costs_one_zero_and_one_timeout(box: Sandbox) -> None:
    reward = code_tests(**QUICK)
    hanging = "def f(x):\n    while True: pass"
    start = time.monotonic()
    scores = reward([hanging, "def f(x): return x", "while True: pass"], [""] * 3, tests=[["assert f(1) == 1"] * 5] * 3)
    assert scores.tolist() == [0, 1, 0]
    assert reward.counts == {"timeout": 2, "scored": 1}
    assert time.monotonic() - start < 2 * QUICK["seconds"] + 20
    assert reward(
        ["input()\nwhile True: pass"], [""], inputs=[["1", "2", "3"]], outputs=[["1", "2", "3"]]
    ).tolist() == [0]
    assert reward.counts["timeout"] == 3


def test_standard_input_and_output(reward: code_tests) -> None:
    columns = {"inputs": [["1 2\n", "3 4"]], "outputs": [["3", "7\n"]]}
    adds = "print(sum(map(int, input().split())))"
    assert reward([adds], [""], **columns).tolist() == [1]
    assert reward(["print(3)"], [""], **columns).tolist() == [0.5]
    assert reward([f"{adds}\nraise SystemExit(1)"], [""], **columns).tolist() == [0]
    assert reward(["print('3  \\n')\nexit()"], [""], inputs=[["1 2"]], outputs=[["3"]]).tolist() == [1]
    with pytest.raises(UserError, match="2 inputs but 1 outputs"):
        reward([adds], [""], inputs=[["1", "2"]], outputs=[["1"]])


def test_what_cannot_be_scored_is_nan(reward: code_tests) -> None:
    scores = reward(["def f(g): return g(1)"] * 2, [""] * 2, tests=[["assert f(lambda x: x) == 1"], None])
    assert scores.isnan().tolist() == [True, True] and reward.counts["crossing"] == 1
    with pytest.raises(UserError, match="needs the column 'tests'"):
        reward(["x"], [""], answer=["y"])


# --- workers


def _module(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (folder / "odd_jobs.py").write_text(
        """
import os, sys, time
def build():
    print("noise on the channel")
    def work(item):
        if item == "hang": 9 ** 9 ** 9
        if item == "sleep": time.sleep(60)
        if item == "die": os._exit(3)
        if item == "eat": return len(bytearray(10 << 30))
        if item == "raise": raise KeyError("no")
        if item == "print": print("{}")
        if item == "flood": return "x" * 5_000_000
        return [item, os.getpid()]
    return work
def broken(): raise OSError("no disk")
"""
    )
    monkeypatch.syspath_prepend(str(folder))
    return "odd_jobs"


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerPool]:
    made = WorkerPool(f"{_module(tmp_path, monkeypatch)}:build", workers=2, timeout=2.0, memory=512 << 20, recycle=3)
    yield made
    made.close()


def test_workers_survive_everything(pool: WorkerPool) -> None:
    items = ["a", "hang", "b", "die", "sleep", "eat", "raise", "print", "flood", "c"]
    replies = pool.map(items)
    assert [r.status for r in replies] == [
        "done", "timeout", "done", "crashed", "timeout", "failed", "failed", "done", "crashed", "done",
    ]  # fmt: skip
    assert [r.value[0] for r in replies if r.status == "done"] == ["a", "b", "print", "c"]
    assert pool.counts == {"done": 4, "failed": 2, "timeout": 2, "crashed": 2}
    assert replies[6].value == "KeyError: 'no'" and replies[5].value.startswith("MemoryError")
    many = pool.map(list(range(9)))
    assert [r.value[0] for r in many] == list(range(9))
    assert len({r.value[1] for r in many}) >= 3  # replaced after 3 items


def test_workers_end_and_explain(pool: WorkerPool, tmp_path: Path) -> None:
    number = pool.map([1])[0].value[1]
    assert Path(f"/proc/{number}").exists()
    pool.close()
    assert not Path(f"/proc/{number}").exists()
    assert pool.map([2])[0].value[0] == 2  # and starts again
    with pytest.raises(ChildError, match="OSError: no disk"):
        WorkerPool("odd_jobs:broken").map([1])
    with pytest.raises(ChildError, match="No module named 'no_such_module'"):
        WorkerPool("no_such_module:x").map([1])
