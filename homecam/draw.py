"""Facts → frames: rooms, actors, light, distractors and camera of the home-camera world.

A *home* fixes what a camera always sees (wall, floor, furniture, view); an *actor* fixes a body and clothes; each clip
adds its own speed, noise, distractors and exposure. The three parts of the world draw wall patterns and colours from
different families, so a test clip never looks like a training clip. Drawn with PIL at 192 x 144, noise and light with
numpy; no torch.
"""

from __future__ import annotations

import colorsys
import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from deepintuit_homecam.scene import Part, Scene

WIDTH, HEIGHT = 192, 144
HORIZON = 84  # where wall meets floor
GROUND = 126  # where feet stand

# (wall patterns, floor patterns, hue range of walls, hue range of clothes): disjoint families, one for each part.
_FAMILIES = {
    "base": (
        ("plain", "bands", "bricks", "planks", "shade", "stains"),
        ("plain", "bands", "tiles", "shade"),
        (0.0, 1.0),
        (0.0, 1.0),
    ),
    "train": (("checks", "panels", "planks", "plain"), ("tiles", "plain", "planks"), (0.02, 0.45), (0.50, 0.80)),
    "test": (
        ("diagonals", "speckle", "lattice", "arches"),
        ("speckle", "diagonals", "lattice"),
        (0.50, 0.98),
        (0.82, 1.45),
    ),
}
POOR_GRAIN, POOR_WIDTH, POOR_BRIEF = (18.0, 40.0), (4.0, 10.0), (0.02, 0.09)
_HOMES = {"base": 4000, "train": 160, "test": 80}


@dataclass(frozen=True)
class Home:
    """One camera: everything about the view that stays the same from clip to clip."""

    part: Part
    number: int

    @property
    def name(self) -> str:
        return f"{self.part}-home-{self.number:03d}"


def homes(part: Part) -> list[Home]:
    return [Home(part, number) for number in range(_HOMES[part])]


def render(facts: Scene, home: Home, seed: int, seconds: float, fps: float, poor: bool = False) -> np.ndarray:
    """Frames (T, 144, 192, 3) uint8 of one clip; T = round(seconds * fps). The same arguments give the same frames.
    `poor`: strong grain, something in the way, and a moment cut short."""
    return render_at(facts, home, seed, np.arange(max(8, round(seconds * fps))) / max(8, round(seconds * fps)), poor)


def render_at(facts: Scene, home: Home, seed: int, phases: np.ndarray, poor: bool = False) -> np.ndarray:
    """The frames at these phases (0 = first moment, 1 = end) of the clip."""
    rng = random.Random(f"{home.name}/{facts}/{seed}")
    noise = np.random.default_rng(rng.getrandbits(63))
    stage = _Stage(facts, home, rng)
    if poor:
        stage.spoil()
    return np.stack([stage.frame(float(phase), noise) for phase in phases])


class _Stage:
    """One clip being drawn. Everything random is decided at the start, so that a frame depends on its phase alone."""

    def __init__(self, facts: Scene, home: Home, rng: random.Random):
        self.facts, self.rng = facts, rng
        room = random.Random(f"{home.name}/{facts.place}")
        self.mirror = room.random() < 0.5
        self.zoom = room.uniform(1.0, 1.10)
        self.shift = (room.uniform(-0.5, 0.5), room.uniform(-0.5, 0.5))
        self.background = _background(facts.place, home, room)
        self.actor = _Actor(facts.who, home.part, facts.light, rng)
        self.box_color = _tone(rng, rng.choice(((0.07, 0.11), (0.55, 0.6), (0.0, 1.0))), (0.2, 0.6), (0.55, 0.85))
        self.box_size = rng.randint(19, 24)
        self.box_x = rng.uniform(70, 122)
        self.side = rng.choice((-1, 1))
        self.gait = rng.uniform(3, 8)
        self.wander = rng.uniform(4, 16)
        self.jitters = [rng.uniform(-0.035, 0.035) for _ in range(3)]
        self.exposure = rng.uniform(0.86, 1.12)
        self.infrared = rng.random() < 0.6
        self.darkness = rng.uniform(0.42, 0.58)
        self.grain = rng.uniform(2.0, 7.0) * (1.3 if facts.light == "night" else 1.0)
        self.cast = np.array([rng.uniform(0.93, 1.07) for _ in range(3)])
        self.sway = rng.uniform(0, 1.2)
        self.distractor = rng.choice(("none", "none", "leaf", "bird", "rain", "plant", "bin", "flicker"))
        self.distractor_x = rng.choice((rng.uniform(4, 30), rng.uniform(160, 186)))
        self.distractor_color = _tone(rng, (0.0, 1.0), (0.2, 0.7), (0.4, 0.8))
        self.stamp = rng.random() < 0.35
        self.blur = rng.random() < 0.15
        self.occluder: tuple[float, float, Color] | None = None  # its middle, width and colour

    def spoil(self) -> None:
        """Make the clip hard to see; a clip that is not spoilt draws the same chances as before this was possible."""
        rng = self.rng
        self.grain = rng.uniform(*POOR_GRAIN)
        self.occluder = (
            self.box_x + rng.uniform(-22, 22),
            rng.uniform(*POOR_WIDTH),
            _tone(rng, (0.0, 1.0), (0.0, 0.3), (0.1, 0.4)),
        )
        brief = rng.randrange(3)  # the border before or after one quarter comes almost a frame's time nearer
        self.jitters[brief] += rng.choice((-1, 1)) * rng.uniform(*POOR_BRIEF)

    def quarter(self, phase: float) -> int:
        return sum(phase >= border + jitter for border, jitter in zip((0.25, 0.5, 0.75), self.jitters))

    def frame(self, phase: float, noise: np.random.Generator) -> np.ndarray:
        image = self.background.copy()
        draw = ImageDraw.Draw(image)
        self._distract(draw, phase)
        posture, box = self.facts.quarters[self.quarter(phase)]
        x = self._actor_x(phase)
        if box == "floor":
            _box(draw, self.box_x, GROUND + 4, self.box_size, self.box_color)
        if posture != "nobody":
            hand = self.actor.draw(draw, x, posture, self.side, step=math.sin(phase * 4 * self.gait))
            if box == "held":
                _box(draw, hand[0], hand[1], self.box_size, self.box_color)
        if self.occluder:
            x, width, color = self.occluder
            draw.rectangle([x - width / 2, 0, x + width / 2, HEIGHT], fill=color)
        return self._camera(image, phase, noise)

    def _actor_x(self, phase: float) -> float:
        """Beside the box while it is on the floor, else wandering about it."""
        offset = 26 if self.facts.quarters[self.quarter(phase)][1] == "floor" else 10
        return float(
            np.clip(self.box_x - self.side * (offset + self.wander * math.sin(phase * self.gait) * 0.5), 30, 162)
        )

    def _distract(self, draw: ImageDraw.ImageDraw, phase: float) -> None:
        x, color = self.distractor_x, self.distractor_color
        if self.distractor == "leaf":
            draw.ellipse(
                [x + 8 * math.sin(9 * phase), 140 * phase, x + 6 + 8 * math.sin(9 * phase), 140 * phase + 4], fill=color
            )
        elif self.distractor == "bird":
            bx = 200 * phase
            draw.line([bx - 6, 14, bx, 18, bx + 6, 14], fill=(30, 30, 30), width=2)
        elif self.distractor == "plant":
            draw.rectangle([x - 5, 112, x + 5, 122], fill=(120, 70, 50))
            for k in (-1, 0, 1):
                draw.line([x, 112, x + 7 * k + 2 * math.sin(6 * phase), 96], fill=(40, 130, 60), width=3)
        elif self.distractor == "bin":
            draw.rectangle([x - 8, 100, x + 8, 124], fill=color, outline=(40, 40, 40))
        elif self.distractor == "rain":
            drops = random.Random(int(phase * 97))
            for _ in range(14):
                rx, ry = drops.uniform(0, WIDTH), drops.uniform(0, HEIGHT)
                draw.line([rx, ry, rx - 2, ry + 7], fill=(190, 200, 215))

    def _camera(self, image: Image.Image, phase: float, noise: np.random.Generator) -> np.ndarray:
        if self.mirror:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        margin_x, margin_y = WIDTH * (1 - 1 / self.zoom) / 2, HEIGHT * (1 - 1 / self.zoom) / 2
        dx = self.shift[0] * margin_x + self.sway * math.sin(7 * phase)
        dy = self.shift[1] * margin_y
        box = (margin_x + dx, margin_y + dy, WIDTH - margin_x + dx, HEIGHT - margin_y + dy)
        image = image.transform((WIDTH, HEIGHT), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)
        if self.blur:
            image = image.filter(ImageFilter.GaussianBlur(0.8))
        pixels = np.asarray(image, np.float32)
        if self.facts.light == "night":
            grey = pixels @ np.array([0.3, 0.59, 0.11], np.float32)
            pixels = grey[..., None] * np.array([1.0, 1.02, 1.0] if self.infrared else [0.72, 0.85, 1.25], np.float32)
            if not self.infrared:
                pixels = 0.75 * pixels + 0.25 * np.asarray(image, np.float32)
            pixels = pixels * (self.darkness + 0.12 * _VIGNETTE[..., None])
        else:
            pixels = pixels * self.cast.astype(np.float32) * self.exposure
        if self.distractor == "flicker":
            pixels = pixels * (1 + 0.06 * math.sin(40 * phase))
        pixels = pixels + noise.normal(0, self.grain, (HEIGHT, WIDTH, 1)).astype(np.float32)
        frame = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        if self.stamp:
            ImageDraw.Draw(frame).text((4, 2), f"CAM {self.wander:.1f}  {phase * 9:04.1f}", fill=(235, 235, 235))
        return np.asarray(frame)


_Y, _X = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
_VIGNETTE = np.clip(1.2 - np.hypot((_X - WIDTH / 2) / WIDTH, (_Y - HEIGHT / 2) / HEIGHT) * 1.9, 0, 1)

Color = tuple[int, int, int]


def _tone(rng: random.Random, hues: tuple[float, float], saturations=(0.15, 0.6), values=(0.45, 0.9)) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(rng.uniform(*hues) % 1.0, rng.uniform(*saturations), rng.uniform(*values))
    return int(255 * red), int(255 * green), int(255 * blue)


def _shade(color: Color, factor: float) -> Color:
    return tuple(int(np.clip(channel * factor, 0, 255)) for channel in color)


def _surface(draw: ImageDraw.ImageDraw, top: int, bottom: int, pattern: str, color: Color, rng: random.Random) -> None:
    """Fill a band of the picture with a patterned colour. The pattern belongs to the home, never to the label."""
    draw.rectangle([0, top, WIDTH, bottom], fill=color)
    accent, pitch = _shade(color, rng.choice((0.84, 0.9, 1.1, 1.16))), rng.randint(8, 20)
    if pattern == "bands":
        for y in range(top, bottom, pitch):
            draw.rectangle([0, y, WIDTH, min(bottom, y + pitch // 2)], fill=accent)
    elif pattern == "planks":
        for x in range(0, WIDTH, pitch):
            draw.line([x, top, x, bottom], fill=accent, width=2)
    elif pattern in {"bricks", "tiles"}:
        for row, y in enumerate(range(top, bottom, pitch)):
            draw.line([0, y, WIDTH, y], fill=accent)
            for x in range((row % 2) * pitch, WIDTH, 2 * pitch):
                draw.line([x, y, x, min(bottom, y + pitch)], fill=accent)
    elif pattern == "shade":
        for y in range(top, bottom):
            draw.line([0, y, WIDTH, y], fill=_shade(color, 0.85 + 0.3 * (y - top) / (bottom - top)))
    elif pattern == "stains":
        for _ in range(12):
            x, y, r = rng.uniform(0, WIDTH), rng.uniform(top, bottom - 8), rng.uniform(3, 9)
            draw.ellipse([x, y, x + r, min(bottom, y + r)], fill=accent)
    elif pattern == "checks":
        for row, y in enumerate(range(top, bottom, pitch)):
            for x in range((row % 2) * pitch, WIDTH, 2 * pitch):
                draw.rectangle([x, y, x + pitch, min(bottom, y + pitch)], fill=accent)
    elif pattern == "panels":
        for x in range(4, WIDTH, 2 * pitch):
            draw.rectangle([x, top + 6, x + int(1.5 * pitch), bottom - 6], outline=accent, width=2)
    elif pattern == "diagonals":
        for x in range(-HEIGHT, WIDTH, pitch):
            draw.line([x, bottom, x + (bottom - top), top], fill=accent, width=3)
    elif pattern == "speckle":
        for _ in range(260):
            x, y = rng.uniform(0, WIDTH), rng.uniform(top, bottom)
            draw.point([x, y], fill=accent)
            draw.point([x + 1, y], fill=accent)
    elif pattern == "lattice":
        for x in range(-HEIGHT, WIDTH + HEIGHT, pitch):
            draw.line([x, bottom, x + (bottom - top), top], fill=accent)
            draw.line([x, top, x + (bottom - top), bottom], fill=accent)
    elif pattern == "arches":
        for x in range(0, WIDTH, 2 * pitch):
            draw.arc([x, top, x + 2 * pitch, top + 3 * pitch], 180, 360, fill=accent, width=2)


def _background(place: str, home: Home, rng: random.Random) -> Image.Image:
    walls, floors, wall_hues, _ = _FAMILIES[home.part]
    image = Image.new("RGB", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(image)
    wall = _tone(rng, wall_hues, (0.08, 0.45), (0.55, 0.9))
    floor = _tone(
        rng,
        (0.24, 0.38) if place == "yard" else wall_hues,
        (0.35, 0.7) if place == "yard" else (0.05, 0.35),
        (0.4, 0.72),
    )
    _surface(draw, 0, HORIZON, rng.choice(walls), wall, rng)
    _surface(draw, HORIZON, HEIGHT, rng.choice(floors), floor, rng)
    {"porch": _porch, "yard": _yard, "garage": _garage, "kitchen": _kitchen}[place](draw, rng, wall)
    return image


def _porch(draw: ImageDraw.ImageDraw, rng: random.Random, wall: Color) -> None:
    door, x = _tone(rng, (0.0, 1.0), (0.3, 0.8), (0.25, 0.6)), rng.randint(14, 40)
    draw.rectangle([x - 4, 18, x + 40, 92], fill=(235, 232, 225))
    draw.rectangle([x, 22, x + 36, 92], fill=door)
    draw.rectangle([x + 6, 28, x + 30, 50], fill=_shade(door, 0.75))
    draw.ellipse([x + 29, 58, x + 34, 63], fill=(240, 210, 90))
    draw.rectangle([x - 10, 92, x + 50, 100], fill=(150, 148, 142))
    draw.rectangle([x - 14, 100, x + 54, 108], fill=(128, 126, 120))
    post = rng.randint(160, 180)
    draw.rectangle([post, 0, post + 9, 118], fill=(232, 230, 226))
    draw.rectangle([0, 0, WIDTH, 9], fill=(205, 203, 198))


def _yard(draw: ImageDraw.ImageDraw, rng: random.Random, wall: Color) -> None:
    draw.rectangle([0, 0, WIDTH, 50], fill=_tone(rng, (0.52, 0.6), (0.2, 0.5), (0.75, 0.95)))
    fence, pitch = _tone(rng, (0.06, 0.12), (0.1, 0.5), (0.6, 0.95)), rng.randint(11, 15)
    for x in range(rng.randint(0, 8), WIDTH, pitch):
        draw.polygon(
            [(x, 86), (x, 48), (x + pitch // 3, 42), (x + 2 * pitch // 3, 48), (x + 2 * pitch // 3, 86)], fill=fence
        )
    draw.rectangle([0, 60, WIDTH, 64], fill=_shade(fence, 0.8))
    tree = rng.choice((rng.randint(8, 30), rng.randint(160, 182)))
    draw.rectangle([tree - 4, 34, tree + 4, 90], fill=(95, 66, 45))
    radius = rng.randint(20, 27)
    draw.ellipse(
        [tree - radius, 26 - radius, tree + radius, 26 + radius], fill=_tone(rng, (0.26, 0.38), (0.5, 0.8), (0.3, 0.55))
    )


def _garage(draw: ImageDraw.ImageDraw, rng: random.Random, wall: Color) -> None:
    edge = rng.randint(44, 66)
    draw.rectangle([edge, 12, edge + 92, 88], fill=(196, 198, 200))
    for y in range(20, 88, 9):
        draw.line([edge, y, edge + 92, y], fill=(120, 122, 126), width=3)
    car, x = _tone(rng, (0.0, 1.0), (0.4, 0.9), (0.4, 0.85)), rng.choice((-34, 146))
    draw.rounded_rectangle([x, 74, x + 78, 106], 8, fill=car)
    draw.polygon([(x + 14, 76), (x + 24, 54), (x + 56, 54), (x + 66, 76)], fill=_shade(car, 0.8))
    draw.rectangle([x + 28, 59, x + 52, 73], fill=(170, 200, 215))
    for wheel in (x + 10, x + 54):
        draw.ellipse([wheel, 96, wheel + 18, 114], fill=(25, 25, 28))


def _kitchen(draw: ImageDraw.ImageDraw, rng: random.Random, wall: Color) -> None:
    cupboard, top = _tone(rng, (0.0, 1.0), (0.1, 0.5), (0.55, 0.9)), _tone(rng, (0.0, 1.0), (0.0, 0.2), (0.25, 0.45))
    for x in range(0, 120, 30):
        draw.rectangle([x, 4, x + 28, 32], fill=cupboard, outline=_shade(cupboard, 0.6), width=2)
    draw.rectangle([0, 62, 150, 68], fill=top)
    for x in range(0, 150, 30):
        draw.rectangle([x, 68, x + 28, 98], fill=cupboard, outline=_shade(cupboard, 0.6), width=2)
    stove = rng.choice((30, 60, 90))
    draw.rectangle([stove, 64, stove + 29, 98], fill=(48, 48, 52))
    draw.rectangle([stove + 5, 78, stove + 24, 92], fill=(100, 60, 40))
    window = rng.randint(146, 156)
    draw.rectangle([window - 3, 16, window + 33, 56], fill=(240, 240, 238))
    draw.rectangle([window, 19, window + 30, 53], fill=(160, 195, 225))
    draw.line([window + 15, 19, window + 15, 53], fill=(240, 240, 238), width=3)


def _box(draw: ImageDraw.ImageDraw, x: float, bottom: float, size: int, color: Color) -> None:
    draw.rectangle(
        [x - size / 2, bottom - size, x + size / 2, bottom], fill=color, outline=_shade(color, 0.45), width=2
    )
    draw.line([x, bottom - size, x, bottom], fill=_shade(color, 1.5), width=3)
    draw.line([x - size / 2, bottom - size / 2, x + size / 2, bottom - size / 2], fill=_shade(color, 1.5), width=3)


class _Actor:
    """A body with clothes. Kinds differ by shape (cap and bright vest, hooded coat, height, four legs), people by
    colour and build."""

    def __init__(self, kind: str, part: Part, light: str, rng: random.Random):
        hues = _FAMILIES[part][3]
        self.kind = kind
        self.height = {"resident": 74, "courier": 74, "stranger": 76, "child": 43, "dog": 27}[kind] + rng.randint(-4, 4)
        self.skin = _tone(rng, (0.04, 0.09), (0.25, 0.6), (0.5, 0.95))
        self.hair = _tone(rng, (0.03, 0.12), (0.2, 0.7), (0.1, 0.5))
        self.shirt = _tone(rng, hues, (0.35, 0.85), (0.6, 0.95))
        self.legs = _tone(rng, hues, (0.1, 0.5), (0.25, 0.5))
        self.vest = _tone(rng, (0.12, 0.2), (0.85, 1.0), (0.92, 1.0))
        self.coat = _tone(rng, hues, (0.0, 0.35), (0.06, 0.17))
        self.fur = _tone(rng, (0.04, 0.12), (0.2, 0.7), (0.2, 0.75))
        self.build = rng.uniform(0.9, 1.15)
        if light == "night":  # near infrared: cloth, skin and fur shine whatever their colour; a dark coat stays dark
            for name in ("skin", "shirt", "legs", "fur"):
                share = 0.3 if name == "legs" else 0.6
                setattr(self, name, tuple(int(c + (250 - c) * share) for c in getattr(self, name)))

    def draw(self, draw: ImageDraw.ImageDraw, x: float, posture: str, facing: int, step: float) -> tuple[float, float]:
        """Draw at x and return where a held box hangs (its middle and its lower edge)."""
        if posture == "down":
            return self._lying(draw, x, facing)
        return (self._dog if self.kind == "dog" else self._person)(draw, x, facing, step)

    def _colors(self) -> tuple[Color, Color, Color]:
        """Torso, legs, head."""
        if self.kind == "stranger":
            return self.coat, self.coat, self.coat
        return (self.vest if self.kind == "courier" else self.shirt), self.legs, self.skin

    def _person(self, draw: ImageDraw.ImageDraw, x: float, facing: int, step: float) -> tuple[float, float]:
        h, w = self.height, self.height * 0.17 * self.build * (1.2 if self.kind == "child" else 1.0)
        head = h * (0.16 if self.kind == "child" else 0.115)
        top, (torso, legs, face) = GROUND - h, self._colors()
        hip, shoulder = GROUND - 0.46 * h, top + 2 * head
        for sign in (-1, 1):
            foot = x + sign * (w * 0.45 + 2 * step)
            draw.line([x + sign * w * 0.35, hip, foot, GROUND], fill=legs, width=max(4, int(w * 0.55)))
        if self.kind == "stranger":  # a coat to the knees and a hood, no face
            draw.polygon(
                [
                    (x - w * 0.8, shoulder),
                    (x + w * 0.8, shoulder),
                    (x + w * 1.2, GROUND - 0.2 * h),
                    (x - w * 1.2, GROUND - 0.2 * h),
                ],
                fill=torso,
            )
            draw.polygon([(x - head * 1.5, shoulder + 3), (x, top - 4), (x + head * 1.5, shoulder + 3)], fill=torso)
        else:
            draw.rounded_rectangle([x - w, shoulder, x + w, hip + 2], 4, fill=torso)
            draw.ellipse([x - head, top, x + head, top + 2 * head], fill=face)
            draw.pieslice([x - head, top - 1, x + head, top + 2 * head - 1], 180, 360, fill=self.hair)
        if self.kind == "courier":  # reflective bands and a cap with a brim
            draw.rectangle([x - w, shoulder + 9, x + w, shoulder + 13], fill=(255, 255, 255))
            draw.rectangle([x - w, shoulder + 19, x + w, shoulder + 23], fill=(255, 255, 255))
            draw.pieslice([x - head - 1, top - 4, x + head + 1, top + 2 * head - 2], 180, 360, fill=self.vest)
            draw.rectangle(
                [min(x, x + facing * 2 * head), top + head - 3, max(x, x + facing * 2 * head), top + head],
                fill=self.vest,
            )
        hand_x, hand_y = x + facing * (w + 9), shoulder + 0.34 * h
        draw.line([x + facing * w * 0.8, shoulder + 4, hand_x - facing * 4, hand_y - 6], fill=torso, width=5)
        return hand_x, hand_y + 6

    def _dog(self, draw: ImageDraw.ImageDraw, x: float, facing: int, step: float) -> tuple[float, float]:
        h, half = self.height, self.height * 0.85
        top = GROUND - h
        for leg in (-0.75, -0.45, 0.45, 0.75):
            draw.line([x + leg * half, GROUND - h * 0.5, x + leg * half + 2 * step, GROUND], fill=self.fur, width=4)
        draw.ellipse([x - half, top + h * 0.18, x + half, GROUND - h * 0.32], fill=self.fur)
        head_x = x + facing * (half + 4)
        draw.ellipse([head_x - 8, top - 5, head_x + 8, top + 10], fill=self.fur)
        draw.rectangle(
            [min(head_x, head_x + facing * 13), top + 1, max(head_x, head_x + facing * 13), top + 7], fill=self.fur
        )
        draw.polygon([(head_x - 6, top - 3), (head_x - 3, top - 12), (head_x, top - 4)], fill=_shade(self.fur, 0.6))
        draw.line([x - facing * half, top + 8, x - facing * (half + 9), top - 5 + 2 * step], fill=self.fur, width=4)
        return head_x + facing * 15, top + 17

    def _lying(self, draw: ImageDraw.ImageDraw, x: float, facing: int) -> tuple[float, float]:
        torso, legs, face = self._colors()
        h, thick = self.height, max(13.0, self.height * 0.2)
        y = GROUND + 6
        if self.kind == "dog":
            half = h * 0.95
            draw.ellipse([x - half, y - 12, x + half, y], fill=self.fur)
            draw.ellipse([x + facing * half - 8, y - 12, x + facing * half + 8, y], fill=self.fur)
            for leg in (-0.6, -0.2, 0.3, 0.6):
                draw.line([x + leg * half, y - 4, x + leg * half + 8, y + 3], fill=self.fur, width=3)
            return x + facing * (half + 10), y
        feet, hip, neck = x - facing * h * 0.5, x - facing * h * 0.06, x + facing * h * 0.32
        draw.rectangle([min(feet, hip), y - thick * 0.7, max(feet, hip), y], fill=legs)
        draw.rectangle([min(hip, neck), y - thick, max(hip, neck), y], fill=torso)
        head = max(6.0, h * 0.11)
        if self.kind == "stranger":
            draw.polygon([(neck, y - thick), (neck, y), (neck + facing * 2.6 * head, y - thick / 2)], fill=torso)
        else:
            draw.ellipse([neck + facing * head - head, y - 2 * head, neck + facing * head + head, y], fill=face)
        if self.kind == "courier":
            for share in (0.35, 0.7):
                band = hip + (neck - hip) * share
                draw.rectangle([band - 2, y - thick, band + 2, y], fill=(255, 255, 255))
            draw.rectangle(
                [neck + facing * head - 3, y - 2 * head - 3, neck + facing * head + 5, y - head], fill=self.vest
            )
        return x, y
