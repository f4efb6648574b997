"""Textures for the surfaces of rooms: images of noise, stripes and shapes, with enough detail for feature matching.

Every texture function returns float32 `(height, width, 3)` in [0, 255] and takes all randomness from its generator. No
pattern is exactly periodic, because a matcher cannot distinguish repetitions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Color = tuple[float, float, float]
Texture = np.ndarray

COLORS: dict[str, Color] = {
    "red": (196, 44, 40),
    "green": (58, 142, 58),
    "blue": (46, 84, 186),
    "yellow": (232, 190, 48),
    "white": (232, 230, 224),
    "black": (50, 50, 56),
    "orange": (230, 126, 36),
    "purple": (128, 66, 156),
}
"""Colour word of an object -> RGB."""


def stretched(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a map of numbers by linear interpolation."""
    for axis, length in enumerate((height, width)):
        if image.shape[axis] == length:
            continue
        position = np.linspace(0, image.shape[axis] - 1, length, dtype=np.float32)
        before = np.minimum(position.astype(np.int64), max(image.shape[axis] - 2, 0))
        after = np.minimum(before + 1, image.shape[axis] - 1)
        share = (position - before)[:, None] if axis == 0 else (position - before)[None, :]
        image = np.take(image, before, axis) * (1 - share) + np.take(image, after, axis) * share
    return image


def noise(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """Draw smooth noise with a standard deviation of about 1 and blotches of `cell` texels."""
    rows, columns = int(np.ceil(height / cell)) + 1, int(np.ceil(width / cell)) + 1
    coarse = rng.standard_normal((rows, columns)).astype(np.float32)
    if cell <= 1:
        return coarse[:height, :width]
    return stretched(coarse, height, width)


def rough(rng: np.random.Generator, height: int, width: int, cells: tuple[float, ...] = (96, 24, 8, 3)) -> np.ndarray:
    """Draw the sum of noises of several sizes, with a standard deviation of about 1."""
    return sum(noise(rng, height, width, cell) for cell in cells) / np.float32(np.sqrt(len(cells)))


def streaks(rng: np.random.Generator, height: int, width: int, length: float) -> np.ndarray:
    """Draw noise that is stretched along x, like the grain of wood."""
    columns = int(np.ceil(width / length)) + 1
    return stretched(rng.standard_normal((height, columns)).astype(np.float32), height, width)


def tinted(color: Color, light: np.ndarray) -> Texture:
    """Multiply a colour by a map of brightness."""
    return np.asarray(color, np.float32) * light[..., None].astype(np.float32)


def plaster(rng: np.random.Generator, height: int, width: int, color: Color) -> Texture:
    """Draw a painted wall with stains and specks."""
    image = tinted(color, 1.0 + 0.045 * rough(rng, height, width))
    specks = noise(rng, height, width, 5) > 1.9
    image[specks] *= 0.8
    return image


def wallpaper(rng: np.random.Generator, height: int, width: int, color: Color) -> Texture:
    """Draw stripes with motifs; every motif has a different shape and shade."""
    image = plaster(rng, height, width, color)
    cell = int(rng.integers(44, 64))
    band = (np.arange(width) // cell) % 2 == 0
    image[:, band] *= 0.93
    y, x = np.mgrid[0:cell, 0:cell].astype(np.float32) - (cell - 1) / 2
    accent = np.asarray(color, np.float32) * rng.uniform(0.35, 0.75, 3).astype(np.float32)
    for top in range(0, height - cell + 1, cell):
        for left in range(0, width - cell + 1, cell):
            if rng.random() < 0.2:
                continue
            radius, turn, petals = cell * rng.uniform(0.18, 0.36), rng.uniform(0, np.pi), rng.integers(2, 6)
            reach = radius * (0.65 + 0.35 * np.cos(petals * (np.arctan2(y, x) + turn)))
            mask = np.hypot(x, y) < reach
            image[top : top + cell, left : left + cell][mask] = accent * rng.uniform(0.7, 1.3)
    return image


def bricks(rng: np.random.Generator, height: int, width: int, color: Color) -> Texture:
    """Draw a wall of bricks; every brick has a different shade."""
    brick_height, brick_width = 12, 32
    rows, columns = height // brick_height + 1, width // brick_width + 2
    shade = rng.normal(1.0, 0.13, (rows, columns)).astype(np.float32)
    y, x = np.mgrid[0:height, 0:width]
    row = y // brick_height
    shifted = x + (row % 2) * (brick_width // 2)
    mortar = (y % brick_height < 2) | (shifted % brick_width < 2)
    light = shade[row, shifted // brick_width] * (1.0 + 0.06 * rough(rng, height, width, (8, 3)))
    return np.where(mortar[..., None], tinted((196, 190, 180), light * 0.2 + 0.8), tinted(color, light))


def planks(rng: np.random.Generator, height: int, width: int, color: Color) -> Texture:
    """Draw floor boards with grain, which run along x."""
    board = int(rng.integers(16, 26))
    rows = height // board + 1
    y, x = np.mgrid[0:height, 0:width]
    row = y // board
    length = rng.integers(130, 260, rows)
    start = rng.integers(0, 260, rows)
    column = (x + start[row]) // length[row]
    shade = rng.normal(1.0, 0.11, (rows, int(column.max()) + 1)).astype(np.float32)
    grain = streaks(rng, height, width, 24)
    light = shade[row, column] * (1.0 + 0.05 * grain + 0.04 * rough(rng, height, width, (64, 6)))
    gap = (y % board < 1) | ((x + start[row]) % length[row] < 2)
    return tinted(color, np.where(gap, light * 0.55, light))


def tiles(rng: np.random.Generator, height: int, width: int, color: Color) -> Texture:
    """Draw marbled floor tiles in two tones."""
    side = int(rng.integers(40, 60))
    y, x = np.mgrid[0:height, 0:width]
    row, column = y // side, x // side
    shade = rng.normal(1.0, 0.07, (height // side + 1, width // side + 1)).astype(np.float32)
    shade *= np.where((np.add.outer(np.arange(shade.shape[0]), np.arange(shade.shape[1])) % 2) == 0, 1.0, 0.72)
    light = shade[row, column] * (1.0 + 0.06 * rough(rng, height, width, (48, 14, 5)))
    joint = (y % side < 2) | (x % side < 2)
    return tinted(color, np.where(joint, 0.5, light))


def carpet(rng: np.random.Generator, height: int, width: int, color: Color) -> Texture:
    """Draw a rug: borders, and medallions in other colours."""
    image = tinted(color, 1.0 + 0.07 * rough(rng, height, width, (20, 4, 1)))
    y, x = np.mgrid[0:height, 0:width]
    edge = np.minimum(np.minimum(y, height - 1 - y), np.minimum(x, width - 1 - x))
    accents = rng.uniform(40, 235, (4, 3)).astype(np.float32)
    image[(edge > 6) & (edge < 16)] = accents[0]
    image[(edge > 22) & (edge < 26)] = accents[1]
    for _ in range(height * width // 1800):
        cy, cx, radius = rng.uniform(30, height - 30), rng.uniform(30, width - 30), rng.uniform(5, 15)
        inside = np.abs(y - cy) + np.abs(x - cx) < radius if rng.random() < 0.5 else np.hypot(y - cy, x - cx) < radius
        image[inside & (edge > 30)] = accents[rng.integers(2, 4)] * rng.uniform(0.8, 1.2)
    return image


def painting(rng: np.random.Generator, height: int, width: int, color: Color) -> Texture:
    """Draw an abstract picture in a frame."""
    ground, other = rng.uniform(60, 230, (2, 3)).astype(np.float32)
    ramp = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    image = np.broadcast_to(ground * (1 - ramp) + other * ramp, (height, width, 3)).copy()
    y, x = np.mgrid[0:height, 0:width]
    for _ in range(int(rng.integers(9, 16))):
        cy, cx, a, b = rng.uniform(0, height), rng.uniform(0, width), *rng.uniform(0.06, 0.26, 2) * min(height, width)
        turn = rng.uniform(0, np.pi)
        u, v = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn), (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
        inside = (u / a) ** 2 + (v / b) ** 2 < 1 if rng.random() < 0.5 else (np.abs(u) < a) & (np.abs(v) < b * 0.6)
        image[inside] = rng.uniform(20, 245, 3)
    image *= 1.0 + 0.03 * rough(rng, height, width, (6, 2))[..., None]
    edge = np.minimum(np.minimum(y, height - 1 - y), np.minimum(x, width - 1 - x))
    image[edge < 7] = color
    return image


def books(rng: np.random.Generator, height: int, width: int, color: Color) -> Texture:
    """Draw the front of a bookshelf with books."""
    image = tinted(tuple(0.35 * np.asarray(color)), 1.0 + 0.05 * rough(rng, height, width, (8, 3)))
    frame, shelves = 7, max(2, round(height / 48))
    pitch = (height - frame) / shelves
    for shelf in range(shelves):
        floor = int(frame + (shelf + 1) * pitch) - frame
        left = frame + 1
        while left < width - frame - 4:
            thick = int(rng.integers(4, 11))
            tall = int((pitch - frame - 3) * rng.uniform(0.6, 0.98))
            if rng.random() < 0.9 and left + thick < width - frame:
                spine = rng.uniform(30, 235, 3)
                image[floor - tall : floor, left : left + thick - 1] = spine
                band = floor - int(tall * rng.uniform(0.5, 0.85))
                image[band : band + 3, left : left + thick - 1] = 255 - spine
            left += thick
        image[floor : floor + frame] = color
    image[:frame], image[:, :frame], image[:, -frame:] = color, color, color
    return image * (1.0 + 0.02 * rough(rng, height, width, (4, 2))[..., None])


def cabinet_front(rng: np.random.Generator, height: int, width: int, color: Color) -> Texture:
    """Draw doors and drawers with knobs."""
    image = wood(rng, height, width, color)
    rows, columns = int(rng.integers(2, 4)), int(rng.integers(2, 4))
    for row in range(rows):
        for column in range(columns):
            top, left = int(height * row / rows) + 4, int(width * column / columns) + 4
            bottom, right = int(height * (row + 1) / rows) - 4, int(width * (column + 1) / columns) - 4
            image[top : top + 2, left:right] *= 0.5
            image[bottom - 2 : bottom, left:right] *= 0.5
            image[top:bottom, left : left + 2] *= 0.5
            image[top:bottom, right - 2 : right] *= 0.5
            middle, knob = (top + bottom) // 2, (left + right) // 2 + int(rng.integers(-12, 13))
            image[middle - 3 : middle + 3, knob - 3 : knob + 3] = (214, 200, 150)
    return image


def wood(rng: np.random.Generator, height: int, width: int, color: Color) -> Texture:
    """Draw painted wood with visible grain."""
    grain = streaks(rng, height, width, 32)
    return tinted(color, 1.0 + 0.06 * grain + 0.05 * rough(rng, height, width, (40, 8)))


def fabric(rng: np.random.Generator, height: int, width: int, color: Color) -> Texture:
    """Draw woven cloth with checks and buttons."""
    light = 1.0 + 0.05 * rough(rng, height, width, (48, 10, 1))
    period = int(rng.integers(20, 36))
    y, x = np.mgrid[0:height, 0:width]
    light = light * np.where(y % period < 3, 0.86, 1.0) * np.where(x % period < 3, 0.86, 1.0)
    spots = noise(rng, height, width, 9) > 1.7
    return tinted(color, np.where(spots, light * 0.78, light))


def leaves(rng: np.random.Generator, height: int, width: int, color: Color) -> Texture:
    """Draw foliage as light and dark blotches."""
    return tinted(color, np.clip(1.0 + 0.22 * rough(rng, height, width, (26, 9, 4)), 0.3, 1.7))


def window(rng: np.random.Generator, height: int, width: int, color: Color) -> Texture:
    """Draw a window with a view of hills."""
    image = sky(rng, height, width, (150, 196, 236))
    x = np.arange(width)
    for share, shade in ((0.55, (120, 150, 130)), (0.72, (84, 124, 74))):
        line = height * share + 10 * np.interp(x, np.linspace(0, width, 7), rng.standard_normal(7))
        below = np.arange(height)[:, None] > line
        image[below] = leaves(rng, height, width, shade)[below]
    y, xs = np.mgrid[0:height, 0:width]
    edge = np.minimum(np.minimum(y, height - 1 - y), np.minimum(xs, width - 1 - xs))
    image[(edge < 8) | (np.abs(xs - width / 2) < 4) | (np.abs(y - height / 2) < 3)] = color
    return image


def door(rng: np.random.Generator, height: int, width: int, color: Color) -> Texture:
    """Draw a door with four panels and a handle."""
    image = wood(rng, height, width, color)
    for top, bottom in ((0.06, 0.46), (0.54, 0.94)):
        for left, right in ((0.12, 0.46), (0.54, 0.88)):
            rows = slice(int(top * height), int(bottom * height))
            columns = slice(int(left * width), int(right * width))
            image[rows, columns] *= 0.82
            image[rows, columns][:3] *= 0.6
    image[int(0.48 * height) : int(0.52 * height), int(0.88 * width) : int(0.95 * width)] = (220, 206, 150)
    image[:4], image[:, :4], image[:, -4:] = (90, 80, 70), (90, 80, 70), (90, 80, 70)
    return image


def sky(rng: np.random.Generator, height: int, width: int, color: Color) -> Texture:
    """Draw a sky with clouds, paler towards the bottom."""
    image = np.empty((height, width, 3), np.float32)
    image[:] = color
    image += (235.0 - image) * np.linspace(0, 0.6, height, dtype=np.float32)[:, None, None]
    clouds = np.clip(rough(rng, height, width, (90, 40, 16, 6)) * 0.6, 0, 1)[..., None]
    return image * (1 - clouds) + 250.0 * clouds


def grass(rng: np.random.Generator, height: int, width: int, color: Color) -> Texture:
    """Draw a lawn with a winding gravel path and flowers."""
    image = tinted(color, np.clip(1.0 + 0.18 * rough(rng, height, width, (90, 20, 5, 2)), 0.3, 1.7))
    x = np.arange(width)
    middle = height * np.interp(x, np.linspace(0, width, 6), rng.uniform(0.3, 0.7, 6))
    path = np.abs(np.arange(height)[:, None] - middle) < height * 0.05
    image[path] = tinted((172, 160, 140), 1.0 + 0.15 * rough(rng, height, width, (7, 3, 1.5)))[path]
    flowers = (noise(rng, height, width, 4) > 2.3) & ~path
    image[flowers] = rng.uniform(120, 250, (3,))
    return image


def facade(rng: np.random.Generator, height: int, width: int, color: Color) -> Texture:
    """Draw the front of a house: bricks, and windows with shutters."""
    image = bricks(rng, height, width, color)
    shutter = rng.uniform(40, 200, 3)
    pitch = int(rng.integers(110, 170))
    for floor_top in range(30, height - 100, 130):
        for left in range(30, width - 90, pitch):
            if rng.random() < 0.15:
                continue
            tall, wide = 76, int(rng.integers(44, 60))
            pane = image[floor_top : floor_top + tall, left : left + wide]
            pane[:] = window(rng, *pane.shape[:2], (236, 232, 224))
            image[floor_top : floor_top + tall, left - 12 : left] = shutter
            image[floor_top : floor_top + tall, left + wide : left + wide + 12] = shutter
    return image


TEXTURES: dict[str, Callable[[np.random.Generator, int, int, Color], Texture]] = {
    function.__name__: function
    for function in (
        plaster, wallpaper, bricks, planks, tiles, carpet, painting, books, cabinet_front, wood, fabric, leaves,
        window, door, sky, grass, facade,
    )
}  # fmt: skip
