#!/usr/bin/env bash
# A newcomer's first hour, by the README alone: a fresh clone of what is committed, `make demo`, every command shown.
# With --tests also `make test`.
set -euo pipefail

root=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
unset PYTHONPATH VIRTUAL_ENV
export XDG_CONFIG_HOME="$folder/config"

git clone --quiet "$root" "$folder/lbw"
make -C "$folder/lbw" demo

# The README's commands want LoRAs of some names; all are the demo's.
mkdir -p "$folder/desk/loras"
cd "$folder/desk"
for name in doraemon x a b loras/one; do
    ln "$folder/lbw/demo/doraemon.safetensors" "$name.safetensors"
done
export PATH="$folder/lbw/.venv/bin:$PATH"
# shellcheck disable=SC2016  # backticks of Markdown
sed -n '/^```console$/,/^```$/s/^\$ //p' "$folder/lbw/README.md" > commands
while IFS= read -r command; do
    rm -f y.safetensors
    echo "\$ $command"
    bash -euc "$command" < /dev/null
done < commands

if [ "${1-}" = --tests ]; then
    make -C "$folder/lbw" test
fi
echo "a newcomer gets along: $(wc -l < commands) commands of the README"
