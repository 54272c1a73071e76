"""``flowrl sample``: images or texts from a model or a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowrl.cli.completion import run_folders
from flowrl.cli.options import BaseModel, Call, Checkpoint, Guidance, ModelFamily, Weights
from flowrl.cli.printing import say


def sample(
    source: Annotated[str, typer.Argument(metavar="MODEL_OR_RUN", autocompletion=run_folders)],
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
    from flowrl.runtime.display import Display

    with Display() as display:
        display.stage("starting", log=False)
        from flowrl.commands.sample import SampleOptions, prompts_of
        from flowrl.commands.sample import sample as run
        from flowrl.config.overrides import apply_overrides
        from flowrl.evaluation.decoding import Decoding

        options = SampleOptions(
            count,
            seed,
            Decoding(steps, guidance, length, temperature),
            checkpoint,
            weights,
            family,
            device,
            model,
            call=apply_overrides({}, call) if call else None,
        )
        written = run(source, prompts_of(prompt), out, options, display)
    for line in written.completions:
        say(f"> {line['prompt']}\n{line['completion']}\n")
    for path in written.files:
        say(path)
