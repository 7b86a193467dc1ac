"""A user's mistake is one line and a status."""

import pytest
from torch.utils.data import DataLoader, Dataset

from util.errors import RunError, UserError, one_line, reported, warn


@pytest.mark.parametrize(
    ("error", "status"), [(UserError("a.npy: expected\nIQ; found\n none"), 2), (RunError("stop"), 1)]
)
def test_reported(error, status, capsys):
    with pytest.raises(SystemExit) as exit_, reported():
        raise error
    assert exit_.value.code == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")


def test_other_errors_keep_their_traceback():
    with pytest.raises(KeyError), reported():
        raise KeyError("a bug")


class Failing(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise UserError("b.sigmf-data: expected finite samples: found nan at sample 3")


def test_an_error_in_a_worker_is_the_same_line():
    with pytest.raises(UserError) as error:
        list(DataLoader(Failing(), num_workers=1))
    assert one_line(error.value) == "b.sigmf-data: expected finite samples: found nan at sample 3"


def test_warn(capsys):
    warn("3 recordings skipped")
    assert capsys.readouterr().err == "warning: 3 recordings skipped\n"
