#!/usr/bin/env bash
# The runs on MNIST of this experiment: FL_DATA_DIR=... bash experiments/gradient_coding/run.sh
#
#   SEEDS, TUNING  seeds of the results (0,1,2), and of what chooses the rate (100)
#   OUT            folder for the runs (outputs/gradient_coding)
#   FL             the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/gradient_coding} SEEDS=${SEEDS:-0,1,2}
COMMON=(data=mnist data.num_train=8192 data.num_test=2000 model=mlp "model.hidden=[32]"
  num_rounds=400 time_limit_s=45 fleet=serverless fleet.wrap=true executor=serial round_timeout_s=1e6
  target.value=0.85 evaluate_every=1)
KEY=num_clients CASES=16
# shellcheck source=experiments/tuned.sh
. "$(dirname "$0")/../tuned.sh"

# A chunk's batch has 128 examples. Task times were measured with batches of 2048 and at loads of a
# quarter, which is 4 chunks of 128; at load 0 a call does nothing, so that one chunk takes 0.07 s less
# than it should.
workers() {
  echo fleet.load=0.0 partition=iid strategy.policy=psi client.batch_size=128
}
backup_of() { # b
  echo strategy=backup_workers "strategy.rule.backup=$1"
}
coded_of() { # s, load
  echo strategy=gradient_coding "strategy.rule.s=$1" "fleet.load=$2" strategy.batch_size=128
}
rates=0.03,0.1,0.3,1

each() { # tune or final, learning rates of workers, of coded work
  for b in 0 1 2 4; do
    # shellcheck disable=SC2046
    "$1" backup_$b $(backup_of $b) $(workers) ${2:+"$2"}
  done
  # shellcheck disable=SC2046
  "$1" dbw strategy=dbw $(workers) ${2:+"$2"}
  # shellcheck disable=SC2046
  "$1" coded_3 $(coded_of 3 0.25) ${3:+"$3"}
  # shellcheck disable=SC2046
  "$1" coded_7 $(coded_of 7 0.5) ${3:+"$3"}
}
each tune "strategy.rule.eta=$rates" "strategy.optimizer.lr=$rates"
each final "" ""
