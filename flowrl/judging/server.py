"""The page that shows pairs blindly and takes votes, served to this machine alone (`flowrl.report.guard`).

A browser is told neither which model a side is, nor a file's name or date, before all pairs are judged.
"""

from __future__ import annotations

import threading
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Header, Request
from fastapi.responses import Response
from pydantic import BaseModel

from flowrl.judging.pairs import Pair, Pairs
from flowrl.judging.results import NOTES, summarise, table
from flowrl.judging.votes import Choice, Vote, append_vote, now, read_votes
from flowrl.math.random import derive
from flowrl.report import page
from flowrl.report.feed import as_json
from flowrl.report.guard import PROOF, Guard, Guarded, RefusedError, guarded
from flowrl.report.pictures import readable

KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
STATIC = {"page.css": "text/css", "judge.css": "text/css", "judge.js": "text/javascript"}
Side = Literal["left", "right"]


class Judging:
    """The pairs in the order they are shown to one judge, and the votes so far. Safe between threads.

    Order and sides follow from ``(seed, judge, pair)``: they are the same when judging goes on, whatever pairs there
    are.
    """

    def __init__(self, pairs: Pairs, path: Path, judge: str = "", seed: int = 0) -> None:
        self.compared, self.path, self.judge, self._seed = pairs, path, judge, seed
        self.pairs = sorted(pairs.pairs, key=lambda pair: derive(seed, "order", judge, pair.key))
        self._lock = threading.Lock()

    def left(self, pair: Pair) -> Literal["this", "other"]:
        """Which model is on the left."""
        return "this" if derive(self._seed, "left", self.judge, pair.key) & 1 else "other"

    def done(self) -> list[Choice | None]:
        """The vote on every pair; None where there is none yet."""
        votes, _ = read_votes(self.path)
        mine: dict[str, Choice] = {vote.pair: vote.vote for vote in votes if vote.judge == self.judge}
        return [mine.get(pair.key) for pair in self.pairs]

    def shown(self, pair: Pair, side: Side) -> Any:
        """The sample of a side."""
        return pair.this if (self.left(pair) == "this") == (side == "left") else pair.other

    def vote(self, pair: Pair, choice: Choice) -> None:
        """Keep a vote."""
        compared = self.compared
        vote = Vote(
            self.judge,
            pair.key,
            pair.prompt,
            pair.tag,
            compared.this,
            compared.other,
            self.left(pair),
            choice,
            compared.measure,
            pair.this.reward,
            pair.other.reward,
            now(),
        )
        with self._lock:
            append_vote(self.path, vote)

    def results(self) -> list[dict[str, Any]]:
        """Of this comparison, by all judges."""
        votes, _ = read_votes(self.path)
        compared = (self.compared.this, self.compared.other)
        return summarise([vote for vote in votes if (vote.this, vote.other) == compared])


class Given(BaseModel):
    """A vote as the page sends it."""

    pair: int
    vote: Choice


def build_app(judging: Judging, token: str) -> FastAPI:
    """The application of one judge."""
    app = guarded(Guard(token, lambda: _file("judge.html")), private)
    app.state.judging = judging
    return app


def _judging(request: Request) -> Judging:
    return request.app.state.judging


Known = Annotated[Judging, Depends(_judging)]


def _chosen(number: int, judging: Known) -> Pair:
    if not 0 <= number < len(judging.pairs):
        raise RefusedError(404, "there is no such pair")
    return judging.pairs[number]


Chosen = Annotated[Pair, Depends(_chosen)]
private = APIRouter()


@private.get("/static/{name}")
def static(name: str) -> Response:
    """A script or style sheet of ours."""
    if name not in STATIC:
        raise RefusedError(404, "there is no such file")
    return Response(page.static(name) if name == "page.css" else _file(name), media_type=STATIC[name])


@private.get("/state")
def state(judging: Known, guard: Guarded) -> Response:
    """How far the judge is, and what a vote carries."""
    return _json({"votes": judging.done(), "judge": judging.judge, "token": guard.token})


@private.get("/pairs/{number}")
def pair(number: int, chosen: Chosen, judging: Known) -> Response:
    """The prompt and both sides: texts, or addresses of pictures."""
    sides = {}
    for side in ("left", "right"):
        text = judging.shown(chosen, side).text
        sides[side] = {"image": f"pairs/{number}/{side}"} if text is None else {"text": readable(text)}
    return _json({"prompt": readable(chosen.prompt), **sides})


@private.get("/pairs/{number}/{side}")
def picture(side: Side, chosen: Chosen, judging: Known) -> Response:
    """The picture of a side, and nothing else of its file."""
    sample = judging.shown(chosen, side)
    if sample.picture is None or not sample.picture.is_file():
        raise RefusedError(404, "there is no picture")
    return Response(sample.content, media_type=KINDS[sample.picture.suffix.lower()])


@private.post("/votes")
def vote(given: Given, judging: Known, guard: Guarded, proof: Annotated[str, Header(alias=PROOF)] = "") -> Response:
    """Keep a vote; on disk when this answers."""
    if not guard.is_token(proof):
        raise RefusedError(403, "a vote carries the token")
    judging.vote(_chosen(given.pair, judging), given.vote)
    return _json({"votes": judging.done()})


@private.get("/results")
def results(judging: Known) -> Response:
    """What the votes say, once all pairs are judged."""
    left = judging.done().count(None)
    if left:
        raise RefusedError(409, f"{left} pairs are not judged yet, and numbers would tell which is which")
    return _json({"tables": [table(found) for found in judging.results()], "notes": NOTES, "file": str(judging.path)})


def _file(name: str) -> str:
    return (resources.files("flowrl.judging") / "static" / name).read_text(encoding="utf-8")


def _json(value: Any) -> Response:
    return Response(as_json(value), media_type="application/json")
