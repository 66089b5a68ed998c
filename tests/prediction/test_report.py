"""The files of a report: every number, no nan in JSON, a picture of what there is."""

import csv
import json
import math
from pathlib import Path

from mbrl.prediction.report import draw, write_report
from mbrl.prediction.summary import Row

ROWS = [
    Row("psnr", 20.0, [21.0, 19.0]),
    Row("psnr_zero", 18.0, [20.0, 16.0]),
    Row("reward_error", 0.0, [0.0, 0.0]),
    Row("success_precision", math.nan),
]


def test_tables_hold_every_number(tmp_path: Path) -> None:
    paths = write_report(tmp_path / "new", ROWS, {"lpips": "no weights"}, {"horizon": 2})
    assert {path.name for path in paths} == {path.name for path in (tmp_path / "new").iterdir()}
    table = json.loads((tmp_path / "new" / "table.json").read_text())
    assert table["settings"] == {"horizon": 2} and table["left_out"] == {"lpips": "no weights"}
    assert table["measures"]["psnr"] == {"value": 20.0, "by_step": [21.0, 19.0]}
    assert table["measures"]["success_precision"] == {"value": None}
    with (tmp_path / "new" / "table.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert [(line["step"], float(line["value"])) for line in lines if line["measure"] == "psnr"] == [
        ("all", 20.0), ("1", 21.0), ("2", 19.0),
    ]  # fmt: skip
    assert len(lines) == 10


def test_panels_are_those_with_a_course() -> None:
    figure = draw(ROWS)
    actions, reward = figure.axes
    assert actions.get_ylabel() == "PSNR (dB)" and reward.get_ylabel() == "mean absolute error"
    legend = actions.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["true actions", "zero actions"]
    assert [list(line.get_ydata()) for line in actions.get_lines()] == [[21.0, 19.0], [20.0, 16.0]]
    assert reward.get_ylim()[0] == 0.0
