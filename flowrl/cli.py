"""The command line. Each command imports what it needs when it runs, so that ``--help`` is immediate."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from flowrl.errors import UserError
from flowrl.printing import print_findings, print_pairs, print_table
from flowrl.remote.command import reward_server

app = typer.Typer(
    name="flowrl",
    help="Fine-tune generative models with reinforcement learning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of the run.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value]...", help="Changes, such as train.iterations=50.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")]
Checkpoint = Annotated[str, typer.Option(help="best, latest or a checkpoint directory.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale.")]
ModelFamily = Annotated[str | None, typer.Option("--family", help="masked or causal, of a world that has both.")]
BaseModel = Annotated[str | None, typer.Option(help="Base model of a LoRA folder that does not name it.")]
SuiteData = Annotated[Path | None, typer.Option(help="JSON lines for gsm8k or math500; prompts for suites of images.")]
SuiteOptions = Annotated[list[str] | None, typer.Option(metavar="SUITE.KEY=VALUE", help="As in clip.path=FOLDER.")]
Weights = Annotated[str | None, typer.Option(help="ema or live; by default what the run evaluates.")]


class ExportFormat(StrEnum):
    """What ``flowrl export`` can write."""

    diffusers = "diffusers"
    peft = "peft"
    merged = "merged"


def main() -> None:
    """Entry point: a user's mistake is one sentence and exit code 2, a bug keeps its traceback."""
    usage_error: Any = typer.BadParameter.__bases__[0].__bases__[0]  # click's, wherever this typer keeps it
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        _fail(str(error))
    except usage_error as error:
        _fail(error.format_message())
    except (typer.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text(f"error: {message}", style="red"), soft_wrap=True)
    sys.exit(2)


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[str | None, typer.Option(help="auto, a run, or a checkpoint to go on from.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and show the plan; load and train nothing.")
    ] = False,
) -> None:
    """Train. Example: `flowrl train configs/quickstart.yaml train.iterations=50`"""
    from flowrl.config import Config
    from flowrl.runtime.preflight import check

    plan = check(Config.load(config, overrides or []))
    if dry_run:
        from flowrl.runtime.listing import parts_of

        facts = {"run": plan.config.name, "directory": str(plan.config.directory), "config": str(config)}
        print_pairs([*facts.items(), *plan.geometry.lines(), *_parts(parts_of(plan.algorithm))])
        return
    from flowrl import train as run

    directory = run(plan.config, resume=resume)
    print(f"{directory}  (flowrl report {directory})")


@app.command("config")
def show_config(
    config: ConfigFile,
    overrides: Overrides = None,
    as_yaml: Annotated[bool, typer.Option("--yaml", help="Print the resolved config as YAML.")] = False,
) -> None:
    """Show every key with its value and meaning. Example: `flowrl config configs/quickstart.yaml --yaml`"""
    from flowrl.config import Config
    from flowrl.runtime.preflight import check

    loaded = Config.load(config, overrides or [])
    check(loaded)
    print(loaded.to_yaml() if as_yaml else loaded.explain(), end="" if as_yaml else "\n")


@app.command("eval")
def evaluate(
    target: Annotated[str, typer.Argument(metavar="MODEL_OR_RUN_OR_IMAGE_DIR")],
    suite: Annotated[str, typer.Option(help="Names of suites, separated by commas.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for samples and results.json; for a run, RUN/eval, which its report shows."),
    ] = None,
    checkpoint: Checkpoint = "best",
    samples: Annotated[
        int | None, typer.Option(min=1, help="Samples per prompt [default: 4; 1 where decoding is greedy].")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use so many prompts, evenly over their tags.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 42,
    steps: Annotated[
        str | None, typer.Option(help="Sampling steps; several, separated by commas, make a grid.")
    ] = None,
    guidance: Guidance = None,
    length: Annotated[str | None, typer.Option(help="Tokens of a completion, at most; one or several.")] = None,
    temperature: Annotated[str | None, typer.Option(help="Of language models, 0 is greedy; one or several.")] = None,
    base: Annotated[bool, typer.Option(help="Also judge the model before training.")] = True,
    family: ModelFamily = None,
    model: BaseModel = None,
    data: SuiteData = None,
    option: SuiteOptions = None,
    as_json: Json = False,
) -> None:
    """Judge a model, a run or images. Example: `flowrl eval runs/quickstart --suite geneval`

    Language models: `flowrl eval runs/quickstart_masked_lm --suite sudoku --steps 4,8,16 --temperature 0,1`
    """
    from flowrl.config.reading import apply_overrides
    from flowrl.evaluation import evaluate as run
    from flowrl.evaluation import show
    from flowrl.evaluation.decoding import numbers
    from flowrl.runtime.directory import RunDirectory

    run_directory = RunDirectory(Path(target))
    if out is None and not run_directory.exists():
        raise UserError(f"--out: name a folder for the results; {target} is not a run, which would have one")
    names = [name.strip() for name in suite.split(",") if name.strip()]
    results = run(
        target,
        names,
        out or run_directory.eval_path,
        checkpoint=checkpoint,
        samples=samples,
        limit=limit,
        seed=seed,
        steps=numbers("--steps", steps, int),
        guidance=guidance,
        length=numbers("--length", length, int),
        temperature=numbers("--temperature", temperature, float),
        base=base,
        family=family,
        model=model,
        data=data,
        options=apply_overrides({}, option or []),
    )
    print(json.dumps(results, indent=1, ensure_ascii=False)) if as_json else show(results)


@app.command()
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
) -> None:
    """Make images or texts. Example: `flowrl sample runs/quickstart --prompt "a red circle" --out images`"""
    from flowrl.evaluation.decoding import Decoding
    from flowrl.runtime.sampling import Wish, prompts_of
    from flowrl.runtime.sampling import sample as run

    decoding = Decoding(steps, guidance, length, temperature)
    wish = Wish(count, seed, decoding, checkpoint, weights, family, device, model)
    written = run(source, prompts_of(prompt), out, wish)
    for line in written.completions:
        print(f"> {line['prompt']}\n{line['completion']}\n")
    for path in written.files:
        print(path)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN")],
    to: Annotated[ExportFormat, typer.Option(help="LoRA for diffusers or PEFT, or the whole model.")],
    out: Annotated[Path, typer.Option(help="New folder.")],
    checkpoint: Checkpoint = "best",
    weights: Weights = None,
) -> None:
    """Write trained weights, and verify them. Example: `flowrl export runs/quickstart --to diffusers --out lora`"""
    from flowrl.config import Config
    from flowrl.runtime.directory import RunDirectory
    from flowrl.runtime.restore import adopt, evaluated, policy_of_run

    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out: {out} already exists and is not empty; name a new folder")
    chosen = weights or evaluated(Config.load(RunDirectory.open(run).config_path))
    policy = policy_of_run(run, checkpoint)
    adopt(policy, chosen)
    difference = policy.export(out, to=to.value)
    print(f"{out}: {to.value} with the {chosen} weights; reloaded, predictions differ by at most {difference:.1e}")


@app.command()
def report(run: Annotated[Path, typer.Argument(metavar="RUN")]) -> None:
    """Write RUN/report.html, one self-contained page. Example: `flowrl report runs/quickstart`"""
    from flowrl.report import write

    print(write(run))


@app.command()
def doctor(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="Also try this run's model and rewards.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Check the machine, and a config on it. Example: `flowrl doctor configs/quickstart.yaml`"""
    from flowrl.config import Config
    from flowrl.runtime.doctor import machine, patient

    loaded = Config.load(config, overrides or []) if config else None
    symptoms = machine(loaded.directory if loaded else Path("runs"))
    print_findings([(s.name, s.state, s.detail) for s in symptoms])
    bad = any(symptom.state == "bad" for symptom in symptoms)
    for symptom in patient(loaded) if loaded else ():
        print_findings([(symptom.name, symptom.state, symptom.detail)])
        bad |= symptom.state == "bad"
    if bad:
        raise typer.Exit(2)


@app.command()
def algorithms(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]")] = None,
    diff: Annotated[str | None, typer.Option(metavar="OTHER", help="Show only what OTHER does differently.")] = None,
    as_json: Json = False,
) -> None:
    """List algorithms, or show the parts of one. Example: `flowrl algorithms flow_grpo --diff dance_grpo`"""
    from flowrl.runtime.listing import algorithm_rows, differences

    if diff is not None:
        if name is None:
            raise UserError("--diff: name two algorithms, as in `flowrl algorithms flow_grpo --diff dance_grpo`")
        lines = differences(name, diff)
        print(json.dumps(lines, indent=1)) if as_json else print_table(["", name, diff], lines)
        return
    rows = algorithm_rows(name)
    if as_json:
        print(json.dumps(rows, indent=1))
    elif name is not None:
        print_pairs([("paper", rows[0]["paper"]), ("summary", rows[0]["summary"]), *_parts(rows[0]["parts"])])
    else:
        print_table(["name", "paper", "summary"], [[row["name"], row["paper"], row["summary"]] for row in rows])


@app.command()
def rewards(as_json: Json = False) -> None:
    """List the rewards that come with flowrl. Example: `flowrl rewards --json`"""
    from flowrl.score import list_rewards

    found = list_rewards()
    if as_json:
        print(
            json.dumps([{"name": r.name, "kind": r.kind, "range": r.range, "needs": r.needs} for r in found], indent=1)
        )
    else:
        rows = [[r.name, r.kind, r.range, ", ".join(r.needs), r.summary] for r in found]
        print_table(["name", "kind", "range", "needs", "what"], rows)


@app.command("test-reward")
def test_reward(
    reward: Annotated[str, typer.Argument(metavar="PATH.py:FUNCTION")],
    prompts: Annotated[
        str | None, typer.Option(help="Prompts (and columns) to score with [default: shapes:test or sudoku:test].")
    ] = None,
    count: Annotated[int, typer.Option(min=2, help="Samples to score.")] = 8,
    size: Annotated[int, typer.Option(min=1, help="Side of the test images in pixels.")] = 32,
    text: Annotated[bool, typer.Option("--text", help="Score texts instead of images.")] = False,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the reward.")] = None,
) -> None:
    """Check that a reward keeps its promises. Example: `flowrl test-reward my_rewards.py:brightness`"""
    from flowrl.config.reading import apply_overrides
    from flowrl.data import load_prompts
    from flowrl.score.conformance import examine

    every = load_prompts(prompts or ("sudoku:test" if text else "shapes:test")).prompts
    count = min(count, len(every))
    chosen = [every[i * len(every) // count] for i in range(count)]
    findings = examine(reward, chosen, size=size, text=text, options=apply_overrides({}, option or []))
    print_findings([(f.check, "ok" if f.passed else "bad", f.detail) for f in findings])
    failed = [finding.check for finding in findings if not finding.passed]
    if failed:
        raise UserError(f"{reward} fails: {', '.join(failed)}")


@app.command()
def compare(
    configs: Annotated[list[Path], typer.Argument(metavar="A.yaml B.yaml... [key=value]...")],
    seeds: Annotated[int, typer.Option(min=1, help="Runs per config, with train.seed 0, 1, ...")] = 3,
    out: Annotated[Path, typer.Option(help="Folder for the runs; finished ones are not trained again.")] = Path(
        "runs/compare"
    ),
) -> None:
    """Train configs with several seeds each. Example: `flowrl compare a.yaml b.yaml --seeds 3 train.iterations=20`"""
    import flowrl
    from flowrl.runtime.comparing import compare as run
    from flowrl.runtime.comparing import mean_and_error

    files = [path for path in configs if "=" not in path.name]
    changes = [str(path) for path in configs if path not in files]
    outcomes = run(files, changes, seeds, out, lambda config: flowrl.train(config, resume="auto"))
    rows = []
    for outcome in outcomes:
        end, gain = mean_and_error(outcome.end), mean_and_error(outcome.gain)
        minutes = sum(outcome.seconds) / len(outcome.seconds) / 60
        cells = [f"{mean:.4f} ± {error:.4f}" for mean, error in (end, gain)]
        rows.append([outcome.name, *cells, f"{outcome.samples:,.0f}", f"{minutes:.1f}"])
    print_table(["name", "evaluation (± s.e.)", "gain (± s.e.)", "samples", "minutes"], rows)


app.command("reward-server")(reward_server)


def _parts(parts: dict[str, Any]) -> list[tuple[str, str]]:
    from flowrl.runtime.listing import part_text

    return [(slot, part_text(value)) for slot, value in parts.items()]
