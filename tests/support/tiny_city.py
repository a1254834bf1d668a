"""A city small enough to compute by hand."""

from __future__ import annotations

from pathlib import Path

TINY = {
    # 0 -> 1 -> 2 along a street, 3 = 0 reversed, 4 turns off at the end of 0
    "roadmap.geo": """geo_id,coordinates,highway,length
0,"[[10.000, 50.000], [10.001, 50.000]]",residential,71.5
1,"[[10.001, 50.000], [10.002, 50.000]]","['unclassified', 'primary']",71.5
2,"[[10.002, 50.000], [10.002, 50.001], [10.003, 50.001]]",residential,182.7
3,"[[10.001, 50.000], [10.000, 50.000]]",residential,71.5
4,"[[10.001, 50.000], [10.001, 50.002]]",7,222.4
""",
    "roadmap.rel": "rel_id,type,origin_id,destination_id\n0,geo,0,4\n1,geo,0,1\n2,geo,1,2\n3,geo,0,3\n4,geo,3,0\n",
    "train.csv": """traj_id,rid_list,time_list
0,"0,1,2","2020-01-04T00:00:00Z,2020-01-04T00:00:10Z,2020-01-04T00:00:30Z"
1,"3,0,4","2020-01-04T23:59:50Z,2020-01-05T00:00:00Z,2020-01-05T00:00:00Z"
""",
    "val.csv": """traj_id,rid_list,time_list
0,"0,1","2020-01-04T00:00:00Z,2020-01-04T00:00:10Z"
""",
    "test.csv": """traj_id,rid_list,time_list
0,"3,0,1,2","2020-01-04T00:00:00Z,2020-01-04T00:00:10Z,2020-01-04T00:00:20Z,2020-01-04T00:00:20Z"
""",
}


def write_tiny_city(raw: Path, **changed: str) -> Path:
    """Writes five roads and four trips in HOSER format.

    Args:
        raw: directory to make.
        changed: `file__suffix=text` for a file that differs, as `roadmap__geo`.
    """
    raw.mkdir()
    for name, text in {**TINY, **{name.replace("__", "."): text for name, text in changed.items()}}.items():
        (raw / name).write_text(text)
    return raw
