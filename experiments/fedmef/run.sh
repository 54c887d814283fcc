#!/usr/bin/env bash
# All runs of this experiment, 4 to tune each of 7 methods and 3 to compare it:
#
#   bash experiments/fedmef/run.sh && python experiments/tuned.py keep outputs/fedmef experiments/fedmef
#   python experiments/tuned.py report experiments/fedmef fedmef partition.alpha
#
#   SEEDS, TUNING  of the runs that are compared, and of those that choose (0,1,2 and 100)
#   OUT            folder for the runs (outputs/fedmef)
#   FL             the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/fedmef} SEEDS=${SEEDS:-0,1,2}
KEY=partition.alpha CASES=0.5
COMMON=(data=digits model=mlp fleet=cross_silo num_clients=20 partition=dirichlet executor=serial
  strategy.fraction_train=0.25 strategy.min_train_nodes=5 num_rounds=40 evaluate_every=2 target.value=0.8
  client.local_epochs=2)
source "$(dirname "$0")/../tuned.sh"

RATES=client.rule.lr=0.1,0.3,1,3
MASK=(strategy.rule.adjust_every=4) # of a model that has a tenth of its numbers
UNTIL=(strategy.rule.adjust_until=28 strategy.rule.alpha=0.4)

both() { # method, arguments
  tune "$@" "$RATES"
  final "$@"
}

both fedavg strategy=fedavg
both fedmef strategy=fedmef "${MASK[@]}" "${UNTIL[@]}"
both fedmef_without_extrusion strategy=fedmef "${MASK[@]}" "${UNTIL[@]}" strategy.rule.extrusion=0
both fedtiny strategy=fedtiny "${MASK[@]}" "${UNTIL[@]}"
both feddst strategy=feddst "${MASK[@]}" "${UNTIL[@]}"
both prunefl strategy=prunefl "${MASK[@]}"
both first_mask strategy=fedmef "${MASK[@]}" strategy.rule.alpha=0 strategy.sub_models.gamma=0
