"""Judging blindly: which pairs, in which order and on which side, votes that are never lost, and what they say."""

from __future__ import annotations

import io
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from flowrl.cli import app
from flowrl.errors import UserError
from flowrl.evaluation.statistics import wilson
from flowrl.judging import find_pairs, read_votes, summarise, table, votes_path
from flowrl.judging.pairs import Pair, Pairs, Sample
from flowrl.judging.votes import Vote, append_vote
from flowrl.records.sample_files import sample_path, write_image, write_text
from tests.unit.test_report import EVIL, new_run, picture

testclient = pytest.importorskip("fastapi.testclient", reason="needs the extra `server`")
from flowrl.judging.server import Judging, build_app  # noqa: E402
from flowrl.report.guard import PROOF  # noqa: E402

TOKEN = "a-token"


def texts(count: int, tags: tuple[str, ...] = ("easy", "hard")) -> Pairs:
    """Pairs in which the tuned text is always the better one, and the reward agrees with that."""
    pairs = [
        Pair(
            f"k{i}",
            f"prompt {i}",
            tags[i % len(tags)],
            Sample(None, f"tuned {i}", 1.0),
            Sample(None, f"base {i}", 0.0),
        )
        for i in range(count)
    ]
    return Pairs("tuned", "base", "total reward", pairs, 0)


def guest(judging: Judging):
    """Who has opened the address that was printed."""
    client = testclient.TestClient(build_app(judging, TOKEN), base_url="http://127.0.0.1:8421")
    assert client.get(f"/?token={TOKEN}").status_code == 200
    return client


def say(client, number: int, choice: str):
    return client.post("/votes", json={"pair": number, "vote": choice}, headers={PROOF: TOKEN})


def vote(**changes) -> Vote:
    found = Vote("", "k", "p", "", "tuned", "base", "this", "left", "total", 1.0, 0.0, "2026-01-01T00:00:00Z")
    return replace(found, **changes)


def row(name: str, tag: str, prompt: str, correct: float) -> dict:
    return {"filename": name, "tag": tag, "prompt": prompt, "measures": {"correct": correct, "size": 3.0}}


def add_evaluation(folder: Path, arms: dict[str, str], seed: int = 42, prompts: int = 3) -> None:
    """What ``flowrl eval`` leaves: a picture of each arm's colour for every prompt."""
    for arm, color in arms.items():
        lines = []
        for index in range(prompts):
            facts = {"settings": {"weights": arm, "checkpoint": f"step_{arm}"}}
            write_image(sample_path(folder / arm / "shapes-test", index, 0), picture(color), facts)
            name = f"shapes-test/{index:05d}/samples/0000.png"
            lines.append(row(name, "colors", f"prompt {index}", float(arm == "tuned")))
        for suite in ("geneval", "rewards"):  # two suites of the same samples
            write_text(folder / arm / suite / "results.jsonl", "\n".join(map(json.dumps, lines)) + "\n")
    suites = {name: {"primary": "correct", "arms": {key: {} for key in arms}} for name in ("geneval", "rewards")}
    manifest = {"seed": seed, "arms": {arm: {"checkpoint": "step_000040"} for arm in arms if arm == "tuned"}}
    write_text(folder / "results.json", json.dumps({"suites": suites, "manifest": manifest}))


def add_heldout(run: Path, step: int, color: str, seeds=(7, 8), total: float = 0.5) -> None:
    folder = run / "heldout" / f"step_{step:06d}"
    lines = []
    for place, seed in enumerate(seeds):
        write_image(folder / f"{place:04d}.png", picture(color))
        facts = {"prompt": "a red circle", "prompt_id": 3, "seed": seed, "total": total, "tag": "colors"}
        lines.append({"file": f"{place:04d}.png", **facts})
    write_text(folder / "samples.jsonl", "\n".join(map(json.dumps, lines)) + "\n")


# ---------------------------------------------------------------- pairs


def test_pairs_of_an_evaluation_are_base_and_tuned_once_each(tmp_path):
    run = new_run(tmp_path / "run")
    add_heldout(run, 0, "red")
    add_heldout(run, 9, "green")
    add_evaluation(run / "eval", {"base": "red", "tuned": "green"})
    found = find_pairs(run)
    assert (found.this, found.other, found.measure) == ("tuned (step_000040)", "base", "rewards/correct")
    assert [pair.prompt for pair in found.pairs] == ["prompt 0", "prompt 1", "prompt 2"]
    assert {(pair.this.reward, pair.other.reward, pair.tag) for pair in found.pairs} == {(1.0, 0.0, "colors")}
    assert "tuned" in found.pairs[0].this.picture.parts and "base" in found.pairs[0].other.picture.parts
    again = find_pairs(run / "eval")  # the folder of an evaluation, as --out names it
    assert [pair.key for pair in again.pairs] == [pair.key for pair in found.pairs]


def test_without_an_evaluation_held_out_samples_before_and_after_are_paired(tmp_path):
    run = new_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"has no samples of base and tuned; .*flowrl eval"):
        find_pairs(run)
    add_heldout(run, 0, "red", (7, 8, 9), total=0.25)
    add_heldout(run, 5, "blue", (8,))
    add_heldout(run, 9, "green", (9, 8))
    found = find_pairs(run)
    assert (found.this, found.other) == ("iteration 9", "base") and len(found.pairs) == 2
    assert {(pair.this.reward, pair.other.reward, pair.tag) for pair in found.pairs} == {(0.5, 0.25, "colors")}
    add_heldout(run, 9, "red", (8, 9))
    with pytest.raises(UserError, match=r"all 2 samples .* are equal"):
        find_pairs(run)


def test_two_runs_are_compared_at_equal_noise(tmp_path):
    one, two = new_run(tmp_path / "one"), new_run(tmp_path / "two")
    add_heldout(one, 9, "red")
    with pytest.raises(UserError, match="two has no samples to compare"):
        find_pairs(one, str(two))
    add_heldout(two, 3, "green", (8, 9))
    found = find_pairs(one, str(two))
    assert len(found.pairs) == 1 and (found.this, found.other) == (str(one), str(two))
    add_evaluation(one / "eval", {"base": "red", "tuned": "green"})
    add_evaluation(tmp_path / "model", {"model": "blue"})
    assert len(find_pairs(one, str(tmp_path / "model")).pairs) == 3
    add_evaluation(tmp_path / "model", {"model": "blue"}, seed=1)
    with pytest.raises(UserError, match=r"--seed 42 and .* --seed 1, so noise"):
        find_pairs(one, str(tmp_path / "model"))
    with pytest.raises(UserError, match="is the run itself"):
        find_pairs(one, str(one))
    with pytest.raises(UserError, match="is not a run"):
        find_pairs(one, str(tmp_path / "nothing"))


def test_a_vote_belongs_to_what_was_shown(tmp_path):
    run = new_run(tmp_path / "run")
    add_heldout(run, 0, "red")
    add_heldout(run, 9, "green")
    add_evaluation(tmp_path / "same", {"base": "red", "tuned": "red"})
    with pytest.raises(UserError, match="are equal"):  # but for what is written in the files
        find_pairs(tmp_path / "same")
    keys = [pair.key for pair in find_pairs(run).pairs]
    add_heldout(run, 9, "blue")
    assert not {pair.key for pair in find_pairs(run).pairs} & set(keys)


# ---------------------------------------------------------------- the page


def test_the_page_is_private_and_blind(tmp_path):
    run = new_run(tmp_path / "run")
    add_evaluation(run / "eval", {"base": "red", "tuned": "green"})
    judging = Judging(find_pairs(run), votes_path(run))
    stranger = testclient.TestClient(build_app(judging, TOKEN), base_url="http://127.0.0.1:8421")
    for address in ("/", "/state", "/pairs/0", "/pairs/0/left", "/results", "/static/judge.js", "/?token=no"):
        assert stranger.get(address).status_code == 401, address
    client = guest(judging)
    for address in ("/static/judge.js", "/static/judge.css", "/static/page.css"):
        assert client.get(address).status_code == 200
    told = "".join(client.get(f"/pairs/{i}").text for i in range(3)) + client.get("/state").text + client.get("/").text
    assert not any(word in told for word in ("tuned", "base", "step_", "reward", "shapes-test"))
    answer = client.get("/pairs/0/left")
    assert answer.headers["content-type"] == "image/png" and answer.content.startswith(b"\x89PNG")
    assert not {"last-modified", "etag", "content-disposition"} & set(answer.headers)
    assert b"settings" in judging.pairs[0].this.picture.read_bytes() and b"settings" not in answer.content
    with Image.open(io.BytesIO(answer.content)) as opened:
        assert opened.size == (32, 32) and opened.convert("RGB").getcolors(9999)
    shown = {side: client.get(f"/pairs/0/{side}").content for side in ("left", "right")}
    first = judging.pairs[0]
    assert shown["left"] == (first.this if judging.left(first) == "this" else first.other).content != shown["right"]
    assert client.get("/pairs/9").status_code == 404 and client.get("/pairs/0/middle").status_code == 422
    assert client.get("/results").status_code == 409


def test_a_vote_needs_the_token_and_a_known_answer(tmp_path):
    client = guest(Judging(texts(2), tmp_path / "votes.jsonl"))
    assert client.post("/votes", json={"pair": 0, "vote": "left"}).status_code == 403
    assert say(client, 0, "both").status_code == 422 and say(client, 2, "left").status_code == 404
    assert not (tmp_path / "votes.jsonl").exists()


def test_judging_goes_on_where_it_was_and_a_second_vote_counts(tmp_path):
    path = tmp_path / "votes.jsonl"
    client = guest(Judging(texts(3), path, "ada"))
    assert say(client, 0, "left").json()["votes"] == ["left", None, None]
    assert say(client, 1, "skip").json()["votes"] == ["left", "skip", None]
    assert say(client, 0, "tie").json()["votes"] == ["tie", "skip", None]
    before = [pair.key for pair in Judging(texts(3), path, "ada").pairs]
    later = guest(Judging(texts(3), path, "ada"))
    assert later.get("/state").json()["votes"] == ["tie", "skip", None]
    assert [pair.key for pair in Judging(texts(3), path, "ada").pairs] == before
    assert guest(Judging(texts(3), path, "bob")).get("/state").json()["votes"] == [None] * 3
    say(later, 2, "left")
    rows = later.get("/results").json()["tables"][0]
    assert rows[0] == ["compared", "tuned against base"] and "3 of 1 judge:" in rows[1][1]
    assert len(path.read_text().splitlines()) == 4, "nothing that was said is removed"


def test_prompts_and_texts_of_a_run_are_data(tmp_path):
    pairs = Pairs("a", "b", "", [Pair("k", EVIL, "", Sample(None, EVIL, None), Sample(None, "\x1b[2J", None))], 0)
    answer = guest(Judging(pairs, tmp_path / "votes.jsonl")).get("/pairs/0")
    assert "<" not in answer.text and answer.json()["prompt"] == EVIL and "\\x1b[2J" in answer.json().__str__()


# ---------------------------------------------------------------- votes on disk


def test_a_line_that_was_cut_short_costs_no_other(tmp_path):
    path = tmp_path / "judgements.jsonl"
    append_vote(path, vote(pair="1"))
    with path.open("a") as file:
        file.write('{"judge": "", "pair": "cut sho')
    append_vote(path, vote(pair="2", prompt="naïve\n"))
    with path.open("a") as file:
        file.write('{"vote": "left"}\n[]\n')
    votes, damaged = read_votes(path)
    assert [each.pair for each in votes] == ["1", "2"] and damaged == 3
    assert votes[1].prompt == "naïve\n"


def test_a_vote_that_cannot_be_kept_is_told(tmp_path):
    with pytest.raises(UserError, match=r"cannot be written .*this vote is not kept"):
        append_vote(tmp_path / "absent" / "votes.jsonl", vote())
    answer = say(guest(Judging(texts(1), tmp_path / "absent" / "votes.jsonl")), 0, "left")
    assert answer.status_code == 409 and "not kept" in answer.text


# ---------------------------------------------------------------- what votes say


def test_sides_are_undone_ties_are_half_and_skips_are_nothing():
    sides = [vote(pair=str(i), left=left, vote=said) for i, (left, said) in enumerate(
        [("this", "left"), ("other", "right"), ("this", "right"), ("other", "tie"), ("this", "skip")]
    )]  # fmt: skip
    (found,) = summarise(sides)
    assert [found[key] for key in ("wins", "losses", "ties", "skipped")] == [2, 1, 1, 1]
    low, high = wilson(2.5, 4)
    assert found["win_rate"] == {"value": 0.625, "low": low, "high": high, "votes": 4}
    assert found["left"]["value"] == pytest.approx(1 / 3) and found["left"]["votes"] == 3


def test_agreement_is_with_the_reward_where_there_is_a_preference():
    said = [
        vote(pair="1"),  # this, and the reward says so
        vote(pair="2", vote="right"),  # other, and the reward says this
        vote(pair="3", this_reward=0.0),  # the reward has none
        vote(pair="4", this_reward=None),
        vote(pair="5", vote="tie"),
    ]
    assert summarise(said)[0]["agreement"]["value"] == 0.5 and summarise(said)[0]["agreement"]["votes"] == 3
    assert summarise([vote(vote="skip")])[0]["win_rate"]["value"] is None
    assert "no votes" in dict(table(summarise([vote(vote="skip")])[0]))["win rate"]


def test_tags_and_comparisons_are_told_apart():
    found = summarise([vote(pair="1", tag="a"), vote(pair="2", tag="b", vote="right"), vote(pair="3", other="runs/x")])
    assert [each["other"] for each in found] == ["base", "runs/x"]
    assert {tag: rate["value"] for tag, rate in found[0]["tags"].items()} == {"a": 1.0, "b": 0.0}


def judged(tmp_path: Path, answer, count: int = 300) -> dict:
    """The results of a judge who answers every pair by what is shown."""
    judging = Judging(texts(count), tmp_path / "votes.jsonl")
    for pair in judging.pairs:
        judging.vote(pair, answer(judging.shown(pair, "left").text, judging.shown(pair, "right").text))
    (found,) = judging.results()
    return found


def test_who_always_says_left_prefers_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)
    found = judged(tmp_path, lambda left, right: "left")
    rate = found["win_rate"]
    assert rate["low"] < 0.5 < rate["high"] and abs(rate["value"] - 0.5) < 0.09
    assert found["left"]["value"] == 1.0 and "towards 50 %" in dict(table(found))["left preferred"]


def test_who_sees_the_difference_is_heard(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)
    chance = random.Random(0)
    found = judged(
        tmp_path, lambda left, right: "left" if left.startswith("tuned") == (chance.random() < 0.8) else "right"
    )
    assert found["win_rate"]["low"] > 0.7 and found["left"]["low"] < 0.5 < found["left"]["high"]
    assert found["agreement"]["value"] == found["win_rate"]["value"]
    assert set(found["tags"]) == {"easy", "hard"} and "towards" not in dict(table(found))["left preferred"]


def test_the_command_counts(tmp_path):
    run = new_run(tmp_path / "run")
    none = CliRunner().invoke(app, ["judge", str(run), "--results"])
    assert isinstance(none.exception, UserError) and "has no votes" in str(none.exception)
    append_vote(votes_path(run), vote(tag="colors"))
    shown = CliRunner().invoke(app, ["judge", str(run), "--results"]).stdout
    assert "tuned against base" in shown and "100.0% (20.7% to 100.0%), 1 vote\n" in shown and "a tie counts" in shown
    found = json.loads(CliRunner().invoke(app, ["judge", str(run), "--json"]).stdout)
    assert found["damaged_lines"] == 0 and found["comparisons"][0]["wins"] == 1
