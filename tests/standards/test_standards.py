"""What presets report is what was committed: bit for bit on the same kind of machine, within tolerances elsewhere."""

from __future__ import annotations

import copy

import pytest
import torch

from tests import standards
from tests.standards import CASES, Difference, differences, explain, kind, read, wrong


@pytest.mark.slow
def test_presets_report_what_was_committed() -> None:
    """Some 30 s on one idle core. ``python -m tests.standards --renew`` where a change is meant."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = {preset: differences(read(preset).metrics, standards.run(preset)) for preset in CASES}
    finally:
        torch.set_num_threads(before)
    bad = wrong(found, [preset for preset in CASES if read(preset).kind == kind()])
    assert not bad, "\n".join(explain(case, every) for case, every in bad.items())


def test_every_case_is_committed_and_no_other() -> None:
    assert {path.stem for path in standards.KEPT.glob("*.json")} == set(CASES)
    for preset in CASES:
        metrics = read(preset).metrics
        assert len(metrics) == standards.ITERATIONS
        assert sum(bool(line["grad_norm"]) for line in metrics) >= 4  # without a signal a case shows little
        assert not any(name.startswith("time/") or "seconds" in name for line in metrics for name in line)


def changed(metric: str, step: int, factor: float) -> list[Difference]:
    old = read("grpo").metrics
    new = copy.deepcopy(old)
    value = new[step - 1][metric]
    assert value
    new[step - 1][metric] = value * factor
    return differences(old, new)


def test_the_same_kind_is_held_to_the_last_bit() -> None:
    found = {"grpo": changed("grad_norm", 3, 1 + 1e-15)}
    assert len(found["grpo"]) == 1
    assert wrong(found, ["grpo"]) == found and wrong(found, []) == {}


def test_another_kind_is_held_to_a_tolerance_that_is_tight_at_first() -> None:
    assert wrong({"grpo": changed("grad_norm", 1, 1.01)}, [])
    assert not wrong({"grpo": changed("grad_norm", 1, 1.0002)}, [])
    flipped = changed("grad_norm", 3, 1.2)
    assert not wrong({"a": flipped}, [])
    assert set(wrong(dict.fromkeys(("a", "b"), flipped), [])) == {"a", "b"}
    assert wrong({"a": changed("grad_norm", 3, 10.0)}, [])


def test_a_metric_that_comes_or_goes_differs_everywhere() -> None:
    old = read("grpo").metrics
    less = [{name: value for name, value in line.items() if name != "entropy"} for line in old]
    assert set(wrong({"grpo": differences(old, less)}, [])) == {"grpo"}
    assert set(wrong({"grpo": differences(less, old)}, [])) == {"grpo"}


def test_the_explanation_names_metric_step_old_new_and_relative() -> None:
    text = explain("grpo", [Difference("loss", 2, 0.5, 0.75, 1.0), Difference("loss", 3, 0.5, None, 1.0)])
    assert "2 numbers differ, first in iteration 2" in text
    assert text.splitlines()[2].split() == ["2", "loss", "0.5", "0.75", "2.5e-01"]
    assert text.splitlines()[3].split() == ["3", "loss", "0.5", "-", "inf"]
