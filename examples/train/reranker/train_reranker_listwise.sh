#!/usr/bin/env bash
# Listwise classification reranker: ModernBERT-base, all weights, 1 GPU.
# Flags given to the script win over its own. A batch counts queries; --dataset_num_proc matters only
# with --lazy_tokenize false: rows are else tokenised while training (--dataloader_num_workers moves it).
set -euo pipefail

CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}" \
rankwright train \
    --model Alibaba-NLP/gte-reranker-modernbert-base \
    --task_type reranker \
    --loss_type listwise_reranker \
    --tuner_type full \
    --dataset MTEB/scidocs-reranking \
    --split_dataset_ratio 0.05 \
    --dataset_num_proc 8 \
    --max_length 1024 \
    --num_train_epochs 1 \
    --learning_rate 6e-6 \
    --per_device_train_batch_size 64 \
    --gradient_accumulation_steps 1 \
    --bf16 true \
    --dataloader_drop_last true \
    --eval_strategy steps \
    --eval_steps 100 \
    --save_steps 200 \
    --output_dir output/train_reranker_listwise \
    "$@"
