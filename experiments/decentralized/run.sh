#!/usr/bin/env bash
# All runs of this experiment: FL_DATA_DIR=... bash experiments/decentralized/run.sh [PART ...]
#
#   PART  topologies, sam or monna
#   OUT   folder for the runs (outputs/decentralized)
#   FL    the command (fl)
#
# Without arguments, all parts.
set -euo pipefail

OUT=${OUT:-outputs/decentralized} FL=${FL:-fl}
export OMP_NUM_THREADS=1
PARTS=("$@")
[ $# -gt 0 ] || PARTS=(topologies sam monna)

sweep() { # name, arguments
  # FL is a command with arguments, if need be.
  # shellcheck disable=SC2086
  $FL -m +experiment=decentralized progress=false views=false "hydra.sweep.dir=$OUT/$1" "${@:2}"
}

topologies() { # data, arguments: algorithm x topology x number of nodes, for 120 virtual seconds
  local each=(num_clients=16,64 "${@:2}") out=topologies/$1
  local all=topology=ring,torus,exponential,one_peer_exponential,complete
  local undirected=topology=ring,torus,complete
  sweep "$out/dpsgd" strategy=dpsgd "$all" "${each[@]}"
  sweep "$out/dfedavg" strategy=dfedavg client.local_steps=5 "$all" "${each[@]}"
  sweep "$out/tracking" strategy=gradient_tracking "$all" "${each[@]}"
  sweep "$out/sgp" strategy=sgp topology=one_peer_exponential,directed_erdos_renyi "${each[@]}"
  sweep "$out/adpsgd" strategy=adpsgd "$undirected" "${each[@]}"
  sweep "$out/choco" strategy=choco compressor=int8 "$undirected" "${each[@]}"
}

sam() { # data, arguments: 100 rounds of 64 nodes with 10 neighbours, three seeds
  local rounds=(num_clients=64 num_rounds=100 time_limit_s=null evaluate_every_s=null
    evaluate_every=5 client.local_steps=5 seed=0,1,2 "${@:2}") out=sam/$1
  for strategy in dfedavg dfedavgm dfedsam dfedsam_mgs; do
    sweep "$out/$strategy" "strategy=$strategy" topology=random_regular topology.k=10 \
      "${rounds[@]}"
  done
  sweep "$out/fedavg" strategy=fedavg strategy.fraction_train=1.0 "${rounds[@]}"
}

monna() { # 26 nodes of which 5 attack, all hear all: MoNNA's setting with an MLP, 150 rounds
  local setting=(num_clients=26 partition=dirichlet partition.alpha=1 num_rounds=150
    time_limit_s=null evaluate_every_s=null evaluate_every=15 client=momentum
    client.batch_size=25 client.rule.lr=0.75 client.rule.weight_decay=1e-4
    "model.hidden=[32]" topology=complete)
  local simple=alie,sign_flip,label_flip five=num_byzantine=5
  local attacks=attack=alie_optimized,ipm_optimized,$simple
  sweep monna/none strategy=monna strategy.rule.f=5 client.rule.beta=0.99 "${setting[@]}"
  sweep monna/monna strategy=monna "$attacks" client.rule.beta=0.99 $five "${setting[@]}"
  sweep monna/plain strategy=monna "$attacks" client.rule.beta=0 $five "${setting[@]}"
  sweep monna/mean strategy=dfedavg "attack=$simple" client.rule.beta=0.99 $five "${setting[@]}"
}

for part in "${PARTS[@]}"; do
  case $part in
    topologies)
      topologies iid partition=iid
      topologies dirichlet partition=dirichlet partition.alpha=0.1 ;;
    sam)
      sam iid partition=iid
      sam dirichlet partition=dirichlet partition.alpha=0.3 ;;
    monna) monna ;;
    *) echo "there is no part $part" >&2 && exit 2 ;;
  esac
done
