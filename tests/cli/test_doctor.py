"""The doctor's findings: versions against the pins, and one command for each thing that is missing."""

import shutil
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest

from mbrl.cli import doctor


def test_installed_versions_are_the_pinned_ones() -> None:
    for name in doctor.NAMED_PACKAGES:
        check = doctor._package(name)
        assert not check.needed, check
        assert not check.fix


def test_a_wrong_or_missing_package_comes_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", lambda name: "0.1")
    wrong = doctor._package("torch")
    monkeypatch.setattr(doctor, "version", absent)
    missing = doctor._package("torch")
    assert wrong.needed and wrong.found == "0.1; ==2.13.0 is needed"
    assert missing.needed and missing.found == "missing"
    assert wrong.fix == missing.fix
    assert wrong.fix.endswith("-m pip install 'torch==2.13.0'")


def test_with_packages_missing_nothing_that_rests_on_them_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: "0.1")
    assert [check.name for check in doctor.checks()] == ["python", "mbrl", *doctor.NAMED_PACKAGES, "compiler", "disk"]


@pytest.mark.parametrize(("free", "mends", "needed"), [(50e9, False, False), (2e9, True, False), (5e8, True, True)])
def test_little_disk_is_said_and_too_little_fails(
    monkeypatch: pytest.MonkeyPatch, free: float, mends: bool, needed: bool
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    check = doctor._disk(doctor.Path.cwd())
    assert (bool(check.fix), check.needed) == (mends, needed)


def test_opengl_that_does_not_work_comes_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = SimpleNamespace(returncode=1, stdout="", stderr="Traceback\nImportError: no libEGL")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *arguments, **options: failed)
    monkeypatch.setenv("MUJOCO_GL", "egl")
    check = doctor._rendering()
    assert check.needed
    assert check.found == "egl fails: ImportError: no libEGL"
    assert check.fix == "sudo apt-get install -y libegl1 libgl1 libopengl0"


@pytest.mark.parametrize("chosen", ["osmesa", "nonsense", "glfw"])
def test_an_opengl_that_was_chosen_and_does_not_work_is_unset(monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    failed = SimpleNamespace(returncode=1, stdout="", stderr="AttributeError: no library")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *arguments, **options: failed)
    monkeypatch.setenv("MBRL_REFUSED_MUJOCO_GL", chosen)
    check = doctor._rendering()
    assert check.needed and check.fix == "unset MUJOCO_GL"


def test_rendering_in_software_beside_a_gpu_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    done = SimpleNamespace(returncode=0, stdout="llvmpipe (LLVM 15.0.6, 256 bits)\n", stderr="")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *arguments, **options: done)
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not doctor._rendering().fix, "there is no GPU"
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    check = doctor._rendering()
    assert "although there is a GPU" in check.found and not check.needed
    assert check.fix.startswith("export __EGL_VENDOR_LIBRARY_FILENAMES=/")


@pytest.mark.parametrize(
    ("cuda", "driver", "visible", "found", "fix"),
    [
        (None, "535.54.03\n", None, "it was built for the CPU alone", "-m pip install --force-reinstall torch==2.13.0"),
        (
            "13.0", "550.54.14\n550.54.14\n", None, "built for CUDA 13.0, which needs driver 580; here is 550.54.14",
            "update the NVIDIA driver to 580 or newer, or install a build of torch for an older version of CUDA",
        ),
        ("12.6", "470.82\n", None, "which needs driver 525; here is 470.82", "update the NVIDIA driver to 525"),
        ("13.0", "No devices were found\n", None, "here is No devices were found", "update the NVIDIA driver to 580"),
        ("13.0", "580.65.06\n", "", "CUDA_VISIBLE_DEVICES is ''", "unset CUDA_VISIBLE_DEVICES"),
        ("14.1", "600.1\n", None, "the driver is 600.1", "-c 'import torch; torch.cuda.init()' shows the reason"),
    ],
)  # fmt: skip
def test_a_gpu_that_torch_does_not_use_is_noticed_with_the_reason(
    cuda: str | None, driver: str, visible: str | None, found: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = SimpleNamespace(returncode=0, stdout=driver, stderr="")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *arguments, **options: done)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", cuda)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    check = doctor._gpu()
    assert check.found.startswith("there is a GPU, but torch 2.13.0") and found in check.found
    assert fix in check.fix and not check.needed


def test_a_gpu_that_torch_has_no_kernels_for_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="Tesla V100", total_memory=2**35)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda gpu: properties)
    monkeypatch.setattr("mbrl.device.lacking_kernels", lambda gpu: "no kernels: install a build of torch")
    assert doctor._gpu() == doctor.Check("gpu", "Tesla V100, 32 GiB; no kernels", "install a build of torch")
    monkeypatch.setattr("mbrl.device.lacking_kernels", lambda gpu: None)
    assert doctor._gpu() == doctor.Check("gpu", "Tesla V100, 32 GiB")


def test_rates_are_measured_on_the_real_environment() -> None:
    check = doctor._rate("simulation", "env steps/s in state", pixels=False, steps=5)
    assert int(check.found.split()[0]) > 0
