"""Commands about what a run or a model makes: eval, sample, export, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flowrl.cli.options import (
    BaseModel,
    Call,
    Checkpoint,
    ExportFormat,
    Guidance,
    Json,
    ModelFamily,
    Results,
    SamplesPerPrompt,
    StepsGrid,
    SuiteData,
    SuiteOptions,
    Weights,
)
from flowrl.commands.printing import say
from flowrl.errors import UserError


def evaluate(
    target: Annotated[str, typer.Argument(metavar="MODEL_OR_RUN_OR_IMAGE_DIR")],
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
    call: Call = None,
    as_json: Json = False,
) -> None:
    """Judge a model, a run or images. Example: `flowrl eval runs/quickstart --suite geneval`

    Language models: `flowrl eval runs/quickstart_masked_lm --suite sudoku --steps 4,8,16 --temperature 0,1`
    """
    from flowrl.runtime.progress import Display

    with Display() as shown:
        shown.stage("starting", log=False)
        from flowrl.config.reading import apply_overrides
        from flowrl.evaluation import evaluate as run
        from flowrl.evaluation import show
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
            display=shown,
        )
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


def sample(
    source: Annotated[str, typer.Argument(metavar="MODEL_OR_RUN")],
    prompt: Annotated[list[str], typer.Option(help="A prompt, or prompts:SPEC such as prompts:shapes:test.")],
    out: Annotated[Path, typer.Option(help="Folder for the images, or for completions.jsonl.")],
    count: Annotated[int, typer.Option(min=1, help="Samples per prompt.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps.")] = None,
    guidance: Guidance = None,
    length: Annotated[int | None, typer.Option(min=1, help="Tokens of a completion, at most.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="Of language models; 0 is greedy.")] = None,
    checkpoint: Checkpoint = "best",
    weights: Weights = None,
    family: ModelFamily = None,
    model: BaseModel = None,
    device: Annotated[str, typer.Option(help="Device of a model that is not a run.")] = "auto",
    call: Call = None,
) -> None:
    """Make images or texts. Example: `flowrl sample runs/quickstart --prompt "a red circle" --out images`"""
    from flowrl.runtime.progress import Display

    with Display() as shown:
        shown.stage("starting", log=False)
        from flowrl.commands.sampling import Wish, prompts_of
        from flowrl.commands.sampling import sample as run
        from flowrl.config.reading import apply_overrides
        from flowrl.evaluation.decoding import Decoding

        decoding, given = Decoding(steps, guidance, length, temperature), apply_overrides({}, call) if call else None
        wish = Wish(count, seed, decoding, checkpoint, weights, family, device, model, given)
        written = run(source, prompts_of(prompt), out, wish, shown)
    for line in written.completions:
        say(f"> {line['prompt']}\n{line['completion']}\n")
    for path in written.files:
        say(path)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN")],
    to: Annotated[ExportFormat, typer.Option(help="LoRA for diffusers, PEFT, kohya and ComfyUI; or the model.")],
    out: Annotated[Path, typer.Option(help="New folder.")],
    checkpoint: Checkpoint = "best",
    weights: Weights = None,
) -> None:
    """Write trained weights, and verify them. Example: `flowrl export runs/quickstart --to diffusers --out lora`"""
    from flowrl.runtime.progress import Display

    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out: {out} already exists and is not empty; name a new folder")
    with Display() as shown:
        shown.stage("starting", log=False)
        from flowrl.config import Config
        from flowrl.models import export_policy
        from flowrl.records.directory import RunDirectory
        from flowrl.runtime.restore import adopt, evaluated, policy_of_run

        config = Config.load(RunDirectory.open(run).config_path)
        chosen = weights or evaluated(config)
        shown.stage(f"loading the model {config.model.path}")
        policy = policy_of_run(run, checkpoint)
        adopt(policy, chosen)
        shown.stage("writing, loading again and comparing")
        difference = export_policy(policy, out, to.value)
    say(f"{out}: {to.value} with the {chosen} weights; reloaded, predictions differ by at most {difference:.1e}")


def report(run: Annotated[Path, typer.Argument(metavar="RUN")]) -> None:
    """Write RUN/report.html, one self-contained page. Example: `flowrl report runs/quickstart`"""
    from flowrl.report import write

    say(write(run))
