"""The OCR reward reads rendered text, falls with every wrong letter, and needs no network."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from flowrl.errors import UserError
from rewards.ocr import accuracy, ocr, ordered, wanted_text


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def font(size: int) -> Any:
    return ImageFont.load_default(size)


def written(text: str, size: int = 40, width: int = 512, height: int = 160) -> Tensor:
    """[1, 3, height, width]: dark text on a light ground; lines are separated by a newline."""
    image = Image.new("RGB", (width, height), (225, 232, 240))
    ImageDraw.Draw(image).multiline_text((30, 30), text, font=font(size), fill=(25, 20, 60), spacing=20)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


@pytest.fixture(scope="module")
def reader() -> Any:
    pytest.importorskip("rapidocr")
    return ocr(workers=1)


SIGNS = ["Hello World", "OPEN", "Flow 2025", "Grand Hotel", "coffee shop", "No parking"]


def test_ocr_reads_rendered_text(reader: Any) -> None:
    images = torch.cat([written(sign) for sign in SIGNS])
    scores = reader(images, [f'a sign that says "{sign}"' for sign in SIGNS])
    assert scores.tolist() == [1.0] * len(SIGNS)
    by_column = reader(images, ["a sign"] * len(SIGNS), text=SIGNS)
    assert torch.equal(by_column, scores)
    missing = reader(images[:3], ["a sign", "a sign “OPEN”", 'a sign ""'], text=[None, None, " "])
    assert missing.isnan().tolist() == [True, False, True] and float(missing[1]) == 1.0


def test_ocr_falls_as_letters_are_corrupted(reader: Any) -> None:
    wanted = "MOUNTAIN"
    shown = ["MOUNTAIN", "MOUNTAXN", "MOUXTAXN", "XOUXTAXN", "XOUXTAXX"]
    images = torch.cat([written(text) for text in shown])
    scores = reader(images, [f'"{wanted}"'] * len(shown))
    assert scores.tolist() == pytest.approx([1 - wrong / 8 for wrong in range(5)])
    blank = reader(torch.full((1, 3, 160, 512), 0.5), [f'"{wanted}"'])
    assert float(blank[0]) == 0  # it was scored: nothing was read


def test_ocr_hands_over_pixels_as_blue_green_red() -> None:
    pytest.importorskip("rapidocr")
    scorer: Any = ocr(workers=1)
    seen: list[Any] = []
    scorer._engine = lambda: lambda array: seen.append(array) or SimpleNamespace(txts=None)
    red = torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1).expand(1, 3, 40, 60)
    assert float(scorer(red, ['"a"'])[0]) == 0
    assert seen[0].shape == (40, 60, 3) and seen[0].dtype == np.uint8 and seen[0][0, 0].tolist() == [0, 128, 255]


def test_ocr_strict_counts_other_text_and_reads_in_order() -> None:
    pytest.importorskip("rapidocr")
    strict = ocr(mode="strict", workers=2)
    images = torch.cat([written("Hello World"), written("Hello\nWorld"), written("Hello World\nbuy more now")])
    scores = strict(images, ['"hello world"'] * 3)
    assert scores.tolist() == pytest.approx([1.0, 1.0, 1 - 10 / 20])
    strict.close()


@pytest.mark.parametrize(
    ("mode", "wanted", "lines", "expected"),
    [
        ("flow_grpo", "Hello World", ["HELLO", "world"], 1.0),
        ("flow_grpo", "cat", ["con", "cat", "enate"], 1.0),  # the rule that flooding exploits
        ("strict", "cat", ["con", "cat", "enate"], 1 - 8 / 11),
        ("flow_grpo", "cat", ["cot"], 2 / 3),
        ("strict", "cat", ["cot"], 2 / 3),
        ("flow_grpo", "cat", ["something else altogether"], 0.0),
        ("strict", "ﬁne Straße", ["FINE", "STRASSE"], 1.0),
        ("flow_grpo", "cat", [], 0.0),
        ("strict", "cat", [], 0.0),
    ],
)
def test_ocr_rules(mode: Any, wanted: str, lines: list[str], expected: float) -> None:
    pytest.importorskip("rapidfuzz")
    assert accuracy(wanted, lines, mode) == pytest.approx(expected)


def test_ocr_finds_the_wanted_text_and_the_order_of_lines() -> None:
    assert wanted_text('a "red" and a "blue" sign', None) == "red"
    assert wanted_text("a “red” sign", None) == "red" and wanted_text("a sign", None) is None
    assert wanted_text('a "red" sign', "blue") == "blue"

    def box(x: float, y: float) -> Any:
        return np.array([[x, y], [x + 30, y], [x + 30, y + 20], [x, y + 20]], dtype=float)

    assert ordered([(box(0, 50), "c"), (box(60, 4), "b"), (box(0, 0), "a"), (box(40, 47), "d")]) == ["a", "b", "c", "d"]


@pytest.mark.slow
def test_ocr_works_without_network() -> None:
    pytest.importorskip("rapidocr")
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise OSError('no network')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "import torch; from rewards.ocr import ocr\n"
        "print(float(ocr(workers=1)(torch.ones(1, 3, 64, 64), ['\"a\"'])[0]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "0.0", done.stderr[-2000:]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(UserError, match=r"needs the package rapidocr: pip install -e '.*\[rewards\]'"):
        ocr()
