"""What a user's own part has to be, compared with the protocol of its slot before anything is loaded."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from functools import cache
from typing import ClassVar, Protocol, get_args, get_origin, get_type_hints

from flowrl.errors import UserError, describe_exception
from flowrl.parts.algorithm import Family
from flowrl.values import is_plain_type, validated

FAMILY_OF: dict[str, Family] = {
    "flowrl.samplers.flow": "diffusion",
    "flowrl.samplers.masked": "masked",
    "flowrl.samplers.causal": "causal",
    "flowrl.estimators.transitions": "diffusion",
    "flowrl.estimators.states": "diffusion",
    "flowrl.estimators.matching": "diffusion",
    "flowrl.estimators.pathwise": "diffusion",
    "flowrl.estimators.renoise": "diffusion",
    "flowrl.estimators.adjoint": "diffusion",
    "flowrl.estimators.distribution": "diffusion",
    "flowrl.estimators.trajectory_matching": "diffusion",
    "flowrl.estimators.directions": "diffusion",
    "flowrl.estimators.masked": "masked",
    "flowrl.estimators.tokens": "causal",
    "flowrl.samplers.episodes": "control",
    "flowrl.samplers.gaussian": "control",
    "flowrl.samplers.categorical": "control",
    "flowrl.samplers.noisy": "control",
    "flowrl.samplers.perturbed": "control",
    "flowrl.samplers.demonstrations": "control",
    "flowrl.samplers.residual": "control",
    "flowrl.estimators.episodes": "control",
    "flowrl.estimators.gaussian": "control",
    "flowrl.estimators.imitation": "control",
    "flowrl.estimators.categorical": "control",
    "flowrl.estimators.noisy": "control",
    "flowrl.estimators.perturbed": "control",
    "flowrl.estimators.ratings": "reward",
}
"""The models that samplers and estimators are for, by the module they come from."""
WORDS = (
    "policy",
    "condition",
    "draw",
    "rollout",
    "trace",
    "scores",
    "memory",
    "advantage",
    "likelihood",
    "batch",
    "mask",
)
"""Names of arguments that mean the same in every slot."""


@cache
def members(protocol: type) -> dict[str, object]:
    """What a protocol asks for, by name: functions, properties, and the types of attributes."""
    found: dict[str, object] = {}
    for kind in reversed(protocol.__mro__):
        if kind not in (object, Protocol) and getattr(kind, "_is_protocol", False):
            found |= inspect.get_annotations(kind, eval_str=True)
            found |= {name: value for name, value in vars(kind).items() if name == "__call__" or name[0] != "_"}
    return found


def has(kind: type, name: str) -> bool:
    """Whether a dataclass has an attribute, method or field of that name. (Every class can be called itself.)"""
    return any(name in vars(above) for above in kind.__mro__) or name in getattr(kind, "__dataclass_fields__", ())


def takes_calls(kind: type, protocol: type) -> bool:
    """Whether a class can be called as the protocol is: with so many arguments."""
    asked = members(protocol).get("__call__")
    return not inspect.isfunction(asked) or _accepts(kind.__call__, asked)


def check_class(kind: object, protocol: type, name: str, path: str) -> type:
    """The class, if it can stand in a slot of this protocol. Raises `UserError` with the key ``path``, the class as the
    config calls it, and what to change."""
    if not inspect.isclass(kind):
        raise UserError(f"{path}: {name} is no class; a part is a frozen dataclass (see docs/extending.md)")
    made = vars(kind).get("__dataclass_params__")  # of its own: what it extends may be a dataclass as well
    if made is None or not made.frozen:
        raise UserError(f"{path}: {name} is no frozen dataclass; write @dataclass(frozen=True) above the class")
    try:
        get_type_hints(kind)
    except Exception as error:  # whatever evaluating a user's annotations raises
        raise UserError(f"{path}: {name} has an annotation that means nothing: {describe_exception(error)}") from error
    for member, asked in members(protocol).items():
        _check_member(kind, member, asked, protocol, f"{path}: {name}")
    return kind


def check_values(part: object, protocol: type, path: str) -> None:
    """Raise `UserError` for what a part says of itself, by attributes and properties, of another type than the
    protocol has."""
    for member, asked in members(protocol).items():
        if inspect.isfunction(asked):
            continue
        hint = _type_of(asked)
        try:
            value = getattr(part, member)
        except Exception as error:  # a property is a user's code
            raise UserError(f"{path}.{member}: {describe_exception(error)}") from error
        if is_plain_type(hint):
            try:
                validated(hint, value)
            except ValueError as error:
                raise UserError(f"{path}: {member} of {type(part).__name__} is {value!r}: {error}") from error


def family_of(kind: type, name: str, path: str, part: object = None) -> Family:
    """The models that a sampler or estimator is for: what its class or the ``part`` itself says, or those of the class
    that it extends. Raises `UserError` where none says it."""
    family: Family | None = getattr(kind if part is None else part, "family", None)
    if family is not None and family in get_args(Family):
        return family
    for above in kind.__mro__ if family is None else ():
        if above.__module__ in FAMILY_OF:
            return FAMILY_OF[above.__module__]
    known = " or ".join(repr(known) for known in get_args(Family))
    raise UserError(
        f"{path}: {name} does not say which models it is for; write family: ClassVar = {known} in the class"
    )


def _check_member(kind: type, member: str, asked: object, protocol: type, who: str) -> None:
    meaning = meanings(protocol).get(member)
    means = f" ({meaning})" if meaning else ""
    if not has(kind, member):
        what = f"no {member}" if not inspect.isfunction(asked) else f"no method {member}{_call_of(asked)}"
        raise UserError(f"{who} has {what}{means}; {_remedy(member, asked)}")
    if not inspect.isfunction(asked):
        return
    found = getattr(kind, member)
    if not callable(found) or inspect.iscoroutinefunction(found):
        kinds = "is async" if callable(found) else "is no method"
        raise UserError(f"{who}.{member} {kinds}; {_remedy(member, asked)}")
    if not _accepts(found, asked) or _mistaken(found, asked):
        raise UserError(
            f"{who}.{member} takes {inspect.signature(found)}, and is called as {member}{_call_of(asked)}{means}"
        )


def _accepts(found: Callable[..., object], asked: Callable[..., object]) -> bool:
    """Whether a function can be called as a protocol's: by position, with the arguments that have defaults and
    without."""
    parameters = inspect.signature(asked).parameters.values()
    required = [parameter for parameter in parameters if parameter.default is parameter.empty]
    signature = inspect.signature(found)
    try:
        signature.bind(*required)
        signature.bind(*parameters)
    except TypeError:
        return False
    return True


def _mistaken(found: Callable[..., object], asked: Callable[..., object]) -> bool:
    """Whether an argument has the name that another one has in some slot, as in a part that stands in a wrong slot."""
    names = zip(inspect.signature(found).parameters, inspect.signature(asked).parameters, strict=False)
    return any(mine != asked_name and mine in WORDS for mine, asked_name in names)


def _call_of(asked: object) -> str:
    assert callable(asked)
    names = [name for name in inspect.signature(asked).parameters if name != "self"]
    return f"({', '.join(names)})"


def _remedy(member: str, asked: object) -> str:
    if inspect.isfunction(asked):
        return f"write def {member}(self, {_call_of(asked)[1:]}"
    hint = inspect.formatannotation(_type_of(asked)).replace("typing.", "")
    return f"write {member}: ClassVar[{hint}] = ... in the class, or inherit it (see docs/extending.md)"


def _type_of(asked: object) -> object:
    """The type of an attribute or a property."""
    if isinstance(asked, property):
        assert asked.fget is not None
        return get_type_hints(asked.fget).get("return", object)
    return get_args(asked)[0] if get_origin(asked) is ClassVar else asked


@cache
def meanings(protocol: type) -> dict[str, str]:
    """The first sentence about every member: the docstring of a method, the text under an attribute."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(protocol))).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for node, below in zip(tree.body, [*tree.body[1:], None], strict=True):
        name, text = "", None
        if isinstance(node, ast.FunctionDef):
            name, text = node.name, ast.get_docstring(node)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name, under = node.target.id, below.value if isinstance(below, ast.Expr) else None
            text = under.value if isinstance(under, ast.Constant) else None
        if isinstance(text, str):
            found[name] = " ".join(text.split()).partition(". ")[0].rstrip(".")
    return found
