"""What a scene is drawn from: every range and share of it by name and unit, and the presets `classic` and `wild`."""

import difflib
import math
from dataclasses import dataclass, field, fields, replace

from radio.scenes import channel, distractors, lte, nr
from util.errors import UserError


def _check_range(name, value, within):
    values = value if isinstance(value, tuple) else (value,)
    if not values or (len(values) == 2 and values[0] > values[1]):
        raise UserError(f"--set {name}: expected a range, the lower number first; found {_text(values) or 'none'}")
    if not within[0] <= min(values) <= max(values) <= within[1]:
        raise UserError(f"--set {name}: expected numbers from {within[0]:g} to {within[1]:g}; found {_text(values)}")


def _check_choices(name, values, among):
    if not values:
        raise UserError(f"--set {name}: expected one value or more; found none")
    unknown = [value for value in values if among is not None and value not in among]
    if unknown:
        raise UserError(f"--set {name}: expected some of {_text(sorted(among))}; found {_text(unknown)}")


def _text(values):
    return ",".join(f"{value:g}" if isinstance(value, (int, float)) else str(value) for value in values)


def _range(low, high, within=(-math.inf, math.inf)):
    """A number anywhere between two others. Set to one number it is that, to three or more one of them."""
    return field(default=(low, high), metadata={"check": _check_range, "known": within})


def _choices(*values, among=None):
    """One of several values, each as likely; one that is named twice is twice as likely."""
    return field(default=values, metadata={"check": _check_choices, "known": among})


def _share(probability):
    """A probability."""
    return field(default=probability, metadata={"check": _check_range, "known": (0, 1)})


@dataclass(frozen=True)
class SceneConfig:
    """The ranges of the preset `wild`. Frequencies in Hz, powers in dB, times as named.

    "log" in a comment: drawn uniformly in the logarithm. SNR is mean power of the occupied resource elements over the
    noise in them (for distractors: over the noise in their bandwidth).
    """

    # the stretch
    sample_rates_hz: tuple = _choices(1.92e6, 2.4e6, 3.84e6, 7.68e6, 10e6, 11.52e6, 15.36e6, 19.2e6, 20e6, 23.04e6, 30.72e6,
                                      40e6, 46.08e6, 61.44e6, 122.88e6)  # fmt: skip
    duration_ms: tuple = _range(1.0, 80.0, within=(0.05, 10_000))  # log
    center_freq_hz: tuple = _range(0.6e9, 4.9e9, within=(0, 300e9))  # log

    # what is in it
    noise_only: float = _share(0.12)  # scenes without a carrier
    num_carriers: tuple = _choices(1, 1, 1, 2, 2, 3, 4, among=range(33))  # as many of them as fit
    technologies: tuple = _choices("NR", "LTE", among=("NR", "LTE"))
    one_technology: float = _share(0.4)  # scenes of several carriers that are all of one; the others hold both
    inside: float = _share(0.2)  # scenes that lie within one carrier, where one is wide enough
    cut: float = _share(0.2)  # carriers that reach beyond the band
    part_time: float = _share(0.06)  # carriers that are switched on or off in the scene
    snr_db: tuple = _range(-5.0, 40.0, within=(-60, 120))
    power_range_db: tuple = _range(40.0, 40.0, within=(0, 200))  # from the strongest carrier to the weakest, at most
    num_distractors: tuple = _choices(0, 0, 0, 1, 1, 2, 3, 5, among=range(33))
    distractor_kinds: tuple = _choices(*distractors.KINDS, among=distractors.KINDS)
    beyond: float = _share(0.0)  # distractors that may be wider than the band, or be cut by its edges
    distractor_snr_db: tuple = _range(-5.0, 45.0, within=(-60, 120))
    gap_hz: tuple = _range(0.1e6, 5e6, within=(0, 1e9))  # log; least distance between the channels of neighbours
    margin: tuple = _range(0.0, 0.02, within=(0, 0.4))  # least distance from the band's edges, of the sample rate
    raster_hz: tuple = _choices(1.0, 100e3)  # of the centre frequencies of several carriers

    # LTE
    lte_bandwidths_mhz: tuple = _choices(*lte.RESOURCE_BLOCKS, among=lte.RESOURCE_BLOCKS)
    lte_cell_ids: tuple = _range(0, 503, within=(0, 503))
    lte_ports: tuple = _choices(1, 2, 2, 4, among=(1, 2, 4))
    lte_tdd: float = _share(0.4)
    lte_uldl_configs: tuple = _choices(0, 1, 2, 2, 3, 4, 5, 6, among=range(7))
    lte_special_configs: tuple = _choices(0, 1, 2, 3, 4, 5, 6, 7, 7, 8, among=range(10))
    lte_control_symbols: tuple = _choices(1, 2, 3, among=(1, 2, 3))
    lte_control_load: tuple = _range(0.05, 1.0, within=(0, 1))
    lte_crs_boost_db: tuple = _choices(0.0, 0.0, 3.0, 6.0)
    lte_sync_boost_db: tuple = _choices(0.0, 0.0, 3.0)

    # NR
    nr_spacings_khz: tuple = _choices(15, 30, 30, 60, among=nr.RESOURCE_BLOCKS)
    nr_bandwidths_mhz: tuple = _choices(5, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100)
    nr_cell_ids: tuple = _range(0, 1007, within=(0, 1007))
    nr_tdd: float = _share(0.6)
    nr_ssb_periods_ms: tuple = _choices(5, 10, 20, 20, 20, 40, 80, 160, among=(5, 10, 20, 40, 80, 160))
    nr_ssb_anywhere: float = _share(0.7)  # the others: in the middle
    nr_ssb_power_db: tuple = _range(-3.0, 6.0)
    nr_beams: tuple = _choices(1, 1, 2, 4, 8, among=range(9))  # at most
    nr_coresets: tuple = _choices("none", "initial", "full", "both", among=("none", "initial", "full", "both"))
    nr_coreset_whole: float = _share(0.6)  # CORESETs all over the carrier; the others of "full" are on a part of it
    nr_coreset_symbols: tuple = _choices(1, 2, 3, among=(1, 2, 3))
    nr_coreset_load: tuple = _range(0.02, 1.0, within=(0, 1))  # log
    nr_coreset_periods_slots: tuple = _choices(1, 1, 1, 2, 10, 20, among=range(1, 641))
    nr_csi_rs: float = _share(0.6)
    nr_broadcast: float = _share(0.5)  # carriers that send system information besides the SSB
    nr_dmrs_types: tuple = _choices(1, 1, 2, among=(1, 2))
    nr_dmrs_additional: tuple = _choices(0, 1, 1, 2, among=(0, 1, 2))
    nr_dmrs_power_db: tuple = _choices(0.0, 0.0, 3.0)

    # traffic on PDSCH, of both
    idle: float = _share(0.2)
    full: float = _share(0.15)
    busy: tuple = _range(0.02, 1.0, within=(1e-4, 1))  # log; share of the slots in which a user has data
    filled: tuple = _range(0.03, 1.0, within=(1e-4, 1))  # log; share of the resource blocks that a user fills
    users: tuple = _choices(1, 1, 2, 3, 6, among=range(65))
    dwell_slots: tuple = _range(1.0, 12.0, within=(1, 1e6))  # log; length of a burst
    scattered: float = _share(0.25)  # users on resource-block groups all over the carrier
    modulation_bits: tuple = _choices(2, 4, 6, among=(2, 4, 6, 8))
    user_power_db: tuple = _range(-6.0, 4.0)
    block_traffic: float = _share(0.0)  # groups of slots × groups of resource blocks, as MathWorks' frames have them

    # the way to the receiver
    fading_models: tuple = _choices("none", "flat", "TDL-A", "TDL-B", "TDL-C", "TDL-D", "TDL-E", among=channel.MODELS)
    delay_spread_s: tuple = _range(10e-9, 1e-6, within=(0, 10e-6))  # log
    doppler_hz: tuple = _range(0.5, 500.0, within=(0, 2000))  # log
    still: float = _share(0.3)  # carriers with no Doppler
    compressed: float = _share(0.15)  # carriers from an amplifier near saturation
    backoff_db: tuple = _range(3.0, 14.0, within=(-10, 60))
    soft_edges: float = _share(0.8)  # carriers whose symbols are windowed
    edge_s: tuple = _range(0.2e-6, 2.0e-6, within=(0, 1e-3))

    # the receiver
    clock_error_ppm: tuple = _range(-20.0, 20.0, within=(-1000, 1000))
    exact_clock: float = _share(0.3)
    filtered: float = _share(0.7)  # receivers whose channel filter is seen
    passband: tuple = _range(0.6, 1.0, within=(0.05, 1))  # width in units of the sample rate
    transition: tuple = _range(0.004, 0.12, within=(0.004, 0.5))  # log; in units of the sample rate
    stopband_db: tuple = _range(4.0, 50.0, within=(0, 80))
    tilt_db: tuple = _range(-5.0, 5.0)
    ripple_db: tuple = _range(0.0, 2.5)
    ripple_cycles: tuple = _range(1.0, 8.0)
    floor_db: tuple = _range(-30.0, -3.0)
    noisy_phase: float = _share(0.3)
    phase_noise_dbc: tuple = _range(-45.0, -22.0)
    phase_noise_hz: tuple = _range(1e2, 1e5, within=(1e-3, 1e9))  # log
    unbalanced: float = _share(0.4)  # receivers with IQ imbalance
    iq_gain_db: tuple = _range(-1.0, 1.0)
    iq_phase_deg: tuple = _range(-5.0, 5.0)
    dc_spike: float = _share(0.5)
    dc_db: tuple = _range(-45.0, 5.0)
    agc: float = _share(0.08)  # receivers whose gain is switched
    agc_steps: tuple = _range(1, 4, within=(1, 1000))  # how often
    agc_step_db: tuple = _range(-12.0, 12.0)
    bits: tuple = _choices(8, 8, 12, 16, among=(0, 8, 12, 16))
    loading_db: tuple = _range(-36.0, -9.0)  # rms below full scale
    overdriven: float = _share(0.08)
    overdrive_db: tuple = _range(-8.0, 3.0)

    def __post_init__(self):
        for item in fields(self):
            item.metadata["check"](item.name, getattr(self, item.name), item.metadata["known"])
        _check_range("sample_rates_hz", (min(self.sample_rates_hz), max(self.sample_rates_hz)), (1e4, 1e10))
        known = {bandwidth for spacing in self.nr_spacings_khz for bandwidth in nr.RESOURCE_BLOCKS[spacing]}
        _check_choices("nr_bandwidths_mhz", self.nr_bandwidths_mhz, known)
        widths = {"LTE": self.lte_bandwidths_mhz, "NR": self.nr_bandwidths_mhz}
        for technology in self.technologies if not (self.inside or self.cut) else ():
            if min(widths[technology]) * 1e6 > min(self.sample_rates_hz):
                raise UserError(
                    f"--set {technology.lower()}_bandwidths_mhz: expected a carrier that fits a band of "
                    f"{min(self.sample_rates_hz) / 1e6:g} MHz; found {_text(widths[technology])} (and inside=0, cut=0)"
                )


WILD = SceneConfig()

# MathWorks' spectrum-sensing frames, editions R2021b to R2022b, with what they fix. Their SNR of 40, 50 and 100 dB is set
# against a signal of 0 dBW, while their grids of unit elements leave an inverse FFT of 2048 points at 1 / N: on resource
# elements it is about 33 dB less.
CLASSIC = SceneConfig(
    sample_rates_hz=(61.44e6,), duration_ms=(40.0,), center_freq_hz=(4e9,),
    noise_only=0.0, num_carriers=(1, 1, 2), inside=0.0, cut=0.0, part_time=0.0, snr_db=(7.0, 17.0, 67.0),
    power_range_db=(0.0,), one_technology=0.0, num_distractors=(0,), gap_hz=(1e6,), margin=(1 / 256,), raster_hz=(1e6,),
    lte_bandwidths_mhz=(5, 10, 15, 20), lte_ports=(1, 2), lte_tdd=0.0, lte_control_symbols=(2,), lte_control_load=(1.0,),
    lte_crs_boost_db=(0.0,), lte_sync_boost_db=(0.0,), lte_cell_ids=(0,),
    nr_spacings_khz=(15, 30), nr_bandwidths_mhz=(10, 15, 20, 25, 30, 40, 50), nr_cell_ids=(1,), nr_tdd=0.0,
    nr_ssb_periods_ms=(20,), nr_ssb_anywhere=0.0, nr_ssb_power_db=(0.0,), nr_beams=(4, 8), nr_coresets=("full",),
    nr_coreset_whole=1.0, nr_coreset_symbols=(2,), nr_coreset_load=(1.0,), nr_coreset_periods_slots=(1,),
    nr_csi_rs=0.0, nr_dmrs_types=(1,),
    nr_dmrs_additional=(0,), nr_dmrs_power_db=(0.0,),
    idle=0.0, full=0.0, modulation_bits=(2,), user_power_db=(0.0,), block_traffic=1.0,
    fading_models=("flat",), doppler_hz=(0.0, 10.0, 500.0), still=0.0, compressed=0.0, soft_edges=0.0,
    exact_clock=1.0, filtered=0.0, noisy_phase=0.0, unbalanced=0.0, dc_spike=0.0, agc=0.0, bits=(0,), overdriven=0.0,
)  # fmt: skip

PRESETS = {"wild": WILD, "classic": CLASSIC}


def with_settings(config, settings):
    """A configuration with some fields changed.

    Args:
        settings: texts `name=value`; a range or several choices as values between commas.

    Raises:
        UserError: an unknown name, a value that cannot be read, an empty range.
    """
    known = [item.name for item in fields(config)]
    changes = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in known:
            names = ", ".join(difflib.get_close_matches(name, known, n=5, cutoff=0.3) or sorted(known))
            raise UserError(f"--set {setting}: expected name=value with a field of SceneConfig ({names}); found {name}")
        old = getattr(config, name)
        try:
            if isinstance(old, tuple):
                read = str if isinstance(old[0], str) else _number
                changes[name] = tuple(read(part) for part in text.split(",") if part)
            else:
                changes[name] = _number(text)
        except ValueError as error:
            raise UserError(f"--set {name}: expected numbers; found {text}") from error
    return replace(config, **changes)


def _number(text):
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return int(text) if text.strip().lstrip("-").isdigit() else value
