"""What a failure to load a model or an adapter was, told apart by its cause, each in a sentence with the fix."""

from __future__ import annotations

import errno
import socket
import ssl
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flowrl.errors import UserError, describe_exception, first_line, is_out_of_memory

LOG_IN = "log in with 'hf auth login' or set HF_TOKEN"
STATUS = {
    401: f"needs a valid token of the hub (401); {LOG_IN}",
    403: f"may not be read with this token of the hub (403); ask its owner for access, or {LOG_IN}",
    429: f"was asked for too often, says the hub (429); wait some minutes, or {LOG_IN}",
}
"""By HTTP status; those from 500 on are the hub's own."""
DNS = (
    "Name or service not known",
    "Temporary failure in name resolution",
    "nodename nor servname",
    "getaddrinfo failed",
)
"""What systems say of a name that is not resolved."""
TIMEOUTS = ("ConnectTimeout", "ReadTimeout", "WriteTimeout", "PoolTimeout", "Timeout")
CONNECTIONS = ("ConnectError", "ReadError", "WriteError", "ProxyError", "RemoteProtocolError")
"""Names of httpx's and requests' exceptions; which of the two there is depends on the version of huggingface_hub."""
ABSENT = "is not on this machine, and"
HERE = "give a folder that is here"


def load_error(name: str, error: BaseException, what: str = "model") -> UserError:
    """The sentence for a library's failure to load the ``what`` called ``name``, a folder or a hub id; to be raised
    ``from error``. Raises the error itself where memory ran out, and returns it where it is a sentence already."""
    if is_out_of_memory(error):
        raise error
    if isinstance(error, UserError):
        return error
    known = explain(error, name)
    if known is not None:
        return UserError(f"{what} {name!r} {known}")
    here = Path(name).expanduser().exists()
    failed = "cannot be loaded from its folder" if here else "is not a folder here and cannot be downloaded"
    return UserError(f"{what} {name!r} {failed}: {first_line(error)}")


def explain(error: BaseException, name: str) -> str | None:
    """What happened to ``name`` as the end of a sentence that begins with it; ``None`` where nothing in the error's
    chain of causes is known."""
    chain = list(_causes(error))
    rules = (_refused, _offline, _untrusted, _unresolved, _unanswered, _unconnected, _local)
    sentences = (rule(each, name) for rule in rules for each in chain)
    return next((sentence for sentence in sentences if sentence is not None), None)


@contextmanager
def errors_named(source: object) -> Iterator[None]:
    """What a model's own code or its library raises inside becomes a `UserError` that names the model; an exception of
    our own lines, which would be a bug, stays one, and so does running out of memory."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        if is_out_of_memory(error) or Path(last).is_relative_to(Path(__file__).parents[1]):
            raise
        known = explain(error, str(source)) or f"fails when it is tried: {describe_exception(error)}"
        raise UserError(f"model {str(source)!r} {known}") from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)


def _refused(error: BaseException, name: str) -> str | None:
    """What the hub answered."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        page = f"https://huggingface.co/{'/'.join(name.split('/')[:2])}"
        return f"is gated; accept its terms on {page} with your account, then {LOG_IN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"has no such revision on the hub: {first_line(error)}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{ABSENT} there is none of that name on the hub, or it is private; check the name, or {LOG_IN}"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"lacks a file on the hub ({first_line(error)}); check the name"
    if not isinstance(error, errors.HfHubHTTPError):
        return None
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in STATUS:
        return STATUS[status]
    if isinstance(status, int) and status >= 500:
        return f"{ABSENT} the hub has a fault of its own ({status}); try again later, or {HERE}"
    return None


def _offline(error: BaseException, name: str) -> str | None:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return f"{ABSENT} HF_HUB_OFFLINE is set; unset it to download it, or {HERE}"
    return None


def _untrusted(error: BaseException, name: str) -> str | None:
    if isinstance(error, ssl.SSLError) or "CERTIFICATE_VERIFY_FAILED" in str(error):
        trust = f"name the certificates to trust in SSL_CERT_FILE, or {HERE}"
        return f"{ABSENT} the TLS certificate of {_host()} is not accepted ({first_line(error)}); {trust}"
    return None


def _unresolved(error: BaseException, name: str) -> str | None:
    if isinstance(error, socket.gaierror) or any(sign in str(error) for sign in DNS):
        return f"{ABSENT} the name {_host()} cannot be resolved (DNS); check the network, or {HERE}"
    return None


def _unanswered(error: BaseException, name: str) -> str | None:
    if isinstance(error, TimeoutError) or type(error).__name__ in TIMEOUTS:
        return f"{ABSENT} {_host()} did not answer in time; check the network or try again, or {HERE}"
    return None


def _unconnected(error: BaseException, name: str) -> str | None:
    if isinstance(error, ConnectionError) or type(error).__name__ in CONNECTIONS:
        return f"{ABSENT} {_host()} cannot be connected to ({first_line(error)}); check the network, or {HERE}"
    return None


def _host() -> str:
    from huggingface_hub.constants import ENDPOINT

    return ENDPOINT.split("//")[-1]


def _local(error: BaseException, name: str) -> str | None:
    """What is wrong on this machine."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    if is_disk_full(error):
        return f"needs more disk than is left ({first_line(error)}); free some, or set HF_HOME to another disk"
    if isinstance(error, PermissionError):
        return f"may not be read or written here ({first_line(error)}); change the permissions"
    if isinstance(error, ImportError):
        package = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        fix = f"pip install {package}" if package else "install it"
        return f"needs a package that is missing here ({first_line(error)}); {fix}"
    if isinstance(error, LocalEntryNotFoundError):
        return f"{ABSENT} the hub cannot be reached: {first_line(error)}; check the network, or {HERE}"
    return None


def is_disk_full(error: BaseException) -> bool:
    """Whether the disk or the quota was exhausted; safetensors says so in words only."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(f"(os error {code})" in str(error) for code in (errno.ENOSPC, errno.EDQUOT))
