"""What is kept of single decisions for people to look at."""

import pytest
import torch

from flowrl.parts.decision_record import DecisionRecord
from flowrl.types import Likelihood


def block(values):
    values = torch.tensor(values)
    return Likelihood(torch.zeros_like(values), {"entropy": values})


def test_entropy_is_put_together_from_blocks_as_it_was_first():
    record = DecisionRecord(torch.tensor([1, 4]))
    assert record.entropy() is None
    record.begin(torch.arange(12.0).reshape(6, 2))
    assert record.entropy() is None and record.advantage is not None
    record.note(torch.tensor([4, 0]), slice(0, 2), block([[0.5, 0.25], [9.0, 9.0]]))
    record.note(torch.tensor([2, 3]), slice(0, 2), block([[9.0, 9.0], [9.0, 9.0]]))
    record.note(torch.tensor([1]), slice(1, 2), block([[0.75]]))
    record.note(torch.tensor([1, 4]), slice(0, 2), block([[1.0, 2.0], [3.0, 4.0]]))  # a further epoch
    assert record.entropy().tolist() == [[1.0, 0.75], [0.5, 0.25]]
    assert record.advantage.tolist() == [[2.0, 3.0], [8.0, 9.0]]


def test_what_was_not_trained_on_is_not_known():
    record = DecisionRecord(torch.tensor([0, 1]))
    record.begin(torch.zeros(2, 2))
    record.note(torch.tensor([0]), slice(0, 2), Likelihood(torch.zeros(1, 2), {}))
    assert record.entropy() is None
    record.note(torch.tensor([0]), slice(0, 1), block([[0.5]]))
    found = record.entropy()
    assert found[0, 0] == 0.5 and bool(found.isnan().flatten()[1:].all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_of_the_graph_is_kept(dtype):
    record = DecisionRecord(torch.tensor([0]))
    record.begin(torch.zeros(1, 1))
    entropy = torch.tensor([[0.5]], dtype=dtype, requires_grad=True)
    record.note(torch.tensor([0]), slice(0, 1), Likelihood(torch.zeros(1, 1), {"entropy": entropy * 2}))
    assert not record._noted[0][2].requires_grad and record.entropy().tolist() == [[1.0]]
