"""The demo: its table, and students that make as many steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY

from shared import demo, provenance
from student_trainer.train.trips import mixing_of

BEST = {"accuracy": 0.84, "nll": 0.37, "time_error": 0.11, "positions": 3545, "teacher_accuracy": 0.75}


def run_of(steps: int, **best: float) -> dict[str, Any]:
    """What `train` prints of a run."""
    return {"best": BEST | best, "last": {"step": steps}}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A directory of the demo with what the table reads there."""
    (tmp_path / "store").mkdir()
    floors = {"nearest_to_destination": 0.77, "second_order_markov": 0.76}
    (tmp_path / "store" / "store.json").write_text(json.dumps({"floors": floors}))
    return tmp_path


def test_it_prints_what_decides_its_last_digits(out: Path) -> None:
    table = demo._table(out, {"vanilla": [run_of(192)], "distilled": [run_of(660)]})
    assert f"The last digits are those of {provenance.arithmetic()}, one thread a job: the same gives them" in table


def test_the_table_says_how_many_steps_each_student_made(out: Path) -> None:
    lines = demo._table(out, {"vanilla": [run_of(1312)], "distilled": [run_of(96)]}).splitlines()
    assert lines[1].split()[-3:] == ["time", "error", "steps"]
    assert lines[5].split() == ["HOSER,", "vanilla", "84.00", "0.3700", "0.1100", "1,312"]
    assert lines[6].split()[-1] == "96"
    assert len(lines[1]) == len(lines[5]) == len(lines[6])


def test_of_several_seeds_it_prints_mean_and_deviation(out: Path) -> None:
    runs = [run_of(192), run_of(192, accuracy=0.86, nll=0.35)]
    lines = demo._table(out, {"vanilla": runs, "distilled": runs}).splitlines()
    assert lines[5].split() == [
        *("HOSER,", "vanilla", "85.00", "±", "1.41", "0.3600", "±", "0.0141", "0.1100", "±", "0.0000", "192"),
    ]
    assert "2 seeds each, mean ± standard deviation" in "\n".join(lines)
    assert demo._name("vanilla", demo.FIRST_SEED) == "vanilla" and demo._name("vanilla", 43) == "vanilla-43"


def test_both_students_make_as_many_steps() -> None:
    """To one in a hundred: no gain is that of a longer training."""
    sizes = yaml.safe_load((REPOSITORY / "config" / "demo.yaml").read_text(encoding="utf-8"))
    labelled, sampled = sizes["train"]["batch"]["train_trips"], sizes["sample"]["trips"]
    optim = sizes["train"]["optim"]
    vanilla = optim["epochs"] * -(-labelled // optim["batch_size"])
    an_epoch = mixing_of(labelled, sampled, 1).passes * labelled + sampled
    assert demo.DISTILLED_EPOCHS * -(-an_epoch // optim["batch_size"]) == pytest.approx(vanilla, rel=0.01)


@pytest.mark.parametrize("seeds", ["0", "101", "two"])
def test_it_refuses_a_number_of_seeds(seeds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        demo.main(["--seeds", seeds])
    assert ended.value.code == 2
    assert "--seeds" in capsys.readouterr().err
