"""A flag that is given twice is refused, in parsers that are not of the job table, too."""

from __future__ import annotations

import argparse

import pytest

from shared import demo
from shared.flags import Once
from teacher_server.client import healthcheck


def test_the_first_value_is_kept() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--a", action=Once, type=int)
    parser.add_argument("--switch", action=Once, nargs=0)
    assert vars(parser.parse_args([])) == {"a": None, "switch": None}
    assert vars(parser.parse_args(["--a", "0", "--switch"])) == {"a": 0, "switch": True}
    with pytest.raises(SystemExit):
        parser.parse_args(["--a", "0", "--a", "1"])


@pytest.mark.parametrize(
    ("main", "argv"),
    [(demo.main, ["--out", "a", "--out", "b"]), (healthcheck.main, ["127.0.0.1:1", "--ca", "a", "--ca", "b"])],
)
def test_commands_beside_the_job_table_refuse_it_too(
    main: object, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(main)
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert "given twice, a and b; give it once" in capsys.readouterr().err
