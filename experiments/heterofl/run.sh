#!/usr/bin/env bash
# All runs of this experiment, 6 for each seed: bash experiments/heterofl/run.sh
#
#   SEEDS  of the runs, comma-separated (0)
#   OUT    folder for the runs (outputs/heterofl)
#   FL     the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/heterofl} FL=${FL:-fl} SEEDS=${SEEDS:-0}
export OMP_NUM_THREADS=1

sweep() { # folder, arguments
  # FL is a command with arguments, if need be.
  # shellcheck disable=SC2086
  $FL -m fleet=mobile executor=serial num_rounds=100 evaluate_every=5 target=null client.rule.lr=0.1 \
    client.local_epochs=5 "seed=$SEEDS" progress=false views=false checkpoint=off \
    "hydra.sweep.dir=$OUT/$1" "${@:2}"
}

SMALL=(model.hidden=[1024] fleet.phones.low-end.memory_bytes=4e5 strategy/capacity=by_memory)

sweep fedavg_whole strategy=fedavg aggregator.weighted=false "model.hidden=[1024]"
sweep fedavg_half strategy=fedavg aggregator.weighted=false "model.hidden=[512]" \
  fleet.phones.low-end.memory_bytes=4e5
for method in heterofl fedrolex random_submodels; do
  sweep "$method" "strategy=$method" "${SMALL[@]}"
done
sweep every_parameter_matters strategy=every_parameter_matters "${SMALL[@]}" \
  strategy.sub_models.extraction.of=units "strategy.sub_models.capacity.levels=[1,4,7]"
