# Sourced by the scripts that take samples: a place for everything that is timed, bundles baked there, and series of samples.
#
# In the emulated host it lies on a tmpfs, programs and bundles too: there a disk read takes anything from 18 us to 360 ms.

# A random pause below this comes before each sample.
pause_us=8000
place=$(mktemp -d "${TMPDIR:-/tmp}/ember-bench.XXXXXX")
trap 'rm -rf "$place"' EXIT

cp "$EMBER_BIN" "$EMBER_AGENT" "$BENCH_TOOLS/starter" "$place"
export EMBER_AGENT="$place/ember-agent"
ember=$place/ember
# For what is compared with programs that are not jailed; what the jail costs is measured by jail.sh.
run="$ember run --no-jail"

say() { printf '%s\n' "$*" >&2; }

bake() { # BUNDLE ARGUMENT...
    name=$1
    shift
    say "    baking $name"
    said=$OUT/bake-$(echo "$name" | tr / -)
    "$ember" bake "$place/$name" "$@" >"$said" 2>&1 || {
        cat "$said" >&2
        exit 1
    }
}

series() { # SERIES SAMPLES LABEL COMMAND... [-- LABEL COMMAND...]
    name=$1
    samples=$2
    shift 2
    say "    $name: $samples samples"
    "$place/starter" "$OUT/$name.jsonl" "$samples" "$pause_us" "$@"
}

# The first starts read files that later ones find in memory.
warm_up() { # SAMPLES LABEL COMMAND... [-- LABEL COMMAND...]
    samples=$1
    shift
    "$place/starter" "$place/warm-up" "$samples" "$pause_us" "$@"
}
