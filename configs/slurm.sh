#!/usr/bin/env bash
# Several machines under Slurm: 2 nodes of 4 GPUs.   sbatch configs/slurm.sh configs/restorer_convnext_tiny.yaml
# A preempted job saves, is requeued and resumes. A job at its time limit saves, and resumes when you submit it again.
#SBATCH --job-name=restorecae-zi
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@90
#SBATCH --requeue
set -euo pipefail
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun .venv/bin/torchrun --nnodes="$SLURM_NNODES" --nproc_per_node=4 --rdzv_id="$SLURM_JOB_ID" --rdzv_backend=c10d \
    --rdzv_endpoint="$first:29500" main_denoise_cae.py --config "$1" --resume auto
