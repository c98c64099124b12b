#!/bin/bash
# Makes model_cards/examples/ anew from three shortened runs of recipes; their card data is copied as the runs left it.
#
#     bash recipes/example_cards.sh
#
# The language model is told to publish while HF_HUB_OFFLINE keeps everything in its queue, so its card is that of a
# published release; the other two are cards of local ones. The adapter learns on the release of the language model.
set -euo pipefail
cd "$(dirname "$0")/.."
cards=$PWD/model_cards/examples
out=$(mktemp -d)
trap 'rm -r "$out"' EXIT

# NAME RECIPE FOLDER RELEASE FLAGS...: a run in FOLDER, and the card of its RELEASE as the example NAME.
card() {
    python -m hf_infinite_lr train --config "recipes/$2" --output_dir "$out/$3" "${@:5}"
    cp "$out/$3/releases/$4/card.json" "$cards/$1.json"
    cp "$out/$3/releases/$4/README.md" "$cards/$1.md"
}

HF_HUB_OFFLINE=1 card lm lm-docs-python-cpp/infinite.yaml lm-docs-python-cpp 03-cpp \
    --task_steps '[40]' --logging_steps 10 --save_strategy no \
    --push_to_hub true --hub_model_id user/lm-docs-python-cpp --hub_strategy all_checkpoints --hub_license apache-2.0
card mae mae-digits-glyphs-photos/infinite.yaml mae-digits-glyphs-photos 03-photos \
    --task_steps '[40]' --logging_steps 10 --save_strategy no --probe_samples 200 --num_pictures 0
cp -r "$out/lm-docs-python-cpp/releases/03-cpp" "$out/llama-docs-python-cpp"
card adapter lm-docs-python-cpp/infinite.yaml lora-python-cpp 02-cpp \
    --model_type null --model_name_or_path "$out/llama-docs-python-cpp" \
    --lora '{"r": 4, "target_modules": ["q_proj", "v_proj"]}' --lr_scheduler_kwargs.num_cooldown_steps 0 \
    --lr_scheduler_kwargs.constant_lr_ratio 1 --learning_rate 3e-3 --task_steps '[40]' --logging_steps 10 \
    --save_strategy no --tasks '[{"name": "python", "builtin": "python", "max_bytes": 500000, "eval_bytes": 32768},
        {"name": "cpp", "builtin": "cpp", "max_bytes": 500000, "eval_bytes": 32768}]'
