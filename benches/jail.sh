#!/bin/sh
# Takes the samples of `cargo xtask bench jail` on this machine's own KVM: a small guest, jailed and not, in one interleaved run.
set -eu
. "$EMBER_BENCHES/common/place.sh"

bake small --interface port --kernel "$EMBER_SMALL_GUESTS/echo.elf" --memory 64MiB

# As root nothing may be lacking; others measure as much of a jail as they get.
whole=
[ "$(id -u)" != 0 ] || whole=--require-jail
set -- "$ember" run "$place/small" --event-text hello
warm_up 20 jailed "$@" $whole -- open "$@" --no-jail
series jail "${SAMPLES_JAIL:-300}" jailed "$@" $whole -- open "$@" --no-jail -- timed "$@" $whole --timing=json
