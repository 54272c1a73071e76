"""Pictures with known content, drawn: five objects that detectors of COCO know, and the ten colours."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SIDE = 384
RGB = tuple[int, int, int]
COLORS: dict[str, RGB] = {
    "red": (215, 25, 25),
    "orange": (255, 135, 0),
    "yellow": (250, 225, 20),
    "green": (25, 140, 35),
    "blue": (25, 55, 215),
    "purple": (115, 25, 155),
    "pink": (255, 135, 185),
    "brown": (105, 60, 25),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
}
"""GenEval's colours as nobody would dispute them."""
SKY, GRASS, WALL, STEEL = (150, 190, 230), (95, 140, 75), (222, 214, 200), (110, 115, 120)


def drawings() -> tuple[list[str], Tensor]:
    """The objects' names and their pictures, uint8 [N, 3, SIDE, SIDE]."""
    return list(_DRAWN), torch.stack([_drawn(draw) for draw in _DRAWN.values()])


def flat(color: str, side: int = 64) -> Tensor:
    """A picture of nothing but a colour, uint8 [3, side, side]."""
    return torch.tensor(COLORS[color], dtype=torch.uint8)[:, None, None].expand(3, side, side).contiguous()


def _drawn(draw: Callable[[ImageDraw.ImageDraw], None]) -> Tensor:
    picture = Image.new("RGB", (SIDE, SIDE), SKY)
    draw(ImageDraw.Draw(picture))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _circle(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: RGB, edge: int = 0) -> None:
    box = (x - radius, y - radius, x + radius, y + radius)
    draw.ellipse(box, fill=fill, outline=(20, 20, 20) if edge else None, width=edge)


def _ring(x: float, y: float, radius: float, corners: int, turn: float = 0.0) -> list[tuple[float, float]]:
    angles = [turn + math.tau * corner / corners for corner in range(corners)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


def _stop_sign(draw: ImageDraw.ImageDraw) -> None:
    draw.rectangle((0, 310, SIDE, SIDE), fill=GRASS)
    draw.rectangle((184, 150, 200, 350), fill=STEEL)
    draw.polygon(_ring(192, 145, 118, 8, math.pi / 8), fill=(255, 255, 255))
    draw.polygon(_ring(192, 145, 108, 8, math.pi / 8), fill=(190, 20, 30))
    draw.text((192, 145), "STOP", fill=(255, 255, 255), font=ImageFont.load_default(78), anchor="mm")


def _clock(draw: ImageDraw.ImageDraw) -> None:
    draw.rectangle((0, 0, SIDE, SIDE), fill=WALL)
    _circle(draw, 192, 192, 140, (250, 250, 248), 12)
    for hour, (x, y) in enumerate(_ring(192, 192, 108, 12, -math.pi / 3), 1):
        draw.text((x, y), str(hour), fill=(20, 20, 20), font=ImageFont.load_default(30), anchor="mm")
    draw.line((192, 192, 150, 132), fill=(20, 20, 20), width=10)
    draw.line((192, 192, 275, 150), fill=(20, 20, 20), width=6)
    _circle(draw, 192, 192, 9, (20, 20, 20))


def _traffic_light(draw: ImageDraw.ImageDraw) -> None:
    draw.rectangle((184, 270, 200, SIDE), fill=STEEL)
    draw.rounded_rectangle((135, 40, 249, 290), 18, fill=(35, 40, 38), outline=(15, 15, 15), width=5)
    for place, color in enumerate(((235, 30, 25), (70, 60, 20), (20, 65, 35))):
        _circle(draw, 192, 88 + 77 * place, 31, color, 4)


def _umbrella(draw: ImageDraw.ImageDraw) -> None:
    draw.rectangle((0, 330, SIDE, SIDE), fill=(190, 170, 130))
    draw.rectangle((188, 60, 196, 320), fill=(90, 60, 35))
    draw.arc((160, 295, 196, 345), 0, 180, fill=(90, 60, 35), width=8)
    draw.pieslice((42, 60, 342, 340), 180, 360, fill=(200, 30, 60))
    for place in range(4):
        _circle(draw, 79.5 + 75 * place, 200, 37.5, SKY)
    for x in (117, 192, 267):
        draw.line((192, 60, x, 198), fill=(140, 15, 40), width=3)


def _kite(draw: ImageDraw.ImageDraw) -> None:
    top, left, bottom, right, middle = (200, 40), (105, 130), (200, 290), (295, 130), (200, 130)
    for corners, color in (((top, left, middle), "red"), ((top, right, middle), "yellow")):
        draw.polygon(corners, fill=COLORS[color])
    for corners, color in (((left, bottom, middle), "blue"), ((right, bottom, middle), "green")):
        draw.polygon(corners, fill=COLORS[color])
    draw.line((200, 290, 230, 330, 190, 350, 225, SIDE), fill=(250, 250, 250), width=5)


_DRAWN: dict[str, Callable[[ImageDraw.ImageDraw], None]] = {
    "stop sign": _stop_sign,
    "clock": _clock,
    "traffic light": _traffic_light,
    "umbrella": _umbrella,
    "kite": _kite,
}
