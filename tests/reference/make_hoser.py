"""Makes `hoser/` anew: runs the public HOSER on a small synthetic city, and keeps what it computed.

python tests/reference/make_hoser.py CLONE OUT

CLONE is a git clone of the public repository. Its code runs as it stands, on the CPU in float32; what is replaced in
the text of its scripts is named in `ON_THE_CPU` and `ONE_CITY`. It needs pandas, scikit-learn, shapely, haversine and
loguru beside this project's environment. The page of this folder says what the files are.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from shared.store import Store
from student_trainer.demo_city import run as demo_city
from student_trainer.demo_city.config import DemoCityConfig, TripCounts
from student_trainer.prepare import run as prepare
from student_trainer.prepare.config import PrepareConfig, ZonesConfig

REVISIONS = {"freqs": "92c6ca1", "timeemb": "0158295^"}
"""By temporal encoder: the newest revision, and the last one before the encoder was replaced."""
NAME = "San_Francisco"
"""Of the data set: its scripts clean road classes for two names only."""
TRIPS = TripCounts(train=300, val=60, test=60)
ZONES = 16
HIDDEN, HEADS, LAYERS, LONGEST, BATCH, EPOCHS = 32, 2, 2, 128, 16, 6
ON_THE_CPU = {"f'cuda:{args.cuda}'": "'cpu'"}
ONE_CITY = {"['Beijing', 'Porto', 'San_Francisco']": f"['{NAME}']"}
INPUTS = (
    *("trace_road_id", "temporal_info", "trace_distance_mat", "trace_time_interval_mat", "trace_len"),
    *("destination_road_id", "candidate_road_id", "metric_dis", "metric_angle"),
)
LABELS = ("candidate_len", "road_label", "timestamp_label")


def main() -> None:
    """Writes OUT/city, and OUT/hoser_KIND.pth and OUT/reference_KIND.npz of each kind."""
    clone, out = (Path(word).resolve() for word in sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    make_city(out / "city")
    for kind, revision in REVISIONS.items():
        with tempfile.TemporaryDirectory() as name:
            unpack(clone, revision, Path(name))
            weights, arrays = train(Path(name), out / "city")
        torch.save(weights, out / f"hoser_{kind}.pth")
        np.savez_compressed(out / f"reference_{kind}.npz", **arrays)  # type: ignore[arg-type]


def make_city(folder: Path) -> None:
    """A synthetic city whose road classes are partly printed lists, with the zones of its roads."""
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as name:
        raw, store = Path(name, "raw"), Path(name, "store")
        demo_city.run(DemoCityConfig(out=raw, columns=12, rows=11, trips=TRIPS))
        folder.mkdir()
        for file in ("roadmap.rel", "train.csv", "val.csv", "test.csv"):
            shutil.copyfile(raw / file, folder / file)
        rows = list(csv.DictReader((raw / "roadmap.geo").read_text().splitlines()))
        for number, row in enumerate(rows):
            road_class = row["highway"]
            if number % 17 == 3:
                row["highway"] = f"['{road_class}', 'service']"
            elif number % 29 == 5:
                row["highway"] = f"['unclassified', '{road_class}']"
        with open(folder / "roadmap.geo", "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        prepare.run(PrepareConfig(raw=folder, out=store, zones=ZonesConfig(count=ZONES, min_roads=1)))
        zones = Store(store).network("road_zone")
    (folder / "road_network_partition").write_text("".join(f"{zone}\n" for zone in zones))


def unpack(clone: Path, revision: str, folder: Path) -> None:
    """The files of a revision."""
    command = ["git", "-C", str(clone), "archive", "--format=tar", revision]
    packed = subprocess.run(command, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")


def train(code: Path, city: Path) -> tuple[dict[str, torch.Tensor], dict[str, np.ndarray]]:
    """Trains with the public scripts; returns the best weights, and what the model computes of 16 trips.

    Args:
        code: the unpacked public repository.
        city: the synthetic city; its zone matrix is written there.
    """
    data = code / "data" / NAME
    shutil.copytree(city, data)
    run_script(code / "data" / "preprocess" / "get_zone_trans_mat.py", [], ONE_CITY)
    shutil.copyfile(data / "zone_trans_mat.npy", city / "zone_trans_mat.npy")
    config = code / "config" / f"{NAME}.yaml"
    config.write_text(yaml.safe_dump(smaller(yaml.safe_load(config.read_text()))))
    names = run_script(code / "train.py", ["--dataset", NAME], ON_THE_CPU)
    model, network = names["model"], names["config"].road_network_encoder_feature
    batch = next(iter(names["val_dataloader"]))
    with torch.no_grad():
        logits, seconds = model(*batch[: len(INPUTS)])
    arrays = dict(zip((*INPUTS, *LABELS), (part.numpy() for part in batch), strict=True))
    arrays |= {
        "logits": logits.numpy(),
        "time_pred": seconds.numpy(),
        "road_embedding": model.all_road_embedding_after_gnn.detach().numpy(),
        "zone_embedding": model.all_zone_embedding_after_gnn.detach().numpy(),
        "mu": np.float32(names["timestamp_label_array_log1p_mean"]),
        "sigma": np.float32(names["timestamp_label_array_log1p_std"]),
        **{f"road_attr_{name}": value for name, value in vars(network.road_attr).items()},
        "road_edge_index": network.road_edge_index,
        "intersection_attr": network.intersection_attr,
        "zone_edge_index": network.zone_edge_index,
        "zone_edge_weight": network.zone_edge_weight,
        "val_acc_per_epoch": np.array(names["metrics_list"]),
        "test_next_step_acc": np.float64(names["test_next_step_correct_cnt"] / names["test_next_step_total_cnt"]),
        "test_time_error": np.float64(names["test_time_pred_mape_sum"] / names["test_time_pred_total_cnt"]),
    }
    return model.state_dict(), arrays


def smaller(config: dict[str, Any]) -> dict[str, Any]:
    """The public settings of a data set, at a size that fits into a repository."""
    encoder = config["road_network_encoder_config"]
    encoder |= {"road_id_emb_dim": HIDDEN // 2, "zone_id_num_embeddings": ZONES}
    encoder |= {f"{name}_emb_dim": HIDDEN // 8 for name in ("len", "type", "lon", "lat")}
    encoder |= {"intersection_emb_dim": HIDDEN, "zone_id_emb_dim": HIDDEN}
    config["trajectory_encoder_config"] |= {
        "hidden_dim": HIDDEN,
        "num_heads": HEADS,
        "num_layers": LAYERS,
        "max_len": LONGEST,
    }
    config["navigator_config"]["hidden_dim"] = HIDDEN
    config["optimizer_config"] |= {"batch_size": BATCH, "max_epoch": EPOCHS}
    return config


def run_script(script: Path, arguments: list[str], replaced: dict[str, str]) -> dict[str, Any]:
    """Runs a script of the public repository in its own folder; returns its names as they are at its end."""
    text = script.read_text(encoding="utf-8")
    for old, new in replaced.items():
        assert old in text, f"{script.name} has no {old}"
        text = text.replace(old, new)
    before = os.getcwd(), sys.argv, list(sys.path)
    for name in ("dataset", "utils", *(name for name in sys.modules if name.partition(".")[0] == "models")):
        sys.modules.pop(name, None)  # of another revision
    os.chdir(script.parent)
    sys.argv, sys.path[:0] = [script.name, *arguments], [str(script.parent)]
    names: dict[str, Any] = {"__name__": "__main__", "__file__": str(script)}
    main_module = sys.modules["__main__"]
    try:
        exec(compile(text, str(script), "exec"), names)  # noqa: S102
    finally:
        os.chdir(before[0])
        sys.argv, sys.path[:] = before[1], before[2]
        sys.modules["__main__"] = main_module
    return names


if __name__ == "__main__":
    main()
