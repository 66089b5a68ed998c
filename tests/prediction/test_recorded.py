"""A model is measured on episodes that it was not trained on, also where its weights were pretrained on the folder."""

from pathlib import Path

import pytest

from mbrl.data.mixture import split_place
from mbrl.errors import UserError
from mbrl.prediction.recorded import held_out_share, load_episodes
from tests.demonstrations import write_episodes
from tests.fakes import episode

COUNT = 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Episodes whose frames all have the brightness of their number."""
    recorded = [episode(0, steps=2) for _ in range(COUNT)]
    for number, records in enumerate(recorded):
        records["pixels"].fill_(number)
    write_episodes(tmp_path / "data", recorded)
    return tmp_path / "data"


def weights(folder: Path, data: Path, every: int = 500) -> Path:
    """A folder as `mbrl pretrain` leaves it."""
    folder.mkdir()
    (folder / "config.yaml").write_text(f"data:\n  {data}: 1.0\nvalidation: {{every: {every}, share: 0.3}}\n")
    return folder


def test_only_the_validation_split_of_its_own_data_is_held_out(folder: Path, tmp_path: Path) -> None:
    share = held_out_share(weights(tmp_path / "model", folder), folder)
    assert share == 0.3
    found = {int(records["pixels"][0, 0, 0, 0]) for records in load_episodes(folder, 8, share)}
    names = sorted(file.stem for file in folder.iterdir())
    assert found == {number for number, name in enumerate(names) if split_place(name) < 0.3}
    assert 0 < len(found) < COUNT == len(load_episodes(folder, 8))


def test_other_data_are_held_out_altogether(folder: Path, tmp_path: Path) -> None:
    assert held_out_share(weights(tmp_path / "model", tmp_path / "others"), folder) == 1.0
    assert held_out_share(tmp_path, folder) == 1.0, "weights without a configuration, such as published ones"


def test_a_model_that_was_trained_on_all_episodes_is_not_measured_on_them(folder: Path, tmp_path: Path) -> None:
    share = held_out_share(weights(tmp_path / "model", folder, every=0), folder)
    with pytest.raises(UserError, match="trained on all 30 episodes"):
        load_episodes(folder, 8, share)
