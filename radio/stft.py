"""The power of many FFTs: in the cache of a CPU, or in few, large launches on an accelerator."""

import torch

# Complex values held at once (a 16 ms window at 61.44 Msps has 2 million in its FFTs).
CHUNK_VALUES_CPU = 2**17
CHUNK_VALUES_ACCELERATOR = 2**26

# A sample's I and Q are moved as one integer of so many bytes: faster than a complex number or two halves.
_ONE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def column_power(iq, window, starts):
    """Power in each FFT bin, summed over the frames of each column.

    Args:
        iq: I and Q, float32, int16 or int8 [B, S, 2], last two dimensions dense. Windows may overlap in
            memory.
        window: float32 [B, 2 * n_fft], each value twice, for I and for Q.
        starts: first sample of every frame, ascending: int64 [columns, q], on the device of the samples.

    Returns:
        float32 [B, columns, n_fft], lowest frequency first.
    """
    length, is_cpu = window.shape[1] // 2, iq.device.type == "cpu"
    sums = torch.empty(len(iq), len(starts), 2 * length, device=iq.device)
    columns = (CHUNK_VALUES_CPU if is_cpu else CHUNK_VALUES_ACCELERATOR) // (starts.shape[1] * length)
    (_on_cpu if is_cpu else _on_accelerator)(iq, window, starts, sums, max(1, columns))

    # add both halves and put the bins in ascending order
    real, imaginary = sums.unflatten(2, (length, 2)).unbind(dim=3)
    power = torch.empty(real.shape, device=iq.device)
    positive = length - length // 2  # the first bins, from DC on
    torch.add(real[:, :, :positive], imaginary[:, :, :positive], out=power[:, :, length // 2 :])
    torch.add(real[:, :, positive:], imaginary[:, :, positive:], out=power[:, :, : length // 2])
    return power


def _on_cpu(iq, window, starts, sums, columns):
    """Sum squares of real and imaginary parts into `sums` [B, columns, 2 * n_fft], `columns` at a time.

    Windows are processed one by one, so no result depends on the others. Samples become float32 once, a chunk
    at a time, and are copied to the frames while they are in the cache.
    """
    q, length = starts.shape[1], window.shape[1] // 2
    firsts, ends = starts[:, 0].tolist(), (starts[:, -1] + length).tolist()
    frames = torch.empty(min(columns, len(starts)) * q, length, 2)
    as_one, flat = frames.view(torch.int64).squeeze(2), frames.flatten(1)
    for samples, values, done in zip(iq, window, sums, strict=True):
        for first in range(0, len(starts), columns):
            end = min(first + columns, len(starts))
            count = (end - first) * q
            part = samples[firsts[first] : ends[end - 1]].float().view(torch.int64)
            lags = part.as_strided((len(part) - length + 1, length), (1, 1))
            torch.index_select(lags, 0, starts[first:end].flatten() - firsts[first], out=as_one[:count])
            flat[:count].mul_(values)
            spectra = torch.view_as_real(torch.fft.fft(torch.view_as_complex(frames[:count])))
            torch.mul(spectra, spectra, out=frames[:count])
            torch.sum(flat[:count].view(end - first, q, -1), dim=1, out=done[first:end])


def _on_accelerator(iq, window, starts, sums, columns):
    """Like `_on_cpu`, with several windows at a time where `columns` is more than one window has."""
    length, step = window.shape[1] // 2, iq.stride(0) // 2
    memory = iq.as_strided(((len(iq) - 1) * step + iq.shape[1], 2), (2, 1))  # all windows' samples
    lags = memory.view(_ONE[2 * iq.element_size()]).squeeze(1).unfold(0, length, 1)
    windows = max(1, columns // len(starts))
    for one in range(0, len(iq), windows):
        group = slice(one, min(one + windows, len(iq)))
        offsets = torch.arange(group.start, group.stop, device=iq.device)[:, None, None] * step
        for first in range(0, len(starts), columns):
            chosen = starts[first : first + columns] + offsets  # (windows, columns, q)
            frames = lags[chosen.flatten()].view(iq.dtype).view(*chosen.shape, 2 * length)
            frames = frames * window[group, None, None]  # integers become float32 on the way
            spectra = torch.fft.fft(torch.view_as_complex(frames.unflatten(3, (length, 2))))
            # one pass over memory; squares and their sums need three
            norms = torch.linalg.vector_norm(torch.view_as_real(spectra).flatten(3), dim=2)
            torch.square(norms, out=sums[group, first : first + columns])
