#!/bin/sh
# Takes the samples of `cargo xtask bench main` on this machine's own KVM: a small guest and the floor in one interleaved run.
set -eu
. "$EMBER_BENCHES/common/place.sh"

cp "$BENCH_TOOLS/floor" "$place"
bake small --interface port --kernel "$EMBER_SMALL_GUESTS/echo.elf" --memory 64MiB
"$place/floor" make "$place/dump"

set -- $run "$place/small" --event-text hello
warm_up 20 ember "$@" -- floor "$place/floor" run "$place/dump"
series small "${SAMPLES_NATIVE:-300}" \
    ember "$@" -- floor "$place/floor" run "$place/dump" -- timed "$@" --timing=json
