"""Text rewards: every rule by numbers, hostile strings, a stub endpoint, and a tiny reward model."""

import http.server
import json
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from flowrl.errors import UserError
from flowrl.score import list_rewards, load_rewards
from flowrl.scorers.endpoint import Endpoint, EndpointOptions
from flowrl.types import Prompt, Samples
from rewards._extraction import after_hashes, boxed, last_number, latex, number, plain, tagged
from rewards.exact_match import exact_match
from rewards.format_tags import format_tags
from rewards.json_schema import json_schema
from rewards.judge import judge, read_score
from rewards.length_penalty import length_penalty, repetition_penalty
from rewards.math_answer import found_answer, gold_answer, math_answer
from rewards.reward_model import reward_model

torch.set_num_threads(1)


def one(values: torch.Tensor) -> float:
    return float(values[0])


def test_they_are_listed_and_called_like_every_reward() -> None:
    entries = {entry.name: entry for entry in list_rewards()}
    mine = "exact_match math_answer format_tags json_schema length_penalty repetition_penalty reward_model judge"
    for name in [*mine.split(), "code_tests"]:
        assert entries[name].kind == "text" and entries[name].summary, name
        assert entries[name].range != "unknown", name
    assert not [name for name in entries if name.startswith("_") or "Endpoint" in name]
    prompts = [Prompt("a", 0, {"answer": "42"}), Prompt("b", 1, {"answer": "7"})]
    rewards = load_rewards([{"use": "exact_match", "options": {"extract": "number"}}, {"use": "format_tags"}])
    scores = rewards.raw(Samples(prompts, completions=["it is 42.", "8"]))
    assert scores[:, 0].tolist() == [1, 0]
    with pytest.raises(UserError, match="needs the column 'answer'"):
        load_rewards(["exact_match"]).raw(Samples([Prompt("a", 0)], completions=["x"]))


# --- extraction


def test_extraction() -> None:
    assert boxed(r"a \boxed{1} b \boxed{\frac{1}{2}} c") == r"\frac{1}{2}"
    assert boxed(r"\boxed{\{1, 2\}}") == r"\{1, 2\}" and boxed(r"\boxed{1} \boxed{2") == "1"
    assert (
        boxed(r"\boxed 5$") == "5" and boxed(r"\fbox{x}") == "x" and boxed("box") is None and boxed(r"\boxed{") is None
    )
    assert (
        tagged("<answer>1</answer><answer> 2\n3 </answer> <answer>4") == "2\n3" and tagged("</answer><answer>") is None
    )
    assert after_hashes("x\n#### 1,000\ny") == "1,000" and after_hashes("####") is None
    for text, found in {
        "3-2": "2",
        "= -2": "-2",
        "$1,234.50.": "$1,234.50",
        "3/4 .": "3/4",
        "5, 6,": "6",
        "no": None,
    }.items():
        assert last_number(text) == found, text
    assert plain(" $1,000 \n x. ") == "1000 x" and plain("1,00") == "1,00"
    assert latex(r"\left( \dfrac 12 , 3 \right)") == latex(r"(\frac{1}{2},3)")
    assert (
        latex(r"90^\circ") == "90" == latex(r"90\text{ cm}") and latex(r"\text{Bob}") == "Bob" and latex("1 2") == "1 2"
    )
    values = {"1/2": 0.5, r"-\frac{1}{2}": -0.5, "0.50": 0.5, r"50\%": 0.5, "1,000": 1000, "$18": 18, ".5": 0.5}
    for text, value in values.items():
        assert number(text) == value, text
    for text in ("", "x", "1/0", "1 1/2", "3--5", "9^9", "½", "٣", "1e5", "9" * 500):
        assert number(text) is None, text


@pytest.mark.parametrize(
    "piece", [r"\boxed{", "<answer>", "</answer>", "#### ", "1 ", "9", "```json\n", " ", "\\text{", "score: "]
)
def test_hostile_texts_are_read_in_linear_time(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    start = time.process_time()
    (
        found_answer(text, False),
        latex(text),
        json_schema(schema={})([text], [""]),
        format_tags([text], [""]),
        read_score(text, 0, 1),
    )
    for mode in ("strict", "soft", "count"):
        format_tags([text], [""], mode=mode)  # type: ignore[arg-type]
    assert time.process_time() - start < 3


def test_exact_match() -> None:
    texts = ["The answer is $1,000.", "<answer> 1000 </answer>", "x #### 1000\n", r"\boxed{1000}", "1000", "999"]
    expected = {"number": [1, 1, 1, 1, 1, 0], "answer": [0, 1, 0, 0, 0, 0], "hashes": [0, 0, 1, 0, 0, 0],
                "boxed": [0, 0, 0, 1, 0, 0], "none": [0, 0, 0, 0, 1, 0]}  # fmt: skip
    for extract, scores in expected.items():
        assert exact_match(texts, [""] * 6, ["1000"] * 6, extract=extract).tolist() == scores, extract  # type: ignore[arg-type]
    assert exact_match(["42"], [""], ["so it is\n#### 42"], credit=0.5).tolist() == [0.5]
    assert exact_match(["Paris "], [""], ["paris"]).tolist() == [0]
    assert exact_match(["Paris "], [""], ["paris"], ignore_case=True).tolist() == [1]
    assert exact_match(["x"], [""], [None]).isnan().all() and exact_match(["7"], [""], [7]).tolist() == [1]
    with pytest.raises(UserError, match="did you mean 'number'"):
        exact_match(["x"], [""], ["x"], extract="numbers")  # type: ignore[arg-type]


# --- math


def test_where_answers_stand() -> None:
    assert gold_answer("She has 4.\n#### 18") == "18" and gold_answer(r"so $\boxed{\pi}$.") == r"\pi"
    assert gold_answer(" 42 ") == "42" and gold_answer(" ") is None
    text = "first 1, <answer>2</answer>\n#### 3"
    assert found_answer(text + r"\boxed{4}", False) == "4" and found_answer(text, False) == "2"
    assert found_answer("#### 3 and 5", False) == "3 and 5" and found_answer("so 5 or 6.", False) == "6"
    assert found_answer("so 5 or 6.", True) is None and found_answer("#### 3", True) == "3"


@pytest.fixture(scope="module")
def maths() -> Iterator[math_answer]:
    reward = math_answer(timeout=20.0, workers=1)
    yield reward
    reward.close()


EQUAL = [
    (r"\frac{1}{2}", r"0.5"), (r"\frac{\sqrt{8}}{2}", r"\sqrt{2}"), ("x^2+2x+1", "(x+1)^2"), (r"\{1,2\}", r"\{2, 1\}"),
    ("(1,2)", "( 1, 2 )"), ("5", "x=5"), (r"10\sqrt 2", r"\sqrt{200}"), (r"\frac{\pi}{2}", r"\pi/2"), ("50\\%", "0.5"),
    (r"\text{Evelyn}", "Evelyn"), (r"90^\circ", "90"), ("1,000", "1000.0"), (r"\$18", "18"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
]  # fmt: skip
DIFFERENT = [
    ("5", "6"),
    (r"\sqrt{2}", "1.4"),
    ("(1,2)", "(2,1)"),
    ("x+1", "x-1"),
    (r"\text{Evelyn}", r"\text{Bob}"),
    ("3", ""),
]


def test_math_by_value(maths: math_answer) -> None:
    for gold, answer in EQUAL:
        assert one(maths([rf"so \boxed{{{answer}}}."], [""], [gold])) == 1, (gold, answer)
    for gold, answer in DIFFERENT:
        assert one(maths([rf"so \boxed{{{answer}}}."], [""], [gold])) == 0, (gold, answer)
    gsm = maths(["she makes 9 * 2 = $18 a day", "18 it is, not 17"], [""] * 2, ["Janet ...\n#### 18"] * 2)
    assert gsm.tolist() == [1, 0]
    assert maths.timeouts == maths.crashes == 0
    assert maths(["1"], [""], [None]).isnan().all() and maths([r"\boxed{x}"], [""], ["  "]).isnan().all()
    assert one(maths([r"\boxed{" + "1+" * 400 + "1}"], [""], ["401"])) == 0  # too long to be asked
    words = math_answer(mode="string")
    assert words([r"\boxed{\dfrac12}", r"\boxed{(x+1)^2}"], [""] * 2, [r"\frac{1}{2}", "x^2+2x+1"]).tolist() == [1, 0]
    assert words._pool._workers[0].child is None  # needs no computer algebra
    strict = math_answer(mode="string", strict_format=True)
    assert strict(["it is 5", "#### 5"], [""] * 2, ["5", "5"]).tolist() == [0, 1]


@pytest.mark.slow
def test_a_hanging_answer_costs_one_zero_and_one_timeout() -> None:
    maths = math_answer(timeout=3.0, workers=1)
    assert one(maths([r"\boxed{x+x}"], [""], ["2x"])) == 1
    before, start = maths.timeouts, time.monotonic()
    hostile = [r"\boxed{9^{9^{9^{9}}}}", r"\boxed{9**9**9**9}", r"\boxed{(10^8)!}"]
    scores = maths([*hostile, r"\boxed{\sqrt{4}}", hostile[0]], [""] * 5, ["7", "7", "7", "2", "7"])
    assert scores.tolist() == [0, 0, 0, 1, 0]
    assert 1 <= maths.timeouts - before + maths.crashes + maths.failures <= 3
    assert maths.timeouts - before >= 1
    assert time.monotonic() - start < 3 * 3.0 + 60  # three deadlines and three starts; equal pairs are asked once
    assert one(maths([r"\boxed{(x+1)^2}"], [""], ["x^2+2x+1"])) == 1
    maths.close()


def test_math_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install .*\[text\]"):
        math_answer()
    with pytest.raises(UserError, match=r"pip install .*\[text\]"):
        json_schema(schema={})


# --- form


def test_format_tags() -> None:
    good = "<reasoning>\na\nb\n</reasoning>\n<answer>\n4\n</answer>\n"
    tight = "<reasoning>a</reasoning><answer>4</answer>"
    texts = [good, tight, good + "x", "x" + good, good + tight, "<reasoning>a</reasoning><answer> </answer>", "",
             "<answer>4</answer><reasoning>a</reasoning>", "<reasoning>a<answer>4</answer>"]  # fmt: skip
    expected = {
        "exact": [1, 1, 0, 0, 0, 0, 0, 0, 0],
        "strict": [1, 0, 0, 0, 0, 0, 0, 0, 0],
        "soft": [1, 1, 1, 0, 1, 1, 0, 0, 0],
    }
    for mode, scores in expected.items():
        assert format_tags(texts, [""] * 9, mode=mode).tolist() == scores, mode  # type: ignore[arg-type]
    count = format_tags(texts[:3], [""] * 3, mode="count")
    assert count.tolist() == pytest.approx([1, 0, 1 - 0.001])
    assert one(format_tags([good + "z" * 2000], [""], mode="count", weight=0.5)) == pytest.approx(0.5 * (1 - 2))
    assert format_tags(["<think>a</think>"], [""], tags=["think"], weight=0.5).tolist() == [0.5]
    with pytest.raises(UserError, match="mode is one of"):
        format_tags([""], [""], mode="loose")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="without brackets"):
        format_tags([""], [""], tags=["<answer>"])


def test_json_schema() -> None:
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "minimum": 1}}}
    reward = json_schema(schema=schema)
    texts = ['{"a": 1}', '{"a": 0}', "[1]", "{a: 1}", 'So:\n```json\n{"a": 2}\n```\nbye', 'So {"a": 2}', '{"a": NaN}',
             '{"a": 0, "a": 1}', "[" * 100_000, "", '{"a": ' + "9" * 5000 + "}"]  # fmt: skip
    assert reward(texts, [""] * len(texts)).tolist() == [1, 0.5, 0.5, 0, 1, 0, 0, 0, 0, 0, 0]
    assert json_schema(schema=schema, fenced=False)([texts[4]], [""]).tolist() == [0]
    assert json_schema(schema=schema, valid_credit=0)([texts[1]], [""]).tolist() == [0]
    columns = json_schema()(["1", "1", "1"], [""] * 3, schema=[{"type": "string"}, '{"type": "integer"}', None])
    assert columns.tolist()[:2] == [0.5, 1] and columns[2].isnan()
    with pytest.raises(UserError, match="column 'schema'"):
        json_schema()(["1"], [""])
    with pytest.raises(UserError, match="no JSON schema"):
        json_schema(schema={"type": "nonsense"})(["1"], [""])
    for use in ({"$ref": "http://localhost:1/x.json"}, {"properties": {"a": {"$ref": "http://localhost:1/x"}}}):
        with pytest.raises(UserError, match="outside of itself"):
            json_schema(schema=use)(['{"a": 1}'], [""])
    local = {"$defs": {"n": {"type": "integer"}}, "items": {"$ref": "#/$defs/n"}}
    assert json_schema(schema=local)(["[1, 2]", '["x"]'], [""] * 2).tolist() == [1, 0.5]


def test_length_penalty_is_equation_13_of_dapo(tmp_path: Path) -> None:
    texts = ["w " * n for n in (0, 5, 6, 8, 10, 11, 50)]
    expected = [0, 0, 0, -0.5, -1, -1, -1]
    assert length_penalty(texts, [""] * 7, limit=10, buffer=4).tolist() == expected
    marks = length_penalty(["x" * 9], [""], limit=10, buffer=4, unit="characters")
    assert marks.tolist() == [-0.75]
    folder = str(save_tokenizer(tmp_path))
    tokens = length_penalty(["abc", "a" * 8], [""] * 2, limit=10, buffer=4, unit="tokens", tokenizer=folder)
    assert tokens.tolist() == [0, -0.5]
    for options, words in [({"limit": 4, "buffer": 5}, "buffer"), ({"limit": 4, "buffer": 0}, "buffer"),
                           ({"limit": 4, "buffer": 1, "unit": "tokens"}, "tokenizer"),
                           ({"limit": 4, "buffer": 1, "unit": "tokens", "tokenizer": "/no"}, "cannot be loaded"),
                           ({"limit": 4, "buffer": 1, "unit": "lines"}, "unit is")]:  # fmt: skip
        with pytest.raises(UserError, match=words):
            length_penalty(["x"], [""], **options)


def test_repetition_penalty() -> None:
    texts = ["a b c d", "a a a a a", "a b a b", "a", ""]
    assert repetition_penalty(texts, [""] * 5, n=2).tolist() == pytest.approx([0, -0.75, -1 / 3, 0, 0])
    assert repetition_penalty(["aaaa"], [""], n=1, weight=0.5, unit="characters").tolist() == [-0.375]
    with pytest.raises(UserError, match="at least 1"):
        repetition_penalty(["x"], [""], n=0)


# --- judge


class Stub:
    """An endpoint on this machine that answers as told: `plan` maps text and try to (status, headers, body)."""

    def __init__(self, plan: Callable[[str, int], tuple[int, dict[str, str], bytes]]) -> None:
        self.plan, self.seen, self.tries = plan, [], {}
        self.running = self.most = 0
        self.lock = threading.Lock()
        stub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = json.dumps(body["messages"])
                with stub.lock:
                    stub.running += 1
                    stub.most = max(stub.most, stub.running)
                    stub.seen.append((self.path, dict(self.headers), body, time.monotonic()))
                    attempt = stub.tries[text] = stub.tries.get(text, -1) + 1
                status, headers, answer = stub.plan(text, attempt)
                with stub.lock:
                    stub.running -= 1
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    for part in (answer[:5], answer[5:]):
                        self.wfile.write(part)
                        self.wfile.flush()
                        time.sleep(float(headers.get("X-Slow", 0)))
                except (BrokenPipeError, ConnectionResetError):
                    return

            def log_message(self, *_: Any) -> None:
                return

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Stub]]:
    stubs: list[Stub] = []

    def start(plan: Callable[[str, int], tuple[int, dict[str, str], bytes]]) -> Stub:
        stubs.append(Stub(plan))
        return stubs[-1]

    yield start
    for stub in stubs:
        stub.close()


def says(text: Any) -> tuple[int, dict[str, str], bytes]:
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    return 200, {}, json.dumps({"choices": [{"message": {"content": text}}], "usage": usage}).encode()


QUICK = {"model": "m", "backoff": 0.01, "timeout": 0.6}


def test_reading_scores() -> None:
    replies = {"Score: 10": 1, "score: 1\nthen **Score:** 5.5.": 0.5, "Score: 4/10": 1 / 3, "Score = 1": 0}
    for reply, score in replies.items():
        assert read_score(reply, 1, 10) == pytest.approx(score), reply
    for reply in ("", "10", "Score: high", "Score: 11", "Score: -3", "Score: 4/5", "Scored 7"):
        assert read_score(reply, 1, 10) is None, reply
    assert read_score("Score: 0.25", 0, 1) == 0.25


def test_judge_scores_and_leaves_out_what_it_cannot(serve: Callable[..., Stub]) -> None:
    answers = {"good": "fine. Score: 10", "bad": "Score: 1", "mute": "I refuse", "none": None, "wild": "Score: 55"}
    stub = serve(lambda text, _: says(next(v for k, v in answers.items() if f"<{k}>" in text)))
    reward = judge(url=stub.url, rubric="Be {kind}.", system="S", **QUICK)
    scores = reward([f"<{key}> {{x}}" for key in answers], ["{prompt}"] * 5)
    assert scores[:2].tolist() == [1, 0] and scores[2:].isnan().all()
    assert reward.counts["unparsable"] == 2 and reward.counts["completion_tokens"] == 10
    path, headers, body, _ = stub.seen[0]
    assert path == "/v1/chat/completions" and "Authorization" not in headers
    assert body["model"] == "m" and body["temperature"] == 0
    assert body["messages"][0] == {"role": "system", "content": "S"}
    text = body["messages"][1]["content"]
    assert "Be {kind}." in text and "{prompt}" in text and "{x}" in text and "from 1 to 10" in text
    fence = text.split("<<<PROMPT ")[1].split()[0]
    assert text.count(fence) == 4


def test_retries_follow_the_server(serve: Callable[..., Stub]) -> None:
    def plan(text: str, attempt: int) -> tuple[int, dict[str, str], bytes]:
        failures = [(429, {"Retry-After": "1"}, b""), (503, {}, b"busy"), (200, {}, b"<html>garbage"), (200, {}, b"[]")]
        return failures[attempt] if attempt < len(failures) else says("Score: 10")

    stub = serve(plan)
    reward = judge(url=stub.url, rubric="", **QUICK)
    assert reward(["a"], ["b"]).tolist() == [1]
    times = [seen[3] for seen in stub.seen]
    assert len(times) == 5 and times[1] - times[0] >= 1 and times[4] - times[1] < 1
    assert reward.counts["retries"] == 4 and reward.counts["unreadable"] == 2 and reward.counts["failures"] == 0
    impatient = judge(url=stub.url, rubric="", max_wait=0.05, **QUICK)
    start = time.monotonic()
    assert impatient(["other"], ["b"]).tolist() == [1] and time.monotonic() - start < 1


def test_waits_double_with_jitter_and_a_bound() -> None:
    endpoint = Endpoint(EndpointOptions(url="http://x", model="m", backoff=1, max_wait=10))
    for attempt, full in enumerate([1, 2, 4, 8, 10, 10]):
        waits = [endpoint._backoff.seconds(attempt) for _ in range(50)]
        assert full / 2 <= min(waits) < max(waits) <= full
    assert endpoint._backoff.seconds(0, 5.0) == 5 and endpoint._backoff.seconds(0, 500.0) == 10


def test_failures_become_nan_with_a_warning(serve: Callable[..., Stub]) -> None:
    def plan(text: str, _: int) -> tuple[int, dict[str, str], bytes]:
        if "slow" in text:
            time.sleep(1.5)
        if "drip" in text:
            return 200, {"X-Slow": "1"}, says("Score: 5")[2]
        return (400, {}, b"too long") if "long" in text else says("Score: 10")

    stub = serve(plan)
    reward = judge(url=stub.url, rubric="", retries=1, **QUICK)
    with pytest.warns(UserWarning, match="did not answer 3 of 4 requests .*http_400 1 times, timeout 4 times"):
        scores = reward(["slow", "drip", "long", "fine"], [""] * 4)
    assert scores.isnan().tolist() == [True, True, True, False] and scores[3] == 1
    assert len([s for s in stub.seen if "long" in json.dumps(s[2])]) == 1  # a rejection is not repeated
    dead = judge(url="http://127.0.0.1:9/v1", rubric="", retries=1, **QUICK)
    with pytest.warns(UserWarning, match="connection_refused 2 times"):
        assert dead(["a"], ["b"]).isnan().all()


def test_the_key_stays_in_the_environment(serve: Callable[..., Stub], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="variable JUDGE_KEY is not set"):
        judge(url="http://x", rubric="", key_variable="JUDGE_KEY", **QUICK)
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    other = serve(lambda *_: says("Score: 10"))
    stub = serve(lambda text, _: (302, {"Location": other.url}, b"") if "go" in text else (401, {}, b"no s3cret"))
    reward = judge(url=stub.url, rubric="", key_variable="JUDGE_KEY", **QUICK)
    with pytest.raises(UserError, match=r"HTTP 401; check the key in \$JUDGE_KEY") as refused:
        reward(["a"], ["b"])
    assert stub.seen[0][1]["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in str(refused.value) and "s3cret" not in repr(reward._endpoint.options)
    with pytest.raises(UserError, match="HTTP 302"):
        reward(["go"], ["b"])
    assert not other.seen
    for url in ("localhost:8000", "file:///etc/passwd"):
        with pytest.raises(UserError, match="url should be like"):
            judge(url=url, rubric="", **QUICK)
    with pytest.raises(UserError, match="template uses"):
        judge(url="http://x", rubric="", template="{other}", **QUICK)
    with pytest.raises(UserError, match="scale is"):
        judge(url="http://x", rubric="", scale=[1, 1], **QUICK)


def test_the_client_carries_images_in_order_and_few_at_a_time(serve: Callable[..., Stub]) -> None:
    def plan(text: str, _: int) -> tuple[int, dict[str, str], bytes]:
        time.sleep(0.05)
        return says(text.split("base64,")[1].split('"')[0])

    stub = serve(plan)
    endpoint = Endpoint(EndpointOptions(url=stub.url + "/", model="m", concurrency=3, parameters={"max_tokens": 9}))
    parts = [[{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{i}"}}] for i in range(10)]
    assert endpoint.complete([[{"role": "user", "content": part}] for part in parts]) == [str(i) for i in range(10)]
    assert stub.most <= 3 and stub.seen[0][2]["max_tokens"] == 9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert endpoint.complete([]) == []


# --- reward model

LETTERS = "abcdefghijklmnopqrstuvwxyz :\n"
TEMPLATE = "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}</s>{% endfor %}"


def save_tokenizer(folder: Path, template: str | None = None, pad: str | None = "<pad>") -> Path:
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", unk_token="<unk>", pad_token=pad
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    return folder


def llama(**changes: Any) -> LlamaConfig:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaConfig(vocab_size=33, max_position_embeddings=64, num_labels=1, **sizes, **changes)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scorer")
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(llama())
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    return save_tokenizer(folder, TEMPLATE, pad="</s>")  # padding and end are the same token, as in many models


TEXTS = ["a", "hello there", "so it goes", "z" * 40, "", "abc", "the quick brown fox"]


def direct(folder: Path, texts: list[str]) -> list[float]:
    """Logits of texts one at a time, without padding, from the hidden state of the last token."""
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *LETTERS])}
    scores = []
    for text in texts:
        pieces = text.replace("</s>", "\0")
        ids = torch.tensor([[vocabulary["</s>" if piece == "\0" else piece] for piece in pieces]])
        with torch.no_grad():
            scores.append(float(model.score(model.model(ids).last_hidden_state[0, -1])))
    return scores


def test_reward_model_equals_the_direct_formula_in_every_batch(scorer: Path) -> None:
    expected = torch.tensor(
        direct(scorer, [f"s:be kind</s>u:hi</s>a:{text}</s>" for text in TEXTS]), dtype=torch.float64
    )
    assert expected.std() > 0.01
    for size in (1, 2, 3, 7, 16):
        reward = reward_model(path=str(scorer), device="cpu", batch_size=size, system="be kind")
        scores = reward(TEXTS, ["hi"] * len(TEXTS))
        assert (scores - expected).abs().max() < 1e-5, size
        assert scores.dtype == torch.float64
    assert (reward(TEXTS[::-1], ["hi"] * 7).flip(0) - expected).abs().max() < 1e-5
    joined = reward_model(path=str(scorer), device="cpu", layout="joined")
    assert torch.allclose(
        joined(["b", "ghi"], ["a", "def "]), torch.tensor(direct(scorer, ["ab", "def ghi"])).double(), atol=1e-5
    )
    assert joined([""], [""]).isfinite().all()


def test_reward_model_cuts_the_beginning_and_counts(scorer: Path) -> None:
    reward = reward_model(path=str(scorer), device="cpu", layout="completion", max_length=5)
    assert reward(["abcdefgh", "abc"], [""] * 2).tolist() == pytest.approx(direct(scorer, ["defgh", "abc"]), abs=1e-5)
    assert reward.truncated == 1
    assert reward_model(path=str(scorer), device="cpu").max_length == 64


def test_reward_model_with_labels_and_pairs(tmp_path: Path) -> None:
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=33, max_position_embeddings=32, label2id={"NEG": 0, "POS": 1}, **sizes)
    config.id2label = {0: "NEG", 1: "POS"}
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(save_tokenizer(tmp_path))
    texts = ["a", "good film", "x" * 20]
    with torch.no_grad():
        expected = [model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0] for text in texts]
    for label, index in (("POS", 1), (0, 0)):
        for size in (1, 3):
            reward = reward_model(path=str(tmp_path), device="cpu", label=label, layout="completion", batch_size=size)
            assert reward(texts, [""] * 3).tolist() == pytest.approx([float(e[index]) for e in expected], abs=1e-5)
    for label in (None, "GOOD", 2):
        with pytest.raises(UserError, match="has 2 labels"):
            reward_model(path=str(tmp_path), device="cpu", label=label)
    with pytest.raises(UserError, match="no chat template"):
        reward_model(path=str(tmp_path), device="cpu", label=0, layout="chat")


def test_reward_model_refuses_what_is_none(tmp_path: Path, scorer: Path) -> None:
    LlamaForCausalLM(llama()).save_pretrained(tmp_path / "lm")
    save_tokenizer(tmp_path / "lm")
    with pytest.raises(UserError, match=r"no trained weights for score\.weight"):
        reward_model(path=str(tmp_path / "lm"), device="cpu")
    (tmp_path / "old").mkdir()
    llama(architectures=["LlamaForSequenceClassification"]).save_pretrained(tmp_path / "old")
    (tmp_path / "old" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    save_tokenizer(tmp_path / "old")
    for name in ("old", "absent"):
        with pytest.raises(UserError, match="cannot be loaded: "):
            reward_model(path=str(tmp_path / name), device="cpu")
    with pytest.raises(UserError, match="did you mean 'float32'"):
        reward_model(path=str(scorer), device="cpu", dtype="float3")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="layout='chats' does not exist"):
        reward_model(path=str(scorer), device="cpu", layout="chats")  # type: ignore[arg-type]
