#!/usr/bin/env bash
# All runs of this page, from the repository's root: FL_DATA_DIR=... bash experiments/momentum/compressed/run.sh
#
#   SEEDS, TUNING  seeds of the results (0,1,2), and of what chooses the rates (100)
#   OUT            folder for the runs (outputs/compressed)
#   FL             the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/compressed} SEEDS=${SEEDS:-0,1,2}
COMMON=(+experiment=momentum) KEY=strategy.clients CASES=10,2
# shellcheck source=experiments/tuned.sh
. "$(dirname "$0")/../../tuned.sh"

compressed=(compressor=ef_topk_int8 compressor.compressor.stages.0.density=0.05)
whole=strategy.rule._target_=experiments.momentum.compressed.whole.WholeControlVariates
arm() { # name, arguments
  tune "$@" client.rule.lr=0.01,0.03,0.1,0.3
  final "$@"
}

arm uncompressed strategy=scaffold
arm control_variates_whole strategy=scaffold "${compressed[@]}" $whole
arm all_compressed strategy=scaffold "${compressed[@]}"
arm fedavg_compressed strategy=fedavg aggregator.weighted=false "${compressed[@]}"
