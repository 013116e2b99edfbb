#!/bin/sh
# Takes the samples of `cargo xtask bench jail` on this machine's own KVM: a small guest, jailed and not, in one interleaved run.
set -eu

samples=${SAMPLES_JAIL:-300}
pause_us=8000
place=$(mktemp -d "${TMPDIR:-/tmp}/ember-bench.XXXXXX")
trap 'rm -rf "$place"' EXIT

cp "$EMBER_BIN" "$BENCH_TOOLS/starter" "$place"
ember=$place/ember
bundle=$place/echo

"$ember" bake "$bundle" --interface port --kernel "$EMBER_SMALL_GUESTS/echo.elf" --memory 64MiB >"$OUT/bake-small"

# As root nothing may be lacking; others measure as much of a jail as they get.
whole=
[ "$(id -u)" != 0 ] || whole=--require-jail
set -- "$ember" run "$bundle" --event-text hello
# The first starts read files that later ones find in memory.
"$place/starter" "$OUT/warm-up" 20 "$pause_us" jailed "$@" $whole -- open "$@" --no-jail
rm "$OUT/warm-up"
"$place/starter" "$OUT/jail.jsonl" "$samples" "$pause_us" \
    jailed "$@" $whole -- open "$@" --no-jail -- timed "$@" $whole --timing=json
