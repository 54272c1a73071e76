"""GenEval 2: the release's questions and arithmetic on tiny models, its means by hand, and the sampling protocol."""

import http.server
import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import flowrl.evaluation.samples as module
from flowrl.errors import UserError
from flowrl.evaluation import evaluate
from flowrl.evaluation.generation import Generated
from flowrl.evaluation.protocol import departures, find_protocol
from flowrl.evaluation.samples import SampleSource, complete_samples
from flowrl.evaluation.statistics import Resamples
from flowrl.evaluation.suites import find
from flowrl.evaluation.suites.geneval2 import OFFICIAL, PROTOCOL, Atom, atoms_of, soft_tifa, spellings
from flowrl.evaluation.table import notes
from flowrl.evaluation.target import Target
from flowrl.evaluation.targets import Request, find_target
from flowrl.evaluation.targets.world_models import pipeline_call
from flowrl.records.sample_files import read_images, sample_path, write_image, write_text
from flowrl.samplers.flow import FlowSampler
from flowrl.types import Prompt, Samples
from rewards._vlm import LocalVlm
from tests.tiny_scorers import CLOSE, as_pil, pictures
from tests.tiny_vlm import save_llava

ROWS: list[dict[str, Any]] = [
    {
        "prompt": "two red cubes",
        "atom_count": 3,
        "vqa_list": [["How many cubes", "two"], ["Does this show red cubes?", "Yes"], ["Does this show cubes?", "Yes"]],
        "skills": ["count", "attribute", "object"],
    },
    {
        "prompt": "a blue ball on a table",
        "atom_count": 4,
        "vqa_list": [["Does this show a ball?", "Yes"], ["Does a ball show on a table?", "Yes"]],
        "skills": ["object", "position"],
    },
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("FLOWRL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_llava(tmp_path_factory.mktemp("llava")))


def data(folder: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    file = folder / "geneval2_data.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def asked(path: str) -> dict[str, dict[str, Any]]:
    return {"geneval2": {"path": path, "dtype": "float32", "device": "cpu", "batch_size": 2}}


def released(path: str, image: torch.Tensor, question: str, spelt: list[str]) -> float:
    """The release's score of an answer, written out: the summed chances of the first tokens of its spellings."""
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(path)
    processor.image_processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    model = AutoModelForImageTextToText.from_pretrained(path).eval()
    text = f"<|im_start|>user\n<image>{question} Answer in one word.<|im_end|>\n<|im_start|>assistant\n"
    inputs = processor(text=[text], images=as_pil(image[None]), return_tensors="pt")
    with torch.no_grad():
        chances = model(**inputs).logits[0, -1].double().softmax(dim=-1)
    tokens = {processor.tokenizer(word, add_special_tokens=False).input_ids[0] for word in spelt}
    return float(chances[sorted(tokens - {processor.tokenizer.unk_token_id})].sum())


def test_a_score_is_the_released_one(llava: str, tmp_path: Path) -> None:
    (suite,) = find(["geneval2"], Target("somewhere/model", "model"), data(tmp_path), asked(llava))
    assert suite.title == f"geneval2-style[vqa={llava}]" and list(suite.tags) == ["3 atoms", "4 atoms"]
    images = pictures(2)
    scores = suite.score(Samples(suite.prompts, images))
    yes = ["Yes", "yes"]
    wanted = [
        [
            released(llava, images[0], "How many cubes", ["two", "2"]),  # "Two" is not in the tiny vocabulary
            released(llava, images[0], "Does this show red cubes?", yes),
            released(llava, images[0], "Does this show cubes?", yes),
        ],
        [released(llava, images[1], question, yes) for question, _ in ROWS[1]["vqa_list"]],
    ]
    for row, found in zip(wanted, scores.details, strict=True):
        torch.testing.assert_close(torch.tensor(found["right"]), torch.tensor(row), **CLOSE)
    measures = {name: values.tolist() for name, values in scores.measures.items()}
    assert measures["soft_tifa_am"] == pytest.approx([np.mean(row) for row in wanted], abs=1e-5)
    assert measures["soft_tifa_gm"] == pytest.approx([math.prod(row) ** (1 / len(row)) for row in wanted], abs=1e-5)
    assert measures["count"][0] == pytest.approx(wanted[0][0], abs=1e-5) and math.isnan(measures["count"][1])
    assert math.isnan(measures["verb"][0]) and next(iter(measures)) == "soft_tifa_gm"
    (kept,) = (tmp_path / "cache/verdicts").iterdir()  # though no prompt has every skill
    assert len(kept.read_text().splitlines()) == 2


def test_the_arithmetic_of_soft_tifa() -> None:
    atoms = [Atom("q", ("Yes",), skill) for skill in ("object", "object", "count")]
    found = soft_tifa(atoms, [0.5, 0.25, 1.0])
    assert found == pytest.approx({"soft_tifa_gm": 0.5, "soft_tifa_am": 1.75 / 3, "object": 0.375, "count": 1.0})
    assert soft_tifa(atoms, [0.5, 0.0, 1.0])["soft_tifa_gm"] == 0  # as scipy's gmean of the release
    assert math.isnan(soft_tifa(atoms, [0.5, math.nan, 1.0])["soft_tifa_gm"])


def test_an_answer_has_the_released_spellings() -> None:
    assert set(spellings("How many cats are in the image?", "four", "p")) == {
        "four",
        " four",
        "Four",
        " Four",
        "4",
        " 4",
    }
    assert set(spellings("Are there any cats?", "Yes", "p")) == {"Yes", " Yes", "yes", " yes"}
    with pytest.raises(UserError, match="should be 'Yes', found 'No'"):
        spellings("Are there any cats?", "No", "p")


class Pieces:
    """A tokenizer as Qwen's: a digit after a space is a space and a digit, a word may be several tokens."""

    unk_token_id = 0
    ids: ClassVar = {"4": [4], " 4": [9, 4], "four": [1, 2], " four": [3], "Four": [0], "": []}
    words: ClassVar = {4: "4", 9: " ", 1: "fo", 3: " four", 0: "?"}

    def __call__(self, text: str, add_special_tokens: bool) -> Any:
        return SimpleNamespace(input_ids=self.ids[text])

    def decode(self, ids: list[int]) -> str:
        return self.words[ids[0]]


def test_a_spelling_is_its_first_token_and_a_bare_space_is_none() -> None:
    vlm = object.__new__(LocalVlm)
    vlm.processor = SimpleNamespace(tokenizer=Pieces())
    found = {word: vlm._begin(word) for word in Pieces.ids}
    assert found == {"4": [4], " 4": [], "four": [1], " four": [3], "Four": [], "": []}


def test_the_skills_are_means_over_questions_not_over_images(llava: str, tmp_path: Path) -> None:
    """Two prompts, one with three questions about objects and one with one: the release counts every question."""
    rows = [
        {**ROWS[0], "skills": ["object"] * 3},
        {**ROWS[1], "vqa_list": ROWS[1]["vqa_list"][:1], "skills": ["object"]},
    ]
    folder = tmp_path / "images"
    for index, row in enumerate(rows):
        write_text(folder / f"{index:05d}/metadata.jsonl", json.dumps(row))
        write_image(sample_path(folder, index, 0), pictures(2)[index])
    result = evaluate(str(folder), ["geneval2"], tmp_path / "out", options=asked(llava))["suites"]["geneval2"]
    lines = [json.loads(text) for text in (tmp_path / "out/images/geneval2/results.jsonl").read_text().splitlines()]
    every = [chance for line in lines for chance in json.loads(line["details"])["right"]]
    measures = result["arms"]["images"]["measures"]
    assert measures["object"]["samples"]["value"] == pytest.approx(np.mean(every))
    assert measures["soft_tifa_am"]["samples"]["value"] == pytest.approx((np.mean(every[:3]) + every[3]) / 2)
    assert result["protocol"]["steps"] == 40 and "resolution 54x40 (512x512)" in result["departures"]
    assert any("images made elsewhere" in note for note in notes(result))


def test_weights_are_numbers_of_questions_in_every_resample() -> None:
    values, weights = np.array([[0.2], [0.8], [np.nan]]), np.array([3.0, 1.0, 5.0])
    draws = Resamples.draw(["a", "a", "b"], 2000, 0)
    assert draws.samples(values, weights).value == pytest.approx((0.2 * 3 + 0.8) / 4)
    found = draws.by_tag(values, weights)["a"]
    assert found.value == pytest.approx(0.35) and (found.low, found.high) == pytest.approx((0.2, 0.8))
    assert draws.samples(values, np.ones(3)) == draws.samples(values)


def test_noise_follows_from_the_words_of_a_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another order or a part of the prompts gives a prompt the same seeds; its place in the file gives others."""
    seen: dict[str, list[int]] = {}

    def generate(policy: Any, sampler: Any, weights: str, draw: Any, *, draws: bool) -> Generated:
        for prompt, seed in zip(draw.prompts, draw.seeds.tolist(), strict=True):
            seen.setdefault(prompt.text, []).append(seed)
        return Generated(Samples(draw.prompts, torch.zeros(len(draw), 3, 4, 4)))

    monkeypatch.setattr(module, "generate", generate)
    monkeypatch.setattr(module, "batch_size", lambda *_: 8)
    texts = ("a cat", "a dog", "a bird")
    source = SampleSource(lambda: None, FlowSampler(), 3, {}, noise_by_words=True)  # type: ignore[arg-type]
    for number, order in enumerate(((0, 1, 2), (2, 0), (1,))):
        prompts = [Prompt(texts[row], place) for place, row in enumerate(order)]
        complete_samples(source, prompts, range(len(order)), 2, tmp_path / str(number))
    assert all(seeds[:2] == seeds[2:] for seeds in seen.values())
    assert len({seed for seeds in seen.values() for seed in seeds}) == 6  # of every prompt and sample its own
    by_place = SampleSource(lambda: None, FlowSampler(), 3, {})  # type: ignore[arg-type]
    assert by_place.settings([]) != source.settings([])
    complete_samples(by_place, [Prompt("a cat", 0), Prompt("a cat", 1)], [0, 1], 1, tmp_path / "place")
    assert len({*seen["a cat"]}) == 4


@pytest.mark.slow
def test_a_model_is_sampled_by_the_protocol(llava: str, tmp_path: Path) -> None:
    """The protocol: one image, and another order or a part of the prompts is made of the same noise."""
    one, other, out = tmp_path / "one", tmp_path / "other", []
    for folder, rows in ((one, ROWS), (other, ROWS[::-1])):
        folder.mkdir()
        options = asked(llava)
        results = evaluate("shapes", ["geneval2"], folder / "out", steps=2, data=data(folder, rows), options=options)
        out.append(results["suites"]["geneval2"])
    made = [sorted((folder / "out/model").glob("*/0*/samples/*.png")) for folder in (one, other)]
    assert [len(paths) for paths in made] == [2, 2]
    torch.testing.assert_close(read_images(made[0]), read_images(made[1][::-1]), rtol=0, atol=0)
    assert not torch.equal(*read_images(made[0]))
    assert out[0]["samples_per_prompt"] == 1 and out[0]["sampling"]["guidance"] == 1.0
    assert out[0]["departures"] == ["resolution 32x32 (512x512)", "steps 2 (40)"]
    means = [each["arms"]["model"]["measures"]["soft_tifa_gm"]["overall"]["value"] for each in out]
    assert means[0] == pytest.approx(means[1], abs=1e-6)
    with pytest.raises(
        UserError, match="the samples of geneval2 are made by its own protocol; evaluate aesthetic apart"
    ):
        evaluate("shapes", ["geneval2", "aesthetic"], tmp_path / "o", data=data(one), options=asked(llava))


def test_the_protocol_is_that_of_the_recipes() -> None:
    assert find_protocol(["geneval"]) is None and find_protocol(["nothing"]) is None
    assert find_protocol(["geneval2"]) == PROTOCOL
    facts = {"steps": 40, "guidance": 1.0}
    assert departures(PROTOCOL, facts, 1, "512x512") == []
    assert departures(PROTOCOL, {**facts, "guidance": 4.5}, 1, "512x512") == ["guidance 4.5 (1.0)"]
    assert departures(PROTOCOL, {**facts, "guidance": None}, 1, "512x512") == []  # an argument of the call
    assert pipeline_call("somewhere/model", None, None, 512) == {"height": 512, "width": 512}
    assert pipeline_call("somewhere/model", {"height": 256}, None, 512) == {"height": 256, "width": 512}
    assert (
        "height" not in pipeline_call("shapes", None, None, 512)
        or pipeline_call("shapes", None, None, 512)["height"] == pipeline_call("shapes", None, None)["height"]
    )
    target, _ = find_target("shapes", Request(size=512))
    assert target.world == "shapes"


def test_the_benchmark_is_told_from_its_style(llava: str, tmp_path: Path) -> None:
    rows = [
        {**ROWS[0], "prompt": f"{tag} {n}", "atom_count": int(tag.split()[0])} for tag in OFFICIAL for n in range(100)
    ]
    (suite,) = find(["geneval2"], Target("somewhere/model", "model"), data(tmp_path, rows), asked(llava))
    assert suite.title == f"geneval2[vqa={llava}]" and suite.size == 800 and list(suite.tags) == list(OFFICIAL)


def test_wrong_questions_are_named(tmp_path: Path) -> None:
    for change, match in (
        ({"vqa_list": None}, "has no lists 'vqa_list' and 'skills'; give --data geneval2_data.jsonl"),
        ({"skills": ["object"]}, "3 questions of 'vqa_list' need as many 'skills', found 1"),
        ({"vqa_list": [["q"]] * 3}, r"pairs \[question, answer\], found \['q'\]"),
        ({"skills": ["object", "object", "verbs"]}, "no skill 'verbs'; did you mean 'verb'"),
    ):
        with pytest.raises(UserError, match=match):
            atoms_of(Prompt("two red cubes", 0, {**ROWS[0], **change}))
    model = Target("somewhere/model", "model")
    with pytest.raises(UserError, match="'atom_count' should be 1 or more, found None"):
        find(["geneval2"], model, data(tmp_path, [{**ROWS[0], "atom_count": None}]))
    with pytest.raises(UserError, match=r"give --option geneval2\.path=FOLDER"):
        find(["geneval2"], model, data(tmp_path))
    with pytest.raises(UserError, match="suite geneval2 needs prompts"):
        find(["geneval2"], model)


@pytest.fixture
def endpoint() -> Iterator[str]:
    """Always the same first token's alternatives."""
    top = [("Yes", 0.5), (" yes", 0.2), ("two", 0.1), ("No", 0.1)]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            tokens = [{"token": word, "logprob": math.log(chance)} for word, chance in top]
            message = {"message": {"content": "Yes"}, "logprobs": {"content": [{"top_logprobs": tokens}]}}
            body = json.dumps({"choices": [message]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_an_endpoint_answers_too(endpoint: str, tmp_path: Path) -> None:
    options = {"geneval2": {"url": endpoint, "model": "vlm"}}
    rows = [ROWS[0], {**ROWS[1], "vqa_list": [["How many balls", "three"], ["Is it?", "Yes"]]}]
    (suite,) = find(["geneval2"], Target("somewhere/model", "model"), data(tmp_path, rows), options)
    scores = suite.score(Samples(suite.prompts, pictures(2)))
    assert suite.title == "geneval2-style[vqa=vlm]"
    assert scores.details[0]["right"] == pytest.approx([0.1, 0.7, 0.7])
    assert scores.details[1]["right"] == pytest.approx([0.0, 0.7])  # not among the alternatives
    assert scores.reasons[1] == ["below 1/2: How many balls"]
