"""Scenes of coloured shapes, and their pictures: what the demo model learns to see."""

from __future__ import annotations

import colorsys
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
HUES = {"red": 0.0, "orange": 0.075, "yellow": 0.155, "green": 0.35, "blue": 0.61, "purple": 0.79}
COLOURS = (*HUES, "black", "white")
PLACES = (
    "at the top left",
    "at the top",
    "at the top right",
    "on the left",
    "in the middle",
    "on the right",
    "at the bottom left",
    "at the bottom",
    "at the bottom right",
)
"""The cells of a picture, in reading order; each holds one shape at most."""
MOST = 4
"""Shapes in a scene."""


@dataclass(frozen=True)
class Shape:
    """Lengths and places are in parts of the picture's width; (0, 0) is its upper left corner."""

    kind: str
    colour: str
    cell: int
    """Index into PLACES."""
    x: float
    y: float
    radius: float
    angle: float
    rgb: tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """Shapes in reading order, on a background that fades from one colour to another."""

    shapes: tuple[Shape, ...]
    background: tuple[float, ...]
    """The two colours, 2 x RGB."""
    fade: float
    """Direction in which the background fades, in radians."""
    noise: float
    """Standard deviation of what is added to each value of a pixel (0 ... 1)."""


def random_scene(rng: random.Random) -> Scene:
    """A scene of 0 to 4 shapes that do not touch, often of few kinds, so that there is something to count."""
    dark = rng.random() < 0.3
    plain = rng.random() < 0.4
    first = _background(rng, dark)
    background = first + (first if plain else _background(rng, dark))
    count = rng.choices(range(MOST + 1), (3, 28, 23, 23, 23))[0]
    kinds, colours = SHAPES, tuple(name for name in COLOURS if name != ("black" if dark else "white"))
    if rng.random() < 0.4:
        kinds, colours = rng.sample(kinds, 2), rng.sample(colours, 2)
    cells = sorted(rng.sample(range(len(PLACES)), count))
    alone_and_large = count == 1 and rng.random() < 0.4
    if alone_and_large:
        cells = [PLACES.index("in the middle")]
    shapes = tuple(
        _shape(rng, rng.choice(kinds), rng.choice(colours), cell, alone_and_large) for cell in cells
    )
    return Scene(
        shapes, background, rng.uniform(0, 2 * math.pi), 0.0 if rng.random() < 0.4 else rng.uniform(0, 0.04)
    )


def _background(rng: random.Random, dark: bool) -> tuple[float, float, float]:
    if dark:
        return colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.5), rng.uniform(0, 0.25))
    return colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.12), rng.choice((1.0, rng.uniform(0.8, 1.0))))


def _shape(rng: random.Random, kind: str, colour: str, cell: int, large: bool) -> Shape:
    radius = rng.uniform(0.15, 0.4) if large else rng.uniform(0.09, 0.15)
    spare = 0.06 if large else 1 / 6 - radius
    row, column = divmod(cell, 3)
    return Shape(
        kind,
        colour,
        cell,
        x=(2 * column + 1) / 6 + rng.uniform(-spare, spare),
        y=(2 * row + 1) / 6 + rng.uniform(-spare, spare),
        radius=radius,
        angle=rng.uniform(-0.15, 0.15),
        rgb=_rgb(rng, colour),
    )


def _rgb(rng: random.Random, colour: str) -> tuple[float, float, float]:
    """A shade of the colour."""
    if colour in HUES:
        hue = (HUES[colour] + rng.uniform(-0.02, 0.02)) % 1
        return colorsys.hsv_to_rgb(hue, rng.uniform(0.8, 1.0), rng.uniform(0.75, 1.0))
    grey = rng.uniform(0, 0.1)
    return (grey, grey, grey) if colour == "black" else (1 - grey, 1 - grey, 1 - grey)


@dataclass(frozen=True)
class Table:
    """Scenes as numbers, in the order of the shapes' kinds."""

    backgrounds: np.ndarray
    """[N, 8] fp32: two colours, fade and noise."""
    owners: np.ndarray
    """[M] int64: the scene that a shape belongs to."""
    kinds: np.ndarray
    """[M] int64: indices into SHAPES, ascending."""
    colours: np.ndarray
    """[M] int64: indices into COLOURS."""
    shapes: np.ndarray
    """[M, 7] fp32: x, y, radius, angle and RGB."""

    @classmethod
    def of(cls, scenes: Sequence[Scene]) -> Table:
        found = [(SHAPES.index(s.kind), n, s) for n, scene in enumerate(scenes) for s in scene.shapes]
        found.sort(key=lambda item: item[:2])
        return cls(
            np.array([(*scene.background, scene.fade, scene.noise) for scene in scenes], np.float32),
            np.array([n for _, n, _ in found], np.int64),
            np.array([kind for kind, _, _ in found], np.int64),
            np.array([COLOURS.index(s.colour) for _, _, s in found], np.int64),
            np.array([(s.x, s.y, s.radius, s.angle, *s.rgb) for _, _, s in found], np.float32).reshape(-1, 7),
        )


def draw(table: Table, size: int, generator: torch.Generator) -> Tensor:
    """Pictures of `size` x `size` pixels, fp32 [N, 3, size, size] from 0 to 1, on the generator's device.

    Edges are smooth, as those of other drawings. The generator makes the noise.
    """
    device = generator.device
    middles = (torch.arange(size, device=device) + 0.5) / size
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    base = torch.from_numpy(table.backgrounds).to(device)
    first, second, (fade, noise) = base[:, :3], base[:, 3:6], base[:, 6:].T[..., None, None]
    part = (0.5 + (x - 0.5) * fade.cos() * 0.7 + (y - 0.5) * fade.sin() * 0.7)[:, None]
    pictures = torch.lerp(first[..., None, None], second[..., None, None], part)
    bounds = np.searchsorted(table.kinds, range(len(SHAPES) + 1))
    for kind, start, end in zip(SHAPES, bounds[:-1], bounds[1:], strict=True):
        owners = torch.from_numpy(table.owners[start:end]).to(device)
        values = torch.from_numpy(table.shapes[start:end]).to(device)
        left, top, radius, angle = values[:, :4].T[..., None, None]
        u, v = (x - left) / radius, (y - top) / radius
        turned = u * angle.cos() + v * angle.sin(), v * angle.cos() - u * angle.sin()
        cover = (0.5 + _INSIDE[kind](*turned) * radius * size).clamp(0, 1)[:, None]
        # Shapes do not overlap, so that what they change can be added up.
        pictures.index_add_(0, owners, cover * (values[:, 4:, None, None] - pictures[owners]))
    pictures += torch.randn(pictures.shape, generator=generator, device=device) * noise[:, None]
    return pictures.clamp_(0, 1)


# How far inside of a shape of radius 1 a point (u to the right, v down) is, negative outside.


def _circle(u: Tensor, v: Tensor) -> Tensor:
    return 1 - torch.hypot(u, v)


def _square(u: Tensor, v: Tensor) -> Tensor:
    return 0.85 - torch.maximum(u.abs(), v.abs())


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    slope = math.sqrt(3) / 2
    return torch.minimum(0.55 - v, 0.5 - (u.abs() * slope - (v + 0.05) / 2))


def _star(u: Tensor, v: Tensor) -> Tensor:
    """Five points: the edge runs from a point at radius 1 to a notch at radius 0.42."""
    turn = torch.atan2(u, -v) / (2 * math.pi) * 5
    off = (turn - turn.round()).abs() * (2 * math.pi / 5)  # angle to the nearest point
    radius, notch = torch.hypot(u, v), 0.42
    a, b = radius * off.cos(), radius * off.sin()
    edge = notch * math.cos(math.pi / 5) - 1, notch * math.sin(math.pi / 5)
    return ((1 - a) * edge[1] + b * edge[0]) / math.hypot(*edge)


def _cross(u: Tensor, v: Tensor) -> Tensor:
    long, short = torch.maximum(u.abs(), v.abs()), torch.minimum(u.abs(), v.abs())
    return torch.minimum(0.95 - long, 0.32 - short)


def _heart(u: Tensor, v: Tensor) -> Tensor:
    """A square on its corner, with half a circle on each of its upper sides."""
    u, v, corner = u.abs(), v - 0.1, 0.75
    square = (corner - u - v.abs()) / math.sqrt(2)
    circle = corner / math.sqrt(2) - torch.hypot(u - corner / 2, v + corner / 2)
    return torch.maximum(square, circle)


_INSIDE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "heart": _heart,
}


def shrink(pictures: Tensor, size: int) -> Tensor:
    """As Pillow's bicubic filter does it, in 8 bits: [N, 3, S, S] -> [N, 3, size, size], 0 to 1."""
    smaller = F.interpolate(pictures, (size, size), mode="bicubic", antialias=True)
    return (smaller * 255).round().clamp(0, 255) / 255
