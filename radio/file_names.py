"""Sample rates and centre frequencies that receivers write into the names of their files."""

import re

# Groups are named after the flags; the unit of a number stands after it.
_PATTERNS = (
    r"gqrx_\d{8}_\d{6}_(?P<center_freq>\d+)_(?P<sample_rate>\d+)_fc",  # complex float, gqrx
    r"_(?P<center_freq>\d+(?:\.\d+)?M)_(?P<sample_rate>\d+(?:\.\d+)?k)(?=[._]|$)",  # rtl_433 -S
    r"_(?P<center_freq>\d+(?:\.\d+)?[kM]?)Hz(?=[._]|$)",  # SDR#, SDR++, HDSDR
    r"(?:^|[._-])(?P<sample_rate>\d+(?:\.\d+)?M)(?:sps|Hz)?(?=[._-]|$)",  # srsRAN: signal.1.92M.dat
)


def suggestion(name):
    """What a file's name suggests, as flags in a phrase for an error; "" if it says nothing."""
    for pattern in _PATTERNS:
        if match := re.search(pattern, name):
            flags = [f"--{flag} {value}" for flag, value in sorted(match.groupdict().items(), reverse=True)]
            flags += ["--datatype cf32_le"] * name.startswith("gqrx_")
            return f"its name suggests {' '.join(flags)}"
    return ""
