"""Prompt sets: formats, errors, and draws that depend on nothing but seed and iteration."""

import json
from collections import Counter
from pathlib import Path

import pytest

from flowrl.data import PromptSet, load_prompts
from flowrl.errors import UserError
from flowrl.types import Prompt

SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}


TWO = """---
configs:
- {config_name: main, data_files: [{split: train, path: train.jsonl}]}
- {config_name: hard, data_files: [{split: train, path: test.jsonl}]}
---
"""


def prompt_set(count: int) -> PromptSet:
    return PromptSet(tuple(Prompt(f"p{i}", i) for i in range(count)))


def test_draw_is_a_function_of_seed_and_iteration() -> None:
    prompts = prompt_set(50)
    late_first = [prompts.draw(i, 7, seed=3) for i in (20, 4, 11)]
    assert late_first == [prompts.draw(i, 7, seed=3) for i in (20, 4, 11)]
    assert prompts.draw(4, 7, seed=3) != prompts.draw(4, 7, seed=4)
    assert prompts.draw(4, 7, seed=3) != prompts.draw(5, 7, seed=3)


@pytest.mark.parametrize(("size", "count"), [(10, 3), (10, 10), (10, 5), (7, 6), (5, 1)])
def test_draws_have_no_repeats_and_visit_evenly(size: int, count: int) -> None:
    prompts, rounds = prompt_set(size), 600
    drawn = [prompts.draw(i, count, seed=0) for i in range(rounds)]
    assert all(len({p.id for p in draw}) == count for draw in drawn)
    visits = Counter(p.id for draw in drawn for p in draw)
    expected = rounds * count / size
    assert set(visits) == set(range(size))
    assert all(abs(n - expected) < 0.15 * expected for n in visits.values())


def test_within_an_epoch_nothing_repeats() -> None:
    prompts = prompt_set(12)
    epoch = [p.id for i in range(4) for p in prompts.draw(i, 3, seed=1)]
    assert sorted(epoch) == list(range(12))
    assert epoch != [p.id for i in range(4, 8) for p in prompts.draw(i, 3, seed=1)]


def test_more_prompts_than_the_set_repeats_evenly() -> None:
    counts = Counter(p.id for p in prompt_set(4).draw(3, 10, seed=0))
    assert set(counts) == {0, 1, 2, 3}
    assert max(counts.values()) - min(counts.values()) <= 1 and sum(counts.values()) == 10


def test_formats_give_the_same_prompts_and_keep_columns(tmp_path: Path) -> None:
    rows = [{"prompt": "a cat", "tag": "x", "n": 2}, {"prompt": "eine Katze 猫", "tag": "y", "n": 3}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n")
    (tmp_path / "a.json").write_text(json.dumps(rows))
    lines, listed = load_prompts(str(tmp_path / "a.jsonl")), load_prompts(str(tmp_path / "a.json"))
    assert lines == listed
    assert lines.prompts[1] == Prompt("eine Katze 猫", 1, {"tag": "y", "n": 3})
    (tmp_path / "a.txt").write_text("a cat\n\n  eine Katze 猫  \n")
    assert [(p.text, p.id, p.columns) for p in load_prompts(str(tmp_path / "a.txt")).prompts] == [
        ("a cat", 0, {}),
        ("eine Katze 猫", 1, {}),
    ]


def test_a_chat_of_one_message_is_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": [USER], "answer": "4"}))
    assert load_prompts(str(tmp_path / "a.jsonl")).prompts == (Prompt("2+2?", 0, {"answer": "4"}),)


def test_data_sets_of_the_hub_by_their_library(tmp_path: Path) -> None:
    """On a folder, which the library opens as it opens a repository: of one configuration, and of two."""
    rows = [{"question": "2+2?", "answer": "so #### 4"}, {"question": "2+3?", "answer": "so #### 5"}]
    for name in ("plain", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "two/test.jsonl").write_text(json.dumps(rows[1]))
    (tmp_path / "two/README.md").write_text(TWO)
    expected = [Prompt(row["question"], i, {"answer": row["answer"]}) for i, row in enumerate(rows)]
    assert list(load_prompts(f"hf:{tmp_path}/plain:train").prompts) == expected
    assert list(load_prompts(f"hf:{tmp_path}/two:main:train").prompts) == expected
    assert len(load_prompts(f"hf:{tmp_path}/two:hard:train")) == 1
    for spec, match in (
        (f"hf:{tmp_path}/two:train", "Config name is missing"),
        (f"hf:{tmp_path}/plain:dev", "could not be loaded: .*dev"),
        ("hf:a:b:c:d", "hf:owner/name:configuration:split"),
        ("hf:plain", "should look like"),
    ):
        with pytest.raises(UserError, match=match):
            load_prompts(spec)


def test_world_splits_are_disjoint_and_carry_metadata() -> None:
    train, test = load_prompts("shapes:train"), load_prompts("shapes:test")
    assert not {p.text for p in train.prompts} & {p.text for p in test.prompts}
    assert all(p.columns["include"] and p.columns["tag"] for p in (*train.prompts, *test.prompts))


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("a.txt", "\n \n", "holds no prompts"),
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": \n', r"line 2: not JSON"),
        ("a.jsonl", '{"prompt": "x"}\n{"text_": "x"}\n', r"entry 2: has no 'prompt' \(it has 'text_'\)"),
        ("a.jsonl", '{"prompt": 3}\n', "should be a text, found 3"),
        ("a.jsonl", '{"prompt": "  "}\n', "should be a text"),
        ("a.jsonl", "[1]\n", "should be an object"),
        ("a.jsonl", json.dumps({"prompt": [SYSTEM, USER]}), "has a system message; set model.system"),
        (
            "a.jsonl",
            json.dumps({"prompt": [USER, USER]}),
            r"found the roles \['user', 'user'\]",
        ),
        ("a.jsonl", '{"prompt": [3]}', r"found the roles \[None\]"),
        ("a.jsonl", '{"prompt": [{"role": "user"}]}', "should be a text"),
        ("a.json", '{"prompt": "x"}', "should hold a list, found dict"),
        ("a.csv", "x", "expected world:split"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, match: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=match):
        load_prompts(str(tmp_path / name))


def test_bad_bytes_and_unknown_sources(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match="UTF-8"):
        load_prompts(str(tmp_path / "a.txt"))
    with pytest.raises(UserError, match="did you mean 'train'"):
        load_prompts("shapes:trian")
    with pytest.raises(UserError, match="did you mean 'shapes:train'"):
        load_prompts("shape:train")
