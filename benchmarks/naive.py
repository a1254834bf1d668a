"""The teacher as it is commonly called from a training script: the full softmax, then a gather.

For each scored position: embed SOT and the last `window` cells from position 0, compute the logits of the whole
vocabulary at all of them, softmax in float32, take the probabilities of the candidates' cells at the last one,
renormalise. The transformer itself is the one that the engine runs, so that a ratio to these functions is about how
the teacher is asked, not about its kernels. Equal to the engine up to rounding.

Shapes: n windows, T longest window with SOT, V vocabulary, K candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from shared import ragged
from shared.wire import ScoreQuery
from teacher_server.lmtad.model import LMTAD

Float32 = npt.NDArray[np.float32]


@torch.inference_mode()
def window_by_window(model: LMTAD, query: ScoreQuery, sot: int) -> Float32:
    """One window after another: log-probabilities of the candidates, float32 [K]."""
    candidates = np.split(query.candidate_tokens, ragged.offsets(query.candidate_lengths)[1:-1])
    windows = (window for trip in _trips(query) for window in _windows(trip, query.window, sot))
    answers = []
    for window, cells in zip(windows, candidates, strict=True):
        probabilities = _probabilities(model, window[None])
        answers.append(_renormalised(probabilities[0, -1, cells]))
    return np.concatenate(answers)


@torch.inference_mode()
def trip_at_once(model: LMTAD, query: ScoreQuery, sot: int) -> Float32:
    """All windows of a trip in one padded batch: log-probabilities of the candidates, float32 [K]."""
    candidates = iter(np.split(query.candidate_tokens, ragged.offsets(query.candidate_lengths)[1:-1]))
    answers = []
    for trip in _trips(query):
        windows = _windows(trip, query.window, sot)
        lengths = np.array([len(window) for window in windows])
        padded = ragged.pad(np.concatenate(windows), lengths, int(lengths.max()), sot)  # causal: not seen from the left
        probabilities = _probabilities(model, padded)
        answers += [_renormalised(probabilities[i, n - 1, next(candidates)]) for i, n in enumerate(lengths)]
    return np.concatenate(answers)


@torch.inference_mode()
def whole_trips(model: LMTAD, query: ScoreQuery, sot: int) -> Float32:
    """The whole history: one causal pass a trip, the full softmax at every place: float32 [K]."""
    candidates = iter(np.split(query.candidate_tokens, ragged.offsets(query.candidate_lengths)[1:-1]))
    answers = []
    for trip in _trips(query):
        probabilities = _probabilities(model, np.append(np.int32(sot), trip)[None])[0]
        answers += [_renormalised(probabilities[1 + i, next(candidates)]) for i in range(len(trip))]
    return np.concatenate(answers)


def _probabilities(model: LMTAD, tokens: npt.NDArray[np.int32]) -> Float32:
    """Of the whole vocabulary at every place, from the model's device: tokens [n, T] -> float32 [n, T, V]."""
    logits = model(torch.from_numpy(tokens).to(model.lm_head.weight.device))
    return cast(Float32, logits.float().softmax(-1).cpu().numpy())


def _trips(query: ScoreQuery) -> Iterator[npt.NDArray[np.int32]]:
    return iter(np.split(query.history_tokens, ragged.offsets(query.history_lengths)[1:-1]))


def _windows(trip: npt.NDArray[np.int32], window: int, sot: int) -> list[npt.NDArray[np.int32]]:
    return [np.append(np.int32(sot), trip[max(0, i + 1 - window) : i + 1]) for i in range(len(trip))]


def _renormalised(probabilities: Float32) -> Float32:
    log_probs: Float32 = np.log(probabilities / probabilities.sum())
    return log_probs
