#!/usr/bin/env bash
# All runs of this experiment: FL_DATA_DIR=... bash experiments/fedau/run.sh
#
#   SEEDS, TUNING  seeds of the results (0,1,2), and of what chooses the rates (100)
#   OUT            folder for the runs (outputs/fedau)
#   FL             the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/fedau} SEEDS=${SEEDS:-0,1,2}
COMMON=(+experiment=fedau) KEY=fleet/availability CASES=bernoulli,markov,cyclic
# shellcheck source=experiments/tuned.sh
. "$(dirname "$0")/../tuned.sh"

participating=(strategy=fedavg aggregator.weighted=false strategy.fraction_train=1 strategy.min_train_nodes=1)
all=(strategy=fedau strategy.rule.cutoff=1 strategy.rule.eta=10)
# shellcheck disable=SC2016
known=(strategy=fedau 'strategy.rule.rates=${fleet.availability.rates}')

# Rates are chosen for Bernoulli, and are those of all patterns. known_rates has FedAU's.
CASES=bernoulli tune average_participating "${participating[@]}" client.rule.lr=0.0003,0.001,0.003,0.01
CASES=bernoulli tune average_all "${all[@]}" client.rule.lr=0.0003,0.001,0.003
CASES=bernoulli tune fedau strategy=fedau client.rule.lr=0.0003,0.001,0.003
CASES=bernoulli tune known_rates "${known[@]}" client.rule.lr=0.001

final average_participating "${participating[@]}"
final average_all "${all[@]}"
final fedau strategy=fedau
final known_rates "${known[@]}" client.rule.lr=0.001
