"""``python -m website.catalogue``: writes ``docs/algorithms``, the list of all presets and a page for each, and deletes
pages of presets that are gone. A test fails while a page is not up to date."""

from __future__ import annotations

import inspect
import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from flowrl.checks.registry import CHECKS
from flowrl.commands.algorithms import algorithm_rows, without_paper
from flowrl.commands.config import algorithm_lines
from flowrl.composition import build, find_preset
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.loss_weights import Uniform
from tests import fidelity
from website.marks import code, plain, table

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "algorithms"
QUICKSTARTS = {
    "diffusion": "configs/quickstart.yaml",
    "masked": "configs/quickstart_masked_lm.yaml",
    "causal": "configs/quickstart_causal_lm.yaml",
    "control": "configs/quickstart_control.yaml",
    "reward": "configs/countdown_reward_model.yaml",
}
"""The config whose world a preset of each family is tried on."""
GRADIENT = {
    "Transitions": "The mean of every trained step of the recorded trajectory; states and noise are data.",
    "Matching": "The velocity at noised samples; samples, times and noise are data.",
    "ContrastedMatching": "The velocity at noised samples; samples, times, noise and old velocities are data.",
    "SharedTransitions": "The mean of every trained step, once for all that share it; states and noise are data.",
    "VisitedStates": "The prediction at states that the sampler visited; the states are data.",
    "Directions": "The velocity at states that the sampler visited; states, direction and old velocities are data.",
    "Replay": "Reward, decoding and the replayed steps: through their states too, unless `estimator.inputs` is false.",
    "Renoise": "Reward, decoding and one network prediction at the sample with fresh noise, which is data.",
    "RelativeRenoise": "Reward, decoding and one network prediction at the sample with known noise, which is data.",
    "Adjoint": "The mean of the trained steps; the adjoint, from the reward's gradient at the sample, is data.",
    "BoundaryMatching": "The velocity at noised states of the sampler; states, times and noise are data.",
    "TrajectoryMatching": "The velocity at noised states of the sampler; predictions, times and noise are data.",
    "TrajectoryDifference": "The clean latent that every step predicts; the scores and their differences are data.",
    "PredictedMatching": "The velocity at noised predictions of the sampler's steps; predictions and noise are data.",
    "ScoreDifference": "The clean latent that a recorded step predicts; both scores and their difference are data.",
    "PerDecision": "At every decision of an episode, what its estimator asks of the policy; the episode is data.",
    "OptimizedActions": "The flow at noised improved chunks, which are data: the critic's slope moves no weights.",
    "EditedActions": "The flow at noised chunks, and through what the editor adds the critics; episodes are data.",
    "OneStepQ": "The flow at noised chunks, the one-step chunk, and through the chunk the critics; episodes are data.",
    "DecoupledQ": "The flow at noised chunks, and the critics of decisions and observations; episodes are data.",
    "AdjointQ": "Both flows and the critics; the path, its adjoint, and the critics' gradient there are data.",
    "LabelledMatching": "The velocity at noised chunks, without a label and with one; chunks and noise are data.",
    "ChunkMatching": "The velocity at noised chunks, past actions among them; chunks, times and noise are data.",
    "TwoEvaluations": "Both answers of the network; the second one's input is made of the recorded chunk.",
    "Perturbation": "The velocity at one point of the recorded path; the path and the noise at its end are data.",
    "NoisyChain": "The mean of every step of the chain and the deviation of its noise; the states are data.",
    "Tokens": "The log-probability of every token of the completion after its recorded beginning.",
    "ResidualActions": "The mean of what is added to every action, and the critic; the policy itself stays as it is.",
    "CategoricalActions": "The log-probability of every choice of a chunk, and the critic; the choices are data.",
    "GaussianActions": "The mean and the deviation of every action chunk, and the critic; actions are data.",
    "Ratings": "The network's number at the last token of prompt and completion.",
    "MaskedViews": "The log-probability of the hidden tokens of every view; which ones are hidden is data.",
}
"""What the gradient passes through, by estimator."""
METRICS = {
    "grad_norm": "norm of the gradient before clipping; steady, and finite",
    "ratio/mean": "mean of new over old likelihood; near 1",
    "clip_fraction": "share of the decisions whose gradient the clip stops; 0 at the first update, seldom above .3",
    "entropy": "mean entropy of a token in nats; falling to 0 means that sampling no longer explores",
    "zero_std_fraction": "share of groups whose samples score the same; they teach nothing",
}
"""Logged numbers without a self-check: what they are and what is healthy."""
SOURCES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "website" / "sources.yaml").read_text(encoding="utf-8"))
"""By preset: ``code``, lines of its release as ``owner/name@commit:path:first-last``; ``reported``, its own numbers."""
RELEASED = re.compile(r"([\w.-]+/[\w.-]+)@([0-9a-f]{7,40}):([^:]+):(\d+)-(\d+)")


def pages() -> dict[str, str]:
    """``NAME.md`` to its text, for every preset."""
    fidelity.collect()
    rows, found = algorithm_rows(), evidence()
    return {"README.md": index(rows), **{f"{row['name']}.md": page(row, found.get(row["name"], [])) for row in rows}}


def index(rows: Sequence[Mapping[str, Any]]) -> str:
    """The list of all."""
    head = f"""# Algorithms

{len(rows)} presets, one for each published method. A preset is data, and any part of it can be exchanged:
[Extending flowrl](../extending.md). [How each compares with its authors' code](../fidelity.md). On the command line:
`flowrl algorithms` (`--family`, `--slot`, `--source`), `flowrl algorithms NAME`, `flowrl algorithms NAME --diff OTHER`.
"""
    tables = [
        f"\n## {title}\n\n"
        + table(
            ["name", "source", "objective", "advantage", "method"],
            [_row(row) for row in rows if family in row["families"]],
        )
        for family, title in fidelity.FAMILIES.items()
    ]
    return head + "".join(tables)


def _row(row: Mapping[str, Any]) -> list[str]:
    method = plain(without_paper(row["summary"], row["paper"]))
    parts = [code(row["parts"][slot]["use"]) for slot in ("objective", "advantage")]
    return [f"[`{row['name']}`]({row['name']}.md)", _source(row["paper"]), *parts, method]


def page(row: Mapping[str, Any], measured: list[str]) -> str:
    """The page of a preset; the headings are the same on all."""
    name, algorithm = row["name"], build(row["name"])
    sections = {
        "Run it": running(name, row["families"]),
        "What it computes": computing(algorithm),
        "Options": options(name),
        "What it logs": logged(algorithm),
        "Cost": cost(algorithm),
        "Where gradient flows": flowing(algorithm),
        "Against the release": compared(name),
        "Measured": results(name, measured),
    }
    head = f"""# {name}

{plain(without_paper(row["summary"], row["paper"]))}

{plain(" ".join((inspect.getdoc(find_preset(name)) or "").split()))}

Source: {_source(row["paper"])}. Family: {", ".join(row["families"])}. Code:
[flowrl/algorithms/{name}.py](../../flowrl/algorithms/{name}.py).
"""
    return head + "".join(f"\n## {title}\n\n{text.rstrip()}\n" for title, text in sections.items())


def _source(paper: str) -> str:
    number = paper.removeprefix("arXiv:")
    return f"[{paper}](https://arxiv.org/abs/{number})" if number != paper else plain(paper)


FILE, FOLDER_OF_PICTURES = "data.jsonl", "pictures/"
"""Stand for data of the user's own in a command."""


def running(name: str, families: list[str]) -> str:
    """A command for each family, on its embedded world."""
    lines = []
    for place, family in enumerate(families):
        needs = [f"algorithm={spec(name, family, chosen=bool(place))}", *further(name, family)]
        words = [*(f'"{need}"' for need in needs), f"name={name}"]
        lines.append(f"flowrl train {QUICKSTARTS[family]} {' '.join(words)}")
    said = f"In a config: `algorithm: {{use: {name}}}`."
    named = ", ".join(f"`{column}`" for column in ("prompt", *_columns(build(name))))
    if any(FILE in line for line in lines):
        said += f" `{FILE}` has a line for each prompt, with {named}."
    if any(FOLDER_OF_PICTURES in line for line in lines):
        said += f" `{FOLDER_OF_PICTURES}` holds pictures, each beside a text file of the same name with its prompt."
    return "```bash\n" + "\n".join(lines) + f"\n```\n\n{said}"


SIZES: dict[str, dict[str, Any]] = {
    "diffusion": {},
    "causal": {"length": 17, "budgets": [4, 8, 12], "think_end": "", "cut": "", "bridge": ""},
    "reward": {"length": 24},
    "masked": {"length": 16, "steps": 8, "block": 8},
    "control": {},
}
"""Of completions of the embedded worlds, whose models have no words to think in."""


def spec(name: str, family: str, chosen: bool) -> str:
    """What ``algorithm`` is on the embedded world; ``chosen``: the family is not the preset's first."""
    given = _given(name, family, chosen)
    return (
        name if len(given) == 1 else "{" + ", ".join(f"{key}: {_written(value)}" for key, value in given.items()) + "}"
    )


def _written(value: Any) -> str:
    """In YAML."""
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    return "''" if value == "" else str(value)


def _given(name: str, family: str, chosen: bool) -> dict[str, Any]:
    known = inspect.signature(find_preset(name)).parameters
    given = {"use": name, **({"family": family} if chosen else {})}
    given |= {key: value for key, value in SIZES[family].items() if key in known}
    if "columns" in known and known["columns"].default == ("completion",) and family != "diffusion":
        given["columns"] = ["solution"]
    return given


def _columns(algorithm: Algorithm) -> tuple[str, ...]:
    """The columns of a data set that a preset reads its samples from."""
    return (*getattr(algorithm.sampler, "columns", ()), *getattr(algorithm.sampler, "ratings", ()))


def further(name: str, family: str) -> list[str]:
    """What a preset needs to be set besides, to run on an embedded world."""
    algorithm = build(_given(name, family, chosen=family != build(name).family))
    sampler, found, columns = algorithm.sampler, [], _columns(algorithm)
    if algorithm.judged:
        found.append("rewards=[shapes_soft]")
    if columns and columns != ("solution",) and family != "reward":  # whose config has pairs
        source = {("image",): FOLDER_OF_PICTURES, ("observed", "action"): "avoid:demonstrations"}
        found.append(f"data.train={source.get(columns, FILE)}")
    size = getattr(sampler, "group", 0) or getattr(sampler, "tree", 0)
    if size > 1 or (columns and size == 1):
        found.append(f"data.group={size}")
    if any((vars(part).get("guidance") or 1.0) != 1.0 for part in (sampler, algorithm.estimator)):
        found.append("model.call.guidance_scale=3")
    if family == "control" and not algorithm.valued:  # whose quickstart has a critic
        found += ["optimizer.critic_lr=null", "optimizer.critic_warmup=0"]
    if algorithm.teachers:
        path = "shapes" if family == "diffusion" else "sudoku"
        taught = ", ".join(f"{teacher}: {{path: {path}}}" for teacher in algorithm.teachers)
        found.append(f"teachers={{{taught}}}")
    return found


def computing(algorithm: Algorithm) -> str:
    """The composed formula: every part in its place, with what its own text says."""
    rows = [[code(slot), code(_name(part)), plain(_about(type(part)))] for slot, part in _parts(algorithm)]
    terms = [f"{term.weight:g} x {_name(term)}" for term in algorithm.regularizers if term.weight]
    loss = " + ".join([" x ".join(map(_name, (*algorithm.loss_masks, algorithm.objective))), *terms])
    weight = "" if isinstance(algorithm.loss_weight, Uniform) else f"{_name(algorithm.loss_weight)} x "
    return f"`loss = {_name(algorithm.aggregation)} of {weight}({loss})`\n\n" + table(
        ["slot", "part", "what it is"], rows
    )


SLOTS = (
    "sampler",
    "estimator",
    "advantage",
    "token_advantage",
    "selection",
    "replay",
    "loss_weight",
    "loss_masks",
    "objective",
    "regularizers",
    "aggregation",
    "combination",
    "coefficients",
    "ema_weights",
    "companions",
)


def _parts(algorithm: Algorithm) -> Iterator[tuple[str, Any]]:
    for slot in SLOTS:
        value = getattr(algorithm, slot)
        for part in value if isinstance(value, tuple) else (value,):
            if part is not None:
                yield slot, part


def _name(part: Any) -> str:
    return type(part).__name__


def _about(kind: type) -> str:
    """The first paragraph of a part's text."""
    text = inspect.getdoc(kind) or ""
    first = "" if text.startswith(f"{kind.__name__}(") else " ".join(text.split("\n\n")[0].split())
    return first.replace(" | ", " ∣ ")  # GitHub ends a cell at a bar, also inside code


def options(name: str) -> str:
    """Every option with its value and meaning."""
    lines = [line for line in algorithm_lines(name) if line.key != "algorithm"]
    cells = [[code(line.key.removeprefix("algorithm.")), code(line.value), plain(line.meaning)] for line in lines]
    return (
        f"Set beside `use`, as in `algorithm: {{use: {name}, KEY: VALUE}}`, or on the command line by "
        "`algorithm.KEY=VALUE`.\n\n" + table(["key", "value", "meaning"], cells)
    )


def logged(algorithm: Algorithm) -> str:
    """The numbers of an update that this composition logs, and what is healthy."""
    text, clipped = algorithm.family in ("masked", "causal"), algorithm.objective.clip_range is not None
    shown = {"clip_fraction": clipped, "entropy": text, "ratio/mean": algorithm.objective.needs_old_logp}
    rows = [[code(key), plain(what)] for key, what in METRICS.items() if shown.get(key, True)]
    rows += [[code(term.name), f"penalty, weight {term.weight:g}"] for term in algorithm.regularizers if term.weight]
    checked = [
        check for check in CHECKS if check.metric.startswith("ratio/") and (clipped or "outside" not in check.name)
    ]
    rows += [[code(check.metric), plain(check.what)] for check in checked]
    return (
        table(["metric", "meaning"], rows)
        + "\nHealthy ranges of all self-checks: [self_checks.md](../self_checks.md), or `flowrl doctor --explain`."
    )


def cost(algorithm: Algorithm) -> str:
    """Network forwards per sample."""
    decisions, rows = algorithm.estimator.decisions(algorithm.sampler.recorded)
    frozen = rows * len({*algorithm.references, *algorithm.estimator.references})
    return (
        f"Per sample, at the preset's own sizes: {algorithm.sampler.forwards} network forwards to sample, {rows} with"
        f" gradient (a forward and a backward, about three forwards) for {decisions} decisions, and {frozen} of frozen"
        " weights. Guidance by a second branch doubles forwards."
    )


def flowing(algorithm: Algorithm) -> str:
    """What carries gradient."""
    branch = {"cond": "the conditional branch alone", "both": "both branches"}
    given, scale = getattr(algorithm.estimator, "cfg_grad", None), getattr(algorithm.estimator, "guidance", None)
    guided = "" if given is None or scale == 1.0 else f" Under guidance: {branch[given]}."
    asked = getattr(algorithm.estimator, "estimator", algorithm.estimator)  # of every decision of an episode
    return GRADIENT[type(asked).__name__] + guided


def compared(name: str) -> str:
    """The statements of docs/fidelity.md about a preset."""
    release = fidelity.RELEASES.get(name)
    lines = fidelity.details(name)
    if release is None or not lines:
        return "Not compared."
    said = f"{plain(release)}. Each line is a test that computes the released numbers itself.\n\n"
    if files := [_released(file) for file in SOURCES.get(name, {}).get("code", [])]:
        said += f"Its lines in the release: {', '.join(files)}.\n\n"
    return said + "\n".join(lines)


def _released(file: str) -> str:
    """A link to lines of a public repository. Raises `ValueError` for another form than that of `SOURCES`."""
    found = RELEASED.fullmatch(file)
    if found is None:
        raise ValueError(f"{file!r} of website/sources.yaml is not owner/name@commit:path:first-last")
    repository, commit, path, first, last = found.groups()
    where = f"https://github.com/{repository}/blob/{commit}/{path}#L{first}-L{last}"
    return f"[{repository.split('/')[1]} {path} {first}-{last}]({where})"


def results(name: str, measured: list[str]) -> str:
    """Held-out scores of committed runs, beside what the source reports."""
    lines = measured or ["unmeasured: no committed run of this preset."]
    if reported := SOURCES.get(name, {}).get("reported"):
        lines = [*lines, "", f"Its source reports, with its own models and data: {reported}"]
    return "\n".join(lines)


def evidence() -> dict[str, list[str]]:
    """By preset: its held-out scores in docs/evidence, mean of the seeds at the end."""
    found: dict[str, list[str]] = {}
    for file in sorted((ROOT / "docs/evidence/data").glob("*.json")):
        for arm, kept in json.loads(file.read_text()).get("arms", {}).items():
            acts = "overrides" not in kept  # benchmarks.evidence.control: [environment steps, success, seconds] by seed
            name = arm if acts else _preset_of(kept["overrides"])
            runs = [run["points"] for run in (kept if acts else kept["runs"]).values()]
            if name is None or not runs:
                continue
            score, made = (1, 0) if acts else (0, 1)
            begin = statistics.fmean(points[0][score] for points in runs)
            end, samples = (statistics.fmean(points[-1][place] for points in runs) for place in (score, made))
            found.setdefault(name, []).append(
                f"- [{file.stem}](../evidence/{file.stem}.md), arm `{arm}`: held-out score {begin:.3f} to {end:.3f} "
                f"after {samples:.0f} {'environment steps' if acts else 'samples'}, {len(runs)} seeds."
            )
    return found


def _preset_of(overrides: list[str]) -> str | None:
    for each in overrides:
        key, _, value = each.partition("=")
        if key in ("algorithm", "algorithm.use"):
            given = yaml.safe_load(value)
            return given["use"] if isinstance(given, dict) else given
    return None


def main() -> None:
    """Write all pages."""
    FOLDER.mkdir(exist_ok=True)
    made = pages()
    for old in FOLDER.glob("*.md"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
