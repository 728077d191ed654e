"""Pictures of the tiny world: up to four coloured shapes on a 3 x 3 grid, and what one can ask."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw

from plast_train.tiny.languages import KINDS, WORDINGS, Subject
from plast_train.tiny.words import COLOURS, NUMBERS, PLACES, SHAPES, YES_NO

IMAGE_SIZE = 48
CELL = IMAGE_SIZE // 3
_SCALE = 4  # drawn this much larger, then averaged down

# What pictures are for. The red level of the background modulo 3 says which, so that no picture of one
# purpose can equal a picture of another, whatever the seeds.
PURPOSES = ("base", "tuning", "evaluation")

RGB = {
    "red": (215, 30, 35),
    "green": (30, 150, 55),
    "blue": (35, 70, 210),
    "yellow": (240, 215, 30),
    "orange": (245, 135, 20),
    "purple": (125, 40, 160),
    "pink": (250, 130, 185),
    "brown": (120, 70, 30),
    "black": (25, 25, 25),
    "grey": (135, 135, 135),
}


@dataclass(frozen=True)
class Thing:
    """One drawn object. `dx`, `dy` in pixels from its cell's centre, `size` its radius in pixels."""

    shape: str
    colour: str
    place: str
    dx: float
    dy: float
    size: float
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn."""

    things: tuple[Thing, ...]
    background: tuple[int, int, int]


@dataclass(frozen=True)
class Query:
    """A question about a scene, free of language. `options` holds the answer; its order is the file's."""

    kind: str
    wording: int
    subject: Subject
    answer: str
    options: tuple[str, ...]


def draw_scene(rng: random.Random, purpose: str, most: int = 4) -> Scene:
    """A random scene of one to `most` objects whose background marks its purpose."""
    count = rng.randint(1, most)
    palette = rng.sample(COLOURS, count)
    forms = rng.sample(SHAPES, count)
    if count > 1 and rng.random() < 0.35:  # some colours twice, so that counting a colour is a question
        palette[rng.randrange(1, count)] = palette[0]
    things = []
    for shape, colour, place in zip(forms, palette, rng.sample(PLACES, count), strict=True):
        shade = rng.randint(-14, 14)
        r, g, b = (min(255, max(0, level + shade + rng.randint(-6, 6))) for level in RGB[colour])
        dx, dy = (rng.uniform(-1.2, 1.2) for _ in range(2))
        things.append(Thing(shape, colour, place, dx, dy, rng.uniform(5.3, 6.6), (r, g, b)))
    red = 3 * rng.randint(76, 84) + PURPOSES.index(purpose)
    return Scene(tuple(things), (red, rng.randint(228, 254), rng.randint(222, 254)))


def render(scene: Scene) -> Image.Image:
    """The scene as an RGB image of 48 x 48 pixels. Its corner pixels show the background."""
    canvas = Image.new("RGB", (IMAGE_SIZE * _SCALE, IMAGE_SIZE * _SCALE), scene.background)
    pen = ImageDraw.Draw(canvas)
    for thing in scene.things:
        row, column = divmod(PLACES.index(thing.place), 3)
        x = (column * CELL + CELL / 2 + thing.dx) * _SCALE
        y = (row * CELL + CELL / 2 + thing.dy) * _SCALE
        _draw(pen, thing, x, y, thing.size * _SCALE, scene.background)
    return canvas.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)


def bounds(scene: Scene, thing: Thing) -> tuple[int, int, int, int]:
    """The thing's box in the rendered scene: left, top, right, bottom in pixels, the last two outside it."""
    alone = render(Scene((thing,), scene.background))
    found = ImageChops.difference(alone, render(Scene((), scene.background))).getbbox()
    assert found is not None, "a thing has pixels"
    return found


def _draw(pen: ImageDraw.ImageDraw, thing: Thing, x: float, y: float, r: float, paper: tuple) -> None:
    if thing.shape in ("circle", "ring", "moon"):
        pen.ellipse((x - r, y - r, x + r, y + r), fill=thing.rgb)
        if thing.shape == "ring":
            pen.ellipse((x - r * 0.55, y - r * 0.55, x + r * 0.55, y + r * 0.55), fill=paper)
        if thing.shape == "moon":
            pen.ellipse((x - r * 0.35, y - r, x + r * 1.45, y + r * 0.8), fill=paper)
        return
    pen.polygon([(x + r * px, y + r * py) for px, py in _OUTLINES[thing.shape]], fill=thing.rgb)


def _star() -> list[tuple[float, float]]:
    radii = (1.1, 0.45)
    return [
        (radii[i % 2] * math.sin(i * math.pi / 5), -radii[i % 2] * math.cos(i * math.pi / 5))
        for i in range(10)
    ]


def _heart() -> list[tuple[float, float]]:
    turns = [2 * math.pi * i / 40 for i in range(40)]
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
        )
        for t in turns
    ]


_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0, -1), (1, 0.8), (-1, 0.8)],
    "star": _star(),
    "heart": _heart(),
    "cross": [
        (x * a, y * b)
        for a, b, corner in ((1, -1, 0), (1, 1, 1), (-1, 1, 0), (-1, -1, 1))
        for x, y in [((0.3, 1), (0.3, 0.3), (1, 0.3)), ((1, 0.3), (0.3, 0.3), (0.3, 1))][corner]
    ],
    "diamond": [(0, -1.1), (0.7, 0), (0, 1.1), (-0.7, 0)],
    "arrow": [(-1, -0.3), (0.1, -0.3), (0.1, -0.9), (1.1, 0), (0.1, 0.9), (0.1, 0.3), (-1, 0.3)],
}


def query(rng: random.Random, scene: Scene, kind: str) -> Query | None:
    """A random question of `kind` with its options, or None where the scene allows none."""
    found = _FIND[kind](rng, scene)
    if found is None:
        return None
    subject, answer = found
    return Query(kind, rng.randrange(WORDINGS), subject, answer, _options(rng, scene, answer))


def asked_about(scene: Scene, asked: Query) -> Thing | None:
    """The one thing that the question is about; None where it counts things or asks for an absent one."""
    if asked.kind == "exists":
        return next((t for t in scene.things if (t.colour, t.shape) == asked.subject), None)
    if not asked.kind.endswith((" shape", " colour", " place")) or asked.kind.startswith("count"):
        return None
    given = asked.kind.rsplit(" ", 1)[1]
    return next(thing for thing in scene.things if getattr(thing, given) == asked.subject)


def any_query(rng: random.Random, scene: Scene, kinds: Sequence[str] = KINDS) -> Query:
    """A random question that the scene allows, of a random one of the kinds."""
    while True:
        found = query(rng, scene, rng.choice(kinds))
        if found is not None:
            return found


def _once(scene: Scene, attribute: str) -> list[Thing]:
    """The things whose shape or colour no other thing of the scene has."""
    values = [getattr(thing, attribute) for thing in scene.things]
    return [thing for thing in scene.things if values.count(getattr(thing, attribute)) == 1]


def _ask_about(given: str, asked: str) -> Callable[[random.Random, Scene], tuple[Subject, str] | None]:
    def find(rng: random.Random, scene: Scene) -> tuple[Subject, str] | None:
        things = _once(scene, given)
        if not things:
            return None
        thing = rng.choice(things)
        return getattr(thing, given), getattr(thing, asked)

    return find


def _count_all(rng: random.Random, scene: Scene) -> tuple[Subject, str]:
    return None, str(len(scene.things))


def _count_colour(rng: random.Random, scene: Scene) -> tuple[Subject, str]:
    colours = [thing.colour for thing in scene.things]
    twice = [colour for colour in colours if colours.count(colour) > 1]
    colour = rng.choice(twice if twice and rng.random() < 0.7 else colours)
    return colour, str(colours.count(colour))


def _exists(rng: random.Random, scene: Scene) -> tuple[Subject, str]:
    thing = rng.choice(scene.things)
    if rng.random() < 0.5:
        return (thing.colour, thing.shape), "yes"
    # Half of what is not there mixes what is: another thing's colour, or else any.
    present = {(each.colour, each.shape) for each in scene.things}
    colours = [each.colour for each in scene.things] if rng.random() < 0.5 else list(COLOURS)
    absent = [(colour, thing.shape) for colour in colours if (colour, thing.shape) not in present]
    if not absent:
        absent = [(thing.colour, shape) for shape in SHAPES if (thing.colour, shape) not in present]
    return rng.choice(absent), "no"


def _count_check(rng: random.Random, scene: Scene) -> tuple[Subject, str]:
    count = str(len(scene.things))
    if rng.random() < 0.5:
        return count, "yes"
    return rng.choice([number for number in NUMBERS if number != count]), "no"


_FIND: dict[str, Callable[[random.Random, Scene], tuple[Subject, str] | None]] = {
    "colour of shape": _ask_about("shape", "colour"),
    "shape of colour": _ask_about("colour", "shape"),
    "shape at place": _ask_about("place", "shape"),
    "colour at place": _ask_about("place", "colour"),
    "place of shape": _ask_about("shape", "place"),
    "place of colour": _ask_about("colour", "place"),
    "count all": _count_all,
    "count colour": _count_colour,
    "exists": _exists,
    "count check": _count_check,
}


def _options(rng: random.Random, scene: Scene, answer: str) -> tuple[str, ...]:
    """The answer and up to three others in random order; what else the picture shows comes first."""
    if answer in YES_NO or answer in NUMBERS:
        options = list(YES_NO if answer in YES_NO else NUMBERS)
        rng.shuffle(options)
        return tuple(options)
    values, attribute = next(
        pair for pair in ((COLOURS, "colour"), (SHAPES, "shape"), (PLACES, "place")) if answer in pair[0]
    )
    shown = [value for value in {getattr(thing, attribute): 0 for thing in scene.things} if value != answer]
    others = [value for value in values if value != answer and value not in shown]
    rng.shuffle(shown)
    rng.shuffle(others)
    options = [answer]
    for value in shown + others:
        if len(options) < 4 and not any(_overlap(value, option) for option in options):
            options.append(value)
    rng.shuffle(options)
    return tuple(options)


def _overlap(one: str, other: str) -> bool:
    """Places such as "top" and "top left" could both be said of one object; they are not offered together."""
    return one in PLACES and other in PLACES and bool(set(one.split()) & set(other.split()))
