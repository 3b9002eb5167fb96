#!/bin/sh
# Makes the weights of models/smol, from data to scores:
#
#   training/smol/run.sh ../shared/data [minutes of training]
#   training/smol/run.sh ../shared/data --smoke    # every step, tiny, in runs/smol-smoke
#
# A rerun goes on where it was: readings, training and checkpoints are kept under runs/smol.
#
#   scans, PDFs ──readings──▶ rows with doubt ──mistakes──▶ a model of the reader's mistakes
#   SmolLM2 ──own_words──▶ what it answers without a page
#   all of these, rendered pages and tables ──mix, pages──▶ train ──▶ export ──▶ score
set -eu
data=$1
minutes=${2:-160}
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
python=${PYTHON:-.venv/bin/python}
out=runs/smol receipts=10000 contracts=10000 charts=10000 prompts=300 scored=15 rendered=20 rank=64
if [ "$minutes" = --smoke ]; then
    out=runs/smol-smoke receipts=3 contracts=1 charts=3 prompts=8 scored=2 rendered=2 rank=4
    minutes=1
fi
mkdir -p "$out"
step() { module=$1; shift; "$python" -m "training.smol.$module" --data "$data" --out "$out" "$@"; }

step readings --kind sroie --limit "$receipts"
step mistakes
[ -f "$out/instructions.jsonl" ] || step own_words --count "$prompts"
step readings --kind chartqa --limit "$charts"
step readings --kind deepform --limit "$contracts"
step readings --kind sroie --split val --limit "$scored"
step train --minutes "$minutes" --rank "$rank" --alpha $((2 * rank))
"$python" -m training.smol.export --checkpoint "$out/checkpoint.pt" --out "$out/weights.safetensors"
step score --receipts "$scored" --rendered "$rendered"
step score --receipts "$scored" --rendered "$rendered" --weights "$out/weights.safetensors"
