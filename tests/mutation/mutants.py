"""What is changed: one small edit of one expression or statement, found in the syntax tree.

Left alone: docstrings, messages (strings, ``raise``, ``assert``), annotations and type aliases, imports, decorators,
and the arguments that say only where and in which precision numbers live (`PLACEMENT`), which tests/parity is about.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

PLACEMENT = {"device", "dtype", "strict", "copy", "non_blocking"}

BINARY = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
}
COMPARED = {
    ast.Lt: ("<", "<=", ">="),
    ast.LtE: ("<=", "<", ">"),
    ast.Gt: (">", ">=", "<="),
    ast.GtE: (">=", ">", "<"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
_PAIRS = "sum mean, min max, amin amax, any all, argmin argmax, minimum maximum, floor ceil, sin cos, zeros ones"
SWAPPED = {a: b for pair in _PAIRS.split(", ") for a, b in (pair.split(), pair.split()[::-1])}
SWAPPED |= {"zeros_like": "ones_like", "ones_like": "zeros_like"}
DROPPED = {"detach", "abs", "sqrt", "square", "exp", "log", "clamp", "nan_to_num", "flip", "contiguous"}
"""Methods that are left out of a chain: ``x.abs()`` becomes ``x``."""


@dataclass(frozen=True)
class Mutant:
    """One edit: the bytes from ``start`` to ``end`` of a file become ``new``."""

    path: str
    line: int
    name: str
    """Class and function that hold it; empty at the top of a module."""
    kind: str
    start: int
    end: int
    new: str
    before: str
    """The lines it touches, stripped and joined; ``after`` likewise. Both say what it is when lines have moved."""
    after: str
    reached: range
    """Lines of the statement: tests that run one of them can notice."""

    def applied(self, source: bytes) -> bytes:
        """The mutated file."""
        return source[: self.start] + self.new.encode() + source[self.end :]

    @property
    def content(self) -> tuple[str, str, str]:
        """What it is, wherever it stands."""
        return self.name, self.before, self.after


def find(root: Path, paths: list[str]) -> list[Mutant]:
    """Every mutant of the Python files under ``paths``, which are relative to ``root``."""
    files = sorted({file for path in paths for file in python_files(root / path)})
    return [mutant for file in files for mutant in of_source(file.read_bytes(), str(file.relative_to(root)))]


def shuffled(mutants: list[Mutant], seed: int) -> list[Mutant]:
    """The mutants in random order, of which a sample is the beginning. Its place follows from the seed and its content,
    so that a change elsewhere, or a move, leaves the others in the sample."""
    seen: Counter[tuple[str, str, str]] = Counter()
    keyed = []
    for mutant in mutants:
        seen[mutant.content] += 1
        text = "\0".join((str(seed), *mutant.content, str(seen[mutant.content])))
        keyed.append((hashlib.sha256(text.encode()).hexdigest(), mutant))
    return [mutant for _, mutant in sorted(keyed, key=lambda pair: pair[0])]


def of_source(source: bytes, path: str) -> list[Mutant]:
    """Every mutant of one file."""
    finder = _Finder(source, path)
    finder.visit(ast.parse(source))
    unique = {(m.start, m.end, m.new): m for m in finder.found}
    return sorted(unique.values(), key=lambda m: (m.start, m.end, m.new))


def python_files(path: Path) -> list[Path]:
    """Of a folder, or the file itself; none where there is nothing."""
    return [path] if path.is_file() else list(path.rglob("*.py"))


def compiles(mutant: Mutant, source: bytes) -> bool:
    """Whether it is still Python."""
    try:
        compile(mutant.applied(source), mutant.path, "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


def _smaller_and_larger(value: bool | int | float) -> list[str]:
    if isinstance(value, bool):
        return [str(not value)]
    if isinstance(value, int):
        return [str(value + 1), str(value - 1)] if value else ["1"]
    return {0.0: ["1.0"], 1.0: ["0.0", "2.0"]}.get(value, [repr(2 * value)])


class _Finder(ast.NodeVisitor):
    def __init__(self, source: bytes, path: str) -> None:
        self.source, self.path, self.found = source, path, []
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.names: list[str] = []
        self.inside_function = False
        self.reached = range(0)

    # places in the text

    def _span(self, node: ast.expr | ast.stmt | ast.keyword) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset

    def _text(self, node: ast.expr | ast.keyword) -> str:
        start, end = self._span(node)
        return self.source[start:end].decode()

    def _add(self, kind: str, start: int, end: int, new: str) -> None:
        first = self.source.rfind(b"\n", 0, start) + 1
        last = self.source.find(b"\n", end)
        last = len(self.source) if last < 0 else last
        edited = self.source[first:start] + new.encode() + self.source[end:last]
        before, after = (" ".join(text.decode().split()) for text in (self.source[first:last], edited))
        line = self.source.count(b"\n", 0, start) + 1
        name = ".".join(self.names)
        self.found.append(Mutant(self.path, line, name, kind, start, end, new, before, after, self.reached))

    def _replace(self, kind: str, node: ast.expr | ast.stmt, new: str) -> None:
        self._add(kind, *self._span(node), new)

    def _between(self, kind: str, left: ast.expr, right: ast.expr, old: str, *new: str) -> None:
        """Replace the operator between two operands."""
        start, end = self._span(left)[1], self._span(right)[0]
        text = self.source[start:end].decode()
        word = rf"\b{old}\b".replace(" ", r"\s+") if old[0].isalpha() else re.escape(old)
        place = re.search(word, text)
        if place and "#" not in text:
            for symbol in new:
                self._add(kind, start + len(text[: place.start()].encode()), start + place.end(), symbol)

    # statements

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = body[0].lineno - 1 if body else (node.end_lineno or node.lineno)
            self.reached = range(node.lineno, max(last, node.lineno) + 1)
        super().visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._named(node.name, node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer, self.inside_function = self.inside_function, True
        lines = range(node.body[0].lineno, (node.end_lineno or node.lineno) + 1)
        self.names.append(node.name)
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.reached = lines
                self.visit(default)
        self.names.pop()
        self._named(node.name, node.body)
        self.inside_function = outer

    def _named(self, name: str, body: list[ast.stmt]) -> None:
        self.names.append(name)
        for statement in body:
            self.visit(statement)
        self.names.pop()

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        alias = not self.names and not all(isinstance(t, ast.Name) and t.id.isupper() for t in node.targets)
        if not alias:
            self._terms(node.value)
            self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        symbol, other = BINARY.get(type(node.op), (None, None))
        if symbol and other:
            self._between("operator", node.target, node.value, symbol + "=", other + "=")
        self._replace("statement left out", node, "pass")
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call):
            self._replace("statement left out", node, "pass")
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None:
            self._terms(node.value)
            self.visit(node.value)

    def _terms(self, value: ast.expr) -> None:
        """One term or factor alone."""
        if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add | ast.Sub | ast.Mult | ast.BitAnd):
            self._replace("term left out", value, self._text(value.left))

    def visit_If(self, node: ast.If) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def _negate(self, test: ast.expr) -> None:
        if not isinstance(test, ast.Compare | ast.BoolOp | ast.UnaryOp):
            self._replace("condition", test, f"not ({self._text(test)})")

    def visit_Raise(self, node: ast.Raise) -> None: ...

    def visit_Assert(self, node: ast.Assert) -> None: ...

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None: ...

    # expressions

    def visit_BinOp(self, node: ast.BinOp) -> None:
        merged = isinstance(node.op, ast.BitOr) and any(isinstance(n, ast.Dict) for n in (node.left, node.right))
        if type(node.op) in BINARY and not merged:
            self._between("operator", node.left, node.right, *BINARY[type(node.op)])
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for left, op, right in zip(operands, node.ops, operands[1:], strict=False):
            self._between("comparison", left, right, *COMPARED[type(op)])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        words = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._between("and/or", left, right, *words)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        self._replace("sign or not", node, self._text(node.operand))
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._negate(test)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool | int | float):
            for new in _smaller_and_larger(node.value):
                self._replace("constant", node, new)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if not (isinstance(node.value, ast.Name) and node.value.id in ("Literal", "ClassVar")):
            self.generic_visit(node)

    def visit_Slice(self, node: ast.Slice) -> None:
        for bound in (node.lower, node.upper):
            if bound is not None and not isinstance(bound, ast.Constant | ast.UnaryOp):
                self._replace("slice", bound, f"({self._text(bound)}) + 1")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        self._swap_name(node)
        positional, keywords = [self._text(a) for a in node.args], [self._text(k) for k in node.keywords]
        if isinstance(node.func, ast.Attribute):
            if node.func.attr in DROPPED:
                self._replace("call left out", node, self._text(node.func.value))
            if node.func.attr == "where" and len(positional) == 3:
                condition, yes, no = positional
                self._arguments(node, [condition, no, yes, *keywords], "branches swapped")
        for index, keyword in enumerate(node.keywords):
            if keyword.arg is not None and keyword.arg not in PLACEMENT:
                kept = [*positional, *keywords[:index], *keywords[index + 1 :]]
                self._arguments(node, kept, "argument left out")
        self.visit(node.func)
        for argument in (*node.args, *(k.value for k in node.keywords if k.arg not in PLACEMENT)):
            self.visit(argument)

    def _arguments(self, node: ast.Call, kept: list[str], kind: str) -> None:
        self._add(kind, self._span(node.func)[1], self._span(node)[1], f"({', '.join(kept)})")

    def _swap_name(self, node: ast.Call) -> None:
        func = node.func
        name = func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""
        if name in SWAPPED:
            end = self._span(func)[1]
            self._add("function", end - len(name), end, SWAPPED[name])
