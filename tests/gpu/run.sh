#!/usr/bin/env bash
# Shows this project on a machine with a GPU and without network. Run it in the repository's root, with what pack.sh packed.
#   bash tests/gpu/run.sh FOLDER tests      installs, then what must hold (tests of the marker gpu): parts, then whole runs; at most 5 minutes
#   bash tests/gpu/run.sh FOLDER figures    the rates of the pieces, alone on the machine, what runs do by default first; at most 6 minutes
#   bash tests/gpu/run.sh FOLDER study      recorded data of many tasks, pretraining, and runs side by side; 7 minutes
# Results are written to $OUT (default: results beside FOLDER). LIMIT is the number of seconds that `study` may take.
set -uo pipefail
folder=$(realpath "${1:?usage: bash tests/gpu/run.sh FOLDER tests|figures|study}")
part=${2:?usage: bash tests/gpu/run.sh FOLDER tests|figures|study}
out=${OUT:-$folder/../results}
mkdir -p "$out"
work=$(mktemp -d)
site=$HOME/.mbrl-site
began=$SECONDS

say() { echo "[$((SECONDS - began)) s] $*"; }
left() { echo $((${LIMIT:-480} - (SECONDS - began))); }

install() {
  for package in "$folder"/libraries/*.deb; do dpkg -x "$package" /; done
  ldconfig
  mkdir -p "$site"
  python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter="data")' \
    "$folder/site.tar.xz" "$site" || exit 1
  python3 tests/gpu/textures.py restore "$site/metaworld" || exit 1
  PYTHONPATH=$site:$PWD python3 -c "import mbrl.training, mbrl.agents.dreamer, worldmodel.ivideogpt.model" # writes the .pyc files
  touch "$site/.done"
}

[ -e "$site/.done" ] || install
vendor=/usr/local/nvidia/share/glvnd/egl_vendor.d/10_nvidia.json
[ -e /usr/share/glvnd/egl_vendor.d/10_nvidia.json ] || [ ! -e $vendor ] || export __EGL_VENDOR_LIBRARY_FILENAMES=$vendor
export PYTHONPATH=$site:$PWD MUJOCO_GL=egl PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
say "installed"

describe() {
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  lscpu | grep -E 'Model name|^CPU\(s\)'
  python3 -c "
import torch; print('torch', torch.__version__)
from mujoco import GLContext; c = GLContext(64, 64); c.make_current()
from OpenGL import GL; print('OpenGL:', GL.glGetString(GL.GL_RENDERER).decode())"
}

tests() {
  local runs="killed or deterministic or workers or pretrained" code=0
  some parts 100 "not ($runs)" || code=1
  some runs 180 "$runs" || code=1
  return $code
}

# FILE SECONDS EXPRESSION: the tests that it chooses; the file has the outcome of each, up to the time's end.
some() {
  timeout "$2" python3 -m pytest -v -p no:cacheprovider -p no:warnings -n 15 --timeout 120 -m gpu -k "$3" tests/gpu >"$out/tests-$1.txt" 2>&1
  local code=$?
  grep -E '^(FAILED|ERROR|E  )|passed|failed' "$out/tests-$1.txt" | tail -40 | cut -c1-250
  return $code
}

figures() {
  timeout 320 python3 -m mbrl bench --device cuda >"$out/figures.txt" 2>&1
  cat "$out/figures.txt"
  timeout 40 python3 -m mbrl bench rendering >>"$out/figures.txt" 2>&1
}

# SETTINGS: more of them for every run, such as cuda_graphs=false.
train() {
  # shellcheck disable=SC2086
  timeout "$(left)" python3 -m mbrl train experiment=few_steps video=false ${SETTINGS:-} \
    "run_dir=$work/runs/\${agent.name}/\${env.task}/seed\${seed}" "$@" >"$work/$(echo "$*" | tr -c 'a-z0-9\n' _).log" 2>&1
}

# The tasks of the studies are held out of the recorded data.
record() {
  local held="window-close|door-close|plate-slide|faucet-close|coffee-button|drawer-open|button-press|handle-press-side"
  local tasks
  tasks=$(python3 -c "
from metaworld.env_dict import ALL_V3_ENVIRONMENTS as E
print('\n'.join(name.removesuffix('-v3') for name in E))" | grep -vxE "$held")
  # shellcheck disable=SC2086
  CUDA_VISIBLE_DEVICES= timeout "$(left)" python3 -m mbrl collect $tasks --episodes "${EPISODES:-21}" \
    --policy scripted noisy random --workers "${WORKERS:-10}" --output "$work/data" >"$work/collect.log" 2>&1
  say "recorded $(find "$work/data" -type f | wc -l) files"
}

pretrain() {
  timeout "$(($(left) - 5))" python3 -m mbrl pretrain "data={$work/data: 1.0}" "output=$work/nano" threads=1 workers=3 \
    batch_size="${BATCH:-64}" tokenizer.steps="${TOKENIZER:-3000}" transformer.steps="${TRANSFORMER:-6000}" validation.every=1000 \
    video.every=0 checkpoint_every=1000 log_every=50 >"$work/pretrain.log" 2>&1
}

study() {
  for seed in 3 4 5; do
    train agent=mbpo_ivideogpt env.task=coffee-button seed=$seed &
  done
  (for seed in 6 7; do train agent=drqv2 env.task=coffee-button seed=$seed; done) &
  (record && pretrain) &
  wait
  say "trained"
  tail -n 2 "$work"/*.log | cut -c1-200 | tail -40
  (cd "$work" && tar czf "$out/results.tgz" $(ls -d runs/*/*/*/{eval.csv,metrics.jsonl,config.yaml} nano/*/metrics.jsonl \
    nano/metrics.jsonl nano/config.yaml nano/*/config.json ./*.log 2>/dev/null))
  for half in tokenizer transformer; do
    weights=$(ls "$work/nano/$half"/*.safetensors 2>/dev/null | head -1)
    [ -n "$weights" ] && cp "$weights" "$out/nano-$half.safetensors"
  done
}

describe 2>&1 | tee "$out/machine.txt"
"$part"
code=$?
say "$part: exit code $code"
exit $code
