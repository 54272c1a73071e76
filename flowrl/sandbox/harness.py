"""What runs inside the sandboxes of `code_tests`: a program in one, its tests in another, values between them.

The sandbox's interpreter gets this file and `flowrl.processes`; both import the standard library alone. The tests' side
never runs the program's code: functions of the program are stand-ins whose calls travel, by the trainer, to the
program's side and come back as data. So a program can pass a test only by answering with the right value. The tests
run with Python's own builtins and modules, whatever names the program defines (`requested_names`).

Frames of the channel: to the program ``{"source"}`` and then ``{"object", "how", "name", "args", "named"}``, answered
by ``{"names"}``, ``{"value", "args"}`` or ``{"raised", "message"}``; from the tests ``c`` and a call, or ``t`` and a
verdict.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import json
import math
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from flowrl.processes import open_channel, read_frame, write_frame

PLAIN_INTEGER = 1 << 53
LIMIT = 4 << 20
"""Characters of one message."""


MODULES = {"np", "numpy", "pd", "pandas", "torch", "sympy", "scipy"}
"""Modules beside the standard library's that tests name."""


class RemoteError(Exception):
    """The program raised something that is no built-in exception, or answered nonsense."""


class CrossingError(Exception):
    """A test hands the program something that is no data and no object of the program."""


def encode(value: Any, refer: Callable[[Any], Any]) -> Any:
    """A value as JSON; subclasses of containers become the container, other objects what ``refer`` makes of them."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value) if abs(value) < PLAIN_INTEGER else {"int": hex(value)}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, complex):
        return {"complex": [value.real.hex(), value.imag.hex()]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    if isinstance(value, dict):
        return {"dict": [[encode(key, refer), encode(item, refer)] for key, item in value.items()]}
    if isinstance(value, list):
        return [encode(item, refer) for item in value]
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [encode(item, refer) for item in value]}
    return refer(value)


def decode(value: Any, resolve: Callable[[int], Any]) -> Any:
    """The inverse; ``resolve`` finds objects by number. Raises `RemoteError` for anything else."""
    if isinstance(value, list):
        return [decode(item, resolve) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise RemoteError("not an encoded value")
    kind, content = next(iter(value.items()))
    if kind == "dict":
        return {decode(key, resolve): decode(item, resolve) for key, item in content}
    if kind in ("tuple", "set", "frozenset"):
        return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](decode(item, resolve) for item in content)
    simple = {
        "int": lambda: int(content, 16),
        "float": lambda: float(content),
        "complex": lambda: complex(*map(float.fromhex, content)),
        "bytes": lambda: bytes.fromhex(content),
        "object": lambda: resolve(int(content)),
    }
    if kind not in simple:
        raise RemoteError("not an encoded value")
    return simple[kind]()


class VacuousError(Exception):
    """A test passed without asking the program anything."""


class Program:
    """The program's side: its module and the objects it has handed out, by number."""

    def __init__(self) -> None:
        self.objects: list[Any] = []

    def load(self, source: str) -> dict[str, Any]:
        """Import the program as a module; the numbers of what it defines."""
        with open("/tmp/program.py", "w") as file:
            file.write(source)
        spec = importlib.util.spec_from_file_location("program", "/tmp/program.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["program"] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        mine = {name: value for name, value in vars(module).items() if not name.startswith("__")}
        return {"names": {name: encode(value, self.refer) for name, value in mine.items() if not _is_module(value)}}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do one thing with one object: call it, read an attribute, or one of the operations of `_OPERATIONS`."""
        target = self.objects[request["object"]]
        args = [decode(item, self.objects.__getitem__) for item in request["args"]]
        named = {name: decode(item, self.objects.__getitem__) for name, item in request["named"].items()}
        value = target(*args, **named) if request["how"] == "call" else _OPERATIONS[request["how"]](target, *args)
        # Arguments go back as well, for tests of functions that work in place.
        return {"value": encode(value, self.refer), "args": [encode(item, self.refer) for item in args]}

    def refer(self, value: Any) -> Any:
        """Keep an object that cannot cross; what crosses instead is its number in ``objects``."""
        self.objects.append(value)
        return {"object": len(self.objects) - 1}


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "attribute": getattr,
    "set": setattr,
    "length": len,
    "item": lambda target, key: target[key],
    "set_item": lambda target, key, value: target.__setitem__(key, value),
    "iterate": iter,
    "next": next,
    "equal": lambda target, other: target == other,
    "text": str,
}


class Proxy:
    """The tests' stand-in for an object of the program. It is never equal to plain data, whatever its ``__eq__``."""

    def __init__(self, number: int, ask: Callable[..., Any]) -> None:
        object.__setattr__(self, "_proxy", (number, ask))

    def __call__(self, *args: Any, **named: Any) -> Any:
        return _ask(self, "call", *args, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _ask(self, "attribute", name)

    def __setattr__(self, name: str, value: Any) -> None:
        _ask(self, "set", name, value)

    def __len__(self) -> int:
        return _ask(self, "length")

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, key: Any) -> Any:
        return _ask(self, "item", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        _ask(self, "set_item", key, value)

    def __iter__(self) -> Iterator[Any]:
        return _ask(self, "iterate")

    def __next__(self) -> Any:
        return _ask(self, "next")

    def __str__(self) -> str:
        return _ask(self, "text")

    def __eq__(self, other: object) -> bool:
        # One that is equal to a stranger, too, is equal to everything.
        if not isinstance(other, Proxy) or _ask(self, "equal", other) is not True:
            return False
        try:
            return _ask(self, "equal", os.urandom(8).hex()) is not True
        except Exception:  # an ``__eq__`` that knows only its own kind
            return True

    __hash__ = object.__hash__


def _ask(proxy: Proxy, how: str, *args: Any, **named: Any) -> Any:
    number, ask = object.__getattribute__(proxy, "_proxy")
    return ask(number, how, args, named)


def requested_names(setup: str, tests: list[str], entry_point: str) -> set[str]:
    """Names that the tests take from the program: free names of theirs that Python does not define itself.

    Never one that begins with ``__``. A builtin's name only where it is ``entry_point``, or where the tests name
    nothing else and call this builtin alone (MBPP's task 126 asks for a function ``sum``). A module's name, or ``np``,
    only where it is called: in ``math.isclose(f(1), 2)`` it means the module.
    """
    free, bound, called, dotted = set[str](), set[str](), set[str](), set[str]()
    for source in (setup, *tests):
        for node in ast.walk(_parsed(source)):
            if isinstance(node, ast.Name):
                (free if isinstance(node.ctx, ast.Load) else bound).add(node.id)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                bound.add(node.name)
            elif isinstance(node, ast.arg):
                bound.add(node.arg)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                called.add(node.func.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                dotted.add(node.value.id)
    modules = {name for name in dotted - called if name in MODULES or name in sys.stdlib_module_names}
    wanted = {name for name in free if not name.startswith("__") and not hasattr(builtins, name)} - modules
    mine = called & set(vars(builtins)) - bound
    if not wanted - bound and len(mine) == 1:
        wanted |= mine
    return wanted | {entry_point}


def _parsed(source: str) -> ast.AST:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # it fails when it is run
        return ast.Module([], [])


class Tests:
    """The tests' side: runs them and reports one verdict each."""

    def __init__(self, requests: BinaryIO, replies: BinaryIO) -> None:
        self.requests, self.replies = requests, replies
        self.asked = 0
        """Requests so far; a test without one proves nothing."""

    def run(self, setup: str, tests: list[str], names: dict[str, Any], entry_point: str) -> None:
        """Run every test in a namespace of its own; a frame ``t`` follows each."""
        wanted = requested_names(setup, tests, entry_point)
        for source in tests:
            self.asked = 0
            try:
                space: dict[str, Any] = {
                    name: decode(value, self.proxy) for name, value in names.items() if name in wanted
                }
                constants = {name for name, value in space.items() if not isinstance(value, Proxy)}
                space["__name__"] = "tests"
                space["__builtins__"] = builtins
                types.FunctionType(compile(setup, "setup", "exec"), space)()
                code = compile(source, "test", "exec")
                types.FunctionType(code, space)()
                _run_definitions(space, source, entry_point)
                if not self.asked and not constants & set(code.co_names):
                    raise VacuousError
                verdict = "passed"
            except VacuousError:
                verdict = "vacuous"
            except CrossingError as problem:
                verdict = f"crossing: {problem}"
            except Exception as problem:  # the usual way to fail
                verdict = f"failed: {type(problem).__name__}"
            except SystemExit:  # a test that leaves early has not passed
                verdict = "failed: SystemExit"
            _say(self.replies, {"verdict": verdict}, "t")

    def proxy(self, number: int) -> Proxy:
        """What stands here for the program's object of that number."""
        return Proxy(number, self.ask)

    def ask(self, number: int, how: str, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Have the program do one thing with an object (`Program.answer`); lists and the like that it changed in place
        are changed here too. Raises what the program raised, by its name, as one of Python's own exceptions."""
        self.asked += 1
        request = {
            "object": number,
            "how": how,
            "args": [encode(item, _number) for item in args],
            "named": {name: encode(item, _number) for name, item in named.items()},
        }
        _say(self.replies, request, "c")
        answer = json.loads(read_frame(self.requests) or b"")
        if "raised" in answer:
            raise _raised(str(answer["raised"]))(str(answer["message"]))
        for before, after in zip(args, answer["args"], strict=True):
            _take_over(before, decode(after, self.proxy))
        return decode(answer["value"], self.proxy)


def _run_definitions(space: dict[str, Any], source: str, entry_point: str) -> None:
    """Run what a test only defined: HumanEval's ``check(candidate)``, functions ``test...`` and unittest's classes."""
    used = {node.id for node in ast.walk(_parsed(source)) if isinstance(node, ast.Name)}
    for node in ast.iter_child_nodes(_parsed(source)):
        if isinstance(node, ast.ClassDef) and any(kind.__name__ == "TestCase" for kind in space[node.name].__mro__):
            result = sys.modules["unittest"].TestResult()
            sys.modules["unittest"].defaultTestLoader.loadTestsFromTestCase(space[node.name]).run(result)
            assert result.wasSuccessful()
        elif isinstance(node, ast.FunctionDef) and node.name not in used:
            if node.name == "check" and entry_point in space:
                space["check"](space[entry_point])
            elif node.name.startswith("test") and not node.args.args:
                space[node.name]()


def _raised(name: str) -> type[Exception]:
    """The built-in exception of a name, for tests that expect one."""
    kind = getattr(builtins, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, Exception) else RemoteError


def _take_over(before: Any, after: Any) -> None:
    """Show a change that the program made to a mutable argument."""
    if not isinstance(before, list | dict | set) or type(before) is not type(after) or before == after:
        return
    if isinstance(before, list):
        before[:] = after
    else:
        before.clear()
        before.update(after)


def _number(value: Any) -> Any:
    if isinstance(value, Proxy):
        return {"object": object.__getattribute__(value, "_proxy")[0]}
    raise CrossingError(f"a test hands the program a {type(value).__name__}, which cannot leave the sandbox")


def _is_module(value: Any) -> bool:
    return isinstance(value, types.ModuleType)


def _say(channel: BinaryIO, message: dict[str, Any], mark: str = "") -> None:
    text = json.dumps(message)
    if len(text) > LIMIT:
        raise RemoteError("a value too large for the channel")
    write_frame(channel, f"{mark}{text}".encode())


def _serve_program(requests: BinaryIO, replies: BinaryIO) -> None:
    program = Program()
    while (frame := read_frame(requests)) is not None:
        request = json.loads(frame)
        try:
            answer = program.load(request["source"]) if "source" in request else program.answer(request)
            _say(replies, answer)
        except BaseException as problem:  # sys.exit and interrupts of the program are answers, too
            _say(replies, {"raised": type(problem).__name__, "message": str(problem)[:1000]})


def main() -> None:
    """Play the part named on the command line, ``program`` or ``tests``."""
    sys.path[0] = ""  # as for any program: the working folder, and not where the harness lies
    requests, replies = open_channel(silent=True)
    _say(replies, {"ready": True})
    if sys.argv[1] == "program":
        _serve_program(requests, replies)
    else:
        task = json.loads(read_frame(requests) or b"")
        Tests(requests, replies).run(task["setup"], task["tests"], task["names"], task["entry_point"])


if __name__ == "__main__":
    main()
