#!/usr/bin/env bash
# All runs of this experiment: FL_DATA_DIR=... bash experiments/cdfl/run.sh
#
#   SEEDS  of the final runs, comma-separated (0,1,2); TUNING, another one, of the grids
#   OUT    folder for the runs (outputs/cdfl)
#   FL     the command (fl)
set -euo pipefail

HERE=$(dirname "${BASH_SOURCE[0]}")
OUT=${OUT:-outputs/cdfl} SEEDS=${SEEDS:-0,1,2}
KEY=partition.drift_s CASES=null
COMMON=(+experiment=cdfl)
# shellcheck source=../tuned.sh
source "$HERE/../tuned.sh"

contacts=(strategy.concurrency=null)
rounds=(strategy.fraction_train=1.0 personal.every=2)

tune cdfl strategy=cdfl "${contacts[@]}" client.rule.lr=0.1,0.3,1
tune fedasync strategy=fedasync "${contacts[@]}" client.rule.lr=0.1,0.3,1
tune fedsoft strategy=fedsoft "${rounds[@]}" client.rule.lr=0.1,0.3,1
tune ifca strategy=ifca "${rounds[@]}" client.rule.lr=0.1,0.3,1
tune local strategy=local personal.every=2 client.rule.lr=0.1,0.3,1

CASES=null,30
final cdfl strategy=cdfl "${contacts[@]}"
final fedasync strategy=fedasync "${contacts[@]}"
final fedsoft strategy=fedsoft "${rounds[@]}"
final local strategy=local personal.every=2
CASES=null
final ifca strategy=ifca "${rounds[@]}"

python "$HERE/../tuned.py" report "$OUT" "$HERE" fedasync "$KEY" time_s
