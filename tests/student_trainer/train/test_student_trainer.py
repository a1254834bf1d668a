"""The training loop on a random city, with a teacher in the process."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.fakes import FakeTeacher
from support.random_city import write_random_store
from support.recipes import variants
from support.students import hoser_of

from shared.errors import CompatibilityError, ConfigError, TrainingError
from shared.store import Store
from student_trainer.data.batch import build_batch
from student_trainer.data.network import RoadNetwork
from student_trainer.distill.config import DistillConfig
from student_trainer.distill.kl import forward_kl
from student_trainer.distill.loss import Comparison, answer_of
from student_trainer.distill.query import build_query
from student_trainer.model import upstream
from student_trainer.model.history_head import HistoryHead
from student_trainer.model.hoser import HOSER
from student_trainer.runs import checkpoint as checkpoints
from student_trainer.train.config import TrainConfig
from student_trainer.train.meters import Sums
from student_trainer.train.objective import Divisors, Objective
from student_trainer.train.optim import Precision
from student_trainer.train.resume import find_checkpoint
from student_trainer.train.runtime import Runtime
from student_trainer.train.schedule import PlannedStep, prepare_step
from student_trainer.train.session import Session
from student_trainer.train.trips import open_trips

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "model": {"road_id_dim": 8, "road_attr_dim": 2},
    "optim": {"epochs": 2, "batch_size": 8, "learning_rate": 3e-3},
    "batch": {"bucket_batches": 2},
    "log": {"tensorboard": False, "every": 3, "progress": False},
    "runtime": {"device": "cpu"},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_random_store(tmp_path_factory.mktemp("random") / "store")


def settings_of(store: Store, out: Path, teacher: str = "fake:1", **changed: dict[str, Any]) -> TrainConfig:
    sections = {name: {**SMALL.get(name, {}), **changed.get(name, {})} for name in {*SMALL, *changed}}
    return TrainConfig.model_validate({"data": store.path, "out": out, "teacher": teacher, "seed": 3, **sections})


def train(settings: TrainConfig, store: Store, teacher: FakeTeacher | None = None) -> Session:
    session = start(settings, store, teacher)
    session.train()
    return session


def start(settings: TrainConfig, store: Store, teacher: FakeTeacher | None = None) -> Session:
    runtime = Runtime.of(settings.runtime, CPU)
    return Session(settings, store, runtime, teacher or FakeTeacher(), find_checkpoint(settings, store))


def weights(session: Session) -> dict[str, torch.Tensor]:
    """All that the session has learned or fitted: the head's, and the target's coefficients, too."""
    target = session.feed.target
    fitted = {} if target is None else {"target": torch.from_numpy(target.coefficients)}
    return {name: tensor.clone() for name, tensor in (session.trainer.learned | fitted).items()}


def assert_same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_every_parameter_learns_in_every_step(store: Store, tmp_path: Path) -> None:
    """The network encoder included, whose training upstream's distilling loop left out."""
    session = start(settings_of(store, tmp_path / "run"), store)
    steps = iter(session.schedule.from_step(0))
    for _ in range(2):
        before = weights(session)
        session.trainer.train_step(prepare_step(session.feed, session.model.graph, next(steps)))
        assert session.trainer.head is not None
        head = [(f"head.{name}", parameter) for name, parameter in session.trainer.head.named_parameters()]
        for name, parameter in [*hoser_of(session.model).named_parameters(), *head]:
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                assert not torch.equal(before[name], parameter), name
    frozen = [name for name, p in hoser_of(session.model).named_parameters() if not p.requires_grad]
    assert all(name.startswith("navigator.time_estimator.") for name in frozen)  # dead in upstream, too


def test_validation_on_a_sample(store: Store, tmp_path: Path) -> None:
    """A sample of trips is validated, always the same for the same seed; too large a one is refused."""
    trips = store.trips("val")
    positions = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        settings = settings_of(store, tmp_path / name, "none", batch={"val_trips": 5, "sample_seed": seed})
        chosen = np.random.default_rng(seed).permutation(len(trips))[:5]
        session = start(settings, store)
        positions.append(session.validator.measure(session.model)["positions"])
        assert positions[-1] == (trips.lengths[chosen] - 1).sum()
    assert positions[0] == positions[1] != positions[2]
    with pytest.raises(ConfigError, match=r"batch\.val_trips is 999, but the store has 20 validation trips"):
        start(settings_of(store, tmp_path / "d", "none", batch={"val_trips": 999}), store)


def test_the_teacher_is_asked_about_every_position(store: Store, tmp_path: Path) -> None:
    teacher = FakeTeacher()
    session = train(settings_of(store, tmp_path / "run"), store, teacher)
    train_steps = int((store.trips("train").lengths - 1).sum())
    val_steps = int((store.trips("val").lengths - 1).sum())
    epochs = session.settings.optim.epochs
    fitted = val_steps  # all trips, for there are few
    assert sum(query.positions for query in teacher.queries) == fitted + epochs * train_steps + val_steps


def test_kl_gradient_reaches_every_position(store: Store, tmp_path: Path) -> None:
    session = start(settings_of(store, tmp_path / "run", optim={"time_weight": 0.0}), store)
    item = session.feed.prepare(np.arange(6))
    output = session.model(item.batch, session.model.embed_network())
    logits = output.logits.detach().requires_grad_()
    assert item.reply is not None
    answer = answer_of([item.reply.result().log_probs], item.batch)
    target = Comparison.of(item.batch, output, answer).target
    forward_kl(logits, target, 2.0, "marginal").sum().backward()
    assert logits.grad is not None
    choice = target.is_first.sum(-1) > 1  # one cell leaves nothing to learn
    assert choice.sum() > 10
    assert (logits.grad.abs().sum(-1) > 0).equal(choice)


def test_learns(store: Store, tmp_path: Path) -> None:
    session = train(settings_of(store, tmp_path / "run", optim={"epochs": 12}), store)
    first, last = session.progress.history[0], session.progress.history[-1]
    batch = build_batch(RoadNetwork.load(store), store.trips("val"), np.arange(20))
    guessing = float(batch.candidate_length.double().log().mean())
    assert last["nll"] < min(first["nll"], guessing) - 0.01
    assert {"kl", "head_kl", "teacher_accuracy", "agreement", "seconds_error", "time_error"} <= last.keys()
    assert last["head_kl"] < first["head_kl"] - 0.01
    assert last["target_nll"] == first["target_nll"] and 0 < last["target_accuracy"] <= 1


@pytest.mark.parametrize("variant", ["default", "sampled", "history"])
def test_same_seed_same_bits(store: Store, tmp_path: Path, variant: str) -> None:
    changed = variants(tmp_path, store)[variant]
    runs = [train(settings_of(store, tmp_path / name, **changed), store) for name in ("a", "b")]
    assert_same_bits(weights(runs[0]), weights(runs[1]))
    vanilla = train(settings_of(store, tmp_path / "c", teacher="none"), store)
    navigators = [hoser_of(run.model).navigator.q_proj.weight for run in (vanilla, runs[0])]
    assert not torch.equal(*navigators)


def test_a_slow_teacher_changes_nothing_but_time(store: Store, tmp_path: Path) -> None:
    quick = train(settings_of(store, tmp_path / "a"), store)
    slow = train(settings_of(store, tmp_path / "b"), store, FakeTeacher(delay=0.02))
    assert_same_bits(weights(quick), weights(slow))


@pytest.mark.parametrize(
    ("stop_at", "variant"),
    [*((step, "default") for step in (1, 5, 8, 11)), (5, "sampled"), (13, "sampled"), (5, "history")],
)
def test_resumed_equals_undisturbed_to_the_bit(store: Store, tmp_path: Path, stop_at: int, variant: str) -> None:
    """Interrupted after any step: within an epoch, at its end, in the next one."""
    changed = variants(tmp_path, store)[variant]
    whole = train(settings_of(store, tmp_path / "whole", **changed), store)
    cut = settings_of(store, tmp_path / "cut", log={"checkpoint_every": 1}, **changed)
    session = start(cut, store)
    make_step = session.trainer.train_step

    def interrupt(step: Any) -> None:
        if step.plan.number == stop_at:
            raise KeyboardInterrupt
        make_step(step)

    session.trainer.train_step = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        session.train()
    resumed = train(cut.model_copy(update={"resume": True}), store)
    assert_same_bits(weights(whole), weights(resumed))
    assert whole.progress == resumed.progress

    def steps(run: str) -> list[int]:
        return [json.loads(line)["step"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]

    assert sorted(set(steps("cut"))) == sorted(set(steps("whole")))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_an_update_waits_for_its_end(
    store: Store, tmp_path: Path, number: signal.Signals
) -> None:
    """Between the weights of one layer and the next, the state is no step's."""
    whole = train(settings_of(store, tmp_path / "whole"), store)
    cut = settings_of(store, tmp_path / "cut")
    session = start(cut, store)
    update = session.trainer._update

    def interrupted_update(finite: torch.Tensor, found: Sums) -> bool:
        is_finite = update(finite, found)
        if session.progress.step == 5:
            signal.raise_signal(number)
        return is_finite

    session.trainer._update = interrupted_update  # type: ignore[method-assign]
    with session.runtime.stop, pytest.raises(KeyboardInterrupt):
        session.train()
    assert session.progress.step == 6
    resumed = train(cut.model_copy(update={"resume": True}), store)
    assert_same_bits(weights(whole), weights(resumed))
    assert whole.progress == resumed.progress


def test_an_epoch_whose_validation_was_interrupted_is_validated(store: Store, tmp_path: Path) -> None:
    whole = train(settings_of(store, tmp_path / "whole"), store)
    cut = settings_of(store, tmp_path / "cut")
    session = start(cut, store)

    def interrupt(model: HOSER, head: Any) -> dict[str, float]:
        raise KeyboardInterrupt

    session.validator.measure = interrupt  # type: ignore[method-assign,assignment]
    with pytest.raises(KeyboardInterrupt):
        session.train()
    resumed = train(cut.model_copy(update={"resume": True}), store)
    assert whole.progress == resumed.progress
    assert_same_bits(weights(whole), weights(resumed))


@pytest.mark.parametrize(("teacher", "head", "factor"), [("fake:1", 1, 1.5), ("fake:1", 0, 1.5), ("none", 1, 1)])
def test_times_count_more_beside_a_teacher(
    store: Store, tmp_path: Path, teacher: str, head: float, factor: float
) -> None:
    """The loss of the first step, at which nothing has faded, is its parts by their weights."""
    changed = {"optim": {"time_weight": 0.5}, "distill": {"head": head, "weight": 2.0, "time_factor": 1.5}}
    session = start(settings_of(store, tmp_path / "run", teacher, **changed), store)
    step = prepare_step(session.feed, session.model.graph, next(iter(session.schedule.from_step(0))))
    found = Sums()
    assert session.trainer.compute_gradients(step, found)
    means = found.means()
    taught = 0.0 if teacher == "none" else 2.0 * means["loss_kl"] + head * means.get("loss_head_kl", 0.0)
    expected = means["loss_next_road"] + factor * 0.5 * means["loss_time"] + taught
    assert means["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_step_learns_what_the_whole_network_would_teach(store: Store, tmp_path: Path) -> None:
    """The gradient of a step, which embeds only the roads that it reads, against one pass over all roads."""
    session = start(settings_of(store, tmp_path / "run", teacher="none"), store)
    plan = next(iter(session.schedule.from_step(0)))
    step = prepare_step(session.feed, session.model.graph, plan)
    assert session.trainer.compute_gradients(step, Sums())
    found = {name: p.grad.clone() for name, p in hoser_of(session.model).named_parameters() if p.grad is not None}
    hoser_of(session.model).zero_grad()
    batch = step.micro_batches[0].batch
    network = session.model.embed_network()
    output = session.model(batch, network)
    times = session.model.label_times(batch, network, output)
    labels = int((batch.label >= 0).sum())
    objective = Objective(session.settings.distill, session.settings.time_weight, session.scale)
    objective.of(batch, output, times, None, Divisors(batch.positions, labels, labels)).loss.backward()
    expected = {name: p.grad for name, p in hoser_of(session.model).named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("variant", ["default", "sampled"])
def test_accumulation_changes_only_memory(store: Store, tmp_path: Path, variant: str) -> None:
    """Two micro-batches of 4 give the gradient of one batch of 8, though their positions differ in number."""
    gradients, changed = [], variants(tmp_path, store)[variant]
    for batch_size, accumulation in ((8, 1), (4, 2)):
        optim = {"batch_size": batch_size, "accumulation": accumulation}
        session = start(settings_of(store, tmp_path / f"{batch_size}", optim=optim, **changed), store)
        trips = np.arange(8) if variant == "default" else np.arange(55, 63)  # 5 labelled ones, then 3 sampled ones
        plan = PlannedStep(0, 0, micro_batches=np.split(trips, accumulation))
        assert session.trainer.compute_gradients(prepare_step(session.feed, session.model.graph, plan), Sums())
        gradients.append([p.grad.clone() for p in session.trainer._parameters if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    for name, gradient in enumerate(gradients[0]):
        torch.testing.assert_close(gradients[1][name], gradient, rtol=2e-4, atol=2e-6)


def test_all_trips_are_used_and_the_schedule_ends(store: Store, tmp_path: Path) -> None:
    settings = settings_of(store, tmp_path / "run", optim={"accumulation": 3, "batch_size": 7, "final_lr": 0.1})
    session = train(settings, store)
    plans = list(session.schedule.from_step(0))
    per_epoch = [np.concatenate([i for plan in plans if plan.epoch == e for i in plan.micro_batches]) for e in (0, 1)]
    assert all(sorted(trips) == list(range(60)) for trips in per_epoch)
    assert session.progress.step == len(plans) == 2 * 3
    rates = session.trainer.optimizer.param_groups[0]["lr"]
    assert rates == pytest.approx(0.1 * settings.optim.learning_rate)


def poison(session: Session, steps: set[int]) -> None:
    """Makes the loss of some steps infinite."""
    prepare, number = session.feed.prepare, iter(range(10**6))

    def prepared(index: np.ndarray, ask: bool = True) -> Any:
        item = prepare(index, ask)
        if next(number) in steps:
            item.batch.temporal[:] = torch.inf
        return item

    session.feed.prepare = prepared  # type: ignore[method-assign]


def test_a_bad_batch_is_reported_and_skipped(store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    session = start(settings_of(store, tmp_path / "run"), store)
    poison(session, {2})
    session.train()
    assert session.progress.bad_steps == 1
    trips = next(p for p in session.schedule.from_step(2)).micro_batches[0]
    assert f"training trips {trips.tolist()}" in caplog.text
    assert all(bool(torch.isfinite(p).all()) for p in session.model.parameters())


def test_too_many_bad_batches_stop_the_run(store: Store, tmp_path: Path) -> None:
    session = start(settings_of(store, tmp_path / "run", optim={"max_bad_steps": 2}), store)
    poison(session, set(range(100)))
    with pytest.raises(TrainingError, match="max_bad_steps 2"):
        session.train()
    assert session.progress.bad_steps == 3


def test_non_finite_gradient_leaves_the_weights(store: Store, tmp_path: Path) -> None:
    session = start(settings_of(store, tmp_path / "run"), store)
    parameter = hoser_of(session.model).navigator.v_proj.weight
    parameter.register_hook(lambda gradient: gradient * torch.nan)
    before = weights(session)
    session.trainer.train_step(
        prepare_step(session.feed, session.model.graph, next(iter(session.schedule.from_step(0))))
    )
    assert session.progress.bad_steps == 1
    assert_same_bits(before, weights(session))


def test_best_is_chosen_by_accuracy_and_loads_upstream(store: Store, tmp_path: Path) -> None:
    session = train(settings_of(store, tmp_path / "run", optim={"epochs": 4}), store)
    best = checkpoints.load(tmp_path / "run" / "checkpoints" / "best.pt")
    assert best.progress.best_accuracy == max(epoch["accuracy"] for epoch in session.progress.history)
    exported = checkpoints.load_tensors(tmp_path / "run" / "hoser.pth")
    config = upstream.infer_config(exported)
    model = HOSER(config, RoadNetwork.load(store))
    upstream.load_into(model, exported)
    assert_same_bits(model.state_dict(), best.model)
    assert exported["trajectory_encoder.transformer.h.0.attn.bias"].shape == (1, 1, 1024, 1024)
    assert best.model.keys() == session.model.state_dict().keys()  # without the head, which is kept beside them
    vanilla = train(settings_of(store, tmp_path / "vanilla", teacher="none", optim={"epochs": 1}), store)
    of_vanilla = checkpoints.load_tensors(vanilla.settings.out / "hoser.pth")
    assert list(of_vanilla) == list(exported) and not any("head" in name.split(".")[0] for name in exported)
    assert best.distillation.keys() == {"target", *(f"head.{name}" for name in HistoryHead(config).state_dict())}
    assert checkpoints.load(vanilla.settings.out / "checkpoints" / "best.pt").distillation == {}


def test_refuses_a_used_directory_and_changed_settings(store: Store, tmp_path: Path) -> None:
    settings = settings_of(store, tmp_path / "run")
    train(settings, store)
    with pytest.raises(ConfigError, match="holds a run; go on with --resume"):
        start(settings, store)
    changed = settings_of(store, tmp_path / "run", optim={"learning_rate": 1.0}).model_copy(update={"resume": True})
    with pytest.raises(ConfigError, match=r"optim\.learning_rate is 0\.003 there, 1\.0 here"):
        start(changed, store)


def test_refuses_to_resume_with_another_teacher_or_store(store: Store, tmp_path: Path) -> None:
    settings = settings_of(store, tmp_path / "run")
    train(settings, store)
    resumed = settings.model_copy(update={"resume": True})
    checkpoint = find_checkpoint(resumed, store)
    with pytest.raises(CompatibilityError, match="teacher weights fake"):
        Session(resumed, store, Runtime.of(resumed.runtime, CPU), FakeTeacher(revision="other"), checkpoint)
    other = write_random_store(tmp_path / "other", seed=1)
    with pytest.raises(CompatibilityError, match="another store"):
        find_checkpoint(resumed, other)


def test_sub_sample_depends_on_its_own_seed(store: Store, tmp_path: Path) -> None:
    def chosen(name: str, seed: int, sample_seed: int) -> list[int]:
        settings = settings_of(store, tmp_path / name, batch={"train_trips": 20, "sample_seed": sample_seed})
        return open_trips(store, settings.model_copy(update={"seed": seed})).labelled.tolist()

    assert chosen("a", 0, 0) == chosen("b", 1, 0) != chosen("c", 0, 1)
    assert len(set(chosen("a", 0, 0))) == 20


@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_mixed_precision_trains_with_losses_in_float32(store: Store, tmp_path: Path, amp: str) -> None:
    """On the CPU, where it is slow but the same code."""
    full = train(settings_of(store, tmp_path / "full", optim={"epochs": 4}), store)
    mixed = train(settings_of(store, tmp_path / "mixed", optim={"epochs": 4}, runtime={"amp": amp}), store)
    item = mixed.feed.prepare(np.arange(4))
    with mixed.runtime.precision.autocast():
        network = mixed.model.embed_network()
        output = mixed.model(item.batch, network)
        times = mixed.model.label_times(item.batch, network, output)
    exact = mixed.model(item.batch, mixed.model.embed_network()).logits
    exists = item.batch.layout.exists
    assert not output.logits[exists].equal(exact[exists])  # the products really are in half precision
    torch.testing.assert_close(output.logits[exists], exact[exists], rtol=0.05, atol=0.05)
    assert output.logits.dtype is times.dtype is torch.float32
    assert mixed.runtime.precision.scaler.is_enabled() == (amp == "float16")
    assert mixed.progress.bad_steps == 0
    assert mixed.progress.history[-1]["nll"] == pytest.approx(full.progress.history[-1]["nll"], abs=0.02)


@pytest.mark.integration
def test_compile_compiles(store: Store, tmp_path: Path) -> None:
    session = start(settings_of(store, tmp_path / "run", runtime={"compile": True}), store)
    plain = start(settings_of(store, tmp_path / "plain"), store)
    assert hoser_of(session.model).trajectory_encoder._compiled_call_impl is not None
    assert hoser_of(plain.model).trajectory_encoder._compiled_call_impl is None
    item, reference = session.feed.prepare(np.arange(4)), plain.feed.prepare(np.arange(4))
    with torch.no_grad():
        logits = session.model(item.batch, session.model.embed_network()).logits
        expected = plain.model(reference.batch, plain.model.embed_network()).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_window_and_sequence_ask_for_the_same_contexts(store: Store, tmp_path: Path) -> None:
    session = start(settings_of(store, tmp_path / "run"), store)
    batch, network = session.feed.prepare(np.arange(5)).batch, RoadNetwork.load(store)
    sequence = build_query(batch, network, DistillConfig(window=3, history="sequence"))
    window = build_query(batch, network, DistillConfig(window=3, history="window"))
    tokens, contexts = sequence.history_tokens.tolist(), []
    start_of_trip = 0
    for length in sequence.history_lengths.tolist():
        trip = tokens[start_of_trip : start_of_trip + length]
        contexts += [trip[max(0, i - 2) : i + 1] for i in range(length)]
        start_of_trip += length
    assert window.history_tokens.tolist() == [token for context in contexts for token in context]
    assert window.history_lengths.tolist() == [len(context) for context in contexts]
    assert window.candidate_tokens.tolist() == sequence.candidate_tokens.tolist()
    roads = store.trips("train").roads[: sequence.history_lengths[0]]
    assert tokens[: len(roads)] == network.road_token[roads].tolist()  # the current road is part of the history


@pytest.mark.parametrize(("before", "now"), [("off", "float16"), ("float16", "off"), ("float16", "float16")])
def test_a_run_goes_on_in_other_arithmetic(store: Store, tmp_path: Path, before: str, now: str) -> None:
    """`runtime` may change where a run resumes: what had no loss scaler gets a fresh one."""
    first = start(settings_of(store, tmp_path / "run", runtime={"amp": before}), store)
    epochs = first.epochs()
    next(epochs)
    epochs.close()
    settings = settings_of(store, tmp_path / "run", runtime={"amp": now}).model_copy(update={"resume": True})
    session = start(settings, store)
    scale = session.runtime.precision.scaler.state_dict()
    source = first.runtime.precision if before == now else Precision(settings.runtime, CPU)
    assert scale == source.scaler.state_dict() and bool(scale) == (now == "float16")
    session.train()
    assert session.progress.step == session.schedule.total_steps and session.progress.bad_steps == 0
