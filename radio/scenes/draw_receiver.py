"""Draw a receiver, and what sets some captures apart: no noise, few codes, real samples, zeros around it."""

from dataclasses import replace
from typing import NamedTuple

from radio.scenes import receiver


def draw_receiver(dice, sample_rate_hz, duration_s):
    rng, settings = dice.rng, {}
    if dice.happens("filtered"):
        half, shift = dice.number("passband") / 2, float(rng.uniform(-0.02, 0.02))
        settings["passband"] = (max(-0.5, shift - half), min(0.5, shift + half))
        settings["transition"] = (dice.number("transition"), dice.number("transition"))
        settings |= dice.numbers("stopband_db", "tilt_db", "ripple_db", "ripple_cycles")
        settings["ripple_phase_deg"] = float(rng.uniform(0, 360))
        settings |= dice.numbers("floor_db")
    if dice.happens("noisy_phase"):
        settings |= dice.numbers("phase_noise_dbc", "phase_noise_hz")
    if dice.happens("unbalanced"):
        settings |= dice.numbers("iq_gain_db", "iq_phase_deg")
    if dice.happens("dc_spike"):
        settings |= dice.numbers("dc_db") | {"dc_phase_deg": float(rng.uniform(0, 360))}
    if dice.happens("agc"):
        moments = sorted(rng.uniform(0, duration_s, dice.integer("agc_steps")).tolist())
        settings["agc_steps"] = tuple((moment, dice.number("agc_step_db")) for moment in moments)
    bits = dice.choice("bits")
    if bits:
        loading = "overdrive_db" if dice.happens("overdriven") else "loading_db"
        settings |= {"bits": bits, "loading_db": dice.number(loading)}
    return receiver.Receiver(**settings)


class Capture(NamedTuple):
    """What sets a capture apart.

    Attributes:
        receiver: its receiver.
        is_hump: nothing is sent; the receiver's filter shapes noise like a carrier.
        is_real: samples are real.
        padding: zeros before and after the recording, in samples.
    """

    receiver: receiver.Receiver
    is_hump: bool
    is_real: bool
    padding: tuple


def draw_capture(dice, front_end, num_samples):
    """What sets a capture with this receiver apart: a `Capture`.

    `dice` has a stream of its own, so that other draws do not depend on these.
    """
    rng = dice.rng
    is_hump, is_noiseless, is_faint = (dice.happens(name) for name in ("hump", "noiseless", "faint"))
    if is_hump:
        half = dice.number("hump_width") / 2
        centre = float(rng.uniform(-1, 1)) * min(0.02, 0.48 - half)
        width = dice.number("transition")
        front_end = replace(
            front_end,
            passband=(centre - half, centre + half),
            transition=(width, width),
            stopband_db=dice.number("hump_db"),
            floor_db=-60.0,
        )
    elif is_noiseless:
        bits = 0 if rng.random() < 0.5 else dice.choice("bits")
        kept = {"agc_steps": front_end.agc_steps, "loading_db": front_end.loading_db}
        front_end = receiver.Receiver(noise=False, bits=bits, **kept)
    elif is_faint:
        codes, dc_db = dice.number("faint_codes"), max(front_end.dc_db, float(rng.uniform(-12, 6)))
        front_end = replace(front_end, bits=8, loading_db=receiver.loading_db(codes, 8), dc_db=dc_db)

    is_real = dice.happens("real_valued")
    if is_real:  # filters of real samples are symmetric; there is no second branch
        _, edge = front_end.passband
        front_end = replace(
            front_end,
            passband=(-edge, edge) if edge > 0 else (-0.5, 0.5),
            transition=front_end.transition[1:] * 2,
            tilt_db=0.0,
            ripple_db=0.0,
            phase_noise_dbc=receiver.OFF_DB,
            iq_gain_db=0.0,
            iq_phase_deg=0.0,
            dc_phase_deg=0.0,
        )
    padding = (0, 0)
    if dice.happens("padded"):
        share = dice.number("padding")
        side = int(rng.integers(3))  # before, after, both
        padding = tuple(int(share * num_samples / (1 + (side == 2))) * (side in (at, 2)) for at in (0, 1))
    return Capture(front_end, is_hump, is_real, padding)
