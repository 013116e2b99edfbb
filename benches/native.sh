#!/bin/sh
# Takes the samples of `cargo xtask bench main` on this machine's own KVM: a small guest and the floor in one interleaved run.
set -eu

samples=${SAMPLES_NATIVE:-300}
pause_us=8000
place=$(mktemp -d "${TMPDIR:-/tmp}/ember-bench.XXXXXX")
trap 'rm -rf "$place"' EXIT

cp "$EMBER_BIN" "$BENCH_TOOLS/starter" "$BENCH_TOOLS/floor" "$place"
ember=$place/ember
bundle=$place/echo
# The floor is not jailed; what the jail costs is measured by jail.sh.
run="$ember run --no-jail"

"$ember" bake "$bundle" --interface port --kernel "$EMBER_SMALL_GUESTS/echo.elf" --memory 64MiB >"$OUT/bake-small"
"$place/floor" make "$place/dump"

set -- $run "$bundle" --event-text hello
# The first starts read files that later ones find in memory.
"$place/starter" "$OUT/warm-up" 20 "$pause_us" ember "$@" -- floor "$place/floor" run "$place/dump"
rm "$OUT/warm-up"
"$place/starter" "$OUT/small.jsonl" "$samples" "$pause_us" \
    ember "$@" -- floor "$place/floor" run "$place/dump" -- timed "$@" --timing=json
