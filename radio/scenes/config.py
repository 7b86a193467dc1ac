"""Scene configurations: ranges and probabilities by name and unit; the presets `classic` and `wild`."""

import difflib
import math
from dataclasses import dataclass, field, fields, replace

from radio.carriers import LTE, NOISE, NR, OTHER
from radio.scenes import channel, distractors, lte, nr
from util.errors import UserError


def _expect(name, wanted, holds, values):
    if not holds:
        raise UserError(f"--set {name}: expected {wanted}; found {_text(values) or 'none'}")


def _check_range(name, value, limits):
    values = value if isinstance(value, tuple) else (value,)
    ascends = values and not (len(values) == 2 and values[0] > values[1])
    _expect(name, "a range, the lower number first", ascends, values)
    low, high = limits
    _expect(name, f"numbers from {low:g} to {high:g}", low <= min(values) and max(values) <= high, values)


def _check_choices(name, values, among):
    _expect(name, "one value or more", values, values)
    if among is not None:
        unknown = [value for value in values if value not in among]
        _expect(name, f"some of {_text(sorted(among))}", not unknown, unknown)


def _check_classes(name, values, among):
    _check_choices(name, values, among)
    once = values[0] == NOISE and len(set(values)) == len(values)
    _expect(name, f"different classes, {NOISE} first", once, values)


def _text(values):
    return ",".join(f"{value:g}" if isinstance(value, (int, float)) else str(value) for value in values)


def _range(low, high, within=(-math.inf, math.inf)):
    """A range, drawn uniformly. One number is a constant; three or more are choices."""
    return field(default=(low, high), metadata={"check": _check_range, "known": within})


def _log_range(low, high, within):
    """A range, drawn uniformly in the logarithm."""
    return field(default=(low, high), metadata={"check": _check_range, "known": within, "log": True})


LEAST_SAMPLES = 1024  # of scenes whose duration is drawn: an FFT of the published front end


def _choices(*values, among=None):
    """Values of equal probability; a repeated value counts again."""
    return field(default=values, metadata={"check": _check_choices, "known": among})


def _probability(value):
    return field(default=value, metadata={"check": _check_range, "known": (0, 1)})


_MSPS = (1.92, 2.4, 3.84, 7.68, 10, 11.52, 15.36, 19.2, 20, 23.04, 30.72, 40, 46.08, 61.44, 122.88)

_CORESETS = ("none", "initial", "full", "both")


@dataclass(frozen=True)
class SceneConfig:
    """What scenes are drawn from. The defaults are the preset `wild`.

    SNR is mean power of the occupied resource elements over the noise in them.
    A distractor's SNR is its mean power over the noise in its bandwidth.
    """

    # masks: names by class id; what has another label is Noise
    classes: tuple = field(
        default=(NOISE, NR, LTE, OTHER),
        metadata={"check": _check_classes, "known": (NOISE, NR, LTE, OTHER)},
    )

    # samples
    sample_rates_hz: tuple = _choices(*(1e6 * rate for rate in _MSPS))
    duration_ms: tuple = _log_range(0.5, 80.0, within=(0.05, 10_000))
    center_freq_hz: tuple = _log_range(0.6e9, 4.9e9, within=(0, 300e9))

    # contents
    noise_only: float = _probability(0.12)  # scenes without carriers
    num_carriers: tuple = _choices(1, 1, 1, 2, 2, 3, 4, among=range(33))  # fewer if they do not fit
    technologies: tuple = _choices("NR", "LTE", among=("NR", "LTE"))
    one_technology: float = _probability(0.4)  # scenes whose carriers share a technology; others mix both
    inside: float = _probability(0.2)  # scenes whose band lies inside one carrier, if one is wide enough
    cut: float = _probability(0.2)  # carriers that cross the band's edge
    part_time: float = _probability(0.06)  # carriers that switch on or off during the scene
    snr_db: tuple = _range(-5.0, 40.0, within=(-60, 120))
    power_range_db: tuple = _range(40.0, 40.0, within=(0, 200))  # largest difference between carriers
    num_distractors: tuple = _choices(0, 0, 0, 1, 1, 2, 3, 5, among=range(33))
    distractor_kinds: tuple = _choices(
        *distractors.KINDS, "ofdm", "drone", "burst_ofdm", among=distractors.KINDS
    )
    beyond: float = _probability(0.2)  # distractors that may cross the band's edges, or be wider than it
    distractor_snr_db: tuple = _range(-5.0, 50.0, within=(-60, 120))
    gap_hz: tuple = _log_range(0.1e6, 5e6, within=(0, 1e9))  # least gap between channels
    margin: tuple = _range(0.0, 0.02, within=(0, 0.4))  # least gap to the band's edges / sample rate
    raster_hz: tuple = _choices(1.0, 100e3)  # of centre frequencies, with several carriers

    # LTE
    lte_bandwidths_mhz: tuple = _choices(*lte.RESOURCE_BLOCKS, among=lte.RESOURCE_BLOCKS)
    lte_cell_ids: tuple = _range(0, 503, within=(0, 503))
    lte_ports: tuple = _choices(1, 2, 2, 4, among=(1, 2, 4))
    lte_tdd: float = _probability(0.4)
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
    nr_tdd: float = _probability(0.6)
    nr_ssb_periods_ms: tuple = _choices(5, 10, 20, 20, 20, 40, 80, 160, among=(5, 10, 20, 40, 80, 160))
    nr_ssb_anywhere: float = _probability(0.7)  # else at the carrier's centre
    nr_ssb_power_db: tuple = _range(-3.0, 6.0)
    nr_beams: tuple = _choices(1, 1, 2, 4, 8, among=range(9))  # at most
    nr_coresets: tuple = _choices(*_CORESETS, among=_CORESETS)
    nr_coreset_whole: float = _probability(0.6)  # "full" CORESETs over the whole carrier, else a part
    nr_coreset_symbols: tuple = _choices(1, 2, 3, among=(1, 2, 3))
    nr_coreset_load: tuple = _log_range(0.02, 1.0, within=(0, 1))
    nr_coreset_periods_slots: tuple = _choices(1, 1, 1, 2, 10, 20, among=range(1, 641))
    nr_csi_rs: float = _probability(0.6)
    nr_broadcast: float = _probability(0.5)  # carriers that send system information on PDSCH
    nr_dmrs_types: tuple = _choices(1, 1, 2, among=(1, 2))
    nr_dmrs_additional: tuple = _choices(0, 1, 1, 2, among=(0, 1, 2))
    nr_dmrs_power_db: tuple = _choices(0.0, 0.0, 3.0)

    # PDSCH traffic of LTE and NR
    idle: float = _probability(0.2)
    full: float = _probability(0.2)  # every resource block of every downlink slot
    busy: tuple = _log_range(0.02, 1.0, within=(1e-4, 1))  # share of slots in which a user has data
    filled: tuple = _log_range(0.03, 1.0, within=(1e-4, 1))  # share of resource blocks that a user fills
    users: tuple = _choices(1, 1, 2, 3, 6, among=range(65))
    dwell_slots: tuple = _log_range(1.0, 12.0, within=(1, 1e6))  # burst length
    scattered: float = _probability(0.25)  # users on scattered resource-block groups
    modulation_bits: tuple = _choices(2, 4, 6, among=(2, 4, 6, 8))
    user_power_db: tuple = _range(-6.0, 4.0)
    block_traffic: float = _probability(0.0)  # slot groups × resource-block groups, as in MathWorks' frames

    # channel and transmitter
    fading_models: tuple = _choices(*channel.MODELS, among=channel.MODELS)
    delay_spread_s: tuple = _log_range(10e-9, 1e-6, within=(0, 10e-6))
    doppler_hz: tuple = _log_range(0.5, 500.0, within=(0, 2000))
    still: float = _probability(0.3)  # carriers without Doppler
    compressed: float = _probability(0.15)  # carriers from an amplifier near saturation
    backoff_db: tuple = _range(3.0, 14.0, within=(-10, 60))
    soft_edges: float = _probability(0.8)  # carriers with windowed symbols
    edge_s: tuple = _range(0.2e-6, 2.0e-6, within=(0, 1e-3))

    # receiver
    clock_error_ppm: tuple = _range(-20.0, 20.0, within=(-1000, 1000))
    exact_clock: float = _probability(0.3)
    filtered: float = _probability(0.7)  # receivers with a visible channel filter
    passband: tuple = _range(0.6, 1.0, within=(0.05, 1))  # width / sample rate
    transition: tuple = _log_range(0.004, 0.12, within=(0.004, 0.5))  # width / sample rate
    stopband_db: tuple = _range(4.0, 50.0, within=(0, 80))
    tilt_db: tuple = _range(-5.0, 5.0)
    ripple_db: tuple = _range(0.0, 2.5)
    ripple_cycles: tuple = _range(1.0, 8.0)
    floor_db: tuple = _range(-30.0, -3.0)
    noisy_phase: float = _probability(0.3)
    phase_noise_dbc: tuple = _range(-45.0, -22.0)
    phase_noise_hz: tuple = _log_range(1e2, 1e5, within=(1e-3, 1e9))
    unbalanced: float = _probability(0.4)  # receivers with IQ imbalance
    iq_gain_db: tuple = _range(-1.0, 1.0)
    iq_phase_deg: tuple = _range(-5.0, 5.0)
    dc_spike: float = _probability(0.5)
    dc_db: tuple = _range(-45.0, 5.0)
    agc: float = _probability(0.08)  # receivers with gain steps
    agc_steps: tuple = _range(1, 4, within=(1, 1000))  # number
    agc_step_db: tuple = _range(-12.0, 12.0)
    bits: tuple = _choices(8, 8, 12, 16, among=(0, 8, 12, 16))
    loading_db: tuple = _range(-36.0, -9.0)  # rms below full scale
    overdriven: float = _probability(0.08)
    overdrive_db: tuple = _range(-8.0, 3.0)

    # captures that are unlike others
    hump: float = _probability(0.03)  # no carrier: the receiver's filter shapes noise like one
    hump_width: tuple = _log_range(0.05, 0.9, within=(0.001, 0.96))  # width / sample rate
    hump_db: tuple = _range(10.0, 50.0, within=(0, 80))
    noiseless: float = _probability(0.04)  # simulated: neither noise nor errors of a receiver
    faint: float = _probability(0.05)  # 8-bit receivers that use few codes, beside a DC spike
    faint_codes: tuple = _range(1.0, 3.0, within=(0.1, 128))  # rms of I and of Q
    real_valued: float = _probability(0.03)  # real samples: carriers are in the upper half of the band
    padded: float = _probability(0.05)  # recordings with zeros before or after them
    padding: tuple = _log_range(0.01, 0.6, within=(0, 0.99))  # zeros / samples

    def __post_init__(self):
        for item in fields(self):
            item.metadata["check"](item.name, getattr(self, item.name), item.metadata["known"])
        lowest_hz = min(self.sample_rates_hz)
        _check_range("sample_rates_hz", (lowest_hz, max(self.sample_rates_hz)), (1e4, 1e10))
        known = {bandwidth for spacing in self.nr_spacings_khz for bandwidth in nr.RESOURCE_BLOCKS[spacing]}
        _check_choices("nr_bandwidths_mhz", self.nr_bandwidths_mhz, known)
        for technology in self.technologies if not (self.inside or self.cut) else ():
            name = f"{technology.lower()}_bandwidths_mhz"
            widths = getattr(self, name)
            wanted = f"a carrier that fits a band of {lowest_hz / 1e6:g} MHz, or inside or cut above 0"
            _expect(name, wanted, min(widths) * 1e6 <= lowest_hz, widths)

    def num_samples(self, duration_ms, sample_rate_hz):
        """Samples of a scene. A duration that is drawn, not given, has `LEAST_SAMPLES` or more."""
        least = LEAST_SAMPLES if len(self.duration_ms) > 1 else 1
        return max(least, round(duration_ms * 1e-3 * sample_rate_hz))


LOG_RANGES = {item.name for item in fields(SceneConfig) if "log" in item.metadata}


def with_settings(config, settings):
    """Change fields of a configuration.

    Args:
        settings: texts `name=value`; values of a range or of choices are separated by commas.

    Raises:
        UserError: an unknown name or an invalid value.
    """
    known = [item.name for item in fields(config)]
    changes = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in known:
            names = ", ".join(difflib.get_close_matches(name, known, n=5, cutoff=0.3) or sorted(known))
            expected = f"name=value with a field of SceneConfig ({names})"
            raise UserError(f"--set {setting}: expected {expected}; found {name}")
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


WILD = SceneConfig()

# MathWorks' spectrum-sensing frames, R2021b to R2022b. Their SNRs of 40, 50 and 100 dB refer to 0 dBW.
# The inverse FFT of 2048 points scales grids by 1 / N: the SNRs of resource elements are 33 dB lower.
_CLASSIC = """
    classes=Noise,NR,LTE
    sample_rates_hz=61.44e6 duration_ms=40.0 center_freq_hz=4e9
    noise_only=0.0 num_carriers=1,1,2 inside=0.0 cut=0.0 part_time=0.0 snr_db=7.0,17.0,67.0 power_range_db=0.0
    one_technology=0.0 num_distractors=0 gap_hz=1e6 margin=0.00390625 raster_hz=1e6
    lte_bandwidths_mhz=5,10,15,20 lte_ports=1,2 lte_tdd=0.0 lte_control_symbols=2 lte_control_load=1.0
    lte_crs_boost_db=0.0 lte_sync_boost_db=0.0 lte_cell_ids=0
    nr_spacings_khz=15,30 nr_bandwidths_mhz=10,15,20,25,30,40,50 nr_cell_ids=1 nr_tdd=0.0 nr_ssb_periods_ms=20
    nr_ssb_anywhere=0.0 nr_ssb_power_db=0.0 nr_beams=4,8 nr_coresets=full nr_coreset_whole=1.0
    nr_coreset_symbols=2 nr_coreset_load=1.0 nr_coreset_periods_slots=1 nr_csi_rs=0.0 nr_dmrs_types=1
    nr_dmrs_additional=0 nr_dmrs_power_db=0.0
    idle=0.0 full=0.0 modulation_bits=2 user_power_db=0.0 block_traffic=1.0
    fading_models=flat doppler_hz=0.0,10.0,500.0 still=0.0 compressed=0.0 soft_edges=0.0
    exact_clock=1.0 filtered=0.0 noisy_phase=0.0 unbalanced=0.0 dc_spike=0.0 agc=0.0 bits=0 overdriven=0.0
    hump=0.0 noiseless=0.0 faint=0.0 real_valued=0.0 padded=0.0
"""
CLASSIC = with_settings(WILD, _CLASSIC.split())
PRESETS = {"wild": WILD, "classic": CLASSIC}
