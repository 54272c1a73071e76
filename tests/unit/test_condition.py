"""Encoded prompts that are kept: the recent ones, within a limit, at a cost that does not grow with their number."""

import time

from flowrl.models.diffusion.condition import RecentPrompts, _Encoded


def encoded(size: int) -> list[_Encoded]:
    return [_Encoded((), (), size)]


def kept(recent: RecentPrompts, names: str) -> str:
    return "".join(name for name in names if (name,) in recent)


def test_the_most_recently_used_stay_within_the_limit() -> None:
    recent = RecentPrompts(10)
    for name in "abc":
        recent[(name,)] = encoded(3)
    assert kept(recent, "abcd") == "abc"
    assert recent[("a",)][0].size == 3  # used again, so that b is the oldest
    recent[("d",)] = encoded(4)
    assert kept(recent, "abcd") == "acd"
    recent[("a",)] = encoded(1)  # in place of the other: 3 + 4 + 1
    recent[("e",)] = encoded(2)
    assert kept(recent, "abcde") == "acde"
    recent[("f",)] = encoded(100)
    assert kept(recent, "abcdef") == "f", "one is kept, however large"
    recent[("g",)] = encoded(10)
    assert kept(recent, "abcdefg") == "g"


def test_keeping_one_more_does_not_count_all_others_again() -> None:
    recent, begin = RecentPrompts(1 << 40), time.perf_counter()
    for number in range(30_000):
        recent[(str(number),)] = encoded(1000)
    assert time.perf_counter() - begin < 5  # half a minute and more, when all are summed each time
