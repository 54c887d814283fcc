#!/usr/bin/env bash
# All runs of this experiment: FL_DATA_DIR=... bash experiments/buffers/run.sh
#
#   SEEDS, TUNING  seeds of the results (0,1,2), and of what chooses the rates (100)
#   OUT            folder for the runs (outputs/buffers)
#   FL             the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/buffers} SEEDS=${SEEDS:-0,1,2}
COMMON=(+experiment=buffers) KEY=fleet.client_slowdown.slowdowns CASES='[1.5,4,6.5],[1.5,4,65]'
# shellcheck source=experiments/tuned.sh
. "$(dirname "$0")/../tuned.sh"

eta=strategy.rule.server_optimizer.eta
amsgrad=(strategy=fadas strategy.rule.tau_c=null)
for method in fedbuff ca2fl; do
  tune $method strategy=$method client.rule.lr=0.03,0.1,0.3 $eta=0.3,1,2
done
tune fedbuff_amsgrad "${amsgrad[@]}" client.rule.lr=0.1 $eta=0.0003,0.001,0.003,0.01
tune fadas strategy=fadas client.rule.lr=0.1 $eta=0.001,0.003,0.01,0.03

# Past the edges, where the best point lay there, and other rates of the clients.
CASES='[1.5,4,6.5]' tune ca2fl strategy=ca2fl client.rule.lr=0.01 $eta=1,2,4
CASES='[1.5,4,6.5]' tune ca2fl strategy=ca2fl client.rule.lr=0.003 $eta=2,4
CASES='[1.5,4,65]' tune ca2fl strategy=ca2fl client.rule.lr=0.1,0.3 $eta=0.1
tune fedbuff_amsgrad "${amsgrad[@]}" client.rule.lr=0.03,0.3 $eta=0.001,0.003
tune fadas strategy=fadas client.rule.lr=0.03,0.3 $eta=0.003,0.01,0.03

for method in fedbuff ca2fl fadas; do
  final $method strategy=$method
done
final fedbuff_amsgrad "${amsgrad[@]}"
