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
