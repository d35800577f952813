#!/bin/sh
# Check the preset files that git knows, warnings included: for CI, or as .git/hooks/pre-commit.
#
#     examples/check-presets.sh [OPTION OF LBW VALIDATE]...
set -eu

preset_files() {
    git ls-files "$@" -- ':(icase)*preset*.yaml' ':(icase)*preset*.yml' ':(icase)*preset*.txt'
}

found=$(preset_files)  # ends the script where git fails
if [ -z "$found" ]; then
    echo "no preset files" >&2
    exit 0
fi
preset_files -z | xargs -0 lbw validate --strict "$@" -- || exit 1
