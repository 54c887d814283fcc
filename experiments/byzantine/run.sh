#!/usr/bin/env bash
# All runs of this experiment: bash experiments/byzantine/run.sh [PART ...]
#
#   PART grid, none, rfa, monna or flag
#   OUT  folder for the runs (outputs/byzantine)
#   FL   the command (fl)
#
# Without arguments, all parts. Some jobs fail, and are meant to: bulyan, and bucketing before the
# median, refuse f = 5 of n = 15, and the report says so.
set -uo pipefail

OUT=${OUT:-outputs/byzantine}
FL=${FL:-fl}
export OMP_NUM_THREADS=1
PARTS=("$@")
[ $# -gt 0 ] || PARTS=(grid none rfa monna flag)

ATTACKS=sign_flip,ipm,ipm_optimized,alie,alie_optimized,mimic,min_max,min_sum,gauss,label_flip
RULES=mean,median,trimmed_mean,meamed,geometric_median,krum,multi_krum,bulyan,caf,mda,smea,faba
RULES+=,norm_clipping,norm_elimination,fltrust,monna,flag,nnm_trimmed_mean,nnm_krum
CHAINS=("aggregator=median preaggregation=bucketing"
  "aggregator=geometric_median preaggregation=nnm"
  "aggregator=trimmed_mean preaggregation=[arc,nnm]")
PARTITIONS=(partition=iid,dirichlet)
SETTINGS=("${PARTITIONS[@]}" num_byzantine=3,5)
MEDIAN=(aggregator=geometric_median)
RFA=("${MEDIAN[@]}" aggregator.start=mean aggregator.weighted=true) # as the authors' code

MONNA_ATTACKS=alie_optimized,ipm_optimized,sign_flip,label_flip
MONNA=(num_clients=26 num_byzantine=5 strategy.f=5 num_rounds=60 evaluate_every=60
  client.rule.beta=0.99 client.rule.weight_decay=1e-4 strategy.rule.eta=0.75 strategy.root_examples=230
  partition=dirichlet partition.alpha=1 "may_be_unread=[strategy.root_examples]")
REPO=(aggregator=flag aggregator.form=repo aggregator.iterations=1) # as the authors' code
FLAG_RULES=flag,bulyan,multi_krum,median,meamed,trimmed_mean,mean
FLAG=(data=cifar10 data.num_train=10000 partition=iid model=mlp "model.hidden=[32]" num_rounds=60
  evaluate_every=60 client.batch_size=32 client.rule.weight_decay=5e-4 strategy.rule.eta=0.2)

sweep() {
  local name=$1
  shift
  # FL is a command with arguments, if need be.
  # shellcheck disable=SC2086
  $FL -m "+experiment=byzantine" "hydra.sweep.dir=$OUT/$name" "$@" >/dev/null
}

defences() { # one sweep of the rules, and one for each chain
  local name=$1 chain
  shift
  sweep "$name/rules" "aggregator=$RULES" "$@"
  for chain in "${!CHAINS[@]}"; do
    # shellcheck disable=SC2086
    sweep "$name/chain_$chain" ${CHAINS[$chain]} "$@"
  done
}

for part in "${PARTS[@]}"; do
  case $part in
    grid) # every attack against every defence: 880 jobs
      defences grid "attack=$ATTACKS" "${SETTINGS[@]}" ;;
    none) # the same defences without an attack
      defences none "~attack" num_byzantine=0 strategy.f=3,5 "${PARTITIONS[@]}" ;;
    rfa) # the geometric median that starts from the mean
      sweep rfa attack=alie_optimized,ipm_optimized,min_max "${RFA[@]}" num_byzantine=5 \
        "${PARTITIONS[@]}" ;;
    monna) # MoNNA's comparison, with a server: n = 26, f = 5, momentum 0.99
      sweep monna "attack=$MONNA_ATTACKS" aggregator=monna,trimmed_mean,mean "${MONNA[@]}"
      sweep monna_median "attack=$MONNA_ATTACKS" "${MEDIAN[@]}" "${MONNA[@]}"
      sweep monna_clipping "attack=$MONNA_ATTACKS" aggregator=centered_clipping aggregator.tau=2 \
        "${MONNA[@]}"
      sweep monna_plain "attack=$MONNA_ATTACKS" aggregator=monna,trimmed_mean \
        "${MONNA[@]}" client.rule.beta=0
      sweep monna_none "~attack" aggregator=mean,monna "${MONNA[@]}" num_byzantine=0 ;;
    flag) # the Flag Aggregator's: 15 workers, CIFAR-10, random gradients
      sweep flag attack=uniform num_byzantine=3 "aggregator=$FLAG_RULES" "${FLAG[@]}"
      sweep flag_repo attack=uniform num_byzantine=3 "${REPO[@]}" "${FLAG[@]}"
      sweep flag_none "~attack" num_byzantine=0 aggregator=mean,flag "${FLAG[@]}"
      sweep flag_repo_none "~attack" num_byzantine=0 "${REPO[@]}" "${FLAG[@]}" ;;
    *) echo "there is no part $part" >&2 && exit 2 ;;
  esac
done
