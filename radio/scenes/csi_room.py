"""Channel state information (CSI) of Wi-Fi in a room where a person moves: a ray model.

The channel is the sum of rays: the line of sight, reflections from the room's six surfaces (image sources), furniture, and
a body of eleven scatterers that moves as one of six activities. Lengths of rays give delays, delays give phases, so
Doppler shifts, fading over the subcarriers and differences between antennas follow from geometry alone.
A scene is drawn on the host from a stream; `render` gives what a receiver reports of it, on any device.
"""

import math
from dataclasses import dataclass, replace

import torch

from radio.rng import Stream

LIGHT_M_S = 299_792_458.0
ACTIVITIES = ("box", "circle", "clean", "fall", "run", "walk")  # those of NTU-Fi HAR, in its order

# 40 MHz high throughput: subcarriers -58 to -2 and 2 to 58, IEEE Std 802.11-2020 table 19-6 (N_ST = 114).
SPACING_HZ = 312.5e3
SUBCARRIERS = (*range(-58, -1), *range(2, 59))
_COARSE, _FINE = 9, 13  # their product: subcarriers -58 to 58, the three in the middle included

# A component of I or Q has 10 bits in the reports of the Atheros chips that recorded NTU-Fi: amplitudes up to √2 · 512.
# Taken in dB these end at 57.2, where NTU-Fi's values end too.
MAX_DB = 20 * math.log10(math.sqrt(2) * 512)

# The body's scatterers: forward, left, up in units of its height while it stands, and radar cross sections that add up to
# about the 1 m² of a person at these frequencies.
_CHEST, _PELVIS, _HEAD = range(3)
_ELBOWS, _HANDS, _KNEES, _FEET = (slice(first, first + 2) for first in (3, 5, 7, 9))
_REST = (
    (0.0, 0.0, 0.75), (0.0, 0.0, 0.53), (0.0, 0.0, 0.93), (0.0, 0.13, 0.62), (0.0, -0.13, 0.62), (0.03, 0.14, 0.46),
    (0.03, -0.14, 0.46), (0.0, 0.06, 0.28), (0.0, -0.06, 0.28), (0.03, 0.06, 0.03), (0.03, -0.06, 0.03),
)  # fmt: skip
_RCS_M2 = (0.32, 0.24, 0.06, 0.03, 0.03, 0.02, 0.02, 0.06, 0.06, 0.03, 0.03)
_TORSO = 3  # the first scatterers, strong enough to be seen over walls too

_SHADOW = 0.7  # of the line of sight's amplitude, taken away by a torso on it
_TURN_M = 0.2  # half the distance between the way there and the way back
_LEAST_HEIGHT_M = 0.08

# Purposes of a scene's streams.
_PARAMETERS, _RECEIVER, _NOISE = range(3)


@dataclass(frozen=True)
class Motion:
    """How a person moves; "cycle" is a pair of punches, strides or sweeps.

    Attributes:
        activity: one of `ACTIVITIES`.
        height_m: of the person.
        center_m: (x, y) of the middle of the circle or line, or of where the person stands.
        heading_rad: of the line or the person, counter-clockwise from x.
        speed_m_s: of the body as a whole, at most.
        rate_hz: cycles a second; of a fall, one over the time it takes.
        reach_m: how far the hands move to each side of their rest, of a punch how far they go.
        span_m: diameter of the circle, length of the line.
        onset_s: when a fall begins.
        phase: of everything periodic, in cycles.
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
            raise ValueError(f"expected a height, a rate and a speed: {self.height_m=} {self.rate_hz=} {self.speed_m_s=}")
        if self.activity in ("circle", "clean", "run", "walk") and not self.span_m > 0:
            raise ValueError(f"expected a span for {self.activity}: {self.span_m=}")


@dataclass(frozen=True)
class CsiScene:
    """A room, what is in it, and a receiver's flaws.

    Attributes:
        stream: decides packet times and noise.
        motion: of the person; None for an empty room.
        carrier_hz: centre of the 40 MHz.
        room_m: (x, y, z) size; one corner is the origin.
        wall_gain: factor on the amplitude at each reflection, negative as it turns the phase.
        tx_m: (x, y, z) of the transmitter; rx_m: the same of each receive antenna.
        furniture_m: (x, y, z, radar cross section in m²) of each thing.
        duration_s, num_packets: packets are sent at an even rate,
        jitter: but wait for up to this share of the time between them.
        snr_db: mean power over noise, in all of the sample.
        agc_step_db: steps of the receiver's gain, which is set anew for each packet; 0 for a constant gain.
        level_db: what the gain aims at: root of the mean power, in dB.
        antenna_db: gain of each receive antenna.
    """

    stream: Stream
    motion: Motion | None
    carrier_hz: float
    room_m: tuple
    wall_gain: float
    tx_m: tuple
    rx_m: tuple
    furniture_m: tuple = ()
    duration_s: float = 5.0
    num_packets: int = 500
    jitter: float = 0.0
    snr_db: float = math.inf
    agc_step_db: float = 0.0
    level_db: float = 44.0
    antenna_db: tuple = (0.0, 0.0, 0.0)

    def __post_init__(self):
        if not self.carrier_hz > 0 or not self.duration_s > 0 or self.num_packets < 1:
            raise ValueError(f"expected positive numbers: {self.carrier_hz=} {self.duration_s=} {self.num_packets=}")
        if not -1 <= self.wall_gain <= 1 or not 0 <= self.jitter < 1 or self.agc_step_db < 0:
            raise ValueError(f"expected a gain of -1 to 1, a jitter of 0 to below 1, and an AGC step of at least 0: "
                             f"{self.wall_gain=} {self.jitter=} {self.agc_step_db=}")  # fmt: skip
        if len(self.antenna_db) != len(self.rx_m):
            raise ValueError(f"expected a gain for each antenna: {self.antenna_db=} {self.rx_m=}")

    @property
    def wavelength_m(self):
        return LIGHT_M_S / self.carrier_hz

    def packet_times_s(self, device="cpu"):
        """float64 [num_packets], ascending."""
        waits = torch.from_numpy(self.stream.child(_RECEIVER).generator().random(self.num_packets)) * self.jitter
        return ((torch.arange(self.num_packets) + waits) * (self.duration_s / self.num_packets)).to(device)


# Drawing

_CARRIERS_HZ = (2.422e9, 2.452e9, 5.19e9, 5.31e9, 5.755e9)  # 40 MHz channels 3, 9, 38, 62, 151
# Least and most of speed (m/s), cycles a second, reach (m) and span (m).
_RANGES = {
    "box": ((0, 0), (0.7, 1.6), (0.3, 0.5), (0, 0)),
    "circle": ((0.6, 1.3), (0.6, 1.0), (0.1, 0.2), (0.8, 1.8)),
    "clean": ((0.05, 0.3), (0.4, 1.0), (0.15, 0.35), (0.3, 1.0)),
    "fall": ((0, 0), (0.7, 1.4), (0.1, 0.5), (0, 0)),
    "run": ((1.8, 3.0), (1.2, 1.6), (0.25, 0.4), (2.5, 5.0)),
    "walk": ((0.7, 1.5), (0.7, 1.05), (0.12, 0.25), (2.0, 5.0)),
}
_WALL_M = 0.4  # nothing is closer to a wall


def draw(activity, stream, room=None):
    """The scene of an activity that a stream (seed, kind, index) decides: a `CsiScene` of 5 s and 500 packets.

    Args:
        activity: one of `ACTIVITIES`.
        room: a `CsiScene`; another person moves between its walls, furniture and antennas. None: those are drawn too.
    """
    rng = stream.child(_PARAMETERS).generator()
    if room is not None:
        return replace(room, stream=stream, motion=_draw_motion(activity, room.room_m, rng))
    carrier_hz = _CARRIERS_HZ[int(rng.integers(len(_CARRIERS_HZ)))]
    room_m = tuple(rng.uniform((3.5, 3.5, 2.4), (8.0, 8.0, 3.2)).tolist())

    def somewhere(low_m, high_m):
        return [*rng.uniform(_WALL_M, [side - _WALL_M for side in room_m[:2]]).tolist(), float(rng.uniform(low_m, high_m))]

    tx_m = somewhere(0.7, 1.6)
    rx_m = somewhere(0.7, 1.6)
    while math.dist(tx_m, rx_m) < 1.5:
        rx_m = somewhere(0.7, 1.6)
    angle = rng.uniform(0, 2 * math.pi)
    apart = 0.5 * LIGHT_M_S / carrier_hz
    antennas = tuple(
        (rx_m[0] + step * apart * math.cos(angle), rx_m[1] + step * apart * math.sin(angle), rx_m[2]) for step in (-1, 0, 1)
    )
    furniture = tuple(
        (*somewhere(0.2, 1.8), float(rng.uniform(0.2, 2.0))) for _ in range(int(rng.integers(2, 9)))
    )  # fmt: skip
    return CsiScene(
        stream=stream,
        motion=_draw_motion(activity, room_m, rng),
        carrier_hz=carrier_hz,
        room_m=room_m,
        wall_gain=-float(rng.uniform(0.3, 0.7)),
        tx_m=tuple(tx_m),
        rx_m=antennas,
        furniture_m=furniture,
        jitter=float(rng.uniform(0, 0.8)),
        snr_db=float(rng.uniform(20, 40)),
        agc_step_db=float(rng.choice((0.5, 1.0, 2.0))),
        level_db=float(rng.normal(44, 1.5)),
        antenna_db=tuple(rng.normal(0, 1.5, len(antennas)).tolist()),
    )


def _draw_motion(activity, room_m, rng):
    speed, rate, reach, span = (float(rng.uniform(*limits)) for limits in _RANGES[activity])
    heading = float(rng.uniform(0, 2 * math.pi))
    span = min(span, min(room_m[:2]) - 2 * (_WALL_M + _TURN_M))
    if activity in ("run", "walk"):
        half_m = [abs(part) * span / 2 + _TURN_M for part in (math.cos(heading), math.sin(heading))]
    else:
        half_m = [span / 2, span / 2]
    center = [
        float(rng.uniform(_WALL_M + half, side - _WALL_M - half)) for half, side in zip(half_m, room_m[:2], strict=True)
    ]
    if activity == "fall":  # into the room, not into a wall
        heading = math.atan2(room_m[1] / 2 - center[1], room_m[0] / 2 - center[0]) + float(rng.uniform(-1, 1))
    return Motion(activity, float(rng.uniform(1.5, 1.95)), tuple(center), heading, speed, rate, reach, span,
                  float(rng.uniform(0.3, 3.3)), float(rng.random()))  # fmt: skip


# The body


def body(motion, times_s):
    """Where the scatterers are: float64 [11, T, 3] in metres, for times float64 [T]; their order is that of `_REST`."""
    rest = torch.tensor(_REST, dtype=torch.float64, device=times_s.device) * motion.height_m
    pose = rest[:, None, :].repeat(1, len(times_s), 1)  # (scatterers, T, forward left up)
    cycle = 2 * math.pi * (motion.rate_hz * times_s + motion.phase)
    _MOVES[motion.activity](motion, pose, times_s, cycle)

    x, y, forward_x, forward_y = _course(motion, times_s)
    cosine, sine = math.cos(motion.heading_rad), math.sin(motion.heading_rad)
    x, y = x + pose[..., 0] * forward_x - pose[..., 1] * forward_y, y + pose[..., 0] * forward_y + pose[..., 1] * forward_x
    return torch.stack(
        [
            motion.center_m[0] + cosine * x - sine * y,
            motion.center_m[1] + sine * x + cosine * y,
            pose[..., 2].clamp_min(_LEAST_HEIGHT_M),
        ],
        dim=2,
    )


def _course(motion, times_s):
    """Where the body is along and across its heading, in metres, and the unit vector it faces: four of [T] or numbers."""
    if motion.activity in ("box", "fall"):
        return 0.0, 0.0, 1.0, 0.0
    if motion.activity == "clean":
        angle = 2 * motion.speed_m_s / motion.span_m * times_s + 2 * math.pi * motion.phase
        return motion.span_m / 2 * torch.sin(angle), 0.0, 1.0, 0.0
    if motion.activity == "circle":
        angle = 2 * motion.speed_m_s / motion.span_m * times_s + 2 * math.pi * motion.phase
        sine, cosine = torch.sin(angle), torch.cos(angle)
        return motion.span_m / 2 * sine, motion.span_m / 2 * cosine, cosine, -sine
    # To and fro: arcsin(sin) is a triangle wave; `blunt` rounds its tips, and at no time is it faster than `speed_m_s`.
    blunt = 0.98
    angle = math.pi * motion.speed_m_s / motion.span_m * times_s + 2 * math.pi * motion.phase
    x, y = motion.span_m / math.pi * torch.asin(blunt * torch.sin(angle)), _TURN_M * torch.cos(angle)
    along = motion.span_m / math.pi * blunt * torch.cos(angle) / torch.sqrt(1 - (blunt * torch.sin(angle)).square())
    across = -_TURN_M * torch.sin(angle)
    length = torch.hypot(along, across)
    return x, y, along / length, across / length


def _sides(left):
    """A limb's movement, and that of the other side half a cycle later: [2, T]."""
    return torch.stack([left, -left])


def _stride(motion, pose, times_s, cycle):
    swing = _sides(torch.sin(cycle))
    step = motion.speed_m_s / motion.rate_hz / 4
    pose[_FEET, :, 0] += step * swing
    pose[_FEET, :, 2] += 0.4 * step * _sides(torch.cos(cycle)).clamp_min(0)
    pose[_KNEES, :, 0] += 0.5 * step * swing
    pose[_HANDS, :, 0] -= motion.reach_m * swing
    pose[_ELBOWS, :, 0] -= 0.4 * motion.reach_m * swing
    pose[:_TORSO, :, 2] += 0.08 * step * torch.cos(2 * cycle)


def _punch(motion, pose, times_s, cycle):
    out = _sides(torch.sin(cycle)).clamp_min(0).square()
    pose[_HANDS, :, 0] += 0.15 * motion.height_m + motion.reach_m * out
    pose[_HANDS, :, 2] += 0.28 * motion.height_m
    pose[_ELBOWS, :, 0] += 0.04 * motion.height_m + 0.6 * motion.reach_m * out
    pose[_ELBOWS, :, 2] += 0.08 * motion.height_m * out
    pose[:_TORSO, :, 0] += 0.06 * motion.reach_m * out.sum(0)
    pose[:_TORSO, :, 1] += 0.02 * torch.sin(0.4 * cycle)


def _sweep(motion, pose, times_s, cycle):
    _lean(pose, 0.8 + 0.3 * motion.reach_m * torch.sin(cycle), _REST[_PELVIS][2] * motion.height_m)
    pose[:_TORSO, :, 0] += 0.15 * motion.reach_m * torch.sin(cycle)
    pose[_HANDS, :, 0] = 0.35 * motion.height_m + motion.reach_m * torch.sin(cycle)
    pose[_HANDS, :, 1] += 0.3 * motion.reach_m * torch.cos(cycle)
    pose[_HANDS, :, 2] = 0.15 * motion.height_m
    pose[_ELBOWS, :, 0] += 0.5 * motion.reach_m * torch.sin(cycle)


def _drop(motion, pose, times_s, cycle):
    share = ((times_s - motion.onset_s) * motion.rate_hz).clamp(0, 1)
    pose[:_TORSO, :, :2] += 0.01 * torch.sin(0.6 * times_s + 6 * motion.phase)[:, None]
    pose[_HANDS, :, 0] += 4 * motion.reach_m * share * (1 - share)
    _lean(pose, math.pi / 4 * (1 - torch.cos(math.pi * share)), -1.0)


def _lean(pose, angle, pivot_m):
    """Turn what is above a height forwards about it (below the floor: all about the feet), by angles [T]."""
    above = pose[:, 0, 2] > pivot_m
    pivot_m = max(pivot_m, 0.0)
    forward, up = pose[above][..., 0], pose[above][..., 2] - pivot_m
    pose[above, :, 0] = forward * torch.cos(angle) + up * torch.sin(angle)
    pose[above, :, 2] = up * torch.cos(angle) - forward * torch.sin(angle) + pivot_m


_MOVES = {"box": _punch, "circle": _stride, "clean": _sweep, "fall": _drop, "run": _stride, "walk": _stride}


# The rays


def image_sources(position_m, room_m, most):
    """Mirror images of a source in the six surfaces of a room: float64 [images, 3], and their reflections int64 [images].

    The first is the source itself, the others are of 1 to `most` reflections. (Allen, Berkley, "Image method for
    efficiently simulating small-room acoustics", J. Acoust. Soc. Am. 65(4), 1979.)
    """
    order = torch.arange(-most, most + 1)
    order = torch.cartesian_prod(order, order, order)
    bounces = order.abs().sum(1)
    order, bounces = order[bounces <= most], bounces[bounces <= most]
    first = bounces.argsort(stable=True)
    order, bounces = order[first], bounces[first]
    position, room = (torch.tensor(value, dtype=torch.float64) for value in (position_m, room_m))
    odd = order % 2
    return (order + odd) * room + (1 - 2 * odd) * position, bounces


def response(lengths_m, gains, carrier_hz):
    """What rays add up to on the 114 subcarriers, lowest first: complex64 [..., 114].

    Args:
        lengths_m: float64 [..., rays]: a ray of length d turns subcarrier f by -2π f d / c.
        gains: real amplitudes, of a shape that broadcasts with `lengths_m`.
    """
    cycles = lengths_m * (carrier_hz / LIGHT_M_S)
    at_carrier = torch.polar(gains.expand_as(cycles), -2 * math.pi * (cycles % 1.0)).to(torch.complex64)
    turn = (lengths_m * (-2 * math.pi * SPACING_HZ / LIGHT_M_S)).float()
    # Subcarrier -58 + 13 i + j: a product of two short tables, summed over the rays as a product of matrices.
    coarse = torch.arange(_COARSE, device=turn.device) * _FINE + SUBCARRIERS[0]
    coarse, fine = (turn[..., None] * steps for steps in (coarse, torch.arange(_FINE, device=turn.device)))
    coarse = torch.polar(torch.ones_like(coarse), coarse) * at_carrier[..., None]  # (..., rays, 9)
    fine = torch.polar(torch.ones_like(fine), fine)  # (..., rays, 13)
    values = (coarse.transpose(-1, -2) @ fine).flatten(-2)
    half = len(SUBCARRIERS) // 2
    return torch.cat([values[..., :half], values[..., -half:]], dim=-1)


def channel(scene, times_s):
    """The channel without a receiver's flaws: complex64 [antennas, 114, T], on the device of `times_s`, float64 [T].

    Rays lose amplitude as λ / (4π d) in free space (Friis), and as λ √σ / ((4π)^1.5 d1 d2) by way of a scatterer of cross
    section σ (the bistatic radar equation). A torso within the first Fresnel zone of the line of sight dims it.
    """
    device, wavelength_m = times_s.device, scene.wavelength_m
    sources, bounces = (values.to(device) for values in image_sources(scene.tx_m, scene.room_m, 2))
    antennas = torch.tensor(scene.rx_m, dtype=torch.float64, device=device)
    gains = scene.wall_gain ** bounces.double()

    lengths = torch.cdist(antennas, sources)  # (antennas, images)
    amplitudes = gains * wavelength_m / (4 * math.pi * lengths)
    if scene.furniture_m:
        things = torch.tensor(scene.furniture_m, dtype=torch.float64, device=device)
        out, back = torch.cdist(sources[:1], things[:, :3]), torch.cdist(antennas, things[:, :3])
        lengths = torch.cat([lengths, out + back], dim=1)
        amplitudes = torch.cat([amplitudes, _scattered(things[:, 3], out, back, wavelength_m)], dim=1)
    if scene.motion is None:
        return response(lengths, amplitudes, scene.carrier_hz)[..., None].repeat(1, 1, len(times_s))
    fixed = response(lengths[:, 1:], amplitudes[:, 1:], scene.carrier_hz)
    direct = response(lengths[:, :1], amplitudes[:, :1], scene.carrier_hz)

    # the body: straight from the transmitter, and its torso over each surface once
    points = body(scene.motion, times_s).transpose(0, 1)  # (T, scatterers, 3)
    cross_section = torch.tensor(_RCS_M2, dtype=torch.float64, device=device)
    back = torch.linalg.vector_norm(points - antennas[:, None, None], dim=-1)  # (antennas, T, scatterers)
    out = torch.linalg.vector_norm(points - sources[0], dim=-1)  # (T, scatterers)
    once = bounces == 1
    over = torch.linalg.vector_norm(points[:, :_TORSO, None] - sources[once], dim=-1)  # (T, torso, surfaces)
    rays_m = torch.cat([out + back, (over + back[..., :_TORSO, None]).flatten(2)], dim=2)  # (antennas, T, rays)
    echoes = _scattered(cross_section[:_TORSO, None], over, back[..., :_TORSO, None], wavelength_m) * gains[once]
    strengths = torch.cat([_scattered(cross_section, out, back, wavelength_m), echoes.flatten(2)], dim=2)
    moving = response(rays_m, strengths, scene.carrier_hz)  # (antennas, T, 114)

    detour = (out + back)[..., :_HEAD].amin(dim=2) - lengths[:, :1]  # (antennas, T)
    lit = 1 - _SHADOW * torch.exp(-(detour / (wavelength_m / 2)).square())
    return (moving + fixed[:, None] + direct[:, None] * lit[..., None].float()).transpose(1, 2).contiguous()


def _scattered(cross_section_m2, out_m, back_m, wavelength_m):
    """Amplitude by way of a scatterer; it is not in the far field of anything nearer than 0.3 m."""
    return wavelength_m * cross_section_m2.sqrt() / ((4 * math.pi) ** 1.5 * out_m.clamp_min(0.3) * back_m.clamp_min(0.3))


# The receiver


def render(scene, device="cpu"):
    """What a receiver reports: amplitude in dB, 0 to `MAX_DB`: float32 [antennas, 114, packets] on the device."""
    values = channel(scene, scene.packet_times_s(device))
    power = torch.view_as_real(values).square().sum(-1)
    mean_power = power.mean()
    if scene.snr_db < math.inf:
        noise = scene.stream.child(_NOISE).complex_normal(values.numel(), device).view(values.shape)
        values = values + noise * (mean_power * 10 ** (-scene.snr_db / 10)).sqrt()
        power = torch.view_as_real(values).square().sum(-1)
    level = _decibels(mean_power)
    if scene.agc_step_db:
        packets = _decibels(power.mean(dim=(0, 1)))
        level = (packets / scene.agc_step_db).round() * scene.agc_step_db  # (packets,)
    antennas = torch.tensor(scene.antenna_db, device=device)[:, None, None]
    return (_decibels(power) - level + antennas + scene.level_db).clamp(0, MAX_DB)


def _decibels(power):
    return 10 * torch.log10(power.clamp_min(torch.finfo(torch.float32).tiny))

