"""Validation: how good the student is on trips that it has not seen, and the teacher beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import Future

import torch

from shared.store import Trips
from shared.wire import ScoreReply
from student_trainer.data.loader import Prefetcher, by_length
from student_trainer.distill.loss import Comparison, Distillation, answer_of
from student_trainer.model.history_head import HistoryHead
from student_trainer.model.student import NetworkEmbedding, Student
from student_trainer.model.time_scale import TimeScale
from student_trainer.train import loss as losses
from student_trainer.train.config import RecipeConfig
from student_trainer.train.feed import Feed, Prepared
from student_trainer.train.meters import Sums
from student_trainer.train.objective import forward
from student_trainer.train.runtime import Runtime

LOOKAHEAD = 4


class Validator:
    """Measures a model on a split; several ranks measure some batches each.

    A frozen teacher gives the same answers every time, so it is asked in the first pass only, and later for what it
    has then failed to answer.
    """

    def __init__(self, feed: Feed, trips: Trips, settings: RecipeConfig, scale: TimeScale, runtime: Runtime) -> None:
        """Of these trips, which the feed knows by their numbers."""
        self._feed, self._scale, self._runtime = feed, scale, runtime
        self._on_failure, self._distillation = settings.client.on_failure, Distillation(settings.distill)
        ranks = runtime.ranks
        self._batches = by_length(trips.lengths, settings.optim.batch_size)
        self._own = range(ranks.rank, len(self._batches), ranks.world)
        self._replies: dict[int, ScoreReply] = {}

    @torch.no_grad()
    def measure(self, model: Student, head: HistoryHead | None = None) -> dict[str, float]:
        """Means over all valid positions of the split; with the head that is trained beside the model, if there is one.

        Returns:
            accuracy: share of positions whose most likely candidate is the next road; a
                position whose next road is not among its candidates counts as wrong.
            nll: mean -log p(next road), nats, over positions with a label.
            time_error: |x^ - x| / max(x, 1) of x = log1p seconds, as upstream reports it.
            seconds_error: mean absolute error in seconds.
            positions: how many there are.
            With a teacher also the divergence of each term (kl, head_kl), teacher_accuracy, agreement and the
            entropies, and of a destination-aware target its accuracy and nll, of the positions that the teacher has
            answered; if there are others, teacher_missed is their share.

        Raises:
            TeacherError: the teacher has failed, and `client.on_failure` is not `skip`.
        """
        model.train(False)
        sums = Sums()
        missed = 0
        with (
            self._runtime.precision.float32_products(),
            Prefetcher(self._prepare, self._own, LOOKAHEAD) as prepared,
        ):
            with self._runtime.precision.autocast():
                network = model.embed_network()
            for number, item in zip(self._own, prepared, strict=True):
                reply = item.answer(self._on_failure)
                if reply is not None:
                    self._replies[number] = reply
                elif item.reply is not None:
                    missed += item.batch.positions
                self._add(sums, model, head, network, item, self._replies.get(number))
        model.train()
        sums = Sums.of(self._runtime.ranks.gather(sums.totals()))
        positions = sums.count("accuracy")
        (missed,) = self._runtime.ranks.sums(missed)
        return {"positions": positions, **sums.means(), **({"teacher_missed": missed / positions} if missed else {})}

    def some_of(self, trips: int) -> Iterator[Prepared]:
        """About so many of the trips at most, of all lengths alike, in batches that are answered or asked.

        The same on every rank, whichever measures them.
        """
        stride = max(1, -(-sum(map(len, self._batches)) // trips))
        for number in range(min(stride // 2, len(self._batches) - 1), len(self._batches), stride):
            yield self._answered(number)

    def _answered(self, number: int) -> Prepared:
        item = self._prepare(number)
        if (reply := self._replies.get(number)) is None:
            return item
        future: Future[ScoreReply] = Future()
        future.set_result(reply)
        return dataclasses.replace(item, reply=future)

    def _prepare(self, number: int) -> Prepared:
        return self._feed.prepare(self._batches[number], ask=number not in self._replies)

    def _add(
        self,
        sums: Sums,
        model: Student,
        head: HistoryHead | None,
        network: NetworkEmbedding,
        item: Prepared,
        reply: ScoreReply | None,
    ) -> None:
        batch = item.on(self._runtime.device)
        with self._runtime.precision.autocast():
            output, times = forward(model, head, batch, network)
        count = item.labels
        hits = output.logits.argmax(-1) == batch.label
        sums.add("accuracy", hits.float().sum(), batch.positions)
        sums.add("nll", losses.next_road_loss(output.logits, batch.label), count)
        for name, errors in {
            "time_error": losses.time_errors(times, batch.seconds, self._scale),
            "seconds_error": losses.seconds_errors(times, batch.seconds, self._scale),
        }.items():  # not indexed by the mask: how many are labelled is the host's to know
            sums.add(name, torch.where(batch.label >= 0, errors, 0).sum(), count)
        if reply is not None:
            comparison = Comparison.of(batch, output, answer_of(item.arrays(reply), batch))
            divergences = self._distillation.measure(comparison).divergences
            for name, total in (divergences | comparison.diagnostics(comparison.batch.label)).items():
                sums.add(name, total, batch.positions)
