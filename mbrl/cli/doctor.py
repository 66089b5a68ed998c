"""`mbrl doctor`: check this machine, and give one command for each problem."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from mbrl.envs.opengl import CHOICE, EGL, chosen
from mbrl.processes.usage import usable_cores
from mbrl.run_folder.provenance import DISTRIBUTION, NAMED_PACKAGES

GL_PACKAGES = "libegl1 libgl1 libopengl0"  # as in the Makefile
REQUIRED_DISK = 1e9  # bytes; one run with checkpoints takes more
RECOMMENDED_DISK = 5e9  # bytes
# The oldest driver for each major version of CUDA, from the release notes of the CUDA toolkit.
DRIVERS = {"11": 450, "12": 525, "13": 580}
VISIBLE = "CUDA_VISIBLE_DEVICES"

GL_PROBE = """
from mujoco import GLContext
context = GLContext(64, 64)
if not context._context:
    raise SystemExit("it opens no window, which needs a display")
context.make_current()
from OpenGL import GL
print(GL.glGetString(GL.GL_RENDERER).decode())
"""


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Attributes:
        name: of the part of the machine or the package.
        found: its version, size or speed, or what is wrong with it.
        fix: what solves the problem, a command where one does; empty without a problem.
        needed: whether nothing works until the problem is solved.
    """

    name: str
    found: str
    fix: str = ""
    needed: bool = False


def checks() -> Iterator[Check]:
    """Run all checks, each after those that it depends on. Measuring the rates takes some seconds."""
    yield _python()
    installation = _installation()
    yield installation
    missing = installation.needed
    for name in NAMED_PACKAGES:
        check = _package(name)
        missing |= check.needed
        yield check
    yield _compiler()
    yield _disk(Path.cwd())
    if missing:
        return  # the remaining checks import these packages
    yield _cpu()
    yield _gpu()
    yield _bfloat16()
    rendering = _rendering()
    yield rendering
    yield _rate("simulation", "env steps/s in state", pixels=False)
    if not rendering.needed:
        yield _rate("rendering", "frames/s at 64 px, fast quality", pixels=True)


def _python() -> Check:
    found = ".".join(str(part) for part in sys.version_info[:3])
    if (3, 11) <= sys.version_info < (3, 14):
        return Check("python", found)
    fix = "rm -rf .venv && make setup PYTHON=python3.11"
    return Check("python", f"{found}; 3.11 to 3.13 is needed", fix, needed=True)


def _installation() -> Check:
    """Check that this project is installed; its metadata list the packages that it needs."""
    try:
        return Check("mbrl", version(DISTRIBUTION))
    except PackageNotFoundError:
        return Check("mbrl", "not installed", f"{sys.executable} -m pip install -e .", needed=True)


def _requirements() -> list[Requirement]:
    try:
        return [Requirement(line) for line in requires(DISTRIBUTION) or ()]
    except PackageNotFoundError:  # `_installation` reports it
        return []


def _package(name: str) -> Check:
    """Check the version of a package against the requirement in this project's metadata."""
    requirement = next((r for r in _requirements() if r.name == name), Requirement(name))
    fix = f"{sys.executable} -m pip install '{name}{requirement.specifier}'"
    try:
        found = version(name)
    except PackageNotFoundError:
        return Check(name, "missing", fix, needed=True)
    if requirement.specifier.contains(found, prereleases=True):
        return Check(name, found)
    return Check(name, f"{found}; {requirement.specifier} is needed", fix, needed=True)


def _compiler() -> Check:
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    if compiler:
        return Check("compiler", compiler)
    return Check("compiler", "no gcc: a package without a wheel cannot be built", "sudo apt-get install -y gcc")


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.0f} GB free in {folder}" if free >= 1e10 else f"{free / 1e9:.1f} GB free in {folder}"
    if free >= RECOMMENDED_DISK:
        return Check("disk", found)
    return Check("disk", found, "mbrl train run_dir=/a/larger/disk/run", needed=free < REQUIRED_DISK)


def _cpu() -> Check:
    import torch

    cores = usable_cores()
    return Check("cpu", f"{cores} cores, torch uses {torch.get_num_threads()} threads")


def _gpu() -> Check:
    import torch

    from mbrl.device import lacking_kernels

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        lacking, _, fix = (lacking_kernels(0) or "").rpartition(": ")
        return Check("gpu", f"{found}; {lacking}" if fix else found, fix)
    if shutil.which("nvidia-smi"):
        return _unused_gpu(torch.__version__, torch.version.cuda)
    return Check("gpu", "none: the CPU is used")


def _unused_gpu(release: str, cuda: str | None) -> Check:
    """Why torch does not use the GPU.

    Args:
        release: the version of torch.
        cuda: the version of CUDA that it was built for; None for the CPU alone.
    """
    found = f"there is a GPU, but torch {release} does not use it"
    if cuda is None:
        fix = f"{sys.executable} -m pip install --force-reinstall torch=={release.split('+')[0]}"
        return Check("gpu", f"{found}: it was built for the CPU alone", fix)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    asked = subprocess.run(query, capture_output=True, encoding="utf-8", errors="replace", check=False)
    driver = asked.stdout.strip().partition("\n")[0] if asked.returncode == 0 else ""
    needed = DRIVERS.get(cuda.split(".")[0])
    if needed and _major(driver) < needed:
        found = f"{found}: it was built for CUDA {cuda}, which needs driver {needed}; here is {driver or 'none'}"
        fix = f"update the NVIDIA driver to {needed} or newer, or install a build of torch for an older version of CUDA"
        return Check("gpu", found, fix)
    if VISIBLE in os.environ:
        return Check("gpu", f"{found}: {VISIBLE} is {os.environ[VISIBLE]!r}", f"unset {VISIBLE}")
    shows = f"{sys.executable} -c 'import torch; torch.cuda.init()'"
    return Check("gpu", f"{found}: it was built for CUDA {cuda}, the driver is {driver}", f"{shows} shows the reason")


def _major(driver: str) -> int:
    """The branch of a driver's version, such as 580 of 580.65.06; 0 for a text that is none."""
    return int(found[0]) if (found := re.match(r"\d+", driver)) else 0


def _bfloat16() -> Check:
    """Measure how much faster the CPU multiplies matrices in bfloat16 than in float32."""
    from worldmodel.ivideogpt.precision import LEAST_GAIN, bfloat16_gain

    gain = bfloat16_gain()
    verdict = "`precision: auto` uses it" if gain > LEAST_GAIN else "`precision: auto` uses float32"
    return Check("bfloat16", f"{gain:.2f} × the speed of float32 on the CPU; {verdict}")


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _rendering() -> Check:
    """Check that MuJoCo renders off screen."""
    backend = chosen()
    # In a separate process, because a GL library that failed to load cannot be loaded again in the same one.
    environment = {**os.environ, CHOICE: backend}
    command = [sys.executable, "-c", GL_PROBE]
    probe = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", errors="replace")
    if probe.returncode == 0:
        renderer = probe.stdout.strip()
        if _in_software(renderer) and (shutil.which("nvidia-smi") or _cuda_is_there()):
            found = f"{backend} renders in software ({renderer}) although there is a GPU"
            return Check("OpenGL", found, f"export __EGL_VENDOR_LIBRARY_FILENAMES={_nvidia_vendor_file()}")
        return Check("OpenGL", f"{backend} works: {renderer}")
    reason = probe.stderr.strip().rsplit("\n", 1)[-1]
    fix = f"sudo apt-get install -y {GL_PACKAGES}" if backend == EGL else f"unset {CHOICE}"
    return Check("OpenGL", f"{backend} fails: {reason}", fix, needed=True)


def _cuda_is_there() -> bool:
    import torch

    return torch.cuda.is_available()


def _in_software(renderer: str) -> bool:
    return any(name in renderer.lower() for name in ("llvmpipe", "softpipe", "swrast"))


def _nvidia_vendor_file() -> Path:
    """The file by which libglvnd finds NVIDIA's EGL; it comes with the driver, in the first folder if in neither."""
    places = [Path(root, "share/glvnd/egl_vendor.d/10_nvidia.json") for root in ("/usr", "/usr/local/nvidia")]
    return next((place for place in places if place.is_file()), places[0])


def _rate(name: str, unit: str, *, pixels: bool, steps: int = 100) -> Check:
    """Measure the speed of one environment under random actions, on one core."""
    from mbrl.envs.metaworld import make_env

    repeat = 1 if pixels else 2
    env = make_env(pixels=pixels, action_repeat=repeat)
    try:
        env.rollout(10)
        seconds = _seconds(lambda: env.rollout(steps))
    finally:
        env.close()
    return Check(name, f"{steps * repeat / seconds:.0f} {unit}")
