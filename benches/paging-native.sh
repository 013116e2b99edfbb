#!/bin/sh
# Takes the samples of `cargo xtask bench paging` on this machine's own KVM and file system: a file of JSON lines per series in $OUT.
set -eu
. "$EMBER_BENCHES/common/place.sh"

warm=${SAMPLES_WARM:-31}
cold=${SAMPLES_COLD:-9}
bakes=${SAMPLES_BAKE:-5}

cp "$BENCH_TOOLS/cool" "$place"
findmnt -n -o FSTYPE -T "$place" >"$OUT/filesystem"

# All of it is content, and it is recorded with the event.
small() { # BUNDLE EVENT
    bake "$1" --interface port --kernel "$EMBER_SMALL_GUESTS/toucher.elf" --memory 256MiB --warm-up fill --no-record
    "$ember" record --event-text "$2" "$place/$1" >"$OUT/record-$(echo "$1" | tr / -)"
}

warm() { # SERIES EVENT
    small "$1" "$2"
    bundle=$1
    set -- $run "$place/$bundle" --event-text "$2"
    warm_up 3 none "$@" --prefetch none -- all "$@"
    series "$bundle" "$warm" none "$@" --prefetch none -- all "$@"
}

# The same bundle on a tmpfs in small pages and in one in huge pages, in turn, and the blocks of 512 bytes that its memory takes there
# before and after. Only root can mount them.
backing() { # EVENT
    for pages in never always; do
        mkdir "$place/huge-$pages"
        mount -t tmpfs -o "huge=$pages,size=1g" none "$place/huge-$pages"
        small "huge-$pages/backing" "$1"
    done
    blocks
    set -- $run "$place/huge-never/backing" --event-text "$1" -- huge $run "$place/huge-always/backing" --event-text "$1"
    warm_up 3 small "$@"
    series backing "$warm" small "$@"
    blocks
    umount "$place/huge-never" "$place/huge-always"
}

blocks() { stat -c %b "$place/huge-never/backing/memory" "$place/huge-always/backing/memory" >>"$OUT/backing.blocks"; }

# A memory file of which nothing is in the page cache when a sample begins, which `cool` makes sure of by mincore(2).
cold() {
    set -- $run "$place/scattered" --event-text "$1"
    count=0
    while [ "$count" -lt "$cold" ]; do
        count=$((count + 1))
        for choice in none all; do
            "$place/cool" "$place/scattered/memory"
            "$place/starter" "$OUT/one" 1 "$pause_us" "$choice" "$@" --prefetch "$choice"
            cat "$OUT/one" >>"$OUT/cold.jsonl"
        done
    done
    rm "$OUT/one"
}

# An eighth of 256 MiB is live. Standard error tells how long each phase of a bake took; dd writes as many bytes to the same file
# system.
bakes() { # SERIES WARM-UP...
    kind=$1
    shift
    count=0
    while [ "$count" -lt "$bakes" ]; do
        count=$((count + 1))
        "$ember" bake "$place/baked" --interface port --kernel "$EMBER_SMALL_GUESTS/toucher.elf" --memory 256MiB \
            --no-record "$@" >/dev/null 2>"$place/phases"
        cat "$place/phases" >>"$OUT/$kind.phases"
        rm -r "$place/baked"
        begin=$(date +%s%N)
        dd if="$place/content" of="$place/written" bs=1M conv=fsync 2>/dev/null
        echo "$((($(date +%s%N) - begin) / 1000))" >>"$OUT/$kind.dd"
        rm "$place/written"
    done
}

# Half of 2 000 pages is written.
warm run "read 4096 1000 1 write 5096 1000 1"
rm -r "$place/run"
warm scattered "scatter 42 2000"
cold "scatter 42 2000"
rm -r "$place/scattered"
if [ "$(id -u)" -eq 0 ]; then
    backing "scatter 42 2000"
else
    say "    backing by huge pages is left out: only root may mount a tmpfs for it"
fi

dd if=/dev/urandom of="$place/content" bs=1M count=32 2>/dev/null
# Runs of 64 KiB, 512 KiB from one another.
bakes bake-runs \
    --warm-up "$(seq -s ' ' -f 'write %g 512 128' 0 7)" --warm-up "$(seq -s ' ' -f 'write %g 512 128' 8 15)"
bakes bake-pages --warm-up "write 0 8192 8"
