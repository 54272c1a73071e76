"""A run's export on the Hugging Face hub, with a model card made from the run."""

from __future__ import annotations

import json
import os
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowrl.commands.export import export
from flowrl.config import Config
from flowrl.config.yaml_text import write_yaml
from flowrl.connections import ConnectionFailure
from flowrl.errors import UserError, first_line
from flowrl.models.adapters.read import CONFIG as PEFT_CONFIG
from flowrl.models.adapters.read import DIFFUSERS_FILE
from flowrl.models.export_folder import ORIGIN_FILE
from flowrl.models.hub import downloaded, is_hub_id
from flowrl.models.load_errors import LOG_IN
from flowrl.records.directory import RunDirectory
from flowrl.report import record as records
from flowrl.report.card import CONFIG, CURVE, Export, Licence, card, draw
from flowrl.report.public import check_nothing_private, hub_base, public_config, public_origin, strip_files
from flowrl.runtime.display import Display

FOLDER = "push"
"""Where, in the run directory, what is sent is put together."""
CARD = "README.md"
HUBS_OWN = {".gitattributes"}
"""Files that the hub puts into a new repository."""


@dataclass(frozen=True)
class Pushed:
    """What was sent, or would be."""

    folder: Path
    files: list[tuple[str, int]]
    """Names and bytes."""
    address: str | None
    """Of the repository's page; None where nothing was sent."""
    private: bool


@dataclass(frozen=True)
class PushOptions:
    """Which weights, and what may become of the repository."""

    to: str | None = None
    """Format to export to; None = what the model's own library loads."""
    exported: Path | None = None
    """An export of the run that is there already."""
    checkpoint: str = "best"
    weights: str | None = None
    public: bool = False
    update: bool = False
    """Commit over the files of a repository."""
    dry_run: bool = False


def push(run: Path, hub_id: str, options: PushOptions, display: Display, api: Any = None) -> Pushed:
    """Export the run, write its card and upload both into the repository ``hub_id``, made private where it is new.
    With ``dry_run`` nothing is asked of the hub or sent, and the folder stays. ``api``: an ``HfApi``.

    Raises:
        UserError: for what is no run, export or name of a repository, where the hub cannot be reached or refuses, for a
            repository that has files (without ``update``) or is public (without ``public``), and where a file would
            hold a token or a path of this machine's user.
    """
    _check_name(hub_id)
    directory = RunDirectory.open(run)
    api, known = _api() if api is None else api, None
    if not options.dry_run:
        display.stage("asking the hub")
        with _explained(hub_id):
            known = _check_repository(api, hub_id, options)
    config = Config.of_run(directory.config_path)
    folder = directory.path / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    found = _export(directory.path, folder, options, display)
    display.stage("writing the card")
    _describe(directory.path, config, folder, found, hub_id, _licence(api, config, not options.dry_run))
    private = not options.public if known is None else known
    files = [(f.relative_to(folder).as_posix(), f.stat().st_size) for f in sorted(folder.rglob("*")) if f.is_file()]
    if options.dry_run:
        return Pushed(folder, files, None, private)
    display.stage(f"sending {sum(size for _, size in files) / 1e6:.1f} MB")
    with _explained(hub_id):
        api.create_repo(hub_id, private=private, exist_ok=True)
        message = f"{config.name}: {found.checkpoint}, {found.to} (flowrl)"
        api.upload_folder(repo_id=hub_id, folder_path=folder, commit_message=message)
    shutil.rmtree(folder)
    return Pushed(folder, files, f"https://huggingface.co/{hub_id}", private)


# ---- the folder


def _export(run: Path, folder: Path, options: PushOptions, display: Display) -> Export:
    """The weights in ``folder``."""
    if options.exported is None:
        done = export(run, options.to, folder, display, checkpoint=options.checkpoint, weights=options.weights)
        to, weights = done.to, done.weights
    else:
        _copy(options.exported, folder)
        to, weights = _format(folder), "trained"
    origin = _origin(folder)
    if options.exported is not None and origin.get("run") != Config.of_run(RunDirectory(run).config_path).name:
        shutil.rmtree(folder)
        raise UserError(f"--export: {options.exported} is an export of the run {origin.get('run')!r}, and not of {run}")
    file = next((f.name for f in folder.glob("*.safetensors")), None) if to == "kohya" else None
    return Export(to, str(origin.get("checkpoint", options.checkpoint)), str(origin.get("weights", weights)), file)


def _copy(source: Path, folder: Path) -> None:
    if not (source / ORIGIN_FILE).is_file():
        what = f"has no {ORIGIN_FILE}" if source.is_dir() else "does not exist"
        raise UserError(
            f"--export: {source} is no export: it {what}; `flowrl export RUN --to FORMAT --out FOLDER` makes one"
        )
    shutil.copytree(source, folder)


def _format(folder: Path) -> str:
    """The format of an export's folder."""
    if (folder / PEFT_CONFIG).is_file():
        return "peft"
    if (folder / DIFFUSERS_FILE).is_file():
        return "diffusers"
    return "merged" if any((folder / name).is_file() for name in ("model_index.json", "config.json")) else "kohya"


def _origin(folder: Path) -> dict[str, Any]:
    file = folder / ORIGIN_FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({first_line(error)}); export again") from error
    return found if isinstance(found, dict) else {}


def _describe(run: Path, config: Config, folder: Path, found: Export, hub_id: str, licence: Licence | None) -> None:
    """Card, curve and config, and nothing private in any file."""
    origin = _origin(folder)
    if origin:
        text = json.dumps(public_origin(origin), indent=1, sort_keys=True)
        (folder / ORIGIN_FILE).write_text(text + "\n", encoding="utf-8")
    strip_files(folder)
    record = records.read(run)
    draw(record.metrics, folder / CURVE)
    (folder / CONFIG).write_text(write_yaml(public_config(config)[0]), encoding="utf-8")
    (folder / CARD).write_text(card(record, config, found, hub_id, licence), encoding="utf-8")
    try:
        check_nothing_private(folder, _tokens())
    except UserError:
        shutil.rmtree(folder)
        raise


def _tokens() -> list[str]:
    from huggingface_hub import get_token

    found = [get_token(), *(os.environ.get(name) for name in ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY"))]
    return [token for token in found if token]


def _licence(api: Any, config: Config, online: bool) -> Licence | None:
    """What the base's card says, from the hub's cache on this machine or, where it may be asked, from the hub."""
    from huggingface_hub import ModelCard

    base = hub_base(config)
    if base is None:
        return None
    here = downloaded(base)
    try:
        if here is not None and (here / CARD).is_file():
            data: Any = ModelCard.load(here / CARD, ignore_metadata_errors=True).data
        else:
            data = api.model_info(base, timeout=10).card_data if online else None
    except Exception:  # a gated or removed base, a damaged card, no network: the card says that it is not known
        return None
    name = getattr(data, "license", None)
    if not isinstance(name, str):
        return None
    title, link = (getattr(data, key, None) for key in ("license_name", "license_link"))
    return Licence(name, title, link)


# ---- the hub


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="flowrl")


def _check_name(hub_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(hub_id)
        good, why = is_hub_id(hub_id), ""
    except HFValidationError as error:
        good, why = False, f" ({first_line(error)})"
    if not good:
        raise UserError(f"HUB_ID: {hub_id!r} is no name of a repository{why}; give OWNER/NAME, such as me/sd35-ocr")


def _check_repository(api: Any, hub_id: str, options: PushOptions) -> bool | None:
    """Whether the repository is private, None where it is new. Raises, before anything is exported, where it should not
    be written to."""
    from huggingface_hub.errors import RepositoryNotFoundError

    api.whoami()
    try:
        known = api.repo_info(hub_id)
    except RepositoryNotFoundError:
        return None
    others = sorted(set(api.list_repo_files(hub_id)) - HUBS_OWN)
    if others and not options.update:
        listed = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        raise UserError(
            f"{hub_id} has files already ({listed}); --update commits over them, or name another repository"
        )
    if not known.private and not options.public:
        raise UserError(f"{hub_id} is public; --public pushes to it all the same, or name another repository")
    return bool(known.private)


@contextmanager
def _explained(hub_id: str) -> Iterator[None]:
    """What the hub or the way to it failed with, as a `UserError`."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except UserError:
        raise
    except LocalTokenNotFoundError as error:
        raise UserError(f"not logged in to the hub; {LOG_IN}") from error
    except OfflineModeIsEnabled as error:
        raise UserError(
            "HF_HUB_OFFLINE is set; unset it to push, or look at what would be sent with --dry-run"
        ) from error
    except HfHubHTTPError as error:
        raise UserError(_refusal(getattr(error.response, "status_code", None), hub_id, error)) from error
    except Exception as error:  # each version of huggingface_hub has the errors of another HTTP library
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        if Path(last).is_relative_to(Path(__file__).parents[1]):  # a bug of ours
            raise
        why = ConnectionFailure.of(error).reason
        raise UserError(f"{hub_id}: the hub cannot be reached: {why}; try again, or --dry-run") from error


def _refusal(status: int | None, hub_id: str, error: Exception) -> str:
    if status == 401:
        return f"the hub does not know your token (401); {LOG_IN}"
    if status == 403:
        return (
            f"your token may not write to {hub_id} (403); make one with write access on"
            " https://huggingface.co/settings/tokens, and log in with 'hf auth login'"
        )
    return f"the hub refuses {hub_id}: {first_line(error)}"
