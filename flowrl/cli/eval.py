"""``flowrl eval``: score a model, a run or images on suites."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flowrl.cli.completion import run_folders
from flowrl.cli.options import (
    BaseModel,
    Call,
    Checkpoint,
    Features,
    Guidance,
    Json,
    ModelFamily,
    Reference,
    Results,
    SamplesPerPrompt,
    SelfTest,
    StepsGrid,
    SuiteData,
    SuiteOptions,
)
from flowrl.cli.printing import say
from flowrl.errors import UserError


def evaluate(
    target: Annotated[str, typer.Argument(metavar="MODEL_OR_RUN_OR_IMAGE_DIR", autocompletion=run_folders)],
    suite: Annotated[str, typer.Option(help="Names of suites, separated by commas.")],
    out: Results = None,
    checkpoint: Checkpoint = "best",
    samples: SamplesPerPrompt = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use so many prompts, evenly over their tags.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 42,
    steps: StepsGrid = None,
    guidance: Guidance = None,
    length: Annotated[str | None, typer.Option(help="Tokens of a completion, at most; one or several.")] = None,
    temperature: Annotated[str | None, typer.Option(help="Of language models, 0 is greedy; one or several.")] = None,
    base: Annotated[bool, typer.Option(help="Also judge the model before training.")] = True,
    family: ModelFamily = None,
    model: BaseModel = None,
    data: SuiteData = None,
    option: SuiteOptions = None,
    self_test: SelfTest = False,
    features: Features = None,
    reference: Reference = None,
    call: Call = None,
    as_json: Json = False,
) -> None:
    """Judge a model, a run or images. Example: `flowrl eval runs/quickstart --suite geneval`

    Language models: `flowrl eval runs/quickstart_masked_lm --suite sudoku --steps 4,8,16 --temperature 0,1`
    """
    from flowrl.runtime.display import Display

    with Display() as display:
        display.stage("starting", log=False)
        from flowrl.config.overrides import apply_overrides
        from flowrl.evaluation import evaluate as run
        from flowrl.evaluation.decoding import numbers

        folder = _results_folder(target, out)
        results = run(
            target,
            [name.strip() for name in suite.split(",") if name.strip()],
            folder,
            checkpoint=checkpoint,
            samples=samples,
            limit=limit,
            seed=seed,
            steps=numbers("--steps", steps, int),
            guidance=guidance,
            length=numbers("--length", length, int),
            temperature=numbers("--temperature", temperature, float),
            call=apply_overrides({}, call) if call else None,
            base=base,
            family=family,
            model=model,
            data=data,
            options=apply_overrides({}, option or []),
            self_test=self_test,
            features=features,
            reference=reference,
            display=display,
        )
    _print(results, folder, as_json)


def _print(results: dict[str, Any], folder: Path, as_json: bool) -> None:
    from flowrl.evaluation import show

    if as_json:
        print(json.dumps(results, indent=1))
        return
    show(results)
    say(f"results: {folder / 'results.json'}")


def _results_folder(target: str, out: Path | None) -> Path:
    """Where an evaluation writes. Raises `UserError` where the user must say it."""
    from flowrl.records.directory import RunDirectory

    run = RunDirectory(Path(target))
    if out is None and not run.exists():
        raise UserError(f"--out: name a folder for the results; {target} is not a run, which would have one")
    return out or run.eval_path
