"""CSI: the ray model against geometry, and the sources against files written here."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import ACTIVITIES, CAPTURES, amplitudes, write_mat, write_npz, write_ntu_fi

from data.csi import CsiFile, NtuFiHar, SyntheticCsi
from data.sampling import IMAGE
from radio.rng import CSI, Stream
from radio.scenes import csi_body, csi_room
from util.errors import UserError

ESP32 = CAPTURES.parent / "csi" / "geotec_esp32_csihar.npz"
LIGHT = 299_792_458.0


def scene(motion=None, **kwargs):
    """A room without echoes and a receiver without flaws, unless told otherwise."""
    settings = {
        "stream": Stream(1),
        "motion": motion,
        "carrier_hz": 5.31e9,
        "room_m": (6.0, 5.0, 3.0),
        "wall_gain": 0.0,
        "tx_m": (0.5, 2.5, 1.1),
        "rx_m": ((5.5, 2.5, 1.1), (5.5, 2.6, 1.1), (5.5, 2.7, 1.1)),
    }
    return csi_room.CsiScene(**settings | kwargs)


def echoing(motion=None, **kwargs):
    return scene(
        motion, **{"wall_gain": -0.5, "furniture_m": ((2.0, 4.0, 0.5, 1.0), (4.0, 1.0, 1.0, 0.3))} | kwargs
    )


def times(duration_s=5.0, rate_hz=100.0):
    return torch.arange(round(duration_s * rate_hz), dtype=torch.float64) / rate_hz


# Rays


def test_a_single_path_has_the_gain_of_free_space_and_the_phase_slope_of_its_length():
    room = scene(rx_m=((5.5, 2.5, 1.1), (1.0, 4.0, 2.0), (3.0, 0.5, 0.3)))
    found = csi_room.channel(room, times(0.03)).numpy()[:, :, 0]
    numbers = np.array([*range(-58, -1), *range(2, 59)])
    frequencies = 5.31e9 + 312.5e3 * numbers
    for antenna, place in enumerate(room.rx_m):
        length = math.dist(room.tx_m, place)
        expected = LIGHT / 5.31e9 / (4 * np.pi * length) * np.exp(-2j * np.pi * frequencies * length / LIGHT)
        np.testing.assert_allclose(found[antenna], expected, atol=1e-4 * abs(expected[0]))


def test_subcarriers_and_the_ceiling_of_the_amplitude_are_those_of_ntu_fi():
    assert len(csi_room.SUBCARRIERS) == 114
    assert round(csi_room.MAX_DB, 1) == 57.2  # the largest value in NTU-Fi HAR
    assert list(csi_body.ACTIVITIES) == ACTIVITIES


def test_image_sources_are_reflections_in_the_six_surfaces():
    source, room = np.array([1.0, 2.0, 0.5]), np.array([4.0, 5.0, 3.0])

    def mirrored(point, axis, place):
        image = np.array(point)
        image[axis] = 2 * place - image[axis]
        return tuple(np.round(image, 9))

    surfaces = [(axis, place) for axis in range(3) for place in (0.0, room[axis])]
    once = {mirrored(source, *surface) for surface in surfaces}
    twice = {mirrored(image, *surface) for image in once for surface in surfaces} - {tuple(source)}
    places, bounces = csi_room.image_sources(tuple(source), tuple(room), 2)
    assert tuple(places[0].tolist()) == tuple(source)
    for number, expected in ((1, once), (2, twice)):
        assert {tuple(np.round(place, 9)) for place in places[bounces == number].tolist()} == expected
        assert (bounces == number).sum() == len(expected)


def test_walls_and_furniture_add_paths_of_their_length():
    # One wall alone cannot be had; the impulse response shows where paths are: over 35.6 MHz, 8.4 m apart or
    # more.
    room = scene(
        room_m=(60.0, 200.0, 200.0),
        tx_m=(10.0, 100.0, 100.0),
        rx_m=((40.0, 100.0, 100.0),),
        antenna_db=(0.0,),
        furniture_m=((25.0, 150.0, 100.0, 1e4),),
        wall_gain=-0.5,
    )
    values = csi_room.channel(room, times(0.01)).numpy()[0, :, 0]
    lengths = np.arange(10, 140, 0.5)
    frequencies = 5.31e9 + 312.5e3 * np.array(csi_room.SUBCARRIERS)
    impulse = np.abs(np.exp(2j * np.pi * np.outer(lengths, frequencies) / LIGHT) @ values) / 114
    wavelength = LIGHT / 5.31e9
    by_thing = 2 * math.dist((10, 100), (25, 150))
    scattered = wavelength * math.sqrt(1e4) / ((4 * math.pi) ** 1.5 * (by_thing / 2) ** 2)
    paths = (
        (30, wavelength / (4 * math.pi * 30)),
        (50, 0.5 * wavelength / (4 * math.pi * 50)),
        (by_thing, scattered),
    )
    for length, gain in paths:  # direct, over x = 0, over the thing
        near = np.abs(lengths - length) < 6
        assert abs(lengths[near][impulse[near].argmax()] - length) < 1.5
        assert impulse[near].max() == pytest.approx(gain, rel=0.15)


def test_an_empty_room_is_constant():
    values = csi_room.render(echoing(jitter=0.7))
    assert values.shape == (3, 114, 500)
    assert torch.equal(values, values[..., :1].expand_as(values))
    assert values.std(dim=1).min() > 0.5  # though not over the subcarriers
    moving = csi_room.render(echoing(csi_body.Motion("walk", speed_m_s=1.0, span_m=2.0)))
    assert moving.std(dim=2).mean() > 0.5


@pytest.mark.parametrize("carrier_hz", [2.437e9, 5.31e9])
def test_the_doppler_shift_of_who_comes_straight_at_the_receiver_is_twice_the_speed_over_the_wavelength(
    carrier_hz,
):
    motion = csi_body.Motion("run", center_m=(5.0, 2.5), speed_m_s=2.0, rate_hz=1.5, span_m=4.0)
    room = scene(
        motion,
        carrier_hz=carrier_hz,
        room_m=(9.0, 5.0, 3.0),
        tx_m=(0.1, 2.5, 1.1),
        rx_m=((0.1, 2.6, 1.1),),
        antenna_db=(0.0,),
    )
    moments = times(0.5, 4000)
    power = csi_room.channel(room, moments).abs().square().numpy().astype(float)[0]  # (114, T)
    power -= power.mean(axis=1, keepdims=True)
    spectrum = (np.abs(np.fft.rfft(power * np.hanning(power.shape[1]))) ** 2).mean(0)
    shifts = np.fft.rfftfreq(len(moments), 1 / 4000)

    # from positions, how fast each path grows
    places = csi_body.body(motion, moments).numpy()
    paths = sum(np.linalg.norm(places - np.array(end), axis=2) for end in (room.tx_m, room.rx_m[0]))
    rates = np.abs(np.diff(paths, axis=1)) * 4000 / (LIGHT / carrier_hz)
    assert (
        abs(shifts[spectrum.argmax()] - 2 * 0.98 * 2.0 / (LIGHT / carrier_hz)) < 4
    )  # 0.98: the course is rounded
    fastest = rates.max() + 6  # what the window smears
    assert spectrum[shifts > fastest].sum() < 1e-3 * spectrum.sum()
    assert spectrum[shifts > 0.5 * fastest].sum() > 1e-3 * spectrum.sum()  # limbs are faster than the body


def test_a_body_adds_its_scatterers_directly_and_its_torso_over_each_surface():
    motion = csi_body.Motion("fall", center_m=(3.0, 0.5), onset_s=60.0)  # stands, far from the line of sight
    room = echoing(motion, carrier_hz=2.452e9, room_m=(6.0, 5.0, 3.0))
    found = (
        csi_room.channel(room, times(0.01)) - csi_room.channel(replace(room, motion=None), times(0.01))
    ).numpy()[:, :, 0]
    frequencies = 2.452e9 + 312.5e3 * np.array(csi_room.SUBCARRIERS)
    wavelength = LIGHT / 2.452e9
    images = []
    for axis, place in itertools.product(range(3), (0, 1)):
        image = list(room.tx_m)
        image[axis] = 2 * place * room.room_m[axis] - image[axis]
        images.append(image)
    expected = np.zeros((3, 114), complex)
    for antenna, receiver in enumerate(room.rx_m):
        for number, point in enumerate(csi_body.body(motion, times(0.01))[:, 0].tolist()):
            area = csi_body.RCS_M2[number]
            for source in [room.tx_m, *images] if number < 3 else [room.tx_m]:
                out, back = math.dist(source, point), math.dist(point, receiver)
                power = wavelength**2 * area / ((4 * math.pi) ** 3 * out**2 * back**2)
                gain = math.sqrt(power) * (1 if source is room.tx_m else -0.5)
                expected[antenna] += gain * np.exp(-2j * np.pi * frequencies * (out + back) / LIGHT)
    np.testing.assert_allclose(found, expected, atol=0.01 * np.abs(expected).max())


def test_a_person_on_the_line_of_sight_dims_it():
    beside, between = (
        csi_room.channel(scene(csi_body.Motion("box", center_m=(3.0, y))), times(1.0)).abs().mean()
        for y in (0.6, 2.5)
    )
    empty = csi_room.channel(scene(), times(1.0)).abs().mean()
    assert between < 0.7 * empty
    assert abs(beside / empty - 1) < 0.1


# The body


@pytest.mark.parametrize("activity", ACTIVITIES)
def test_everybody_stays_in_the_room_and_below_the_speed(activity):
    speeds = []
    for index in range(40):
        drawn = csi_room.draw(activity, Stream(2, 0, index))
        places = csi_body.body(drawn.motion, times()).numpy()
        assert places.shape == (11, 500, 3)
        assert places[:2].min() > 0
        assert (places[:2] < drawn.room_m).all()
        chest = np.linalg.norm(np.diff(places[0, :, :2], axis=0), axis=1) * 100
        # What leans and sways adds a little to what walks.
        most = {"box": 0.6, "fall": 4.5, "clean": 0.9}.get(activity, 1.02 * drawn.motion.speed_m_s)
        assert chest.max() < most
        speeds.append(chest.mean())
    low, high = {
        "box": (0, 0.3),
        "circle": (0.5, 1.3),
        "clean": (0.03, 0.4),
        "fall": (0.05, 0.5),
        "run": (1.6, 3.0),
        "walk": (0.6, 1.5),
    }[activity]
    assert low < min(speeds) < max(speeds) < high


def test_people_in_one_room():
    room = csi_room.draw("walk", Stream(2, 0, 0))
    drawn = [csi_room.draw("walk", Stream(2, 1, index), room) for index in range(20)]
    assert len({scene.motion for scene in drawn}) == 20
    assert all(replace(scene, stream=room.stream, motion=room.motion) == room for scene in drawn)
    for scene in drawn:
        places = csi_body.body(scene.motion, scene.packet_times_s())[:3, :, :2]
        assert (places > 0).all()
        assert (places < torch.tensor(room.room_m[:2])).all()


def test_a_fall_ends_on_the_floor_and_stays_there():
    motion = csi_body.Motion(
        "fall", height_m=1.8, rate_hz=1.0, onset_s=2.0, heading_rad=math.pi / 2, center_m=(3.0, 2.0)
    )
    head = csi_body.body(motion, times()).numpy()[2]
    assert head[:200, 2] == pytest.approx(0.93 * 1.8)
    assert head[300:, 2].max() < 0.2
    assert head[300:, :2] == pytest.approx(np.broadcast_to([3.0, 2.0 + 0.93 * 1.8], (200, 2)), abs=0.05)
    assert np.linalg.norm(np.diff(head, axis=0), axis=1).max() * 100 < 5  # m/s


def test_a_circle_is_one_and_a_stride_has_its_rate():
    motion = csi_body.Motion("circle", speed_m_s=1.0, rate_hz=0.8, span_m=1.6, reach_m=0.1)
    places = csi_body.body(motion, times()).numpy()
    assert np.linalg.norm(places[0, :, :2] - (3.0, 3.0), axis=1) == pytest.approx(0.8)
    apart = np.linalg.norm(places[9] - places[10], axis=1)  # feet: widest twice a stride
    spectrum = np.abs(np.fft.rfft(apart - apart.mean(), 4000))
    assert spectrum.argmax() * 100 / 4000 == pytest.approx(1.6, abs=0.1)


def test_punches_alternate_and_reach_as_far_as_they_should():
    motion = csi_body.Motion("box", rate_hz=1.0, reach_m=0.4, heading_rad=0.0)
    left, right = csi_body.body(motion, times()).numpy()[5:7, :, 0]
    assert left.max() - left.min() == pytest.approx(0.4, abs=0.01)
    assert np.corrcoef(left, right)[0, 1] < -0.2
    assert np.corrcoef(left[:450], right[50:])[0, 1] > 0.99  # half a second later


# The receiver


def test_noise_has_the_power_that_the_snr_says():
    room = echoing(snr_db=0.0, level_db=30.0, num_packets=300)
    linear = 10 ** (csi_room.render(room).double() / 10)
    assert float(linear.mean()) == pytest.approx(2 * 10**3, rel=0.02)
    assert float(
        (10 ** (csi_room.render(replace(room, snr_db=math.inf)).double() / 10)).mean()
    ) == pytest.approx(10**3, rel=1e-3)


def test_gain_control_holds_each_packets_level_within_half_a_step_and_moves_in_steps():
    room = scene(
        csi_body.Motion("run", speed_m_s=2.5, span_m=3.0), level_db=35.0
    )  # without echoes, so without deep fades
    stepped, fixed = csi_room.render(replace(room, agc_step_db=0.5)).double(), csi_room.render(room).double()
    gains = stepped - fixed
    assert gains.std(dim=(0, 1)).max() < 1e-4  # of a packet as a whole
    gains = gains.mean(dim=(0, 1)) - gains.mean(dim=(0, 1))[0]
    assert len((2 * gains).round().unique()) > 2
    assert (2 * gains - (2 * gains).round()).abs().max() < 1e-4
    levels = 10 * torch.log10((10 ** (stepped / 10)).mean(dim=(0, 1)))
    assert (levels - 35).abs().max() < 0.2501


def test_antennas_have_gains_and_nothing_leaves_the_scale():
    room = echoing()
    difference = csi_room.render(replace(room, antenna_db=(1.0, -2.0, 0.0))) - csi_room.render(room)
    torch.testing.assert_close(difference[..., 0].mean(1), torch.tensor([1.0, -2.0, 0.0]), atol=1e-4, rtol=0)
    assert csi_room.render(replace(room, level_db=100.0)).max() == pytest.approx(csi_room.MAX_DB)
    assert csi_room.render(replace(room, level_db=-100.0)).max() == 0


def test_packets_wait_but_never_overtake():
    even = scene().packet_times_s()
    torch.testing.assert_close(even, times())
    late = scene(jitter=0.9).packet_times_s() - even
    assert late.min() >= 0
    assert 0.008 < late.max() < 0.009
    assert late.std() > 0.002


# Drawing


def test_a_scene_depends_on_seed_kind_and_index_alone():
    keys = list(itertools.product((0, 1), repeat=3))
    torch.manual_seed(0)
    first = [csi_room.render(csi_room.draw("walk", Stream(*key))) for key in keys]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    again = [csi_room.render(csi_room.draw("walk", Stream(*key))) for key in reversed(keys)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(first, 2))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "change",
    [
        {"carrier_hz": 0.0},
        {"wall_gain": 1.5},
        {"jitter": 1.0},
        {"num_packets": 0},
        {"agc_step_db": -1.0},
        {"antenna_db": (0.0,)},
    ],
)
def test_wrong_scenes_are_refused_with_their_value(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))}="):
        scene(**change)


@pytest.mark.parametrize(
    "change", [{"activity": "swim"}, {"height_m": 0.0}, {"rate_hz": 0.0}, {"activity": "run"}]
)
def test_wrong_motions_are_refused(change):
    with pytest.raises(ValueError, match="expected"):
        csi_body.Motion(**{"activity": "box"} | change)


def doppler_statistics(decibels):
    """Power of an amplitude's changes in bands of frequency, its mean and its spread over a second's windows:
    [15].
    """
    changes = decibels - decibels.mean(axis=2, keepdims=True)
    frames = np.stack([changes[..., start : start + 100] for start in range(0, 401, 50)], 2) * np.hanning(100)
    power = (np.abs(np.fft.rfft(frames)) ** 2).mean((0, 1))  # (windows, 51)
    edges = [1, 2, 4, 7, 12, 20, 32, 51]
    bands = np.stack([power[:, low:high].sum(1) for low, high in itertools.pairwise(edges)], 1)
    return np.concatenate([np.log(bands.mean(0)), np.log(bands).std(0), [np.log(bands.sum(1)).std()]])


@pytest.mark.slow
def test_activities_can_be_told_apart_by_their_doppler_though_not_by_that_alone():
    source = SyntheticCsi(360, seed=5)
    statistics = np.array([doppler_statistics(source._values(index)) for index in range(360)])
    labels = np.array([source.target(index) for index in range(360)])
    training = np.arange(360) < 180
    statistics = (statistics - statistics[training].mean(0)) / statistics[training].std(0)
    centroids = np.stack([statistics[training & (labels == label)].mean(0) for label in range(6)])
    nearest = np.square(statistics[~training, None] - centroids).sum(2).argmin(1)
    right = (nearest == labels[~training]).mean()
    assert 2 / 6 < right < 0.9  # chance: 1 / 6


# Sources: what they share


def test_synthetic_csi_takes_turns_at_classes_and_is_the_same_in_every_epoch():
    source = SyntheticCsi(13, seed=3, kind=1, image_size=(32, 48))
    assert (source.in_chans, source.image_size, len(source), source.task) == (
        3,
        (32, 48),
        13,
        "classification",
    )
    assert source.class_names == ACTIVITIES
    assert [source.target(index) for index in range(13)] == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0]
    assert (source.parts(), source.groups) == (None, {})
    with pytest.raises(RuntimeError, match="fit"):
        source.load(0, None)
    with pytest.raises(RuntimeError, match="fit"):
        source.normalization()
    source.fit(np.arange(13))
    kind, image = source.load(4, None)
    assert kind == IMAGE
    assert image.shape == (3, 32, 48)
    assert image.dtype == np.float32
    assert np.array_equal(image, source.load(4, np.random.default_rng(0), epoch=7)[1])
    values = np.stack(
        [
            csi_room.render(csi_room.draw(ACTIVITIES[index % 6], Stream(3, CSI + 1, index))).numpy()
            for index in range(13)
        ]
    )
    settings = source.normalization()
    assert settings["mean"][0][0][0] == pytest.approx(values.mean(), rel=1e-5)
    assert settings["std"][0][0][0] == pytest.approx(values.std(), rel=1e-4)
    assert (
        source.describe(4, None)["center_freq_hz"] == csi_room.draw("run", Stream(3, CSI + 1, 4)).carrier_hz
    )
    other = SyntheticCsi(13, seed=3, kind=1, image_size=(32, 48))
    other.set_normalization(settings)
    assert np.array_equal(other.load(4, None)[1], image)


def test_many_scenes_are_fitted_by_some_of_every_class():
    source = SyntheticCsi(6 * 256, seed=0)
    made = []
    source._values = lambda index: made.append(index % 6) or np.ones((3, 114, 5), np.float32)
    source.fit(np.arange(len(source)))
    assert len(made) == 256
    assert np.bincount(made, minlength=6).min() > 25


# NTU-Fi HAR


def write_flat(folder):
    for name in reversed(ACTIVITIES):
        write_mat(folder / f"{name}12.mat", amplitudes())
        write_mat(folder / f"{name}3.mat", amplitudes())
    return folder


def test_ntu_fi_has_the_published_parts_and_a_fixed_order_of_classes(tmp_path):
    source = NtuFiHar(write_ntu_fi(tmp_path, count=2))
    assert source.class_names == ACTIVITIES
    assert (len(source), source.in_chans, source.image_size, source.groups) == (24, 3, (224, 224), {})
    parts = source.parts()
    assert list(parts) == ["train", "test"]
    assert sorted([*parts["train"], *parts["test"]]) == list(range(24))
    for part, indices in parts.items():
        for index in indices:
            name = source.describe(index, None)["name"]
            assert name.startswith(f"{part}_amp/{ACTIVITIES[source.target(index)]}/")


def test_the_order_of_samples_is_not_the_file_systems(tmp_path, monkeypatch):
    paths = NtuFiHar(write_ntu_fi(tmp_path, count=3)).paths
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: sorted(listed(path), reverse=True))
    assert NtuFiHar(tmp_path).paths == paths == sorted(paths[:18]) + sorted(paths[18:])


@pytest.mark.parametrize("parts", [(), ("train", "test")])
def test_the_flat_variant_takes_classes_from_names(tmp_path, parts):
    for part in parts or ("",):
        write_flat(tmp_path / part)
    (tmp_path / "README.txt").write_text("not a sample")
    source = NtuFiHar(tmp_path)
    assert len(source) == 12 * max(1, len(parts))
    assert list(source.parts() or ()) == list(parts)
    for index in range(len(source)):
        name = source.describe(index, None)["name"].removeprefix("train/").removeprefix("test/")
        assert name.startswith(ACTIVITIES[source.target(index)])


def test_statistics_are_those_of_the_training_part(tmp_path):
    source = NtuFiHar(write_ntu_fi(tmp_path), image_size=(8, 8))
    rng = np.random.default_rng(0)
    training = [rng.integers(30, 50, (342, 2000)).astype(np.uint8) for _ in ACTIVITIES]
    for name, values in zip(ACTIVITIES, training, strict=True):
        write_mat(tmp_path / "train_amp" / name / f"{name}0.mat", values)
    source.fit(source.parts()["train"])
    settings = source.normalization()
    taken = np.stack(training)[..., ::4].astype(float)
    assert settings["mean"] == [[[pytest.approx(taken.mean(), rel=1e-6)]]]
    assert settings["std"] == [[[pytest.approx(taken.std(), rel=1e-6)]]]

    image = source.load(0, None)[1]
    for name in ACTIVITIES:
        write_mat(tmp_path / "test_amp" / name / f"{name}0.mat", amplitudes(57))
    source.fit(source.parts()["train"])
    assert source.normalization() == settings
    assert np.array_equal(source.load(0, None)[1], image)
    expected = (57 - taken.mean()) / taken.std()
    assert source.load(int(source.parts()["test"][0]), None)[1] == pytest.approx(
        expected, rel=1e-5
    )  # a constant stays one


def test_antennas_subcarriers_and_every_fourth_packet_land_where_they_should(tmp_path):
    folder = write_ntu_fi(tmp_path, level=0)
    values = amplitudes(0)
    values[114 + 20, 400] = 57  # antenna 1, subcarrier 20, packet 400: column 100
    values[228 + 3, 401] = 57  # a packet between those taken
    write_mat(folder / "train_amp" / "box" / "box0.mat", values)
    source = NtuFiHar(folder, image_size=(114, 500))
    source.set_normalization({"mean": [[[0.0]]], "std": [[[57.0]]]})
    image = source.load(0, None)[1]
    assert np.argwhere(image).tolist() == [[1, 20, 100]]
    assert image.max() == 1
    small = NtuFiHar(folder, image_size=(57, 50))
    small.set_normalization(source.normalization())
    assert np.unravel_index(small.load(0, None)[1].argmax(), (3, 57, 50)) == (1, 10, 10)


def test_what_is_wrong_with_the_folders_of_ntu_fi_is_said(tmp_path):
    def refused(expected, folder=tmp_path):
        with pytest.raises(UserError, match=expected) as error:
            NtuFiHar(folder)
        assert "\n" not in str(error.value)

    refused("expected a folder", tmp_path / "none")
    refused(r"expected \.mat files.*found none")
    write_ntu_fi(tmp_path, ["train_amp"])
    refused("expected the folders train_amp and test_amp; found only train_amp")
    write_ntu_fi(tmp_path, ["test_amp"])
    for path in (tmp_path / "test_amp" / "run").iterdir():
        path.unlink()
    refused("test_amp: expected .* found none of run")
    (tmp_path / "test_amp" / "run").rename(tmp_path / "test_amp" / "jump")
    refused("test_amp/jump: expected the name of a class .* found jump")
    write_flat(tmp_path / "flat")
    write_mat(tmp_path / "flat" / "jump1.mat", amplitudes())
    refused(r"jump1\.mat: expected the name of a class", tmp_path / "flat")


def test_what_is_wrong_with_a_mat_file_is_said_when_it_is_read(tmp_path):
    source = NtuFiHar(write_ntu_fi(tmp_path))
    path = source.paths[0]

    def refused(expected):
        with pytest.raises(UserError, match=expected) as error:
            source.fit([0])
        assert str(error.value).startswith(f"{path}: ")
        assert "\n" not in str(error.value)

    write_mat(path, amplitudes(), key="CSIphase")
    refused("expected the variable CSIamp; found CSIphase")
    write_mat(path, amplitudes()[:300])
    refused(r"expected CSIamp of 342 × 2000; found \[300, 2000\]")
    write_mat(path, amplitudes()[:, :1999])
    refused(r"found \[342, 1999\]")
    values = amplitudes().astype(np.float32)
    values[5, 8] = np.nan
    write_mat(path, values)
    refused("expected finite numbers")
    write_mat(path, "text")
    refused("expected numbers in CSIamp")
    path.write_bytes(write_mat(path, amplitudes()).read_bytes()[:5000])
    refused("damaged")
    path.write_bytes(b"")
    refused("damaged")
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400))
    refused(r"version 7\.3")
    path.unlink()
    refused("found no such file")


# CSI in .npz files


def test_an_npz_has_its_labels_sorted_or_as_its_classes_say(tmp_path):
    path = tmp_path / "a.npz"
    source = CsiFile(
        write_npz(path, day=np.array([1, 1, 1, 2, 2, 2]), user=np.array(list("ababab")), rate_hz=100)
    )
    assert source.class_names == ["lie", "sit", "walk"]
    assert [source.target(index) for index in range(6)] == [1, 0, 2, 1, 0, 2]
    assert (source.in_chans, source.image_size, len(source), source.parts()) == (1, (224, 224), 6, None)
    groups = {name: values.tolist() for name, values in source.groups.items()}
    assert groups == {"day": [1, 1, 1, 2, 2, 2], "user": list("ababab")}
    assert source.describe(3, None) == {"name": "a.npz [3]", "path": str(path), "day": 2, "user": "b"}
    source = CsiFile(write_npz(path, classes=np.array(["walk", "lie", "sit", "fall"])))
    assert source.class_names == ["walk", "lie", "sit", "fall"]
    assert [source.target(index) for index in range(3)] == [2, 1, 0]
    source = CsiFile(write_npz(path, label=np.array([10, 9, 10, 9, 2, 2])))
    assert source.class_names == ["2", "9", "10"]
    assert [source.target(index) for index in range(6)] == [2, 1, 2, 1, 0, 0]
    source = CsiFile(write_npz(path, label=np.array([1, 0, 1, 0, 1, 1]), classes=np.array(["b", "a"])))
    assert (source.class_names, source.target(0)) == (["b", "a"], 1)


def test_antennas_of_an_npz_are_channels_and_a_marked_value_stays_where_it_is(tmp_path):
    x = np.ones((3, 2, 4, 10))
    x[1, 1, 2, 7] = 5
    source = CsiFile(write_npz(tmp_path / "a.npz", count=3, x=x), image_size=(4, 10))
    assert source.in_chans == 2
    source.fit([0, 1, 2])
    assert np.unravel_index(source.load(1, None)[1].argmax(), (2, 4, 10)) == (1, 2, 7)


def test_the_gain_of_a_sample_does_not_matter(tmp_path):
    x = np.random.default_rng(1).uniform(10, 20, (6, 4, 10))
    images = []
    for gain in (1, np.array([1, 2, 0.5, 3, 1, 7])[:, None, None]):
        source = CsiFile(write_npz(tmp_path / "a.npz", x=x * gain), image_size=(4, 10))
        source.fit(np.arange(4))
        images.append([source.load(index, None)[1] for index in range(6)])
    np.testing.assert_allclose(images[0], images[1], atol=1e-5)


def test_training_samples_have_zero_mean_and_unit_variance_in_each_subcarrier_and_others_do_not_count(
    tmp_path,
):
    x = np.random.default_rng(1).uniform(10, 20, (6, 4, 10)) * np.array([1, 3, 0, 2])[:, None]
    source = CsiFile(write_npz(tmp_path / "a.npz", x=x), image_size=(4, 10))
    source.fit([0, 2, 3])
    images = np.stack([source.load(index, None)[1][0] for index in (0, 2, 3)])
    assert images.mean((0, 2)) == pytest.approx(0, abs=1e-5)
    assert images.std((0, 2)) == pytest.approx(
        np.array([1, 1, 0, 1]), abs=1e-4
    )  # the third subcarrier is never reported
    changed = x.copy()
    changed[[1, 4, 5]] += 9
    other = CsiFile(write_npz(tmp_path / "a.npz", x=changed), image_size=(4, 10))
    other.fit([0, 2, 3])
    assert other.normalization() == source.normalization()
    with pytest.raises(ValueError, match="expected samples"):
        source.fit([])


def test_padding_is_neither_seen_nor_counted(tmp_path):
    x = np.random.default_rng(1).uniform(10, 20, (3, 4, 10))
    length = np.array([10, 5, 1])
    images = []
    for padding in (0, 1000):
        for index, valid in enumerate(length):
            x[index, :, valid:] = padding
        source = CsiFile(write_npz(tmp_path / "a.npz", count=3, x=x, length=length), image_size=(4, 20))
        assert source.groups == {}
        source.fit(np.arange(3))
        images.append([source.load(index, None)[1] for index in range(3)])
    assert np.array_equal(images[0], images[1])
    assert np.array_equal(
        images[0][2], np.repeat(images[0][2][..., :1], 20, axis=2)
    )  # one packet fills the image


def test_normalization_of_other_data_is_refused(tmp_path):
    source = CsiFile(write_npz(tmp_path / "a.npz"))
    source.fit(np.arange(6))
    other = CsiFile(write_npz(tmp_path / "b.npz", x=np.ones((6, 5, 10))))
    with pytest.raises(
        UserError, match=r"b\.npz: expected a model of CSI of \[1, 5, 1\] .* found \[1, 4, 1\]"
    ):
        other.set_normalization(source.normalization())


_X = np.ones((6, 4, 10))


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"x": None}, "expected the arrays x and label; found label"),
        ({"label": None}, "expected the arrays x and label; found x"),
        ({"x": _X[0]}, r"expected x of numbers .* found float64 \[4, 10\]"),
        ({"x": _X.astype(complex)}, "found complex128"),
        ({"x": _X[:, :0]}, r"found float64 \[6, 0, 10\]"),
        ({"x": np.where(np.arange(6) == 4, np.nan, 1.0)[:, None, None] * _X}, "NaN or infinity in sample 4"),
        ({"label": np.array(["a"] * 5)}, r"expected label of the length of x, \[6\]; found \[5\]"),
        ({"day": np.arange(7)}, r"expected day of the length of x, \[6\]; found \[7\]"),
        ({"length": np.arange(5)}, r"expected length of the length of x"),
        (
            {"length": np.array([1, 2, 3, 4, 5, 11])},
            "expected length of integers from 1 to 10; found int64 1 to 11",
        ),
        ({"label": np.linspace(0, 1, 6)}, "expected label of text or integers; found float64"),
        ({"classes": np.array(["sit", "lie"])}, "expected labels among classes .* found walk"),
        ({"classes": np.array(["sit", "lie", "walk", "sit"])}, "expected classes that differ"),
        (
            {"label": np.arange(6), "classes": np.array(["a", "b"])},
            "expected labels from 0 to 1, .* found 0 to 5",
        ),
        ({"label": np.array(["a", 1, None, 2, 3, 4], object)}, "objects"),
    ],
)
def test_what_is_wrong_with_an_npz_is_said(tmp_path, arrays, expected):
    path = write_npz(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=expected) as error:
        CsiFile(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    path = write_npz(tmp_path / "a.npz")
    whole = path.read_bytes()
    np.save(tmp_path / "b.npy", np.ones(3))
    for content in (
        b"",
        b"nothing",
        whole[:-100],
        whole[: len(whole) // 2],
        (tmp_path / "b.npy").read_bytes(),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            CsiFile(path)
    with pytest.raises(UserError, match=r"none\.npz"):
        CsiFile(tmp_path / "none.npz")


@pytest.mark.skipif(not ESP32.is_file(), reason=f"the shared CSI is not there ({ESP32.name})")
def test_the_esp32_recordings_load():
    source = CsiFile(ESP32, image_size=(56, 50))
    assert len(source) == 809
    assert source.class_names == sorted(
        f"{activity}_{end}"
        for activity in ("SEATED", "SITTING_DOWN", "STANDING_UP", "TURN", "WALKING")
        for end in ("RX", "TX")
    )
    groups = {name: len(np.unique(values)) for name, values in source.groups.items()}
    assert groups == {"day": 4, "execution": 10, "direction": 2}
    source.fit(np.flatnonzero(source.groups["day"] == "D1"))
    images = np.stack([source.load(index, None)[1] for index in range(809)])
    assert images.shape == (809, 1, 56, 50)
    assert np.isfinite(images).all()
    assert images[source.groups["day"] == "D1"].std() == pytest.approx(1, abs=1e-3)
    # A person who walks changes the channel more than one who sits.
    moves = {
        name: images[source.labels == number].std(-1).mean() for number, name in enumerate(source.class_names)
    }
    assert min(moves["WALKING_RX"], moves["WALKING_TX"]) > 1.3 * max(moves["SEATED_RX"], moves["SEATED_TX"])
