"""A person in a room: eleven scatterers that move as one of six activities."""

import math
from dataclasses import dataclass

import torch

ACTIVITIES = ("box", "circle", "clean", "fall", "run", "walk")  # the classes of NTU-Fi HAR, in its order
WALL_M = 0.4  # least distance from a wall

# Scatterers at rest: forward, left, up in units of the height; radar cross section in m².
# The cross sections add up to about 1 m², as of a person at these frequencies.
_SCATTERERS = (
    (0.0, 0.0, 0.75, 0.32),  # chest
    (0.0, 0.0, 0.53, 0.24),  # pelvis
    (0.0, 0.0, 0.93, 0.06),  # head
    (0.0, 0.13, 0.62, 0.03),
    (0.0, -0.13, 0.62, 0.03),
    (0.03, 0.14, 0.46, 0.02),
    (0.03, -0.14, 0.46, 0.02),
    (0.0, 0.06, 0.28, 0.06),
    (0.0, -0.06, 0.28, 0.06),
    (0.03, 0.06, 0.03, 0.03),
    (0.03, -0.06, 0.03, 0.03),
)
RCS_M2 = tuple(area for *_, area in _SCATTERERS)
TORSO = 3  # the first scatterers: strong enough to matter also by way of the walls
_ELBOWS, _HANDS, _KNEES, _FEET = (slice(first, first + 2) for first in (3, 5, 7, 9))
_PELVIS_UP = _SCATTERERS[1][2]
_TURN_M = 0.2  # half the distance between the way there and the way back
_LEAST_HEIGHT_M = 0.08


@dataclass(frozen=True)
class Motion:
    """How a person moves. A cycle is a pair of punches, strides or sweeps.

    Attributes:
        activity: one of `ACTIVITIES`.
        height_m: of the person.
        center_m: (x, y) of the middle of the path, or of the standing person.
        heading_rad: direction of the path or the person, counter-clockwise from x.
        speed_m_s: maximum speed of the body.
        rate_hz: cycles per second; of a fall, 1 / duration.
        reach_m: how far the hands swing to each side; how far a punch goes.
        span_m: diameter of the circle, length of the line.
        onset_s: start of a fall.
        phase: of all periodic movements, in cycles.
    """

    activity: str
    height_m: float = 1.7
    center_m: tuple = (3.0, 3.0)
    heading_rad: float = 0.0
    speed_m_s: float = 0.0
    rate_hz: float = 1.0
    reach_m: float = 0.0
    span_m: float = 0.0
    onset_s: float = 0.0
    phase: float = 0.0

    def __post_init__(self):
        if self.activity not in ACTIVITIES:
            raise ValueError(f"expected activity to be one of {ACTIVITIES}: {self.activity=}")
        if not self.height_m > 0 or not self.rate_hz > 0 or self.speed_m_s < 0:
            raise ValueError(f"expected height and rate above 0, speed of at least 0: {self}")
        if self.activity in ("circle", "clean", "run", "walk") and not self.span_m > 0:
            raise ValueError(f"expected a span for {self.activity}: {self.span_m=}")


# Ranges of speed (m/s), cycles per second, reach (m) and span (m).
_RANGES = {
    "box": ((0, 0), (0.7, 1.6), (0.3, 0.5), (0, 0)),
    "circle": ((0.6, 1.3), (0.6, 1.0), (0.1, 0.2), (0.8, 1.8)),
    "clean": ((0.05, 0.3), (0.4, 1.0), (0.15, 0.35), (0.3, 1.0)),
    "fall": ((0, 0), (0.7, 1.4), (0.1, 0.5), (0, 0)),
    "run": ((1.8, 3.0), (1.2, 1.6), (0.25, 0.4), (2.5, 5.0)),
    "walk": ((0.7, 1.5), (0.7, 1.05), (0.12, 0.25), (2.0, 5.0)),
}


def draw_motion(activity, room_m, rng):
    speed, rate, reach, span = (float(rng.uniform(*limits)) for limits in _RANGES[activity])
    heading = float(rng.uniform(0, 2 * math.pi))
    span = min(span, min(room_m[:2]) - 2 * (WALL_M + _TURN_M))
    half_m = [span / 2, span / 2]
    if activity in ("run", "walk"):
        half_m = [abs(part) * span / 2 + _TURN_M for part in (math.cos(heading), math.sin(heading))]
    walls_m = zip(half_m, room_m, strict=False)
    center = [float(rng.uniform(WALL_M + half, side - WALL_M - half)) for half, side in walls_m]
    if activity == "fall":  # into the room, not into a wall
        heading = math.atan2(room_m[1] / 2 - center[1], room_m[0] / 2 - center[0]) + float(rng.uniform(-1, 1))
    height, onset, phase = float(rng.uniform(1.5, 1.95)), float(rng.uniform(0.3, 3.3)), float(rng.random())
    return Motion(activity, height, tuple(center), heading, speed, rate, reach, span, onset, phase)


def body(motion, times_s):
    """Positions of the scatterers in metres: float64 [11, T, 3], for times float64 [T]."""
    rest = torch.tensor(_SCATTERERS, dtype=torch.float64, device=times_s.device)[:, :3] * motion.height_m
    pose = rest[:, None, :].repeat(1, len(times_s), 1)  # (scatterers, T, forward left up)
    cycle = 2 * math.pi * (motion.rate_hz * times_s + motion.phase)
    _MOVES[motion.activity](motion, pose, times_s, cycle)

    along, across, facing_along, facing_across = _course(motion, times_s)
    forward, left, up = pose.unbind(-1)
    along, across = (
        along + forward * facing_along - left * facing_across,
        across + forward * facing_across + left * facing_along,
    )
    cosine, sine = math.cos(motion.heading_rad), math.sin(motion.heading_rad)
    x = motion.center_m[0] + cosine * along - sine * across
    y = motion.center_m[1] + sine * along + cosine * across
    return torch.stack([x, y, up.clamp_min(_LEAST_HEIGHT_M)], dim=2)


def _course(motion, times_s):
    """Position of the body along and across its heading in metres, and the unit vector it faces: [T] each."""
    if motion.activity in ("box", "fall"):
        return 0.0, 0.0, 1.0, 0.0
    turns = 2 if motion.activity in ("clean", "circle") else math.pi
    angle = turns * motion.speed_m_s / motion.span_m * times_s + 2 * math.pi * motion.phase
    sine, cosine = torch.sin(angle), torch.cos(angle)
    if motion.activity == "clean":
        return motion.span_m / 2 * sine, 0.0, 1.0, 0.0
    if motion.activity == "circle":
        return motion.span_m / 2 * sine, motion.span_m / 2 * cosine, cosine, -sine
    # To and fro: arcsin(sin) is a triangle wave. `blunt` rounds its tips; the speed never exceeds speed_m_s.
    blunt = 0.98
    x, y = motion.span_m / math.pi * torch.asin(blunt * sine), _TURN_M * cosine
    along = motion.span_m / math.pi * blunt * cosine / torch.sqrt(1 - (blunt * sine).square())
    across = -_TURN_M * sine
    length = torch.hypot(along, across)
    return x, y, along / length, across / length


def _sides(left):
    """The movement of the left limb, and of the right limb half a cycle later: [2, T]."""
    return torch.stack([left, -left])


def _stride(motion, pose, times_s, cycle):
    swing = _sides(torch.sin(cycle))
    step = motion.speed_m_s / motion.rate_hz / 4
    pose[_FEET, :, 0] += step * swing
    pose[_FEET, :, 2] += 0.4 * step * _sides(torch.cos(cycle)).clamp_min(0)
    pose[_KNEES, :, 0] += 0.5 * step * swing
    pose[_HANDS, :, 0] -= motion.reach_m * swing
    pose[_ELBOWS, :, 0] -= 0.4 * motion.reach_m * swing
    pose[:TORSO, :, 2] += 0.08 * step * torch.cos(2 * cycle)


def _punch(motion, pose, times_s, cycle):
    out = _sides(torch.sin(cycle)).clamp_min(0).square()
    pose[_HANDS, :, 0] += 0.15 * motion.height_m + motion.reach_m * out
    pose[_HANDS, :, 2] += 0.28 * motion.height_m
    pose[_ELBOWS, :, 0] += 0.04 * motion.height_m + 0.6 * motion.reach_m * out
    pose[_ELBOWS, :, 2] += 0.08 * motion.height_m * out
    pose[:TORSO, :, 0] += 0.06 * motion.reach_m * out.sum(0)
    pose[:TORSO, :, 1] += 0.02 * torch.sin(0.4 * cycle)


def _sweep(motion, pose, times_s, cycle):
    swing = torch.sin(cycle)
    _lean(pose, 0.8 + 0.3 * motion.reach_m * swing, _PELVIS_UP * motion.height_m)
    pose[:TORSO, :, 0] += 0.15 * motion.reach_m * swing
    pose[_HANDS, :, 0] = 0.35 * motion.height_m + motion.reach_m * swing
    pose[_HANDS, :, 1] += 0.3 * motion.reach_m * torch.cos(cycle)
    pose[_HANDS, :, 2] = 0.15 * motion.height_m
    pose[_ELBOWS, :, 0] += 0.5 * motion.reach_m * swing


def _drop(motion, pose, times_s, cycle):
    share = ((times_s - motion.onset_s) * motion.rate_hz).clamp(0, 1)
    pose[:TORSO, :, :2] += 0.01 * torch.sin(0.6 * times_s + 6 * motion.phase)[:, None]
    pose[_HANDS, :, 0] += 4 * motion.reach_m * share * (1 - share)
    _lean(pose, math.pi / 4 * (1 - torch.cos(math.pi * share)), -1.0)


def _lean(pose, angle, pivot_m):
    """Turn the scatterers above a height forwards about it, by angles [T]; a negative height turns all."""
    above = pose[:, 0, 2] > pivot_m
    pivot_m = max(pivot_m, 0.0)
    forward, up = pose[above][..., 0], pose[above][..., 2] - pivot_m
    pose[above, :, 0] = forward * torch.cos(angle) + up * torch.sin(angle)
    pose[above, :, 2] = up * torch.cos(angle) - forward * torch.sin(angle) + pivot_m


_MOVES = {"box": _punch, "circle": _stride, "clean": _sweep, "fall": _drop, "run": _stride, "walk": _stride}
