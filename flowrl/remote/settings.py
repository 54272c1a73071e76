"""What a reward server is started with: its config, its address and its token."""

from __future__ import annotations

import ipaddress
import os
import secrets
import sys
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flowrl.clients import HTTP, RAY
from flowrl.clients.protocol import TOKEN_VARIABLE, RequestLimits
from flowrl.config import Config
from flowrl.config.findings import explain_errors
from flowrl.config.reward import Reward
from flowrl.config.yaml_text import read_config
from flowrl.errors import UserError, first_line

SHORTEST_TOKEN = 16
OWN_KEYS = {"use", "name", "options", "device", "dtype", "batch_size"}


class ServerConfig(BaseModel):
    """``rewards:`` as in a training config, and ``limits:``. Everything else of a training config is passed over.

    A config names code that will run, as every training config does: read one before you serve it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rewards: list[Reward] = Field(min_length=1, description="what is served")
    limits: RequestLimits = Field(default=RequestLimits(), description="what a caller may ask for")

    @classmethod
    def load(cls, path: Path) -> Self:
        """From a YAML file. Raises `UserError` naming every bad key, and for a reward that is not to be served.

        A whole training config is checked as one, so that a misspelt key does not go unnoticed.
        """
        values = read_config(path)
        own = {key: value for key, value in values.items() if key in cls.model_fields}
        if values.keys() & Config.model_fields.keys() - own.keys():
            Config.of({key: value for key, value in values.items() if key != "limits"}, str(path))
        else:
            own = values
        try:
            config = cls.model_validate(own)
        except ValidationError as error:
            raise explain_errors(error, cls, str(path)) from None
        for reward in config.rewards:
            _check_place(reward.use, path)
        return config

    def specs(self) -> list[dict[str, Any]]:
        """What the rewards are, as JSON data; what a run makes of them (weights, failure policy) is the client's."""
        return [reward.model_dump(mode="json", include=OWN_KEYS) for reward in self.rewards]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address. A host name other than localhost may be anything: False."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def choose_token(host: str, token_file: Path | None) -> tuple[str, bool]:
    """The bearer token, and whether it was made up now: from the file, the environment, or (loopback only) random.

    Raises `UserError` for a file that cannot be read, a token that is too short, or none beyond loopback.
    """
    if token_file is not None:
        try:
            return _checked(token_file.read_text(encoding="utf-8").strip(), f"the token in {token_file}"), False
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"--token-file: {token_file} cannot be read as text ({first_line(error)}); give a file with one token"
            ) from error
    if os.environ.get(TOKEN_VARIABLE):
        return _checked(os.environ[TOKEN_VARIABLE].strip(), f"the token in ${TOKEN_VARIABLE}"), False
    if not is_loopback(host):
        raise UserError(
            f"--host: others can reach {host}, so the server needs a token of yours; "
            f"give --token-file FILE or set {TOKEN_VARIABLE}"
        )
    return secrets.token_urlsafe(32), True


def _checked(token: str, what: str) -> str:
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"{what} should be {SHORTEST_TOKEN} or more ASCII characters without spaces; "
            'make one with `python -c "import secrets; print(secrets.token_urlsafe(32))"`'
        )
    return token


def _check_place(use: str, config: Path) -> None:
    """Raise `UserError` for a reward on another server, one of Python's own functions, or a file outside the config's
    folder and the current one."""
    if use.startswith(HTTP):
        raise UserError(f"{config}: reward {use!r} is on another server; name rewards that are scored here")
    place, colon, _ = use.removeprefix(RAY).rpartition(":")
    if not colon:
        return
    if not place.endswith(".py"):
        if place.partition(".")[0] in sys.stdlib_module_names:
            raise UserError(f"{config}: reward {use!r} is of Python's standard library, which has no rewards")
        return
    file = Path(place).expanduser().resolve()  # links are followed first
    roots = {config.resolve().parent, Path.cwd()}
    if not any(file.is_relative_to(root) for root in roots):
        raise UserError(
            f"{config}: reward {use!r} is a file outside {' and '.join(sorted(map(str, roots)))}; "
            "start the server in a folder that holds it"
        )
