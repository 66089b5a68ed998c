"""The lines that `mbrl train` prints at the start and the end of a run, read from its run folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from mbrl.processes.usage import usable_cores
from mbrl.results.status import duration
from mbrl.run_folder.config import foreign_names, load_settings, read_config
from mbrl.run_folder.paths import CHECKPOINTS, CONFIG, METRICS
from mbrl.run_folder.state import CURVE, last_row, latest_env_steps

FILES = {  # file of a finished run -> what it is
    CURVE: "learning curve",
    "imagination.mp4": "real | imagined | difference",
    "eval.csv": "success and return of each evaluation",
    METRICS: "losses and all other metrics",
    CHECKPOINTS: "weights, and all that the run resumes from",
}


def opening(folder: Path, config: Any) -> str:
    """One line that says whether a run starts or resumes, and from which env step."""
    steps, total = latest_env_steps(folder), int(config.total_env_steps)
    if steps:
        return f"resuming {folder} from env step {steps} of {total}"
    return f"training {config.agent.name} on {config.env.get('task', 'its task')} for {total} env steps, into {folder}"


def summary(folder: Path, config_dir: Path | None = None) -> str:
    """Success (or the return, see `judged_curve`), time, files and useful commands of a finished run, several lines.

    Args:
        folder: the run folder.
        config_dir: the user's own folder of configurations, if the run was started with one.
    """
    from mbrl.results.run_metric import judged_curve  # imports scipy, which the start of a run does without

    curve = judged_curve(folder)
    last, best = float(curve.success[-1]), int(curve.success.argmax())
    digits = 2 if curve.metric == "success" else 1
    row = last_row(folder / METRICS)
    took = f" in {duration(row['wall_time'])}" if "wall_time" in row else ""
    busy = row.get("time/busy_cores")
    took += f", {busy:.1f} of {usable_cores()} cores busy" if took and isinstance(busy, float) else ""
    width = max(map(len, FILES)) + 2
    here, seeds = shlex.quote(str(folder)), shlex.quote(str(folder.parent))
    own = "DIR" if config_dir is None else shlex.quote(str(config_dir))
    allowed = f" --config-dir {own}" if config_dir is not None or foreign_names(read_config(folder / CONFIG)) else ""
    commands = {
        f"mbrl evaluate {here} --video film.mp4{allowed}": "evaluate it again, and record a video",
        f"mbrl plot {seeds}": "draw the curves of all its seeds",
        f"mbrl report {seeds}": "write one page of figures, videos and settings",
        f"tensorboard --logdir {here}": "browse all metrics",
    }
    if (folder / "imagination.mp4").exists() and not load_settings(folder).get("env.snapshots"):
        commands[f"mbrl predict {here} DATA{allowed}"] = "measure the world model on a folder of episodes"
    command_width = max(map(len, commands)) + 2
    return "\n".join(
        [
            f"{curve.agent} on {curve.task}: {int(curve.steps[-1])} env steps{took}",
            f"{curve.metric} {last:.{digits}f} in the last evaluation; highest {curve.success[best]:.{digits}f}, "
            f"at env step {int(curve.steps[best])}",
            f"in {folder}:",
            *(f"  {name:<{width}}{what}" for name, what in FILES.items() if (folder / name).exists()),
            "next:",
            *(f"  {command:<{command_width}}{what}" for command, what in commands.items()),
        ]
    )
