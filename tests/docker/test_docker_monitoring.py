"""Prometheus and Grafana files: they are well formed, and speak of metrics that the daemon has.

The last test runs a real Prometheus against a real daemon and a trainer, and asks it every question of the dashboards.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import TeacherStarter, write_tiny_teacher
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from support.random_city import write_random_store

from shared.store import Store
from student_trainer.runs.prometheus import Prometheus
from teacher_server.answers.table import AnswerTable
from teacher_server.metrics import CODES, METHODS, CutReason, Metrics
from teacher_server.serve.lifecycle import State

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKER = REPOSITORY / "docker"
RULES = DOCKER / "prometheus" / "rules.yml"
RULE_TESTS = REPOSITORY / "tests/docker/rules_test.yml"
DASHBOARDS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text()) for path in sorted((DOCKER / "grafana/dashboards").glob("*.json"))
}
PANELS = [panel for board in DASHBOARDS.values() for panel in board["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
EXPRESSIONS = [expression for _, expression in QUERIES] + [alert["expr"] for alert in ALERTS]
SCRAPE_LABELS = {"job", "instance", "namespace"}
TRAINER_VALUES = ("loss", "loss_next_road", "loss_time", "loss_kl", "accuracy", "teacher_accuracy")
"""That a run with a teacher measures; the last test shows that it does."""


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian package prometheus)")
    return found


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def registered() -> dict[str, set[str]]:
    """Labels of every sample that the daemon exposes, by the sample's name."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.model.info({"revision": "", "dtype": "", "device": "", "fingerprint": ""})
    with metrics.request("Score"):
        pass
    metrics.batch_cut(CutReason.IDLE, 1, 1, 1)
    metrics.watch(AnswerTable(1024, np.arange(9), sot=0))
    metrics.build.info({"version": "", "revision": ""})
    metrics.follow(["serving"], lambda: "serving")
    metrics.certificate_end.labels("certificate").set(1)
    samples: dict[str, set[str]] = {"up": set()}
    for family in registry.collect():
        for sample in family.samples:
            samples.setdefault(sample.name, set()).update(sample.labels)
    return samples


def registered_by_a_trainer() -> dict[str, set[str]]:
    """The same of a trainer."""
    values = {f"train/{name}": 1.0 for name in (*TRAINER_VALUES, "teacher_queue_ms", "teacher_compute_ms")}
    values |= {"val/accuracy": 1.0, "perf/teacher_retries": 0.0, "perf/step_ms": 1.0}
    sink = Prometheus("127.0.0.1:0", {"run": "", "revision": "", "store": ""}, 0)
    try:
        sink.write(1, values)
        with urllib.request.urlopen(f"http://{sink.address}/metrics", timeout=30) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
    finally:
        sink.close()
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


@pytest.fixture(scope="module")
def exposed() -> dict[str, set[str]]:
    """What both expose."""
    return registered() | registered_by_a_trainer()


def concrete(expression: str) -> str:
    """A dashboard's query with its variables filled in."""
    for variable in ("$instance", "$trainer", "$teacher"):
        expression = expression.replace(variable, ".*")
    return expression.replace("$__rate_interval", "5s")


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_metrics_and_labels_are_the_programs(expression: str, exposed: dict[str, set[str]]) -> None:
    samples = exposed
    bare = re.sub(r'"[^"]*"', '""', expression)  # without what labels are compared with
    names = re.findall(r"\b(?:teacher_\w+|trainer_\w+|process_\w+|up\b)", bare)
    assert names
    assert set(names) <= set(samples)
    known = SCRAPE_LABELS.union(*(samples[name] for name in names))
    grouped = [label.strip() for by in re.findall(r"\bby \(([^)]*)\)", expression) for label in by.split(",")]
    matched = re.findall(r"[{,]\s*(\w+)\s*!?=", bare)
    assert set(grouped) | set(matched) <= known


def test_reasons_that_alerts_name_are_the_daemon_s() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    reasons = {sample.labels.get("reason") for family in registry.collect() for sample in family.samples}
    named = {reason for expression in EXPRESSIONS for reason in re.findall(r'reason="(\w+)"', expression)}
    assert named
    assert named <= reasons
    codes = {code for expression in EXPRESSIONS for code in re.findall(r'code=~"([\w|]+)"', expression)}
    assert codes == {"INTERNAL|UNKNOWN"}
    assert {"INTERNAL", "UNKNOWN"} <= set(CODES)
    states = {state for expression in EXPRESSIONS for state in re.findall(r'state="(\w+)"', expression)}
    assert states == {"serving"}
    assert "serving" in {state.value for state in State}


def test_every_code_has_a_series_before_the_first_request() -> None:
    """A rate would not see the first failure if it was the first of its series, too."""
    registry = CollectorRegistry()
    Metrics(registry)
    for method in METHODS:
        for code in CODES:
            assert registry.get_sample_value("teacher_requests_total", {"method": method, "code": code}) == 0


def test_promtool_takes_the_configuration() -> None:
    run(tool("promtool"), "check", "config", DOCKER / "prometheus" / "prometheus.yml")


def test_every_alert_fires_on_what_it_is_for_and_is_silent_short_of_it() -> None:
    checks = [check for test in yaml.safe_load(RULE_TESTS.read_text())["tests"] for check in test["alert_rule_test"]]
    names = {alert["alert"] for alert in ALERTS}
    assert {check["alertname"] for check in checks if check.get("exp_alerts")} == names
    assert {check["alertname"] for check in checks if not check.get("exp_alerts")} == names
    run(tool("promtool"), "test", "rules", RULE_TESTS)


def test_alerts_are_of_a_job_and_namespace() -> None:
    """What is counted over teachers is counted over those of one city."""
    for alert in ALERTS:
        for grouped in re.findall(r"\bby \(([^)]*)\)", alert["expr"]):
            assert {"namespace", "job"} <= {label.strip() for label in grouped.split(",")}, alert["alert"]
        assert "sum(" not in alert["expr"] and "count(" not in alert["expr"], alert["alert"]


def test_every_alert_has_a_section_of_the_runbook() -> None:
    text = (REPOSITORY / "docs/runbook.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert [alert["alert"] for alert in ALERTS] == list(sections)
    for alert in ALERTS:
        assert alert["annotations"]["runbook"] == f"docs/runbook.md#{alert['alert'].lower()}"
        assert sections[alert["alert"]].strip()


def test_the_dashboard_s_queries_are_promql(tmp_path: Path) -> None:
    rules = [{"record": f"q{i}", "expr": concrete(expression)} for i, (_, expression) in enumerate(QUERIES)]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    run(tool("promtool"), "check", "rules", path)


def test_alerts_say_what_and_how_bad() -> None:
    for alert in ALERTS:
        assert alert["labels"]["severity"] in {"warning", "critical"}
        assert alert["annotations"]["summary"]


def test_the_manual_explains_every_alert_and_metric() -> None:
    manual = (REPOSITORY / "docs" / "monitoring.md").read_text()
    assert [alert["alert"] for alert in ALERTS if f"`{alert['alert']}`" not in manual] == []
    own = {name for name in registered_by_a_trainer() if not re.match("trainer_(train|val|perf)_", name)}
    exposed = {name for name in {*registered(), *own} if name.startswith(("teacher_", "trainer_"))}
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed if not name.endswith("_created")}
    assert sorted(name for name in names if not re.search(rf"`{name}(\{{[^`]*)?`", manual)) == []


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_are_described_and_do_not_overlap(name: str) -> None:
    everything = DASHBOARDS[name]["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    assert all(panel["title"] and panel["description"] for panel in everything if panel["type"] != "row")
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_grafana_finds_the_data_source_and_the_dashboard() -> None:
    provisioning = DOCKER / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/teacher.yaml").read_text())["providers"]
    grafana = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["grafana"]
    mounts = dict(volume.split(":")[:2][::-1] for volume in grafana["volumes"])
    assert mounts[provider["options"]["path"]] == "./grafana/dashboards"
    assert mounts["/etc/grafana/provisioning"] == "./grafana/provisioning"
    assert Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]).name == "teacher.json"
    assert len({board["uid"] for board in DASHBOARDS.values()}) == len(DASHBOARDS) == 2
    for board in DASHBOARDS.values():
        variables = {variable["name"]: variable for variable in board["templating"]["list"]}
        assert variables["datasource"]["current"]["value"] == source["uid"]
        used = set(re.findall(r"\$(\w+)", json.dumps([panel.get("targets", []) for panel in board["panels"]])))
        assert used - {"__rate_interval"} == variables.keys() - {"datasource"}
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in PANELS)


def types_check(*dashboards: Path) -> subprocess.CompletedProcess[str]:
    """Grafana's own types judge dashboards; skips where they are not installed."""
    folder = DOCKER / "grafana/check"
    if shutil.which("node") is None or not (folder / "node_modules").exists():
        pytest.skip("Grafana's types are not installed (make dashboards)")
    command = ["node", "check.mjs", *map(str, dashboards)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def test_grafana_s_own_types_take_the_dashboards() -> None:
    done = types_check(*sorted((DOCKER / "grafana/dashboards").glob("*.json")))
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 dashboards, 0 complaints\n", "")


def test_grafana_s_own_types_name_what_is_misspelt(tmp_path: Path) -> None:
    faults: list[tuple[str, tuple[str, ...], str, Any]] = [
        ("editabel", (), "editabel", True),
        ("shceme", ("heatmap", "options", "color"), "mode", "shceme"),
        ("lineWidht", ("timeseries", "fieldConfig", "defaults", "custom"), "lineWidht", 1),
        ("showHeaders", ("table", "options"), "showHeaders", True),
        ("lines", ("stat", "options"), "graphMode", "lines"),
        ("timeserie", ("timeseries",), "type", "timeserie"),
    ]
    for number, (_, where, key, value) in enumerate(faults):
        board = json.loads(json.dumps(DASHBOARDS["teacher"]))
        place = board
        if where:
            place = next(panel for panel in board["panels"] if panel["type"] == where[0])
            for name in where[1:]:
                place = place[name]
        place[key] = value
        (tmp_path / f"{number}.json").write_text(json.dumps(board))
    done = types_check(*sorted(tmp_path.glob("*.json")))
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith(str(tmp_path))]
    assert len(lines) == len(faults)
    assert [word for (word, *_), line in zip(faults, lines, strict=True) if f'{word}"' not in line] == []


def test_the_types_are_of_the_grafana_that_runs() -> None:
    image = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["grafana"]["image"]
    package = json.loads((DOCKER / "grafana/check/package.json").read_text())["devDependencies"]
    locked = json.loads((DOCKER / "grafana/check/package-lock.json").read_text())["packages"]
    assert package["@grafana/schema"] == image.rpartition(":")[2]
    assert locked["node_modules/@grafana/schema"]["version"] == package["@grafana/schema"]
    assert all(entry["integrity"].startswith("sha512-") for name, entry in locked.items() if name)


@contextlib.contextmanager
def running_prometheus(targets: dict[str, str], folder: Path) -> Iterator[str]:
    """A Prometheus with our rules that scrapes a target of each job five times a second; yields its address."""
    config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "200ms", "scrape_timeout": "200ms", "evaluation_interval": "200ms"}
    config["rule_files"] = [str(RULES)]
    assert {job["job_name"] for job in config["scrape_configs"]} == targets.keys()
    for job in config["scrape_configs"]:
        job |= {"scrape_interval": "200ms", "scrape_timeout": "200ms"}
        job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    log = folder / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [
                tool("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                "--web.listen-address=127.0.0.1:0",
            ],
            stderr=stream,
        )
    try:
        yield _listening_address(process, log)
    finally:
        process.terminate()
        process.wait()


def _listening_address(process: subprocess.Popen[bytes], log: Path) -> str:
    for _ in range(300):
        if found := re.search(r'msg="Listening on" address=(127\.0\.0\.1:\d+)', log.read_text()):
            return found[1]
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def ask(prometheus: str, expression: str) -> list[Any]:
    query = urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(f"http://{prometheus}/api/v1/query?{query}", timeout=10) as response:
        result: list[Any] = json.load(response)["data"]["result"]
    return [series for series in result if series["value"][1] != "NaN"]


def query_teacher(address: str) -> None:
    """Asks one question with the daemon's own client."""
    command = [sys.executable, "-m", "teacher_server", "query", "--address", address]
    run(*command, "--history", "1,2,3", "--candidates", "4,5,6")


@contextlib.contextmanager
def running_trainer(store: Store, teacher: str, folder: Path) -> Iterator[str]:
    """A run that lasts until the block ends; yields where it tells its metrics."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"
    command = [
        sys.executable, "-m", "student_trainer", "train", "--data", str(store.path), "--teacher", teacher,
        "--out", str(folder / "run"), "model.road_id_dim=8", "model.road_attr_dim=2", "optim.epochs=100000",
        "optim.batch_size=8", "batch.train_trips=16", "batch.val_trips=8", "runtime.device=cpu", "runtime.threads=1",
        "log.every=1", "log.checkpoint_every=0", "log.tensorboard=false", f"log.prometheus={place}",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        yield place
        assert process.poll() is None, "the run has ended"
    finally:
        process.kill()
        process.wait()


@pytest.mark.integration
def test_a_real_prometheus_answers_every_query(running_teacher: TeacherStarter, tmp_path: Path) -> None:
    tool("prometheus")
    store = write_random_store(tmp_path / "store", trips=30)
    write_tiny_teacher(tmp_path / "teacher", tokeniser=store.tokeniser)
    with (
        running_teacher(tmp_path / "teacher", "cache.mib=0") as teacher,  # every query is computed anew
        running_trainer(store, teacher.address, tmp_path) as trainer,
    ):
        assert teacher.metrics is not None
        with running_prometheus({"teacher": teacher.metrics, "trainer": trainer}, tmp_path) as prometheus:
            unanswered = set(QUERIES)
            for _ in range(60):
                query_teacher(teacher.address)
                unanswered = {query for query in unanswered if not ask(prometheus, concrete(query[1]))}
                if not unanswered:
                    break
            assert unanswered == set()
            assert ask(prometheus, "ALERTS") == []
