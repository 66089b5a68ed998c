"""One table of all reference runs: in step with the folders, and read as the README says."""

from pathlib import Path

import pytest

import mbrl
from mbrl.errors import UserError
from mbrl.results.read_curves import read_curves
from mbrl.results.reference import COLUMNS, FOLDER, TABLE, table
from tests.readmes import ROOT, blocks


def test_the_table_holds_what_the_folders_hold() -> None:
    assert TABLE.read_text() == table(), "write it anew: python -m mbrl.results.reference"
    assert TABLE.stat().st_size < 200_000


def test_results_are_a_data_frame_of_every_curve() -> None:
    frame = mbrl.results()
    assert tuple(frame.columns) == COLUMNS == (*COLUMNS[:-1], "return")
    types = {"seed": "int64", "step": "int64", "success": "float64", "return": "float64"}
    assert frame.dtypes[[*types]].to_dict() == types
    assert frame.success.between(0, 1).all() and not frame.drop(columns="return").isna().any(axis=None)
    assert not frame.duplicated(["study", "agent", "task", "seed", "step"]).any()
    found = {agent: set(rows.protocol) for agent, rows in frame[frame.study == "published"].groupby("agent")}
    assert found == {"sac": {"tdmpc2"}, "tdmpc2": {"tdmpc2"}}
    assert set(frame[frame.study != "published"].protocol) == {"default"}
    for curve in read_curves([FOLDER / "sac" / "hammer.csv", FOLDER / "levers" / "drqv2, tanh" / "window-close.csv"]):
        rows = frame[(frame.agent == curve.agent) & (frame.task == curve.task) & (frame.seed == int(curve.seed))]
        assert rows[rows.study.isin(["main", "levers"])].success.tolist() == pytest.approx(curve.success.tolist())


def test_returns_are_there_where_a_run_wrote_them() -> None:
    frame = mbrl.results().set_index(["study", "agent", "task", "seed", "step"])
    assert frame.loc[("dmc", "sac", "cartpole-swingup", 0, 60_000), ["success", "return"]].tolist() == [0.0, 873.2]
    assert frame["return"].loc["published"].isna().all() and frame["return"].loc["dmc"].notna().all()


def test_the_example_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    found = [block.text for block in blocks(ROOT / "mbrl" / "README.md") if "mbrl.results()" in block.text]
    assert len(found) == 1
    exec(found[0], {})
    assert "100000    0.850000" in capsys.readouterr().out


def test_other_tables_are_no_curves(tmp_path: Path) -> None:
    curve = tmp_path / "study" / "sac, slow" / "mw-reach.csv"
    curve.parent.mkdir(parents=True)
    (tmp_path / "study" / "table.csv").write_text("measure,step,value\nmse,1,2\n")
    with pytest.raises(UserError, match="holds no curves"):
        table(tmp_path)
    curve.write_text("step,success,seed\n200,0.50,1\n100,0,1\n100,1.0,0\n")
    (tmp_path / "study" / "protocol.txt").write_text("ivideogpt\n")
    assert table(tmp_path).splitlines()[1:] == [
        'study,"sac, slow",reach,ivideogpt,0,100,1,', 'study,"sac, slow",reach,ivideogpt,1,100,0,',
        'study,"sac, slow",reach,ivideogpt,1,200,0.5,',
    ]  # fmt: skip
    curve.write_text("step,success,seed,return\n100,0,1,-2.50\n")
    assert table(tmp_path).splitlines()[1:] == ['study,"sac, slow",reach,ivideogpt,1,100,0,-2.5']


def test_the_module_of_results_stays_a_module() -> None:
    from mbrl import results
    from mbrl.results.curves import Curve

    assert results is mbrl.results and results.curves.Curve is Curve
