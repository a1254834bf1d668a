"""Defaults < files < overrides, and errors that name the key."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from shared import config
from shared.config import Section
from shared.errors import ConfigError


class Inner(Section):
    """A section."""

    rate: float = pydantic.Field(1e-3, gt=0)
    """How fast."""
    steps: int = 10
    """How long."""
    bounds: tuple[float, float] | None = None
    """Where."""


class Outer(Section):
    """A job."""

    data: Path
    """The store."""
    name: str = "a"
    """The name,
    over two lines."""
    mode: Literal["off", "on"] = "on"
    """Off or on."""
    tags: tuple[str, ...] = ()
    """Tags."""
    cache: Path | None = None
    """Perhaps a path."""
    label: Annotated[str, pydantic.Field(max_length=99)] | None = None
    """Perhaps text."""
    words: dict[str, str] = pydantic.Field(default_factory=dict)
    """Text by name."""
    is_fast: bool = False
    """Fast."""
    inner: Inner = Inner()
    """Inside."""
    spare: Inner | None = None
    """Perhaps."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Outer:
        if self.name == "forbidden":
            raise ValueError("name must be another")
        return self


def load(*overrides: str, files: list[Path] | None = None) -> Outer:
    return config.load(Outer, "train", files or [], ["data=d", *overrides])


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_defaults_then_files_then_overrides(tmp_path: Path) -> None:
    first = write(tmp_path / "a.yaml", "train: {name: first, tags: [x, y], inner: {rate: 0.1, steps: 1}}")
    second = write(tmp_path / "b.yaml", "train: {name: second, inner: {rate: 0.2}}")
    assert load() == Outer(data=Path("d"))
    assert load(files=[first]).name == "first"
    both = load(files=[first, second])
    assert (both.name, both.tags, both.inner) == ("second", ("x", "y"), Inner(rate=0.2, steps=1))
    assert load(files=[second, first]).name == "first"
    over = load("inner.steps=7", "name=third", "inner.rate=0.3", "inner.rate=0.4", files=[first, second])
    assert (over.name, over.tags, over.inner) == ("third", ("x", "y"), Inner(rate=0.4, steps=7))


def test_an_override_may_be_a_whole_section_and_be_refined() -> None:
    assert load("inner={steps: 3, rate: 1}", "inner.steps=4").inner == Inner(rate=1, steps=4)
    assert load("spare.steps=4").spare == Inner(steps=4)
    assert load("spare.steps=4", "spare=null").spare is None
    assert load("tags=[a, b]", "tags=[c]").tags == ("c",)


def test_a_file_may_reuse_a_section_without_tying_the_two_together(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "train: {inner: &x {steps: 3}, spare: *x}")
    loaded = load("inner.steps=4", files=[path])
    assert (loaded.inner.steps, loaded.spare) == (4, Inner(steps=3))
    merged = write(tmp_path / "b.yaml", "train: {inner: &x {steps: 3, rate: 2}, spare: {<<: *x, steps: 5}}")
    assert load(files=[merged]).spare == Inner(steps=5, rate=2)


def test_other_jobs_sections_and_empty_files_are_left_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "serve: {nonsense: 1}\ntrain:\n")
    assert load(files=[path, write(tmp_path / "b.yaml", ""), write(tmp_path / "c.yaml", "# nothing\n")]) == load()


def test_a_file_that_has_nothing_for_the_job_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.yaml", "serve: {nonsense: 1}\nprepare:\n")
    assert load(files=[path, write(tmp_path / "b.yaml", "")]) == load()
    assert caplog.messages == [f"{path} has nothing for train: its settings are of prepare, serve"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("inner.rate=3e-4", 3e-4),
        ("inner.rate=3E4", 3e4),
        ("inner.rate=1", 1.0),
        ("inner.rate=+.5", 0.5),
        ("inner.rate=5.", 5.0),
        ("inner.steps=-3", -3),
        ("inner.steps=007", 7),
        ("inner.bounds=[-1, 2.5e-1]", (-1.0, 0.25)),
        ("inner.bounds=null", None),
        ("inner.bounds=", None),
        ("mode=off", "off"),
        ("mode=on", "on"),
        ("is_fast=true", True),
        ("is_fast=off", False),
        ("is_fast=yes", True),
        ("name=1:30", "1:30"),
        ("name=2024-01-01", "2024-01-01"),
        ("name=2024-99-99", "2024-99-99"),
        ("name=none", "none"),
        ("name=a=b", "a=b"),
        ("name=127.0.0.1:50051,[::1]:50052", "127.0.0.1:50051,[::1]:50052"),
        ("name='12'", "'12'"),
        ("name=3", "3"),
        ("name=007", "007"),
        ("name=true", "true"),
        ("name=null", "null"),
        ("name=work/run #2/store", "work/run #2/store"),
        ("name=a: b", "a: b"),
        ("name= a ", " a "),
        ("name=[1", "[1"),
        ("name=[::1]:50051", "[::1]:50051"),
        ("name=!!timestamp x", "!!timestamp x"),
        ("name=$HOME/~/*", "$HOME/~/*"),
        ("name=", ""),
        ("data=2024", Path("2024")),
        ("data=work/run #2/store", Path("work/run #2/store")),
        ("data=~/a", Path("~/a")),
        ("cache=0.3", Path("0.3")),
        ("cache=null", Path("null")),
        ("cache=", None),
        ("label=true", "true"),
        ("label=", None),
        ("tags=true,007 , a b,", ("true", "007", "a b")),
        ("tags=2024", ("2024",)),
        ("tags=['a,b', ' c', '007']", ("a,b", " c", "007")),
        ("tags=", ()),
        ("words.a=1", {"a": "1"}),
    ],
)
def test_values_are_what_they_look_like(text: str, expected: Any) -> None:
    value: Any = load(text)
    for part in text.partition("=")[0].removesuffix(".a").split("."):
        value = getattr(value, part)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["nme=x"],
            r"unknown setting nme \(did you mean name\?\); known here: data, name, mode, tags, cache, ",
        ),
        (
            ["inner.rat=1"],
            r"unknown setting inner\.rat \(did you mean inner\.rate.*\); known here: rate, steps",
        ),
        (
            ["spare.rat=1"],
            r"unknown setting spare\.rat \(did you mean spare\.rate.*\); known here: rate, steps",
        ),
        (["rate=1"], r"unknown setting rate \(did you mean inner\.rate or spare\.rate\?\); known here: data, "),
        (["colour=1"], r"unknown setting colour; known here: data, "),
        (["name.x=1"], r"^name: .*string"),
        (["inner=3"], r"^inner: .*\(got 3\)"),
        (["inner.rate=fast"], r"^inner\.rate: .*number.*\(got 'fast'\)"),
        (["inner.rate=0"], r"^inner\.rate: .*greater than 0"),
        (["inner.rate=.nan"], r"^inner\.rate: "),
        (["inner.rate=.inf"], r"^inner\.rate: .*finite"),
        (["inner.steps=1.5"], r"^inner\.steps: .*integer"),
        (["inner.bounds=[1]"], r"^inner\.bounds\.1 is required"),
        (["inner.bounds=[1, x]"], r"^inner\.bounds\.1: .*\(got 'x'\)"),
        (["mode=maybe"], r"^mode: .*'off' or 'on'.*\(got 'maybe'\)"),
        (["is_fast=perhaps"], r"^is_fast: .*boolean"),
        (["data="], r"^data: expected a path; write \. for the working directory \(got ''\)"),
        (["name=forbidden"], r"^configuration: name must be another$"),
        (["inner.rate=-1", "nme=x"], r"inner\.rate: .*; unknown setting nme"),
        (["name"], r"cannot read override 'name'; write key=value"),
        (["=3"], r"cannot read override '=3'"),
        (["inner..rate=3"], r"cannot read override"),
        (["tags=[1"], r"cannot read the list tags=\[1; after \[ it is YAML: write \['A','B'\]"),
        (["inner.steps=[1"], r"cannot read the value of override 'inner\.steps=\[1'"),
        (["inner.steps=!!int x"], r"cannot read the value of override"),
        (["is_fast=!!bool x"], r"cannot read the value of override"),
        (["inner.steps=!!timestamp x"], r"cannot read the value of override"),
        (["inner.steps=!!python/object:os.system x"], r"cannot read the value of override"),
    ],
)
def test_errors_name_the_key_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        load(*overrides)
    assert "\n" not in str(raised.value)


def test_what_is_required_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^data is required$"):
        config.load(Outer, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {name: [}", "is not valid YAML"),
        ("train:\n\tname: x", "is not valid YAML"),
        ("train: {name: !!int x}", "is not valid YAML"),
        ("trian: {name: x}", r"unknown job trian \(did you mean train\?\); jobs are"),
        ("name: x", "expected a mapping from job names"),
        ("- train", "expected a mapping from job names"),
        ("just text", "expected a mapping from job names"),
        ("train: [1]", "expected a mapping from job names"),
        ("train: {1: 2}", "1: Keys should be strings"),
    ],
)
def test_a_bad_file_is_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "bad.yaml", text)
    with pytest.raises(ConfigError, match=message) as raised:
        load(files=[path])
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value) or "Keys" in message


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"train: {name: \xe9}")
    for path in (tmp_path / "missing.yaml", tmp_path, tmp_path / "latin.yaml"):
        with pytest.raises(ConfigError, match=f"cannot read configuration {path}"):
            load(files=[path])


@given(st.text(max_size=30))
def test_any_text_is_an_override_or_an_error_that_is_reported(text: str) -> None:
    for override in (text, f"name={text}", f"inner={text}"):
        try:
            load(override)
        except ConfigError as error:
            assert str(error)


names = st.text(max_size=20) | st.sampled_from(
    ["off", "null", "~", "1e5", "3", "0x1F", "1:30", "2024-01-01", "007", "a: b", "#", " x ", "é", "true", ".5", "<<"]
)
texts = names | st.sampled_from(
    ["[::1]:50051", "run #2", "'", '"', "\\", "$HOME", "a=b", "[a", "a,b", "-x", "\n", "!a"]
)
outers = st.builds(
    Outer,
    data=st.sampled_from([Path("a b"), Path("/x:y"), Path("ü")]) | texts.filter(bool).map(Path),
    name=names.filter(lambda name: name != "forbidden"),
    mode=st.sampled_from(["off", "on"]),
    tags=st.lists(names, max_size=3).map(tuple),
    cache=st.none() | texts.filter(bool).map(Path),
    label=st.none() | texts,
    words=st.dictionaries(st.sampled_from(["a", "b_1"]), texts, max_size=2),
    is_fast=st.booleans(),
    inner=st.builds(Inner, rate=st.floats(1e-300, 1e300), steps=st.integers(-(10**12), 10**12)),
    spare=st.none() | st.builds(Inner, bounds=st.none() | st.tuples(st.floats(-9, 9), st.floats(-9, 9))),
)


@given(outers)
def test_the_resolved_configuration_is_read_back_as_it_was(outer: Outer) -> None:
    assert config.validate(Outer, config._parse(config.dump(outer))) == outer
    assert yaml.safe_load(config.dump(outer)) == outer.model_dump(mode="json") | {"tags": list(outer.tags)} | {
        "spare": outer.spare and outer.spare.model_dump(mode="json")
    }


@given(outers)
def test_settings_as_overrides_are_read_back_as_they_were(outer: Outer) -> None:
    overrides = config.as_overrides(outer.model_dump(mode="json"))
    assert config.load(Outer, "train", [], overrides) == outer
    assert not any("\n" in override for override in overrides if override.startswith(("tags=", "inner.", "spare")))


@given(outers)
def test_what_is_not_as_by_default_says_all(outer: Outer) -> None:
    """A log's line leaves out what is as by default, and read back it gives the same settings."""
    line = config.in_force(outer)
    assume("://" not in line)  # passwords in it are left out
    assert config.load(Outer, "train", [], shlex.split(line)) == outer


def test_a_line_of_settings_holds_no_defaults() -> None:
    class Paced(config.Section):
        seconds: float = 60
        name: str = "x"

    assert config.in_force(Paced()) == ""
    assert config.in_force(Paced(seconds=5, name="y")) == "seconds=5.0 name=y"


def test_no_text_is_none_where_that_is_allowed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "train: {label: '', name: ''}")
    assert (load(files=[path]).label, load(files=[path]).name) == (None, "")
    assert load("label=", files=[write(tmp_path / "b.yaml", "train: {label: x}")]).label is None
    with pytest.raises(ConfigError, match="expected a path"):
        config.validate(Outer, {"data": ""})


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("epochs", ["optim.epochs", "final.epochs"]),
        ("optim.lr", ["optim.learning_rate"]),
        ("lr", ["optim.learning_rate"]),
        ("window", ["distill.window"]),
        ("distil.window", ["distill.window"]),
        ("temp", ["distill.temperature"]),
        ("learning-rate", ["optim.learning_rate"]),
        ("learning_rte", ["optim.learning_rate"]),
        ("final.epochs", ["final.epochs", "optim.epochs"]),
        ("w", []),
        ("xyz", []),
        ("", []),
    ],
)
def test_what_somebody_may_have_meant(wanted: str, expected: list[str]) -> None:
    keys = ["data", "optim.epochs", "optim.learning_rate", "distill.window", "distill.temperature", "final.epochs"]
    assert config.similar(wanted, keys) == expected


def test_the_saved_configuration_starts_the_same_job(tmp_path: Path) -> None:
    outer = load("name=1e5", "mode=off", "tags=1,é", "inner.rate=3e-4")
    config.save(outer, "train", tmp_path / "run" / "config.yaml")
    assert config.load(Outer, "train", [tmp_path / "run" / "config.yaml"]) == outer


def test_describe_lists_every_setting_with_its_docstring() -> None:
    described = {key: (default, doc) for key, default, doc in config.describe(Outer)}
    assert list(described) == [
        "data", "name", "mode", "tags", "cache", "label", "words", "is_fast",
        "inner.rate", "inner.steps", "inner.bounds", "spare.rate", "spare.steps", "spare.bounds",
    ]  # fmt: skip
    assert described["data"] == ("required", "The store.")
    assert described["name"] == ("a", "The name, over two lines.")
    assert described["inner.rate"] == ("0.001", "How fast.")


def test_a_default_is_shown_as_one_types_it() -> None:
    shown = [f"{key}={default}" for key, default, _ in config.describe(Outer) if default != "required"]
    assert load(*(override for override in shown if not override.startswith("spare"))) == load()


def test_settings_do_not_change() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        load().name = "b"  # type: ignore[misc]


def test_validate_reports_what_load_reports() -> None:
    with pytest.raises(ConfigError, match="unknown setting nme"):
        config.validate(Outer, {"data": "d", "nme": 1})
    assert config.validate(Inner, {"rate": 2}).rate == 2
    with pytest.raises(ConfigError, match="rate"):
        config.validate(Inner, {"rate": math.nan})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {data: !!int ,ki}", "not valid YAML"),
        ("train: {data: !!float ''}", "not valid YAML"),
        ("train: " + "[" * 5000, "not valid YAML"),
        ("train: &a {data: *a}", "aliases counted each time"),
        (
            "train:\n  a0: &a0 [x]\n"
            + "".join(f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)),
            "aliases counted each time",
        ),
    ],
    ids=["int", "float", "deep", "endless", "bomb"],
)
def test_yaml_that_is_made_to_hurt_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        config.load(Section, "train", [path])
