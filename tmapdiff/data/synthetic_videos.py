"""Synthetic videos of colored shapes, with frames."""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from tmapdiff._core.checks import check_int, message, require
from tmapdiff._core.files import written_beside
from tmapdiff.data.annotations import Annotation
from tmapdiff.data.sampling import generator_for
from tmapdiff.data.synthetic import check_made_up, made_up, make_sentence
from tmapdiff.errors import ArgumentError

_COLORS = {
    "red": (214, 40, 40),
    "blue": (36, 88, 214),
    "green": (32, 150, 72),
    "yellow": (240, 180, 20),
}
# Corners of a shape of radius 1 around (0, 0), with y pointing down; a circle has none.
_CORNERS = {
    "circle": None,
    "square": [(math.sin(a), math.cos(a)) for a in np.pi * (np.arange(4) + 0.5) / 2],
    "triangle": [(math.sin(a), -math.cos(a)) for a in 2 * np.pi * np.arange(3) / 3],
}
_SHAPE_WORDS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
}
_BACKGROUND = (238, 236, 230)
# Wordings of each action, in simple present and progressive.
_ACTIONS = {
    "left": (("moves to the left", "moving to the left"), ("slides left", "sliding left")),
    "right": (("moves to the right", "moving to the right"), ("slides right", "sliding right")),
    "up": (("moves up", "moving up"), ("rises", "rising")),
    "down": (("moves down", "moving down"), ("sinks", "sinking")),
    "grow": (("grows", "growing"), ("gets bigger", "getting bigger")),
    "shrink": (("shrinks", "shrinking"), ("gets smaller", "getting smaller")),
    "spin": (("spins around", "spinning around"), ("rotates", "rotating")),
    "blink": (("blinks", "blinking"), ("flashes", "flashing")),
    "jump": (("jumps up and down", "jumping up and down"), ("hops", "hopping")),
    "appear": (("appears", "appearing"), ("fades in", "fading in")),
    "disappear": (("disappears", "disappearing"), ("fades out", "fading out")),
}
_MOVES = {"left": ("x", -1), "right": ("x", 1), "up": ("y", -1), "down": ("y", 1)}
_DOES = ("{} {}.", "the {} {}.", "a {} {}.")
_IS_DOING = ("the {} is {}.", "a {} is {}.", "the {} starts {}.")
_SMALL, _LARGE = 0.09, 0.20  # radii of shapes, relative to the frame
_MARGIN = 0.21  # smallest distance of centers from the edges, relative to the frame
_FINER = 4  # oversampling of shapes, for smooth edges


@dataclass(frozen=True)
class ShapeAction:
    """An `action` of a `shape`, such as "left" of the "red circle", in seconds of whole frames.

    It lasts from the `start` of a frame to the `end` of one.
    """

    shape: str
    action: str
    start: float
    end: float


@dataclass(frozen=True)
class ShapeVideo:
    """Script of a synthetic video: `duration` in whole frames, and `actions` by their start."""

    duration: float
    actions: tuple[ShapeAction, ...]
    _actors: "Sequence[_Actor]" = field(default=(), repr=False, compare=False)


class SyntheticVideos:
    """Synthetic videos of colored shapes, with sentences, for examples, tests and the demo.

    A video lasts 20 to 40 s at 8 frames per second, and shows two or three shapes. They move, grow,
    shrink, spin, blink, jump, appear and disappear, for 1.5 to 10 s each, with pauses and sometimes
    two together. Each action happens once per video, so that moments are exact, and has one
    sentence, in one of several wordings.

    The best constant answer has Rank1@0.5 below 20 %. Results on them say nothing about real
    videos.

    Args:
        num_videos: Number of videos. Defaults to 270 (about 1,500 queries) for training and 45
            (about 250) for testing.
        seed: Seed of the videos.
        split: Split. Train and test share shapes and actions, but no video.
        size: Height and width of the frames in pixels, even as codecs require.

    Raises:
        ArgumentError: If `num_videos` is not an integer >= 1, `seed` not an integer >= 0, or `size`
            not an even integer >= 16.
        ConfigError: If `split` is unknown.

    Example:
        >>> data = SyntheticVideos(num_videos=2, split="test")
        >>> data.frames(data.annotations.video_ids[0]).shape[1:]
        (96, 96, 3)
    """

    frame_rate = 8

    def __init__(
        self,
        num_videos: int | None = None,
        *,
        seed: int = 0,
        split: Literal["train", "test"] = "train",
        size: int = 96,
    ) -> None:
        who = "SyntheticVideos"
        self.seed, numbers = check_made_up(who, num_videos, seed, split, default=270)
        self.size = check_int(who, "size", size, at_least=16)
        if self.size % 2:
            raise ArgumentError(message(who, "size to be even", self.size))
        self.split = split
        self.videos: dict[str, ShapeVideo] = {}
        items: list[Annotation] = []
        for number in numbers:
            video_id = f"shapes-{split}-{self.seed}-{number}"
            random = generator_for(video_id)
            video = self.videos[video_id] = _make_video(random, self.frame_rate)
            for one in video.actions:
                color, form = one.shape.split()
                words = _SHAPE_WORDS[form]
                name = f"{color} {words[random.integers(len(words))]}"
                query = make_sentence(random, _ACTIONS[one.action], (_DOES, _IS_DOING), name)
                moments = ((one.start, one.end),)
                items.append(Annotation(len(items), video_id, query, video.duration, moments))
        self.annotations = made_up(f"synthetic videos ({split}, seed {self.seed})", items)

    def __repr__(self) -> str:
        return f"SyntheticVideos({self.split}, seed {self.seed}: {self.annotations!r})"

    def frames(self, video_id: str, numbers: ArrayLike | None = None) -> np.ndarray:
        """Draw the frames of a video.

        Args:
            video_id: Id of the video.
            numbers: Numbers of the frames, from 0. Defaults to all.

        Shape:
            - numbers: (T,)
            - returns: (T, size, size, 3) uint8, RGB

        Raises:
            ArgumentError: If the video or a frame does not exist.
        """
        actors, times = self._scene(video_id, numbers)
        shade = np.linspace(1.0, 0.94, self.size)[:, None, None]
        background = np.array(_BACKGROUND) * shade * np.ones((1, self.size, 1))
        frames = np.tile(background, (len(times), 1, 1, 1))
        for actor in actors:
            states = np.stack(actor.states(times), 1).tolist()
            for frame, state in zip(frames, states, strict=True):
                _paint(frame, actor, *state)
        return frames.round().astype(np.uint8)

    def layout(self, video_id: str, numbers: ArrayLike | None = None) -> np.ndarray:
        """Return the contents of a video's frames, as targets for training a frame encoder.

        For red, blue, green and yellow, there are five numbers, all 0 without such a shape: its
        opacity; and, multiplied by that, its x and y (-1 to 1), size (-1 to 1) and orientation (1
        upright, -1 rotated as far as possible).

        `video_id`, `numbers` and errors are as for `frames`.

        Shape:
            - numbers: (T,)
            - returns: (T, 4, 5) float32
        """
        actors, times = self._scene(video_id, numbers)
        found = np.zeros((len(times), len(_COLORS), 5), np.float32)
        for actor in actors:
            x, y, size, angle, opacity = actor.states(times)
            upright = np.cos(angle * len(actor.corners)) if actor.corners else np.ones(len(times))
            middle, half = (_LARGE + _SMALL) / 2, (_LARGE - _SMALL) / 2
            values = [np.ones(len(times)), 2 * x - 1, 2 * y - 1, (size - middle) / half, upright]
            found[:, list(_COLORS).index(actor.color)] = opacity[:, None] * np.stack(values, 1)
        return found

    def _scene(
        self, video_id: str, numbers: ArrayLike | None
    ) -> tuple["Sequence[_Actor]", np.ndarray]:
        """Return the shapes of a video, and the times of the middles of its frames."""
        who = "SyntheticVideos"
        if video_id not in self.videos:
            raise ArgumentError(message(who, "one of its videos", repr(video_id)))
        video = self.videos[video_id]
        count = round(video.duration * self.frame_rate)
        chosen = np.arange(count) if numbers is None else np.asarray(numbers)
        is_list = chosen.ndim == 1 and chosen.dtype.kind in "iu"
        if not is_list or not (chosen % count == chosen).all():
            expected = f"numbers of frames from 0 to {count - 1}"
            raise ArgumentError(message(who, expected, repr(numbers)))
        return video._actors, (chosen + 0.5) / self.frame_rate

    def write(
        self, folder: str | os.PathLike[str], video_ids: Iterable[str] | None = None
    ) -> list[Path]:
        """Write videos as H.264 in `{video_id}.mp4`, which all browsers play.

        Args:
            folder: Folder, created if needed.
            video_ids: Ids of the videos. Defaults to all.

        Returns:
            Paths of the files.

        Raises:
            ArgumentError: If a video does not exist.
            FileError: If a file cannot be written.
            MissingDependencyError: If the extra `video` is not installed.
        """
        av = require("av", extra="video", purpose="writing videos")
        paths = []
        for video_id in self.videos if video_ids is None else video_ids:
            frames = self.frames(video_id)
            path = Path(folder) / f"{video_id}.mp4"
            with written_beside(path) as new:
                options = {"movflags": "+faststart"}
                with av.open(str(new), "w", format="mp4", options=options) as file:
                    stream = file.add_stream("libx264", rate=Fraction(self.frame_rate))
                    stream.width = stream.height = self.size
                    stream.pix_fmt = "yuv420p"
                    stream.options = {"crf": "16", "preset": "veryfast"}
                    for frame in frames:
                        file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
                    file.mux(stream.encode())
            paths.append(path)
        return paths


class _Actor:
    """A shape with keyframes of place, size, angle and opacity."""

    def __init__(self, color: str, form: str, **state: float) -> None:
        self.name = f"{color} {form}"
        self.color = color
        self.corners = _CORNERS[form]
        self.done: set[str] = set()
        self.free = 0.0  # time in seconds from which on it is idle
        self.keys = {track: [(0.0, value)] for track, value in state.items()}

    def now(self, track: str) -> float:
        return self.keys[track][-1][1]

    def change(self, track: str, *steps: tuple[float, float]) -> None:
        """Add linear steps from the present value, which holds until the first step's time."""
        self.keys[track] += [(steps[0][0], self.now(track)), *steps[1:]]

    def states(self, times: np.ndarray) -> list[np.ndarray]:
        """Return place, size, angle and opacity over time."""
        tracks = [self.keys[name] for name in ("x", "y", "size", "angle", "opacity")]
        return [np.interp(times, *np.transpose(keys)) for keys in tracks]


def _make_video(random: np.random.Generator, frame_rate: int) -> ShapeVideo:
    """Let some shapes act until the video ends."""
    duration = int(random.integers(20 * frame_rate, 40 * frame_rate + 1)) / frame_rate
    count = int(random.integers(2, 4))
    colors = random.permutation(list(_COLORS))[:count]
    forms = random.choice(list(_CORNERS), count)
    # Separate rows, so that shapes rarely cover each other.
    places = random.permutation((0.22, 0.5, 0.78))[:count]
    actors = [
        _Actor(
            color,
            form,
            x=float(random.uniform(_MARGIN, 1 - _MARGIN)),
            y=float(place + random.uniform(-0.04, 0.04)),
            size=float(random.uniform(0.11, 0.16)),
            angle=0.0,
            opacity=float(random.random() > 0.25),
        )
        for color, form, place in zip(colors.tolist(), forms.tolist(), places, strict=True)
    ]
    actions: list[ShapeAction] = []
    clock = random.exponential(1.2)
    while True:
        length = math.exp(random.uniform(math.log(1.5), math.log(10)))
        start, end = (round(one * frame_rate) / frame_rate for one in (clock, clock + length))
        if end > duration:
            actions.sort(key=lambda one: (one.start, one.end))
            return ShapeVideo(duration, tuple(actions), actors)
        ready = [
            (actor, action)
            for actor in actors
            if actor.free <= start
            for action in _possible(actor)
        ]
        if ready:
            actor, action = ready[random.integers(len(ready))]
            _act(random, actor, action, start, end)
            actor.done.add(action)
            actor.free = end + 0.5
            actions.append(ShapeAction(actor.name, action, start, end))
        if random.random() < 0.25:  # the next starts before this one ends
            clock = random.uniform(start, end)
        else:
            clock = end + 0.3 + random.exponential(1.2)


def _paint(
    frame: np.ndarray,
    actor: _Actor,
    x: float,
    y: float,
    size: float,
    angle: float,
    opacity: float,
) -> None:
    """Paint a shape into a frame."""
    from PIL import Image, ImageDraw

    if not opacity:
        return
    side = len(frame)
    left, top = (max(0, math.floor((one - size) * side)) for one in (x, y))
    right, bottom = (min(side, math.ceil((one + size) * side)) for one in (x, y))
    image = Image.new("L", ((right - left) * _FINER, (bottom - top) * _FINER))
    place = complex(x * side - left, y * side - top) * _FINER
    radius = size * side * _FINER
    draw = ImageDraw.Draw(image)
    if actor.corners is None:
        box = [place - radius * (1 + 1j), place + radius * (1 + 1j)]
        draw.ellipse([(corner.real, corner.imag) for corner in box], fill=255)
    else:
        turn = radius * complex(math.cos(angle), math.sin(angle))
        points = [place + turn * complex(*corner) for corner in actor.corners]
        draw.polygon([(point.real, point.imag) for point in points], fill=255)
    cover = opacity * np.asarray(image.reduce(_FINER))[:, :, None] / 255
    part = frame[top:bottom, left:right]
    part += cover * (np.array(_COLORS[actor.color]) - part)


def _possible(actor: _Actor) -> list[str]:
    """Return visible actions that a shape has not done yet."""
    if not actor.now("opacity"):
        return [] if "appear" in actor.done else ["appear"]
    possible = []
    for action, (axis, sign) in _MOVES.items():
        room = 1 - _MARGIN - actor.now(axis) if sign > 0 else actor.now(axis) - _MARGIN
        if room > 0.3:
            possible.append(action)
    if actor.now("size") < 0.7 * _LARGE:
        possible.append("grow")
    if actor.now("size") > 1.4 * _SMALL:
        possible.append("shrink")
    if actor.corners is not None:
        possible.append("spin")
    possible += ["blink", "jump"]
    if "appear" in actor.done or len(actor.done) > 1:
        possible.append("disappear")
    return [action for action in possible if action not in actor.done]


def _act(random: np.random.Generator, actor: _Actor, action: str, start: float, end: float) -> None:
    if action in _MOVES:
        axis, sign = _MOVES[action]
        wall = 1 - _MARGIN if sign > 0 else _MARGIN
        share = random.uniform(0.75, 1)
        before = actor.now(axis)
        actor.change(axis, (start, before), (end, before + share * (wall - before)))
    elif action in ("grow", "shrink"):
        actor.change("size", (start, 0), (end, _LARGE if action == "grow" else _SMALL))
    elif action == "spin":
        turns = max(1, round((end - start) / 2.5))
        actor.change("angle", (start, 0), (end, actor.now("angle") + turns * 2 * math.pi))
    elif action in ("appear", "disappear"):
        actor.change("opacity", (start, 0), (end, float(action == "appear")))
    else:
        track, depth, period = ("opacity", -0.85, 1.0) if action == "blink" else ("y", -0.12, 0.75)
        still = actor.now(track)
        beats = max(1, round((end - start) / period))
        times = np.linspace(start, end, 2 * beats + 1)[1:-1]
        values = [still + depth * (1 - k % 2) for k in range(len(times))]
        steps = zip(times.tolist(), values, strict=True)
        actor.change(track, (start, 0), *steps, (end, still))
