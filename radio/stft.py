"""The power of many FFTs: as a CPU takes it, in its cache, and as an accelerator does, in few, large launches."""

import torch

# Complex values held at once (a 16 ms window at 61.44 Msps has 2 million in its FFTs).
CHUNK_VALUES_CPU = 2**17
CHUNK_VALUES_ACCELERATOR = 2**26

# By the bytes of a sample, I and Q together: as what it is moved, which is faster than as a complex number or two halves.
_ONE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def column_power(iq, window, starts):
    """Power in each FFT bin, summed over the frames of each column.

    Args:
        iq: I and Q, float32, int16 or int8 [B, S, 2], the last two dimensions dense. Windows may overlap in memory.
        window: float32 [B, 2 * n_fft], each value twice, for I and for Q.
        starts: first sample of every frame, ascending: int64 [columns, q], on the device of the samples.

    Returns:
        float32 [B, columns, n_fft], lowest frequency first.
    """
    length = window.shape[1] // 2
    take, values = (_on_cpu, CHUNK_VALUES_CPU) if iq.device.type == "cpu" else (_on_accelerator, CHUNK_VALUES_ACCELERATOR)
    sums = torch.empty(len(iq), len(starts), 2 * length, device=iq.device)
    take(iq, window, starts, sums, max(1, values // (starts.shape[1] * length)))
    sums = sums.unflatten(2, (length, 2))
    power = torch.empty(sums.shape[:3], device=iq.device)
    positive = length - length // 2  # bins, DC first, that come last in ascending order
    for there, here in ((slice(positive), slice(length // 2, None)), (slice(positive, None), slice(length // 2))):
        torch.add(sums[:, :, there, 0], sums[:, :, there, 1], out=power[:, :, here])
    return power


def _on_cpu(iq, window, starts, sums, columns):
    """Squares of real and imaginary parts, summed: into `sums` [B, columns, 2 * n_fft]; so many columns at a time.

    One window at a time, so that its result does not depend on others. What is written stays in the cache until it is read:
    samples become float32 a chunk at a time, each once, and are copied to the frames from there.
    """
    q, length = starts.shape[1], window.shape[1] // 2
    firsts, ends = starts[:, 0].tolist(), (starts[:, -1] + length).tolist()
    frames = torch.empty(min(columns, len(starts)) * q, length, 2)
    as_one, flat, as_complex = frames.view(torch.int64).squeeze(2), frames.flatten(1), torch.view_as_complex(frames)
    for samples, values, done in zip(iq, window, sums, strict=True):
        for first in range(0, len(starts), columns):
            end = min(first + columns, len(starts))
            count = (end - first) * q
            part = samples[firsts[first] : ends[end - 1]].float().view(torch.int64)
            lags = part.as_strided((len(part) - length + 1, length), (1, 1))
            torch.index_select(lags, 0, starts[first:end].flatten() - firsts[first], out=as_one[:count])
            flat[:count].mul_(values)
            spectra = torch.view_as_real(torch.fft.fft(as_complex[:count]))
            torch.mul(spectra, spectra, out=frames[:count])
            torch.sum(flat[:count].view(end - first, q, -1), dim=1, out=done[first:end])


def _on_accelerator(iq, window, starts, sums, columns):
    """`_on_cpu`, of all windows together where `columns` is more than they have."""
    length, step = window.shape[1] // 2, iq.stride(0) // 2
    memory = iq.as_strided(((len(iq) - 1) * step + iq.shape[1], 2), (2, 1))  # that the windows lie in
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
            # one pass over memory, where squares and their sums are three
            norms = torch.linalg.vector_norm(torch.view_as_real(spectra).flatten(3), dim=2)
            torch.square(norms, out=sums[group, first : first + columns])
