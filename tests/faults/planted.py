"""Code planted in every file that a command reads: it is never run, and the command says one clear line or goes on."""

import io
import json
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from mbrl.prediction.predict import load_model
from tests.demonstrations import write_toy
from tests.faults.runs import RUN, Result, command, in_child
from tests.run_folders import latest_checkpoint

AGENT, SHORT_AGENT = "mbpo_ivideogpt", "sac"
Plant = Callable[[Path, Any], Any]


class Code:
    """Code that makes the folder `mark` when it is run, by unpickling `pickled` or by calling `function` with it."""

    function = "os.mkdir"

    def __init__(self, mark: Path) -> None:
        self.mark = mark
        self.pickled = pickle.dumps(self)

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def _raw(file: Path, code: Code) -> None:
    file.write_bytes(code.pickled)


def _torch_file(file: Path, code: Code) -> None:
    """As torch.save writes it."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", code.pickled)
        archive.writestr("archive/version", "3\n")


def _object_array(file: Path, code: Code) -> None:
    """As numpy writes an array of objects into an archive."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    with zipfile.ZipFile(file, "w") as archive:
        for key in ("image", "action", "reward"):
            archive.writestr(f"{key}.npy", header.getvalue() + code.pickled)


def _memory_map(folder: Path, code: Code) -> None:
    """As TensorDict writes data that are no tensors; a folder of that kind is made where there was a file."""
    if folder.is_file():
        folder.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "other.pickle").write_bytes(code.pickled)
    kind = "<class 'tensordict.tensorclass.NonTensorData'>"
    meta = {"_type": kind, "_non_tensordict": {"data": None, "_metadata": None}, "shape": [], "device": "None"}
    (folder / "meta.json").write_text(json.dumps(meta))


def _tags(file: Path, code: Code) -> None:
    file.write_text(f"{file.read_text()}more: !!python/object/apply:{code.function} ['{code.mark}']\n")


def _target(place: str) -> Plant:
    def plant(file: Path, code: Code) -> None:
        config = OmegaConf.load(file)
        OmegaConf.update(config, place, {"_target_": code.function, "_args_": [str(code.mark)]}, force_add=True)
        OmegaConf.save(config, file)

    return plant


def _package(file: Path, code: Code) -> None:
    """A package that an environment's id names, of the simulator as a world model, which has one of its own."""
    file.with_name("planted_package.py").write_text(f"import os\nos.mkdir({str(code.mark)!r})\n")
    sys.path.append(str(file.parent))
    config = OmegaConf.load(file)
    env = {"_target_": "mbrl.envs.registered.make_env", "id": "planted_package:Any-v0"}
    config.agent.world_model = {"_target_": "mbrl.envs.simulator_model.SimulatorModel", "env": env}
    OmegaConf.save(config, file)


RUN_FILES: dict[str, Plant] = {
    "checkpoints/LATEST/manifest.json": _raw,
    "checkpoints/LATEST/values.json": _raw,
    "checkpoints/LATEST/policy.safetensors": _raw,
    "checkpoints/LATEST/world_model.safetensors": _raw,
    "checkpoints/LATEST/optimizers.safetensors": _torch_file,
    "checkpoints/LATEST/imagination.safetensors": _memory_map,
    "checkpoints/LATEST/replay.safetensors": _raw,
    "checkpoints/LATEST/random.safetensors": _torch_file,
    "checkpoints/LATEST/components/policy": _memory_map,
    "replay": _memory_map,
    "replay/pixels.memmap": _memory_map,
    "replay/state.memmap": _raw,
    "config.yaml": _raw,
    "config.yaml (tags)": _tags,
    "config.yaml (env)": _target("env"),
    "config.yaml (policy)": _target("agent.policy"),
    "config.yaml (inner)": _target("agent.world_model.tokenizer"),
    "config.yaml (package)": _package,
    "metrics.jsonl": _raw,
    "eval.csv": _raw,
    "starts.jsonl": _raw,
}
SHORT_RUN_FILES = ("checkpoints/LATEST/policy.safetensors", "config.yaml (policy)")
SHORT_VERBS = ("train", "evaluate")


def tried(folder: Path, *, short: bool) -> Iterator[Result]:
    """Every verb on a run folder with planted code, and on data and weights with planted code."""
    folder.mkdir(parents=True)
    run, code = folder / "run", Code(folder / "it-was-run")
    train = [*RUN, f"agent={SHORT_AGENT if short else AGENT}"]
    ended = in_child(command("train", *train, f"run_dir={run}"), folder / "log.txt")
    assert ended.code == 0, ended.errors
    assert pickle.loads(code.pickled) is None and code.mark.exists(), "the planted code works"
    code.mark.rmdir()
    data = write_toy(folder / "data", 3, episode_length=20, resolution=64)
    for name, plant in RUN_FILES.items():
        if short and name not in SHORT_RUN_FILES:
            continue
        copy = folder / "copy"
        shutil.copytree(run, copy)
        plant(copy / name.split(" ")[0].replace("LATEST", latest_checkpoint(copy).name), code)
        for verb, arguments in _run_verbs(copy, run, data, train).items():
            if not short or verb in SHORT_VERBS:
                yield _try(folder, f"{verb}: {name}", command(verb, *arguments), code.mark)
        shutil.rmtree(copy)
    cases = _data_cases(folder, data)
    if short:
        cases = {name: case for name, case in cases.items() if case[2] in SHORT_VERBS}
    else:
        cases |= _weights_cases(folder, data, run)
    for name, (path, plant, verb, arguments) in cases.items():
        plant(path, code)
        yield _try(folder, f"{verb}: {name}", command(verb, *arguments), code.mark)


def _run_verbs(copy: Path, run: Path, data: str, train: list[str]) -> dict[str, list[str | Path]]:
    return {
        "train": [*train, f"run_dir={copy}"],
        "evaluate": [copy, "--episodes", "1"],
        "predict": [copy, data, "--segments", "1", "--videos", "0"],
        "status": [copy],
        "compare": [copy, run],
        "plot": [copy, "--output", copy / "plot.png"],
        "report": [copy],
    }


Case = tuple[Path, Plant, str, list[str | Path]]  # the file that is made, how, and the verb with its arguments


def _data_cases(folder: Path, data: str) -> dict[str, Case]:
    """Demonstrations, and data to pretrain on."""
    episodes, archives = folder / "episodes", folder / "archives"
    for path in (episodes, archives):
        shutil.copytree(data, path)
    first = next(episodes.glob("*.safetensors"))
    pretrain = [f"output={folder / 'out'}", "strict=true", "threads=1", "workers=0", "device=cpu"]
    demos = [*RUN, "agent=drqv2", "replay.demo_share=0.5", f"run_dir={folder / 'demonstrated'}"]
    return {
        "an episode": (first, _raw, "train", [*demos, f"replay.demos={episodes}"]),
        "an episode, again": (first, _raw, "pretrain", [f"data={{{episodes}: 1.0}}", *pretrain]),
        "an archive": (archives / "a.npz", _object_array, "train", [*demos, f"replay.demos={archives}"]),
        "an archive, again": (archives / "a.npz", _object_array, "pretrain", [f"data={{{archives}: 1.0}}", *pretrain]),
    }


def _weights_cases(folder: Path, data: str, run: Path) -> dict[str, Case]:
    """What `mbrl predict` reads."""
    weights, episodes, judged = folder / "weights", folder / "episodes", ["--segments", "1", "--videos", "0"]
    load_model(run).model.save_pretrained(weights)  # type: ignore[operator]
    first = next(episodes.glob("*.safetensors"))
    network = next((weights / "transformer").glob("*.safetensors"))
    return {
        "an episode, once more": (first, _raw, "predict", [run, episodes, *judged]),
        "I3D": (folder / "i3d.pt", _torch_file, "predict", [run, data, *judged, "--fvd", folder / "i3d.pt"]),
        "LPIPS": (folder / "vgg.pth", _torch_file, "predict", [run, data, *judged, "--lpips", folder / "vgg.pth"]),
        "pretrained weights": (network, _raw, "predict", [weights, data, *judged]),
        "their settings": (weights / "tokenizer" / "config.json", _raw, "predict", [weights, data, *judged]),
    }


def _try(folder: Path, name: str, work: Callable[[], object], mark: Path) -> Result:
    ended = in_child(work, folder / "log.txt")
    kind = "code planted in a file"
    if mark.exists():
        mark.rmdir()
        return Result(kind, name, "failed", "the planted code was run")
    if ended.is_one_clear_line:
        return Result(kind, name, "one line", ended.error_lines[0])
    if ended.code == 0:
        return Result(kind, name, "survived")
    return Result(kind, name, "failed", f"exit code {ended.code}: {ended.errors[-1500:]}")
