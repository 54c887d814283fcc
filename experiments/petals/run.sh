#!/usr/bin/env bash
# BLOOM-176B on consumer GPUs over the internet, in time alone: Petals' sessions and batches.
set -euo pipefail
out=${1:-outputs/petals}
bloom="strategy=petals data=synthetic_iid partition=iid model=logistic fleet=uniform executor=serial \
    views=false progress=false strategy.num_blocks=70 strategy.block.width=14336 \
    strategy.block.sequence=2048 strategy.held=9 num_clients=17 fleet.flops=97e12"

for latency_s in 0.0025 0.025; do
    for bps in 1e9 100e6; do
        fl $bloom num_rounds=3 strategy.prompt=128 strategy.tokens=32 \
            fleet.latency_s=$latency_s fleet.down_bps=$bps fleet.up_bps=$bps \
            hydra.run.dir="$out/inference/$latency_s-$bps"
        fl $bloom num_rounds=3 strategy.work=tuning strategy.prompt=128 strategy.batch=8 \
            fleet.latency_s=$latency_s fleet.down_bps=$bps fleet.up_bps=$bps \
            hydra.run.dir="$out/tuning/$latency_s-$bps"
    done
done

# The same over 100 Mbit/s and 100 ms with servers that stay half an hour in the mean.
for seed in 0 1 2; do
    fl $bloom num_rounds=40 strategy.prompt=128 strategy.tokens=32 seed=$seed num_clients=25 \
        fleet.latency_s=0.025 fleet.down_bps=100e6 fleet.up_bps=100e6 \
        fleet/availability=exponential fleet.availability.mean_on_s=1800 \
        fleet.availability.mean_off_s=600 fleet.faults.detection_s=5 \
        hydra.run.dir="$out/leaving/$seed"
done
