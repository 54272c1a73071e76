"""Draws: which sample of its group a row is, and what belongs to its prompt, also after a cut."""

from __future__ import annotations

import pytest
import torch

from flowrl.types import Chat, Draw, place_in_group, prompts_of


@pytest.mark.parametrize(
    ("group", "place"),
    [
        ([4, 4, 4, 2, 2, 9], [0, 1, 2, 0, 1, 0]),
        ([0], [0]),
        ([], []),
        ([1, 1, 0, 0, 1], [0, 1, 0, 1, 0]),  # as many runs as are written down: the last one is another group
    ],
)
def test_place_counts_from_the_start_of_a_group(group: list[int], place: list[int]) -> None:
    assert place_in_group(torch.tensor(group, dtype=torch.int64)).tolist() == place


def test_rows_of_a_draw_keep_their_place_and_prompt() -> None:
    prompts = prompts_of(["a", "a", "b", "b"])
    draw = Draw.of(torch.arange(4), torch.tensor([7, 7, 8, 8]), 3, 5, prompts)
    cut = draw.take(torch.tensor([3, 1]))
    assert cut.place.tolist() == [1, 1] and cut.seeds.tolist() == [3, 1]
    assert [prompt.text for prompt in cut.prompts] == ["b", "a"] and (cut.iteration, cut.shared_seed) == (3, 5)
    assert Draw.of(torch.arange(2), torch.arange(2), 0, 0).take(torch.tensor([1])).prompts == ()


def test_prompts_of_texts_and_conversations() -> None:
    chat = Chat.of([{"role": "user", "content": "hello"}])
    text, talk = prompts_of(["hello", chat])
    assert (text.model_input, text.id, talk.model_input, talk.id) == ("hello", 0, chat, 1)
