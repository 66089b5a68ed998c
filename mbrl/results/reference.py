"""Every curve of runs/reference as one table, to compare with without running anything: `mbrl.results()`.

`python -m mbrl.results.reference` writes the table anew from the folders.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mbrl.errors import UserError
from mbrl.results.read_curves import PROTOCOL_FILE
from mbrl.run_folder.config import ADDED
from mbrl.run_folder.files import csv_text, write_atomically

if TYPE_CHECKING:
    from pandas import DataFrame

FOLDER = Path(__file__).parents[2] / "runs" / "reference"
TABLE = Path(__file__).with_suffix(".csv")  # inside the package, so that an installed one has it
MAIN = "main"  # the study of the folders AGENT/ directly in FOLDER
CURVE = "step,success,seed"  # first line of a file of curves, or its beginning; FOLDER has other tables too
LATER = f"{CURVE},return"  # of runs that wrote their returns beside


class Row(NamedTuple):
    """One evaluation of one seed, as text.

    Attributes:
        study: folder in runs/reference, `main` for the folders directly in it, `published` for curves of others.
        agent: name of the agent, and in what its settings differ.
        task: name of the task.
        protocol: one of configs/protocol.
        seed: seed of the run.
        step: env steps, action repeat counted.
        success: success rate in [0, 1] over the evaluation episodes; 0 where an environment reports none (study `dmc`).
        return_: mean return of these episodes, column `return`; empty where the run did not write it.
    """

    study: str
    agent: str
    task: str
    protocol: str
    seed: str
    step: str
    success: str
    return_: str


COLUMNS = tuple(name.removesuffix("_") for name in Row._fields)  # no field can be called return


def load_results() -> DataFrame:
    """The curves of all reference runs, and published ones, one row for each evaluation of each seed.

    Returns:
        A pandas DataFrame with the columns `COLUMNS`, see `Row`; `seed` and `step` are int64, `success` and `return`
        are float64. `return` is NaN where the run did not write it.
    """
    import pandas

    numbers = {"seed": "int64", "step": "int64", "success": "float64", "return": "float64"}
    return pandas.read_csv(TABLE, dtype=numbers)


def table(folder: Path = FOLDER) -> str:
    """The table as CSV, from the files STUDY/AGENT/TASK.csv and AGENT/TASK.csv in a folder.

    Raises:
        UserError: the folder holds no curves.
    """
    rows = [row for file in sorted(folder.rglob("*.csv")) for row in _rows(folder, file)]
    if not rows:
        raise UserError(f"{folder} holds no curves (files AGENT/TASK.csv that begin with {CURVE})")
    ordered = sorted(rows, key=lambda row: (row.study, row.agent, row.task, int(row.seed), int(row.step)))
    return csv_text(COLUMNS, ordered)


def _rows(folder: Path, file: Path) -> Iterator[Row]:
    with file.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        if ",".join(reader.fieldnames or ()) not in (CURVE, LATER):
            return
        *studies, agent, name = file.relative_to(folder).parts
        place = file.parents[1] / PROTOCOL_FILE
        protocol = place.read_text(encoding="utf-8-sig").strip() if place.is_file() else ADDED["protocol.name"]
        task = name.removesuffix(".csv").removeprefix("mw-")
        for row in reader:
            success = f"{float(row['success']):g}"
            earned = f"{float(row['return']):g}" if row.get("return") else ""
            yield Row("/".join(studies) or MAIN, agent, task, protocol, row["seed"], row["step"], success, earned)


if __name__ == "__main__":
    write_atomically(TABLE, table())
