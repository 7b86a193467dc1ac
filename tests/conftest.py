"""Settings of all tests."""

import os

import pytest

# The models here are so small that threads would cost more than they bring, above all where the cores are
# shared.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def own_downloads(tmp_path_factory):
    """An empty cache of downloads, which tests beside this one and the user's own programs do not share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RADIO_MAE_HOME", str(tmp_path_factory.mktemp("downloads")))
        yield
