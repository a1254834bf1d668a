"""Prometheus and Grafana files: they are well formed, and speak of metrics that the daemon has.

The last test runs a real Prometheus against a real daemon and asks it every question of the dashboard.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
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
from conftest import TeacherStarter
from prometheus_client import CollectorRegistry

from teacher_server.answers.table import AnswerTable
from teacher_server.metrics import CutReason, Metrics

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKER = REPOSITORY / "docker"
RULES = DOCKER / "prometheus" / "rules.yml"
DASHBOARD: dict[str, Any] = json.loads((DOCKER / "grafana/dashboards/teacher.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
EXPRESSIONS = [expression for _, expression in QUERIES] + [alert["expr"] for alert in ALERTS]
SCRAPE_LABELS = {"job", "instance"}


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
    samples: dict[str, set[str]] = {"up": set()}
    for family in registry.collect():
        for sample in family.samples:
            samples.setdefault(sample.name, set()).update(sample.labels)
    return samples


def concrete(expression: str) -> str:
    """A dashboard's query with its variables filled in."""
    return expression.replace("$instance", ".*").replace("$__rate_interval", "5s")


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_metrics_and_labels_are_the_daemon_s(expression: str) -> None:
    samples = registered()
    names = re.findall(r"\b(?:teacher_\w+|process_\w+|up\b)", expression)
    assert names
    assert set(names) <= set(samples)
    known = SCRAPE_LABELS.union(*(samples[name] for name in names))
    grouped = [label.strip() for by in re.findall(r"\bby \(([^)]*)\)", expression) for label in by.split(",")]
    matched = re.findall(r"[{,]\s*(\w+)\s*=", expression)
    assert set(grouped) | set(matched) <= known


def test_reasons_that_alerts_name_are_the_daemon_s() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    reasons = {sample.labels.get("reason") for family in registry.collect() for sample in family.samples}
    named = {reason for expression in EXPRESSIONS for reason in re.findall(r'reason="(\w+)"', expression)}
    assert named
    assert named <= reasons


def test_promtool_takes_the_configuration() -> None:
    run(tool("promtool"), "check", "config", DOCKER / "prometheus" / "prometheus.yml")


def test_every_alert_fires_on_what_it_is_for() -> None:
    tests = REPOSITORY / "tests/docker/rules_test.yml"
    assert all(f"alertname: {alert['alert']}\n" in tests.read_text() for alert in ALERTS)
    run(tool("promtool"), "test", "rules", tests)


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
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in registered() if name.startswith("teacher_")}
    names = {name for name in names if not name.endswith("_created")}
    assert sorted(name for name in names if not re.search(rf"`{name}(\{{[^`]*)?`", manual)) == []


def test_panels_are_described_and_do_not_overlap() -> None:
    everything = DASHBOARD["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    assert all(panel["title"] and panel["description"] for panel in PANELS)
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
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["current"]["value"] == source["uid"]
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in PANELS)


@contextlib.contextmanager
def running_prometheus(target: str, folder: Path) -> Iterator[str]:
    """A Prometheus with our rules that scrapes `target` five times a second; yields its address."""
    config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "200ms", "scrape_timeout": "200ms", "evaluation_interval": "200ms"}
    config["rule_files"] = [str(RULES)]
    config["scrape_configs"][0] |= {"scrape_interval": "200ms", "scrape_timeout": "200ms"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
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


@pytest.mark.integration
def test_a_real_prometheus_answers_every_query(
    running_teacher: TeacherStarter, tiny_teacher: Path, tmp_path: Path
) -> None:
    tool("prometheus")
    with running_teacher(tiny_teacher, "cache.mib=0") as teacher:  # every query is computed anew
        assert teacher.metrics is not None
        with running_prometheus(teacher.metrics, tmp_path) as prometheus:
            unanswered = set(QUERIES)
            for _ in range(20):
                query_teacher(teacher.address)
                unanswered = {query for query in unanswered if not ask(prometheus, concrete(query[1]))}
                if not unanswered:
                    break
            assert unanswered == set()
            assert ask(prometheus, "ALERTS") == []
