#!/usr/bin/env bash
# All runs of this experiment: FL_DATA_DIR=... bash experiments/decentralized/run.sh [PART ...]
#
#   PART  topologies, sam or monna
#   SEEDS seeds of topologies, comma-separated (0)
#   OUT   folder for the runs (outputs/decentralized)
#   FL    the command (fl)
#
# Without arguments, all parts.
set -euo pipefail

OUT=${OUT:-outputs/decentralized} FL=${FL:-fl} SEEDS=${SEEDS:-0}
export OMP_NUM_THREADS=1
PARTS=("$@")
[ $# -gt 0 ] || PARTS=(topologies sam monna)

sweep() { # name, arguments
  # FL is a command with arguments, if need be.
  # shellcheck disable=SC2086
  $FL -m +experiment=decentralized progress=false views=false "hydra.sweep.dir=$OUT/$1" "${@:2}"
}

for part in "${PARTS[@]}"; do
  case $part in
    topologies) # algorithm x topology x data x number of nodes, for 120 virtual seconds
      EACH=(partition=iid,dirichlet num_clients=16,64 "seed=$SEEDS")
      ALL=topology=ring,torus,exponential,one_peer_exponential,complete
      UNDIRECTED=topology=ring,torus,complete
      sweep topologies/dpsgd strategy=dpsgd "$ALL" "${EACH[@]}"
      sweep topologies/dfedavg strategy=dfedavg client.local_steps=5 "$ALL" "${EACH[@]}"
      sweep topologies/tracking strategy=gradient_tracking "$ALL" "${EACH[@]}"
      sweep topologies/sgp strategy=sgp topology=one_peer_exponential,directed_erdos_renyi \
        "${EACH[@]}"
      sweep topologies/adpsgd strategy=adpsgd "$UNDIRECTED" "${EACH[@]}"
      sweep topologies/choco strategy=choco compressor@strategy.compressor=qsgd "$UNDIRECTED" \
        "${EACH[@]}" ;;
    sam) # local steps towards flat minima: 100 rounds of 64 nodes with 10 neighbours
      ROUNDS=(num_clients=64 partition=iid,dirichlet partition.alpha=0.3 num_rounds=100
        time_limit_s=null evaluate_every_s=null evaluate_every=5 client.local_steps=5 seed=0,1,2)
      for strategy in dfedavg dfedavgm dfedsam dfedsam_mgs; do
        sweep "sam/$strategy" "strategy=$strategy" topology=random_regular topology.k=10 \
          "${ROUNDS[@]}"
      done
      sweep sam/fedavg strategy=fedavg strategy.fraction_train=1.0 "~strategy.evaluated_nodes" \
        "${ROUNDS[@]}" ;;
    monna) # 26 nodes of which 5 attack, all hear all: MoNNA's setting with an MLP, 150 rounds
      SETTING=(num_clients=26 partition=dirichlet partition.alpha=1 num_rounds=150
        time_limit_s=null evaluate_every_s=null evaluate_every=15 client=momentum
        client.batch_size=25 client.rule.lr=0.75 client.rule.weight_decay=1e-4
        "model.hidden=[32]" topology=complete)
      ATTACKED=(num_byzantine=5)
      sweep monna/none strategy=monna strategy.f=5 client.rule.beta=0.99 "${SETTING[@]}"
      sweep monna/monna strategy=monna attack=alie_optimized,ipm_optimized,alie,sign_flip,label_flip \
        client.rule.beta=0.99 "${ATTACKED[@]}" "${SETTING[@]}"
      sweep monna/plain strategy=monna attack=alie_optimized,ipm_optimized,alie,sign_flip,label_flip \
        client.rule.beta=0 "${ATTACKED[@]}" "${SETTING[@]}"
      sweep monna/mean strategy=dfedavg attack=alie,sign_flip,label_flip client.rule.beta=0.99 \
        "${ATTACKED[@]}" "${SETTING[@]}" ;;
    *) echo "there is no part $part" >&2 && exit 2 ;;
  esac
done
