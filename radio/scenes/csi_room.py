"""Channel state information (CSI) of Wi-Fi in a room with a moving person: a ray model.

The channel sums rays: line of sight, reflections from the room's six surfaces (image sources), furniture, and
the person's eleven scatterers. Ray lengths give delays and phases, thus Doppler shifts, fading across
subcarriers and antenna differences. `draw` makes a scene on the host; `render` makes its CSI on any device.
"""

import math
from dataclasses import dataclass, replace

import torch

from radio.rng import Stream
from radio.scenes.csi_body import RCS_M2, TORSO, WALL_M, Motion, body, draw_motion

LIGHT_M_S = 299_792_458.0

# 40 MHz high throughput: subcarriers -58 to -2 and 2 to 58, IEEE Std 802.11-2020 table 19-6 (N_ST = 114).
SPACING_HZ = 312.5e3
SUBCARRIERS = (*range(-58, -1), *range(2, 59))
_COARSE, _FINE = 9, 13  # their product: subcarriers -58 to 58, the three in the middle included

# The Atheros chips that recorded NTU-Fi report I and Q in 10 bits: amplitudes end at √2 · 512, 57.2 dB.
MAX_DB = 20 * math.log10(math.sqrt(2) * 512)

_SHADOW = 0.7  # share of the line of sight's amplitude that a torso blocks
_CARRIERS_HZ = (2.422e9, 2.452e9, 5.19e9, 5.31e9, 5.755e9)  # 40 MHz channels 3, 9, 38, 62, 151

# Purposes of a scene's streams.
_PARAMETERS, _RECEIVER, _NOISE = range(3)


@dataclass(frozen=True)
class CsiScene:
    """A room, its contents, and a receiver.

    Attributes:
        stream: determines packet times and noise.
        motion: of the person; None for an empty room.
        carrier_hz: centre of the 40 MHz.
        room_m: (x, y, z) size; one corner is the origin.
        wall_gain: amplitude factor of a reflection; negative values turn the phase.
        tx_m, rx_m: (x, y, z) of the transmitter; of each receive antenna.
        furniture_m: (x, y, z, radar cross section in m²) of each object.
        duration_s, num_packets: packets are sent at an even rate.
        jitter: maximum delay of a packet, as a share of the packet interval.
        snr_db: mean power over noise, of the whole sample.
        agc_step_db: step of the receiver's gain, set anew for each packet; 0 for a constant gain.
        level_db: target of the gain: rms amplitude in dB.
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
        if not (self.carrier_hz > 0 and self.duration_s > 0 and self.num_packets >= 1):
            raise ValueError(f"expected carrier_hz, duration_s and num_packets above 0: {self}")
        if not (-1 <= self.wall_gain <= 1 and 0 <= self.jitter < 1 and self.agc_step_db >= 0):
            raise ValueError(f"expected wall_gain -1 to 1, jitter 0 to below 1, agc_step_db from 0: {self}")
        if len(self.antenna_db) != len(self.rx_m):
            raise ValueError(f"expected a gain for each antenna: {self.antenna_db=} {self.rx_m=}")

    @property
    def wavelength_m(self):
        return LIGHT_M_S / self.carrier_hz

    def packet_times_s(self, device="cpu"):
        """float64 [num_packets], ascending."""
        count, rng = self.num_packets, self.stream.child(_RECEIVER).generator()
        waits = torch.from_numpy(rng.random(count)) * self.jitter
        return ((torch.arange(count) + waits) * (self.duration_s / count)).to(device)


def draw(activity, stream, room=None):
    """The `CsiScene` of 5 s and 500 packets that an activity and a stream (seed, kind, index) determine.

    room: a `CsiScene` whose room, furniture and antennas another person uses. None: draw a new room.
    """
    rng = stream.child(_PARAMETERS).generator()
    if room is not None:
        return replace(room, stream=stream, motion=draw_motion(activity, room.room_m, rng))
    carrier_hz = _CARRIERS_HZ[int(rng.integers(len(_CARRIERS_HZ)))]
    room_m = tuple(rng.uniform((3.5, 3.5, 2.4), (8.0, 8.0, 3.2)).tolist())

    def somewhere(low_m, high_m):
        x, y = rng.uniform(WALL_M, [side - WALL_M for side in room_m[:2]]).tolist()
        return x, y, float(rng.uniform(low_m, high_m))

    tx_m = somewhere(0.7, 1.6)
    x, y, z = somewhere(0.7, 1.6)
    while math.dist(tx_m, (x, y, z)) < 1.5:
        x, y, z = somewhere(0.7, 1.6)
    angle = rng.uniform(0, 2 * math.pi)
    steps_m = [step * 0.5 * LIGHT_M_S / carrier_hz for step in (-1, 0, 1)]
    antennas = tuple((x + step * math.cos(angle), y + step * math.sin(angle), z) for step in steps_m)
    objects = range(int(rng.integers(2, 9)))
    furniture = tuple((*somewhere(0.2, 1.8), float(rng.uniform(0.2, 2.0))) for _ in objects)
    return CsiScene(
        stream=stream,
        motion=draw_motion(activity, room_m, rng),
        carrier_hz=carrier_hz,
        room_m=room_m,
        wall_gain=-float(rng.uniform(0.3, 0.7)),
        tx_m=tx_m,
        rx_m=antennas,
        furniture_m=furniture,
        jitter=float(rng.uniform(0, 0.8)),
        snr_db=float(rng.uniform(20, 40)),
        agc_step_db=float(rng.choice((0.5, 1.0, 2.0))),
        level_db=float(rng.normal(44, 1.5)),
        antenna_db=tuple(rng.normal(0, 1.5, len(antennas)).tolist()),
    )


def image_sources(position_m, room_m, most):
    """Mirror images of a source in a room's six surfaces, and their reflections, 0 to `most`, ascending.

    float64 [images, 3], int64 [images]. (Allen, Berkley, "Image method for efficiently simulating small-room
    acoustics", J. Acoust. Soc. Am. 65(4), 1979.)
    """
    order = torch.cartesian_prod(*[torch.arange(-most, most + 1)] * 3)
    bounces, first = order.abs().sum(1).sort(stable=True)
    order, bounces = order[first][bounces <= most], bounces[bounces <= most]
    position, room = (torch.tensor(value, dtype=torch.float64) for value in (position_m, room_m))
    odd = order % 2
    return (order + odd) * room + (1 - 2 * odd) * position, bounces


def response(lengths_m, gains, carrier_hz):
    """Sum of rays on the 114 subcarriers, lowest first: complex64 [..., 114].

    lengths_m: float64 [..., rays]; a ray of length d turns subcarrier f by -2π f d / c. gains: amplitudes.
    """
    cycles = lengths_m * (carrier_hz / LIGHT_M_S)
    at_carrier = torch.polar(gains.expand_as(cycles), -2 * math.pi * (cycles % 1.0)).to(torch.complex64)
    turn = (lengths_m * (-2 * math.pi * SPACING_HZ / LIGHT_M_S)).float()
    # Subcarrier -58 + 13 i + j: a product of two short tables; a matrix product sums over the rays.
    coarse = torch.arange(_COARSE, device=turn.device) * _FINE + SUBCARRIERS[0]
    coarse, fine = (turn[..., None] * steps for steps in (coarse, torch.arange(_FINE, device=turn.device)))
    coarse = torch.polar(torch.ones_like(coarse), coarse) * at_carrier[..., None]  # (..., rays, 9)
    fine = torch.polar(torch.ones_like(fine), fine)  # (..., rays, 13)
    values = (coarse.transpose(-1, -2) @ fine).flatten(-2)
    half = len(SUBCARRIERS) // 2
    return torch.cat([values[..., :half], values[..., -half:]], dim=-1)


def channel(scene, times_s):
    """The channel without the receiver: complex64 [antennas, 114, T]. times_s: float64 [T], on any device.

    Amplitudes: λ / (4π d) in free space (Friis); λ √σ / ((4π)^1.5 d1 d2) by a scatterer of cross section σ
    (bistatic radar equation). A torso in the first Fresnel zone of the line of sight shadows it.
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

    # the body: directly from the transmitter, and the torso also by one reflection
    points = body(scene.motion, times_s).transpose(0, 1)  # (T, scatterers, 3)
    cross_section = torch.tensor(RCS_M2, dtype=torch.float64, device=device)
    back = torch.linalg.vector_norm(points - antennas[:, None, None], dim=-1)  # (antennas, T, scatterers)
    out = torch.linalg.vector_norm(points - sources[0], dim=-1)  # (T, scatterers)
    once = bounces == 1
    over = torch.linalg.vector_norm(points[:, :TORSO, None] - sources[once], dim=-1)  # (T, torso, surfaces)
    torso_back = back[..., :TORSO, None]
    rays_m = torch.cat([out + back, (over + torso_back).flatten(2)], dim=2)  # (antennas, T, rays)
    echoes = _scattered(cross_section[:TORSO, None], over, torso_back, wavelength_m) * gains[once]
    strengths = torch.cat([_scattered(cross_section, out, back, wavelength_m), echoes.flatten(2)], dim=2)
    moving = response(rays_m, strengths, scene.carrier_hz)  # (antennas, T, 114)

    detour = (out + back)[..., :2].amin(dim=2) - lengths[:, :1]  # (antennas, T)
    lit = 1 - _SHADOW * torch.exp(-(detour / (wavelength_m / 2)).square())
    return (moving + fixed[:, None] + direct[:, None] * lit[..., None].float()).transpose(1, 2).contiguous()


def _scattered(cross_section_m2, out_m, back_m, wavelength_m):
    """Amplitude by way of a scatterer. Distances below 0.3 m are no far field."""
    spread = (4 * math.pi) ** 1.5 * out_m.clamp_min(0.3) * back_m.clamp_min(0.3)
    return wavelength_m * cross_section_m2.sqrt() / spread


def render(scene, device="cpu"):
    """The receiver's amplitudes in dB, 0 to `MAX_DB`: float32 [antennas, 114, packets] on the device."""
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
