"""Prompt sets: formats, errors, and draws that depend on nothing but seed and iteration."""

import json
from collections import Counter
from pathlib import Path

import pytest

from flowrl.data import PromptFormat, PromptSet, load_prompts
from flowrl.errors import UserError
from flowrl.types import Chat, Prompt

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
        ("a.jsonl", '{"prompt": 3}\n', "should be a text or a list of messages, found 3"),
        ("a.jsonl", '{"prompt": "  "}\n', "should be a text"),
        ("a.jsonl", "[1]\n", "should be an object"),
        ("a.jsonl", '{"prompt": [3]}', "message 1: should be an object with 'role' and 'content', found 3"),
        ("a.jsonl", '{"prompt": []}', "has no message to answer"),
        ("a.jsonl", json.dumps({"prompt": [SYSTEM]}), "has no message to answer; add one of the user"),
        ("a.jsonl", '{"prompt": [{"role": "user"}]}', "'content' should be a text or a list of parts, found None"),
        ("a.jsonl", '{"prompt": [{"role": "usr", "content": "x"}]}', "no role 'usr'; did you mean 'user'"),
        ("a.jsonl", '{"prompt": [{"role": "user", "content": [{"type": "image"}]}]}', "found a part 'image'"),
        ("a.jsonl", '{"prompt": [{"role": "user", "content": " "}]}', "should be a text"),
        ("a.jsonl", '{"prompt": "x", "tools": "[3]"}', "'tools' should be a list of JSON schemas, found .3"),
        ("a.jsonl", '{"prompt": "x", "chat_template_kwargs": "[1]"}', "'chat_template_kwargs' should be an object"),
        ("a.jsonl", '{"prompt": "x", "prompt": "y"}', "line 1: the column 'prompt' occurs twice"),
        ("a.jsonl", '{"prompt": "x", "images": 3}', "'images' has the name under which rewards get the images; rename"),
        ("a.jsonl", '{"prompt": "x", "completions": 3}', "rewards get the completions"),
        ("a.jsonl", '{"prompt": "x", "group": 3}', "rewards get the number of each sample's group"),
        ("a.jsonl", "[" * 100_000, "nested too deeply"),
        ("a.jsonl", "9" * 5000, "Exceeds the limit"),
        ("a.csv", "prompt,prompt\nx,y\n", "column 'prompt' occurs twice"),
        ("a.csv", ",prompt\n0,x\n", r"column 1 has no name; .*index=False"),
        ("a.csv", "prompt;answer\nx;y\n", "has no comma"),
        ("a.csv", "prompt,answer\nx,y,z\n", "row 2: another number of columns"),
        ("a.csv", 'prompt,answer\nx,"y\nz,w\n', "not a readable table"),
        ("a.csv", "", "holds no prompts"),
        ("a.json", "", "holds no prompts"),
        ("a.json", '{"prompt": "x"}', "should hold a list, found one object"),
        ("a.json", '{"rows": []}', "should hold a list, found dict"),
        ("a.csv", "x\nx\n", "has no 'prompt'"),
        ("a.doc", "x", "expected world:split"),
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


LINE_ENDS = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r"]


@pytest.mark.parametrize("mark", LINE_ENDS, ids=ascii)
def test_only_newlines_end_a_line(tmp_path: Path, mark: str) -> None:
    """`str.splitlines` cuts at each of these."""
    text = f"a{mark}b"
    (tmp_path / "a.txt").write_bytes(f"{text}\r\nsecond\n".encode())
    assert [p.text for p in load_prompts(str(tmp_path / "a.txt")).prompts] == [text, "second"]
    if mark not in "\x0b\x0c\x1c\x1d\x1e\r":  # which JSON wants escaped
        (tmp_path / "a.jsonl").write_bytes(f'{{"prompt": "{text}"}}\r\n{{"prompt": "second"}}'.encode())
        assert [p.text for p in load_prompts(str(tmp_path / "a.jsonl")).prompts] == [text, "second"]
    (tmp_path / "a.csv").write_bytes(f'prompt,answer\r\n"{text}",1\r\nsecond,2\r\n'.encode())
    assert [p.text for p in load_prompts(str(tmp_path / "a.csv")).prompts] == [text, "second"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_and_capital_suffixes(tmp_path: Path, encoding: str) -> None:
    for name, text in (
        ("a.TXT", "café\nb"),
        ("a.JSONL", '{"prompt": "café"}\n{"prompt": "b"}'),
        ("a.Csv", "text\ncafé\nb"),
    ):
        (tmp_path / name).write_bytes(text.encode(encoding))
        assert [p.text for p in load_prompts(str(tmp_path / name)).prompts] == ["café", "b"]
    (tmp_path / "joined.txt").write_bytes("a\n".encode("utf-8-sig") + "b\n".encode("utf-8-sig"))
    assert [p.text for p in load_prompts(str(tmp_path / "joined.txt")).prompts] == ["a", "b"]


def test_tables_train_as_they_evaluate(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('question\tanswer\n2+2?\t4\n"two\nlines"\t5\n\n')
    assert load_prompts(str(tmp_path / "a.tsv")).prompts == (
        Prompt("2+2?", 0, {"answer": "4"}), Prompt("two\nlines", 1, {"answer": "5"})
    )  # fmt: skip
    (tmp_path / "b.csv").write_text('prompt,n\n"Go" sign,1\n' + f"{'x' * 200_000},2\n")
    assert [len(p.text) for p in load_prompts(str(tmp_path / "b.csv")).prompts] == [7, 200_000]


def test_lines_in_a_file_named_json_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"prompt": "x"}\n{"prompt": "y"}\n')
    assert [p.text for p in load_prompts(str(tmp_path / "a.json")).prompts] == ["x", "y"]


def test_parquet_with_verls_columns(tmp_path: Path) -> None:
    """verl: a chat as prompt, the answer nested."""
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    row = {"prompt": [USER], "reward_model": {"style": "rule", "ground_truth": "4"}, "extra_info": {"index": 7}}
    parquet.write_table(pyarrow.Table.from_pylist([row, row]), tmp_path / "a.parquet")
    form = PromptFormat({"answer": "reward_model.ground_truth", "number": "extra_info.index", "extra_info": None})
    first = load_prompts(str(tmp_path / "a.parquet"), form).prompts[0]
    assert first.text == "2+2?" and first.chat is None
    assert first.columns == {"reward_model": row["reward_model"], "answer": "4", "number": 7}
    twice = pyarrow.Table.from_arrays([pyarrow.array(["x"])] * 2, names=["prompt", "prompt"])
    parquet.write_table(twice, tmp_path / "b.parquet")
    with pytest.raises(UserError, match="column 'prompt' occurs twice"):
        load_prompts(str(tmp_path / "b.parquet"))


def test_columns_and_templates(tmp_path: Path) -> None:
    """GSM8K, MATH with braces, Countdown with lists, and JSON text in a table."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "2+2?", "answer": "#### 4", "nums": [3, 4], "target": 7}))
    spec = str(tmp_path / "a.jsonl")

    def one(template: str | None = None, **columns: str | None) -> Prompt:
        return load_prompts(spec, PromptFormat(columns, template)).prompts[0]

    assert one(prompt="question", answer="answer", gold="nums.1") == Prompt(
        "2+2?", 0, {"answer": "#### 4", "gold": 4, "nums": [3, 4], "target": 7}
    )
    assert one(r"{question} Put it in \boxed{{}}.").text == r"2+2? Put it in \boxed{}."
    assert one("Make {goal:03d} of {nums}.", goal="target").text == "Make 007 of [3, 4]."
    assert one("{target}", target="target", question=None).columns == {"answer": "#### 4", "nums": [3, 4], "target": 7}
    (tmp_path / "b.csv").write_text('meta,task\n"{""truth"": {""x"": [5, 6]}}",2\n')
    row = load_prompts(str(tmp_path / "b.csv"), PromptFormat({"truth": "meta.truth.x.1"}, "{task}")).prompts[0]
    assert (row.text, row.columns["truth"]) == ("2", 6)
    for template, match in (
        (r"\boxed{}", r"{} names no column"),
        ("{0.real}", "is not a column"),
        ("{question!r}", "names no column"),
        ("{question.__class__}", "is not a column"),
        ("{a[0]}", "names no column"),
        ("{", "a brace that is meant is written twice"),
        ("{questio}", "did you mean 'question'"),
        ("{question:d}", "cannot show '2[+]2[?]'"),
    ):
        with pytest.raises(UserError, match=match):
            one(template)
    with pytest.raises(UserError, match=r"takes 'prompt' from 'qustion', .*did you mean 'question'"):
        one(prompt="qustion")
    assert one(prompt="question", other_images="target").columns["other_images"] == 7


def test_a_taken_name_can_be_renamed_or_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "x", "images": ["a.png"]}')
    spec = str(tmp_path / "a.jsonl")
    assert load_prompts(spec, PromptFormat({"my_images": "images"})).prompts[0].columns == {"my_images": ["a.png"]}
    assert load_prompts(spec, PromptFormat({"images": None})).prompts[0].columns == {}


CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def test_conversations(tmp_path: Path) -> None:
    """System messages, turns, parts, tools (also as JSON text) and calls; what Arrow fills up with None is left out."""
    turns = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL], "name": None},
        {"role": "tool", "content": [{"type": "text", "text": "4"}, {"type": "text", "text": "!"}]},
    ]
    rows = [
        {"messages": [SYSTEM, USER], "answer": "4"},
        {"prompt": turns, "tools": [{**TOOL, "extra": None}]},
        {"messages": json.dumps(turns), "tools": json.dumps([TOOL])},
        {"prompt": "2+2?", "tools": [json.dumps(TOOL)], "chat_template_kwargs": {"enable_thinking": False}},
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "It is"}]},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    system, calls, as_text, options, shared = load_prompts(str(tmp_path / "a.jsonl")).prompts
    assert (system.text, system.columns, system.chat) == ("2+2?", {"answer": "4"}, Chat.of([SYSTEM, USER]))
    assert calls.chat is not None and calls.chat == as_text.chat and calls.text == "user: 2+2?\nassistant:\ntool: 4!"
    made = calls.chat.messages[1]["tool_calls"][0]["function"]
    assert made == {"name": "add", "arguments": {"a": 1}} and "content" not in calls.chat.messages[1]
    assert calls.chat.tools == [TOOL] and not calls.chat.continued
    assert options.chat == Chat.of([USER], [TOOL], {"enable_thinking": False}) and options.model_input == options.chat
    assert shared.chat is not None and shared.chat.continued
    assert hash(calls.chat) == hash(as_text.chat)


def test_slices(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps({"prompt": str(i)}) for i in range(20)))
    for spec in (f"{tmp_path}/train.jsonl", f"hf:{tmp_path}:train"):
        for part, expected in (
            ("[:3]", range(3)),
            ("[-2:]", range(18, 20)),
            ("[10%:25%]", range(2, 5)),
            ("[15:]", range(15, 20)),
        ):
            assert [p.text for p in load_prompts(spec + part).prompts] == [str(i) for i in expected], spec + part
    assert [p.id for p in load_prompts(f"{tmp_path}/train.jsonl[5:7]").prompts] == [0, 1]
    assert len(load_prompts("shapes:test[:7]")) == 7
    for spec, match in (
        (f"{tmp_path}/train.jsonl[3]", "a slice looks like"),
        ("shapes:test[900000:]", "holds no prompts"),
    ):
        with pytest.raises(UserError, match=match):
            load_prompts(spec)
    (tmp_path / "odd[:2].txt").write_text("a\nb\nc")
    assert len(load_prompts(f"{tmp_path}/odd[:2].txt")) == 3
