#!/bin/sh
# Makes the weights of models/smol, from data to scores:
#
#   training/smol/run.sh ../shared/data [minutes of training]     # on a CPU
#   training/smol/run.sh ../shared/data --card [seconds]          # on a GPU, from examples made ahead
#   training/smol/run.sh ../shared/data --smoke    # every step, tiny, in runs/smol-smoke
#
# A rerun goes on where it was: readings, training and checkpoints are kept under runs/smol.
#
#   scans, PDFs ──readings──▶ rows with doubt ──mistakes──▶ a model of the reader's mistakes
#   SmolLM2 ──own_words──▶ what it answers without a page
#   all of these, rendered pages and tables ──mix, pages──▶ train ──▶ export ──▶ weights
#                                                      └──shards──▶ train_gpu ──▶ weights
#   validation splits ──readings, asked──▶ answer ──▶ judge
set -eu
data=$1
way=${2:-160}
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
python=${PYTHON:-.venv/bin/python}
out=runs/smol receipts=10000 contracts=10000 charts=10000 prompts=300 scored=10000 rendered=20 rank=64
minutes=$way seconds=${3:-240} device=cuda examples=1000 tokens=14000000 batch=49152 documents=10000 given=
if [ "$way" = --smoke ]; then
    out=runs/smol-smoke receipts=3 contracts=1 charts=3 prompts=8 scored=2 rendered=2 rank=4
    minutes=1 seconds=20 device=cpu examples=12 tokens=3000 batch=600 documents=1 given="--tasks sroie wtq --given reader true nothing"
fi
mkdir -p "$out"
step() { module=$1; shift; "$python" -m "training.smol.$module" --out "$out" "$@"; }
with_data() { module=$1; shift; step "$module" --data "$data" "$@"; }

with_data readings --kind sroie --limit "$receipts"
with_data mistakes
with_data readings --kind chartqa --limit "$charts"
if [ "$way" != --card ]; then
    [ -f "$out/instructions.jsonl" ] || with_data own_words --count "$prompts"
    with_data readings --kind deepform --limit "$contracts"
    with_data train --minutes "$minutes" --rank "$rank" --alpha $((2 * rank))
    "$python" -m training.smol.export --checkpoint "$out/checkpoint.pt" --out "$out/weights.safetensors"
fi
if [ "$way" = --card ] || [ "$way" = --smoke ]; then
    with_data shards --tokens "$tokens" --examples "$examples"
    step train_gpu --shards "$out/shards" --device "$device" --seconds "$seconds" --tokens "$batch" \
        --rank "$rank" --alpha $((2 * rank)) --prompts "$prompts" --log-every 1
fi
for kind in sroie chartqa deepform; do
    with_data readings --kind "$kind" --split val --limit "$scored"
done
with_data asked --limit "$scored" $given
step answer --weights "$out/weights.safetensors" --device "$device" --documents "$documents"
with_data judge
with_data score --rendered "$rendered"
with_data score --rendered "$rendered" --weights "$out/weights.safetensors"
