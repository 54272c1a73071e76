"""The model card of a run: what was trained on what, how good it is, how it is loaded and made again."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.repocard_data import EvalResult
from jinja2 import Environment, PackageLoader, StrictUndefined

from flowrl.composition import build
from flowrl.config import Config
from flowrl.errors import counted, printable
from flowrl.evaluation.table import nested
from flowrl.parts.algorithm import Algorithm
from flowrl.report.curves import reward_figures
from flowrl.report.numbers import duration, number
from flowrl.report.public import HIDDEN, hub_base, public_config, without_secrets
from flowrl.report.record import Metrics, Record
from flowrl.report.summary import flat, method, table
from flowrl.worlds import world_names

CURVE = "curve.png"
CONFIG = "flowrl_config.yaml"
"""The run's config in the repository."""
MOST_CURVES = 4
TASKS = {
    "diffusion": "text-to-image",
    "masked": "text-generation",
    "causal": "text-generation",
    "reward": "text-classification",
    "control": "reinforcement-learning",
}
LIBRARIES = {"diffusers": "diffusers", "peft": "peft", "kohya": "diffusers"}


@dataclass(frozen=True)
class Export:
    """The weights that a card describes."""

    to: str
    """The format."""
    checkpoint: str
    weights: str
    """The weight set."""
    file: str | None = None
    """Of a format that is one file: its name."""


@dataclass(frozen=True)
class Licence:
    """What the base model's card says."""

    name: str
    title: str | None = None
    link: str | None = None


def card(record: Record, config: Config, export: Export, hub_id: str, licence: Licence | None) -> str:
    """The card as Markdown with its metadata, for the repository ``hub_id``."""
    algorithm = build(config.algorithm)
    public, changed = public_config(config)
    suites = list(_suites(record, export))
    values = {
        "title": hub_id.split("/")[-1],
        "kind": _kind(config),
        "base": _base(config, public),
        "hub_base": hub_base(config) or config.model.path in world_names(),
        "method": method(config.algorithm) or {"summary": "", "paper": ""},
        "snippet": snippet(export, algorithm.family, config, hub_id),
        "suites": [table(suite) for suite in suites],
        "evaluated": without_secrets(_evaluated(record)),
        "heldout": heldout(record.metrics, _step(export.checkpoint)),
        "curve": next(({"file": CURVE, "note": figure.note} for figure in reward_figures(record.metrics)), None),
        "facts": list(_facts(record, config, public, algorithm, export)),
        "rewards": list(_rewards(public.get("rewards", []))),
        "command": "\n".join(_commands(record, config, hub_id)),
        "changed": [f"`{key}`" for key in changed],
        "versions": _versions(record),
        "license_note": _license_note(config, licence),
    }
    data = _metadata(config, algorithm, export, licence, suites, hub_id)
    return f"---\n{data.to_yaml()}\n---\n{_environment().get_template('card.md.jinja').render(values)}"


def snippet(export: Export, family: str, config: Config, hub_id: str) -> str:
    """Python that loads the export."""
    if export.to == "merged":
        begin, where = [], f'"{hub_id}"'
    else:
        begin, where = _named_base(config, family)
    if family == "diffusion":
        return _of_pipeline(export, begin, where, hub_id, config.model.dtype)
    code = ", trust_remote_code=True" if config.model.trust_remote_code else ""
    masked = "AutoModel" if code else "AutoModelForMaskedLM"
    classes = {"causal": "AutoModelForCausalLM", "reward": "AutoModelForSequenceClassification"}
    kind = classes.get(family, masked)
    lines = [
        f"model = {kind}.from_pretrained({where}{code})",
        f"tokenizer = AutoTokenizer.from_pretrained({where}{code})",
    ]
    if export.to != "merged":
        begin.append("from peft import PeftModel")
        lines.insert(1, f'model = PeftModel.from_pretrained(model, "{hub_id}")')
    return "\n".join([*begin, f"from transformers import {kind}, AutoTokenizer", "", *lines])


def _of_pipeline(export: Export, begin: list[str], where: str, hub_id: str, dtype: str) -> str:
    lines = ["", f"pipe = DiffusionPipeline.from_pretrained({where}, dtype=torch.{dtype})"]
    begin = ["import torch", "from diffusers import DiffusionPipeline", *begin]
    if export.to == "peft":
        begin.append("from peft import PeftModel")
        network = 'name = "transformer" if hasattr(pipe, "transformer") else "unet"'
        lines += [network, f'setattr(pipe, name, PeftModel.from_pretrained(getattr(pipe, name), "{hub_id}"))']
    elif export.to != "merged":
        file = f', weight_name="{export.file}"' if export.file else ""
        lines.append(f'pipe.load_lora_weights("{hub_id}"{file})')
    return "\n".join([*begin, *lines])


def _named_base(config: Config, family: str) -> tuple[list[str], str]:
    """Imports, and what the base model is called in Python."""
    if config.model.path in world_names():
        return [f"from flowrl.worlds.{config.model.path} import BASES"], f'BASES["{family}"]'
    return [], f'"{hub_base(config) or "FOLDER_OF_THE_BASE_MODEL"}"'


def heldout(metrics: Metrics, step: int | None) -> dict[str, Any] | None:
    """Rewards of the first evaluation while training and of the last up to a step; None without two."""
    names = [key.split("/")[1] for key in metrics.starting("eval/", "/mean") if key.count("/") == 2]
    rows, steps = [], metrics["step"]
    times: list[tuple[float, float]] = []
    for name in names:
        column = metrics[f"eval/{name}/mean"]
        known = [i for i in range(len(column)) if math.isfinite(column[i]) and (step is None or steps[i] <= step)]
        if len(known) > 1:
            label = "all, weighted" if name == "reward" else _cell(name)
            rows.append([label, number(column[known[0]]), number(column[known[-1]])])
            times.append((steps[known[0]], steps[known[-1]]))
    if not rows:
        return None
    first, last = (min(each) for each in zip(*times, strict=True))
    return {"first": "before training" if first == 0 else f"iteration {first:.0f}", "last": f"iteration {last:.0f}",
            "rows": rows}  # fmt: skip


def draw(metrics: Metrics, file: Path) -> bool:
    """Draw the rewards over training into a PNG file; False where nothing was logged."""
    figures = [figure for figure in reward_figures(metrics) if figure.curves][:MOST_CURVES]
    if not figures:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(4.2 * len(figures), 3.2), layout="constrained")
    FigureCanvasAgg(drawn)
    steps = metrics["step"]
    for place, figure in enumerate(figures):
        axes = drawn.add_subplot(1, len(figures), place + 1)
        for curve, color in zip(figure.curves, ("tab:blue", "tab:orange"), strict=False):
            values = metrics[curve.key]
            known = [i for i in range(len(values)) if math.isfinite(values[i])]
            axes.plot(steps[known], values[known], color=color, marker="o" if curve.dots else "", label=curve.label)
            low, high = (metrics[curve.low], metrics[curve.high]) if curve.low else (values, values)
            if curve.spread:
                low, high = values - metrics[curve.spread], values + metrics[curve.spread]
            axes.fill_between(steps[known], low[known], high[known], color=color, alpha=0.15, linewidth=0)
        axes.set(title=printable(figure.title), xlabel="iteration", ylabel=figure.note.split(";")[0].split(" ±")[0])
        axes.grid(alpha=0.3)
        axes.legend()
    drawn.savefig(file, dpi=110, metadata={"Software": None})
    return True


# ---- what the card says


def _kind(config: Config) -> str:
    return "All weights of" if config.model.full else f"LoRA of rank {config.model.lora.rank} for"


def _base(config: Config, public: Mapping[str, Any]) -> str:
    base = hub_base(config)
    if base is not None:
        return f"[{base}](https://huggingface.co/{base})"
    shown = public["model"]["path"]
    if config.model.path in world_names():
        return f"the base model of flowrl's embedded world `{shown}`"
    return "a model in a local folder" + ("" if shown == HIDDEN else f", `{_cell(shown)}`")


def _facts(
    record: Record, config: Config, public: Mapping[str, Any], algorithm: Algorithm, export: Export
) -> Iterator[tuple[str, str]]:
    spec = public["algorithm"]
    known = method(config.algorithm) or {"paper": ""}
    source = known["paper"]
    link = (
        f"[{source}](https://arxiv.org/abs/{source.removeprefix('arXiv:')})" if source.startswith("arXiv") else source
    )
    name = spec if isinstance(spec, str) else spec["use"]
    yield "algorithm", " ".join(filter(None, [f"`{_cell(name)}`", link]))
    for key, value in flat({} if isinstance(spec, str) else spec):
        if key != "use":
            yield f"`algorithm.{key}`", f"`{_cell(value)}`"
    data, train = config.data, config.train
    yield "prompts", f"`{_cell(public.get('data', {}).get('train', data.train))}`"
    size = f"{data.prompts} prompts x {data.group} samples, {counted(train.updates * train.epochs, 'optimiser steps')}"
    yield "iterations", f"{train.iterations}, each of {size}"
    rate = f"learning rate {config.optimizer.lr:g}, {config.optimizer.schedule}"
    yield "optimiser", f"`{_cell(config.optimizer.use)}`, {rate}"
    if not config.model.full:
        lora = config.model.lora
        yield "LoRA", f"rank {lora.rank}, alpha {lora.alpha:g}"
    yield "precision of the frozen network", config.model.dtype
    yield "seed", str(train.seed)
    yield "weights", f"`{export.weights}` of {export.checkpoint}"
    if not math.isnan(seconds := record.metrics.last("time")):
        on = ", ".join(record.environment.get("accelerators") or []) or "CPU"
        yield "time", f"{duration(seconds)} on {record.environment.get('ranks', 1)} x {_cell(on)}"


def _rewards(specs: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    for spec in specs:
        settings = {key: value for key, value in spec.items() if key not in ("use", "name", "weight", "device")}
        watched = "watched alone" if spec.get("train") is False or spec.get("weight") == 0 else ""
        weight = watched or ("gate" if "gate" in spec else f"{spec.get('weight', 1):g}")
        shown = ", ".join(f"`{_cell(key)}={_cell(value)}`" for key, value in flat(settings) if key != "train")
        yield [f"`{_cell(spec['use'])}`", weight, shown]


def _suites(record: Record, export: Export) -> Iterator[Mapping[str, Any]]:
    """Those of ``flowrl eval`` that judged these weights."""
    results = record.evaluation or {}
    judged = results.get("manifest", {}).get("arms", {}).get("tuned", {})
    if judged.get("checkpoint") == export.checkpoint and judged.get("weight_set") == export.weights:
        for suite in results.get("suites", {}).values():
            yield {**suite, "title": without_secrets(suite["title"])}


def _evaluated(record: Record) -> str:
    manifest = (record.evaluation or {}).get("manifest", {})
    named = ("samples", "limit", "seed", "steps", "guidance", "length", "temperature")
    return ", ".join(f"{key} {manifest[key]}" for key in named if manifest.get(key) is not None)


def _commands(record: Record, config: Config, hub_id: str) -> Iterator[str]:
    release = record.environment.get("versions", {}).get("flowrl")
    commit = str(record.environment.get("commit") or "").removesuffix("+changes")
    at = f" at commit {commit}" if commit else ""
    yield f"# flowrl {release or ''}{at}, installed from its folder: pip install -c constraints.txt -e ."
    yield f"hf download {hub_id} {CONFIG} --local-dir ."
    yield f"flowrl train {CONFIG}"
    results = record.evaluation or {}
    manifest = results.get("manifest", {})
    names = dict.fromkeys(suite["suite"] for suite in results.get("suites", {}).values())
    if names:
        options = (f"--{key} {manifest[key]}" for key in ("samples", "limit", "seed") if manifest.get(key) is not None)
        yield without_secrets(f"flowrl eval runs/{config.name} --suite {','.join(names)} {' '.join(options)}".rstrip())


def _versions(record: Record) -> str:
    found = record.environment.get("versions", {})
    return "Made with " + ", ".join(f"{name} {version}" for name, version in found.items() if version) + "."


def _license_note(config: Config, licence: Licence | None) -> str:
    if config.model.path in world_names():
        return ""
    if licence is None:
        return "The licence of the base model could not be read; it holds for these weights as well."
    return "The licence named above is the base model's."


def _metadata(
    config: Config,
    algorithm: Algorithm,
    export: Export,
    licence: Licence | None,
    suites: Sequence[Mapping[str, Any]],
    hub_id: str,
) -> ModelCardData:
    base, family = hub_base(config), algorithm.family
    task = "text-to-video" if "num_frames" in config.model.call else TASKS[family]
    data = config.data.train
    preset = config.algorithm if isinstance(config.algorithm, str) else config.algorithm["use"]
    tags = ["flowrl", "reinforcement-learning", *([] if export.to == "merged" else ["lora"])]
    world = config.model.path in world_names()
    given: dict[str, Any] = {
        "base_model": base,
        "base_model_relation": None if base is None else "finetune" if export.to == "merged" else "adapter",
        "datasets": [data.split(":")[1]] if data.startswith("hf:") else None,
        "library_name": LIBRARIES.get(
            export.to, {"diffusion": "diffusers", "control": "flowrl"}.get(family, "transformers")
        ),
        "pipeline_tag": task,
        "tags": [*tags, *([preset] if preset.isidentifier() else [])],
        "license": "apache-2.0" if world else licence and licence.name,
        "license_name": licence and licence.title,
        "license_link": licence and licence.link,
        "eval_results": [found for suite in suites if (found := _result(suite, task)) is not None] or None,
        "model_name": hub_id.split("/")[-1],
    }
    return ModelCardData(**{key: value for key, value in given.items() if value is not None})


def _result(suite: Mapping[str, Any], task: str) -> EvalResult | None:
    measure = suite["primary"]
    arm = suite["arms"].get("tuned", {})
    estimate = nested(arm.get("measures", {}), (measure, "samples" if suite["missing_tags"] else "overall"))
    if estimate is None or estimate["value"] is None:
        return None
    title = suite["title"] + (" (partial)" if suite["partial"] else "")
    return EvalResult(task, suite["suite"], title, measure, round(estimate["value"], 4))


def _step(checkpoint: str) -> int | None:
    digits = checkpoint.removeprefix("step_")
    return int(digits) if digits.isdigit() else None


def _cell(value: Any) -> str:
    """A value inside a table."""
    return " ".join(printable(str(value)).replace("|", "\\|").replace("`", "'").split())


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("flowrl.report", "templates"),
        autoescape=False,  # Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
