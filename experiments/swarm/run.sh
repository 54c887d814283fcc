#!/usr/bin/env bash
# SWARM's pipelines in time alone: rebalancing on peers that are preempted, and width against network.
set -euo pipefail
out=${1:-outputs/swarm}
quiet="views=false progress=false"

for latency_s in 0 0.05; do
    for width in 768 1024 4096 12288; do
        fl +experiment=swarm $quiet fleet.availability.mean_on_s=1e15 num_clients=4 num_rounds=1 \
            strategy.rebalancing=null strategy.delayed=false strategy.micro_batches=128 \
            strategy.stage.width=$width strategy.stage.layers=1 strategy.stage.micro_batch=1 \
            fleet.flops=30e12 fleet.down_bps=500e6 fleet.up_bps=500e6 \
            fleet.latency_s=$latency_s hydra.run.dir="$out/width/$width-$latency_s"
    done
done

for seed in 0 1 2; do
    for every_s in 60 300 inf; do
        fl +experiment=swarm $quiet seed=$seed strategy.rebalancing.every_s=$every_s \
            hydra.run.dir="$out/rebalancing/T$every_s-$seed"
    done
    fl +experiment=swarm $quiet seed=$seed strategy.rebalancing=null \
        hydra.run.dir="$out/rebalancing/Tnone-$seed"
done
