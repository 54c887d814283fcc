#!/usr/bin/env bash
# All runs of this experiment: bash experiments/walks/run.sh
#
#   SEEDS, TUNING  seeds of the results (0,1,2), and of what chooses the rate (100)
#   OUT            folder for the runs (outputs/walks)
#   FL             the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/walks} SEEDS=${SEEDS:-0,1,2}
COMMON=(data=digits partition=dirichlet partition.alpha=0.3 model=logistic num_clients=16
  client.batch_size=16 fleet=uniform fleet.flops=1e6 fleet.latency_s=0.05 executor=serial)
KEY=topology CASES=ring,complete
# shellcheck source=experiments/tuned.sh
. "$(dirname "$0")/../tuned.sh"

# 640 steps of all nodes together, which is 40 rounds of one step each. Rates are chosen on examples
# that nobody trains on, and as many are tried for every method.
both() { # method, rates, arguments
  tune "$1" "client.rule.lr=$2" validation=0.2 "${@:3}"
  final "$1" "${@:3}"
}
walks() { # walkers, alpha, rates
  both "walks_$1_alpha_$2" "$3" num_rounds=40 strategy=sa_srrw \
    "strategy.walkers=$1" "strategy.rule.alpha=$2"
}

both dpsgd 0.1,0.3,1 num_rounds=40 strategy=dpsgd
walks 1 0 0.03,0.1,0.3
walks 16 0 0.3,1,3
both adpsgd 0.1,0.3,1 num_rounds=40 strategy=adpsgd
walks 4 0 0.1,0.3,1
walks 1 5 0.03,0.1,0.3
walks 16 5 0.3,1,3
both dfedavg_5 0.1,0.3,1 num_rounds=16 strategy=dfedavg client=sgd_step client.local_steps=5
walks 4 5 0.1,0.3,1
