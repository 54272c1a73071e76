"""Samples of a data set: how they are read, what a config of them leaves out, and pictures made latents."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flowrl.media import read_picture


def test_pictures_in_every_form(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    data = io.BytesIO()
    image.save(data, "PNG")
    wanted = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    forms: list[Any] = [
        str(tmp_path / "a.png"),
        data.getvalue(),
        {"bytes": data.getvalue(), "path": None},
        image,
        wanted,
    ]
    assert all(torch.equal(read_picture(form), wanted) for form in forms)
    clear = image.convert("RGBA")
    clear.putalpha(0)
    assert torch.equal(read_picture(clear), torch.ones(3, 4, 6))
    for wrong, problem in ((3, ValueError), (str(tmp_path / "b.png"), OSError), (b"no picture", OSError)):
        with pytest.raises(problem):
            read_picture(wrong)
