#!/usr/bin/env bash
# One run on several machines of a Slurm cluster: sbatch examples/cluster/slurm.sh strategy=fedavg num_clients=1000
# All that follows the script's name goes to `fl`. The checkout, .venv in it and the output are on a shared disk.
#SBATCH --job-name=fl
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=02:00:00
set -euo pipefail

# A batch script is run from a copy of it, in the folder where sbatch was called.
cd "${SLURM_SUBMIT_DIR:-$PWD}"
PATH="$PWD/.venv/bin:$PATH"

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000)) # two jobs on one machine do not meet

# Starts Ray on every machine, runs `fl` on the first when all are there, and stops Ray.
srun ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --disable-usage-stats -- fl executor.address="$head:$port" "$@"
