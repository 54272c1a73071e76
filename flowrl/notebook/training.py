"""`flowrl.train`: a run from a config in any form, with Python functions as rewards."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from flowrl.config import Config, RewardConfig
from flowrl.config.overrides import apply_overrides, read_overrides
from flowrl.config.yaml_text import read_config
from flowrl.errors import UserError, did_you_mean, short_repr
from flowrl.launcher import launch
from flowrl.notebook.live_curve import LiveCurve, in_notebook
from flowrl.notebook.run import Run
from flowrl.records.directory import CONFIG
from flowrl.runtime.callbacks import Callbacks
from flowrl.runtime.display import Display
from flowrl.score.given import GivenReward
from flowrl.train import train as train_config

Source = str | os.PathLike[str] | Mapping[str, Any] | Config
RewardEntry = str | Callable[..., Any] | Mapping[str, Any] | RewardConfig
CONFIGS = Path(__file__).parents[2] / "configs"
"""Those that ship, in a checkout."""


def train(
    config: Source,
    rewards: Sequence[RewardEntry] = (),
    callbacks: Sequence[object] = (),
    *,
    overrides: Sequence[str] = (),
    resume: str | None = None,
    allow_changed: bool = False,
    display: Display | None = None,
    until: int | None = None,
) -> Run:
    """Train; what comes back knows the run's directory, metrics, and how to sample and export.

    >>> def red(images, prompts, **columns):  # images [N, 3, H, W] in [0, 1]; N numbers
    ...     return images[:, 0].mean(dim=(1, 2)) - images[:, 1:].mean(dim=(1, 2, 3))
    >>> run = flowrl.train("quickstart", rewards=[red], callbacks=[flowrl.LiveCurve()], overrides=["out=runs/red"])

    Args:
        config: a file, a dict of the same keys, a `Config`, a run's directory (its config), or the name of a config
            that ships, such as ``quickstart``.
        rewards: beside those of the config: functions, or what a config's ``rewards`` may hold, where ``use`` may be a
            function too: ``{"use": red, "weight": 0.5, "name": "red"}``. The config may leave its ``rewards`` out; of
            one that has some, ``overrides=["rewards=[]"]`` removes them. Signatures are those of a config's rewards.
            The source of functions is kept in the run's ``rewards/``.
        callbacks: objects with methods of `flowrl.Callback`, such as `flowrl.LiveCurve()`.
        overrides: ``key.path=value``, as on the command line.
        resume: ``None`` starts a new run, ``"auto"`` goes on from the newest intact checkpoint or starts, a path goes
            on from there. A run with functions needs the same ones again.
        allow_changed: go on although prompts, rewards, base weights or libraries changed.
        until: stop after this iteration, with the schedules of the whole run.

    Raises:
        UserError: anything you can mend, an exception of a callback included; what was finished before is saved.
        KeyboardInterrupt: after Ctrl-C (a notebook's stop button), when the iteration is finished and saved.
    """
    whole, given = _with_functions(config, rewards, overrides)
    _check_alone(given, callbacks)
    told = Callbacks(callbacks)
    display = display or notebook_display(any(isinstance(each, LiveCurve) for each in callbacks))
    more: dict[str, Any] = {"display": display, "until": until, "given": given, "callbacks": told}
    return Run(train_config(whole, resume=resume, allow_changed=allow_changed, **more))


def _with_functions(
    config: Source, rewards: Sequence[RewardEntry], overrides: Sequence[str]
) -> tuple[Config, dict[str, GivenReward]]:
    """The config with all rewards, and those of them that are functions."""
    values, source = _values(config)
    found = read_overrides(overrides)
    values = apply_overrides(values, found)
    entries, given = name_functions([*_listed(values.get("rewards")), *rewards])
    if entries:
        values["rewards"] = entries
    return Config.of(values, source, {override.key: override.place for override in found}), given


def _check_alone(given: Mapping[str, GivenReward], callbacks: Sequence[object]) -> None:
    """Raise `UserError` where several processes would each need what lives in one."""
    processes = launch() if given or callbacks else None
    if processes is None:
        return
    what = f"the reward {next(iter(given.values())).name!r} is a function" if given else "callbacks are objects"
    raise UserError(
        f"{what} of one process, and this is rank {processes.rank} of {processes.size}; train in one process, or"
        " write rewards into a file, name them path.py:function in the config, and leave callbacks out"
    )


def name_functions(entries: Sequence[RewardEntry]) -> tuple[list[Any], dict[str, GivenReward]]:
    """Entries of a config's ``rewards`` in which every function is called ``callable:NAME``, and the functions by that.
    An entry of that name that is there already, as in a run's own config, means the function that is given."""
    found: list[Any] = []
    given: dict[str, GivenReward] = {}
    for entry in entries:
        if isinstance(entry, RewardConfig):
            entry = entry.model_dump(mode="json")
        settings: dict[str, Any] = dict(entry) if isinstance(entry, Mapping) else {"use": entry}
        function = settings.get("use")
        if not callable(function):
            found.append(entry)
            continue
        reward = GivenReward.of(function, settings.pop("name", None))
        if reward.use in given:
            raise UserError(
                f"rewards: two functions are called {reward.name}; name one: {{'use': function, 'name': 'other'}}"
            )
        given[reward.use] = reward
        place = next((i for i, each in enumerate(found) if _use(each) == reward.use), None)
        if place is None:
            found.append({**settings, "use": reward.use})
        elif isinstance(entry, Mapping):
            found[place] = {**settings, "use": reward.use}
    return found, given


def notebook_display(drawn: bool) -> Display | None:
    """Plain lines for a notebook, and no lines of iterations where a curve is ``drawn``; None: the usual display."""
    if not in_notebook():
        return _Sentences() if drawn else None
    from rich.console import Console

    return (_Sentences if drawn else Display)(console=Console(force_jupyter=False, force_terminal=False, width=120))


class _Sentences(Display):
    """A display without lines of iterations."""

    def update(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Nothing: the curve tells it."""


def _use(entry: Any) -> Any:
    return entry.get("use") if isinstance(entry, Mapping) else entry


def _listed(rewards: Any) -> list[Any]:
    """The config's own; what is no list is left for the config to refuse."""
    if rewards is None:
        return []
    return list(rewards) if isinstance(rewards, list | tuple) else [rewards]


def _values(config: Source) -> tuple[dict[str, Any], str]:
    """``(keys and values, what to call their place)``. Raises `UserError` for what is no config."""
    if isinstance(config, Config):
        return config.model_dump(mode="json"), "config"
    if isinstance(config, Mapping):
        return deepcopy(dict(config)), "config"
    if not isinstance(config, str | os.PathLike):
        raise UserError(f"config: give a file, a dict, a Config or the name of a shipped one, not {short_repr(config)}")
    path = Path(config).expanduser()
    if (path / CONFIG).is_file():
        path = path / CONFIG
    shipped = CONFIGS / f"{config}.yaml"
    if not path.exists() and shipped.is_file():
        path = shipped
    if not path.exists() and path.suffix not in (".yaml", ".yml"):
        known = sorted(each.stem for each in CONFIGS.glob("*.yaml"))
        name = str(config)
        raise UserError(f"config: there is no file and no shipped config {name!r}{did_you_mean(name, known)}")
    return read_config(path), str(path)
