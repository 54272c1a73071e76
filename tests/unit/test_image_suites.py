"""Suites of images for real models: GenEval with Mask2Former, scorers on prompt files, questions to a VLM."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from flowrl.detection.evaluator import line, load
from flowrl.errors import UserError
from flowrl.evaluation import evaluate
from flowrl.evaluation.prompt_files import read
from flowrl.evaluation.score_cache import ScoreCache, files_digest
from flowrl.evaluation.suite import SuiteScores
from flowrl.evaluation.suites import find
from flowrl.evaluation.suites.dpg import read_items
from flowrl.evaluation.suites.geneval import generated
from flowrl.evaluation.suites.ocr import signs
from flowrl.evaluation.suites.t2i_compbench import with_questions
from flowrl.evaluation.target import Target
from flowrl.evaluation.vqa_suite import Question, graph_scores, questions_of
from flowrl.records.sample_files import read_images, sample_path, write_image, write_text
from flowrl.types import Prompt, Samples
from rewards.pickscore import pickscore
from rewards.vqascore import vqascore
from tests.tiny_detector import quick, save_mask2former, taught
from tests.tiny_scorers import PROMPTS, pictures, save_aesthetic, save_clip, save_open_clip
from tests.tiny_vlm import save_llava


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.set_num_threads(1)
    monkeypatch.setenv("FLOWRL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "verdicts"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    make = tmp_path_factory.mktemp
    return {
        "detector": str(save_mask2former(make("mask2former"))),
        "quick": str(taught(quick(save_clip(make("quick"))))),
        "clip": str(save_clip(make("clip"))),
        "open_clip": str(save_open_clip(make("open_clip"))),
        "aesthetic": str(save_aesthetic(make("aesthetic"))),
        "llava": str(save_llava(make("llava"))),
    }


def noun(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


METADATA = [
    {"tag": "single_object", "include": [noun("dog")], "prompt": "a photo of a dog"},
    {
        "tag": "position",
        "include": [noun("cat"), noun("dog", position=["left of", 0])],
        "prompt": "a photo of a dog left of a cat",
    },
    {"tag": "colors", "include": [noun("car", color="red")], "prompt": "a photo of a red car"},
]


def folder_of(path: Path, metadata: list[dict[str, Any]], images: torch.Tensor) -> Path:
    """GenEval's official layout, two images per prompt."""
    for index, row in enumerate(metadata):
        write_text(path / f"{index:05d}/metadata.jsonl", json.dumps(row))
        for sample in range(2):
            write_image(sample_path(path, index, sample), images[2 * index + sample])
    return path


def test_geneval_of_photographs_writes_the_official_schema(
    weights: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import flowrl.detection.mask2former as module

    original = module.input_size
    monkeypatch.setattr(module, "input_size", lambda height, width, *_: original(height, width, 64, 107))
    options = {"detector": weights["detector"], "clip": weights["quick"], "device": "cpu"}
    evaluator = load(options["detector"], options["clip"], device="cpu")
    images = pictures(6)
    pixels = (images * 255).round().byte()
    seen = evaluator.detector(pixels[:1])[0][0].label
    metadata = [{**METADATA[0], "include": [noun(seen)]}, *METADATA[1:]]
    folder = folder_of(tmp_path / "images", metadata, images)
    results = evaluate(str(folder), ["geneval"], tmp_path / "out", options={"geneval": options})
    suite = results["suites"]["geneval"]
    assert suite["title"] == "geneval-style[mask2former]"
    for part in (options["detector"], options["clip"], "0.3-0.9-16", ":weights-"):
        assert part in suite["version"]
    rows = [row for row in metadata for _ in range(2)]
    findings = evaluator(pixels, rows)
    names = [f"{index:05d}/samples/{sample:04d}.png" for index in range(3) for sample in range(2)]
    lines = [json.loads(text) for text in (tmp_path / "out/images/geneval/results.jsonl").read_text().splitlines()]
    for found, *wanted in zip(lines, names, rows, findings, strict=True):
        official = line(*wanted)
        assert list(found)[: len(official)] == list(official)
        assert {key: found[key] for key in official if key != "metadata"} == {
            key: value for key, value in official.items() if key != "metadata"
        }
        assert json.loads(found["metadata"]) == json.loads(official["metadata"])
    correct = suite["arms"]["images"]["measures"]["correct"]["tags"]["single_object"]["value"]
    assert correct == sum(finding.verdict.correct for finding in findings[:2]) / 2 > 0
    assert suite["arms"]["images"]["measures"]["correct"]["overall"] is None and "counting" in suite["missing_tags"]

    def never(*_: Any) -> Any:
        raise AssertionError("judged again")

    monkeypatch.setattr(module.Mask2Former, "_detect", never)
    again = evaluate(str(folder), ["geneval"], tmp_path / "again", options={"geneval": options})
    assert again["suites"] == results["suites"]  # known by content
    one = sample_path(folder, 0, 0)
    write_image(one, 1 - read_images([one])[0])
    with pytest.raises(AssertionError, match="judged again"):  # another image is judged
        evaluate(str(folder), ["geneval"], tmp_path / "again", options={"geneval": options})


def test_geneval_tells_the_benchmark_from_its_style(weights: dict[str, str], tmp_path: Path) -> None:
    options = {"geneval": {"detector": weights["detector"], "clip": weights["quick"], "device": "cpu"}}
    target = Target("somewhere/model", "model")
    (own,) = find(["geneval"], target, None, options)
    assert own.title == "geneval-style[mask2former]" and own.source == "generated:geneval-0" and own.size == 580
    sizes = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}
    rows = [
        {"tag": tag, "include": [noun("dog")], "prompt": f"{tag} {n}"} for tag, k in sizes.items() for n in range(k)
    ]
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    (official,) = find(["geneval"], target, file, options)
    assert official.title == "geneval[mask2former]" and official.size == 553 and official.source == str(file)
    file.write_text("\n".join(map(json.dumps, rows[1:])))
    (less,) = find(["geneval"], target, file, options)
    assert less.title == "geneval-style[mask2former]"
    file.write_text(json.dumps({"prompt": "a dog"}))
    with pytest.raises(UserError, match="'include' should be a list"):
        find(["geneval"], target, file, options)
    with pytest.raises(UserError, match="no option 'detecter'; did you mean 'detector'"):
        find(["geneval"], target, None, {"geneval": {"detecter": "x"}})
    with pytest.raises(UserError, match=r"'somewhere/model' is no such folder here.*options detector and clip"):
        find(["geneval"], target, None, {"geneval": {"detector": str(tmp_path)}})
    assert len({prompt.text for prompt in generated()}) == 580


def test_official_verdicts_are_taken_over(tmp_path: Path) -> None:
    """The official tool's file about a folder that has moved since: our intervals on its scores."""
    folder = folder_of(tmp_path / "moved", METADATA, pictures(6))
    verdicts = [True, False, True, True, False]  # the last image was not judged
    names = [f"{index:05d}/samples/{sample:04d}.png" for index in range(3) for sample in range(2)]
    rows = [
        {
            "filename": f"/cluster/out/{name}",
            "tag": METADATA[n // 2]["tag"],
            "prompt": METADATA[n // 2]["prompt"],
            "correct": good,
            "reason": "" if good else "expected dog>=1, found 0\nexpected cat>=1, found 0",
            "metadata": json.dumps(METADATA[n // 2]),
            "details": json.dumps({"dog": [[0.0, 1.0, 2.0, 3.0, 0.5]], "cat": [[0.0, 0.0, 1.0, 1.0, 0.9]]}),
        }
        for n, (name, good) in enumerate(zip(names, verdicts, strict=False))
    ]
    file = tmp_path / "results.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in reversed(rows)))  # the official tool lists folders unsorted
    options = {"geneval": {"results": str(file)}}
    suite = evaluate(str(folder), ["geneval"], tmp_path / "out", options=options)["suites"]["geneval"]
    arm = suite["arms"]["images"]
    assert suite["title"] == "geneval[imported]" and arm["unscored"] == 1
    tags = {tag: value["value"] for tag, value in arm["measures"]["correct"]["tags"].items()}
    assert tags == {"single_object": 0.5, "position": 1.0, "colors": 0.0}
    assert arm["reasons"]["expected cat>=1, found 0"] == 2
    lines = [json.loads(text) for text in (tmp_path / "out/images/geneval/results.jsonl").read_text().splitlines()]
    assert [text["correct"] for text in lines] == [*verdicts, None]
    assert json.loads(lines[0]["details"]) == json.loads(rows[0]["details"])
    with pytest.raises(UserError, match="results are about images"):
        find(["geneval"], Target("somewhere/model", "model"), None, options)
    other = folder_of(tmp_path / "other", [{**row, "prompt": "x"} for row in METADATA], pictures(6))
    with pytest.raises(UserError, match="the results say 'a photo of a dog'"):
        evaluate(str(other), ["geneval"], tmp_path / "o", options=options)
    rows[0]["filename"] = "/cluster/out/77777/samples/0000.png"
    file.write_text(json.dumps(rows[0]))
    with pytest.raises(UserError, match="has no result of an image"):
        evaluate(str(folder), ["geneval"], tmp_path / "o", options=options)


def test_the_shapes_world_keeps_its_exact_judge() -> None:
    (suite,) = find(["geneval"], Target("shapes", "model", world="shapes"))
    assert suite.title == "geneval[shapes]" and suite.size == 72


def test_scorers_on_a_prompt_file(weights: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images for PartiPrompts' table: frozen scorers, versions, intervals; a second evaluation scores nothing."""
    data = tmp_path / "prompts.tsv"
    texts = ["a red circle", "a blue square", "a green cross"]
    data.write_text("Prompt\tCategory\n" + "".join(f"{text}\tArts\n" for text in texts))
    clip = {"path": weights["clip"], "device": "cpu"}
    options = {
        "pickscore": clip,
        "clip": clip,
        "hps": {"path": weights["open_clip"], "device": "cpu"},
        "aesthetic": {"path": weights["aesthetic"], "clip": weights["clip"], "device": "cpu"},
    }
    names = list(options)
    results = evaluate("shapes", names, tmp_path / "out", samples=2, steps=2, data=data, options=options)
    for name, reward in zip(names, ("pickscore", "clipscore", "hpsv2", "aesthetic"), strict=True):
        suite = results["suites"][name]
        measure = suite["arms"]["model"]["measures"][reward]["overall"]
        assert suite["primary"] == reward and suite["prompts"] == 3 and not suite["partial"]
        assert measure["low"] <= measure["value"] <= measure["high"] and measure["low"] < measure["high"]
        assert str(options[name]["path"]) in suite["version"] and ":weights-" in suite["version"]
    folder = tmp_path / "out" / "model"
    paths = sorted(folder.glob("*/0*/samples/*.png"))
    assert len(paths) == 6  # suites of the same prompts share their images
    direct = pickscore(weights["clip"], device="cpu")(read_images(paths), [t for t in texts for _ in range(2)])
    mean = results["suites"]["pickscore"]["arms"]["model"]["measures"]["pickscore"]["overall"]["value"]
    assert mean == pytest.approx(float(direct.mean()), abs=1e-5)
    monkeypatch.setattr(pickscore, "__call__", None)
    again = evaluate(
        "shapes",
        ["pickscore"],
        tmp_path / "out",
        samples=2,
        steps=2,
        data=data,
        options={"pickscore": clip},
    )
    assert again["suites"]["pickscore"] == results["suites"]["pickscore"]


def test_weights_that_were_replaced_are_another_judge(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"abc")
    before = files_digest({"path": str(file), "dtype": "float32"})
    assert before.startswith(":weights-") and files_digest({"path": "owner/name", "batch_size": 3}) == ""
    file.write_bytes(b"abcd")
    assert files_digest({"path": str(file)}) != before


def test_the_cache_scores_what_is_new_and_keeps_the_order(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def scorer(samples: Samples) -> SuiteScores:
        assert samples.images is not None
        seen.append([prompt.text for prompt in samples.prompts])
        means = samples.images.flatten(1).mean(1)
        values = torch.where(means > 0.9, torch.nan, means)
        return SuiteScores({"mean": values}, [(p.text,) for p in samples.prompts], [{"k": 1}] * len(samples.prompts))

    images = torch.stack([torch.full((3, 4, 4), level / 255) for level in (10, 20, 255, 10)])
    prompts = [Prompt(text, n) for n, text in enumerate("abcd")]
    cache = ScoreCache("judge:1", tmp_path)
    found = cache.score(Samples(prompts, images), scorer)
    assert found.measures["mean"][[0, 1, 3]].tolist() == pytest.approx([10 / 255, 20 / 255, 10 / 255])
    assert math.isnan(found.measures["mean"][2]) and found.reasons[1] == ["b"] and found.details[0] == {"k": 1}
    order = [3, 1, 0]
    part = cache.score(Samples([prompts[i] for i in order], images[order]), scorer)
    assert part.reasons == [["d"], ["b"], ["a"]] and seen == [["a", "b", "c", "d"]]
    with cache.path.open("a") as file:
        file.write('{"key": "cut')  # a crash in the middle of a line
    later = ScoreCache("judge:1", tmp_path)
    later.score(Samples(prompts, images), scorer)
    assert seen[1:] == [["c"]]  # only what could not be scored is tried again
    ScoreCache("judge:2", tmp_path).score(Samples(prompts, images), scorer)
    changed = [Prompt(p.text, p.id, {"include": 1}) for p in prompts]
    later.score(Samples(changed, images), scorer)
    assert seen[2:] == [["a", "b", "c", "d"]] * 2


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.tsv", "Prompt\tCategory\na dog\tAnimals\na cat, red\tAnimals\n", ["a dog", "a cat, red"]),
        ("a.csv", 'Prompts,Category\n"A ""red"" car, new",Colors\n', ['A "red" car, new']),
        ("a.txt", "a dog\n\na cat\n", ["a dog", "a cat"]),
        ("a.jsonl", '{"caption": "a dog", "id": 3}\n', ["a dog"]),
    ],
)
def test_prompt_files_of_benchmarks(tmp_path: Path, name: str, text: str, found: list[str]) -> None:
    file = tmp_path / name
    file.write_text(text)
    prompts = read(str(file))
    assert [prompt.text for prompt in prompts] == found and [prompt.id for prompt in prompts] == list(range(len(found)))
    if name == "a.tsv":
        assert prompts[0].columns == {"Category": "Animals"}


def test_wrong_prompt_files_are_named(weights: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    for text, match in (
        ("id,word\n1,dog\n", "has no 'prompt' .it has 'id', 'word'"),
        ("Prompts\n", "holds no prompts"),
        ("Prompts,Category\na,b,c\n", "row 2: another number of columns"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=match):
            read(str(file))
    with pytest.raises(UserError, match="do not exist"):
        read(str(tmp_path / "b.csv"))
    model = Target("somewhere/model", "model")
    options = {"pickscore": {"path": weights["clip"]}}
    with pytest.raises(UserError, match=r"suite pickscore needs prompts \(none is built in\)"):
        find(["pickscore"], model, None, options)
    with pytest.raises(UserError, match="found both"):
        find(["pickscore"], model, file, {"pickscore": {**options["pickscore"], "prompts": "b.txt"}})
    file.write_text("Prompts\na\n")
    with pytest.raises(UserError, match="suite clip has no option 'pth'; did you mean 'path'"):
        find(["clip"], model, file, {"clip": {"pth": "x"}})
    with pytest.raises(UserError, match=r"missing a required argument: 'path'.*--option hps.path=FILE"):
        find(["hps"], model, file)
    with pytest.raises(UserError, match="'clp' is not one of the suites; did you mean 'clip'"):
        find(["clip"], model, file, {"clp": {}})


def test_signs_are_always_the_same() -> None:
    texts = [prompt.text for prompt in signs()]
    assert texts == [prompt.text for prompt in signs()] and len(set(texts)) == 100
    assert all(text.count('"') == 2 for text in texts)


def graph(*rows: tuple[int, tuple[int, ...], str]) -> list[Question]:
    return [Question(f"q{number}", number, parents, category) for number, parents, category in rows]


def test_a_child_of_a_no_counts_as_no_through_all_generations() -> None:
    questions = graph((3, (2,), "attribute"), (2, (1,), "entity"), (1, (), "entity"), (4, (), "global"))
    assert graph_scores(questions, [0.9] * 4, "dpg") == {"dpg": 1.0, "attribute": 1.0, "entity": 1.0, "global": 1.0}
    # 1 is answered with no: 2 and 3 below it fall as well, though they come first in the file; categories keep them
    found = graph_scores(questions, [0.9, 0.9, 0.2, 0.9], "dpg")
    assert found == {"dpg": 0.25, "attribute": 1.0, "entity": 0.5, "global": 1.0}
    assert graph_scores(questions, [0.9, 0.1, 0.9, 0.5], "dpg")["dpg"] == 0.25  # 0.5 is no yes
    assert math.isnan(graph_scores(questions, [0.9, math.nan, 0.9, 0.9], "dpg")["dpg"])


HEADER = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language"
)


def test_dpg_asks_every_question_of_its_table(weights: dict[str, str], tmp_path: Path) -> None:
    data = tmp_path / "dpg_bench.csv"
    rows = [
        "x1,a red cube on a table,k,1,0,entity,whole,t,Does this figure show a cube?",
        'x1,a red cube on a table,k,2,"1",attribute,color,t,Does this figure show a red cube?',
        "x2,a blue ball,k,1,0,entity,whole,t,Does this figure show a ball?",
    ]
    data.write_text("\n".join([HEADER, *rows]))
    prompts = read_items(data)
    assert [prompt.text for prompt in prompts] == ["a red cube on a table", "a blue ball"]
    assert [(q.id, q.parents) for q in questions_of(prompts[0])] == [(1, ()), (2, (1,))]
    options = {"dpg": {"path": weights["llava"], "dtype": "float32", "device": "cpu", "batch_size": 2}}
    (suite,) = find(["dpg"], Target("somewhere/model", "model"), data, options)
    assert suite.title == f"dpg-like[vqa={weights['llava']}]"
    images = pictures(2)
    scores = suite.score(Samples(prompts, images))
    texts = [(0, "a cube"), (0, "a red cube"), (1, "a ball")]
    scorer = vqascore(
        weights["llava"], question="Does this figure show {prompt}?", normalised=True, dtype="float32", device="cpu"
    )
    chances = scorer(images[[row for row, _ in texts]], [text for _, text in texts]).tolist()
    assert scores.details[0]["yes"] == pytest.approx(chances[:2], abs=1e-5)
    yes = [chance > 0.5 for chance in chances]
    assert scores.measures["dpg"].tolist() == [(yes[0] + (yes[0] and yes[1])) / 2, float(yes[2])]
    assert scores.measures["entity"].tolist() == [float(yes[0]), float(yes[2])]
    assert math.isnan(scores.measures["attribute"][1])  # the second prompt has none
    folder = folder_of(tmp_path / "in", [{**p.columns, "prompt": p.text} for p in prompts], pictures(4))
    results = evaluate(str(folder), ["dpg"], tmp_path / "out", options=options)["suites"]["dpg"]
    assert results["arms"]["images"]["samples"] == 4 and results["version"].startswith("1:")


def test_t2i_compbench_multiplies_the_phrases(weights: dict[str, str], tmp_path: Path) -> None:
    data = tmp_path / "color_val.txt"
    data.write_text("a red cube and a blue ball.\n")
    options = {"t2i_compbench": {"path": weights["llava"], "dtype": "float32", "device": "cpu"}}
    (suite,) = find(["t2i_compbench"], Target("somewhere/model", "model"), data, options)
    assert [q.text for q in questions_of(suite.prompts[0])] == [
        'Does this figure show "a red cube"? Please answer yes or no.',
        'Does this figure show "a blue ball"? Please answer yes or no.',
    ]
    image = pictures(1)
    scorer = vqascore(weights["llava"], normalised=True, dtype="float32", device="cpu")
    both = scorer(image.repeat(2, 1, 1, 1), ["a red cube", "a blue ball"])
    found = suite.score(Samples(suite.prompts, image)).measures["t2i_compbench"]
    assert float(found[0]) == pytest.approx(float(both.prod()), abs=1e-6)
    assert with_questions(Prompt("the soft pillow, the metallic band and the sand", 0)).columns["questions"][1] == {
        "text": 'Does this figure show "the metallic band"? Please answer yes or no.',
        "id": 2,
    }


def test_wrong_questions_are_named(weights: dict[str, str], tmp_path: Path) -> None:
    for rows, match in (
        (None, "has no list of 'questions'"),
        ([{"text": "a"}], "should be a list of"),
        ([{"text": "a", "id": 1, "parents": [2]}], "question 1 depends on one that does not exist"),
        ([{"text": "a", "id": 1, "parents": [2]}, {"text": "b", "id": 2, "parents": [1]}], "or on itself"),
    ):
        with pytest.raises(UserError, match=match):
            questions_of(Prompt("p", 0, {"questions": rows}))
    model = Target("somewhere/model", "model")
    with pytest.raises(UserError, match=r"give --data dpg_bench\.csv"):
        find(["dpg"], model)
    data = tmp_path / "dpg_bench.csv"
    data.write_text(f"{HEADER}\nx,a,k,one,0,entity,whole,t,q\n")
    with pytest.raises(UserError, match="row 2: proposition_id and dependency should be numbers"):
        find(["dpg"], model, data)
    data.write_text("item_id,text\nx,a\n")
    with pytest.raises(UserError, match="column 'proposition_id' is missing"):
        find(["dpg"], model, data)
    data.write_text(f"{HEADER}\nx,a,k,1,0,entity,whole,t,q\n")
    with pytest.raises(UserError, match=r"give --option dpg.path=FOLDER"):
        find(["dpg"], model, data)
    with pytest.raises(UserError, match="has no option 'pth'"):
        find(["dpg"], model, data, {"dpg": {"pth": weights["llava"]}})


@pytest.mark.parametrize(
    ("suite", "key", "value", "words"),
    [
        ("dpg", "batch_size", True, "valid integer"),
        ("dpg", "batch_size", 0, "greater than or equal to 1"),
        ("dpg", "concurrency", "8", "valid integer"),
        ("t2i_compbench", "model", 5, "valid string"),
        ("geneval", "batch_size", True, "valid integer"),
        ("geneval", "detector", 5, "valid string"),
        ("clip", "batch_size", True, "valid integer"),
    ],
)
def test_types_of_options_are_checked(suite: str, key: str, value: Any, words: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "images", METADATA[:1], pictures(2))
    with pytest.raises(UserError, match=rf"--option {suite}\.{key}: .* will not do: .*{words}"):
        evaluate(str(folder), [suite], tmp_path / "out", options={suite: {key: value}})
    with pytest.raises(UserError, match="has no option 'rules'"):
        evaluate(str(folder), ["geneval"], tmp_path / "out", options={"geneval": {"rules": 5}})


def test_the_scorers_prompts_are_those_of_the_folder(weights: dict[str, str], tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", [{"prompt": text} for text in PROMPTS[:2]], pictures(4))
    options = {"pickscore": {"path": weights["clip"], "device": "cpu"}}
    suite = evaluate(str(folder), ["pickscore"], tmp_path / "out", options=options)["suites"]["pickscore"]
    direct = pickscore(weights["clip"], device="cpu")(
        (pictures(4) * 255).round() / 255, [text for text in PROMPTS[:2] for _ in range(2)]
    )
    value = suite["arms"]["images"]["measures"]["pickscore"]["overall"]["value"]
    assert value == pytest.approx(float(direct.mean()), abs=1e-5)
    with pytest.raises(UserError, match="come with their prompts"):
        evaluate(str(folder), ["pickscore"], tmp_path / "out", data=tmp_path / "x.txt", options=options)
