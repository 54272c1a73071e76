"""What commands tell: numbers with their nouns, summaries beside the paper, rows of checkpoints."""

from __future__ import annotations

import pytest

from flowrl.commands.algorithms import algorithm_rows, chosen, differences, without_paper
from flowrl.composition import families, paper, preset_names, summary
from flowrl.errors import UserError, counted


def test_counted():
    assert counted(1, "images") == "1 image" and counted(0, "images") == "0 images"
    assert counted(2, "completions") == "2 completions"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("AWM: samples (arXiv:1.2).", "AWM: samples."),
        ("CISPO: a ratio (MiniMax-M1, arXiv:1.2).", "CISPO: a ratio (MiniMax-M1)."),
        ("ELBO: a bound (LLaDA, arXiv:1.2, for it).", "ELBO: a bound (LLaDA, for it)."),
    ],
)
def test_a_table_names_a_paper_once(line: str, expected: str):
    assert without_paper(line, "arXiv:1.2") == expected


@pytest.mark.parametrize("name", preset_names())
def test_no_summary_repeats_its_paper(name: str):
    line = without_paper(summary(name), paper(name))
    assert paper(name) not in line and "()" not in line and "( " not in line


def test_differences_are_those_of_the_fields():
    rows = {key: (one, other) for key, one, other in differences("grpo", "dapo")}
    left, right = (algorithm_rows(name)[0]["parts"]["objective"] for name in ("grpo", "dapo"))
    assert rows["objective.high"] == (str(left["high"]), str(right["high"]))
    assert "objective.use" not in rows, "an equal field is no difference"
    with pytest.raises(UserError, match="grppo"):
        differences("grppo", "dapo")


def test_algorithms_are_chosen_by_family_slot_and_source():
    rows = algorithm_rows()

    def names(**by: str) -> set[str]:
        return {row["name"] for row in chosen(rows, **by)}

    assert {"grpo", "ppo"} <= names(family="causal") and "flow_grpo" not in names(family="causal")
    assert "flow_grpo" in names(slot="objective=Clipped") and "gspo" not in names(slot="objective=clipped")
    assert names(slot="dynamics=CPS") == {row["name"] for row in rows if "'CPS'" in str(row["parts"])} != set()
    assert names(source="2402.03300") == {"grpo"} == names(source="arxiv:2402.03300", family="causal")
    assert names(slot="token_advantage") < names() and "ppo" in names(slot="token_advantage")
    for by, said in (
        ({"family": "casual"}, "causal"),
        ({"slot": "objectiv"}, "objective"),
        ({"slot": "objective=Cliped"}, "Clipped"),
    ):
        with pytest.raises(UserError, match=said):
            chosen(rows, **by)


def test_families_of_a_preset_are_those_its_argument_may_name(tmp_path):
    own = tmp_path / "mine.py"
    own.write_text(
        "from typing import Literal\nfrom flowrl.algorithms.grpo import grpo\n"
        'def either(*, family: Literal["masked", "causal"] = "causal"):\n    return grpo()\n'
    )
    assert families(f"{own}:either") == ("causal", "masked")
    assert families("flow_grpo") == ("diffusion", "control") and families("grpo") == ("causal",)
    assert families("dgpo") == ("diffusion",)  # compares the pictures of a group at equal noise
    assert all(row["families"] == list(families(row["name"])) for row in algorithm_rows())
