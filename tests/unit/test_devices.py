"""What the host reads off a device, and in which precision it computes there."""

from __future__ import annotations

import pytest
import torch

from flowrl import devices
from flowrl.devices import has_float64, to_host, wide


def test_tensors_of_all_types_arrive_as_they_are() -> None:
    given = [
        torch.tensor(0.1, dtype=torch.float64),
        torch.tensor([[1, 2], [3, 2**40]]),
        torch.tensor([True, False, True]),
        torch.tensor([0.1, float("nan"), float("inf")]),
        torch.zeros(0),
        torch.tensor([0.3]).requires_grad_(),
    ]
    for one, found in zip(given, to_host(given), strict=True):
        assert found.dtype == one.dtype and found.shape == one.shape and not found.requires_grad
        assert torch.equal(found.nan_to_num(-1), one.detach().nan_to_num(-1))
    assert to_host([]) == []


def test_float64_is_had_on_the_host_where_a_device_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.tensor([0.1], requires_grad=True)
    assert has_float64("cpu") and wide(x).dtype == torch.float64
    monkeypatch.setattr(devices, "has_float64", lambda kind: False)
    (wide(x) ** 2).sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32 and float(x.grad) == pytest.approx(0.2)


def test_a_device_that_is_not_there_has_no_float64() -> None:
    assert not has_float64("mps") or torch.backends.mps.is_available()


def test_without_an_accelerator_there_is_nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert devices.in_use() == []
    devices.synchronize()
    devices.reset_peaks()


def test_a_device_that_torch_does_not_see_is_refused_by_name() -> None:
    from flowrl.errors import UserError
    from flowrl.models.placement import place
    from flowrl.scorers.loading import device_and_dtype

    for kind in ("cuda", "xpu", "mps"):
        if not devices.count(kind):
            with pytest.raises(UserError, match=f"model.device is '{kind}' but torch sees no {kind.upper()} device"):
                place("float32", kind)
            with pytest.raises(UserError, match=f"torch sees no {kind.upper()} device"):
                device_and_dtype(kind, "float32")
    if not torch.accelerator.is_available():
        assert place("float32", "auto").device.type == "cpu" and devices.accelerators() == []


def test_the_accelerator_of_any_kind_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    from flowrl.models.placement import place

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    monkeypatch.setattr(torch.mps, "is_available", lambda: True, raising=False)
    monkeypatch.setattr(torch.mps, "device_count", lambda: 1)
    assert place("float32", "auto").device.type == "mps"
