#!/usr/bin/env bash
# Generative reranker with LoRA adapters: Qwen3-Reranker-4B, 1 GPU.
# Flags given to the script win over its own. A batch counts queries; --dataset_num_proc matters only
# with --lazy_tokenize false: rows are else tokenised while training (--dataloader_num_workers moves it).
set -euo pipefail

CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}" \
rankwright train \
    --model Qwen/Qwen3-Reranker-4B \
    --task_type generative_reranker \
    --loss_type pointwise_reranker \
    --tuner_type lora \
    --lora_rank 8 \
    --lora_alpha 32 \
    --target_modules all-linear \
    --dataset MTEB/scidocs-reranking \
    --split_dataset_ratio 0.05 \
    --dataset_num_proc 8 \
    --max_length 4096 \
    --num_train_epochs 1 \
    --learning_rate 5e-5 \
    --warmup_steps 0.05 \
    --per_device_train_batch_size 2 \
    --gradient_accumulation_steps 8 \
    --bf16 true \
    --torch_dtype bfloat16 \
    --gradient_checkpointing true \
    --dataloader_drop_last true \
    --eval_strategy steps \
    --eval_steps 100 \
    --save_steps 200 \
    --output_dir output/train_generative_reranker_lora \
    "$@"
