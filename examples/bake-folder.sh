#!/bin/sh
# Bake every LoRA below a folder with two presets; run it again after adding LoRAs, and only those are baked.
#
#     examples/bake-folder.sh LORAS BAKED [PRESET PRESET]
set -eu

if [ $# -ne 2 ] && [ $# -ne 4 ]; then
    sed -n '2,4s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
exec lbw bake "$1" --recursive --out-dir "$2" --preset "${3-MIDD}" --preset "${4-OUTALL}" \
    --name '{stem}-{preset}' --skip-existing
