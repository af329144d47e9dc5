#!/usr/bin/env bash
# Pointwise generative reranker: Qwen3-Reranker-4B, all weights, 4 GPUs.
# DeepSpeed: pip install deepspeed, or go without by --deepspeed none. NPROC_PER_NODE counts the GPUs.
# Flags given to the script win over its own. A batch counts queries; --dataset_num_proc matters only
# with --lazy_tokenize false: rows are else tokenised while training (--dataloader_num_workers moves it).
set -euo pipefail

torchrun --nproc_per_node "${NPROC_PER_NODE:-4}" -m rankwright train \
    --model Qwen/Qwen3-Reranker-4B \
    --task_type generative_reranker \
    --loss_type pointwise_reranker \
    --tuner_type full \
    --dataset MTEB/scidocs-reranking \
    --split_dataset_ratio 0.05 \
    --dataset_num_proc 8 \
    --max_length 1024 \
    --num_train_epochs 1 \
    --learning_rate 6e-6 \
    --per_device_train_batch_size 2 \
    --gradient_accumulation_steps 8 \
    --bf16 true \
    --gradient_checkpointing true \
    --dataloader_drop_last true \
    --eval_strategy steps \
    --eval_steps 100 \
    --save_steps 200 \
    --deepspeed zero2 \
    --output_dir output/train_generative_reranker \
    "$@"
