#!/usr/bin/env bash
# Runs of this experiment: FL_DATA_DIR=... bash experiments/compression/run.sh [PART ...]
#
#   PART  mnist downlink sgd cifar adam adam_small demo byte logistic; all of them if none is given
#   OUT   folder for the runs (outputs/compression)
#   FL    the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/compression} FL=${FL:-fl}
export OMP_NUM_THREADS=1 # one core

sweep() {
  local folder=$1
  shift
  # FL is a command with arguments, if need be.
  # shellcheck disable=SC2086
  $FL -m "hydra.sweep.dir=$OUT/$folder" progress=false executor=serial fleet=uniform "$@"
}

everyone() { # FedAvg-like strategies with all N clients in every round
  echo "num_clients=$1 strategy.min_train_nodes=$1 strategy.min_available_nodes=$1 strategy.fraction_train=1.0"
}

names() { # members of the group, joined by commas
  local folder
  folder=$(dirname "${BASH_SOURCE[0]}")/../../fl/conf/compressor
  find "$folder" -name '*.yaml' -printf '%f\n' | sed 's/.yaml$//' | sort | paste --serial --delimiters=,
}

# Members with options and feedback.
VARIANTS=(
  "compressor=bf16 compressor.stochastic=true"
  "compressor=codebook_int8 compressor.bins=quantile"
  "compressor=qsgd feedback=diana"
  "compressor=topk feedback=econtrol"
  "compressor=topk feedback=ef21_sgdm"
  "compressor=sign feedback=ef21"
  "compressor=sign feedback=ef"
  "compressor=int8 compressor.stochastic=false compressor.bucket=4096"
  "compressor=randk compressor.density=0.1 compressor.scaled=true feedback=marina"
  "compressor=qsgd compressor.levels=1 compressor.bucket=null"
  "compressor=randk compressor.contiguous=true"
  "compressor=randk compressor.density=0.1 compressor.scaled=true"
  "compressor=sign compressor.scale=l2"
  "compressor=terngrad compressor.clip=null"
  "compressor=topk compressor.scope=tensor"
  "compressor=topk compressor@then=int8 then.stochastic=false"
)

# Local training on heterogeneous clients: one epoch of SGD, an MLP of 50,890 parameters.
MNIST="data=mnist data.num_train=10000 data.num_test=2000 model=mlp num_rounds=30 evaluate_every=3"

mnist() { # every member; signs without a scale need a server that scales them
  local i
  # shellcheck disable=SC2046,SC2086
  sweep mnist/members $(everyone 10) $MNIST "compressor=$(names)"
  for i in "${!VARIANTS[@]}"; do
    # shellcheck disable=SC2046,SC2086
    sweep "mnist/variant_$i" $(everyone 10) $MNIST ${VARIANTS[$i]}
  done
  # shellcheck disable=SC2046,SC2086
  sweep mnist_signs $(everyone 10) $MNIST compressor=sign compressor.scale=none strategy=fedavgm \
    strategy.rule.eta=0.001 strategy.rule.beta=0
}

downlink() { # both directions; every client in every round, then 3 of 10
  # shellcheck disable=SC2046,SC2086
  sweep downlink_all $(everyone 10) $MNIST compressor=ef_topk \
    compressor@downlink=none,bf16,ef21
  # shellcheck disable=SC2046,SC2086
  sweep downlink_int8 $(everyone 10) $MNIST compressor=ef_topk compressor@downlink=int8 \
    downlink.stochastic=false downlink.bucket=4096
  # shellcheck disable=SC2046,SC2086
  sweep downlink_signs $(everyone 10) $MNIST compressor=ef_topk compressor@downlink=ef21 \
    compressor@downlink.compressor=sign
  # shellcheck disable=SC2046,SC2086
  sweep downlink_some $(everyone 10) $MNIST num_rounds=60 strategy.fraction_train=0.3 \
    strategy.min_train_nodes=3 compressor=ef_topk compressor@downlink=none,bf16,ef21
}

sgd() { # data-parallel SGD, one step a round: what TernGrad and PowerSGD were made for
  # shellcheck disable=SC2046
  set -- $(everyone 8) data=mnist data.num_train=20000 data.num_test=2000 partition=iid model=mlp \
    num_rounds=200 evaluate_every=20 client.local_epochs=null client.local_steps=1
  sweep sgd "$@" compressor=none,terngrad,natural,qsgd
  sweep sgd_terngrad "$@" compressor=terngrad compressor.clip=null
  sweep sgd_signs "$@" compressor=sign feedback=ef
  sweep sgd_powersgd "$@" compressor=powersgd compressor.compressor.rank=1,2,4
  # As many bytes as rank 2, by other means: 2 (784 + 64) + 2 (64 + 10) of 50,816 weights.
  sweep sgd_topk "$@" compressor=ef_topk compressor.compressor.density=0.02
}

cifar() { # FedAvg's CNN at a quarter of its width, few rounds: 579,402 parameters
  # shellcheck disable=SC2046
  set -- $(everyone 8) data=cifar10 data.num_train=8000 data.num_test=500 partition=iid \
    model=leaf_cnn model.width=128 num_rounds=10 evaluate_every=5 client.local_epochs=null \
    client.local_steps=5 client.rule.lr=0.05
  sweep cifar "$@" compressor=none,ef_topk,powersgd,terngrad
  sweep cifar_signs "$@" compressor=sign feedback=ef
  sweep cifar_downlink "$@" compressor=ef_topk compressor@downlink=ef21
}

# A character-level GPT of 0.11 million parameters, 8 workers, one step a round.
GPT="num_clients=8 data=shakespeare data.window=64 partition=iid model=char_gpt num_rounds=150
  evaluate_every=30 client.batch_size=16 target=null"

adam() { # a warm-up of all 150 rounds is Adam
  # shellcheck disable=SC2086
  sweep adam $GPT strategy=onebit_adam strategy.rule.lr=0.003 strategy.rule.warmup=2,23,150
}

adam_small() { # Adam with a learning rate as small as DeMo's
  # shellcheck disable=SC2086
  sweep adam_small $GPT strategy=onebit_adam strategy.rule.lr=0.001 strategy.rule.warmup=150
}

demo() {
  # shellcheck disable=SC2086
  sweep demo $GPT strategy=demo strategy.rule.lr=0.001,0.003 strategy.rule.compressor.k=8
}

byte() { # one byte a direction: 8 workers, 1 or 32 directions each
  # shellcheck disable=SC2086
  sweep byte_1 $GPT strategy=just_one_byte strategy.rule.compressor.samples=1 strategy.rule.lr=0.0003
  # shellcheck disable=SC2086
  sweep byte_32 $GPT strategy=just_one_byte strategy.rule.compressor.samples=32 \
    strategy.rule.lr=0.001,0.003
}

logistic() { # heterogeneous logistic regression, full gradients: sparse messages under error control
  # shellcheck disable=SC2046
  set -- $(everyone 20) data=synthetic data.alpha=1 data.beta=1 model=logistic num_rounds=1000 \
    evaluate_every=50 evaluate_train=true client.batch_size=null client.local_epochs=null \
    client.local_steps=1 client.rule.lr=0.2
  sweep logistic "$@" compressor=none,topk,ef_topk,ef21
  sweep logistic_econtrol "$@" compressor=topk feedback=econtrol
}

for part in "${@:-mnist downlink sgd cifar adam adam_small demo byte logistic}"; do
  for name in $part; do
    "$name"
  done
done
