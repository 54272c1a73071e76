"""Arguments and options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flowrl.cli.completion import checkpoint_names, config_files, run_folders, weight_sets

ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML file of the run.", autocompletion=config_files)
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run.", autocompletion=run_folders)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[key=value]...",
        help="Changes, such as train.iterations=50, or YAML files of keys to change.",
        autocompletion=config_files,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")]
Checkpoint = Annotated[
    str, typer.Option(help="best, latest or a checkpoint directory.", autocompletion=checkpoint_names)
]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale.")]
ModelFamily = Annotated[str | None, typer.Option("--family", help="masked or causal, of a world that has both.")]
BaseModel = Annotated[str | None, typer.Option(help="Base model of a LoRA folder that does not name it.")]
Results = Annotated[
    Path | None,
    typer.Option(help="Folder for samples and results.json; for a run, RUN/eval, which its report shows."),
]
SamplesPerPrompt = Annotated[
    int | None, typer.Option(min=1, help="Samples per prompt [default: 4; 1 where decoding is greedy].")
]
StepsGrid = Annotated[str | None, typer.Option(help="Sampling steps; several, separated by commas, make a grid.")]
SuiteData = Annotated[Path | None, typer.Option(help="JSON lines for gsm8k or math500; prompts for suites of images.")]
SuiteOptions = Annotated[list[str] | None, typer.Option(metavar="SUITE.KEY=VALUE", help="As in clip.path=FOLDER.")]
Call = Annotated[
    list[str] | None,
    typer.Option("--call", metavar="KEY=VALUE", help="Argument of the pipeline's call, such as height=512."),
]
Features = Annotated[
    str | None, typer.Option(help="CLIP or DINO (folder or hub name) whose features tell how diverse images are.")
]
Reference = Annotated[Path | None, typer.Option(help="Folder of images whose distance from the made ones is measured.")]
SelfTest = Annotated[
    bool, typer.Option("--self-test", help="Check anew what judges, and say how; nothing is scored where it fails.")
]
Weights = Annotated[
    str | None, typer.Option(help="ema or live; by default what the run evaluates.", autocompletion=weight_sets)
]


class ExportFormat(StrEnum):
    """What ``flowrl export`` can write."""

    diffusers = "diffusers"
    peft = "peft"
    kohya = "kohya"
    merged = "merged"
