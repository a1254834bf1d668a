"""The arms: how a student is trained, and what it is compared with.

Every arm of one regime sees the same labelled trips; `vanilla` is what all are compared with. Controls take away what
is said to help: the teacher's knowledge (an even or a shuffled answer), or the number of steps. Variants are other
settings of the same parts, from which those of `new` were chosen.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from student_trainer.train.trips import mixing_of

Control = Literal["none", "uniform", "shuffled"]
Policy = Literal["teacher", "destination"]

SAMPLED_TRIPS = 24_000
USUAL_RATE = 1e-3
"""The learning rate of runs that do not say another."""
WIDTH = ("model.road_id_dim=32", "model.road_attr_dim=8")


def _settings(**values: float | str) -> tuple[str, ...]:
    return tuple(f"distill.{name}={value}" for name, value in values.items())


def _before(**values: float | str) -> tuple[str, ...]:
    """Beside what the default was before: times counted as without a teacher."""
    return _settings(**values, time_factor=1)


def _history(weight: float) -> tuple[str, ...]:
    """Of a KL to the teacher's own answer with a constant weight, and no head."""
    return _before(weight=weight, target="history", head=0, schedule="constant")


@dataclasses.dataclass(frozen=True)
class Regime:
    """An amount of labelled trips.

    Attributes:
        trips: labelled trips.
        epochs: of a run on these alone.
        batch_size: of such a run.
    """

    trips: int
    epochs: int
    batch_size: int

    @property
    def steps(self) -> int:
        """Of a run on labelled trips alone."""
        return self.epochs * -(-self.trips // self.batch_size)


REGIMES = (Regime(1_000, 10, 32), Regime(6_000, 8, 64), Regime(35_000, 8, 64))


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: short, in lower case with hyphens.
        text: for people.
        settings: overrides of `train`.
        teaches: whether a teacher is asked.
        samples: whether sampled trips are mixed in.
        control: what is done to the teacher's answers.
        as_many_steps: train on labelled trips alone for as many steps as an arm with sampled trips makes.
        policy: how the sampled trips were drawn.
        sampled_trips: how many are mixed in.
        passes: over labelled trips in an epoch that has one over the sampled ones, in as many steps as with one;
            0 for what `train` chooses by itself.
        share: of the epochs that have sampled trips, the first ones; 0 for what `train` chooses by itself.
    """

    name: str
    text: str
    settings: tuple[str, ...] = ()
    teaches: bool = True
    samples: bool = False
    control: Control = "none"
    as_many_steps: bool = False
    policy: Policy = "teacher"
    sampled_trips: int = SAMPLED_TRIPS
    passes: int = 0
    share: float = 0.0

    @property
    def is_free(self) -> bool:
        """Whether no teacher has a part in it."""
        return not (self.teaches or self.samples)

    @property
    def is_long(self) -> bool:
        """Whether it makes as many steps as one with sampled trips."""
        return self.samples or self.as_many_steps


SAMPLED_EPOCHS, SAMPLED_BATCH = 8, 64

ARMS = (
    Arm("vanilla", "labels alone", teaches=False),
    Arm("default", "the default: sampled trips, destination-aware target (fading), head", samples=True),
    Arm("former", "the former default: KL to the teacher's answer, λ .3", _history(0.3)),
    Arm("times-once", "the default, times counted once", _before(), samples=True),
    Arm("head", "destination-free head alone", _before(weight=0)),
    Arm("target", "destination-aware target (fading) alone", _before(head=0)),
    Arm("unsampled", "`times-once` without sampled trips", _before()),
    Arm("long", "labels alone, as many steps as with sampled trips", teaches=False, as_many_steps=True),
    Arm("unsampled-long", "`times-once` without sampled trips, as many steps as with them", _before(),
        as_many_steps=True),
    Arm("sampled-labels", "sampled trips: their own next roads as labels",
        _settings(weight=0, head=0, sampled_labels=1), teaches=False, samples=True),
    Arm("sampled-head", "sampled trips and head", _before(weight=0), samples=True),
    Arm("sampled-target", "sampled trips and target", _before(head=0), samples=True),
    Arm("fading", "KL to the teacher's answer, λ 1, cosine to 0 over the first half",
        (*_history(1), "distill.schedule=cosine", "distill.schedule_share=0.5")),
    Arm("document", "the first formula: every candidate its cell's whole mass, λ .01, τ 2 (config/document.yaml)",
        (*_history(0.01), "distill.temperature=2", "distill.collisions=duplicate")),
    Arm("default-shuffled", "control: `times-once`, answers shuffled among the candidates", _before(), samples=True,
        control="shuffled"),
    Arm("uniform", "control: KL to an even answer, λ .3", _history(0.3), control="uniform"),
    Arm("smoothing", "control: label smoothing .1", ("optim.label_smoothing=0.1",), teaches=False),
)  # fmt: skip

VARIANTS = (
    Arm("constant", "sampled trips throughout, labelled ones once an epoch, a constant weight",
        _before(schedule="constant"), samples=True, passes=1, share=1),
    Arm("destination", "the same, trips towards drawn destinations",
        _before(schedule="constant"), samples=True, policy="destination", passes=1, share=1),
    *(
        Arm(f"passes-{passes}", f"sampled trips throughout, labelled ones {often} an epoch", _before(), samples=True,
            passes=passes, share=1)
        for passes, often in ((1, "once"), (2, "twice"), (4, "four times"), (8, "eight times"), (24, "24 times"))
    ),
    *(
        Arm(f"first-{name}", f"sampled trips in the first {name} of the epochs", _before(), samples=True, share=share)
        for name, share in (("quarter", 0.25), ("half", 0.5))
    ),
    Arm("weak-head", "`times-once` with a head of weight .3", _before(head=0.3), samples=True),
)  # fmt: skip


ALL = (*ARMS, *VARIANTS)
BY_NAME = {one.name: one for one in ALL}


def arm(name: str) -> Arm:
    """The arm of that name; raises `KeyError`."""
    return BY_NAME[name]


def overrides(arm: Arm, regime: Regime, seed: int, is_mixed: bool) -> list[str]:
    """All that `train` is told but where things are.

    Args:
        is_mixed: whether `train` will mix in sampled trips: an epoch without them is shorter, so that as many steps
            take more of them.
    """
    given = [*WIDTH, f"seed={seed}", f"batch.train_trips={regime.trips}", *arm.settings]
    steps = SAMPLED_EPOCHS * -(-(regime.trips + arm.sampled_trips) // SAMPLED_BATCH)
    batch, sampled = (SAMPLED_BATCH, arm.sampled_trips) if is_mixed else (regime.batch_size, 0)
    passes = mixing_of(regime.trips, sampled, 1, arm.passes).passes
    epoch = passes * regime.trips + sampled
    epochs = round(steps / -(-epoch // batch)) if arm.is_long else regime.epochs
    if arm.samples:
        given += [f"batch.sampled_trips={arm.sampled_trips}", f"batch.labelled_passes={passes}"]
        given += [f"batch.sampled_share={arm.share}"]
    return [*given, f"optim.epochs={epochs}", f"optim.batch_size={batch}"]
