#!/usr/bin/env bash
# Packs into a folder what a machine with a GPU and without network needs to run this project (about 35 MB).
#   bash tests/gpu/pack.sh .gpu     here, in the repository's root and the environment of `make setup`; 2 minutes
#   bash tests/gpu/run.sh .gpu      there, in a copy of the repository with .gpu
# That machine must have Python 3.12 on x86-64 with torch (2.11 or newer, CUDA), numpy, accelerate, safetensors,
# huggingface-hub, torchmetrics, tensorboard, scipy, pandas, matplotlib, imageio, pillow, PyYAML, rich, tqdm, jinja2, psutil,
# joblib, packaging, pytest with its plugins timeout and xdist. What is packed comes in the versions of constraints.txt.
# Left out for its size: imageio-ffmpeg (so no videos there).
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:?usage: bash tests/gpu/pack.sh FOLDER}
work=$(mktemp -d)
site=$work/site
mkdir -p "$folder/libraries"

platforms=()
for platform in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
  platforms+=(--platform "${platform}_x86_64")
done
packages=(metaworld mujoco gymnasium farama-notifications glfw pyopengl tensordict torchrl hoptorch pyvers orjson
  cloudpickle hydra-core omegaconf hydra-joblib-launcher importlib-metadata argcomplete lazy-importer pydantic pydantic-core
  annotated-types typing-inspection)
pinned=()
for package in "${packages[@]}"; do
  pinned+=("$(grep -i "^${package//-/[-_]}==" constraints.txt)")
done
python3 -m pip install --quiet --no-deps --no-compile --only-binary=:all: --python-version 3.12 --implementation cp \
  "${platforms[@]}" --target "$site" "${pinned[@]}"
antlr=$(grep -i '^antlr4-python3-runtime==' constraints.txt) # there is no wheel of it
python3 -m pip wheel --quiet --no-deps --wheel-dir "$work" "$antlr"
python3 -m pip install --quiet --no-deps --no-compile --target "$site" "$work"/antlr4*.whl
python3 tests/gpu/textures.py shrink "$site/metaworld"
tar -C "$site" -cJf "$folder/site.tar.xz" .
rm -r "$work"

# OpenGL's loaders; the driver of the GPU is that machine's own.
lists=$(mktemp -d)
mkdir -p "$lists/partial"
options=(-oAPT::Architecture=amd64 -oAPT::Architectures=amd64 "-oDir::State::Lists=$lists")
apt-get "${options[@]}" -qq update
(cd "$folder/libraries" && apt-get "${options[@]}" -qq download libegl1 libglvnd0 libopengl0 libgl1)
du -sh "$folder"
