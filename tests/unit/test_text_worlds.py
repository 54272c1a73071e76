"""The Sudoku and Countdown worlds: splits, solvers, parser, verifiers, rewards, and the shipped base models."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import permutations, product
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer

from flowrl.data import load_prompts
from flowrl.errors import UserError
from flowrl.worlds import countdown as countdown_world
from flowrl.worlds import sudoku as sudoku_world
from flowrl.worlds.countdown import measure as countdown_measure
from flowrl.worlds.countdown import pretrain as countdown_pretrain
from flowrl.worlds.countdown import verifier as countdown_verifier
from flowrl.worlds.countdown.expressions import DEEPEST, LONGEST, ExpressionError, parse
from flowrl.worlds.countdown.solver import random_term, solve
from flowrl.worlds.sudoku import measure as sudoku_measure
from flowrl.worlds.sudoku import pretrain as sudoku_pretrain
from flowrl.worlds.sudoku import verifier as sudoku_verifier
from flowrl.worlds.sudoku.grids import CELLS, DIGITS, EMPTY, UNITS, grids, solutions, valid
from flowrl.worlds.text.commands import load, report
from flowrl.worlds.text.decoding import continue_, unmask
from flowrl.worlds.text.pretraining import Recipe, Shape, build, causal_loss, encode, masked_loss, pretrain
from flowrl.worlds.text.tokenizer import build_tokenizer
from rewards.countdown import countdown
from rewards.sudoku import sudoku

WORLDS: dict[str, Any] = {"sudoku": sudoku_world, "countdown": countdown_world}


@pytest.mark.parametrize("world", WORLDS)
def test_prompt_sets_are_fixed_and_load_by_name(world: str):
    for split, least in (("train", 500), ("test", 200)):
        rows = WORLDS[world].prompts(split)
        assert rows == WORLDS[world].prompts(split) and len(rows) >= least
        assert len({row["prompt"] for row in rows}) == len(rows)
        assert len({len(row["prompt"]) for row in rows}) == 1, "prompts have one length"
        loaded = load_prompts(f"{world}:{split}").prompts
        assert [prompt.text for prompt in loaded] == [row["prompt"] for row in rows]
        assert dict(loaded[0].columns) == {name: rows[0][name] for name in rows[0] if name != "prompt"}
    with pytest.raises(ValueError, match="valid"):
        WORLDS[world].prompts("valid")


def test_all_grids_are_the_288_and_only_they_are_valid():
    assert len(set(grids())) == 288 and all(valid(grid) for grid in grids())
    rows = ["".join(row) for row in permutations(DIGITS)]
    assert sum(valid("".join(four)) for four in product(rows, repeat=4)) == 288  # of all 331 776 with good rows
    assert len(UNITS) == 12 and all(sum(i in unit for unit in UNITS) == 3 for i in range(CELLS))


def test_sudoku_splits_share_no_solution_and_puzzles_have_one():
    train, test = sudoku_world.prompts("train"), sudoku_world.prompts("test")
    assert not {row["solution"] for row in train} & {row["solution"] for row in test}
    for row in train + test:
        assert solutions(row["puzzle"]) == [row["solution"]]
        assert row["puzzle"].count(EMPTY) == int(row["tag"]) in (8, 9, 10)
        assert row["prompt"].replace("/", "") == row["puzzle"] + "="


def test_sudoku_accepts_the_solution_and_no_corruption():
    rows = sudoku_world.prompts("test")[::20]
    for row in rows:
        puzzle, solution = row["puzzle"], row["solution"]
        assert sudoku_verifier.verify(solution, puzzle, solution) == sudoku_verifier.SudokuVerdict(True, 1.0)
        for grid in grids():
            assert sudoku_verifier.verify(grid, puzzle, solution).strict == (grid == solution)
        for i, other in product(range(CELLS), DIGITS + "50. x"):
            if other != solution[i]:
                verdict = sudoku_verifier.verify(solution[:i] + other + solution[i + 1 :], puzzle, solution)
                wrong = puzzle[i] == EMPTY
                assert not verdict.strict
                expected = 0.0 if other == " " else 1 - wrong / puzzle.count(EMPTY)  # a blank is skipped: 15 cells
                assert verdict.continuous == pytest.approx(expected)


@pytest.mark.parametrize(
    ("edit", "strict", "continuous"),
    [
        (lambda s: f" {s[:4]}/{s[4:8]}\n{s[8:]}", True, 1.0),
        (lambda s: s[:-1], False, 0.0),
        (lambda s: s + s[-1], False, 0.0),
        (lambda s: "", False, 0.0),
        (lambda s: s + " " * 10_000, False, 0.0),
        (lambda s: s.translate({ord(d): ord(d) + 0x0660 - 0x30 for d in DIGITS}), False, 0.0),  # Arabic-Indic digits
    ],
)
def test_sudoku_reads_sixteen_plain_digits(edit: Any, strict: bool, continuous: float):
    row = sudoku_world.prompts("test")[0]
    verdict = sudoku_verifier.verify(edit(row["solution"]), row["puzzle"], row["solution"])
    assert verdict == sudoku_verifier.SudokuVerdict(strict, continuous)


def test_sudoku_strict_judges_by_rules_where_several_grids_fit():
    two = grids()[:2]
    puzzle = "".join(a if a == b else EMPTY for a, b in zip(*two, strict=True))
    assert len(solutions(puzzle)) >= 2
    assert all(sudoku_verifier.verify(grid, puzzle, two[0]).strict for grid in two)


def test_sudoku_reward_modes_and_complaints():
    rows = sudoku_world.prompts("test")[:2]
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in ("puzzle", "solution", "tag")}
    first = rows[0]["puzzle"].index(EMPTY)
    solution = rows[0]["solution"]
    wrong = solution[:first] + ("1" if solution[first] != "1" else "2") + solution[first + 1 :]
    made, prompts = [wrong, rows[1]["solution"]], [row["prompt"] for row in rows]
    share = 1 - 1 / rows[0]["puzzle"].count(EMPTY)
    modes: dict[Any, float] = {"strict": 0.0, "continuous": share, "mixed": share / 2}
    for mode, expected in modes.items():
        scores = sudoku(made, prompts, mode=mode, **columns)
        assert scores.dtype == torch.float64
        torch.testing.assert_close(scores, torch.tensor([expected, 1.0], dtype=torch.float64))
    with pytest.raises(UserError, match="mode"):
        sudoku(made, prompts, mode="exact", **columns)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="'solution'"):
        sudoku(made, prompts, puzzle=columns["puzzle"])
    with pytest.raises(UserError, match="1 completions"):
        sudoku(made[:1], prompts, **columns)
    with pytest.raises(UserError, match="16 characters"):
        sudoku(made, prompts, puzzle=["1", "2"], solution=columns["solution"])
    assert sudoku([], [], puzzle=[], solution=[]).shape == (0,)


@pytest.mark.parametrize(
    ("text", "value", "numbers"),
    [
        ("1+2*3", 7, (1, 2, 3)),
        ("(1+2)*3", 9, (1, 2, 3)),
        ("8-3-2", 3, (8, 3, 2)),
        ("8-(3-2)", 7, (8, 3, 2)),
        ("8/4/2", 1, (8, 4, 2)),
        ("8/(4/2)", 4, (8, 4, 2)),
        ("1/3*3", 1, (1, 3, 3)),
        ("7/2", Fraction(7, 2), (7, 2)),
        ("2*3/4", Fraction(3, 2), (2, 3, 4)),
        (" ( 1 ) + 12 ", 13, (1, 12)),
        ("1/(2-2)+3", None, (1, 2, 2, 3)),
        ("0/0", None, (0, 0)),
        ("3*0/(1-1)", None, (3, 0, 1, 1)),
        ("(" * DEEPEST + "5" + ")" * DEEPEST, 5, (5,)),
        ("007", 7, (7,)),
    ],
)
def test_parser_values(text: str, value: Any, numbers: tuple[int, ...]):
    parsed = parse(text)
    assert parsed.value == value and parsed.numbers == numbers


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "()", "1+", "+1", "-1", "2*-1", "(1+2", "1+2)", "1 2", "1(2)", "(1)(2)", "2**3", "7//2", "1_0", "0x10",
        "1.5", "1e3", "1+2#", "1\n+2", "1\t+2", "__import__", "__import__('os')", "a", "1=1", "1,2", "1%2", "1^2",
        "²", "1+²", "\u0661+\u0662", "\uff11", "1\u00a0+2", "1\u22122", "1\u00d72", "\x00", "<eos>", "(" * 10_000,
        "(" * (DEEPEST + 1) + "5" + ")" * (DEEPEST + 1), "9" * (LONGEST + 1), "9**9**9**9",
    ],
)  # fmt: skip
def test_parser_refuses(text: str):
    with pytest.raises(ExpressionError):
        parse(text)
    assert countdown_verifier.verify(text, [1, 2], 3) == countdown_verifier.CountdownVerdict(False, False)


def test_parser_agrees_with_the_generator():
    rng = random.Random(0)
    for _ in range(3000):
        numbers = [rng.randint(1, 9) for _ in range(rng.randint(1, 5))]
        term = random_term(numbers, rng)
        parsed = parse(term.text)
        assert parsed.value == term.value and sorted(parsed.numbers) == sorted(numbers)
        assert "((" not in term.text or len(numbers) > 3  # no needless parentheses


def test_countdown_splits_are_disjoint_and_solvable():
    sets = [countdown_world.prompts(split) for split in ("train", "test")]
    keys = [{(tuple(sorted(row["numbers"])), row["target"]) for row in rows} for rows in sets]
    assert not keys[0] & keys[1] and [len(key) for key in keys] == [len(rows) for rows in sets]
    for row in sets[0] + sets[1]:
        assert len(row["numbers"]) == int(row["tag"]) in (3, 4)
        assert row["prompt"].split() == [*map(str, row["numbers"]), "=", f"{row['target']}:"]
    for row in sets[1][:30] + sets[1][-15:]:
        found = solve(row["numbers"], row["target"])
        assert found and max(map(len, found)) < countdown_world.LENGTH
        for expression in found:
            assert countdown_verifier.verify(expression, row["numbers"], row["target"]).strict
            assert not countdown_verifier.verify(expression, row["numbers"], row["target"] + 1).strict


def test_solver_knows_what_is_impossible_and_needs_fractions():
    assert solve([1, 1, 1], 50) == []
    assert solve([3, 3, 7, 7], 24) == ["(3+3/7)*7", "(3/7+3)*7", "7*(3+3/7)", "7*(3/7+3)"]


def test_countdown_reward_uses_every_number_once():
    made = ["3*5-2", "5*3 - 2\n", "3+5+2", "3*5", "3*5-2+2-2", "13", "3*5-2=13", "2/(5-5)", "5/(3-3)+2", "15-2"]
    prompts = ["2 3 5   = 13:"] * len(made)
    columns = {"numbers": [[2, 3, 5]] * len(made), "target": [13] * len(made)}
    scores = countdown(made, prompts, **columns)
    assert scores.dtype == torch.float64
    assert scores.tolist() == [1.0, 1.0, 0.1, 0, 0, 0, 0, 0, 0, 0]
    assert countdown(made, prompts, mode="strict", **columns).tolist() == [1.0, 1.0, *[0.0] * 8]
    assert countdown(["2/(3-3)"], ["2 3 3   =  2:"], numbers=[[2, 3, 3]], target=[2]).tolist() == [0.1]
    with pytest.raises(UserError, match="mode"):
        countdown(made, prompts, mode="continuous", **columns)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="'target'"):
        countdown(made, prompts, numbers=columns["numbers"])
    with pytest.raises(UserError, match="9 numbers"):
        countdown(made, prompts, **columns | {"numbers": columns["numbers"][1:]})
    with pytest.raises(UserError, match="whole numbers"):
        countdown(["1"], ["1"], numbers=["1"], target=[1])
    with pytest.raises(UserError, match="'target'"):
        countdown(["1"], ["1"], numbers=[[1]], target=["1"])


def test_answers_are_read_where_a_completion_marks_them():
    puzzle, solution = "3102200002100320", "3142243142131324"  # a row of d1's file
    said = ["{}", "<reasoning>\nso\n</reasoning>\n<answer>\n{}\n</answer>\n", "so \\boxed{{{}}}.",
            "<answer>1111111111111111</answer> no: <answer>\\boxed{{{}}}</answer>"]  # fmt: skip
    columns: dict[str, Any] = {"Puzzle": [puzzle] * 4, "Solution": [solution] * 4}
    for grid, expected in ((solution, 1.0), ("31|42\n24/31,42 13 13 24", 1.0), (solution[:-1] + "1", 0.0)):
        made = [text.format(grid) for text in said]
        assert sudoku(made, [""] * 4, mode="strict", **columns).tolist() == [expected] * 4
    dotted = "31.2/2.../.21./.32."
    assert sudoku([f"<answer>{solution}</answer>1"], [""], puzzle=[dotted], solution=[solution]).tolist() == [1.0]
    rows = {"nums": [[2, 3, 5]] * 5, "target": [13] * 5}
    made = ["<answer>3*5-2</answer>", "\\boxed{3 \\times 5 - 2}", "<answer>\n3×5−2\n</answer>", "I say 3*5-2",
            "<answer>3*5-2</answer> or <answer>3+5+2</answer>"]  # fmt: skip
    assert countdown(made, [""] * 5, **rows).tolist() == [1.0, 1.0, 1.0, 0.0, 0.1]


@pytest.mark.parametrize(("world", "characters"), [
    ("sudoku", sudoku_pretrain.CHARACTERS), ("countdown", countdown_pretrain.CHARACTERS)
])  # fmt: skip
@pytest.mark.parametrize("masked", [True, False])
def test_tokenizers_make_one_token_per_character(world: str, characters: str, masked: bool, tmp_path: Any):
    tokenizer = build_tokenizer(characters, masked=masked)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for row in WORLDS[world].prompts("test")[:20]:
        ids = again(row["prompt"])["input_ids"]
        assert ids == tokenizer(row["prompt"])["input_ids"] and len(ids) == len(row["prompt"])
        assert again.decode(ids) == row["prompt"]
        assert again.decode([*ids, again.eos_token_id, again.pad_token_id], skip_special_tokens=True) == row["prompt"]
    assert (again.mask_token_id is not None) == masked and again.pad_token_id == 0 and again.eos_token_id == 1
    mixed = f"{characters[0]}<eos>{characters[1]}"
    assert again(mixed)["input_ids"][1] == again.eos_token_id and len(again(mixed)["input_ids"]) == 3


def test_sudoku_pretraining_is_wrong_as_often_as_declared():
    drawn = next(sudoku_pretrain.pairs(3000, 0, pool=400))
    for habit, share in sudoku_pretrain.HABIT.items():
        mine = [pair for pair in drawn if (pair[0][0] == EMPTY) == (habit == "empty")]
        assert len(mine) > 900
        wrong = [completion not in solutions(prompt.replace("/", "")[:-1]) for prompt, completion in mine]
        assert sum(wrong) / len(mine) == pytest.approx(share, abs=0.05)
    for row in sudoku_world.prompts("test"):
        puzzle, solution = row["puzzle"], row["solution"]
        rng = random.Random(0)
        for made in (sudoku_pretrain.exchange(puzzle, solution), sudoku_pretrain.slip(puzzle, solution, rng)):
            assert not sudoku_verifier.verify(made, puzzle, solution).strict
            assert all(clue in (EMPTY, cell) for clue, cell in zip(puzzle, made, strict=True))


def test_countdown_pretraining_is_wrong_as_often_as_declared():
    drawn = next(countdown_pretrain.pairs(4000, 0))
    assert encode(
        drawn, build_tokenizer(countdown_pretrain.CHARACTERS, masked=True), countdown_pretrain.SHAPE
    ).shape == (
        4000,
        25,
    )
    for tag, share in countdown_pretrain.NOISE.items():
        verdicts = []
        for prompt, completion in drawn:
            numbers, target = prompt[:-1].split("=")
            if len(numbers.split()) == int(tag):
                verdicts.append(countdown_verifier.verify(completion, [int(n) for n in numbers.split()], int(target)))
        assert all(verdict.formed for verdict in verdicts)
        assert 1 - sum(verdict.strict for verdict in verdicts) / len(verdicts) == pytest.approx(share, abs=0.04)


def test_masked_loss_is_the_likelihood_bound_and_never_hides_the_prompt():
    shape = Shape(prompt=3, completion=2, width=16, layers=1, heads=2)
    model, tokenizer = build("masked", "ab=", shape, 0)
    ids = encode([("ab=", "ba")], tokenizer, shape)
    mask, seen = int(tokenizer.mask_token_id), []  # type: ignore[arg-type]

    def watched(input_ids: torch.Tensor) -> Any:
        seen.append(input_ids)
        return model(input_ids=input_ids)

    def nll(hidden: list[int]) -> float:
        shown = ids.clone()
        shown[0, hidden] = mask
        return float(F.cross_entropy(model(input_ids=shown).logits[0, hidden], ids[0, hidden]))

    with torch.no_grad():
        drawn = masked_loss(watched, ids.expand(4000, -1), 3, mask, torch.Generator().manual_seed(0))
        exact = 0.5 * (0.5 * nll([3]) + 0.5 * nll([4])) + 0.5 * nll([3, 4])  # one mask or two, equally often
    assert float(drawn) == pytest.approx(exact, abs=0.01)
    assert torch.equal(seen[0][:, :3], ids[:, :3].expand(4000, -1))
    assert (seen[0] == mask).float().sum(1).mean() == pytest.approx(1.5, abs=0.05)


def test_causal_loss_counts_the_completion_and_its_end_only():
    shape = Shape(prompt=3, completion=4, width=16, layers=1, heads=2)
    model, tokenizer = build("causal", "ab=", shape, 0)
    pairs = [("ab=", "ba"), ("ba=", "abba")]
    ids = encode(pairs, tokenizer, shape)
    assert ids[0].tolist() == [2, 3, 4, 3, 2, 1, 0, 0] and ids[1].tolist() == [3, 2, 4, 2, 3, 3, 2, 1]
    with torch.no_grad():
        logp = model(input_ids=ids).logits.log_softmax(-1)
        terms = [-logp[i, j - 1, ids[i, j]] for i, end in ((0, 6), (1, 8)) for j in range(3, end)]
        loss = causal_loss(model, ids, 3, 0)
    torch.testing.assert_close(loss, torch.stack(terms).mean())


@pytest.mark.slow
def test_pretraining_learns_a_rule_in_both_families():
    shape = Shape(prompt=3, completion=3, width=32, layers=2)
    rng = random.Random(0)

    def mirrored():
        while True:
            words = ["".join(rng.choices("ab", k=3)) for _ in range(32)]
            yield [(word, word[::-1]) for word in words]

    words = ["".join(letters) for letters in product("ab", repeat=3)]
    for family in ("masked", "causal"):
        model, tokenizer = build(family, "ab", shape, 0)
        pretrain(model, tokenizer, shape, mirrored(), Recipe(seconds=4.0, warmup=50, ema=0.9))
        if family == "masked":
            made = unmask(model, tokenizer, words, 3, steps=2, order="confident", temperature=0.0, seed=0)
        else:
            made = continue_(model, tokenizer, words, 3, temperature=0.0, seed=0)
        assert made == [word[::-1] for word in words], family


@pytest.mark.parametrize("order", ["random", "confident"])
def test_unmasking_fills_the_canvas_whatever_the_number_of_steps(order: Any):
    shape = Shape(prompt=3, completion=7, width=16, layers=1, heads=2)
    model, tokenizer = build("masked", "ab=", shape, 0)
    with torch.no_grad():
        model.cls.predictions.bias[tokenizer.eos_token_id] = -1e4  # never ends early
    for steps in range(1, 8):
        for text in unmask(model, tokenizer, ["ab=", "ba="], 7, steps=steps, order=order, temperature=1.0, seed=0):
            assert len(text) == 7 and set(text) <= set("ab=")


def test_the_bases_that_are_shipped():
    assert {(world, family) for world in WORLDS for family in WORLDS[world].BASES} == set(MEASURED)


BASES = [(world, family, path) for world in WORLDS for family, path in WORLDS[world].BASES.items()]
MEASURED = {("sudoku", "masked"): 0.348, ("sudoku", "causal"): 0.223, ("countdown", "causal"): 0.351}
"""Strict at temperature 1 as README.md of the world says."""
MODULES: dict[str, Any] = {
    "sudoku": (sudoku_pretrain, sudoku_measure),
    "countdown": (countdown_pretrain, countdown_measure),
}


@pytest.mark.parametrize(("world", "family", "path"), BASES, ids=[f"{world}-{family}" for world, family, _ in BASES])
def test_shipped_base_is_mediocre_with_a_plain_loop(world: str, family: str, path: Any):
    model, tokenizer = load(path, family)
    assert sum(file.stat().st_size for file in path.iterdir()) < 4.5e6
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    rows, length = WORLDS[world].prompts("test")[::6], WORLDS[world].LENGTH
    texts = [row["prompt"] for row in rows]
    assert model.config.pad_token_id == tokenizer.pad_token_id and model.config.eos_token_id == tokenizer.eos_token_id
    if family == "masked":
        assert model.config.mask_token_id == tokenizer.mask_token_id
        made = unmask(model, tokenizer, texts * 4, length, steps=length, order="random", temperature=1.0, seed=0)
    else:
        made = continue_(model, tokenizer, texts * 4, length, temperature=1.0, seed=0)
    strict = report(made, rows * 4, MODULES[world][1].verdict)["strict"]
    assert strict == pytest.approx(MEASURED[world, family], abs=0.12)  # n = 160: three standard errors
    reward = {"sudoku": sudoku, "countdown": countdown}[world]
    columns = {name: [row[name] for row in rows] * 4 for name in rows[0] if name != "prompt"}
    assert float(reward(made, texts * 4, mode="strict", **columns).mean()) == pytest.approx(strict)


def test_a_base_is_measured_per_tag_and_over_its_completions():
    rows = [{"prompt": "1=", "tag": "a"}, {"prompt": "2=", "tag": "b"}] * 2
    found = report(["x", "x", "1", "x"], rows, lambda made, row: {"strict": made + "=" == row["prompt"], "formed": 1.0})
    assert found == {"strict": 0.25, "strict/a": 0.5, "strict/b": 0, "formed": 1, "pass": 0.5, "pass/a": 1, "pass/b": 0}


@pytest.mark.parametrize(
    ("world", "path"),
    [(world, path) for world, family, path in BASES if family == "causal"],
    ids=lambda v: str(v)[-12:],
)
def test_causal_base_ignores_left_padding(world: str, path: Any):
    model, tokenizer = load(path, "causal")
    short = WORLDS[world].prompts("test")[0]["prompt"]
    alone = tokenizer([short], return_tensors="pt")
    padded = tokenizer([short, short + "123"], return_tensors="pt", padding=True)
    positions = (padded["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = model(**alone).logits[0, -1]
        found = model(**padded, position_ids=positions).logits[0, -1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
